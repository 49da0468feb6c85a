"""What may be done to text before a tokenizer sees it, and undone when its ids are read: the seam, and what it costs.

A transform is a file of its own and an option of the group `tokenizer/transform`. It is part of the tokenizer: of its
name, its hash, and so of the shards that are made with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from golf.common.errors import DataError
from golf.tokenizers.base import Tokenizer
from golf.tokenizers.byte_table import ByteTable


class TextTransform(Protocol):
    """Text to other text and back, without loss: `invert(apply(text)) == text` for every text.

    Both are total, since a model may write anything.
    """

    name: str
    """Stands behind the tokenizer's name."""
    version: str
    """Changes when what `apply` gives does: part of the tokenizer's hash."""
    symbols: tuple[str, ...]
    """Pieces that a tokenizer trained for it has whole, as SentencePiece writes them."""
    escape: str
    """A character behind which another stands for itself, so that what this one stands for depends on its context;
    "": there is none."""

    def apply(self, text: str) -> str:
        """The text that the tokenizer sees."""
        ...

    def invert(self, text: str) -> str:
        """The text again."""
        ...

    def sizes(self, text: str) -> np.ndarray:
        """How many bytes of the true text each UTF-8 byte of a transformed one stands for, uint8 [bytes]."""
        ...


def none() -> None:
    """The option `none`: no transform."""


class Transformed:
    """A tokenizer behind a transform: to everything else a tokenizer like any other, of the true text.

    The inner tokenizer's normaliser is applied before the transform too, so that marks are put on what it will keep: of
    text that it changes, the bytes counted are those that remain. Counts apart: an escaped mark, or a character without
    a piece, costs what no table of ids can tell. `file`, `trained_on` and `fragments` are the inner tokenizer's,
    `transform` is the transform's name.
    """

    counts_apart = True

    def __init__(self, inner: Tokenizer, transform: TextTransform) -> None:
        self._inner, self._transform, self.transform = inner, transform, transform.name
        self.trained_on: str | None = getattr(inner, "trained_on", None)
        if (file := getattr(inner, "file", None)) is not None:
            self.file: tuple[str, bytes] = file
        if (fragments := getattr(inner, "fragments", None)) is not None:
            self.fragments: np.ndarray = fragments
        own = inner.name.endswith(f"_{transform.name}")  # a file's name that says so already
        self.name = inner.name if own else f"{inner.name}_{transform.name}"
        self.vocab_size, self.bos_id = inner.vocab_size, inner.bos_id
        self.hash = hashlib.sha256(f"{inner.hash} {transform.version}".encode()).hexdigest()
        self._table, self._escapes = self._count_pieces(inner.byte_table())

    def encode_batch(self, texts: Sequence[str], num_threads: int | None = None) -> list[np.ndarray]:
        """Ids of each text, uint16, without BOS; `num_threads` None uses every core."""
        return self._inner.encode_batch([self._seen(text) for text in texts], num_threads)

    def decode(self, ids: np.ndarray | Sequence[int]) -> str:
        """The true text of the ids."""
        return self._transform.invert(self._inner.decode(ids))

    def normalize(self, text: str) -> str:
        """What encoding keeps of `text`. Raises DataError where the transform loses some of it."""
        whole = self._inner.normalize(text)
        seen = self._transform.apply(whole)
        if (back := self._transform.invert(seen)) != whole:
            at = next((i for i, (one, other) in enumerate(zip(back, whole, strict=False)) if one != other), len(back))
            lost = f"{whole[at : at + 20]!r} comes back as {back[at : at + 20]!r}"
            raise DataError(f"bpb refused: tokenizer/transform={self._transform.name} loses text: {lost}")
        return self._transform.invert(self._inner.normalize(seen))

    def byte_table(self) -> ByteTable:
        """Bytes of the true text of each id, where nothing is escaped or unknown."""
        return self._table

    def charges(self, ids: np.ndarray, text: Callable[[], str] | None = None) -> np.ndarray:
        """Bytes of the true text of each id of a document, int32 [n]; see CountsApart."""
        if not np.isin(ids, self._escapes).any():
            return self._table.charges(np.concatenate([[self.bos_id], ids]).astype(np.int64))[1:]
        seen = self._inner.decode(ids) if text is None else self._inner.normalize(self._seen(text()))
        counter = getattr(self._inner, "charges", None)
        if counter is None or (text is None and "\ufffd" in seen):
            raise DataError(
                f"bpb refused: {self.name} cannot count a document without its text\n"
                "(data.docs=FILE names the documents that the shards were made of; or put their side-car beside them)"
            )
        ends = np.cumsum(counter(ids, None if text is None else lambda: seen))
        sizes = np.concatenate([[0], np.cumsum(self._transform.sizes(seen), dtype=np.int64)])
        if ends[-1] != len(sizes) - 1:
            raise DataError(f"bpb refused: the ids of a document are not those of its text, {seen[:60]!r}")
        return np.diff(sizes[ends], prepend=0).astype(np.int32)

    def _seen(self, text: str) -> str:
        return self._transform.apply(self._inner.normalize(text))

    def _count_pieces(self, table: ByteTable) -> tuple[ByteTable, np.ndarray]:
        """The inner table without what marks cost, and the ids that a table cannot count."""
        base, escapes = table.base.astype(np.int64), []
        for i in range(self.vocab_size):
            piece = self._inner.decode([i])
            if table.boundary[i]:
                if piece:  # what it stands for is not told
                    escapes.append(i)
            elif "\ufffd" not in piece:  # or a part of a character
                base[i] -= len(piece.encode("utf-8")) - int(self._transform.sizes(piece).sum())
            if self._transform.escape and self._transform.escape in piece:
                escapes.append(i)
        counted = ByteTable(base, table.leading_space, table.boundary, table.trailing_space)
        return counted, np.array(escapes, np.int64)
