"""How large weights grow in a run that has not been run: what grids of a fixed step are a matter of.

An update that is orthogonalized has a known length whatever the gradient, and successive updates have in common what
momentum keeps. So a matrix goes for a walk whose reach follows from rates, decay and momentum alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from golf.learn.muon import Muon, NorMuon, shape_scale
from golf.learn.optimizer import Optimizer
from golf.nn.params import ParamSpec

STAYS = 0.65
"""The part of an orthogonalized update's square that a walk keeps: set by nine runs of the records' recipes
(docs/quantization.md). Newton–Schulz brings singular values near 1, not to it."""
ADAM_STAYS = 0.5
"""The same of Adam's, whose updates are about as long as the rate: 0.1 to 1.5, by how often a token occurs."""
UNSURE = 1.2
"""How many times larger or smaller than foretold weights may well be."""


class Spread(NamedTuple):
    """The standard deviation of a parameter's values: as foretold, and what it may well be at least and at most."""

    likely: float
    least: float
    most: float


UNKNOWN = Spread(1.0, 0.05, 1.0)
"""At 1 rows fill their own grids, and take the most bytes."""


def spreads(
    optimizer: Any, schedule: Any, steps: int, specs: Mapping[str, ParamSpec], first: Mapping[str, Tensor], tied: bool
) -> dict[str, Spread]:
    """How large each parameter's values have become after so many steps, by name; `UNKNOWN` for vectors, and under an
    optimizer that is not golf's or a rule that does not orthogonalize.

    optimizer, schedule: as the run has them, rescaled to its budget. first: the values that training begins with.
    """
    found = dict.fromkeys(specs, UNKNOWN)
    if not isinstance(optimizer, Optimizer):
        return found
    walks: dict[str, tuple[float, float]] = {}
    for name, spec in specs.items():
        matrix = spec.role == "matrix"
        if first[name].ndim != 2 or (matrix and not isinstance(optimizer.matrix, Muon | NorMuon)):
            continue
        rate = optimizer.rate_of(spec, tied)
        if rate not in walks:
            walks[rate] = _walk(optimizer, schedule, steps, rate)
        square, kept = walks[rate]
        rows, columns = first[name].shape
        length = STAYS * shape_scale(rows, columns) ** 2 / max(rows, columns) if matrix else ADAM_STAYS
        likely = math.sqrt(square * length + (kept * float(first[name].std(correction=0))) ** 2)
        found[name] = Spread(likely, likely / UNSURE, likely * UNSURE)
    return found


def _walk(optimizer: Optimizer, schedule: Any, steps: int, rate: str) -> tuple[float, float]:
    """The square of how far updates of length 1 a value take it at this rate, and what decay leaves of its start."""
    of_matrices = rate == "matrix_lr"
    decay = 0.0 if of_matrices else float(optimizer.adam_settings(rate)["weight_decay"])
    square = along = 0.0  # of the way that was gone, and its part along the last update
    kept = 1.0
    for step in range(steps):
        clock = float(step), float(steps)  # a second a step
        schedule.adapt(step, *clock)
        lr = optimizer.rates[rate] * schedule.multiplier(step, *clock)
        optimizer.fraction = step / steps
        memory = optimizer.momentum_in(step) if of_matrices else 0.0  # Adam's updates are the shorter for theirs
        left = 1.0 - lr * (optimizer.matrix_decay() if of_matrices else decay)
        square = left**2 * square + 2 * lr * left * memory * along + lr**2
        along = left * memory * along + lr
        kept *= left
    return square, kept
