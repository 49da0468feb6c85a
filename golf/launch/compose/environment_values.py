"""An environment variable's conversion into golf's words: what its value may be, and the common kinds of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from golf.common.errors import ConfigError

BASELINE, PR122, PR422, PR1855 = "naive_baseline", "sp2048_normuon_int6", "gradquant_11l", "frontier"
SCRIPTS = {BASELINE: "the baselines", PR122: "PR 122", PR422: "PR 422", PR1855: "PR 1855"}
"""Recipe → the script that it stands for."""

EVERY = (BASELINE, PR122, PR422, PR1855)


def quoted(text: str) -> str:
    """A text as Hydra's command line takes it."""
    if re.fullmatch(r"[\w./*:+-]+", text):
        return text
    return "'" + text.replace("'", "\\'") + "'"


class Ignored(Exception):
    """This value needs no word of golf's command line; the message says why."""


@dataclass(frozen=True)
class Environment:
    """What was given, as text, over what is assumed of the rest; the recipe whose script reads it."""

    given: Mapping[str, str]
    assumed: Mapping[str, str]
    recipe: str = BASELINE

    def text(self, name: str) -> str:
        """The value given, or the default."""
        return self.given.get(name, self.assumed.get(name, ""))

    def whole(self, name: str) -> int:
        """A whole number, written as Python takes it. Raises ConfigError for anything else."""
        return int(self._number(name, int, "a whole number"))

    def real(self, name: str) -> float:
        """A number. Raises ConfigError for anything else."""
        return float(self._number(name, float, "a number"))

    def on(self, name: str) -> bool:
        """A switch: the scripts take 0 and 1. Raises ConfigError for what is no whole number."""
        return self._number(name, int, "0 or 1") != 0

    def _number(self, name: str, kind: type[int] | type[float], expected: str) -> float:
        try:
            return kind(self.text(name))
        except ValueError:
            raise ConfigError(f"{name}={self.text(name)}: expected {expected}") from None


Convert = Callable[[Environment], list[str]]


@dataclass(frozen=True)
class Variable:
    """One variable: the recipes whose scripts read it, its place in golf (for the page), its note, its conversion."""

    name: str
    place: str
    convert: Convert
    note: str = ""
    scripts: tuple[str, ...] = EVERY


def whole(name: str, key: str, note: str = "", scripts: tuple[str, ...] = EVERY, least: int | None = None) -> Variable:
    """A whole number under another name, raised to `least`."""

    def convert(env: Environment) -> list[str]:
        value = env.whole(name)
        return [f"{key}={value if least is None else max(value, least)}"]

    return Variable(name, f"`{key}`", convert, note, scripts)


def number(name: str, key: str, note: str = "", scripts: tuple[str, ...] = EVERY, off: bool = False) -> Variable:
    """A number under another name; with `off`, 0 and below mean null."""

    def convert(env: Environment) -> list[str]:
        value = env.real(name)
        return [f"{key}={'null' if off and value <= 0 else value}"]

    return Variable(name, f"`{key}`", convert, note, scripts)


def switch(
    name: str, place: str, on: list[str], off: list[str], note: str = "", scripts: tuple[str, ...] = EVERY
) -> Variable:
    """0 or 1, each of which stands for some words."""
    return Variable(name, place, lambda env: list(on if env.on(name) else off), note, scripts)


def unused(name: str, reason: str, scripts: tuple[str, ...] = EVERY, off: str | None = None) -> Variable:
    """A variable without a place in golf; at the value `off` it did nothing in the script either."""

    def convert(env: Environment) -> list[str]:
        raise Ignored("off, as in golf" if off is not None and env.text(name) == off else reason)

    return Variable(name, "–", convert, reason, scripts)
