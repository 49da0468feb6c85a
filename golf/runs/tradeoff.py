"""A picture of bits per byte against bytes: what quantizers and codecs make of one run's weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from golf.common.files import atomic_writer
from golf.common.log import logger

MARKERS = "osD^vPX*"


class Point(NamedTuple):
    """One artifact with the code beside it: the quantizer's settings and the codec in words, bytes, bits per byte."""

    settings: str
    codec: str
    bytes: int
    bpb: float


def plot(path: Path, points: Sequence[Point], before: float | None, limit: int | None) -> Path | None:
    """Write a PNG: a color for each quantizer, a marker for each codec, lines at the limit and at the bpb `before`
    quantization; its path, or None (and a line in the log) without matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        logger.info("no plot: matplotlib is not installed (pip install matplotlib)")
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # type: ignore[import-not-found]
    from matplotlib.figure import Figure  # type: ignore[import-not-found]

    figure = Figure(figsize=(8.0, 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    settings, codecs = (list(dict.fromkeys(one[which] for one in points)) for which in (0, 1))
    for point in points:
        color, marker = f"C{settings.index(point.settings) % 10}", MARKERS[codecs.index(point.codec) % len(MARKERS)]
        axes.plot(
            point.bytes / 1e6, point.bpb, marker, color=color, markersize=7, label=f"{point.settings}, {point.codec}"
        )
    if before is not None:
        axes.axhline(before, color="#888888", linewidth=1, linestyle="--", label="before quantization")
    if limit is not None and limit <= 1.25 * max(point.bytes for point in points):
        axes.axvline(limit / 1e6, color="#c0392b", linewidth=1, label=f"limit, {limit:,}")
    axes.set_xlabel("artifact and code, MB")
    axes.set_ylabel("bits per byte")
    axes.margins(0.08)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    with atomic_writer(path) as out:
        figure.savefig(out, format="png", dpi=140)
    return path
