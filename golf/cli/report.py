"""`golf report`: compare runs on the terminal, in report.md and on report.html. Reads run folders alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from golf.cli.chosen import Chosen
from golf.common.errors import ConfigError, GolfError
from golf.common.files import atomic_writer

FLAGS = dict.fromkeys(("--out", "--metric", "--title", "--columns", "--bar"), "a value must follow")

PAGE = """golf report [DIR …] [FILTER …] [--out DIR] [--metric NAME] [--bar NUMBER] [--title TEXT] [--columns NAMES]

Compares the runs below the DIRs (outputs/ and multirun/ here, when none is named): a table on the terminal, and
report.md and report.html in a folder. The page opens from disk and needs no network and no account: a table to sort
and filter, curves by step, tokens and time, score against artifact bytes, parallel coordinates, a heat map, means
over seeds with Welch's p-value against the best, what each technique is worth where runs lack one, and what
fractions of a budget say of each other. Invalid runs (over a limit) come behind the valid ones and are never the best.

  FILTER           as for golf runs: optimizer.matrix_lr=0.02, 'val_bpb.post_quant<1.3', recipe=naive*
  --out DIR        where report.md and report.html go; by default the one DIR named, otherwise report/ here
  --metric NAME    what to compare by; by default the first of val_bpb.final (by each run's own method),
                   val_bpb.sliding, val_bpb.post_quant and val_bpb.pre_quant that most runs have. Scores on other text,
                   by another method, stride or window are ranked apart
  --bar NUMBER     a score to be below: the table over seeds has the one-sided p-value of each mean against it
  --title TEXT     the report's heading; by default the DIRs
  --columns NAMES  the columns of the first table here on the terminal, with commas, or all of them

  golf report multirun/2026-11-20/14-03-11_quickstart_8c1f
  golf report multirun/ budget.fraction=0.125 --metric val_bpb.post_quant --out reports/lr
"""


def parse(argv: Sequence[str]) -> Chosen:
    """Take the line apart. Raises ConfigError for a mistake."""
    return Chosen.parse("golf report", argv, FLAGS)


def folder(line: Chosen) -> Path:
    """Where the report goes."""
    if "--out" in line.values:
        return Path(line.values["--out"]).expanduser()
    return Path(line.roots[0]).expanduser() if len(line.roots) == 1 else Path("report")


def run(argv: list[str]) -> int:
    """Report. Raises ConfigError for a mistake on the line, GolfError where there is nothing to report on."""
    if any(word in ("--help", "-h") for word in argv):
        print(PAGE, end="")
        return 0
    from golf.cli.tables import print_table
    from golf.runs.report import gather, markdown, page, tables

    line = parse(argv)
    given = line.values.get("--bar")
    try:
        bar = None if given is None else float(given)
    except ValueError:
        raise ConfigError(f"--bar {given}: a number, such as 1.2244") from None
    report = gather(line.runs(), line.values.get("--metric"), bar=bar)
    title = line.values.get("--title") or " ".join([line.where, *line.filters])
    for table in tables(report, columns=line.values.get("--columns", "")):
        print_table(table)
    out = folder(line)
    for name, text in (("report.md", markdown(report, out, title)), ("report.html", page(report, out, title))):
        _write(out / name, text)
        print(out / name)
    return 0


def _write(path: Path, text: str) -> None:
    """Write whole or not at all. Raises GolfError where that cannot be."""
    try:
        with atomic_writer(path, "w") as file:
            file.write(text)
    except (GolfError, OSError) as error:
        told = error if isinstance(error, GolfError) else f"cannot write {path}: {error.strerror}"
        raise GolfError(f"{told}\n--out DIR names another folder") from error
