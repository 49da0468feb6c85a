"""A run's components as Python: what its config names, called with what it says; the root of an exported file."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from types import ModuleType
from typing import Any

from golf.common.errors import GolfError


class Names:
    """The imports of a root module: each class or function that is written, once, under a name of its own."""

    def __init__(self, taken: Sequence[str] = ()) -> None:
        self._by_object: dict[tuple[str, str], str] = {}
        self._taken = set(taken)

    def of(self, thing: Any, told: str) -> str:
        """The name of a class or function. Raises GolfError for one that no import finds."""
        module, name = thing.__module__, thing.__qualname__
        if module == "__main__":
            raise GolfError(f"{told}: {name} is defined in __main__ or a notebook: put it into a file of its own")
        if "." in name:
            raise GolfError(f"{told}: {module}.{name} is defined within another class or function: put it on top")
        return self._given(module, name)

    def constant(self, module: ModuleType, value: object) -> str:
        """The name of a value that a module has."""
        return self._given(module.__name__, next(name for name, one in vars(module).items() if one is value))

    def _given(self, module: str, name: str) -> str:
        if (module, name) not in self._by_object:
            free = name
            while free in self._taken:
                free += "_"
            self._taken.add(free)
            self._by_object[module, name] = free
        return self._by_object[module, name]

    @property
    def imports(self) -> str:
        """The lines that bind them."""
        return "\n".join(
            f"from {module} import {name}" + ("" if name == given else f" as {given}")
            for (module, name), given in sorted(self._by_object.items())
        )


class Writer:
    """Writes nodes of a config, and plain values, as expressions. located: the full name of what a config names."""

    def __init__(self, names: Names, located: Callable[[str], str] = str) -> None:
        self.names, self.located = names, located

    def node(self, node: Any, told: str, more: Mapping[str, str] | None = None, call: bool = False) -> str:
        """A node by Hydra's rules: `_target_` is called, or with `_partial_` given as a partial; call: called all the
        same. more: further arguments, written already. Raises GolfError."""
        if isinstance(node, list):
            return f"[{', '.join(self.node(one, told) for one in node)}]"
        if not isinstance(node, dict):
            return self.value(node, told)
        if "_target_" not in node:
            return "{" + ", ".join(f"{name!r}: {self.node(one, f'{told}.{name}')}" for name, one in node.items()) + "}"
        words = {name: self.node(one, f"{told}.{name}") for name, one in node.items() if not name.startswith("_")}
        if odd := {name for name in node if name.startswith("_")} - {"_target_", "_partial_", "_convert_"}:
            raise GolfError(f"{told}.{min(odd)}: what Hydra makes of it cannot be exported")
        name = self.names.of(found(self.located(node["_target_"]), told), told)
        given = [f"{key}={text}" for key, text in {**words, **(more or {})}.items()]
        if node.get("_partial_") and not call:
            return f"partial({', '.join([name, *given])})"
        return f"{name}({', '.join(given)})"

    def value(self, value: Any, told: str, known: Mapping[int, str] | None = None) -> str:
        """A plain value; dataclasses are called with their fields. known: expressions of objects, by identity."""
        if known and id(value) in known:
            return known[id(value)]
        inner: Callable[[Any], str] = lambda one: self.value(one, told, known)  # noqa: E731
        match value:
            case float() if not math.isfinite(value):
                return f'float("{value}")'
            case None | bool() | int() | float() | str():
                return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
            case dict():
                return "{" + ", ".join(f"{inner(key)}: {inner(one)}" for key, one in value.items()) + "}"
            case list():
                return f"[{', '.join(map(inner, value))}]"
            case tuple():
                return f"({''.join(inner(one) + ', ' for one in value).strip()})"
            case set() | frozenset():
                return f"{type(value).__name__}({inner(sorted(value))})" if value else f"{type(value).__name__}()"
            case type():
                return self.names.of(value, told)
        if is_dataclass(value):
            given = {one.name: inner(getattr(value, one.name)) for one in fields(value) if one.init}
            return f"{self.names.of(type(value), told)}({', '.join(f'{key}={text}' for key, text in given.items())})"
        raise GolfError(f"{told}: {type(value).__name__} is no value that can be written down")


def found(target: str, told: str) -> Any:
    """The class or function of a dotted name. Raises GolfError."""
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise GolfError(f"{told}: {target} cannot be imported: {error}") from error
