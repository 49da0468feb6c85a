"""The grid that a matrix's rows are rounded to: one arithmetic, for what is stored and for what training sees."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from golf.quant.rounding import LARGEST_HALF, SMALLEST_HALF, clip_values, levels, nearest


def bits_of(top: int) -> int:
    """The bits of a grid whose largest integer is `top`."""
    return top.bit_length() + 1


@dataclass(frozen=True)
class Grid:
    """Symmetric levels with a step for each row.

    sigmas: how many standard deviations of a row its largest level stands for, at `bits`. Bits and sigmas then settle
    the step alone: where a row has values beyond the grid's end, the matrix takes more bits, as far as a byte goes,
    since a codec takes few bytes for what is rare; where even that is not enough, the row takes wider steps. `packed`
    bits are as many as they are: their grids clip, but no grid ends before the row's mean.
    Without sigmas the largest level is the `percentile` quantile of |w|; `floor`: no step is below 1 / top.
    """

    bits: int
    sigmas: float | None
    percentile: float
    floor: bool
    packed: bool

    def steps(self, rows: Tensor, times: Tensor | float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """Of matrices [..., rows, n] float32: the largest value of each row's grid and its step, float32 [..., rows]
        both, and the largest integer of each matrix, float32 [...]. times: how many times as wide the steps by sigmas
        are, one number or [..., rows]."""
        top = torch.full(rows.shape[:-2], float(levels(self.bits)), device=rows.device)
        if self.sigmas is None:
            clip = clip_values(rows.abs(), self.percentile)
            least = 1 / levels(self.bits) if self.floor else SMALLEST_HALF
            return clip, (clip / levels(self.bits)).clamp_min(least), top
        spread = rows.std(-1, correction=0)
        step = (self.sigmas * times * spread / levels(self.bits)).clamp(SMALLEST_HALF, LARGEST_HALF)
        if self.packed:
            within = rows.mean(-1).abs()
        else:
            within = rows.abs().amax(-1)
            for bits in range(self.bits, 8):
                beyond = (within > step * levels(bits)).any(-1)
                top = torch.where(beyond, float(levels(bits + 1)), top)
        step = torch.maximum(step, within / top[..., None])
        return step * top[..., None], step, top

    def __call__(self, weights: Tensor) -> Tensor:
        """Matrices [..., rows, n] float32 as an artifact gives them back, each value rounded to the nearest.

        The gradient is the caller's: see golf.quant.rehearsal. Compiled, a step may keep digits that float16 drops.
        """
        with torch.no_grad():
            clip, step, top = self.steps(weights)
            integers = nearest(weights, clip[..., None], step[..., None], top[..., None, None])
            return integers * step.half().float()[..., None]
