"""What a rounding error costs, row by row, from gradients: where a matrix's rows may be coarse, and where not.

For a model that predicts as text goes, an error e in a weight raises the loss by F e² / 2, F being the mean square of the
gradient for tokens that the model itself draws (its Fisher information). Rows with steps s take log2(1/s) bits a value
and lose F s²; for a sum of bits that is least where F s² is the same everywhere: steps in inverse proportion to √F.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from golf.nn.linear import EffectiveWeights
from golf.quant.calibration import Trained

COARSEST = 1.5
"""Standard deviations of a row that a step may be wide: beyond it hardly a bit is left to save."""
FINEST = 1 / 16
"""Those that it is at least."""
_UNSEEN = 1e-8
"""The probability that a token has at least, be the text too short for it."""


class Rows(NamedTuple):
    """A matrix's rows as they are divided: `cost` [rows] of a squared error in a value, `spread` and `step` [rows] their
    standard deviations and the steps that they would have."""

    values: int
    cost: Tensor
    spread: Tensor
    step: Tensor


def row_costs(trained: Trained, windows: int) -> dict[str, Tensor]:
    """By a matrix's name the mean of F over each row's values, float32 [rows] on the CPU, in nats a token for all that
    the forward multiplies by and has gradients for. The same on every rank; the model is left as it was.

    Each window is sent back for itself, so that a square is that of one draw; a row's values are many. A row of the
    vocabulary is met too seldom for that: such matrices' sums are shared out by how probable each token is, p (1 − p).
    """
    model, specs = trained.model, trained.specs
    parameters = {name: p for name, p in model.named_parameters() if name in specs and p.ndim == 2}
    sums = {name: torch.zeros(len(p), device=trained.device) for name, p in parameters.items()}
    chances = torch.zeros(model.shape.vocab_size, device=trained.device)
    tokens = torch.zeros(1, dtype=torch.float64, device=trained.device)
    weights = EffectiveWeights(model)
    drawn = torch.Generator(trained.device)
    model.zero_grad(set_to_none=True)
    for number, ids in enumerate(trained.batches(windows, batch_tokens=trained.seq_len)):
        drawn.manual_seed(trained.ranks.rank + number * trained.ranks.world)
        likely = trained.log_probabilities(ids).exp()
        chances += (likely * (1 - likely)).sum(0)
        loss = trained.loss(ids, torch.multinomial(likely, 1, generator=drawn).view_as(ids))
        del likely
        loss.backward()
        weights.collect_gradients()
        for name, p in parameters.items():
            if p.grad is not None:  # of a mean over the window: squared, tokens times what one of them has
                sums[name] += p.grad.float().square().mean(1) * ids.numel() ** 2
        tokens += ids.numel()
        model.zero_grad(set_to_none=True)
    for total in (*sums.values(), chances, tokens):
        trained.ranks.sum(total)
    chances = chances / float(tokens) + _UNSEEN
    for name, total in sums.items():
        if len(total) == len(chances) and specs[name].role in ("embed", "head"):
            sums[name] = total.sum() * chances / chances.sum()
    return {name: (total / float(tokens)).cpu() for name, total in sums.items() if bool(total.any())}


def row_multipliers(found: Mapping[str, Rows]) -> dict[str, Tensor]:
    """How many times as wide each row's step is to be, [rows] by name; together they take as many bits as before."""
    logs = {}
    for name, rows in found.items():
        least = float(rows.cost[rows.cost > 0].min()) if bool(rows.cost.any()) else 1.0
        logs[name] = -0.5 * torch.log2(rows.cost.clamp_min(least)) - torch.log2(rows.step)
    limits = {
        name: (torch.log2(FINEST * rows.spread / rows.step), torch.log2(COARSEST * rows.spread / rows.step))
        for name, rows in found.items()
    }
    ends = torch.cat([one for name, log in logs.items() for one in (limits[name][0] - log, limits[name][1] - log)])
    low, high = float(ends.min()), float(ends.max())
    for _ in range(60):  # the shift that keeps the bits although some stand at their limits
        shift = (low + high) / 2
        bits = sum(
            rows.values / len(rows.cost) * float((logs[name] + shift).clamp(*limits[name]).double().sum())
            for name, rows in found.items()
        )
        low, high = (low, shift) if bits > 0 else (shift, high)
        if math.isclose(low, high):
            break
    return {name: 2 ** (log + shift).clamp(*limits[name]) for name, log in logs.items()}
