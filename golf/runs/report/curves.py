"""Training curves, thinned as they are read: a report draws hundreds of runs, a screen has a thousand columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from golf.common.bounded import parse_json, read_bytes
from golf.runs.folder import AXES

CURVES = ("train_loss", "val_loss", "val_bpb")
"""The metrics that are drawn."""
MEANS = {"train_loss": "train_loss_mean"}
"""What a row has beside a metric of one step: its mean since the row before. It is drawn where it is there."""

MOST_CURVES = 1 << 29
"""Bytes of a metrics.jsonl that is drawn."""
Curve = dict[str, list[float | None]]
"""`y` over each of AXES, lists of one length."""

T = TypeVar("T")


def read_curves(path: Path, max_points: int) -> dict[str, Curve]:
    """The curves of a metrics.jsonl, each of at most `max_points` points (4 at least).

    Of a longer curve the lowest and highest point of each stretch are kept, so that a spike survives. Broken
    lines are passed over and a missing file has no curves.
    """
    try:
        lines = read_bytes(path, MOST_CURVES).splitlines()
    except (OSError, ValueError):
        return {}
    # parsing is what takes time, so rows are chosen before it; those of validation are rare and all wanted
    scored = [b'"val_' in line for line in lines]
    most = 4 * max_points
    chosen = set(_evenly([i for i, found in enumerate(scored) if found], most))
    chosen.update(_evenly([i for i, found in enumerate(scored) if not found], most))
    rows = [row for i in sorted(chosen) if (row := _row(lines[i])) is not None]
    curves = {}
    for name in CURVES:
        mean = MEANS.get(name, name)
        measured = [(row, y) for row in rows if _finite(y := row[mean] if _finite(row.get(mean)) else row.get(name))]
        if measured:
            kept = thin([float(y) for _, y in measured], max_points)
            curve: Curve = {"y": [_short(measured[i][1], 6) for i in kept]}
            for axis in AXES:
                curve[axis] = [_short(measured[i][0].get(axis), 8) for i in kept]
            curves[name] = curve
    return curves


def thin(values: Sequence[float], most: int) -> list[int]:
    """Indices of at most `most` values (4 at least): the first, the last, and each stretch's smallest and largest."""
    most = max(4, most)
    n = len(values)
    if n <= most:
        return list(range(n))
    stretches = (most - 2) // 2
    kept = {0, n - 1}
    for number in range(stretches):
        stretch = range(1 + number * (n - 2) // stretches, 1 + (number + 1) * (n - 2) // stretches)
        kept.add(min(stretch, key=values.__getitem__))
        kept.add(max(stretch, key=values.__getitem__))
    return sorted(kept)


def _evenly(items: Sequence[T], most: int) -> list[T]:
    if len(items) <= most:
        return list(items)
    return [items[i * (len(items) - 1) // (most - 1)] for i in range(most)]


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = parse_json(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _short(value: Any, digits: int) -> float | None:
    """A number with no more digits than a drawing can show; whole numbers as they are."""
    if not _finite(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.{digits}g}")
