"""Configs checked against the constructors that they name: types, choices, and settings that nothing takes."""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from golf.common.errors import ConfigError, did_you_mean
from golf.launch.compose import own_modules
from golf.launch.compose.keys import NotTaken, no_component, told
from golf.launch.compose.options import built_later
from golf.nn.techniques.base import Layers, Technique

Config = Mapping[str, Any]
SPECIAL = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")


def locate(target: str, key: str) -> Callable[..., Any]:
    """The class or function that `_target_` names. Raises ConfigError with the reason when it cannot be imported."""
    if not isinstance(target, str):
        raise ConfigError(f"{key}._target_={target}: expected the dotted name of a class or function")
    module, _, name = target.rpartition(".")
    top = module.partition(".")[0]
    if top != "golf" and (hidden := own_modules.shadowed(top)) is not None:
        raise ConfigError(f"{key}._target_={target}: {hidden}")
    try:
        return getattr(own_modules.load(module), name)  # type: ignore[no-any-return]
    except Exception as error:  # a user's module may raise anything
        missed = error.name if isinstance(error, ImportError) else None
        missed = missed and missed.removeprefix(f"{own_modules.PACKAGE}.")
        if (hidden := own_modules.shadowed(top) or own_modules.shadowed(missed)) is not None:
            raise ConfigError(f"{key}._target_={target}: {hidden}") from None
        raise ConfigError(f"{key}._target_={target}: cannot be imported ({type(error).__name__}: {error})") from error


def check_types(node: Any, key: str = "") -> None:
    """Check every component's values against its constructor's annotations, all the way down.

    Raises ConfigError naming the key, the value, and what would fit.
    """
    if isinstance(node, list):
        for index, item in enumerate(node):
            check_types(item, f"{key}[{index}]")
    if not isinstance(node, dict):
        return
    given = {name: value for name, value in node.items() if name not in SPECIAL}
    if "_target_" in node:
        target = locate(node["_target_"], key)
        partial = bool(node.get("_partial_"))
        _check_partial(getattr(target, "__name__", str(target)), partial, key)
        _check_call(target, given, key, partial)
    for name, value in given.items():
        check_types(value, f"{key}.{name}" if key else name)


def _check_partial(name: str, partial: bool, key: str) -> None:
    """Raises ConfigError for a component that is built too early or too late for its place."""
    place = re.sub(r"\.(rest|kinds\[\d+\]\.of)$", "", key)  # of golf.nn.slots.by_layer
    later = built_later(place.replace(".", "/"))
    if later and not partial:
        raise ConfigError(f"{key}: _partial_: true is missing in its yaml, as golf itself builds {name}")
    if later is False and partial:
        raise ConfigError(f"{key}: _partial_: true must go from its yaml, as golf takes {name} as it is built")


def _hints(target: Callable[..., Any], key: str) -> dict[str, Any]:
    """The annotations of a callable's arguments. Raises ConfigError for one that names nothing."""
    init = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
    try:
        return typing.get_type_hints(init)
    except Exception as error:  # a user's module may have written anything there
        file = inspect.getsourcefile(inspect.unwrap(init)) if inspect.isroutine(init) else None
        name = getattr(target, "__name__", target)
        raise ConfigError(
            f"{key}: an annotation of {name}'s arguments names nothing there is ({type(error).__name__}: {error})\n"
            f"import what it names when {file or 'its file'} is imported, not under TYPE_CHECKING alone"
        ) from error


def _check_call(target: Callable[..., Any], given: Config, key: str, partial: bool) -> None:
    hints = _hints(target, key)
    signature = inspect.signature(target)
    known = set(signature.parameters)
    if isinstance(target, type) and issubclass(target, Technique):
        known.add("layers")  # read by the model, which builds one instance per layer
        hints["layers"] = Layers
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values())
    if refused := [name for name in given if name not in known and not takes_any]:
        raise NotTaken(f"{key}.{refused[0]}: {getattr(target, '__name__', target)} takes no such setting "
                       f"{did_you_mean(refused[0], known)}".rstrip(), refused)  # fmt: skip
    for name, value in given.items():
        if name in hints and not _is_component(value):
            check_value(value, hints[name], f"{key}.{name}")
    if not partial:
        required = {n for n, p in signature.parameters.items() if p.default is p.empty and p.kind in (1, 3)}
        if missing := sorted(required - set(given)):
            raise ConfigError(f"{key}.{missing[0]} must be given")


def _is_component(value: Any) -> bool:
    return isinstance(value, dict) and "_target_" in value


def check_value(value: Any, hint: Any, key: str) -> None:
    if not _is_plain(hint):
        optional = hint is Any or type(None) in typing.get_args(hint)
        if value is None and not optional:
            raise ConfigError(f"{key}=null: a component is needed here; choose one by {key.replace('.', '/')}=…")
        if isinstance(value, dict) and hint is not Any and not _takes_mapping(hint):
            raise ConfigError(no_component(key.replace(".", "/")))
        if isinstance(value, str | int | float) and hint is not Any:
            raise ConfigError(f"{key}={value}: a component is needed here; choose one by {key.replace('.', '/')}=…")
        return
    try:
        TypeAdapter(hint, config=ConfigDict(strict=True)).validate_python(value)
    except ValidationError as error:
        reason = error.errors()[-1] if len(error.errors()) == 1 else error.errors()[0]
        raise ConfigError(f"{key}={told(value)}: {_expected(hint, reason)}{_remedy(hint, value, key)}") from error


def _remedy(hint: Any, value: Any, key: str) -> str:
    """What to type instead of a value whose kind alone is wrong: brackets make a list of it, quotes a text."""
    from golf.launch.compose.words import typed

    for other, brackets, what in (
        ([value], True, "a list stands in brackets"),
        (str(value), False, "in quotes it is a text"),
    ):
        try:
            TypeAdapter(hint, config=ConfigDict(strict=True)).validate_python(other)
        except ValidationError:
            continue
        if value not in ("", None) and not isinstance(value, list | dict):
            return f"\n{what}: {typed(key, str(value), brackets)}"
    return ""


def _takes_mapping(hint: Any) -> bool:
    origin = typing.get_origin(hint) or hint
    if origin in (typing.Union, types.UnionType):
        return any(map(_takes_mapping, typing.get_args(hint)))
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _expected(hint: Any, reason: Any) -> str:
    if choices := _choices(hint):
        return f"choices are {', '.join(choices)}"
    return f"expected {_named(hint)}, got {reason['input']!r} ({type(reason['input']).__name__})"


def _named(hint: Any) -> str:
    """A hint in words: kinds of data, and choices as they are written on a command line."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " | ".join(map(_named, typing.get_args(hint)))
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(_choices(hint))
    if hint is type(None):
        return "None"
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _choices(hint: Any) -> list[str]:
    """The values that a hint allows, as they are written on a command line; none where they cannot be counted."""
    if hint is bool:
        return ["true", "false"]
    if hint is type(None):
        return ["null"]
    if typing.get_origin(hint) is typing.Literal:
        return [str(value) for value in typing.get_args(hint)]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        each = [_choices(arg) for arg in typing.get_args(hint)]
        return [value for values in each for value in values] if all(each) else []
    return []


def _is_plain(hint: Any) -> bool:
    """Whether a hint is made of data types alone, so that a config can hold its values."""
    if hint in (int, float, str, bool, type(None), Path, Any):
        return True
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return True
    if origin in (list, dict, tuple, typing.Union, types.UnionType):
        return all(_is_plain(arg) for arg in typing.get_args(hint) if arg is not Ellipsis)
    return False
