"""`golf report`: compare runs on the terminal, in report.md and on report.html. Reads run folders alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from golf.common.errors import ConfigError, GolfError, did_you_mean
from golf.common.files import atomic_writer
from golf.runs.store import filter_runs, find_runs

FLAGS = ("--out", "--metric", "--title", "--help")

PAGE = """golf report [DIR …] [FILTER …] [--out DIR] [--metric NAME] [--title TEXT]

Compares the runs below the DIRs (outputs/ and multirun/ here, when none is named): a table on the terminal, and
report.md and report.html in a folder. The page opens from disk and needs no network and no account: a table to sort
and filter, curves by step, tokens and time, score against artifact bytes, parallel coordinates, a heat map, means
over seeds with Welch's p-value against the best, and what fractions of a budget say of each other.

  FILTER           as for golf runs: optimizer.matrix_lr=0.02, 'val_bpb.post_quant<1.3', recipe=naive*
  --out DIR        where report.md and report.html go; by default the one DIR named, otherwise report/ here
  --metric NAME    what to compare by; by default the first of val_bpb.sliding, val_bpb.post_quant and
                   val_bpb.pre_quant that most runs have
  --title TEXT     the report's heading; by default the DIRs

  golf report multirun/2026-11-20/14-03-11_quickstart_8c1f
  golf report multirun/ budget.fraction=0.125 --metric val_bpb.post_quant --out reports/lr
"""


@dataclass
class Line:
    """The command line, taken apart."""

    roots: list[str] = field(default_factory=list)
    filters: list[str] = field(default_factory=list)
    out: str = ""
    metric: str = ""
    title: str = ""

    @classmethod
    def parse(cls, argv: Sequence[str]) -> Line:
        """A word with an operator is a filter, unless a folder is called so. Raises ConfigError for unknown flags."""
        line, words = cls(), iter(argv)
        for word in words:
            name, equals, value = word.partition("=")
            if name in ("--out", "--metric", "--title"):
                value = value if equals else next(words, "")
                if not value:
                    raise ConfigError(f"{name}: a value must follow")
                setattr(line, name[2:], value)
            elif word.startswith("-"):
                raise ConfigError(f"{word}: golf report has no such flag {did_you_mean(word, FLAGS)}")
            elif any(sign in word for sign in "<>=") and not Path(word).exists():
                line.filters.append(word)
            else:
                line.roots.append(word)
        return line

    @property
    def folder(self) -> Path:
        """Where the report goes."""
        if self.out:
            return Path(self.out).expanduser()
        return Path(self.roots[0]).expanduser() if len(self.roots) == 1 else Path("report")


def run(argv: list[str]) -> int:
    """Report. Raises ConfigError for a mistake on the line, GolfError where there is nothing to report on."""
    if any(word in ("--help", "-h") for word in argv):
        print(PAGE, end="")
        return 0
    from golf.cli.tables import print_table
    from golf.runs.report import gather, markdown, page, tables

    line = Line.parse(argv)
    where = " and ".join(line.roots) or "outputs/ and multirun/"
    runs = filter_runs(find_runs(*line.roots), line.filters)
    if not runs:
        raise GolfError(f"no runs in {where}" + (f" with {' '.join(line.filters)}" if line.filters else ""))
    report = gather(runs, line.metric or None)
    title = line.title or " ".join([where, *line.filters])
    for table in tables(report):
        print_table(table)
    out = line.folder
    for name, text in (("report.md", markdown(report, out, title)), ("report.html", page(report, out, title))):
        _write(out / name, text)
        print(out / name)
    return 0


def _write(path: Path, text: str) -> None:
    """Write whole or not at all. Raises GolfError where that cannot be."""
    try:
        with atomic_writer(path, "w") as file:
            file.write(text)
    except OSError as error:
        raise GolfError(f"cannot write {path}: {error.strerror}: name another folder with --out") from error
