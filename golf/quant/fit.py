"""Fitting a model into a limit of bytes: grids are made coarser or finer until the file nearly fills it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from torch import Tensor

from golf.common.log import logger
from golf.nn.params import ParamSpec
from golf.quant.entry import Entry
from golf.quant.quantizer import Fits

FULL = 0.997
"""The part of the limit that is enough."""
AIM = 0.9985
COARSEST = 128.0
"""From the finest grid of a byte to nothing but zeros."""
FINEST = 1 / 128
ROUNDS = 12
PATIENCE = 4
"""Trials that may all be on one side of the limit before the end of what there is to try is."""
Entries = dict[str, Entry]
Size = Callable[[Mapping[str, Entry]], int]
"""The bytes of the whole file with these entries."""


def fitted(
    quantizer: Fits, state: Mapping[str, Tensor], specs: Mapping[str, ParamSpec], room: int, size: Size,
    drafts: bool = False,
) -> Entries:  # fmt: skip
    """Set the quantizer's `times` so that the file takes at most `room` bytes, and nearly all of them; its entries.

    A step twice as wide saves a bit of each value, so that few trials are needed; the first ones are drafts. The same
    for the same weights. What fits at no width between FINEST and COARSEST is left at the smallest, with a warning.
    drafts: whether drafts will do, for who wants to know the bytes alone.
    """
    values = sum(tensor.numel() for tensor in state.values())
    entries, taken = _search(quantizer, lambda: quantizer.draft(state, specs), room, size, values)
    if not drafts:
        entries, taken = _search(quantizer, lambda: quantizer.quantize(state, specs), room, size, values)
    if taken <= room:
        logger.info(
            "fitted into %s bytes: steps %.3f times as wide, %s bytes", f"{room:,}", quantizer.times, f"{taken:,}"
        )
    else:
        logger.warning(
            "the model takes %s bytes at least, %s more than there is room for", f"{taken:,}", f"{taken - room:,}"
        )
    return entries


def _search(quantizer: Fits, make: Callable[[], Entries], room: int, size: Size, values: int) -> tuple[Entries, int]:
    """The entries that fill the room best, `times` left at theirs; if none fit in it, the smallest."""
    sizes: dict[float, int] = {}
    kept: dict[float, Entries] = {}
    at = math.log2(quantizer.times)
    while at not in sizes and len(sizes) < ROUNDS:
        quantizer.times = 2**at
        kept[at] = make()
        sizes[at] = size(kept[at])
        if FULL * room <= sizes[at] <= room:
            break
        at = _next(sizes, room, values)
    best = max(sizes, key=lambda at: (sizes[at] <= room, sizes[at] if sizes[at] <= room else -sizes[at]))
    quantizer.times = 2**best
    return kept[best], sizes[best]


def _next(sizes: Mapping[float, int], room: int, values: int) -> float:
    """Which power of two to try after these: where a straight line through two sizes meets the aim; one of them again
    when nothing is left to try."""
    over = max((at for at, taken in sizes.items() if taken > room), default=None)
    fits = min((at for at, taken in sizes.items() if taken <= room and (over is None or at > over)), default=None)
    low, high = math.log2(FINEST) if over is None else over, math.log2(COARSEST) if fits is None else fits
    *_, at = sizes
    slope = -values / 8  # a bit a value
    if over is not None and fits is not None:
        at, slope = fits, (sizes[fits] - sizes[over]) / (fits - over)
        margin = (high - low) / 8  # both ends move, however the sizes bend
        low, high = low + margin, high - margin
    elif len(sizes) > 1:
        *_, before, at = sizes
        slope = (sizes[at] - sizes[before]) / (at - before)
    if slope >= 0 or (len(sizes) >= PATIENCE and (over is None or fits is None)):
        return high if fits is None else low
    return min(max(at + (AIM * room - sizes[at]) / slope, low), high)
