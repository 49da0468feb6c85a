"""What a comparison of runs rests on: mean and deviation, Welch's test, Holm's correction, ranks, the Pareto front."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

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


Alternative = Literal["two-sided", "less", "greater"]
"""What is asked of a mean: whether it is another, or whether it is smaller, or larger."""


class Significance(NamedTuple):
    """Student's `t`, his degrees of freedom, the p-value, and half the width of the difference's 95 % interval."""

    t: float
    freedom: float
    p: float
    half: float


def significance(
    values: Sequence[float], than: Sequence[float] | float, alternative: Alternative = "two-sided"
) -> Significance | None:
    """scipy's t-test of the mean of `values`: against another sample's, the variances unequal (Welch), or against a
    fixed number. The one place where p-values are computed.

    `alternative`: `less` asks whether it is smaller, one-sided; the interval is two-sided always. None where a sample
    has fewer than two values, or nothing varies. Raises ValueError when a sample has no values.
    """
    import numpy as np

    fixed = isinstance(than, int | float)
    samples = [values] if isinstance(than, int | float) else [values, than]
    spreads = [spread(one) for one in samples]
    if any(one.sd is None for one in spreads):
        return None
    variance = math.fsum((one.sd or 0.0) ** 2 / one.n for one in spreads)
    if variance <= 0 or not math.isfinite(variance):
        return None
    from scipy import stats  # takes half a second to import

    arrays = [np.asarray(one, np.float64) for one in samples]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # values that hardly differ
        if fixed:
            found = stats.ttest_1samp(arrays[0], float(than), alternative=alternative)  # type: ignore[arg-type]
        else:
            found = stats.ttest_ind(*arrays, equal_var=False, alternative=alternative)
        freedom = float(found.df)
        half = math.sqrt(variance) * float(stats.t.ppf(0.975, freedom))
    return Significance(float(found.statistic), freedom, float(found.pvalue), half)


class Difference(NamedTuple):
    """How far one sample's mean lies above another's.

    `half` is half the width of Welch's 95 % interval, `p` the two-sided p-value of his t-test; None where a sample has
    fewer than two values, or neither varies at all.
    """

    mean: float
    half: float | None = None
    p: float | None = None


def difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """The mean of `first` less that of `second`, and its `significance`. Raises ValueError when one has no values."""
    above = spread(first).mean - spread(second).mean
    found = significance(first, second)
    return Difference(above) if found is None else Difference(above, found.half, found.p)


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
