"""What a composed config may hold: keys that something takes, components where components belong."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict, read_write

from golf.common.errors import ConfigError, did_you_mean
from golf.launch.compose.options import DISCOVERED, GLOBAL, discovered, options, primary

ADDED = ("choices", "published")
"""Keys that golf itself adds to a run's config."""
DROP = "_drop_"
"""In an option's yaml: settings that it inherits or a recipe sets, and that its class doesn't take."""
OPTIONAL = ("qat", *DISCOVERED)
"""Groups whose option `none` is an empty node."""


class NotTaken(ConfigError):
    """Settings of a component, by `names`, that its class has no arguments for."""

    def __init__(self, message: str, names: Sequence[str]) -> None:
        super().__init__(message)
        self.names = list(names)


def check_keys(config: DictConfig, added: Collection[str] = ()) -> None:
    """Every key at the top of a composed config is one that golf knows, and every group holds a component.

    added: keys of golf's own that a finished run's config holds besides. Raises ConfigError naming key and remedy.
    """
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    known = primary().known
    for name in plain:
        if name not in (*known, *added, "hydra"):
            raise ConfigError(unknown(str(name), plain))
    if plain.get("code_paths") and not added:
        raise ConfigError("code_paths: golf fills it in; name a folder of your own code by --config-dir DIR")
    for group in primary().groups:
        if group in plain:
            _check_group(group, plain[group])


def unknown(name: str, config: Mapping[Any, Any]) -> str:
    """What to say of a key that nothing takes."""
    if name in GLOBAL:
        return f"{name}: its keys are not the config's; a yaml in {name}/ begins with '# @package _global_'"
    known = primary().known
    near = [full for full in flatten(config) if full.rsplit(".", 1)[-1] == name and full.split(".")[0] in known]
    hint = f"(did you mean {' or '.join(near[:3])}?)" if near else did_you_mean(name, known)
    return f"{name}: there is no such key {hint}".rstrip()


def _check_group(group: str, node: Any) -> None:
    if _stands_for_one(node):
        return
    if not isinstance(node, dict):
        raise ConfigError(_needed(group, node))
    if group in DISCOVERED:
        for name, inner in node.items():
            _check_discovered(group, str(name), inner, node)
    elif "_target_" not in node and (node or group not in OPTIONAL):
        raise ConfigError(_off(group, node) if group in OPTIONAL else no_component(group))


def _check_discovered(folder: str, name: str, node: Any, others: Mapping[Any, Any]) -> None:
    if _stands_for_one(node) or node == {} or (isinstance(node, dict) and "_target_" in node):
        return
    hint = did_you_mean(name, {*(known := discovered(folder)), *others} - {name})
    if name not in known and "did you mean" in hint:
        raise ConfigError(f"{folder}.{name}: there is no such {DISCOVERED[folder]} {hint}")
    raise ConfigError(_off(f"{folder}/{name}", node) if isinstance(node, dict) else _needed(f"{folder}/{name}", node))


def no_component(group: str) -> str:
    """What to say of a node without a `_target_` where a component belongs."""
    return (f"{group.replace('/', '.')}: holds no component, as nothing names its _target_; choose one by {group}=…, "
            f"or give its yaml the line _target_: module.Class")  # fmt: skip


def told(value: Any) -> str:
    """A value as a yaml spells it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _stands_for_one(node: Any) -> bool:
    """Whether a node is an interpolation, which is looked at once it is resolved."""
    return isinstance(node, str) and node.startswith("${")


def _needed(group: str, value: Any) -> str:
    if group in DISCOVERED:
        name = next(iter(discovered(group)), "NAME")
        option = next((one for one in options(f"{group}/{name}") if one != "none"), "…")
        return (f"{group}={told(value)}: it holds {DISCOVERED[group]}s by name; choose one's option, "
                f"{group}/{name}={option}, in a yaml by defaults: [override /{group}/{name}: {option}]")  # fmt: skip
    key, known = group.replace("/", "."), options(group)
    fits = isinstance(value, str) and (value in known or not known)
    option = value if fits else known[0] if len(known) == 1 else "…"
    choices = f"\nchoices: {', '.join(known)}" if option == "…" and known else ""
    return (f"{key}={told(value)}: a component is needed here; choose one by {group}={option}, "
            f"in a yaml by defaults: [override /{group}: {option}]{choices}")  # fmt: skip


def _off(group: str, node: Mapping[Any, Any]) -> str:
    key, known = f"{group.replace('/', '.')}.{next(iter(node))}", [one for one in options(group) if one != "none"]
    why = f"{group} is none" if known else f"{group} is none, or its yaml names no _target_"
    return f"{key}: nothing takes it, as {why}; choose an option, {group}={known[0] if known else '…'}"


def put_right(config: DictConfig, words: Iterable[str]) -> None:
    """Do to a composed config what Hydra has no words for: a technique that the line turns off is off whatever a recipe
    sets of it, and what an option says in `_drop_` that it doesn't take is gone. Raises ConfigError."""
    _switch_off(config, words)
    with read_write(config), open_dict(config):
        _leave_out(config, "")


def _leave_out(node: Any, key: str) -> None:
    """Of every node the settings that its `_drop_` lists, however they came there."""
    if isinstance(node, ListConfig):
        for number in range(len(node)):
            _leave_out(node._get_node(number), f"{key}[{number}]")
    if not isinstance(node, DictConfig) or node._is_none() or node._is_missing() or node._is_interpolation():
        return
    if DROP in node:
        plain = OmegaConf.to_container(node)
        names = plain[DROP] if isinstance(plain, dict) else None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"{key}.{DROP}={names}: a list of the settings to leave out is needed, {DROP}: [name]")
        for name in (*names, DROP):
            node.pop(name, None)
    for name in list(node):
        _leave_out(node._get_node(name), f"{key}.{name}".lstrip("."))


def _switch_off(config: DictConfig, words: Iterable[str]) -> None:
    """Let `group=none` on the line turn off a technique or callback with whatever a recipe sets of it."""
    for word in words:
        group, _, option = word.partition("=")
        node = OmegaConf.select(config, group.replace("/", ".")) if option == "none" else None
        if isinstance(node, DictConfig) and node and "_target_" not in node and group.split("/")[0] in OPTIONAL:
            with read_write(config), open_dict(config):
                OmegaConf.update(config, group.replace("/", "."), {}, merge=False)


def flatten(node: Any, prefix: str = "") -> list[str]:
    """Every dotted key of plain data, inner nodes included."""
    found = []
    for name, value in node.items() if isinstance(node, dict) else ():
        full = f"{prefix}.{name}" if prefix else str(name)
        found += [full, *flatten(value, full)]
    return found
