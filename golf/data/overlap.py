"""What training has of validation: copies that are left out or counted, near copies as a figure on a declared sample.

Source: near copies by shingles, Broder 1997.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from golf.data.division import digest
from golf.data.shards import Shards
from golf.tokenizers.base import Tokenizer, TokenizerSpec
from golf.tokenizers.byte260 import Byte260Spec

BEGINNING = 16
"""Tokens by which a document is looked up; a shorter one is nobody's copy."""
_SHINGLE_BYTES = 64  # what a shingle spans, about: longer than what people write by chance
_MOST_DOCUMENTS = 1000  # of validation that are looked for
_MOST_SHINGLES = 128  # of each
_MOST_TOKENS = 1 << 25  # of training that are looked through
_BLOCK = 1 << 20
_TABLE_BITS = 22


def plain(text: str) -> str:
    """A text without what tokenizers differ in: compatibility forms, and the kind and number of its white space."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def plain_bytes(texts: Iterable[str]) -> bytes:
    """Documents as `plain` text, as TextHash takes them."""
    return b"".join(plain(text).encode("utf-8", "replace") + b"\0" for text in texts)


class TextHash:
    """SHA-256 over documents as `plain` text: the same for a text and for any tokenizer's shards of it."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, texts: Iterable[str] | bytes) -> None:
        """The next documents, or the `plain_bytes` of them."""
        self._digest.update(texts if isinstance(texts, bytes) else plain_bytes(texts))

    def hexdigest(self) -> str:
        """Of all so far."""
        return self._digest.hexdigest()


class Copies:
    """Validation documents, to know their copies by: the same but for white space, or the same to the tokenizer."""

    def __init__(self) -> None:
        self._texts: set[bytes] = set()
        self._ids: set[bytes] = set()

    def __bool__(self) -> bool:
        return bool(self._texts)

    @staticmethod
    def key(text: str) -> bytes:
        """16 bytes that stand for a text without the kind and number of its white space."""
        return digest(" ".join(text.split()))

    @staticmethod
    def id_key(ids: np.ndarray) -> bytes:
        """16 bytes that stand for a document's ids."""
        return _of(ids)

    def hold(self, keys: Iterable[bytes], id_keys: Iterable[bytes] = ()) -> None:
        """Remember validation documents by what stands for them."""
        self._texts.update(keys)
        self._ids.update(id_keys)

    def known(self, key: bytes) -> bool:
        """Whether a text is some validation document's but for white space."""
        return key in self._texts

    def known_ids(self, key: bytes) -> bool:
        """Whether ids are some validation document's."""
        return key in self._ids

    def apart(self, texts: Iterable[str]) -> Iterator[str]:
        """The texts that are no copies but for white space."""
        return (text for text in texts if self.key(text) not in self._texts)

    def to_bytes(self) -> bytes:
        """Everything that is remembered, the same for the same documents."""
        return b"".join((len(self._texts).to_bytes(8, "little"), *sorted(self._texts), *sorted(self._ids)))

    @classmethod
    def from_bytes(cls, data: bytes) -> Copies:
        """What `to_bytes` gave."""
        keys = [data[at : at + 16] for at in range(8, len(data), 16)]
        texts = int.from_bytes(data[:8], "little")
        copies = cls()
        copies.hold(keys[:texts], keys[texts:])
        return copies


class Beginnings:
    """The documents of validation shards, found again in training shards by how they begin, then compared whole."""

    def __init__(self, val: Shards, bos_id: int) -> None:
        ids = val.read(0, len(val))
        starts = np.flatnonzero(ids == bos_id) + 1
        ends = np.append(starts[1:] - 1, len(ids))
        long = ends - starts >= BEGINNING
        starts, ends = starts[long], ends[long]
        self._bos_id, self._longest = bos_id, int((ends - starts).max(initial=0))
        self._firsts = np.unique(_beginnings(ids, starts))
        self._documents = {_of(ids[start:end]) for start, end in zip(starts, ends, strict=True)}

    def copies(self, train: Shards, index: int, offset: int, n: int) -> int:
        """How many documents that begin in `n` tokens of a training shard from `offset` on are one of validation."""
        ids = train.part(index, offset, n + BEGINNING)
        starts = np.flatnonzero(ids[:n] == self._bos_id) + 1
        starts = starts[starts + BEGINNING <= len(ids)]
        if not len(starts) or not len(self._firsts):
            return 0
        found = 0
        for start in starts[np.isin(_beginnings(ids, starts), self._firsts)].tolist():
            whole = train.part(index, offset + start, self._longest + 1)
            ends = np.flatnonzero(whole == self._bos_id)
            found += _of(whole[: ends[0]] if len(ends) else whole) in self._documents
        return found


def near_copies(train: Shards, val: Shards, bos_id: int, bytes_per_token: float) -> dict[str, Any]:
    """The share of validation documents half of whose shingles, or more, stand in training; both are sampled evenly.

    A shingle is so many tokens in a row as are about 64 bytes; a document has at least two of them. `share` is None
    where no document is as long. Takes seconds and some MB, whatever the data.
    """
    size = int(np.clip(round(_SHINGLE_BYTES / max(bytes_per_token, 1e-9)), 8, _SHINGLE_BYTES))
    of_document, wanted = _shingles(val, bos_id, size)
    told: dict[str, Any] = {"shingle_tokens": size, "val_documents_sampled": int(of_document.max(initial=-1)) + 1}
    order = np.argsort(wanted)
    ordered, seen = wanted[order], np.zeros(len(wanted), bool)
    table = np.zeros(1 << _TABLE_BITS, bool)
    shift = np.uint64(64 - _TABLE_BITS)
    table[ordered >> shift] = True
    looked = 0
    for at, n in _windows(len(train)):
        looked += n
        hashes = shingle_hashes(train.read(at, n), size)
        hashes = hashes[table[hashes >> shift]]
        if len(ordered):
            first = np.searchsorted(ordered, hashes)
            hit = hashes[(first < len(ordered)) & (ordered[np.minimum(first, len(ordered) - 1)] == hashes)]
            seen |= np.isin(ordered, hit)
    documents = told["val_documents_sampled"]
    held = np.bincount(of_document[order], weights=seen, minlength=documents)
    of_each = np.maximum(np.bincount(of_document, minlength=documents), 1)
    near = int(np.count_nonzero(held / of_each >= 0.5)) if documents else 0
    share = near / documents if documents else None
    return {**told, "train_tokens_sampled": looked, "train_tokens": len(train), "near_copies": near, "share": share}


def tokenizer_training(spec: TokenizerSpec, tokenizer: Tokenizer | None = None) -> str:
    """What a tokenizer has seen, as the run record keeps it; `trained_on` of one that golf trained says how much."""
    if spec.needs_text:
        sample = getattr(tokenizer, "trained_on", None)
        return "training documents alone" + (f": {sample}" if sample else "")
    if isinstance(spec, Byte260Spec):
        return "none: its tokens are bytes"
    path = getattr(spec, "model_path", None)
    made = f"loaded from {path}" if path else "made elsewhere"
    return f"unknown: {made}; whether it has seen validation text cannot be told here"


def told(facts: Mapping[str, Any]) -> list[str]:
    """What the facts of data say of validation text in training, and what could not be looked at: lines for the log."""
    lines = []
    if str(facts.get("disjoint", "")).startswith("not checked"):
        lines.append(f"training and validation apart: {facts['disjoint']}")
    found = facts.get("overlap")
    if isinstance(found, dict) and found.get("share") is not None:
        part = found["train_tokens_sampled"] / max(found["train_tokens"], 1)
        where = "the training text" if part >= 1 else f"a sample of {part:.1%} of the training text"
        lines.append(
            f"{found['share']:.1%} of {found['val_documents_sampled']:,} validation documents have half of their text, "
            f"or more, in {where} too"
        )
    if str(facts.get("tokenizer_training", "")).startswith("unknown"):
        lines.append(f"the tokenizer's own training text is {facts['tokenizer_training']}")
    return lines


def _of(ids: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(ids, "<u2").tobytes(), digest_size=16).digest()


def shingle_hashes(ids: np.ndarray, size: int) -> np.ndarray:
    """A hash of every `size` ids in a row, uint64 [n - size + 1]; [0] for fewer."""
    n = len(ids) - size + 1
    if n <= 0:
        return np.zeros(0, np.uint64)
    found = np.zeros(n, np.uint64)
    wide = ids.astype(np.uint64)
    for at in range(size):
        found *= np.uint64(0x9E3779B97F4A7C15)
        found += wide[at : at + n] + np.uint64(1)
    return found * np.uint64(0xBF58476D1CE4E5B9)  # so that the upper bits, which the table goes by, hold all of it


def _beginnings(ids: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The hash of the first ids from each start on, uint64 [starts]."""
    return shingle_hashes(ids[(starts[:, None] + np.arange(BEGINNING)).reshape(-1)], BEGINNING)[::BEGINNING]


def _shingles(val: Shards, bos_id: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The document, by number, and the hash of shingles of validation documents, spread evenly over both."""
    ids = val.read(0, len(val))
    starts = np.flatnonzero(ids == bos_id) + 1
    ends = np.append(starts[1:] - 1, len(ids))
    long = np.flatnonzero(ends - starts >= 2 * size)
    chosen = long[spread(len(long), _MOST_DOCUMENTS)]
    of_document, hashes = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)]
    for number, one in enumerate(chosen):
        every = shingle_hashes(ids[starts[one] : ends[one]], size)
        some = every[spread(len(every), _MOST_SHINGLES)]
        of_document.append(np.full(len(some), number))
        hashes.append(some)
    return np.concatenate(of_document), np.concatenate(hashes)


def spread(n: int, most: int) -> np.ndarray:
    """At most `most` of the numbers below `n`, evenly."""
    return np.arange(n) if n <= most else np.arange(most) * n // most


def _windows(tokens: int) -> Iterator[tuple[int, int]]:
    """Where to look: all of a stream in blocks, or blocks of it, evenly; shingles across blocks are lost."""
    blocks = -(-tokens // _BLOCK)
    for block in spread(blocks, _MOST_TOKENS // _BLOCK).tolist():
        at = block * _BLOCK
        yield at, min(_BLOCK, tokens - at)
