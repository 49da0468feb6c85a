"""Shards that were made elsewhere: whether this tokenizer wrote them, and the byte proof over all their documents.

Every validation document is decoded, encoded again and counted, and copies of it are looked for in every training
shard; of those a sample is encoded again. What was found is remembered in the cache by the shards' content, so that it
is found out once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from golf.common.errors import DataError
from golf.common.files import sha256_json
from golf.common.log import logger
from golf.data import sidecar
from golf.data.hashes import Memo
from golf.data.overlap import Beginnings, TextHash, near_copies
from golf.data.shards import Shards
from golf.data.sources import Split
from golf.tokenizers.base import CountsApart, OnProgress, Tokenizer, counts_apart
from golf.tokenizers.byte_table import ByteTable, Prover, lost_ids

_VERSION = 3  # of the checks; a change makes what is remembered invisible
_BATCH_TOKENS = 1 << 22  # decoded at once: bounds memory, and feeds every core
_SCAN = 1 << 24
_WINDOW = 1 << 14  # tokens looked at in each of three places of a training shard
_FROM_A_WINDOW = 4  # whole documents taken from each
_CUT_TAIL = 64  # ids beside a cut that may encode differently: a word was cut in two
_WORTH_TELLING = 1 << 27  # tokens of training shards that take long enough for a line of progress


def check_shards(
    train: Shards,
    val: Shards,
    hashes: Mapping[str, Sequence[str]],
    tokenizer: Tokenizer,
    cache: Path,
    progress: OnProgress | None = None,
    counts: Shards | None = None,
) -> dict[Split, dict[str, Any]]:
    """What the checks found, by split; `hashes` are those of the shards' content.

    val: `documents, bytes, same, text_sha256`, the proof over all of them; of a tokenizer that counts apart, `counts`
    is the side-car that lies beside the shards, held to what the ids tell. train: `documents, sampled, same`, of which
    `copies` are validation documents, and `overlap`, see `near_copies`. One process of the machine works, the others
    wait and find its results. Raises DataError for ids out of the vocabulary, for shards
    that another tokenizer wrote, and for documents whose bytes the table counts wrongly.
    """
    memo = Memo(cache / "checked_shards.json")
    content = [_VERSION, tokenizer.name, tokenizer.hash, tokenizer.vocab_size]
    val_key = sha256_json(["val", *content, *hashes["val"], *hashes.get(sidecar.SPLIT, [])])
    keys = [sha256_json(["train", val_key, digest]) for digest in hashes["train"]]
    near_key = sha256_json(["overlap", val_key, *hashes["train"]])
    known = memo.load()
    if not known.keys() >= {*keys, val_key, near_key}:
        with memo.held():
            known, new = memo.load(), dict[str, Any]()
            try:
                if val_key not in known:
                    new[val_key] = _prove_validation(val, tokenizer, progress, counts)
                beginnings = Beginnings(val, tokenizer.bos_id) if not known.keys() >= {*keys} else None
                for index, key in enumerate(keys):
                    if key not in known and beginnings is not None:
                        new[key] = _sample_training(train, index, tokenizer, beginnings)
                        if progress is not None and len(train) >= _WORTH_TELLING:
                            progress("look through the training shards", (index + 1) / len(keys))
                if near_key not in known:
                    proved = new.get(val_key) or known[val_key]
                    per_token = proved["bytes"] / max(len(val), 1)
                    new[near_key] = near_copies(train, val, tokenizer.bos_id, per_token)
            finally:
                memo.add(new)
            known |= new
    shards = [known[key] for key in keys]
    totals = {name: sum(int(one[name]) for one in shards) for name in ("documents", "sampled", "same", "copies")}
    return {"train": {**totals, "overlap": dict(known[near_key])}, "val": dict(known[val_key])}


@dataclass(frozen=True)
class _Document:
    """Ids of a document without its BOS, where they begin in their stream, and whether neither end was cut off."""

    ids: np.ndarray
    position: int
    whole: bool


class _Verdict:
    """How many documents of one shard encode to their own ids again.

    `other`: the same text in other pieces, as only another tokenizer writes it. `unclear`: a document that was cut, or
    whose text the normaliser changes once more, so that its pieces tell nothing. `lossy`: one with ids that stand for
    text that is lost, which nothing encodes to.
    """

    def __init__(self, tokenizer: Tokenizer, table: ByteTable) -> None:
        self._tokenizer, self._table = tokenizer, table
        self.documents = self.same = self.other = self.unclear = self.lossy = 0
        self._first = ""
        self._lost = lost_ids(tokenizer, table)

    def add(self, document: _Document, text: str, again: np.ndarray) -> bool:
        """Compare a document with what its text encodes to; whether they are equal."""
        ids, whole = self._spoken(document)
        equal = np.array_equal(ids, again)
        slack = min(_CUT_TAIL, len(ids) // 4)
        self.documents += 1
        if equal or (not whole and ids[slack : len(ids) - slack].tobytes() in again.tobytes()):
            self.same += 1
            return equal and whole
        if np.isin(document.ids, self._lost).any():
            self.lossy += 1
            return False
        self._first = self._first or f"at token {document.position}, {text[:60]!r}"
        # A space that the model makes before the first word is no text, so a document's own is lost in decoding.
        spaced = {bool(self._table.leading_space[one[0]]) for one in (ids, again) if len(one)}
        if whole and len(spaced) < 2 and self._tokenizer.normalize(text) == text:
            self.other += 1
        else:
            self.unclear += 1
        return False

    def settle(self, path: Path) -> None:
        """Raises DataError unless these ids are this tokenizer's; `path` is the shard's."""
        clear = self.documents - self.lossy
        alien = self.other > clear // 100 or self.unclear > max(2, clear // 10) or not self.same
        if clear and alien:
            raise DataError(
                f"the documents of {path} were not written with {self._tokenizer.name}: of {self.documents} looked at, "
                f"{self.same} encode to their own ids again\n(the first that does not: {self._first})\n"
                "tokenizer.model_path names the model that wrote the shards"
            )

    def _spoken(self, document: _Document) -> tuple[np.ndarray, bool]:
        """The ids that stand for text: encoding gives no others. Of a document that others divide, the longest part."""
        ids, silent = document.ids, self._table.boundary[document.ids]
        if not silent.any():
            return ids, document.whole
        edges = np.flatnonzero(np.concatenate([[True], silent, [True]]))
        parts = [(end - start - 1, start) for start, end in pairwise(edges.tolist()) if end - start > 1]
        size, start = max(parts, default=(0, 0))
        return ids[start : start + size], document.whole and len(parts) < 2


def _documents(ids: np.ndarray, bos_id: int, offset: int = 0) -> list[_Document]:
    """A stream cut at each BOS. What is before the first BOS, and the last one, may have been cut off."""
    starts = np.flatnonzero(ids == bos_id).tolist()
    found = [_Document(ids[: starts[0]] if starts else ids, offset, False)] if not starts or starts[0] else []
    for start, end in pairwise([*starts, len(ids)]):
        found.append(_Document(ids[start + 1 : end], offset + start + 1, end < len(ids)))
    return found


def _mended(document: _Document, tokenizer: Tokenizer) -> _Document:
    """A document that was cut, without the ids of a character of several bytes that lost a part of its own."""
    ids, position = document.ids, document.position
    for _ in range(3):
        if tokenizer.decode(ids[-4:]).endswith("\ufffd"):
            ids = ids[:-1]
        if tokenizer.decode(ids[:4]).startswith("\ufffd"):
            ids, position = ids[1:], position + 1
    return _Document(ids, position, False)


def _prove_validation(
    val: Shards, tokenizer: Tokenizer, progress: OnProgress | None, counts: Shards | None
) -> dict[str, Any]:
    """Decode, encode and count every document. Raises DataError."""
    ids = val.read(0, len(val))
    if not (ids == tokenizer.bos_id).any():
        raise DataError(
            f"{val.paths[0]} has no BOS (id {tokenizer.bos_id}) in its {ids.size} tokens: bpb cannot be proved"
        )
    table, prover, text_hash = tokenizer.byte_table(), Prover(tokenizer), TextHash()
    verdicts = [_Verdict(tokenizer, table) for _ in val.paths]
    judge = _Judge(tokenizer, table, counts)
    done = 0
    for batch in _batches(_documents(ids, tokenizer.bos_id)):
        cut, batch = batch, [one if one.whole else _mended(one, tokenizer) for one in batch]
        texts = [tokenizer.decode(one.ids) for one in batch]
        text_hash.add(texts)
        encoded = tokenizer.encode_batch(texts)
        for at, (document, again) in enumerate(zip(batch, encoded, strict=True)):
            # Where the ids are those of the text, the normaliser, which never sees the table, says how long it is.
            if verdicts[val.index_of(document.position - 1)].add(document, texts[at], again):
                texts[at] = tokenizer.normalize(texts[at])
        try:
            told = np.flatnonzero(judge.tell(cut)).tolist()
            prover.check([batch[at].ids for at in told], [texts[at] for at in told])
        except DataError:
            for path, verdict in zip(val.paths, verdicts, strict=True):
                verdict.settle(path)  # another tokenizer's ids are the better explanation
            raise
        done += sum(len(one.ids) + 1 for one in batch)
        if progress is not None and ids.size > _BATCH_TOKENS:
            progress("prove the byte count of the validation shards", min(done / ids.size, 1.0))
    for path, verdict in zip(val.paths, verdicts, strict=True):
        verdict.settle(path)
    return {
        "documents": sum(verdict.documents for verdict in verdicts),
        "proved_documents": prover.proof.documents,
        "proved_bytes": prover.proof.bytes,
        "bytes": table.count(ids),
        "lost": judge.settle(),
        "same": sum(verdict.same for verdict in verdicts),
        "text_sha256": text_hash.hexdigest(),
    }


class _Judge:
    """Of a tokenizer that counts apart: what a side-car beside the shards says, held to what the ids tell.

    Documents with ids whose text is lost are counted by it alone, and refused without one.
    """

    def __init__(self, tokenizer: Tokenizer, table: ByteTable, counts: Shards | None) -> None:
        self._tokenizer, self._table, self._counts = counts_apart(tokenizer), table, counts
        self._lost = np.zeros(0, np.int64) if self._tokenizer is None else lost_ids(tokenizer, table)
        self._told = self._known = self._tokens = self._bytes = 0

    def tell(self, documents: Sequence[_Document]) -> list[bool]:
        """Whether each of the next documents' ids tell its bytes. Raises DataError where nothing does."""
        return [self._tokenizer is None or self._weigh(self._tokenizer, one) for one in documents]

    def settle(self) -> dict[str, int]:
        """Tokens and bytes that the side-car alone tells. Raises DataError for a side-car that is not these shards'."""
        if self._counts is not None and abs(self._told - self._known) > self._known // 100:
            raise DataError(
                f"bpb refused: {self._counts.paths[0]} counts {self._told} bytes, the tokens stand for {self._known}:\n"
                "it is no side-car of these shards"
            )
        return {"lost_tokens": self._tokens, "lost_bytes": self._bytes} if self._tokens else {}

    def _weigh(self, tokenizer: CountsApart, document: _Document) -> bool:
        ids, lost = document.ids, np.isin(document.ids, self._lost)
        if self._counts is None:
            tokenizer.charges(ids)
            return True
        given = self._counts.read(document.position, len(ids)).astype(np.int64) if len(ids) else np.zeros(0, np.int64)
        self._told += int(given.sum())
        if not lost.any():
            self._known += int(tokenizer.charges(ids).sum())
            return True
        charged = self._table.base[ids] + self._table.leading_space[ids]
        self._known += int(np.where(lost, given, charged).sum())
        self._tokens += int(lost.sum())
        self._bytes += int(given[lost].sum())
        return False


def _sample_training(train: Shards, index: int, tokenizer: Tokenizer, beginnings: Beginnings) -> dict[str, Any]:
    """Look through one shard for ids out of the vocabulary and for validation documents, and at documents of its
    beginning, middle and end."""
    documents, copies, size = 0, 0, train.size(index)
    for at in range(0, size, _SCAN):
        documents += int(np.count_nonzero(train.part(index, at, _SCAN) == tokenizer.bos_id))
        copies += beginnings.copies(train, index, at, _SCAN)
    places = [0, (size - _WINDOW) // 2, size - _WINDOW] if size > 3 * _WINDOW else [0]
    length = _WINDOW if size > 3 * _WINDOW else size
    windows = [_documents(train.part(index, at, length), tokenizer.bos_id, at) for at in places]
    most = _FROM_A_WINDOW if len(places) > 1 else len(windows[0])
    sample = [one for window in windows for one in [one for one in window if one.whole][:most]]
    if not sample:  # documents longer than a window
        longest = [max(window, key=lambda one: len(one.ids)) for window in windows if window]
        sample = [_mended(one, tokenizer) for one in longest]
    texts = [tokenizer.decode(one.ids) for one in sample]
    verdict = _Verdict(tokenizer, tokenizer.byte_table())
    for document, text, again in zip(sample, texts, tokenizer.encode_batch(texts), strict=True):
        verdict.add(document, text, again)
    verdict.settle(train.paths[index])
    if verdict.lossy:
        logger.warning(
            "%s: %d of %d documents looked at hold characters that %s has no piece for: their text is lost\n"
            "(shards written with a model trained with byte_fallback=true lose none)",
            train.paths[index].name, verdict.lossy, verdict.documents, tokenizer.name,
        )  # fmt: skip
    return {"documents": documents, "sampled": verdict.documents, "same": verdict.same, "copies": copies}


def _batches(documents: Sequence[_Document]) -> Iterator[list[_Document]]:
    batch: list[_Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.ids) + 1
        if size >= _BATCH_TOKENS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
