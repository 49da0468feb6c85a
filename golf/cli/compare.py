"""`golf compare`: whether one side's mean is lower than another's, by how much, and how sure that is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from golf.cli.chosen import Chosen
from golf.common.errors import ConfigError
from golf.common.shown import plain_text

if TYPE_CHECKING:
    from golf.runs.report.sides import Comparison, Given, Side
    from golf.runs.tables import Table

FLAGS = {
    "--metric": "a name must follow, such as val_bpb.final",
    "--margin": "a number with its unit must follow, 0.005nats or 0.003bpb",
    "--ignoring": "settings must follow, such as data.paths,runtime",
}
SWITCHES = ("--paired", "--json")

PAGE = """golf compare A … --against B … [--metric NAME] [--margin NUMBER] [--paired] [--ignoring NAMES] [--json]

Asks whether A's mean is lower than B's: means, standard deviations, the difference with its 95 % interval, a one-sided
t-test, and how many further seeds would make p < 0.01. A side is one of

  DIR … [FILTER …]    runs, or folders with runs below, that are equal but for the seed; filters as for golf runs choose
                      among them: multirun/lr optimizer.matrix_lr=0.02
  '1.2014±0.0019,n=3' a published figure: mean, standard deviation (not error), seeds; +- will do for ±
  1.2014 1.1995 …     one number a seed. After --against a single number is a bar: the one-sample test

Only valid runs count, one a seed (the last to finish), and only those scored on the same text by the same rules; what
is left out is said.

  --metric NAME     what to compare, as for golf report: by default the first of val_bpb.final, val_bpb.sliding,
                    val_bpb.post_quant and val_bpb.pre_quant that most of the runs have
  --margin NUMBER   by how much A has to be lower: 0.003bpb, or 0.005nats, which are per token and are converted by
                    the bytes per token of the runs' validation text
  --paired          by seed: a one-sample test of the differences between runs of one seed
  --ignoring NAMES  settings, or groups of them, in which the runs of a side may differ
  --json            all of it as JSON

  golf compare outputs/new1 outputs/new2 outputs/new3 --against 1.21113611
  golf compare multirun/lr optimizer.matrix_lr=0.02 --against multirun/lr optimizer.matrix_lr=0.04 --paired
  golf compare multirun/mine --against '1.2014±0.0019,n=3' --margin 0.005nats
"""


@dataclass
class Line:
    """A command line taken apart: the words of each side, and the flags."""

    a: Chosen
    b: Chosen
    figures: tuple[list[str], list[str]]
    values: dict[str, str] = field(default_factory=dict)
    switches: set[str] = field(default_factory=set)


def parse(argv: Sequence[str]) -> Line:
    """Take the line apart; flags may stand on either side. Raises ConfigError for a mistake."""
    from golf.runs.report.sides import is_figure

    words: tuple[list[str], list[str]] = ([], [])
    turned = False
    for word in argv:
        if word.partition("=")[0] == "--against":
            turned = True
            words[1].extend([word.partition("=")[2]] if "=" in word else [])
        else:
            words[turned].append(word)
    sides = [Chosen.parse("golf compare", of, {**FLAGS, "--against": ""}, SWITCHES) for of in words]
    figures: tuple[list[str], list[str]] = ([], [])
    for side, found in zip(sides, figures):
        found += [word for word in (*side.roots, *side.filters) if is_figure(word)]
        side.roots = [word for word in side.roots if word not in found]
        side.filters = [word for word in side.filters if word not in found]
    line = Line(sides[0], sides[1], figures, sides[0].values | sides[1].values, sides[0].switches | sides[1].switches)
    if not turned or not all(of.roots or of.filters or found for of, found in zip(sides, figures)):
        raise ConfigError(
            "golf compare A … --against B …: each side is run folders, folders with runs below, or a published figure\n"
            "golf compare outputs/new1 outputs/new2 --against '1.2014±0.0019,n=3'"
        )
    for of, found in zip(sides, figures):
        if found and (mixed := [*of.roots, *of.filters]):
            raise ConfigError(f"{found[0]} beside {mixed[0]}: a side is runs or published figures, not both")
    return line


def given(of: Chosen, figures: Sequence[str]) -> Given:
    """What a side's words stand for. Raises ConfigError for a broken figure, GolfError where there are no runs."""
    from golf.runs.report.sides import Given, published

    if figures:
        return Given(" ".join(figures), figure=published(figures))
    return Given(" ".join([of.where, *of.filters]), of.runs())


def run(argv: list[str]) -> int:
    """Compare. Raises ConfigError for a mistake on the line, GolfError where nothing compares."""
    if any(word in ("--help", "-h") for word in argv):
        print(PAGE, end="")
        return 0
    from golf.cli.tables import print_table
    from golf.runs.report.sides import Margin, compare

    line = parse(argv)
    margin = Margin.parse(line.values["--margin"]) if "--margin" in line.values else None
    found = compare(
        given(line.a, line.figures[0]), given(line.b, line.figures[1]), line.values.get("--metric"), margin,
        "--paired" in line.switches, [name for name in line.values.get("--ignoring", "").split(",") if name],
    )  # fmt: skip
    if "--json" in line.switches:
        print(json.dumps(found.as_dict(), indent=1))
    else:
        print_table(table(found))
        print(plain_text("\n".join(told(found))))
    return 0


def table(found: Comparison) -> Table:
    """The two sides."""
    from golf.runs.statistics import Spread
    from golf.runs.tables import Column, Table

    made = Table(
        Column("", right=False), Column("of", right=False, shorten=True), Column("seeds"), Column("mean"),
        Column("± s.d."), Column("by seed", right=False, prose=True, drop=1),
        title=found.metric + f", {found.scored_by}" * bool(found.scored_by),
    )  # fmt: skip
    for side in found.sides:
        n, mean, sd = side.sample if isinstance(side.sample, Spread) else ("", side.sample, None)
        made.add_row(
            side.name,
            side.words,
            str(n),
            number(found, mean),
            "" if sd is None else number(found, sd),
            each(found, side),
        )
    return made


def each(found: Comparison, side: Side) -> str:
    """The runs' figures by seed, of a few."""
    told = [f"{run.settings.get('seed')}: {number(found, value)}" for run, value in zip(side.runs, side.values)]
    return ", ".join(told) if len(told) <= 8 else ""


def told(found: Comparison) -> Iterator[str]:
    """What came of it, in lines."""
    from golf.runs.figures import is_score
    from golf.runs.report.sides import FEW, named

    word = "lower" if found.lower_by >= 0 else "higher"
    line = f"A is {word} by {number(found, abs(found.lower_by))}"
    if found.interval is not None:
        low, high = found.interval if found.lower_by >= 0 else tuple(-one for one in reversed(found.interval))
        line += f", 95 % interval {number(found, low)} to {number(found, high)}"
    yield line
    if found.asked is not None and found.bytes_per_token is not None:
        yield (
            f"margin: {found.asked} per token = {found.margin:.5f} bpb (nats / ln 2 / {found.bytes_per_token:.4f}: "
            "the bytes of a token in the runs' validation text)"
        )
    if found.test is None:
        yield found.why_not
    else:
        test = {"Welch": "Welch's t-test", "one-sample": "one-sample t-test", "paired": "paired t-test"}[found.kind]
        margin = f" by more than {found.margin:.5f} bpb" if found.asked is not None else ""
        yield (
            f"{test}, one-sided, that A is lower{margin}: "
            f"t = {found.test.t:.2f}, df = {found.test.freedom:.3g}, p = {found.test.p:.2g}"
        )
        yield found.seeds
    for side in found.sides:
        yield from (f"{side.name} without {name}: {why}" for name, why in list(side.left_out.items())[:FEW])
        if len(side.left_out) > FEW:
            yield f"{side.name} without {len(side.left_out) - FEW} more: --json names them"
        yield from (f"{side.name}, {named(run)}: {run.note}" for run in side.runs if run.note)
    if not all(side.runs for side in found.sides):
        yield "not checked: of which text and by which rules a published figure is"
    elif is_score(found.metric) and not found.scored_by:
        yield "not checked: of which text and by which rules these are, as the records do not say it"


def number(found: Comparison, value: float) -> str:
    """A figure, a bpb to its fifth place."""
    from golf.runs.figures import is_score
    from golf.runs.report.sides import UNNAMED

    return f"{value:.5f}" if found.metric == UNNAMED or is_score(found.metric) else f"{value:,.6g}"
