"""One word of a command line in Hydra's override grammar: read, quoted where one reading fits, its values listed."""

from __future__ import annotations

import math
import random
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    Glob,
    IntervalSweep,
    Override,
    RangeSweep,
    Sweep,
    Transformer,
)
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from golf.common.errors import ConfigError, did_you_mean

FUNCTIONS = ("choice", "range", "interval", "glob", "shuffle", "sort", "tag", "int", "float", "str", "bool", "log")
MOST_VALUES = 100_000
"""More values of one range are taken for a slip."""


def spelled(word: str) -> str:
    """`key=log(1,9)` and `key=int(1,9)` in Hydra's own words, `sweep.params.key=…` and `hydra.sweeper.params.key=…` as
    `key=…`; the rest as it is."""
    word = re.sub(r"^\+{0,2}(?:sweep|hydra\.sweeper)\.params\.(?=[^=]+=)", "", word)
    key, equals, value = word.partition("=")
    match = re.fullmatch(r"\s*(log|int)\(\s*([^(),]+),([^(),]+)\)\s*", value)
    if not equals or match is None:
        return word
    name, low, high = match.groups()
    inside = f"interval({low.strip()},{high.strip()})"
    return f"{key}=tag(log,{inside})" if name == "log" else f"{key}=int({inside})"


def parse_override(word: str) -> Override:
    """One override, parsed. Raises ConfigError that says what is wrong, and what to type where that is known."""
    try:
        override = _parsed(word)
    except (HydraException, OmegaConfBaseException, TypeError, ValueError) as error:
        nulls = _with_nulls(word)
        if nulls is None:
            raise ConfigError(_reason(word, error)) from error
        override = nulls
    if not override.key_or_group:
        raise ConfigError(f"{word}: names no key; write key=value, or group=option")
    if _sweeps_within(override.value()):
        raise ConfigError(f"{word}: a sweep cannot stand within a list; write whole lists, choice([1,2],[3])")
    return override


def _parsed(word: str) -> Override:
    return OverridesParser.create().parse_overrides([word])[0]


NULL = "golf-null"


def _with_nulls(word: str) -> Override | None:
    """The override where its functions are given null, which Hydra's grammar has but its functions refuse."""
    key, _, value = word.partition("=")
    marked = re.sub(r"(?i)(?<=[(,\s])null(?=\s*[,)])", NULL, value)
    if "(" not in value or marked == value:
        return None
    try:
        override = _parsed(f"{key}={marked}")
    except (HydraException, OmegaConfBaseException, TypeError, ValueError):
        return None
    if not isinstance(override.value(), ChoiceSweep):
        return None
    sweep: Any = override.value()
    sweep.list = [None if one == NULL else one for one in sweep.list]
    override.input_line = word
    return override


def _sweeps_within(value: Any) -> bool:
    inner: Iterable[Any] = ()
    if isinstance(value, ChoiceSweep):
        inner = [one for one in value.list if isinstance(one, list | dict)]
    elif isinstance(value, list):
        inner = value
    elif isinstance(value, dict):
        inner = value.values()
    return any(isinstance(one, Sweep | Glob) or _sweeps_within(one) for one in inner)


def _reason(word: str, error: Exception) -> str:
    """What is wrong with a word that cannot be parsed, in golf's words."""
    key, equals, value = word.partition("=")
    if not equals:
        return f"{word}: not a setting; write key=value, or group=option"
    told = str(error)
    if match := re.search(r"Unknown function '(\w+)'", told):
        return f"{word}: there is no function '{match[1]}' {did_you_mean(match[1], FUNCTIONS)}"
    if match := re.search(r"while evaluating '.*?': (.+)", told):
        return f"{word}: {_called(match[1])}"
    if not re.fullmatch(r"[+~]{0,2}[\w@$][\w./@$:\\-]*", key, re.ASCII):
        return f"{word}: there is no key '{key}'"
    if (kind := _open(value)) is not None:
        return f"{word}: {kind}"
    if re.search(r"(?:^|[,\[(])\s*(?:,|$|[\])])", value):
        return f"{word}: nothing stands before or behind a comma"
    return f"{word}: has characters that need quotes; type {typed(key, value)}"


def typed(key: str, value: str, brackets: bool = False) -> str:
    """What to type in a shell for a key and a text, or with `brackets` for a list of that text."""
    text = value.strip()
    if text.startswith("[") and text.endswith("]"):
        parts = [part if _parses(f"x={part}") else _in_quotes(part) for part in _split(text[1:-1])]
        return shlex.quote(f"{key}=[{','.join(parts)}]")
    if brackets:
        return shlex.quote(f"{key}=[{text if _parses(f'x=[{text}]') else _in_quotes(text)}]")
    return shlex.quote(f"{key}={_in_quotes(text)}")


def _in_quotes(text: str) -> str:
    # a backslash counts before a quote alone, and so at the end
    doubled = re.sub(r'\\+(?="|\Z)', lambda match: match[0] * 2, text)
    return '"' + doubled.replace('"', r"\"") + '"'


def literal(value: Any) -> str:
    """A plain value as Hydra's grammar spells it. Raises ConfigError for a key that the grammar has no spelling for."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_spelled_key(key)}:{literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(literal, value)) + "]"
    return _in_quotes(value) if isinstance(value, str) else repr(value)


def _spelled_key(key: Any) -> str:
    """A mapping's key, which has no quotes in Hydra's grammar but escapes."""
    word = re.sub(r"[\\()\[\]{}:=, \t]", r"\\\g<0>", str(key))
    with suppress(HydraException):
        value: Any = _parsed(f"x={{{word}:0}}").value()
        if [(type(one), one) for one in value] == [(type(key), key)]:
            return word
    raise ConfigError(f"{key!r}: this key of a mapping cannot be spelled on a command line")


def _called(told: str) -> str:
    """Why a function was refused, without Python's type names."""
    if "mismatch type argument" in told or "cannot be interpreted" in told:
        return "its function does not take such values"
    return told.removesuffix(".")


def _open(value: str) -> str | None:
    """Which quote or bracket of a value has no partner."""
    quote = ""
    stack: list[str] = []
    partners = {")": "(", "]": "[", "}": "{"}
    for before, letter in zip(" " + value, value, strict=False):
        if quote:
            quote = "" if letter == quote else quote
        elif letter == '"' or (letter == "'" and not before.isalnum()):
            quote = letter  # the one of it's is none
        elif letter in "([{":
            stack.append(letter)
        elif letter in partners and (not stack or stack.pop() != partners[letter]):
            return f"the {letter} closes nothing"
    if quote:
        return f"the quote {quote} is not closed"
    return f"the {stack[-1]} is not closed" if stack else None


def readable(word: str) -> str:
    """The word, with quotes around texts that Hydra's grammar cannot read without them and that can be only one text:
    `data.paths=[ünï/t.jsonl]`. Words that cannot be helped stay as they are."""
    key, equals, value = word.partition("=")
    if not equals or _parses(word):
        return word
    quoted = f"{key}={_quoted(value)}"
    return quoted if _parses(quoted) else word


def named(word: str, options: Callable[[str], list[str]]) -> str:
    """The word, with quotes around names of options that Hydra would take for numbers or null: `recipe=1`."""
    key, _, value = word.partition("=")
    known = options(key.lstrip("+"))
    parts = [part.strip() for part in _split(value)] if known else []
    foreign = [part for part in parts if part in known and _parses(f"x={part}") and not _is_text(part)]
    return f"{key}={','.join(repr(one) if one in foreign else one for one in parts)}" if foreign else word


def _is_text(value: str) -> bool:
    return isinstance(parse_override(f"x={value}").value(), str)


def _parses(word: str) -> bool:
    with suppress(ConfigError):
        parse_override(word)
        return True
    return False


def _quoted(value: str) -> str:
    text = value.strip()
    parts = _split(text)
    if len(parts) > 1:
        return ",".join(map(_quoted, parts))
    if text.startswith("[") and text.endswith("]"):
        return f"[{_quoted(text[1:-1])}]"
    call = re.fullmatch(r"(\w+)\((.*)\)", text, re.ASCII)
    if call and call[1] in FUNCTIONS:
        return f"{call[1]}({_quoted(call[2])})"
    if not text or _parses(f"x={text}") or call or _open(text) or re.search(r"^'|[\[\]{}\"\\]", text):
        return value
    return f'"{text}"' if "'" in text else f"'{text}'"


def _split(text: str) -> list[str]:
    """The parts between the commas that stand outside of brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'" and (not parts[-1].strip() or parts[-1].rstrip()[-1] in "[({,:"):
            quote = letter  # it begins a text; the one of it's does not
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        if letter == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


@dataclass(frozen=True)
class Grid:
    """`count` numbers from `start`, `step` apart, in exact decimals; whole numbers, or floats."""

    start: Decimal
    step: Decimal
    count: int
    whole: bool

    @classmethod
    def of(cls, override: Override) -> Grid:
        """The numbers of a range, its stop left out. Raises ConfigError for one that never ends."""
        sweep: Any = override.value()
        given = (sweep.start or 0, sweep.stop or 0, 1 if sweep.step is None else sweep.step)
        # fifteen digits hold what was typed, and nothing of the binary fraction that stands for it
        start, stop, step = (Decimal(f"{one:.15g}" if isinstance(one, float) else one) for one in given)
        if not all(one.is_finite() for one in (start, stop, step)):
            raise ConfigError(f"{override.input_line}: a range needs finite ends and a finite step")
        if step == 0:
            raise ConfigError(f"{override.input_line}: a step of 0 never comes to the end")
        count = max(0, math.ceil(Fraction(stop - start) / Fraction(step)))
        return cls(start, step, count, all(isinstance(one, int) for one in given))

    def spell(self, number: int) -> str:
        """Its value of that number, as a person would write it."""
        value = self.start + self.step * number
        return str(int(value)) if self.whole else number_text(float(value))


def number_text(value: float) -> str:
    """A float as a person would write it: 0.96, 1e-5; it reads back as the same float."""
    return re.sub(r"e([+-])0+(?=\d)", lambda match: "e" + match[1].replace("+", ""), repr(value))


def override_values(override: Override) -> list[str]:
    """The values an override takes, as strings: one, or those of its sweep. Raises ConfigError for a continuous one."""
    if override.is_delete():
        return []
    value = override.value()
    if isinstance(value, IntervalSweep):
        raise ConfigError(f"{override.input_line}: a range without steps; name its values, a,b,c or range(0,8,2)\n"
                          "or let sweep=tpe search it")  # fmt: skip
    if isinstance(value, Glob):
        raise ConfigError(f"{override.input_line}: glob picks options of a group, and here it cannot be read")
    if isinstance(value, RangeSweep):
        return _range_values(override, value)
    if isinstance(value, ChoiceSweep):
        return _choice_values(override, value)
    return [str(override.get_value_element_as_str())]


def _range_values(override: Override, sweep: Any) -> list[str]:
    grid = Grid.of(override)
    if grid.count > MOST_VALUES:
        raise ConfigError(f"{override.input_line}: these are {grid.count:,} values; a larger step makes fewer")
    values = [grid.spell(number) for number in range(grid.count)]
    casts: Sequence[Callable[[Any], Any]] = getattr(sweep, "transformers", ())  # Hydra 1.4 casts at the end
    if casts:
        numbers: list[Any] = [int(one) if re.fullmatch(r"-?\d+", one) else float(one) for one in values]
        for cast in casts:
            numbers = [cast(one) for one in numbers]
        values = [_text(one) for one in numbers]
    return random.sample(values, len(values)) if sweep.shuffle else values


def _choice_values(override: Override, sweep: Any) -> list[str]:
    values: list[str] = []
    for one in sweep.list:
        if isinstance(one, ChoiceSweep | RangeSweep):  # choice(1,range(4,6))
            key = override.get_key_element()
            inner = Override(override.type, key, override.value_type, one, input_line=override.input_line)  # type: ignore[arg-type]
            values += override_values(inner)
        elif isinstance(one, Sweep | Glob):
            raise ConfigError(
                f"{override.input_line}: a choice is made of values; this one holds an interval or a glob"
            )
        else:
            values.append(_text(one))
    return random.sample(values, len(values)) if sweep.shuffle else values


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return number_text(value)
    if type(value) is str and re.fullmatch(r"(?i)[-+]?[\d._]+(e[-+]?\d+)?|true|false|null|[-+]?(inf|nan)", value):
        return f"'{value}'"  # str(1,2): a text that would be read as a number
    return str(Transformer.str(value))


def tried_values(override: Override) -> list[str]:
    """The values of an override, of a continuous range its two ends: what is composed to find mistakes."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        return [f"{value.start:g}", f"{value.end:g}"]  # 4 for 4.0: it may be for a whole number
    return override_values(override)


def option_names(override: Override) -> list[str]:
    """The options that an override of a group chooses, without quotes and escapes."""
    values = (parse_override(f"x={value}").value() for value in override_values(override))
    return [value if isinstance(value, str) else _text(value) for value in values]


def expanded(word: str, override: Override, options: Callable[[str], list[str]], ranges: bool = False) -> str:
    """A sweep that Hydra itself could not run as a plain list of its values: a glob (over `options` of its group),
    a choice within a choice, null in a function; with `ranges` a range too. Raises ConfigError for a glob without a
    match."""
    value, key = override.value(), override.get_key_element()
    if isinstance(value, Glob):
        known = options(override.key_or_group)
        if not known:
            raise ConfigError(f"{word}: glob picks options of a group, and {override.key_or_group} is a key")
        values = value.filter(known)
        if not values:
            raise ConfigError(f"{word}: no option is called so\nchoices: {', '.join(known)}")
        return f"{key}={','.join(map(_text, values))}"
    if ranges and isinstance(value, RangeSweep) and (values := override_values(override)):
        return f"{key}={','.join(values)}"
    inner = value.list if isinstance(value, ChoiceSweep) and "(" in word else []
    if any(one is None or isinstance(one, Sweep) for one in inner):
        return f"{key}={','.join(override_values(override))}"
    return word
