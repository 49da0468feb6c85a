"""What a Protocol promises, told of a part that is not golf's own."""

from __future__ import annotations

import inspect
from typing import Any


def lacking(protocol: type, part: Any, methods: bool = False) -> list[str]:
    """The names that a Protocol has and a part has not; methods: those of its methods alone, so that the part may be a
    class, whose instances get their attributes later."""
    wanted = {name for name in (*inspect.get_annotations(protocol), *vars(protocol)) if not name.startswith("_")}
    if methods:
        wanted = {name for name in wanted if inspect.isfunction(vars(protocol).get(name))}
    return sorted(name for name in wanted if not hasattr(part, name))
