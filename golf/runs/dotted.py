"""Settings and figures of runs by dotted name: read out of nested dicts, shortened, and those that tell runs apart."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def telling(first: Sequence[str], names: Sequence[str], values: Mapping[str, Sequence[str]]) -> list[str]:
    """The settings `first`, then those of `names` whose values (one a run) don't follow from a setting before them.

    A class's name follows from its option, and nothing from a seed.
    """
    columns = list(first)
    for name in names:
        if name in columns or name.endswith("_target_"):
            continue
        if not any(_follows(values[name], values[column]) for column in columns if column != "seed"):
            columns.append(name)
    return columns


def _follows(values: Sequence[str], other: Sequence[str]) -> bool:
    """Whether `values` are a function of `other`."""
    return len(set(zip(other, values, strict=True))) == len(set(other))


def last_parts(names: Sequence[str]) -> list[str]:
    """The last parts of dotted names, and of groups within groups, where these are unambiguous, else the names."""
    tails = [re.split(r"[./]", name)[-1] for name in names]
    return [tail if tails.count(tail) == 1 else name for name, tail in zip(names, tails)]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested dicts, by dotted name; `_partial_` is no setting."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from flatten(value, name + ".")
        elif key != "_partial_":
            yield name, value


def dig(tree: Any, key: str, default: Any = None) -> Any:
    """What nested dicts have under a dotted name."""
    for part in key.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return default
        tree = tree[part]
    return tree


def of_kind(value: Any, kind: type[T]) -> T:
    """A part of a record that should be a dict or a list; an empty one where it is none."""
    return value if isinstance(value, kind) else kind()


def key_of(value: Any) -> str:
    """A value as a key to compare by: 1 and 1.0 are two spellings of one number."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, sort_keys=True, default=str)
