"""Whether a part has what its place asks for, told before it is used."""

from __future__ import annotations

import inspect
from typing import TypeVar

from golf.common.errors import ConfigError

T = TypeVar("T")


def fitted(part: T, protocol: type, key: str) -> T:
    """The part, as one that has every public member of a protocol (or another class). Raises ConfigError naming the key
    that chose it, its class, and what it lacks."""
    wanted: dict[str, None] = {}
    for base in reversed(protocol.__mro__):
        if base.__module__ not in ("builtins", "typing", "abc"):
            wanted |= dict.fromkeys((*inspect.get_annotations(base), *vars(base)))
    if lacking := [name for name in wanted if not name.startswith("_") and not hasattr(part, name)]:
        raise ConfigError(f"{key}: {type(part).__name__} has no {', '.join(lacking)} "
                          f"({protocol.__module__}.{protocol.__qualname__} says what is needed)")  # fmt: skip
    return part
