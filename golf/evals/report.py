"""The report of a detailed evaluation: tables in markdown, and plots where matplotlib is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from golf.common.files import atomic_writer
from golf.common.log import logger
from golf.evals.detail import EXTREMES, LEAST_BYTES, Detail, Row
from golf.evals.evaluators import Score
from golf.tokenizers.base import Tokenizer

INK, ACCENT = "#3a6ea5", "#c8553d"


def write_report(folder: Path, title: str, score: Score, detail: Detail, tokenizer: Tokenizer) -> Path:
    """Write tokens.npz, report.md and the plots into `folder`; the path of report.md.

    Raises GolfError when the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    detail.save(folder / "tokens.npz")
    plots = _plots(folder, detail)
    lines = [f"# {title}", ""]
    lines += [
        f"val_bpb **{score.val_bpb:.4f}**, val_loss {score.val_loss:.4f} nats a token; {score.method}, windows of "
        f"{score.seq_len:,}, stride {score.stride:,}; {score.targets:,} targets, {score.bytes:,} bytes, "
        f"{score.seconds:.1f} s ({score.speed}).",
        "",
        "bpb is a group's own bits over its own bytes; share is its part of all bits."
        + (" gap is what quantization adds, in bits per byte of the whole stream: a table's gaps sum to the whole gap."
           if detail.before is not None else ""),
    ]  # fmt: skip
    for name, rows in (("Token class", detail.by_class()), ("Tokens of context", detail.by_context()),
                       ("Tokens of the document", detail.by_length())):  # fmt: skip
        if not rows:
            continue  # the evaluator does not say
        lines += ["", f"## {name}", "", *_table(name, rows)]
        if name in plots:
            lines += ["", f"![bpb by {name.lower()}]({plots[name]})"]
    worst, best = detail.extremes()
    for name, found in (("worst", worst), ("best", best)):
        lines += ["", f"## The {name} {min(EXTREMES, len(found))} documents (of at least {LEAST_BYTES} bytes)", ""]
        lines += ["| document | bpb | bytes | tokens | begins |", "| ---: | ---: | ---: | ---: | --- |"]
        for number, row in found:
            begins = detail.beginning(number, tokenizer).replace("|", "\\|").replace("`", "'")
            lines.append(f"| {number:,} | {row.bpb:.3f} | {row.bytes:,} | {row.targets:,} | `{begins}` |")
    path = folder / "report.md"
    with atomic_writer(path, "w") as file:
        file.write("\n".join(lines) + "\n")
    return path


def _table(name: str, rows: Sequence[Row]) -> list[str]:
    gaps = any(row.gap is not None for row in rows)
    head = [name.lower(), "targets", "bytes", "nats / token", "bpb", "share", *(["gap"] if gaps else [])]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for row in rows:
        bpb = "" if row.bpb is None else f"{row.bpb:.4f}"
        cells = [row.name, f"{row.targets:,}", f"{row.bytes:,}", f"{row.loss:.4f}", bpb, f"{row.share:.1%}"]
        lines.append("| " + " | ".join(cells + ([f"{row.gap:+.5f}"] if row.gap is not None else [])) + " |")
    return lines


def _plots(folder: Path, detail: Detail) -> dict[str, str]:
    """PNG files by table name; none (and a line in the log) without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        logger.info("no plots: matplotlib is not installed (pip install matplotlib)")
        return {}
    made = {}
    for name, file, rows, joined in (
        ("Token class", "by_class.png", detail.by_class(), False),
        ("Tokens of context", "by_context.png", detail.by_context(), True),
        ("Tokens of the document", "by_length.png", detail.by_length(), True),
    ):
        if not rows:
            continue
        with atomic_writer(folder / file) as out:
            _plot(out, name, rows, joined)
        made[name] = file
    return made


def _plot(out: Any, name: str, rows: Sequence[Row], joined: bool) -> None:
    """bpb by group, under it each group's share of all bits, and what quantization adds where that is known."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # type: ignore[import-not-found]
    from matplotlib.figure import Figure  # type: ignore[import-not-found]

    labels, places = [row.name for row in rows], range(len(rows))
    panels: list[tuple[str, list[float | None], str]] = [
        ("bits per byte", [row.bpb for row in rows], INK), ("share of all bits, %", [100 * r.share for r in rows], INK),
    ]  # fmt: skip
    if any(row.gap is not None for row in rows):
        panels.append(("gap of quantization,\nmillibits per byte", [1e3 * (row.gap or 0.0) for row in rows], ACCENT))
    figure = Figure(figsize=(max(6.0, 0.62 * len(rows) + 2), 2.3 * len(panels) + 0.8), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (label, values, color) in zip(figure.subplots(len(panels), 1, sharex=True), panels, strict=True):
        known = [(place, value) for place, value in zip(places, values, strict=True) if value is not None]
        if joined and label == "bits per byte":
            axes.plot(*zip(*known, strict=True), color=color, marker="o", markersize=4)
        else:
            axes.bar(*zip(*known, strict=True), color=color, width=0.65)
        axes.set_ylabel(label, fontsize=9)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    axes.set_xticks(list(places), labels, rotation=30, ha="right", fontsize=8)
    axes.set_xlabel(name.lower(), fontsize=9)
    figure.savefig(out, format="png", dpi=140)
