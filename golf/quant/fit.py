"""Fitting a model into a limit of bytes: grids are made coarser or finer until the file nearly fills it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from golf.common.log import logger
from golf.nn.params import ParamSpec
from golf.quant.entry import Entry

FULL = 0.997
"""The part of the limit that is enough."""
AIM = 0.9985
COARSEST = 16.0
FINEST = 1 / 16
ROUNDS = 12
Entries = dict[str, Entry]
Size = Callable[[Mapping[str, Entry]], int]
"""The bytes of the whole file with these entries."""


@runtime_checkable
class Fits(Protocol):
    """What a quantizer has that can be made to fit: steps of its grids `times` as wide as its settings say."""

    fit: int | None
    """Bytes that artifact and code may take together; None: whatever comes out."""
    times: float

    def quantize(self, state: Mapping[str, Tensor], specs: Mapping[str, ParamSpec]) -> Entries:
        """As Quantizer.quantize, at `times`."""
        ...

    def draft(self, state: Mapping[str, Tensor], specs: Mapping[str, ParamSpec]) -> Entries:
        """Nearly the same bytes, quickly."""
        ...


def fitted(
    quantizer: Fits, state: Mapping[str, Tensor], specs: Mapping[str, ParamSpec], room: int, size: Size
) -> Entries:
    """Set the quantizer's `times` so that the file takes at most `room` bytes, and nearly all of them; its entries.

    A step twice as wide saves a bit of each value, so that few trials are needed; the first ones are drafts. The same
    for the same weights. What fits at no width between FINEST and COARSEST is left at the smallest, with a warning.
    """
    values = sum(tensor.numel() for tensor in state.values())
    _search(quantizer, lambda: quantizer.draft(state, specs), room, size, values)
    entries, taken = _search(quantizer, lambda: quantizer.quantize(state, specs), room, size, values)
    logger.info("fitted into %s bytes: steps %.3f times as wide, %s bytes", f"{room:,}", quantizer.times, f"{taken:,}")
    if taken > room:
        logger.warning(
            "the model takes %s bytes at least, %s more than there is room for", f"{taken:,}", f"{taken - room:,}"
        )
    return entries


def _search(quantizer: Fits, make: Callable[[], Entries], room: int, size: Size, values: int) -> tuple[Entries, int]:
    """The entries that fill the room best, `times` left at theirs; if none fit in it, the smallest."""
    low, high = math.log2(FINEST), math.log2(COARSEST)
    found: dict[float, tuple[int, Entries]] = {}
    aim = math.log2(quantizer.times)
    while aim not in found and len(found) < ROUNDS:
        quantizer.times = 2**aim
        entries = make()
        taken = size(entries)
        found[aim] = taken, entries
        if FULL * room <= taken <= room:
            break
        low, high = (low, aim) if taken <= room else (aim, high)
        aim = min(max(aim + 8 * (taken - AIM * room) / values, low), high)  # a bit a value for twice the step
        if aim in found:
            aim = (low + high) / 2
    fit = {at: one for at, one in found.items() if one[0] <= room}
    at, (taken, entries) = (
        max(fit.items(), key=lambda one: one[1][0]) if fit else min(found.items(), key=lambda one: one[1][0])
    )
    quantizer.times = 2**at
    return entries, taken


def facts(quantizer: Any) -> dict[str, float]:
    """What a fit came to, for the run record."""
    return {"times": quantizer.times} if isinstance(quantizer, Fits) and quantizer.fit is not None else {}
