"""`codec=ans`: quantized integers by their own statistics, tensor by tensor; everything else by LZMA.

A quantized matrix is noise to a general compressor, which finds no repetition in it; all that can be saved is that
small integers are more frequent, in some rows and columns more than in others. Each tensor has a table of frequencies,
or one for each level of spread of its rows, of its columns, or of both together, whichever takes the fewest bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from golf.artifact import rans
from golf.artifact.codecs import Codec, Lzma, Part, joined, parted
from golf.common.errors import ArtifactError

VERSION = 1
_FRONT = struct.Struct("<BII")
_LEAST = 256
"""Values of a tensor whose own table pays."""
_LEVEL = 0.25
"""A level of spread is so many powers of two wide: within one, a wrong spread costs a hundredth of a bit."""
_MOST = 16
"""Levels of rows, and of columns."""
_MOST_TOLD = 1 << 26
_MOST_TABLES = 1 << 14
"""Each takes 16 KB while a stream is read."""
_TABLE_BITS = 7.0
"""About what a frequency takes, once all tables are compressed together."""
Levels = npt.NDArray[np.uint8]


class Model(NamedTuple):
    """Symbols of one tensor: the smallest integer, the levels of its rows and columns (empty: one), frequencies."""

    low: int
    rows: Levels
    columns: Levels
    table: npt.NDArray[np.int64]

    def contexts(self, shape: tuple[int, ...]) -> npt.NDArray[np.uint16]:
        """Which row of the table each value has."""
        rows, columns = (x.astype(np.uint16) if len(x) else np.zeros(1, np.uint16) for x in (self.rows, self.columns))
        return np.broadcast_to(rows[:, None] + columns, _flat(shape)).reshape(-1)


class Ans(Codec):
    """Range coding of int8 parts, each by frequencies of its own; other parts by LZMA, floats by byte planes.

    Nothing of it depends on floating-point arithmetic when it is read. Bit streams (`quant.pack=true`) are kept as they
    are, so that quantizers should leave a value in a byte. Source: Duda 2013.
    """

    name, reads_values = "ans", True

    def __init__(self, byte_planes: bool = True) -> None:
        super().__init__(byte_planes)
        self._rest = Lzma()

    def compress(self, data: bytes) -> bytes:
        """What is no integers: LZMA."""
        return self._rest.compress(data)

    def _expand(self, data: bytes, limit: int) -> bytes:
        return self._rest._expand(data, limit)

    def store(self, parts: Sequence[Tensor]) -> bytes:
        """A front (version, lengths), LZMA of models and other parts, and one stream of all integers."""
        coded = [part.detach().cpu().numpy() for part in parts if _is_coded(part.dtype, tuple(part.shape))]
        models = [_model(values) for values in coded]
        others = joined([part for part in parts if not _is_coded(part.dtype, tuple(part.shape))], self.byte_planes)
        told = b"".join(map(_told, models))
        aside = self.compress(told + others)
        symbols = [
            (values.reshape(-1).astype(np.int16) - one.low).astype(np.uint8) for values, one in zip(coded, models)
        ]
        stream = rans.encode(_end_to_end(symbols), *_together(models, [values.shape for values in coded]))
        return _FRONT.pack(VERSION, len(told), len(aside)) + aside + stream

    def restore(self, data: bytes, plans: Sequence[Part], byte_planes: bool) -> list[Tensor]:
        """As Codec.restore."""
        if len(data) < _FRONT.size:
            raise ArtifactError("payload is too short for an ans stream")
        version, told_size, aside_size = _FRONT.unpack_from(data)
        if version != VERSION:
            raise ArtifactError(f"payload is an ans stream of version {version}, and this golf reads {VERSION}")
        coded = [plan for plan in plans if _is_coded(plan.dtype, plan.shape)]
        rest = [plan for plan in plans if not _is_coded(plan.dtype, plan.shape)]
        if told_size > _MOST_TOLD:
            raise ArtifactError(f"payload declares {told_size} bytes of frequencies")
        aside = self.expand(data[_FRONT.size : _FRONT.size + aside_size], told_size + sum(plan.nbytes for plan in rest))
        models = _models(aside[:told_size], coded)
        symbols = rans.decode(data[_FRONT.size + aside_size :], *_together(models, [plan.shape for plan in coded]))
        integers, at = [], 0
        for plan, model in zip(coded, models, strict=True):
            values = symbols[at : at + plan.nbytes].astype(np.int16) + model.low
            integers.append(torch.from_numpy(values.astype(np.int8)).reshape(plan.shape))
            at += plan.nbytes
        others = parted(aside[told_size:], rest, byte_planes)
        return [integers.pop(0) if _is_coded(plan.dtype, plan.shape) else others.pop(0) for plan in plans]


def _flat(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a tensor that is not empty: its first dimension, and the others together."""
    rows = shape[0] if len(shape) > 1 else 1
    return rows, math.prod(shape) // rows


def _is_coded(dtype: torch.dtype, shape: tuple[int, ...]) -> bool:
    return dtype == torch.int8 and math.prod(shape) >= _LEAST


def _model(values: npt.NDArray[np.int8]) -> Model:
    """The cheapest of the four ways to tell a tensor's integers."""
    low = int(values.min())
    symbols = values.astype(np.int64) - low
    width = int(symbols.max()) + 1
    none = np.empty(0, np.uint8)
    ways = [(none, none)]
    if values.ndim > 1:
        flat = np.abs(values.astype(np.int32)).reshape(_flat(values.shape))
        rows, columns = _levels(flat.mean(1)), _levels(flat.mean(0))
        ways += [(rows, none), (none, columns), (rows, columns)]
    found: list[tuple[float, Model]] = []
    for rows, columns in ways:
        one = Model(low, rows, columns, np.empty((0, 0), np.int64))
        contexts = one.contexts(values.shape).astype(np.int64)
        counts = np.bincount(contexts * width + symbols.reshape(-1), minlength=width * (int(contexts.max()) + 1))
        counts = counts.reshape(-1, width)
        bits = rans.cost_bits(counts) + _TABLE_BITS * int((counts > 0).sum()) + 4 * (len(rows) + len(columns))
        found.append((bits, one._replace(table=rans.frequencies(counts))))
    return min(found, key=lambda each: each[0])[1]


def _levels(spread: npt.NDArray[np.float64]) -> Levels:
    powers = np.log2(np.maximum(spread, 1e-3)) / _LEVEL
    return np.clip(np.round(powers - powers.max()) + _MOST - 1, 0, _MOST - 1).astype(np.uint8)


def _together(
    models: Sequence[Model], shapes: Sequence[tuple[int, ...]]
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int64]]:
    """Contexts of all tensors' values one after another, and the table that they point into."""
    width, before = max((one.table.shape[1] for one in models), default=1), 0
    contexts, tables = [], []
    for one, shape in zip(models, shapes, strict=True):
        contexts.append(one.contexts(shape) + np.uint16(before))
        tables.append(np.pad(one.table, ((0, 0), (0, width - one.table.shape[1]))))
        before += len(one.table)
    if before > _MOST_TABLES:
        raise ArtifactError(f"{before} tables of frequencies are more than an ans stream can tell apart")
    table = np.concatenate(tables) if tables else np.zeros((0, width), np.int64)
    return (np.concatenate(contexts) if contexts else np.empty(0, np.uint16)), table


def _end_to_end(symbols: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    return np.concatenate(symbols) if symbols else np.empty(0, np.uint8)


def _told(model: Model) -> bytes:
    """A model as bytes: low, width − 1, tables; levels of rows and of columns; the frequencies."""
    contexts, width = model.table.shape
    front = struct.pack("<bBBBB", model.low, width - 1, contexts, len(model.rows) > 0, len(model.columns) > 0)
    return front + model.rows.tobytes() + model.columns.tobytes() + model.table.astype("<u2").tobytes()


def _models(told: bytes, plans: Sequence[Part]) -> list[Model]:
    """The models of these parts. Raises ArtifactError for bytes that are none of them."""
    models, at = [], 0
    for plan in plans:
        try:
            low, width, contexts, by_row, by_column = struct.unpack_from("<bBBBB", told, at)
            at += 5
            levels = []
            for there, size in zip((by_row, by_column), _flat(plan.shape), strict=True):
                levels.append(np.frombuffer(told, np.uint8, size if there else 0, at))
                at += len(levels[-1])
            table = np.frombuffer(told, "<u2", contexts * (width + 1), at).astype(np.int64)
            at += 2 * table.size
        except (struct.error, ValueError) as error:
            raise ArtifactError(f"a tensor's frequencies are cut short ({error})") from None
        rows, columns = levels
        if not int(rows.max(initial=0)) + int(columns.max(initial=0)) < contexts < 2 * _MOST:
            raise ArtifactError("a tensor's levels do not go with its frequencies")
        models.append(Model(low, rows, columns, table.reshape(contexts, width + 1)))
    if at != len(told):
        raise ArtifactError(f"{len(told) - at} bytes of frequencies are left over")
    return models
