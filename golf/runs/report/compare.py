"""Runs that are equal but for the seed, or but for the budget's fraction, and what they say together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from golf.runs.statistics import (
    Difference,
    Spread,
    difference,
    holm,
    mark,
    rank_interval,
    ranks,
    significance,
    spearman,
    spread,
)

if TYPE_CHECKING:
    from golf.runs.report.gather import ReportRun


@dataclass
class Group:
    """Runs equal but for the seed; `runs` index the report's runs.

    `off` is how far its mean is above that of the group it is compared with (the best, an ablation's baseline), `mark`
    the difference's significance after Holm's correction for the number of groups tested.
    """

    runs: list[int]
    spread: Spread
    valid: bool
    best: bool = False
    off: Difference | None = None
    mark: str = ""
    below: float | None = None
    """The one-sided p-value of its mean being below the report's bar."""

    @property
    def p(self) -> float | None:
        """Welch's two-sided p-value of the difference."""
        return None if self.off is None else self.off.p


@dataclass
class Correlation:
    """How the order of `settings` configurations at fraction `low` foretells their order at `high`: Spearman's
    rho with a 95 % interval, and the place (from 1) that the best at `low` takes at `high`."""

    low: float
    high: float
    settings: int
    rho: float | None
    place: float

    @property
    def interval(self) -> tuple[float, float] | None:
        """Where rho may lie, were there more settings; None where nothing can be said."""
        return None if self.rho is None else rank_interval(self.rho, self.settings)


def group(runs: Sequence[ReportRun], identities: Sequence[str | None]) -> list[Group]:
    """The runs that have a score, those of one identity together, in the order found.

    Of several runs of one seed the last to finish counts: a repeat is no new sample.
    """
    found: dict[str, dict[str, int]] = {}
    for index, (run, identity) in enumerate(zip(runs, identities)):
        if identity is None or run.score is None:
            continue
        of_seed = found.setdefault(identity, {})
        seed = str(run.settings.get("seed"))
        if seed not in of_seed or run.finished > runs[of_seed[seed]].finished:
            of_seed[seed] = index
    groups = []
    for of_seed in found.values():
        members = list(of_seed.values())
        valid = all(runs[i].state == "completed" for i in members)
        groups.append(Group(members, spread(scores(runs, members)), valid))
    return groups


def measure(runs: Sequence[ReportRun], groups: Sequence[Group], against: Group) -> None:
    """Fill in how far each group is off the one that it is compared with. Two-sided: a technique may help or harm, and
    the best was chosen by its scores."""
    for one in groups:
        one.off = difference(scores(runs, one.runs), scores(runs, against.runs))
    tested = [one for one in groups if one.p is not None]
    for one, p in zip(tested, holm([one.p for one in tested if one.p is not None])):
        one.mark = mark(p)


def seed_groups(runs: Sequence[ReportRun], identities: Sequence[str | None], bar: float | None = None) -> list[Group]:
    """Groups by mean score, valid ones first and the best of them first; empty when no group has two seeds.

    The group to compare with is the best whose runs are all valid and that has two seeds.
    """
    groups = group(runs, identities)
    if all(one.spread.n < 2 for one in groups):
        return []
    groups.sort(key=lambda one: (not one.valid, runs[one.runs[0]].kind, one.spread.mean))
    for one in groups:
        found = None if bar is None else significance(scores(runs, one.runs), bar, "less")
        one.below = None if found is None else found.p
    best = next((one for one in groups if one.valid and one.spread.n > 1), None)
    if best is not None:
        best.best = True
        alike = [one for one in groups if runs[one.runs[0]].kind == runs[best.runs[0]].kind]
        measure(runs, [one for one in alike if one is not best], best)
    return groups


def fraction_correlations(runs: Sequence[ReportRun], identities: Sequence[str | None]) -> list[Correlation]:
    """For each fraction and the next, and each and the largest: how well the one's order foretells the other's.

    `identities` are the runs' configs without seed and fraction; a config's score at a fraction is the mean over
    its seeds, and the pairs are the configs that have one at both. Fewer than three pairs are left out, and of a
    fraction the runs of another kind than most have there.
    """
    at: dict[float, list[tuple[ReportRun, str, float]]] = {}
    for run, identity in zip(runs, identities):
        fraction = run.settings.get("budget.fraction")
        if identity is None or run.score is None or isinstance(fraction, bool):
            continue
        if isinstance(fraction, (int, float)):
            at.setdefault(float(fraction), []).append((run, identity, run.score))
    scores: dict[float, dict[str, list[float]]] = {}
    for fraction, found in at.items():
        numbers = [run.kind for run, *_ in found]
        usual = min(numbers, key=lambda number: (-numbers.count(number), number))
        for run, identity, score in found:
            if run.kind == usual:
                scores.setdefault(fraction, {}).setdefault(identity, []).append(score)
    fractions = sorted(scores)
    pairs = [*pairwise(fractions), *((low, fractions[-1]) for low in fractions[:-2])]
    told = []
    for low, high in pairs:
        both = [key for key in scores[low] if key in scores[high]]
        if len(both) < 3:
            continue
        at_low = [spread(scores[low][key]).mean for key in both]
        at_high = [spread(scores[high][key]).mean for key in both]
        place = float(ranks(at_high)[at_low.index(min(at_low))])
        told.append(Correlation(low, high, len(both), spearman(at_low, at_high), place))
    return told


def scores(runs: Sequence[ReportRun], members: Sequence[int]) -> list[float]:
    """The scores of the runs with these numbers."""
    return [score for i in members if (score := runs[i].score) is not None]
