"""Runs as a table: the settings in which they differ, and their figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from golf.runs.dotted import flatten, last_parts, telling
from golf.runs.figures import (
    FINAL,
    POST_QUANT,
    PRE_QUANT,
    SCORED_BY,
    SCORES,
    SLIDING,
    is_score,
    says_more,
)
from golf.runs.filters import number, show
from golf.runs.store import FIGURES, Run, sorting
from golf.runs.tables import ALL, Column, Table

_MISSING = object()


def runs_table(runs: Sequence[Run], max_settings: int = 8, columns: str = "") -> Table:
    """A table of runs: name, state, the settings in which they differ, and the final figures.

    Settings that all runs share, and those that only follow from another, are left out and counted in the caption; of
    more than `max_settings` those set on the command line come first. `columns`: the names of those to show, `all`
    without such a limit; any dotted name that some run has is one. Raises ConfigError for another.
    """
    flat = [dict(flatten(run.config)) for run in runs]
    wanted = [word for part in columns.split(",") if (word := part.strip())]
    settings, shared, more = _differing(runs, flat, len(flat[0]) if wanted and flat else max_settings)
    values = {name: [run.get(name) for run in runs] for name in FIGURES}
    figures = [
        name for name, found in values.items() if any(map(number, found)) and (name != FINAL or says_more(values))
    ]
    caption = f"{len(runs)} runs; {shared} settings are the same in all" if len(runs) > 1 else ""
    score = next((name for name in SCORES if name in figures), FINAL)
    scored = [run for run in runs if number(run.get(score))]
    kinds = sorting(scored, score)
    labels = {run.dir: label for run, label in zip(scored, kinds.labels)} if kinds.differ else {}
    if labels:
        caption += f"; only runs of one `{SCORED_BY}` compare in {score}"
    altered = {run.dir for run in runs if run.disagreements()}
    if altered:
        caption += "; a record that is altered does not agree with its parts: golf runs show DIR"
    table = Table(
        Column("run", right=False, shorten=True),
        Column("state", right=False),
        *(Column(head, name=name, style="cyan", shorten=True) for name, head in zip(settings, last_parts(settings))),
        *([Column(SCORED_BY, right=False, shorten=True)] if labels else []),
        *(Column(name.removeprefix("val_"), name=name, drop=_drop(name, figures)) for name in figures),
        *([Column("record", right=False)] if altered else []),
        caption=caption + (f"; {more} more differ: --columns {ALL}" if more else ""),
        elsewhere=f"--columns {ALL} or --columns NAME,…",
    )
    known = {column.name for column in table.columns} | set(last_parts(settings))
    others = [name for name in wanted if name not in known and any(_plain(run.get(name, {})) for run in runs)]
    table.columns += [Column(name, shorten=True) for name in others]
    for run, values in zip(runs, flat):
        cells = [show(values.get(name)) for name in settings]
        cells += [labels.get(run.dir, "")] if labels else []
        cells += [_figure(name, run.get(name)) for name in figures]
        cells += ["altered" if run.dir in altered else ""] if altered else []
        style = {"invalid": "yellow", "interrupted": "yellow", "failed": "red"}.get(run.state)
        table.add_row(run.name, run.state, *cells, *(show(run.get(name)) for name in others), style=style)
    if wanted:
        table.choose(columns)
    return table


def _drop(name: str, figures: Sequence[str]) -> int:
    """How soon a figure may be left out: never the score that runs are ranked by."""
    score = next((one for one in SCORES if one in figures), "")
    order = (SLIDING, POST_QUANT, "bytes.artifact", "train_time_s", PRE_QUANT, "steps")
    return 0 if name == score else 1 + order.index(name)


def _figure(name: str, value: Any) -> str:
    """A final figure: bpb to the fourth place, whatever its last digits are."""
    return f"{value:.4f}" if is_score(name) and number(value) else show(value)


def _differing(runs: Sequence[Run], flat: Sequence[dict[str, Any]], most: int) -> tuple[list[str], int, int]:
    """The settings to show, how many are shared, and how many more differ."""
    names = list(dict.fromkeys(name for values in flat for name in values))
    shared = {name for name in names if all(values.get(name, _MISSING) == flat[0].get(name) for values in flat)}
    folders = [str(run.dir.absolute()) for run in runs]
    differing = [
        name
        for name in names
        if name not in shared
        and not name.startswith("published.")  # what others came to with its seed is no setting of a run
        # a run's own folder differs always and says nothing
        and not any(folder in str(values.get(name)) for folder, values in zip(folders, flat))
    ]
    chosen = {name for run in runs for name in run.overridden}
    first = [name for name in differing if name.removeprefix("choices.") in chosen]
    values = {name: [str(one.get(name)) for one in flat] for name in differing}
    shown = telling(first, differing, values)[:most]
    return shown, len(shared), len(differing) - len(shown)


def _plain(value: Any) -> bool:
    return not isinstance(value, dict)
