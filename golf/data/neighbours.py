"""The documents of training that are most like a validation document: MinHash over shingles of tokens, then counted.

Source: Broder 1997; the sketches are rensa's (the extra `near`), candidates share one of 32 bands of 4 rows.
"""

from __future__ import annotations

import heapq
import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from golf.common.errors import ConfigError
from golf.data.overlap import shingle_hashes, spread
from golf.data.shards import Shards
from golf.tokenizers.base import OnProgress

_SHINGLE_BYTES, _SHINGLE = 24, 8  # what a shingle spans, about; tokens of it at least
ALIKE = (0.8, 0.5)
"""Shares of common shingles (Jaccard's) from which on pairs are counted; at the second about a ninth is missed."""
_ROWS, _BANDS = 4, 32
_SEED = 20240520
_READ, _TAIL = 1 << 22, 1 << 16  # tokens of a block, and behind it, for the end of its last document
_MOST_VAL = 20_000  # documents that are looked for
_MOST_TRAIN = 1 << 28  # tokens of training that are looked through


class Document(NamedTuple):
    """A document by its place: the position of its BOS in the split's stream; and its ids, uint16, without BOS."""

    position: int
    ids: np.ndarray


class Pair(NamedTuple):
    """Two documents, and the share of their shingles that both have."""

    share: float
    val: Document
    train: Document


@dataclass(frozen=True)
class Neighbours:
    """What was compared, the nearest pairs, and how many validation documents have a neighbour from each share on."""

    shingle_tokens: int
    val_documents: int
    val_looked_for: int
    train_looked_through: int
    train_tokens_read: int
    train_tokens: int
    pairs: list[Pair]
    alike: dict[float, int]


def nearest(
    train: Shards,
    val: Shards,
    bos_id: int,
    most: int = 10,
    bytes_per_token: float | None = None,
    progress: OnProgress | None = None,
) -> Neighbours:
    """The `most` nearest pairs, of different validation documents; both splits are sampled evenly where they are large.

    A shingle is so many tokens in a row as are about 24 bytes, 8 at least; a document of fewer has no neighbours.
    Raises ConfigError when rensa is not installed, DataError for an id out of the vocabulary.
    """
    library, size = _library(), max(_SHINGLE, round(_SHINGLE_BYTES / (bytes_per_token or _SHINGLE_BYTES)))
    val_documents = [one for block in blocks(val, bos_id) for one in block if len(one.ids) >= size]
    chosen = [val_documents[i] for i in spread(len(val_documents), _MOST_VAL).tolist()]
    wanted = [_Band(column) for column in _bands(library, chosen, size).T]
    best: dict[int, Pair] = {}
    looked = read = 0
    for block in blocks(train, bos_id, _MOST_TRAIN):
        candidates = [one for one in block if len(one.ids) >= size]
        looked, read = looked + len(block), read + sum(len(one.ids) + 1 for one in block)
        bands = _bands(library, candidates, size)
        found = {pair for band, column in zip(wanted, bands.T, strict=True) for pair in band.meet(column)}
        for one, other in sorted(found):
            share = _share(chosen[one].ids, candidates[other].ids, size)
            if one not in best or share > best[one].share:
                best[one] = Pair(share, chosen[one], candidates[other])
        if progress is not None and block:
            progress("compare documents", block[-1].position / len(train))
    return Neighbours(
        shingle_tokens=size,
        val_documents=len(val_documents),
        val_looked_for=len(chosen),
        train_looked_through=looked,
        train_tokens_read=read,
        train_tokens=len(train),
        pairs=heapq.nlargest(most, best.values(), key=lambda pair: (pair.share, -pair.val.position)),
        alike={share: sum(pair.share >= share for pair in best.values()) for share in ALIKE},
    )


def blocks(shards: Shards, bos_id: int, most: int | None = None) -> Iterator[list[Document]]:
    """The documents of a split, block by block; of more than `most` tokens the blocks are an even sample.

    Of a document that is longer than what is read behind a block the end is missing.
    """
    count = -(-len(shards) // _READ)
    for block in spread(count, count if most is None else max(1, most // _READ)).tolist():
        start = block * _READ
        ids = shards.read(start, min(_READ + _TAIL, len(shards) - start))
        cuts = np.flatnonzero(ids == bos_id)
        ends = np.append(cuts[1:], len(ids))
        yield [
            Document(start + cut, ids[cut + 1 : end])
            for cut, end in zip(cuts.tolist(), ends.tolist(), strict=True)
            if cut < _READ
        ]


class _Band:
    """The keys of one band of all documents that are looked for, to be met by others' keys."""

    def __init__(self, keys: np.ndarray) -> None:
        self._order = np.argsort(keys, kind="stable")
        self._sorted = keys[self._order]

    def meet(self, keys: np.ndarray) -> Iterator[tuple[int, int]]:
        """(document that is looked for, other) of each pair with one key."""
        low, high = (np.searchsorted(self._sorted, keys, side=side) for side in ("left", "right"))  # type: ignore[call-overload]
        for other in np.flatnonzero(high > low).tolist():
            for at in self._order[low[other] : high[other]].tolist():
                yield at, other


def _library() -> Any:
    try:
        return importlib.import_module("rensa")
    except ImportError as error:
        raise ConfigError(
            f"near copies are found with rensa, which cannot be imported ({error})\npip install 'golf[near]'"
        ) from error


def _bands(library: Any, found: Sequence[Document], size: int) -> np.ndarray:
    """A key for each band of each document's MinHash, uint64 [documents, bands]."""
    hashes = [np.unique(shingle_hashes(one.ids, size)) for one in found]
    offsets = np.cumsum([0, *map(len, hashes)], dtype=np.uint64)
    flat = np.concatenate(hashes) if hashes else np.zeros(0, np.uint64)
    matrix = library.RMinHash.digest_matrix_from_flat_token_hashes(flat, offsets, _ROWS * _BANDS, _SEED)
    rows = np.array(matrix.to_rows(), np.uint64).reshape(len(found), _BANDS, _ROWS)
    keys = np.zeros(rows.shape[:2], np.uint64)
    for row in range(_ROWS):
        keys = (keys ^ rows[:, :, row]) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    return keys


def _share(one: np.ndarray, other: np.ndarray, size: int) -> float:
    """Jaccard's: of all shingles of two documents, the part that both have."""
    first, second = (np.unique(shingle_hashes(ids, size)) for ids in (one, other))
    both = len(np.intersect1d(first, second, assume_unique=True))
    return both / (len(first) + len(second) - both)
