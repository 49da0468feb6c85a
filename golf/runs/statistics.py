"""What a comparison of runs rests on: mean and deviation, Welch's test, Holm's correction, ranks, the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np


class Spread(NamedTuple):
    """The mean of `n` numbers and their sample deviation (n - 1); None where one number has no deviation."""

    n: int
    mean: float
    sd: float | None


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation. Raises ValueError for no values at all."""
    if not values:
        raise ValueError("the mean of no values")
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Spread(1, mean, None)
    return Spread(n, mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1)))


class Difference(NamedTuple):
    """How far one sample's mean lies above another's.

    `half` is half the width of Welch's 95 % interval, `p` the two-sided p-value of his t-test that the means are one,
    the variances unequal; None where a sample has fewer than two values, or neither varies at all.
    """

    mean: float
    half: float | None = None
    p: float | None = None


def difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """The mean of `first` less that of `second`. Raises ValueError when one of them has no values."""
    a, b = spread(first), spread(second)
    above = a.mean - b.mean
    if a.sd is None or b.sd is None:
        return Difference(above)
    va, vb = a.sd**2 / a.n, b.sd**2 / b.n
    if va + vb <= 0 or not math.isfinite(va + vb):
        return Difference(above)
    from scipy.special import stdtr, stdtrit  # scipy.stats would take a second to import

    error = math.sqrt(va + vb)
    # degrees of freedom by Welch and Satterthwaite, in a form that does not underflow for tiny variances
    share = va / (va + vb)
    freedom = 1.0 / (share**2 / (a.n - 1) + (1 - share) ** 2 / (b.n - 1))
    p = min(1.0, 2.0 * float(stdtr(freedom, -abs(above / error))))
    return Difference(above, error * float(stdtrit(freedom, 0.975)), p)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's step-down rule, in the order given; each is at most 1."""
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def mark(p: float | None) -> str:
    """`***` below 0.001, `**` below 0.01, `*` below 0.05; empty above, and for None."""
    if p is None:
        return ""
    return "***" if p < 0.001 else "**" if p < 0.01 else "*" if p < 0.05 else ""


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation of pairs, ties sharing their mean rank; None below three pairs or without variation.

    Raises ValueError when the lengths differ.
    """
    import numpy as np

    if len(first) != len(second):
        raise ValueError(f"{len(first)} values cannot be paired with {len(second)}")
    if len(first) < 3:
        return None
    a, b = ranks(first), ranks(second)
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return None if scale == 0 else max(-1.0, min(1.0, float(a @ b) / scale))


def rank_interval(rho: float, n: int) -> tuple[float, float] | None:
    """A 95 % confidence interval of Spearman's rho from `n` pairs: Fisher's z with Bonett and Wright's variance.

    Rough below about ten pairs; None below four, and for a rho of 1 or -1, from which no width follows.
    """
    if n < 4 or abs(rho) >= 1:
        return None
    half = 1.959964 * math.sqrt((1 + rho**2 / 2) / (n - 3))
    return math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half)


def ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks from 1 for the smallest, float64 of shape [n]; equal values share the mean of their ranks."""
    import numpy as np

    _, group, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[group]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that none beats on both numbers (smaller is better), ordered by the first number.

    Of points that are equal the first counts.
    """
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (*points[i], i)):
        if not front or points[index][1] < points[front[-1]][1]:
            front.append(index)
    return front
