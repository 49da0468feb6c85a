"""The one place where bytes are counted: what each token costs, and the proof that the count is true."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from golf.common.errors import DataError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from golf.tokenizers.base import CountsApart, Tokenizer

_CHUNK = 1 << 22  # tokens counted at once: bounds the temporary arrays on validation sets of 10^8 tokens


class ByteTable:
    """UTF-8 bytes per token: `bytes(target) + [leading_space(target) and not boundary(previous)]`.

    A piece that begins with a space carries that byte apart, because right after a boundary (BOS, the start of a
    document) the decoder drops it. Boundary ids (control, unknown, unused) stand for no text: 0 bytes. Models that
    put their spaces behind words may have a last one that stands for no text: the byte of a `trailing_space` is
    charged to the token that follows, unless that is a boundary.

    base: int16 [V], bytes without such spaces. leading_space, boundary, trailing_space (None: none): bool [V].
    Raises DataError when they differ in shape or a count is negative.
    Source: the byte tables of the naive baseline record's evaluator.
    """

    def __init__(
        self,
        base: np.ndarray,
        leading_space: np.ndarray,
        boundary: np.ndarray,
        trailing_space: np.ndarray | None = None,
    ) -> None:
        base = np.asarray(base)
        trailing = np.zeros(base.shape, bool) if trailing_space is None else np.asarray(trailing_space)
        if base.ndim != 1 or not base.shape == np.shape(leading_space) == np.shape(boundary) == trailing.shape:
            shapes = base.shape, np.shape(leading_space), np.shape(boundary), trailing.shape
            raise DataError(f"a byte table needs columns of one length, not {shapes}")
        if base.size and (base.min() < 0 or base.max() > np.iinfo(np.int16).max):
            raise DataError(f"a byte table holds counts from 0 to 32767, not {base.min()}..{base.max()}")
        self.base = base.astype(np.int16)
        self.leading_space = np.asarray(leading_space).astype(bool)
        self.boundary = np.asarray(boundary).astype(bool)
        self.trailing_space = trailing.astype(bool)
        self._trails = bool(self.trailing_space.any())
        self._on_device: dict[torch.device, tuple[Tensor, ...]] = {}

    def __len__(self) -> int:
        return len(self.base)

    def charge(self, previous: Tensor, targets: Tensor) -> Tensor:
        """Bytes of each target given the token before it: integer tensors of one shape → int32 of that shape.

        Works on the tensors' device, where the columns stay after the first call. Pure tensor operations.
        """
        columns = self._on_device.get(targets.device)
        if columns is None:
            columns = self._on_device[targets.device] = self._columns(targets.device)
        base, space, boundary, trailing = columns
        targets, previous = targets.long(), previous.long()
        charged = base[targets] + (space[targets] & ~boundary[previous]).int()
        return charged + (trailing[previous] & ~boundary[targets]).int() if self._trails else charged

    def _columns(self, device: torch.device) -> tuple[Tensor, ...]:
        import torch  # here, since processes that only tokenize do without it: it takes a second and 200 MB

        arrays = (self.base.astype(np.int32), self.leading_space, self.boundary, self.trailing_space)
        return tuple(torch.from_numpy(array).to(device) for array in arrays)

    def charges(self, ids: np.ndarray) -> np.ndarray:
        """Bytes of every token of a stream [N] as a target, int32 [N]; ids[0] is context only: 0."""
        charged = np.zeros(len(ids), np.int32)
        previous, targets = ids[:-1], ids[1:]
        charged[1:] = self.base[targets]
        charged[1:] += self.leading_space[targets] & ~self.boundary[previous]
        if self._trails:
            charged[1:] += self.trailing_space[previous] & ~self.boundary[targets]
        return charged

    def count(self, ids: np.ndarray) -> int:
        """Bytes of a whole stream [N]: every id is a target once, but ids[0], which is context only."""
        starts = range(0, len(ids) - 1, _CHUNK)
        return sum(int(self.charges(ids[start : start + _CHUNK + 1]).sum(dtype=np.int64)) for start in starts)


@dataclass(frozen=True)
class ByteProof:
    """What the proof covered: documents compared, and the UTF-8 bytes of their normalised text."""

    documents: int
    bytes: int

    def facts(self) -> dict[str, Any]:
        """The proof as the run record keeps it."""
        return {"proved": True, "documents": self.documents, "bytes": self.bytes}


def lost_ids(tokenizer: Tokenizer, table: ByteTable) -> np.ndarray:
    """The ids that stand for text which they do not tell: decoding them gives a mark in its place."""
    silent = np.flatnonzero(table.boundary)
    return np.array([one for one in silent if tokenizer.decode([int(one)])], silent.dtype)


class Prover:
    """Holds the byte table to the text of document after document, each of them; `proof` tells how many so far.

    A document's count is the table's sum over [BOS] + its ids. Its text comes from `tokenizer.normalize`, which never
    sees the table, and decoding must give it back: so a tokenizer that loses text (an unknown character) is refused,
    not flattered. One that counts apart is held to the text in the same way, by its own count of each document; of
    those with lost text only the count is proved, and the side-car tells how much it is. Raises DataError ("bpb
    refused") at the first document that differs, naming the piece.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._table = tokenizer, tokenizer.byte_table()
        self._documents = self._bytes = 0
        from golf.tokenizers.base import counts_apart  # which knows the table

        self._apart = counts_apart(tokenizer)
        self._lost = lost_ids(tokenizer, self._table) if self._apart is not None else np.zeros(0, np.int64)
        table, name = self._table, tokenizer.name
        if len(table) != tokenizer.vocab_size:
            raise DataError(f"bpb refused: {name} has {tokenizer.vocab_size} ids, its byte table {len(table)}")
        if not table.boundary[tokenizer.bos_id] or table.base[tokenizer.bos_id]:
            raise DataError(f"bpb refused: {name} counts bytes for BOS, which stands between documents")

    @property
    def proof(self) -> ByteProof:
        """What was proved so far."""
        return ByteProof(self._documents, self._bytes)

    def believe(self, documents: int, bytes: int) -> None:
        """Count documents that another prover of the same tokenizer has checked."""
        self._documents += documents
        self._bytes += bytes

    def check(self, documents: Sequence[np.ndarray], texts: Sequence[str]) -> None:
        """Compare the next documents' ids (without BOS) with their normalised texts."""
        if self._apart is not None:
            for ids, text in zip(documents, texts, strict=True):
                self._check_apart(self._apart, ids, text)
            return
        bos = np.array([self._tokenizer.bos_id], np.uint16)
        stream = np.concatenate([part for ids in documents for part in (bos, ids)] or [bos])
        ends = np.cumsum([len(ids) + 1 for ids in documents])
        counted = np.diff(np.cumsum(self._table.charges(stream), dtype=np.int64)[ends - 1], prepend=0) if texts else []
        for ids, text, count in zip(documents, texts, counted, strict=True):
            true_bytes = len(text.encode("utf-8"))
            self._documents += 1
            self._bytes += true_bytes
            if count != true_bytes or self._tokenizer.decode(ids) != text:
                raise DataError(f"bpb refused: {self._difference(ids, text, int(count), true_bytes)}")

    def _check_apart(self, tokenizer: CountsApart, ids: np.ndarray, text: str) -> None:
        true_bytes = len(text.encode("utf-8"))
        count = int(tokenizer.charges(ids, lambda: text).sum(dtype=np.int64))
        self._documents += 1
        self._bytes += true_bytes
        lost = np.isin(ids, self._lost).any()
        if count != true_bytes or (not lost and tokenizer.decode(ids) != text):
            raise DataError(f"bpb refused: {self._difference(ids, text, count, true_bytes)}")

    def _difference(self, ids: np.ndarray, text: str, counted: int, true_bytes: int) -> str:
        """What is wrong with the document, in at most three lines."""
        name, where = self._tokenizer.name, f"(document {self._documents}, {text[:60]!r})"
        decoded = self._tokenizer.decode(ids)
        pairs = enumerate(zip(decoded, text, strict=False))
        at = next((i for i, (one, other) in pairs if one != other), min(len(decoded), len(text)))
        silent = ids[self._table.boundary[ids]].tolist()
        told = f"{name} loses text: its tokens decode to something else {where}"
        if counted != true_bytes:
            told = f"{name} counts {counted} bytes where the text has {true_bytes} {where}"
        if lost := sum(bool(self._tokenizer.decode([i])) for i in silent):  # unknown or unused; control ids are no text
            first = f", the first for {text[at]!r}" if at < len(text) else ""
            return (
                f"{told}\n{lost} of its tokens stand for no text{first}: a model trained with byte_fallback=true,\n"
                "or on every character of this text, has pieces for all of it (golf data makes shards with one)"
            )
        if counted != true_bytes and (piece := self._miscounted(ids)):
            return f"{told}\nfirst at {piece}"
        return f"{told}\nfirst at character {at}: {decoded[at : at + 20]!r} in place of {text[at : at + 20]!r}"

    def _miscounted(self, ids: np.ndarray) -> str | None:
        """The first token whose charge is not the bytes that it adds to the text before it, described."""
        stream = np.concatenate([np.array([self._tokenizer.bos_id], ids.dtype), ids])
        for at, charged in enumerate(self._table.charges(stream)[1:]):
            before, after = (self._tokenizer.decode(ids[max(at - 1, 0) : end]) for end in (at, at + 1))
            if "\ufffd" in after or not after.startswith(before):  # a part of a character
                continue
            added = after[len(before) :]
            if len(added.encode("utf-8")) != charged:
                size = len(added.encode("utf-8"))
                return f"token {at}, id {ids[at]}, the piece {added!r}: it counts {charged} bytes and stands for {size}"
        return None


def prove(tokenizer: Tokenizer, texts: Iterable[str]) -> ByteProof:
    """Prove the table on these texts, encoded here; see Prover."""
    texts, prover = list(texts), Prover(tokenizer)
    prover.check(tokenizer.encode_batch(texts), [tokenizer.normalize(text) for text in texts])
    return prover.proof


def prove_ids(tokenizer: Tokenizer, documents: Iterable[np.ndarray]) -> ByteProof:
    """The same for documents that exist as ids only (without BOS): their text is what they decode to."""
    documents, prover = list(documents), Prover(tokenizer)
    prover.check(documents, [tokenizer.decode(ids) for ids in documents])
    return prover.proof
