"""LQER: the matrices that rounding cost most get a part of it back, as a product of two thin matrices of few bits."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from golf.quant.entry import LOW_RANK, Entry, dequantize
from golf.quant.lqer import LowRank

Moments = Callable[[str], Tensor | None]
"""XᵀX [in, in] of what a matrix multiplies, by its name; None where it was not seen."""
Factor = Callable[[str], Tensor]
"""The upper triangular U of (XᵀX)⁻¹ = UᵀU, by its name too."""


@torch.no_grad()
def corrected(
    settings: LowRank, entries: Mapping[str, Entry], state: Mapping[str, Tensor], moments: Moments, factor: Factor
) -> tuple[dict[str, Entry], dict[str, float]]:
    """The entries of `state` with corrections, and by name the part of the squared error that these leave, in what a
    matrix makes of its inputs where those are known."""
    lost, costs = {}, {}
    # a forecast of bytes has no inputs; the bytes are the same
    by_inputs = settings.by == "inputs" and any(moments(name) is not None for name in entries)
    for name, entry in entries.items():
        h = moments(name) if by_inputs else None
        if entry.scheme != "per_row" or (by_inputs and h is None):
            continue
        error = state[name].detach().cpu().float() - dequantize(replace(entry, dtype=torch.float32))
        lost[name] = error
        costs[name] = _cost(error, h)
    found, left = dict(entries), {}
    for name in sorted(costs, key=lambda name: (-costs[name], name))[: settings.tensors]:
        u = factor(name) if by_inputs else None
        parts = _parts(settings, lost[name], u)
        if parts is None:
            continue
        mended = replace(entries[name], scheme=LOW_RANK, parts={**entries[name].parts, **parts})
        after = state[name].detach().cpu().float() - dequantize(replace(mended, dtype=torch.float32))
        before, rest = (_cost(error.double(), moments(name)) for error in (lost[name], after))
        if rest < before:
            found[name], left[name] = mended, rest / before
    return found, left


def _parts(settings: LowRank, error: Tensor, u: Tensor | None) -> dict[str, Tensor] | None:
    """What an entry holds of a correction; None where there is nothing to correct."""
    a, b = factors(_seen(error, u), settings.rank)
    b = (b if u is None else b @ u.double()).cpu()
    groups = -(-b.shape[1] // settings.group)
    width = -(-b.shape[1] // groups)
    largest = torch.nn.functional.pad(b.abs(), (0, groups * width - b.shape[1])).view(len(b), groups, width).amax(2)
    unit = float(largest.amax()) / _top(settings.b_bits)  # scales are kept against the largest one
    most = float(a.abs().amax())
    if not (0 < unit < math.inf and 0 < most < math.inf):
        return None
    scales = (largest / _top(settings.b_bits) / unit).half()
    per_value = scales.double().repeat_interleave(width, 1)[:, : b.shape[1]] * unit
    a_scale = most / _top(settings.a_bits)
    b_integers = _integers(b / torch.where(per_value > 0, per_value, math.inf), settings.b_bits)
    return {
        "a": _integers(a.cpu() / a_scale, settings.a_bits), "a_scale": torch.tensor(a_scale * unit),
        "b": b_integers, "b_scale": scales,
    }  # fmt: skip


def factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A = U S [m, rank] and B = Vᵀ [rank, n] of the largest singular values, float64: A B is the nearest matrix of this
    rank. Signs are such that the largest value of each column of A is negative."""
    wide = matrix.double()
    rank = min(rank, *wide.shape)
    tall = wide.shape[0] >= wide.shape[1]
    _, vectors = torch.linalg.eigh(wide.T @ wide if tall else wide @ wide.T)
    vectors = vectors.flip(1)[:, :rank]
    if tall:
        a, b = wide @ vectors, vectors.T
    else:
        b = vectors.T @ wide
        size = b.norm(dim=1)
        a, b = vectors * size, b / size.clamp_min(torch.finfo(torch.float64).tiny)[:, None]
    largest = a.gather(0, a.abs().argmax(0, keepdim=True))
    sign = torch.where(largest > 0, -1.0, 1.0).double()
    return a * sign, b * sign.T


def _cost(error: Tensor, h: Tensor | None) -> float:
    """‖E‖², or with XᵀX ‖E X‖²."""
    if h is None:
        return float(error.square().sum(dtype=torch.float64))
    wide = error.to(h.device)
    return float(((wide @ h.to(wide.dtype)) * wide).sum(dtype=torch.float64))


def _seen(error: Tensor, u: Tensor | None) -> Tensor:
    """What of an error there is to make smaller: itself, or E U⁻¹, as large as E X."""
    if u is None:
        return error.double()
    return torch.linalg.solve_triangular(u.double(), error.to(u.device).double(), upper=True, left=False)


def _top(bits: int) -> float:
    return 2 ** (bits - 1) - 0.5


def _integers(steps: Tensor, bits: int) -> Tensor:
    return steps.round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1).to(torch.int8).contiguous()
