"""Rounding a row to a few levels: the percentile clip, the integers, and the same inside training."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from golf.common.errors import ConfigError
from golf.nn.params import ParamSpec, Role

CLIP_PERCENTILE = 0.9999984
LARGEST_HALF = torch.finfo(torch.float16).max
SMALLEST_HALF = 2.0**-24  # the smallest positive float16: a scale below it would be stored as zero


def check_bits(key: str, bits: int) -> int:
    """`bits`, if it is from 2 to 8; raises ConfigError that names `key` otherwise."""
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
        raise ConfigError(f"{key}={bits}: bits a value must be a whole number from 2 to 8")
    return bits


def check_percentile(key: str, percentile: float) -> float:
    """`percentile`, if it is a fraction in (0, 1]; raises ConfigError that names `key` otherwise."""
    if not 0.0 < percentile <= 1.0:
        raise ConfigError(f"{key}={percentile}: must be a fraction above 0 and at most 1 (0.9999984 in the records)")
    return percentile


def levels(bits: int) -> int:
    """The largest integer of a symmetric grid: 2^(bits−1) − 1 (127, 63, 31, 15, 7 at 8 … 4 bits)."""
    return 2 ** (bits - 1) - 1


def coded_bits(bits: int, k: float) -> float:
    """Bits a value that a perfect codec needs for Gaussian rows clipped at k standard deviations: the entropy of what
    the rounding gives, log2 √(2πe (σ² + 1/12)) with σ = (2^(bits−1) − 1) / k steps; rounding to whole steps adds 1/12
    to the variance (0.3 % of the bits at int6 and k = 12). Source: pull request 1394, without that term."""
    return math.log2(math.sqrt(2 * math.pi * math.e * ((levels(bits) / k) ** 2 + 1 / 12)))


def _float32(x: float) -> float:
    """`x` rounded to float32, in plain arithmetic so that a compiler can fold it."""
    mantissa, exponent = math.frexp(x)
    return math.ldexp(round(mantissa * 2**24), exponent - 24)


def clip_values(magnitudes: Tensor, percentile: float) -> Tensor:
    """The `percentile` quantile of each row (last dimension), bit for bit torch.quantile's linear interpolation.

    magnitudes: float32 [..., n], n ≥ 1. Returns float32 [...]. Only the values above the quantile are sorted: at the
    usual percentiles and widths these are the two largest, which costs a fraction of a full sort; unlike
    torch.quantile there is no limit of 16 million values.
    """
    last = magnitudes.shape[-1] - 1
    # torch.quantile finds its rank in float32, so 0.9999984 of 512 values lies at 510.99918 whatever float64 would say.
    rank = min(_float32(_float32(percentile) * _float32(last)), float(last))
    below = int(rank)
    if last - below == 1 and torch.compiler.is_compiling():
        top = _two_largest(magnitudes)
    else:
        top = magnitudes.topk(last - below + 1, dim=-1).values
    if rank == below:
        return top[..., -1]
    return torch.lerp(top[..., -1], top[..., -2], torch.full_like(top[..., -1], rank - below))


def _two_largest(values: Tensor) -> Tensor:
    """[..., n] → [..., 2], the larger first: what topk gives, in a form that a compiler can fuse with what follows."""
    first = values.amax(-1, keepdim=True)
    is_first = values == first
    second = values.masked_fill(is_first, -math.inf).amax(-1, keepdim=True)
    return torch.cat([first, torch.where(is_first.sum(-1, keepdim=True) > 1, first, second)], -1)


def nearest(values: Tensor, clip: Tensor, scale: Tensor, top: Tensor | float) -> Tensor:
    """Float integers of `values` clipped to ±clip on the grid of `scale`, halves to even, none beyond ±top; all
    broadcast together."""
    clipped = torch.maximum(torch.minimum(values, clip), -clip)
    return torch.clamp(torch.round(clipped / scale), -top, top)  # type: ignore[arg-type]


def round_to_grid(values: Tensor, clip: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The same as int8, of a grid of 2^bits − 1 levels."""
    return nearest(values, clip, scale, levels(bits)).to(torch.int8)


def as_stored(scale: Tensor) -> Tensor:
    """What an artifact will multiply by for float32 scales: their float16; where that is zero, they themselves."""
    kept = scale.half().float()
    return torch.where(kept > 0, kept, scale)


def fake_quantize(weight: Tensor, bits: int, clip_percentile: float = CLIP_PERCENTILE) -> Tensor:
    """`weight` rounded to 2^bits − 1 levels a row, in its own dtype: the forward value of quantization-aware training.

    weight: floating [..., n], already cast to the dtype it is used in. Computed in float32: per row c = max(quantile of
    |w|, 1e-8), s = c / (2^(bits−1) − 1), result round(clamp(w, ±c) / s) · s. There is no floor under the scale, so
    training sees a finer grid than an export with `scale_floor`. No gradient flows: see `fake_quantize_ste`.
    Source: the sp2048 NorMuon int6 record (pull request 122).
    """
    with torch.no_grad():
        wide = weight.float()
        clip = clip_values(wide.abs(), clip_percentile).clamp_min(1e-8).unsqueeze(-1)
        scale = clip / levels(bits)
        clipped = torch.maximum(torch.minimum(wide, clip), -clip)
        return (torch.round(clipped / scale) * scale).to(weight.dtype)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, bits: int, clip_percentile: float) -> Tensor:
        return fake_quantize(weight, bits, clip_percentile)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0], None, None


def fake_quantize_ste(weight: Tensor, bits: int, clip_percentile: float = CLIP_PERCENTILE) -> Tensor:
    """`fake_quantize` whose gradient passes unchanged to every element, clipped ones included."""
    result: Tensor = _StraightThrough.apply(weight, bits, clip_percentile)
    return result


class FakeQuantizer:
    """Quantization-aware training: which weights the forward sees rounded, and how.

    bits: 2–8, whatever width the export uses. clip_percentile: quantile of |w| in a row that becomes the largest level.
    roles: the roles that are rounded (default: matrix); vectors never are. Raises ConfigError for values out of range.
    Source: the sp2048 NorMuon int6 record (pull request 122): every linear but the tied head, from step 0.
    """

    compiles = True

    def __init__(
        self, bits: int = 6, clip_percentile: float = CLIP_PERCENTILE, roles: list[Role] | None = None
    ) -> None:
        self.bits = check_bits("qat.bits", bits)
        self.clip_percentile = check_percentile("qat.clip_percentile", clip_percentile)
        self.roles: tuple[Role, ...] = ("matrix",) if roles is None else tuple(roles)

    def covers(self, spec: ParamSpec, weight: Tensor) -> bool:
        """Whether the forward uses this parameter rounded."""
        return spec.role in self.roles and weight.ndim >= 2

    def __call__(self, weights: Tensor) -> Tensor:
        """[..., n] in the matrix product's dtype, each row rounded, gradient straight through; same shape and dtype."""
        return fake_quantize_ste(weights, self.bits, self.clip_percentile)
