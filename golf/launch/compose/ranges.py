"""What a search draws from: ranges and choices in Hydra's override grammar, typed by the config they are for."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from golf.common.errors import ConfigError
from golf.launch.compose.words import Grid, literal, number_text, override_values, parse_override, spelled

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

DIGITS = 6
"""Significant digits of a drawn number: what is shown, stored and run is one and the same."""


@dataclass(frozen=True)
class Range:
    """The values of one key: `choices` as a command line spells them, or numbers from `low` to `high`, both included.

    Raises ConfigError for a range that is empty, unbounded, or logarithmic and not above 0.
    """

    key: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False
    integer: bool = False

    def __post_init__(self) -> None:
        told = f"{self.key}={self}"
        if self.choices:
            return
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise ConfigError(f"{told}: a range needs two finite ends")
        if self.low > self.high:
            raise ConfigError(f"{told}: the low end is above the high one; turn them round")
        if self.log and self.low <= 0:
            raise ConfigError(f"{told}: a logarithmic range must begin above 0")

    def __str__(self) -> str:
        if self.choices:
            return f"choice({','.join(self.choices)})"
        name = "log" if self.log else "int" if self.integer else "interval"
        step = f", step {self.step:g}" if self.step else ""
        return f"{name}({self.low:g},{self.high:g}{step})"

    @property
    def ends(self) -> tuple[str, ...]:
        """The values that are tried before a search begins: every choice, or both ends."""
        return self.choices or (self.spell(self.low), self.spell(self.high))

    @property
    def values(self) -> tuple[str, ...] | None:
        """Every value, or None where there are infinitely many."""
        if self.choices:
            return self.choices
        if not (self.step or self.integer) or self.log:
            return None
        low, step = self._grid
        return tuple(self.spell(low + step * n) for n in range(round((self.high - self.low) / float(step)) + 1))

    @property
    def _grid(self) -> tuple[Decimal, Decimal]:
        """Where a range of steps begins, and its step, as they are written."""
        return Decimal(repr(self.low)), Decimal(repr(self.step or 1))

    def distribution(self) -> BaseDistribution:
        """The same for Optuna."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.choices:
            return CategoricalDistribution(self.choices)
        if self.integer:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def draw(self, rng: random.Random) -> str:
        """A value at random, evenly, on a logarithmic scale where the range has one."""
        if (values := self.values) is not None:
            return rng.choice(values)
        if self.log:
            value = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = rng.uniform(self.low, self.high)
        return self.spell(round(value) if self.integer else value)

    def spell(self, value: Any) -> str:
        """A drawn value as a command line spells it."""
        if self.choices:
            return str(value)
        if self.integer:
            return str(int(value))
        if self.step:
            low, step = self._grid
            return number_text(float(low + step * round((float(value) - self.low) / self.step)))
        rounded = float(f"{value:.{DIGITS}g}")
        return number_text(min(max(rounded, self.low), self.high))


def split(words: Sequence[str], base: DictConfig) -> tuple[list[str], list[Range]]:
    """Words that hold one value, and the ranges of the others; of words with one key the last counts.

    A key whose value in `base` is a whole number gets whole numbers. Raises ConfigError naming the word.
    """
    fixed: dict[str, str] = {}
    ranges: dict[str, Range] = {}
    for word in words:
        override = parse_override(word)
        key = override.get_key_element()
        fixed.pop(key, None)
        ranges.pop(key, None)
        if override.is_sweep_override():
            ranges[key] = parse_range(override, _present(base, override.key_or_group))
        else:
            fixed[key] = word
    return list(fixed.values()), list(ranges.values())


def _present(base: DictConfig, key: str) -> Any:
    with suppress(OmegaConfBaseException):  # it may follow from a key that is still to be given
        return OmegaConf.select(base, key)
    return None


def parse_range(override: Override, present: Any = None) -> Range:
    """The values of a swept override; `present` is the key's value in the config. Raises ConfigError."""
    key, value = override.get_key_element(), override.value()
    if isinstance(value, IntervalSweep):
        low, high = float(value.start or 0), float(value.end or 0)
        whole = low.is_integer() and high.is_integer()
        if isinstance(present, int) and not isinstance(present, bool):
            if not whole:
                raise ConfigError(f"{override.input_line}: {key} is a whole number, and so are the ends of its range")
            integer = True
        else:
            integer = isinstance(value.start, int) and isinstance(value.end, int) and not isinstance(present, float)
        return Range(key, low=low, high=high, log="log" in value.tags, integer=integer)
    if isinstance(value, RangeSweep) and (grid := Grid.of(override)).count > 1:  # as in a grid, its stop is left out
        ends = sorted(float(grid.spell(number)) for number in (0, grid.count - 1))
        return Range(key, low=ends[0], high=ends[1], step=float(abs(grid.step)), integer=grid.whole)
    values = override_values(override)
    if not values:
        raise ConfigError(f"{override.input_line}: there is nothing to sweep over")
    return Range(key, choices=tuple(dict.fromkeys(values)))


def words_of(params: Any) -> list[str]:
    """`sweep.params` as override words: a list of them, or a mapping, nested or with dotted keys.

    In a mapping a text is what would stand behind the `=`, and a list is a choice, of which a list is one value. Raises
    ConfigError.
    """
    if isinstance(params, Mapping):
        return [spelled(f"{key}={_value(value)}") for key, value in _flat(params)]
    return [spelled(str(word)) for word in params or ()]


def _flat(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"choice({','.join(literal(one) if _holds(one) else _value(one) for one in value)})"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _holds(value: Any) -> bool:
    return isinstance(value, list | tuple | Mapping)
