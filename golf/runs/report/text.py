"""The report as tables for a terminal, and as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from golf.common.shown import plain_text
from golf.runs.figures import FINAL, POST_QUANT, PRE_QUANT, SCORED_BY, SLIDING
from golf.runs.report.ablation import BASELINE, arm_name
from golf.runs.report.compare import Group
from golf.runs.report.gather import MISSING, Report, ReportRun, short_names, show, show_figure
from golf.runs.report.links import link_to
from golf.runs.tables import ALL, Column, Table

FEW = 10
"""Settings below which a rank correlation says little."""

_FIRST_TO_GO = (
    "tokens", "steps", "quant_gap", PRE_QUANT, "train_time_s", "bytes.artifact", POST_QUANT, SLIDING, FINAL,
)  # fmt: skip
"""Figures in the order in which a narrow terminal leaves them out; never the metric."""

_LESSER = {"seeds": 1, "p": 2, "± s.d.": 3}
"""Columns over seeds that a narrow terminal leaves out, the largest first."""

_STYLES = {"failed": "red", "interrupted": "yellow", "invalid": "yellow", "pruned": "yellow", "running": "cyan"}


def headline(report: Report) -> str:
    """One line: how many runs, in which states, and the best of them."""
    states = report.count()
    told = f"{len(report.runs)} run{'s' * (len(report.runs) != 1)}"
    if set(states) != {"completed"}:
        told += ": " + ", ".join(f"{count} {state}" for state, count in states.items())
    if (best := report.best) is not None:
        told = f"{told}. Best {report.metric}: {show_figure(report.metric, best.score)} ({_named(best)})"
        others = sum(run.score is not None and run.kind != best.kind for run in report.runs)
        if not others:
            return told
        return f"{told}, {best.settings[SCORED_BY]}; {others} scored on other text or by other rules are ranked apart"
    if (least := next((run for run in report.runs if run.score is not None), None)) is not None:
        score = show_figure(report.metric, least.score)
        told += f". None is valid; the least {report.metric} is an invalid run's: {score} ({_named(least)})"
    return told


def _named(run: ReportRun) -> str:
    """The folder to find a run in, and what tells it from the others."""
    label = run.label.removesuffix(f" ({run.name})")
    return run.name if label == run.name else f"{run.name}: {label}"


def tables(report: Report, max_settings: int = 8, max_notes: int = 20, columns: str = "") -> list[Table]:
    """Tables: the runs best first, then what went wrong, the seeds and the fractions where there are any.

    `columns` are those of the first one, by name, or `all`. Raises ConfigError for a name that is none.
    """
    found = [_runs(report, max_settings, columns)]
    if noted := [run for run in report.runs if run.note]:
        told = f"{len(noted) - max_notes} more are in the report" if len(noted) > max_notes else ""
        rows = [[run.name, run.state, run.note] for run in noted[:max_notes]]
        found.append(_table("what went wrong", ("run", "state", "why"), rows, left=3, caption=told))
    if grid := grid_rows(report):
        found.append(_table("two settings", *grid, left=0, caption=grid_footnote(report)))
    found += ablation_tables(report)
    if report.groups:
        header, rows = seed_rows(report, max_settings)
        found.append(_table("over seeds", header, rows, left=0, caption=seed_footnote(report)))
    if report.correlations:
        header, rows = fraction_rows(report)
        caption = fraction_footnote(report)
        found.append(_table("what a fraction foretells", header, rows, left=0, caption=caption))
    return found


def ablation_tables(report: Report) -> list[Table]:
    """What each technique is worth, where runs say it."""
    if not report.ablations:
        return []
    header, rows = ablation_rows(report)
    return [_table("ablation", header, rows, left=ablation_left(report), caption=ablation_footnote(report))]


def markdown(report: Report, out: Path, title: str) -> str:
    """The report as Markdown, links relative to the folder `out`."""
    names = [*report.columns, *report.figures]
    header = ["run", "state", *short_names(names)]
    rows = [
        [f"[{_plain(run.name)}]({link_to(run.dir, out)})", run.state, *map(_plain, _values(report, run))]
        for run in report.runs
    ]
    parts = [f"# {_plain(title)}", _plain(headline(report)) + ".", _markdown_table(header, rows, left=2)]
    if noted := [run for run in report.runs if run.note]:
        rows = [[_plain(run.name), run.state, _plain(run.note)] for run in noted]
        parts += ["## What went wrong", _markdown_table(["run", "state", "why"], rows, left=3)]
    for heading, told, footnote in (
        ("Two settings", grid_rows(report), grid_footnote(report)),
        ("Ablation", ablation_rows(report) if report.ablations else None, ablation_footnote(report)),
        ("Over seeds", seed_rows(report) if report.groups else None, seed_footnote(report)),
        (
            "What a fraction foretells",
            fraction_rows(report) if report.correlations else None,
            fraction_footnote(report),
        ),
    ):
        if told:
            plain = [list(map(_plain, row)) for row in told[1]]
            parts += [f"## {heading}", _markdown_table(list(told[0]), plain, left=0), footnote]
    if report.front:
        rows = [
            [_plain(run.name), show_figure("bytes.artifact", run.figures["bytes.artifact"]),
             show_figure(report.metric, run.score)]
            for run in (report.runs[i] for i in report.front)
        ]  # fmt: skip
        parts += ["## Pareto front", _markdown_table(["run", "artifact bytes", report.metric], rows, left=1)]
    return plain_text("\n\n".join(part for part in parts if part) + "\n")


def grid_rows(report: Report) -> tuple[list[str], list[list[str]]] | None:
    """Header and rows of the first swept setting against the second, mean scores; None unless two are swept.

    A cell none of whose runs is valid stands in brackets.
    """
    if len(report.swept) != 2:
        return None
    cells: dict[tuple[str, ...], list[ReportRun]] = {}
    for run in report.runs:
        cells.setdefault(tuple(_labels(run, report.swept)), []).append(run)
    down, across = (_in_order(run.settings.get(name, MISSING) for run in report.runs) for name in report.swept)
    if len(down) < 2 or len(across) < 2:
        return None
    names = short_names(report.swept)
    return [f"{names[0]} \\ {names[1]}", *across], [
        [row, *(_cell(cells.get((row, at), [])) for at in across)] for row in down
    ]


def grid_footnote(report: Report) -> str:
    """What a cell holds."""
    return f"{report.metric}, the mean over seeds; in brackets where no run is valid."


def _in_order(values: Iterable[Any]) -> list[str]:
    """Distinct values as shown, numbers by size."""
    distinct = {show(value): value for value in values}
    numbers = all(isinstance(value, (int, float)) for value in distinct.values())
    return sorted(distinct, key=distinct.__getitem__) if numbers else sorted(distinct)


def _cell(runs: Sequence[ReportRun]) -> str:
    valid = [run.score for run in runs if run.ranked and run.score is not None]
    scores = valid or [run.score for run in runs if run.score is not None]
    if not scores:
        return MISSING
    return f"{sum(scores) / len(scores):.4f}" if valid else f"({sum(scores) / len(scores):.4f})"


def seed_rows(report: Report, max_settings: int | None = None) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table over seeds: the settings that tell groups apart, n, mean, deviation, p, a mark."""
    swept = group_settings(report)[:max_settings]
    header = [*short_names(swept), "seeds", f"mean {short_names([report.metric])[0]}", "± s.d.", "Δ ± 95 %", "p", ""]
    rows = [[*group_label(report, group, swept), *_group_figures(group)] for group in report.groups]
    if report.bar is not None:
        header.append(f"p below {report.bar:g}")
        rows = [[*row, _p(group.below)] for row, group in zip(rows, report.groups)]
    return header, rows


def seed_footnote(report: Report) -> str:
    """What p and its mark mean here."""
    bar = "" if report.bar is None else f"p below {report.bar:g}: one-sided t-test of the mean against that number."
    if not any(group.p is not None for group in report.groups):
        return bar
    count = sum(group.p is not None for group in report.groups)
    return (
        "Δ and p: to the best valid group with two seeds or more, Welch's interval and two-sided t-test; "
        f"* ** ***: below 0.05, 0.01, 0.001 after Holm's correction for {count} test{'s' * (count > 1)}."
        f"{' ' * bool(bar)}{bar}"
    )


def ablation_rows(report: Report) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of techniques: each baseline, then each of its techniques off, Δ to the baseline.

    Where there are several baselines the settings in which they differ come first.
    """
    differing = ablation_settings(report)
    header = [
        *short_names(differing),
        "technique",
        "seeds",
        short_names([report.metric])[0],
        "± s.d.",
        "Δ ± 95 %",
        "p",
        "",
    ]
    rows = []
    for one in report.ablations:
        for name, group in ((BASELINE, one.baseline), *((arm_name(switch), arm) for switch, arm in one.arms.items())):
            label = group_label(report, one.baseline, differing)
            rows.append([*label, name, *_group_figures(group)])
    return header, rows


def ablation_settings(report: Report) -> list[str]:
    """The settings in which the baselines differ."""
    labels = [group_label(report, one.baseline, report.swept) for one in report.ablations]
    return [name for i, name in enumerate(report.swept) if len({label[i] for label in labels}) > 1]


def ablation_left(report: Report) -> int:
    """How many of the first columns of the table of techniques hold words."""
    return len(ablation_settings(report)) + 1


def ablation_footnote(report: Report) -> str:
    """What Δ says."""
    if not report.ablations:
        return ""
    told = f"Δ: {report.metric} without the technique less the baseline's; above 0 the technique helps."
    if any(arm.p is not None for one in report.ablations for arm in one.arms.values()):
        return told + " ±: Welch's 95 % interval; p: his two-sided t-test, * ** *** after Holm's correction."
    return told + " Seeds, such as seed=1,2,3, would say how much of it is chance."


def fraction_rows(report: Report) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of rank correlations between fractions of the budget."""
    rows = [
        [_fraction(one.low), _fraction(one.high), str(one.settings), MISSING if one.rho is None else f"{one.rho:+.2f}",
         MISSING if one.interval is None else "{:+.2f} to {:+.2f}".format(*one.interval),
         f"{one.place:g} of {one.settings}"]
        for one in report.correlations
    ]  # fmt: skip
    return ["fraction", "foretells", "n", "Spearman's rho", "95 %", "its best comes"], rows


def fraction_footnote(report: Report) -> str:
    """What rho says, and how far to trust it."""
    if not report.correlations:
        return ""
    few = sum(one.settings < FEW for one in report.correlations)
    told = (
        "rho: rank correlation over the n settings that ran at both fractions, seeds averaged; 1 is the same order. "
        "Last, the place at the larger fraction of the setting that was best at the smaller. "
    )
    if few:
        rows = f"{few} of {len(report.correlations)} rows"
        told += f"With n below {FEW} ({rows}) the interval is rough, and chance is large. "
    return told + "After a halving only the best of a rung have both, which makes rho smaller than it is over all."


def group_settings(report: Report) -> list[str]:
    """The settings in which the groups over seeds differ."""
    labels = [group_label(report, group, report.swept) for group in report.groups]
    return [name for i, name in enumerate(report.swept) if len({label[i] for label in labels}) > 1]


def group_label(report: Report, group: Group, settings: Sequence[str]) -> list[str]:
    """The group's values of the settings."""
    return _labels(report.runs[group.runs[0]], settings)


def _labels(run: ReportRun, settings: Sequence[str]) -> list[str]:
    return [show(run.settings.get(name, MISSING)) for name in settings]


def _group_figures(group: Group) -> list[str]:
    n, mean, sd = group.spread
    off = "" if group.off is None else f"{group.off.mean:+.4f}"
    if group.off is not None and group.off.half is not None:
        off += f" ± {group.off.half:.4f}"
    sign = "best" if group.best else group.mark
    return [
        str(n), f"{mean:.4f}", MISSING if sd is None else f"{sd:.4f}", off or MISSING,
        _p(group.p), sign if group.valid else f"{sign} invalid".strip(),
    ]  # fmt: skip


def _p(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2g}"


def _values(report: Report, run: ReportRun, max_settings: int | None = None) -> list[str]:
    return _labels(run, report.columns[:max_settings]) + [
        show_figure(name, run.figures.get(name)) for name in report.figures
    ]


def _runs(report: Report, max_settings: int, columns: str) -> Table:
    settings = report.columns if columns else report.columns[:max_settings]
    caption = headline(report)
    if hidden := len(report.columns) - len(settings):
        caption += f"; {hidden} more settings differ: --columns {ALL}"
    heads = short_names([*settings, *report.figures])
    order = [name for name in _FIRST_TO_GO if name in report.figures and name != report.metric]
    table = Table(
        Column("run", right=False, shorten=True),
        Column("state", right=False),
        *(Column(head, name=name, style="cyan", shorten=True) for name, head in zip(settings, heads)),
        *(
            Column(head, name=name, drop=0 if name not in order else len(order) - order.index(name))
            for name, head in zip(report.figures, heads[len(settings) :])
        ),
        caption=caption,
        elsewhere=f"--columns {ALL} or --columns NAME,…",
    )
    for run in report.runs:
        style = "bold" if run is report.best else _STYLES.get(run.state)
        table.add_row(run.name, run.state, *_values(report, run, len(settings)), style=style)
    if columns:
        table.choose(columns)
    return table


def _fraction(value: float) -> str:
    """0.015625 as 1/64."""
    whole = round(1 / value) if value > 0 else 1
    return f"1/{whole}" if whole > 1 and abs(whole * value - 1) < 1e-9 else show(value)


def _table(title: str, header: Iterable[str], rows: Iterable[Sequence[str]], left: int, caption: str = "") -> Table:
    """A small table whose first `left` columns hold text."""
    table = Table(
        *(
            Column(name, right=number >= left, shorten=not number, prose=name == "why", drop=_LESSER.get(name, 0))
            for number, name in enumerate(header)
        ),
        title=title,
        caption=caption,
    )
    for row in rows:
        table.add_row(*row)
    return table


def _markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> str:
    rule = ["---" if number < left else "---:" for number in range(len(header))]
    return "\n".join("| " + " | ".join(row) + " |" for row in ([*map(_plain, header)], rule, *rows))


def _plain(text: str) -> str:
    """Text that Markdown shows as it stands, on one line."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\|`*_\[\]~$])", r"\\\1", text)
