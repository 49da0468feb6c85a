"""Two sides compared: whether the mean of one is lower than the other's, each of them runs or a published figure."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from golf.common.errors import ConfigError, GolfError
from golf.runs.dotted import key_of
from golf.runs.figures import SCORED_BY, is_score
from golf.runs.report.compare import group, scores
from golf.runs.report.gather import Report, ReportRun, differing, gather, identity, show
from golf.runs.statistics import ALPHA, MOST_SEEDS, POWER, Significance, Spread, further, significance, spread
from golf.runs.store import Run

_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_FIGURE = re.compile(rf"({_NUMBER})(?:\s*(?:±|\+/?-)\s*({_NUMBER})\s*,\s*n\s*=\s*(\d+))?")
_MARGIN = re.compile(rf"({_NUMBER})\s*(nats|bpb)")
FEW = 5
"""So many names are shown where more could be."""
UNNAMED = "figure"
"""What is compared where both sides are published figures."""


def is_figure(word: str) -> bool:
    """Whether a word of a line is meant as a published figure: it begins as one, and no folder is called so."""
    return re.match(rf"{_NUMBER}\s*(?:$|±|\+/?-|,)", word) is not None and not Path(word).exists()


def published(words: Sequence[str]) -> Spread | float:
    """A figure as `1.2014±0.0019,n=3` (mean, s.d., seeds), or as numbers: one, or one a seed. Raises ConfigError."""
    found = [_figure(word) for word in words]
    if len(found) == 1:
        return found[0]
    if wrong := next((word for word, one in zip(words, found) if isinstance(one, Spread)), None):
        raise ConfigError(f"{wrong}: a mean of seeds is a side by itself, and here are {len(words)} figures")
    return spread([one for one in found if not isinstance(one, Spread)])


def _figure(word: str) -> Spread | float:
    match = _FIGURE.fullmatch(word.strip())
    mean, sd, n = (float(match[1]), float(match[2] or 0), int(match[3] or 2)) if match else (math.nan, 0.0, 2)
    if match is None or not math.isfinite(mean) or not math.isfinite(sd) or n < 2:
        raise ConfigError(
            f"{word}: a published figure is its mean, standard deviation and number of seeds (2 or more),\n"
            "'1.2014±0.0019,n=3' (or +-); or one number; or the numbers of the seeds, with blanks between"
        )
    return mean if match[2] is None else Spread(n, mean, sd)


@dataclass(frozen=True)
class Margin:
    """How much lower a mean has to be."""

    value: float
    unit: Literal["nats", "bpb"]

    @classmethod
    def parse(cls, text: str) -> Margin:
        """From `0.005nats` or `0.003bpb`. Raises ConfigError."""
        match = _MARGIN.fullmatch(text.strip())
        if match is None or not math.isfinite(float(match[1])):
            raise ConfigError(f"--margin {text}: a number and its unit, 0.005nats (per token) or 0.003bpb (per byte)")
        return cls(float(match[1]), "nats" if match[2] == "nats" else "bpb")

    def bpb(self, bytes_per_token: float) -> float:
        """In bits per byte."""
        return self.value if self.unit == "bpb" else self.value / math.log(2) / bytes_per_token

    def __str__(self) -> str:
        return f"{self.value:g} {self.unit}"


@dataclass
class Given:
    """A side as a line names it: its words, and the runs or the figure that they stand for."""

    words: str
    runs: Sequence[Run] = ()
    figure: Spread | float | None = None


@dataclass
class Side:
    """A side that is compared. `sample` is a plain number where that alone is asked about (in JSON: no n); `runs` are
    those that count, one a seed; `left_out` says of each other run why it doesn't."""

    name: str
    words: str
    sample: Spread | float = math.nan
    runs: list[ReportRun] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def mean(self) -> float:
        return self.sample.mean if isinstance(self.sample, Spread) else self.sample

    @property
    def values(self) -> list[float]:
        """The score of each run."""
        return scores(self.runs, range(len(self.runs)))

    def as_dict(self) -> dict[str, Any]:
        """As JSON types."""
        n, mean, sd = self.sample if isinstance(self.sample, Spread) else (None, self.sample, None)
        return {
            "of": self.words, "n": n, "mean": mean, "sd": sd,
            "runs": [{"dir": str(run.dir), "seed": run.settings.get("seed"), "score": run.score} for run in self.runs],
            "left_out": self.left_out, "notes": {named(run): run.note for run in self.runs if run.note},
        }  # fmt: skip


Test = Literal["Welch", "one-sample", "paired"]


@dataclass
class Comparison:
    """What came of it. `lower_by` is B's mean less A's, so that above 0 A is the better; the test asks, one-sided,
    whether it is more than `margin` (in bpb), and its t is positive where it is."""

    metric: str
    scored_by: str
    sides: tuple[Side, Side]
    kind: Test
    lower_by: float
    asked: Margin | None = None
    margin: float = 0.0
    bytes_per_token: float | None = None
    test: Significance | None = None
    why_not: str = ""
    more: int | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % confidence interval of `lower_by`."""
        return None if self.test is None else (self.lower_by - self.test.half, self.lower_by + self.test.half)

    @property
    def grows(self) -> str:
        """Which side further seeds are for: `A`, `B`, `each` or `pairs`; beside runs a published figure gets none."""
        if self.kind == "paired":
            return "pairs"
        a, b = (bool(side.runs) for side in self.sides)
        return "each" if a and b else "B" if b else "A"

    @property
    def seeds(self) -> str:
        """How many further seeds are needed, in a sentence; empty where there is no test."""
        if self.test is None:
            return ""
        if self.test.p < ALPHA:
            return f"p is below {ALPHA:g}: no further seeds are needed"
        if self.lower_by <= self.margin:
            by = " by the margin" if self.margin else ""
            return f"further seeds: A's mean is not lower{by}; if that stays so, no number of seeds makes p < {ALPHA:g}"
        of = {"pairs": "of both sides, paired", "each": "of each side"}.get(self.grows, f"of {self.grows}")
        count = f"more than {MOST_SEEDS:,}" if self.more is None else str(self.more)
        other = {"A": "B", "B": "A"}.get(self.grows) if self.kind == "Welch" else None
        stays = f" and {other}'s seeds stay as many" if other else ""
        return (
            f"further seeds {of} for p < {ALPHA:g} with a power of {POWER * 100:g} %: {count}, "
            f"if means and spread are those observed{stays}"
        )

    def as_dict(self) -> dict[str, Any]:
        """As JSON types."""
        a, b = self.sides
        margin = None if self.asked is None else {
            "value": self.asked.value, "unit": self.asked.unit, "bpb": self.margin,
            "bytes_per_token": self.bytes_per_token,
        }  # fmt: skip
        test = None if self.test is None else {
            "kind": self.kind, "alternative": "A is lower", "t": self.test.t, "df": self.test.freedom, "p": self.test.p,
        }  # fmt: skip
        needed = 0 if self.test is not None and self.test.p < ALPHA else self.more
        return {
            "metric": self.metric, "scored_by": self.scored_by, "A": a.as_dict(), "B": b.as_dict(), "margin": margin,
            "lower_by": self.lower_by, "interval_95": self.interval, "test": test, "why_no_test": self.why_not or None,
            "further_seeds": {"of": self.grows, "count": needed, "alpha": ALPHA, "power": POWER, "told": self.seeds},
        }  # fmt: skip


def compare(
    a: Given,
    b: Given,
    metric: str | None = None,
    margin: Margin | None = None,
    paired: bool = False,
    ignoring: Sequence[str] = (),
) -> Comparison:
    """Compare by `metric` (None: the score that most of the runs have, as in a report); `paired` by seed.

    Of runs those count that are valid and scored on the same text by the same rules, one a seed; those of a side must
    be equal but for the seed and the settings, or groups of settings, that `ignoring` names. Raises ConfigError for
    what the line must say otherwise, GolfError where nothing compares.
    """
    if twice := {run.dir.resolve() for run in a.runs} & {run.dir.resolve() for run in b.runs}:
        raise ConfigError(f"{Run(min(twice)).name} stands on both sides of --against")
    if paired and not (a.runs and b.runs):
        raise ConfigError("--paired: pairs are runs of one seed, so both sides have to be runs")
    runs = [*a.runs, *b.runs]
    if metric and not runs:
        raise ConfigError(f"--metric {metric}: there are no runs here to have such a figure")
    report = gather(runs, metric, curves=False) if runs else None
    sides = Side("A", a.words), Side("B", b.words)
    if report is not None:
        found = _comparable(report, [one for one in ((a, sides[0]), (b, sides[1])) if one[0].runs])
        for side, those in found:
            side.runs = _sample(side, those, ignoring)
    if paired:
        _pair(*sides)
    for given, side in ((a, sides[0]), (b, sides[1])):
        side.sample = spread(side.values) if given.figure is None else given.figure
    if not isinstance(sides[0].sample, Spread):
        sides[0].sample = Spread(1, sides[0].sample, None)
    first = next((run for side in sides for run in side.runs), None)
    basis = first.bases.get(report.metric) if first is not None and report is not None else None
    made = Comparison(
        report.metric if report is not None else UNNAMED, str(basis or ""), sides,
        "paired" if paired else "Welch" if isinstance(sides[1].sample, Spread) else "one-sample",
        sides[1].mean - sides[0].mean, margin,
    )  # fmt: skip
    if margin is not None:
        made.margin, made.bytes_per_token = _in_bpb(margin, made)
    _test(made)
    return made


def _test(made: Comparison) -> None:
    """Fill in the test, or why there is none, and the further seeds."""
    a, b = made.sides
    first, than = a.sample, b.sample
    assert isinstance(first, Spread)
    if made.kind == "paired":
        first, than = spread([one - other for one, other in zip(a.values, b.values)]), 0.0
    than = than._replace(mean=than.mean - made.margin) if isinstance(than, Spread) else than - made.margin
    found = significance(first, than, "less")
    if found is not None:
        made.test = found._replace(t=0.0 - found.t)
        made.more = None if found.p < ALPHA else further(first, than, (made.grows != "B", made.grows in ("B", "each")))
        return
    few = [side for side in made.sides if isinstance(side.sample, Spread) and side.sample.n < 2]
    if not few:
        made.why_not = "no test is possible: the figures do not vary"
        return
    named = " and ".join(side.name for side in few)
    made.why_not = f"no test is possible: {named} {'has' if len(few) == 1 else 'have'} one seed, and two are the least"
    if run := next((side.runs[0] for side in few if side.runs), None):
        made.why_not += f"\nfurther ones: golf train -m run={_shown(run.dir)} seed={_next(run.settings.get('seed'))}"
    if few == [b]:
        made.why_not += f"\n--against {b.mean:.8g} asks whether A is below that very number"


def _comparable(report: Report, given: Sequence[tuple[Given, Side]]) -> list[tuple[Side, list[ReportRun]]]:
    """Of each side the runs that are valid and of the kind that both have, of several that of most runs."""
    found = []
    for one, side in given:
        folders = {run.dir.absolute() for run in one.runs}
        of = [run for run in report.runs if run.dir in folders]
        for run in of:
            if not run.ranked:
                lacks = f"it has no {report.metric}" if run.state == "completed" else run.state
                side.left_out[named(run)] = f"{lacks}: {run.note}" if run.note else lacks
        if not any(run.ranked for run in of):
            raise GolfError(f"{side.name}: no valid run in {side.words} has {report.metric}; {_some(side.left_out)}")
        found.append((side, [run for run in of if run.ranked]))
    kinds = [run.kind for _, of in found for run in of]
    shared = set.intersection(*({run.kind for run in of} for _, of in found))
    if not shared:
        told = "\n".join(
            f"{side.name}: {'; '.join(dict.fromkeys(_scored_by(run) for run in of))}" for side, of in found
        )
        raise GolfError(
            f"the {report.metric} of A and B are of other text or by other rules, and do not compare "
            f"(golf eval run=DIR makes others, --metric chooses)\n{told}"
        )
    kind = min(shared, key=lambda number: (-kinds.count(number), number))
    for side, of in found:
        side.left_out |= {named(run): f"other text or rules: {_scored_by(run)}" for run in of if run.kind != kind}
    return [(side, [run for run in of if run.kind == kind]) for side, of in found]


def named(run: ReportRun) -> str:
    """A run as `golf runs` names it."""
    return Run(run.dir).name


def _scored_by(run: ReportRun) -> str:
    return str(run.settings.get(SCORED_BY, "unknown"))


def _sample(side: Side, runs: list[ReportRun], ignoring: Sequence[str]) -> list[ReportRun]:
    """One run a seed, the last of each, by seed. Raises ConfigError where they differ in more than the seed."""
    ignored = [
        name for name in dict.fromkeys(name for run in runs for name in run.settings)
        if any(name == one or name.startswith((f"{one}.", f"{one}/")) for one in ignoring)
    ]  # fmt: skip
    known = [identity(run, without=("seed", *ignored)) for run in runs]
    groups = group(runs, [None if one is None else key_of(one) for one in known])
    if not groups:
        raise GolfError(f"{side.name}: no run in {side.words} has a config that can be read")
    if len(groups) > 1:
        columns, implied, _ = differing([runs[one.runs[0]] for one in groups])
        names = [name for name in (*columns, *implied) if name not in ("seed", *ignored)]
        values = [show(runs[one.runs[0]].settings.get(names[0])) for one in groups]
        more = f" and {len(names) - FEW} more" if len(names) > FEW else ""
        raise ConfigError(
            f"{side.name}: its runs are no sample, as they differ in more than the seed: {', '.join(names[:FEW])}{more}"
            f"\nchoose by a filter, such as {names[0]}={values[0]} ({', '.join(dict.fromkeys(values[:FEW]))});"
            f" --ignoring {','.join(names[:FEW])} lets them differ"
        )
    kept = set(groups[0].runs)
    for index, run in enumerate(runs):
        if index not in kept:
            counts = f"of seed {run.settings.get('seed')} another run counts, the last"
            side.left_out[named(run)] = counts if known[index] else "its config cannot be read"
    return sorted((runs[index] for index in kept), key=lambda run: _order(run.settings.get("seed")))


def _pair(a: Side, b: Side) -> None:
    """Leave the runs of both sides whose seed has run on both. Raises GolfError where there is none."""
    seeds = [{str(run.settings.get("seed")): run for run in side.runs} for side in (a, b)]
    both = [seed for seed in seeds[0] if seed in seeds[1]]
    if not both:
        told = "; ".join(f"{side.name}: {', '.join(of)}" for side, of in zip((a, b), seeds))
        raise GolfError(f"--paired: no seed has run on both sides ({told})")
    for side, of in zip((a, b), seeds):
        side.left_out |= {named(run): f"seed {seed} has no partner" for seed, run in of.items() if seed not in both}
        side.runs = [of[seed] for seed in both]


def _in_bpb(margin: Margin, made: Comparison) -> tuple[float, float | None]:
    """A margin in bits per byte, and the bytes of a token where it was given in nats per token. Raises ConfigError."""
    if made.metric != UNNAMED and not is_score(made.metric):
        raise ConfigError(f"--margin {margin}: {made.metric} is no bpb")
    if margin.unit == "bpb":
        return margin.value, None
    bases = [run.bases.get(made.metric) for side in made.sides for run in side.runs]
    every = [one.bytes / one.targets for one in bases if one is not None and one.targets]
    if not every:
        raise ConfigError(
            f"--margin {margin}: nats are per token, and nothing here says how many bytes a token has\n"
            f"in bits per byte it is nats / 0.6931 / bytes a token: {margin.bpb(2.44):.5f}bpb, were a token 2.44 bytes"
        )
    if max(every) > 1.001 * min(every):
        told = [f"{margin.bpb(one):.5f}bpb by {one:.4f} bytes a token" for one in dict.fromkeys(every)]
        raise ConfigError(
            f"--margin {margin}: nats are per token, and tokens here are of different lengths\n"
            f"choose: {', or '.join(told[:3])}"
        )
    ratio = math.fsum(every) / len(every)
    return margin.bpb(ratio), ratio


def _some(left_out: dict[str, str]) -> str:
    told = [f"{name}: {why}" for name, why in left_out.items()]
    return "; ".join(told[:3]) + (f"; and {len(told) - 3} more" if len(told) > 3 else "")


def _shown(folder: Path) -> Path:
    """A folder below this one as people type it."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def _next(seed: Any) -> str:
    """Two seeds beside this one."""
    return f"{seed + 1},{seed + 2}" if isinstance(seed, int) else "1,2"


def _order(seed: Any) -> tuple[bool, Any]:
    number = isinstance(seed, int | float)
    return not number, seed if number else str(seed)
