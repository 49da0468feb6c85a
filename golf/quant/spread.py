"""Where bytes buy most: each tensor's grid as coarse as what its rounding costs in loss allows.

With steps s a value costs log2(1/s) bits more, and rounding costs a loss of a s² if a s is small. For a sum of bits the
loss is least where every value's share of it is the same: s² in inverse proportion to a tensor's a for each value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from golf.quant.calibration import Trained
from golf.quant.entry import Entry, dequantize

COARSER = 4.0
"""How many times as wide the steps of a trial are: its loss is then sixteen times what it will be, and can be seen."""
FARTHEST = 4.0
"""How far a tensor's steps may be from the mean, either way."""
BATCH = 8_192
"""Tokens whose predictions are held at once, for every token of the vocabulary."""
By = Literal["place", "tensor"]


@dataclass(frozen=True)
class Cost:
    """Tensors that are tried together: their names, their values, and what rounding them costs, in nats a token."""

    names: tuple[str, ...]
    values: int
    loss: float


@torch.no_grad()
def costs(
    trained: Trained, windows: int, by: By, round_coarsely: Callable[[Mapping[str, Tensor]], Mapping[str, Entry]]
) -> list[Cost]:
    """Round one group of tensors after the other, `COARSER` times as coarsely, and see how far the predictions on
    windows of training text move: the divergence from what they were, which is what the loss of a calibrated model
    gains, without the accidents of the text. The model is left as it was; the same on every rank.

    round_coarsely: the entries of some of the model's tensors; those without a scale a row have no k, and are left out.
    """
    parameters = {name: p for name, p in trained.model.named_parameters() if name in trained.specs}
    entries = round_coarsely({name: p.detach().cpu() for name, p in parameters.items()})
    groups: dict[str, list[str]] = {}
    for name, entry in entries.items():
        if entry.scheme == "per_row":
            groups.setdefault(entry.place if by == "place" else name, []).append(name)
    sums = torch.zeros(len(groups) + 1, dtype=torch.float64, device=trained.device)
    for ids in trained.batches(windows, batch_tokens=BATCH):
        before = trained.log_probabilities(ids)
        for number, names in enumerate(groups.values()):
            own = {name: parameters[name].detach().clone() for name in names}
            for name in names:
                parameters[name].copy_(dequantize(entries[name]))
            after = trained.log_probabilities(ids)
            sums[number] += (before.exp() * (before - after)).sum().double()
            for name, value in own.items():
                parameters[name].copy_(value)
        sums[-1] += ids.numel()
    *moved, tokens = trained.ranks.sum(sums).tolist()
    return [
        Cost(tuple(names), sum(entries[name].numel for name in names), max(by_all, 0.0) / max(tokens, 1.0))
        for names, by_all in zip(groups.values(), moved, strict=True)
    ]


def frequency_multipliers(counts: Tensor, power: float) -> Tensor:
    """How many times as wide the steps of each token's row are to be, float32 [V], by how often it occurs, int [V].

    What a row's error costs goes with p (1 − p) of its token where it is predicted, and with p where it is read, which
    makes a power of 1/2 the best for small errors; those of rare tokens would not be small. As many bits as before.
    """
    return balanced(-power * torch.log2(counts.double() + 1), torch.ones(len(counts))).exp2().float()


def multipliers(found: Sequence[Cost]) -> dict[str, float]:
    """How many times as wide each tensor's steps are to be, by name; together they take as many bits as before."""
    total = sum(cost.loss for cost in found)
    if not total > 0:
        return {}
    values = sum(cost.values for cost in found)
    mean = total / values
    shares = [max(cost.loss / cost.values / mean, FARTHEST**-4) for cost in found]
    logs = torch.tensor([-0.5 * math.log2(share) for share in shares], dtype=torch.float64)
    times = balanced(logs, torch.tensor([cost.values for cost in found])).exp2().tolist()
    return {name: one for cost, one in zip(found, times, strict=True) for name in cost.names}


def balanced(logs: Tensor, values: Tensor) -> Tensor:
    """Binary logarithms of how many times as wide steps are, float64 [n], shifted by what keeps the bits of `values`
    [n] together, although some stand at the limits."""
    limit = math.log2(FARTHEST)
    low, high = -2 * limit - float(logs.max()), 2 * limit - float(logs.min())
    for _ in range(60):
        shift = (low + high) / 2
        bits = float((values * (logs + shift).clamp(-limit, limit)).sum())
        low, high = (low, shift) if bits > 0 else (shift, high)
    return (logs + shift).clamp(-limit, limit)
