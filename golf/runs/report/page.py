"""The report as one HTML file that opens from disk: data, style, script and plotly are all inside."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from golf.runs.report.gather import MISSING, Report, ReportRun, short_names, show
from golf.runs.report.links import link_to
from golf.runs.report.text import (
    ablation_footnote,
    ablation_left,
    ablation_rows,
    fraction_footnote,
    fraction_rows,
    group_settings,
    headline,
    seed_footnote,
    seed_rows,
)


def page(report: Report, out: Path, title: str) -> str:
    """The page, self-contained; links to the runs are relative to the folder `out`.

    Whatever comes from a run folder travels as JSON and reaches the document as text, never as markup.
    """
    from plotly.offline import get_plotlyjs

    parts = {
        "TITLE": html.escape(title),
        "HEADLINE": html.escape(headline(report)),
        "STYLE": _part("page.css"),
        "DATA": _embedded(page_data(report, out)),
        "PLOTLY": get_plotlyjs(),
        "TABLE_SCRIPT": _part("table.js"),
        "PLOT_SCRIPT": _part("plots.js"),
    }
    # the pieces between the places are joined, not replaced in turn: data that spells a place's name stays data
    text = _part("page.html")
    found, rest = "", text
    while rest:
        before, _, after = rest.partition("{{")
        name, _, rest = after.partition("}}")
        found += before + (parts[name] if name else "")
    return found


def page_data(report: Report, out: Path) -> dict[str, Any]:
    """What the page shows, as JSON types."""
    settings = [*report.columns, *report.implied]
    names = [*settings, *report.figures]
    labels = short_names(names)
    columns = [
        {
            "key": name,
            "label": label,
            "kind": "figure" if number >= len(settings) else "setting",
            "implied": len(report.columns) <= number < len(settings),
        }
        for number, (name, label) in enumerate(zip(names, labels))
    ]
    seeds = ablation = fractions = None
    if report.groups:
        best = [group.best for group in report.groups]
        seeds = _told(seed_rows(report), seed_footnote(report), len(group_settings(report)), best)
    if report.ablations:
        baselines = [arm == 0 for one in report.ablations for arm in range(1 + len(one.arms))]
        ablation = _told(ablation_rows(report), ablation_footnote(report), ablation_left(report), baselines)
    if report.correlations:
        fractions = _told(fraction_rows(report), fraction_footnote(report), 0)
    return {
        "metric": {"key": report.metric, "label": short_names([report.metric])[0]},
        "columns": columns,
        "swept": report.swept,
        "runs": [_run(report, run, settings, out) for run in report.runs],
        "states": report.count(),
        "front": report.front,
        "limit": report.limit,
        "seeds": seeds,
        "ablation": ablation,
        "fractions": fractions,
        "shared": [[name, show(value)] for name, value in sorted(report.shared.items())],
    }


def _told(
    table: tuple[list[str], list[list[str]]], note: str, left: int, bold: list[bool] | None = None
) -> dict[str, Any]:
    """A table as text: the first `left` columns are words, the `bold` rows stand out."""
    return {"header": table[0], "rows": table[1], "note": note, "left": left, "bold": bold or []}


def _run(report: Report, run: ReportRun, settings: list[str], out: Path) -> dict[str, Any]:
    values = [_cell(run.settings.get(name, MISSING)) for name in settings]
    return {
        "name": run.name,
        "label": run.label,
        "href": link_to(run.dir, out),
        "state": run.state,
        "note": run.note,
        "score": run.score,
        "values": values + [run.figures.get(name) for name in report.figures],
        "bytes": run.figures.get("bytes.artifact"),
        "curves": run.curves,
    }


def _cell(value: Any) -> Any:
    """A number as itself, so that it sorts and plots as one; everything else as the text people read."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    return show(value)


def _embedded(value: Any) -> str:
    """JSON that cannot end the script element it stands in, nor open another."""
    text = json.dumps(_finite(value), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(value: Any) -> Any:
    """NaN and infinities, which JSON lacks, as their names."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def _part(name: str) -> str:
    return (files("golf.runs.report") / name).read_text(encoding="utf-8")
