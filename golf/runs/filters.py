"""Filter expressions, such as `val_bpb.sliding<1.2`, and the values they compare."""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

from golf.common.errors import GolfError

_EXPRESSION = re.compile(r"\s*([A-Za-z_][\w./-]*)\s*(<=|>=|!=|==|=|<|>)\s*(.*?)\s*", re.DOTALL)
_ORDER: dict[str, Callable[[float, float], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


def parse(expression: str) -> tuple[str, Callable[[Any], bool]]:
    """A filter expression as its name and a test of the value found there. Raises GolfError for one that is none."""
    match = _EXPRESSION.fullmatch(expression)
    if match is None or not match.group(3):
        raise GolfError(f"{expression!r} is no filter: write name=value, or one of != < <= > >= (val_bpb.sliding<1.2)")
    key, operator, text = match.groups()
    if operator in _ORDER:
        bound = scalar(text)
        if not number(bound):
            raise GolfError(f"{expression!r}: {operator} compares numbers, and {text!r} is none")
        compare = _ORDER[operator]
        return key, lambda value: number(value) and compare(float(value), float(bound))
    wanted = [scalar(text), *(scalar(part) for part in text.split(","))]
    if operator == "!=":
        return key, lambda value: not any(_equal(value, one) for one in wanted)
    return key, lambda value: any(_equal(value, one) for one in wanted)


def _equal(value: Any, wanted: Any) -> bool:
    if isinstance(value, list):
        return any(_equal(one, wanted) for one in value)
    if number(value) and number(wanted):
        return float(value) == float(wanted)
    if isinstance(value, (bool, type(None))) or isinstance(wanted, (bool, type(None))):
        return value is wanted
    return fnmatchcase(show(value) if not isinstance(value, float) else repr(value), str(wanted))


def scalar(text: str) -> Any:
    """A word of a command line as what it means: null, true, false, a number, or itself."""
    word = text.strip()
    if word in ("null", "None", "~"):
        return None
    if word.lower() in ("true", "false"):
        return word.lower() == "true"
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word.strip("'\"")


def number(value: Any) -> bool:
    """Whether a value is a number; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def show(value: Any) -> str:
    """A setting or a figure in a cell."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.5g}"
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 100_000 else str(value)
