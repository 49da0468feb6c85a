"""Range coding of small integers by integer models: interleaved rANS in numpy, the same bits on every machine.

Symbols are dealt out to lanes in turn, and all lanes take a step at once, so that a stream of millions is a few
thousand steps of array arithmetic. Source: Duda 2013 (ANS); Giesen 2014 (interleaved rANS).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from golf.common.errors import ArtifactError

BITS = 14
"""A model's frequencies sum to 2^BITS."""
WHOLE = 1 << BITS
LANES = 1024
"""At most; each costs a state of 4 bytes, of which about half says nothing."""
_PER_LANE = 2048
_LOW = 1 << 16
Symbols = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]


def frequencies(counts: Integers) -> Integers:
    """Frequencies [contexts, symbols] in proportion to `counts`, each row summing to WHOLE; what occurs has at least 1.

    A row without counts has the whole at symbol 0. Integers alone: largest remainders take what rounding leaves.
    """
    counts = counts.astype(np.int64)
    counts[counts.sum(1) == 0, 0] = 1
    total = counts.sum(1, keepdims=True)
    present = counts > 0
    spare = WHOLE - present.sum(1, keepdims=True)  # after one for each that occurs
    shares = counts * spare // total
    rest = (spare - shares.sum(1, keepdims=True))[:, 0]
    order = np.argsort(-(counts * spare % total), axis=1, kind="stable")
    place = np.empty_like(order)
    np.put_along_axis(place, order, np.arange(counts.shape[1])[None], axis=1)
    return np.asarray(shares + present + (place < rest[:, None]))


def cost_bits(counts: Integers) -> float:
    """Bits that symbols of these `counts` [contexts, symbols] take under their own frequencies."""
    with np.errstate(divide="ignore"):
        bits = BITS - np.log2(np.maximum(frequencies(counts), 1))
    return float((counts * bits).sum())


def encode(symbols: Symbols, contexts: npt.NDArray[np.uint16], table: Integers) -> bytes:
    """The symbols uint8 [n] as a stream; symbol i has the frequencies of row contexts[i] of `table` [contexts, A]."""
    count = len(symbols)
    lanes = _lanes(count)
    width = table.shape[1]
    flat, start = table.reshape(-1).astype(np.uint64), (np.cumsum(table, 1) - table).reshape(-1).astype(np.uint64)
    state = np.full(lanes, _LOW, np.uint64)
    words: list[npt.NDArray[np.uint16]] = []
    for low in reversed(range(0, count, lanes)):
        at = contexts[low : low + lanes].astype(np.int64) * width + symbols[low : low + lanes]
        frequency, x = flat[at], state[: len(at)]
        full = x >= frequency << np.uint64(32 - BITS)
        words.append((x[full] & np.uint64(0xFFFF)).astype(np.uint16))
        x = np.where(full, x >> np.uint64(16), x)
        state[: len(at)] = ((x // frequency) << np.uint64(BITS)) + x % frequency + start[at]
    stream = np.concatenate(words[::-1]) if words else np.empty(0, np.uint16)
    return state.astype("<u4").tobytes() + stream.astype("<u2").tobytes()


def decode(stream: bytes, contexts: npt.NDArray[np.uint16], table: Integers) -> Symbols:
    """The symbols uint8 [n] that `encode` was given with these contexts [n] and this table.

    Raises ArtifactError for a stream that is none of theirs; it takes the same time whatever the stream holds.
    """
    count = len(contexts)
    lanes = _lanes(count)
    if len(stream) < 4 * lanes or len(stream) % 2:
        raise ArtifactError(f"a stream of {len(stream)} bytes is too short or odd")
    state = np.frombuffer(stream, "<u4", lanes).copy()
    words = np.frombuffer(stream, "<u2", offset=4 * lanes)
    width, rows = table.shape[1], len(table)
    if (table < 0).any() or (table.sum(1) != WHOLE).any() or (rows and count and int(contexts.max()) >= rows):
        raise ArtifactError("a model's frequencies do not sum to the whole")
    of_slot = np.repeat(np.tile(np.arange(width, dtype=np.uint8), rows), table.reshape(-1))
    flat, start = table.reshape(-1).astype(np.uint32), (np.cumsum(table, 1) - table).reshape(-1).astype(np.uint32)
    found = np.empty(count, np.uint8)
    read = 0
    for low in range(0, count, lanes):
        context = contexts[low : low + lanes].astype(np.int64)
        x = state[: len(context)]
        slot = x & np.uint32(WHOLE - 1)
        symbol = of_slot[context * WHOLE + slot]
        at = context * width + symbol
        x = flat[at] * (x >> np.uint32(BITS)) + slot - start[at]
        empty = np.flatnonzero(x < _LOW)
        if read + len(empty) > len(words):
            raise ArtifactError("its stream ends too early")
        x[empty] = (x[empty] << np.uint32(16)) | words[read : read + len(empty)]
        read += len(empty)
        state[: len(context)] = x
        found[low : low + lanes] = symbol
    if read != len(words) or (state != _LOW).any():
        raise ArtifactError("its stream does not end where its symbols do")
    return found


def _lanes(count: int) -> int:
    return max(1, min(LANES, count // _PER_LANE))
