"""From run folders to a `Report`: what state each run is in, where runs differ, how they rank and how they group."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from golf.common.bounded import open_plain
from golf.common.errors import GolfError
from golf.learn.budget import ARTIFACT_BYTES
from golf.runs.dotted import dig, flatten, key_of, last_parts, telling
from golf.runs.figures import (
    FIGURES,
    FINAL,
    POST_QUANT,
    SCORED_BY,
    SCORES,
    SLIDING,
    Basis,
    basis,
    is_score,
    named,
    says_more,
    sort_out,
)
from golf.runs.report.ablation import Ablation, ablations, is_switch, roles, told_apart
from golf.runs.report.compare import Correlation, Group, fraction_correlations, seed_groups
from golf.runs.report.curves import Curve, read_curves
from golf.runs.states import PRUNED, SCORED, STATES, State
from golf.runs.statistics import pareto_front
from golf.runs.store import Run

MISSING = "–"
"""How a setting that a run does not have is written."""

_POINTS = 60_000  # of all curves together: what a browser draws without a pause
# where a run is logged, how it is called, and what others published for its seed make it no other run
_UNNAMED = ("logger", "local", "name", "tags", "published")


@dataclass
class ReportRun:
    """One run as the report shows it.

    `label` says what tells it from the others, `note` the error line, or the limits it broke. `bases` are what its bpb
    are of; only runs of one `kind` are scored on the same text by the same rules.
    """

    dir: Path
    name: str
    state: State
    note: str
    settings: dict[str, Any]
    overridden: list[str]
    figures: dict[str, float]
    finished: str
    curves: dict[str, Curve]
    limit: int | None = None
    bases: dict[str, Basis | None] = field(default_factory=dict)
    score: float | None = None
    kind: int = 0
    label: str = ""

    @property
    def scored(self) -> bool:
        """Whether it ran to its end, within the limits or not."""
        return self.state in SCORED

    @property
    def ranked(self) -> bool:
        """Whether it is valid and has a score, so that it may be called the best."""
        return self.state == "completed" and self.score is not None


@dataclass
class Report:
    """Runs compared: valid ones best first, then invalid ones, then the rest; the kind with most runs before others.

    `columns` are the settings in which they differ, `implied` those that differ only because one of the columns
    does, `shared` those that all runs have alike; `swept` are the columns but the seed.
    """

    runs: list[ReportRun]
    metric: str
    columns: list[str]
    implied: list[str]
    shared: dict[str, Any]
    figures: list[str]
    limit: int
    front: list[int]
    bar: float | None = None
    """A score to be below: each group over seeds says how likely its mean is not."""
    groups: list[Group] = field(default_factory=list)
    correlations: list[Correlation] = field(default_factory=list)
    ablations: list[Ablation] = field(default_factory=list)

    @property
    def swept(self) -> list[str]:
        return [name for name in self.columns if name not in ("seed", SCORED_BY)]

    def count(self) -> dict[str, int]:
        """How many runs are in each state that occurs."""
        states = [run.state for run in self.runs]
        return {state: states.count(state) for state in STATES if state in states}

    @property
    def best(self) -> ReportRun | None:
        """The valid run with the smallest score."""
        return next((run for run in self.runs if run.ranked), None)


def gather(runs: Sequence[Run], metric: str | None = None, curves: bool = True, bar: float | None = None) -> Report:
    """Read the folders and compare them by `metric` (a bpb of result.json; by default the one that most runs have), and
    with a `bar` where one is given.

    A folder that cannot be read is a failed run and no more; without `curves` no metrics are read. Raises
    GolfError for no runs, and for a metric that none of them has.
    """
    if not runs:
        raise GolfError("no runs to report on")
    names = _names([run.dir for run in runs])
    most = max(40, min(400, _POINTS // len(runs))) if curves else 0
    read = [_read(run, name, most) for run, name in zip(runs, names)]
    known = [*FIGURES, *dict.fromkeys(name for one in read for name in one.figures if name not in FIGURES)]
    metric = metric or _most_common_score(read)
    if metric not in known:
        raise GolfError(f"--metric {metric}: choose from {', '.join(known)}")
    for one in read:
        one.score = one.figures.get(metric) if one.scored else None
    if len(read) > 1 and any(one.scored for one in read) and all(one.score is None for one in read):
        raise GolfError(f"no completed run has {metric}")
    _tell_kinds(read, metric)
    # stable: runs without a score stay in the order found
    read.sort(key=lambda one: (not one.scored, one.state == "invalid", one.score is None, one.kind, one.score or 0.0))
    columns, implied, shared = differing(read)
    scored = [index for index, one in enumerate(read) if one.ranked]
    scored = [index for index in scored if "bytes.artifact" in read[index].figures and read[index].kind == 0]
    points = [(read[index].figures["bytes.artifact"], float(read[index].score or 0.0)) for index in scored]
    limits = {one.limit for one in read if one.limit}
    told = [identity(one, without=("seed",)) for one in read]
    over_fractions = [identity(one, without=("seed", "budget", "budget.fraction", SCORED_BY)) for one in read]
    ablated = ablations(read, told)
    for one, label in zip(read, _run_labels(read, columns, roles(ablated))):
        one.label = label
    return Report(
        runs=read,
        metric=metric,
        columns=columns,
        implied=implied,
        shared=shared,
        figures=_figures(read, metric, known),
        limit=limits.pop() if len(limits) == 1 else ARTIFACT_BYTES,
        bar=bar,
        front=[scored[i] for i in pareto_front(points)],
        groups=seed_groups(read, [_key(one) for one in told], bar),
        correlations=fraction_correlations(read, [_key(one) for one in over_fractions]),
        ablations=ablated,
    )


def show(value: Any) -> str:
    """A setting or a figure as people read it."""
    if value is None or value == "":
        return MISSING
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 100_000 else str(value)
    return value if isinstance(value, str) else json.dumps(value, default=str)


def show_figure(name: str, value: float | None) -> str:
    """A figure with as many digits as it deserves."""
    if value is None:
        return MISSING
    if is_score(name):
        return f"{value:.4f}"
    if name == "quant_gap":
        return f"{value:+.4f}"
    return f"{value:,.1f}" if name.endswith("_s") else f"{value:,.0f}"


def short_names(names: Sequence[str]) -> list[str]:
    """The last parts of dotted names where these are unambiguous; `val_bpb.sliding` is `bpb sliding`."""
    return last_parts([f"bpb {name.rpartition('.')[2]}" if is_score(name) else name for name in names])


def _read(run: Run, name: str, max_points: int) -> ReportRun:
    try:
        record, config = run.record, run.config
        state = run.state
        curves = read_curves(run.folder.metrics, max_points) if max_points else {}
        overridden = run.overridden
        settings = dict(_settings(config, str(run.dir.absolute())))
    except Exception as error:  # whatever lies in the folder, it must not cost the report of the others
        note = f"unreadable: {type(error).__name__}: {error}"
        return ReportRun(run.dir.absolute(), name, "failed", _line(note), {}, [], {}, "", {})
    names = (*FIGURES, *named(record))
    figures = {key: value for key in names if (value := _number(dig(record, key))) is not None}
    return ReportRun(
        dir=run.dir.absolute(),
        name=name,
        state=state,
        note=_line("; ".join(filter(None, [_note(state, record, run.folder.log), *_altered(run)]))),
        settings=settings,
        overridden=overridden,
        figures=figures,
        finished=str(record.get("finished") or ""),
        curves=curves,
        limit=int(limit) if (limit := _number(dig(record, "bytes.limit"))) else None,
        bases={name: basis(record, name) for name in figures if is_score(name)},
    )


def _tell_kinds(runs: Sequence[ReportRun], metric: str) -> None:
    """Number each run's kind, the one with most runs first, and say which it is where there are several."""
    of = [one for one in runs if one.score is not None]
    sorting = sort_out([one.bases.get(metric) for one in of])
    if not sorting.differ:
        return
    for one, number, label in zip(of, sorting.numbers, sorting.labels):
        one.kind, one.settings[SCORED_BY] = number, label


def _note(state: State, record: Mapping[str, Any], log: Path) -> str:
    violations = record.get("violations")
    told = [str(one) for one in violations] if isinstance(violations, list) else []
    if state == "invalid":
        return _line("; ".join(told) or "over a limit")
    if state not in ("failed", "interrupted", "pruned"):
        return ""
    if error := record.get("error"):
        return _line(str(error).removeprefix(PRUNED))
    return _line("; ".join(told)) or _last_line(log) or "died without a word"


def _altered(run: Run) -> list[str]:
    return [f"record altered: {one}" for one in run.disagreements(whole=True)]


def _line(text: str) -> str:
    """The first line that says something, no longer than a reader will read."""
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return first if len(first) <= 400 else first[:399] + "…"


def _last_line(path: Path) -> str:
    try:
        with open_plain(path) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            tail = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    return next((_line(line) for line in reversed(tail.splitlines()) if line.strip()), "")


def _settings(config: Mapping[str, Any], folder: str) -> Iterator[tuple[str, Any]]:
    """The config flat, each group's choice under the group's name, those that phases turn on as well; without what
    names the run's own folder."""
    choices, phases = told_apart(config)
    nested = {key: phases if key == "phases" else value for key, value in config.items() if key != "choices"}
    for name, value in (*flatten(nested), *choices.items()):
        if folder not in str(value):
            yield str(name), value


def differing(runs: Sequence[ReportRun]) -> tuple[list[str], list[str], dict[str, Any]]:
    """The settings that differ (set on the command line first, the seed last), those implied by them, the shared."""
    known = [run for run in runs if run.settings]  # a run without a config says nothing about differences
    names = dict.fromkeys(name for run in known for name in run.settings)
    values = {name: [key_of(run.settings.get(name, MISSING)) for run in known] for name in names}
    shared = {name: known[0].settings.get(name) for name in names if len(set(values[name])) == 1}
    differing = [name for name in names if name not in shared and name.split(".")[0] not in _UNNAMED]
    overridden = dict.fromkeys(name for run in known for name in run.overridden)
    others = [name for name in differing if name != "seed"]
    columns = telling([name for name in overridden if name in others], others, values)
    implied = [name for name in others if name not in columns]
    return columns + ["seed"] * ("seed" in differing), implied, shared


def _figures(runs: Sequence[ReportRun], metric: str, known: Sequence[str]) -> list[str]:
    """The figures that some run has, without those that are the same in all, or another's."""
    kept = []
    final = says_more({name: [run.figures.get(name) for run in runs] for name in (SLIDING, POST_QUANT, FINAL)})
    for name in known:
        if name == FINAL and name != metric and not final:
            continue
        found = {run.figures[name] for run in runs if name in run.figures}
        if name == metric or len(found) > 1 or (found and len(runs) == 1):
            kept.append(name)
    kept.sort(key=lambda name: name != metric)
    return kept


def _most_common_score(runs: Iterable[ReportRun]) -> str:
    scored = [run for run in runs if run.scored]
    return max(SCORES, key=lambda name: sum(name in run.figures for run in scored))


def identity(run: ReportRun, without: Sequence[str]) -> dict[str, Any] | None:
    """The settings that make a run the run it is; None for a run whose config is not known."""
    kept = {k: v for k, v in run.settings.items() if k not in without and k.split(".")[0] not in _UNNAMED}
    return kept if run.settings else None


def _key(settings: dict[str, Any] | None) -> str | None:
    return None if settings is None else key_of(settings)


def _run_labels(runs: Sequence[ReportRun], columns: Sequence[str], parts: Mapping[int, str]) -> list[str]:
    """The name that a run was given and what tells it from the others: `matrix_lr=0.04 seed=2`, `xsa off seed=2`.

    Where that does not tell two runs apart their names are added, and where there is nothing to say they are all.
    """
    short = short_names(columns)
    told = []
    for number, run in enumerate(runs):
        words = [
            f"{label}={show(run.settings[name])}" for name, label in zip(columns, short)
            if name in run.settings and name != SCORED_BY and not (number in parts and is_switch(name))
        ]  # fmt: skip
        given = str(run.settings.get("name") or "")
        told.append(" ".join(word for word in (given, parts.get(number, ""), *words) if word))
    return [
        label if label and told.count(label) == 1 else f"{label} ({run.name})" if label else run.name
        for label, run in zip(told, runs)
    ]


def _names(folders: Sequence[Path]) -> list[str]:
    """Folders below the deepest that holds them all."""
    paths = [path.absolute() for path in folders]
    common = os.path.commonpath([path.parent for path in paths])
    return [path.relative_to(common).as_posix() for path in paths]


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return value
