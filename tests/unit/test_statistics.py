"""Mean and deviation, Welch's test, Holm's correction, ranks and the Pareto front, against scipy and by property."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from golf.runs.statistics import (
    ALPHA,
    MOST_SEEDS,
    POWER,
    Spread,
    difference,
    further,
    holm,
    mark,
    pareto_front,
    rank_interval,
    ranks,
    significance,
    spearman,
    spread,
)

numbers = st.floats(-1e3, 1e3).map(lambda x: round(x, 3))


def test_the_deviation_is_the_sample_s() -> None:
    assert spread([1.0, 2.0, 4.0]) == pytest.approx((3, 7 / 3, np.std([1, 2, 4], ddof=1)))


def test_one_number_has_no_deviation_and_none_has_no_mean() -> None:
    assert spread([2.0]) == (1, 2.0, None)
    with pytest.raises(ValueError, match="no values"):
        spread([])


@pytest.mark.parametrize("shift", [0.0, 0.001, 0.01, 1.0])
@pytest.mark.parametrize(("n", "m"), [(2, 2), (3, 5), (10, 4)])
def test_welch_agrees_with_scipy(shift: float, n: int, m: int) -> None:
    rng = np.random.default_rng(n)
    first, second = rng.normal(1.2, 0.002, n), rng.normal(1.2 + shift, 0.005, m)
    expected = stats.ttest_ind(first, second, equal_var=False).pvalue
    assert difference(list(first), list(second)).p == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(2, 2), (3, 5), (10, 4)])
def test_a_difference_has_the_interval_of_welchs_test(n: int, m: int) -> None:
    rng = np.random.default_rng(n)
    first, second = rng.normal(1.21, 0.002, n), rng.normal(1.2, 0.005, m)
    expected = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    found = difference(list(first), list(second))
    assert found.half is not None
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((expected.low, expected.high), rel=1e-9)


@pytest.mark.parametrize(("first", "second"), [([1.5], [1.0]), ([1.5], [0.5, 1.5]), ([1.5, 1.5], [1.0, 1.0])])
def test_a_difference_without_variation_has_no_interval(first: list[float], second: list[float]) -> None:
    assert difference(first, second) == (0.5, None, None)


def test_holm_steps_down_and_keeps_the_order_given() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_marks() -> None:
    assert [mark(p) for p in (None, 0.2, 0.04, 0.004, 0.0004)] == ["", "", "*", "**", "***"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), numbers), min_size=3, max_size=20))
def test_rank_correlation_agrees_with_scipy_ties_included(pairs: list[tuple[int, float]]) -> None:
    first, second = [float(a) for a, _ in pairs], [b for _, b in pairs]
    found = spearman(first, second)
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-9)
    np.testing.assert_array_equal(ranks(second), stats.rankdata(second))


def test_the_interval_of_a_rank_correlation_is_bonett_and_wright_s() -> None:
    assert rank_interval(0.5, 28) == pytest.approx((0.1327, 0.7465), abs=1e-4)  # by hand: atanh(.5) ± 1.96·√(1.125/25)


@given(st.floats(-0.99, 0.99), st.integers(4, 200))
def test_the_interval_holds_rho_and_narrows_with_more_pairs(rho: float, n: int) -> None:
    (low, high), (lower, higher) = rank_interval(rho, n), rank_interval(rho, n + 10)
    assert -1 <= low < rho < high <= 1
    assert higher - lower < high - low


@pytest.mark.parametrize(("rho", "n"), [(0.5, 3), (1.0, 50), (-1.0, 50)])
def test_no_interval_where_none_follows(rho: float, n: int) -> None:
    assert rank_interval(rho, n) is None


def test_two_pairs_have_no_rank_correlation_and_unequal_lengths_are_refused() -> None:
    assert spearman([1, 2], [3, 4]) is None
    with pytest.raises(ValueError, match="cannot be paired"):
        spearman([1, 2, 3], [1, 2])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(numbers, numbers), max_size=25))
def test_the_front_is_what_nothing_dominates(points: list[tuple[float, float]]) -> None:
    front = pareto_front(points)
    on_front = {points[i] for i in front}
    for point in set(points):
        beaten = any(a <= point[0] and b <= point[1] and (a, b) != point for a, b in points)
        assert (point in on_front) != beaten
    assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)


def test_p_values_are_probabilities() -> None:
    p = difference([1.0, 1.1, 0.9], [1.0, 1.1, 0.9]).p
    assert p is not None
    assert math.isclose(p, 1.0)


def test_seeds_against_a_fixed_bar_are_tested_one_sided() -> None:
    found = significance([1.20143417, 1.19945102, 1.20319508], 1.21113611, "less")
    assert found is not None
    assert (found.t, found.freedom, found.p) == (pytest.approx(-9.04, abs=5e-3), 2.0, pytest.approx(0.0060, abs=5e-5))
    both = significance([1.20143417, 1.19945102, 1.20319508], 1.21113611)
    assert both is not None
    assert both.p == pytest.approx(2 * found.p)
    assert significance([1.2], 1.3, "less") is None


def test_a_one_sided_question_has_its_own_p_value() -> None:
    first, second = [1.20, 1.21, 1.19], [1.22, 1.21, 1.23]
    sides = [significance(first, second, side) for side in ("less", "greater", "two-sided")]
    less, greater, both = (one.p for one in sides if one is not None)
    assert (less + greater, both) == (pytest.approx(1.0), pytest.approx(2 * less))


@pytest.mark.parametrize("side", ["less", "greater", "two-sided"])
def test_the_t_tests_are_scipy_s(side: str) -> None:
    first, second = [1.2014, 1.1995, 1.2032], [1.2051, 1.2019, 1.2044, 1.2102]
    other = Spread(3, 1.2049, 0.0021)
    pairs = [
        (significance(first, second, side), stats.ttest_ind(first, second, equal_var=False, alternative=side)),
        (significance(first, 1.2049, side), stats.ttest_1samp(first, 1.2049, alternative=side)),
        (
            significance(spread(first), other, side),
            stats.ttest_ind_from_stats(np.mean(first), np.std(first, ddof=1), 3, *other[1:], 3, False, side),
        ),
    ]
    for found, expected in pairs:
        assert found is not None
        assert (found.t, found.p) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-9)


def power(t: float, n: int, samples: int) -> float:
    """The probability of p < ALPHA, with `n` values a sample of deviation 1 and `t` the true difference over its error:
    the chance that a normal number passes the bound, averaged over what the deviation may be estimated as."""
    freedom = samples * (n - 1)
    bound = stats.t.ppf(1 - ALPHA, freedom)
    at = stats.chi2.ppf((np.arange(20_000) + 0.5) / 20_000, freedom)
    return float(stats.norm.sf(bound * np.sqrt(at / freedom) - t).mean())


@pytest.mark.parametrize("effect", [0.3, 1.0, 2.0])
def test_further_seeds_are_as_many_as_the_power_asks_for(effect: float) -> None:
    alone, both = (
        further(Spread(2, 0.0, 1.0), effect),
        further(Spread(2, 0.0, 1.0), Spread(2, effect, 1.0), (True, True)),
    )
    assert alone is not None
    assert both is not None
    for more, samples in ((alone, 1), (both, 2)):
        have, short = (power(effect * math.sqrt(n / samples), n, samples) for n in (2 + more, 1 + more))
        assert short < POWER + 1e-4
        assert have > POWER - 1e-4


def test_where_further_seeds_do_not_help() -> None:
    three = Spread(3, 1.0, 0.1)
    assert further(three, 1.0) is None  # not smaller
    assert further(three, 1.0001) is None  # beyond what is counted
    assert further(three, Spread(2, 1.1, 0.1)) is None  # the other's two values stay two
    assert further(Spread(1, 1.0, None), 1.1) is None
    assert further(Spread(2, 1.0, 0.0), 1.1) is None
    assert MOST_SEEDS > (further(three, 1.02) or 0) > 100
