"""The one place where bytes are counted: what each token costs, and the proof that the count is true."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from golf.common.errors import DataError

if TYPE_CHECKING:
    from golf.tokenizers.base import Tokenizer

_CHUNK = 1 << 22  # tokens counted at once: bounds the temporary arrays on validation sets of 10^8 tokens


class ByteTable:
    """UTF-8 bytes per token: `bytes(target) + [leading_space(target) and not boundary(previous)]`.

    A piece that begins with a space carries that byte apart, because right after a boundary (BOS, the start of a
    document) the decoder drops it. Boundary ids (control, unknown, unused) stand for no text: 0 bytes.

    base: int16 [V], bytes without the leading space. leading_space, boundary: bool [V].
    Raises DataError when the three differ in shape or a count is negative.
    Source: the byte tables of the naive baseline record's evaluator.
    """

    def __init__(self, base: np.ndarray, leading_space: np.ndarray, boundary: np.ndarray) -> None:
        base = np.asarray(base)
        if base.ndim != 1 or not base.shape == np.shape(leading_space) == np.shape(boundary):
            shapes = base.shape, np.shape(leading_space), np.shape(boundary)
            raise DataError(f"a byte table needs three columns of one length, not {shapes}")
        if base.size and (base.min() < 0 or base.max() > np.iinfo(np.int16).max):
            raise DataError(f"a byte table holds counts from 0 to 32767, not {base.min()}..{base.max()}")
        self.base = base.astype(np.int16)
        self.leading_space = np.asarray(leading_space).astype(bool)
        self.boundary = np.asarray(boundary).astype(bool)
        self._on_device: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.base)

    def charge(self, previous: Tensor, targets: Tensor) -> Tensor:
        """Bytes of each target given the token before it: integer tensors of one shape → int32 of that shape.

        Works on the tensors' device, where the columns stay after the first call. Pure tensor operations.
        """
        columns = self._on_device.get(targets.device)
        if columns is None:
            base = torch.from_numpy(self.base.astype(np.int32))
            space, boundary = torch.from_numpy(self.leading_space), torch.from_numpy(self.boundary)
            columns = (base.to(targets.device), space.to(targets.device), boundary.to(targets.device))
            self._on_device[targets.device] = columns
        base, space, boundary = columns
        targets, previous = targets.long(), previous.long()
        return base[targets] + (space[targets] & ~boundary[previous]).int()

    def count(self, ids: np.ndarray) -> int:
        """Bytes of a whole stream [N]: every id is a target once, but ids[0], which is context only."""
        total = 0
        for start in range(0, len(ids) - 1, _CHUNK):
            part = ids[start : start + _CHUNK + 1]
            previous, targets = part[:-1], part[1:]
            total += int(self.base[targets].sum(dtype=np.int64))
            total += int(np.count_nonzero(self.leading_space[targets] & ~self.boundary[previous]))
        return total


@dataclass(frozen=True)
class ByteProof:
    """What the proof covered: documents compared, and the UTF-8 bytes of their normalised text."""

    documents: int
    bytes: int

    def facts(self) -> dict[str, Any]:
        """The proof as the run record keeps it."""
        return {"proved": True, "documents": self.documents, "bytes": self.bytes}


def prove(tokenizer: Tokenizer, texts: Iterable[str]) -> ByteProof:
    """Compare the table's sum over [BOS] + encode(text) with the UTF-8 length of the text the tokens stand for.

    That text comes from `tokenizer.normalize`, which never sees the table, and decoding must give it back: so a
    tokenizer that loses text (an unknown character, a space before the first word) is refused, not flattered.
    Raises DataError ("bpb refused") at the first text that differs.
    """
    texts = list(texts)
    return _prove(tokenizer, tokenizer.encode_batch(texts), [tokenizer.normalize(text) for text in texts])


def prove_ids(tokenizer: Tokenizer, documents: Iterable[np.ndarray]) -> ByteProof:
    """The same for documents that exist as ids only (without BOS): their text is what they decode to."""
    documents = list(documents)
    return _prove(tokenizer, documents, [tokenizer.decode(ids) for ids in documents])


def _prove(tokenizer: Tokenizer, documents: list[np.ndarray], texts: list[str]) -> ByteProof:
    table, total = tokenizer.byte_table(), 0
    if len(table) != tokenizer.vocab_size:
        raise DataError(f"bpb refused: {tokenizer.name} has {tokenizer.vocab_size} ids, its byte table {len(table)}")
    for index, (ids, text) in enumerate(zip(documents, texts, strict=True)):
        where = f"(document {index} of the sample, {text[:60]!r})"
        true_bytes = len(text.encode("utf-8"))
        counted = table.count(np.concatenate([np.array([tokenizer.bos_id], ids.dtype), ids]))
        if counted != true_bytes:
            lost = int(table.boundary[ids].sum())
            cause = f"\n{lost} of its tokens stand for no text (unknown characters, no byte fallback?)" if lost else ""
            raise DataError(
                f"bpb refused: {tokenizer.name} counts {counted} bytes where the text has {true_bytes} {where}{cause}"
            )
        if tokenizer.decode(ids) != text:
            raise DataError(f"bpb refused: {tokenizer.name} loses text: its tokens decode to something else {where}")
        total += true_bytes
    return ByteProof(len(documents), total)
