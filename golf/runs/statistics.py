"""What a comparison of runs rests on: mean and deviation, t-tests and their power, Holm's correction, ranks, fronts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

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
    values: Sequence[float] | Spread, than: Sequence[float] | Spread | float, alternative: Alternative = "two-sided"
) -> Significance | None:
    """The t-test of the mean of `values`: against another sample's, the variances unequal (Welch), or against a fixed
    number; of a sample its `Spread` is enough. The one place where p-values are computed, by scipy's t distribution.

    `alternative`: `less` asks whether it is smaller, one-sided; the interval is two-sided always. None where a sample
    has fewer than two values, or nothing varies. Raises ValueError when a sample has no values.
    """
    first = values if isinstance(values, Spread) else spread(values)
    other = than if isinstance(than, Spread | int | float) else spread(than)
    samples = [one for one in (first, other) if isinstance(one, Spread)]
    if any(one.sd is None for one in samples):
        return None
    variances = [((one.sd or 0.0) ** 2 / one.n, one.n) for one in samples]
    if not 0 < sum(one for one, _ in variances) < math.inf:
        return None
    from scipy import stats  # takes half a second to import

    error, freedom = _standard_error(variances)
    t = (first.mean - (other.mean if isinstance(other, Spread) else other)) / error
    if alternative == "two-sided":
        p = 2 * stats.t.sf(abs(t), freedom)
    else:
        p = stats.t.cdf(t, freedom) if alternative == "less" else stats.t.sf(t, freedom)
    return Significance(t, float(freedom), float(p), error * float(stats.t.ppf(0.975, freedom)))


def _standard_error(variances: Sequence[tuple[Any, Any]]) -> tuple[Any, Any]:
    """The error of a difference of means, and its degrees of freedom by Welch and Satterthwaite, from the variance of
    each mean and its number of values; numbers, or arrays."""
    variance = sum(one for one, _ in variances)
    return variance**0.5, 1 / sum((one / variance) ** 2 / (n - 1) for one, n in variances)


ALPHA, POWER = 0.01, 0.8
"""Further seeds are counted for a p-value below the first, with the second as its probability."""
MOST_SEEDS = 1000
"""More are not counted."""


def further(first: Spread, than: Spread | float, grows: tuple[bool, bool] = (True, False)) -> int | None:
    """How many more values of each sample that `grows` give the one-sided test of the mean of `first` being smaller a
    power of `POWER` at `ALPHA`, if means and deviations stay what they are.

    The power is that of the noncentral t distribution. None where the mean is not smaller, nothing varies, or more
    than `MOST_SEEDS` would be needed: a sample that gets no more may be too small by itself.
    """
    import numpy as np

    gain = (than.mean if isinstance(than, Spread) else than) - first.mean
    samples = [(one, growing) for one, growing in zip((first, than), grows) if isinstance(one, Spread)]
    if gain <= 0 or any(one.sd is None for one, _ in samples) or not any(one.sd for one, _ in samples):
        return None
    from scipy import stats

    more = np.arange(1, MOST_SEEDS + 1, dtype=np.float64)
    counts = [(one.sd or 0.0, one.n + more * growing) for one, growing in samples]
    error, freedom = _standard_error([(sd**2 / n, n) for sd, n in counts])
    power = stats.nct.sf(stats.t.ppf(1 - ALPHA, freedom), freedom, gain / error)
    enough = np.flatnonzero(power >= POWER)
    return int(more[enough[0]]) if len(enough) else None


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
