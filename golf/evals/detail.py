"""Where the bits go: a stream's losses by token class, position in context, document and document length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from golf.common.files import atomic_writer
from golf.evals.windows import document_starts
from golf.tokenizers.base import Tokenizer
from golf.tokenizers.byte_table import ByteTable

CLASSES = ("word start", "inside a word", "number", "byte fallback", "other", "document end")
"""In this order of claim from the last to the first: a document's end is nothing else, a byte piece no number."""
EXTREMES = 20
LEAST_BYTES = 64
"""Shorter documents are not ranked: their bpb is chance."""
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """One group of targets: bits per byte of its own, its share of all bits, and what quantization added.

    `bpb` is None for targets that stand for no bytes. `gap` is in bits per byte of the whole stream: the groups' gaps
    sum to the whole gap. None without losses of the weights before quantization.
    """

    name: str
    targets: int
    bytes: int
    loss: float
    bpb: float | None
    share: float
    gap: float | None


@dataclass(frozen=True)
class Detail:
    """Per-token results over a stream of N tokens; entry i speaks of token i as a target.

    ids int [N]; nll float32 [N] in nats, NaN where not scored; context int32 [N], tokens that it was predicted from, or
    None where the evaluator has no plan of windows;
    charged int32 [N], its bytes; kind int8 [N], its class (an index of CLASSES); document int32 [N], whose target it
    is; before float32 [N] or None: nll of the same weights before quantization.
    """

    ids: npt.NDArray[np.int64]
    nll: Floats
    context: npt.NDArray[np.int32] | None
    charged: npt.NDArray[np.int32]
    kind: npt.NDArray[np.int8]
    document: npt.NDArray[np.int32]
    before: Floats | None = None

    @classmethod
    def of(
        cls, ids: npt.NDArray[np.int64], nll: Floats, context: npt.NDArray[np.int32] | None, tokenizer: Tokenizer,
        before: Floats | None = None, charged: npt.NDArray[np.int32] | None = None,
    ) -> Detail:  # fmt: skip
        """Classify every target of a stream. A document's targets are its own tokens and the BOS that ends it.

        `charged`: the bytes of each target (None: by the tokenizer's table).
        """
        table = tokenizer.byte_table()
        starts = document_starts(ids, tokenizer.bos_id)
        document = np.searchsorted(starts, np.arange(len(ids)) - 1, side="right").astype(np.int32) - 1
        charged = table.charges(ids) if charged is None else charged
        return cls(ids, nll, context, charged, token_classes(ids, tokenizer, table), document.clip(0), before)

    @property
    def scored(self) -> npt.NDArray[np.bool_]:
        """Which targets count."""
        return ~np.isnan(self.nll)

    def by(self, group: npt.NDArray[Any], names: Sequence[str]) -> list[Row]:
        """Rows by a group number per target, [N] in 0 … len(names) − 1; groups without targets are left out."""
        scored, count = self.scored, len(names)
        group = group[scored]

        def total(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
            return np.bincount(group, values[scored].astype(np.float64), count).astype(np.float64)

        targets, size, nll = np.bincount(group, minlength=count), total(self.charged), total(self.nll)
        added = None if self.before is None else nll - total(self.before)
        all_bytes, all_nll = float(size.sum()), float(nll.sum())
        return [
            Row(
                name, int(targets[i]), int(size[i]), float(nll[i] / targets[i]),
                float(nll[i] / math.log(2) / size[i]) if size[i] else None, float(nll[i]) / all_nll,
                None if added is None else float(added[i]) / math.log(2) / all_bytes,
            )
            for i, name in enumerate(names) if targets[i]
        ]  # fmt: skip

    def by_class(self) -> list[Row]:
        """Rows by token class."""
        return self.by(self.kind, CLASSES)

    def by_context(self) -> list[Row]:
        """Rows by how many tokens a target was predicted from, in powers of two; none where that is not known."""
        return [] if self.context is None else self.by(*_octaves(self.context))

    def by_length(self) -> list[Row]:
        """Rows by the tokens of the document that a target belongs to, in powers of two."""
        lengths = np.bincount(self.document)
        return self.by(*_octaves(lengths[self.document]))

    def documents(self) -> dict[int, Row]:
        """Every document's row, by its number."""
        count = int(self.document.max()) + 1
        return {int(row.name): row for row in self.by(self.document, [str(i) for i in range(count)])}

    def extremes(self) -> tuple[list[tuple[int, Row]], list[tuple[int, Row]]]:
        """The worst and the best documents by their own bpb, worst and best first."""
        ranked = [(n, row) for n, row in self.documents().items() if row.bytes >= LEAST_BYTES and row.bpb is not None]
        ranked.sort(key=lambda pair: pair[1].bpb or 0.0)
        return ranked[::-1][:EXTREMES], ranked[:EXTREMES]

    def beginning(self, document: int, tokenizer: Tokenizer, tokens: int = 60) -> str:
        """The first words of a document, on one line."""
        first = int(np.searchsorted(self.document, document))
        text = tokenizer.decode(self.ids[first : first + tokens][: int((self.document == document).sum())])
        return " ".join(text.split())[:100]

    def save(self, path: Path) -> None:
        """Write ids uint16, nll (and nll_before) float16, document int32 and context int32 as .npz, atomically.

        Raises GolfError when the disk is full.
        """
        arrays: dict[str, Any] = {
            "ids": self.ids.astype(np.uint16), "nll": self.nll.astype(np.float16),
            "document": self.document,
        }  # fmt: skip
        if self.context is not None:
            arrays["context"] = self.context
        if self.before is not None:
            arrays["nll_before"] = self.before.astype(np.float16)
        with atomic_writer(path) as file:
            np.savez_compressed(file, **arrays)


def _octaves(sizes: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Each size's power of two, and the names of those ranges: 0, 1, 2–3, 4–7, …"""
    number = np.where(sizes > 0, np.floor(np.log2(np.maximum(sizes, 1))) + 1, 0).astype(np.int64)
    names = ["0", "1", *(f"{2**n:,}–{2 ** (n + 1) - 1:,}" for n in range(1, int(number.max(initial=0))))]
    return number, names


def token_classes(ids: npt.NDArray[np.int64], tokenizer: Tokenizer, table: ByteTable) -> npt.NDArray[np.int8]:
    """The class of every token of a stream, int8 [N], an index of CLASSES.

    A word starts at a letter that follows no letter; a number is a token that begins with a digit. Byte fallback is a
    piece of a character that has no piece of its own. Control ids end documents.
    """
    pieces = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
    fallback = ~table.boundary & np.array(["\ufffd" in piece for piece in pieces])
    bare = [piece.lstrip() for piece in pieces]
    letter = np.array([piece[:1].isalpha() for piece in bare]) & ~fallback
    number = np.array([piece[:1].isdigit() for piece in bare]) & ~fallback
    spaced = table.leading_space | np.array([piece[:1].isspace() for piece in pieces])
    ends_in_letter = np.array([piece[-1:].isalpha() for piece in pieces]) | fallback
    kind = np.full(len(ids), CLASSES.index("other"), np.int8)
    previous = np.concatenate((np.zeros(1, bool), ends_in_letter[ids[:-1]]))
    starts = spaced[ids] | ~previous
    kind[letter[ids] & starts] = CLASSES.index("word start")
    kind[letter[ids] & ~starts] = CLASSES.index("inside a word")
    kind[number[ids]] = CLASSES.index("number")
    kind[fallback[ids]] = CLASSES.index("byte fallback")
    kind[table.boundary[ids]] = CLASSES.index("document end")
    return kind
