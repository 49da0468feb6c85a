"""The `phases` of a config: each one is the run's own config with a few settings set to other values.

`phases: [{from: 0.35, set: {model.plan: loop}}, {from_step: 2000, set: {train_seq_len: 3072}}]`. A `set` names
settings as a command line does, options of groups included, and holds for the phases after it as well. What may change
is what the part behind it says may (`changes`); everything else is refused.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from golf.common.errors import ConfigError, did_you_mean
from golf.launch.compose.keys import flatten

Config = Mapping[str, Any]
WHOLE = ("model.plan", "qat")
"""Slots whose option may change."""
AFTER = ("eval", "quant", "codec")
"""Groups that follow training: the last phase's serve."""
SIZED = ("model.max_seq_len",)
"""Sizes that the model is built with: the largest of all phases."""
KEYS = ("from", "from_step", "set", "values")


def entries(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The list as it is written, checked for its form. Raises ConfigError."""
    phases = config.get("phases") or []
    if not isinstance(phases, list):
        raise ConfigError(f"phases={phases}: a list of {{from: 0.35, set: {{KEY: VALUE}}}}")
    before: dict[str, float] = {}
    for number, entry in enumerate(phases):
        key = f"phases[{number}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("set"), dict) or not entry["set"]:
            raise ConfigError(f"{key}: {{from: 0.35, set: {{KEY: VALUE}}}} is needed, with at least one KEY")
        if unknown := sorted(entry.keys() - set(KEYS)):
            raise ConfigError(f"{key}.{unknown[0]}: there is no such key {did_you_mean(unknown[0], KEYS[:3])}")
        if ("from" in entry) == ("from_step" in entry):
            raise ConfigError(f"{key}: either `from`, a fraction of the run, or `from_step` is needed")
        for name, low, high in (("from", 0.0, 1.0), ("from_step", 1, math.inf)):
            if name not in entry:
                continue
            value = entry[name]
            number_given = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not number_given or not low <= value < high or (name == "from_step" and value != int(value)):
                needed = "a number from 0 to below 1" if name == "from" else "a whole number of at least 1"
                raise ConfigError(f"{key}.{name}={value}: {needed}")
            if value <= before.get(name, -1.0):
                raise ConfigError(f"{key}.{name}={value}: each phase begins after the one before it")
            before[name] = value
    return phases


def written(config: DictConfig) -> list[dict[str, Any]]:
    """The phases of a composed config as they are written. Raises ConfigError for their form."""
    listed = (
        OmegaConf.to_container(config.phases, resolve=True) if OmegaConf.is_config(config.phases) else config.phases
    )
    return entries({"phases": listed})


def settled(
    config: DictConfig, fill: Callable[[DictConfig], dict[str, Any]], option: Callable[[str, str, str], Any]
) -> list[dict[str, Any]]:
    """The phases of a composed config, each with the `values` that its config has otherwise than the one before it.

    fill: makes plain data of a config. option: the node of a group's option, None where there is no such group; it is
    told where it is asked for. Raises ConfigError for what cannot be set.
    """
    listed = written(config)
    found: list[dict[str, Any]] = []
    now = copy.deepcopy(config)
    with read_write(now), open_dict(now):
        now.phases = []
        plain = fill(now)
        for number, entry in enumerate(listed):
            for key, value in entry["set"].items():
                _put(now, str(key), value, f"phases[{number}].set.{key}", option)
            before, plain = plain, fill(now)
            found.append({**entry, "values": different(before, plain)})
    return found


def _put(config: DictConfig, key: str, value: Any, told: str, option: Callable[[str, str, str], Any]) -> None:
    """Set a setting by its name, or a group by an option's. Raises ConfigError for what there is not."""
    dotted = key.replace("/", ".")
    if isinstance(value, str | None) and (node := option(dotted.replace(".", "/"), str(value), told)) is not None:
        OmegaConf.update(config, dotted, node, merge=False, force_add=True)
        return
    keys = [one for one in flatten(OmegaConf.to_container(config, resolve=False)) if one != "phases"]
    near = [one for one in keys if one == key] or [one for one in keys if one.rsplit(".", 1)[-1] == key]
    if len(near) != 1:
        hint = f"(one of {', '.join(near)}?)" if near else did_you_mean(key, keys)
        raise ConfigError(f"{told}: there is no key '{key}' {hint}")
    OmegaConf.update(config, near[0], value, merge=False)


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Values by dotted key; lists and empty nodes are values."""
    if not isinstance(node, Mapping) or not node:
        return {prefix: node}
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def different(before: Config, after: Config) -> dict[str, Any]:
    """What a phase's config has otherwise than the one before it, by key: whole nodes where an option or technique
    changes, else single settings."""
    one, other = flat(before), flat(after)
    odd = [key for key in {**one, **other} if one.get(key, ...) != other.get(key, ...)]
    found: dict[str, Any] = {}
    for key in odd:
        if key.split(".")[0] in ("phases", "choices"):
            continue
        node = whole(key, before, after) or key
        found[node] = at(after, node)
    return found


def whole(key: str, before: Config, after: Config) -> str | None:
    """The node that changes as one: an option, a technique that comes or goes."""
    for name in (*WHOLE, *SIZED):
        if key == name or key.startswith(f"{name}."):
            return name
    group, _, rest = key.partition(".")
    if group in AFTER:
        return group
    name = f"technique.{rest.partition('.')[0]}"
    if group == "technique" and bool(at(before, name)) != bool(at(after, name)):
        return name
    return None


def at(config: Any, key: str) -> Any:
    """The value at a dotted key; None where there is none."""
    for part in filter(None, key.split(".")):
        config = config.get(part) if isinstance(config, Mapping) else None
    return config


def configs(config: Config) -> Iterator[Config]:
    """The run's config, and that of each of its phases, as plain data."""
    yield config
    now = config
    for entry in config.get("phases") or []:
        now = copy.deepcopy(now)
        for key, value in entry["values"].items():
            path, _, name = key.rpartition(".")
            at(now, path)[name] = value
        yield now


def last(config: Config) -> Config:
    """The config that what follows training goes by."""
    *_, found = configs(config)
    return found


def finished(config: Config) -> dict[str, Any]:
    """The config of a run that is over: what follows training as its last phase has it, and phases that leave it so."""
    end = last(config)
    stages = [
        {**entry, "values": {key: value for key, value in entry["values"].items() if key not in AFTER}}
        for entry in config.get("phases") or []
    ]
    return {**config, **{group: end[group] for group in AFTER if group in end}, "phases": stages}


def unrounded(config: Config) -> dict[str, Any]:
    """The config without what rounds weights in training, which goes by a quantizer that a finished run may replace."""
    stages = [
        {**entry, "values": {key: value for key, value in entry["values"].items() if key != "qat"}}
        for entry in config.get("phases") or []
    ]
    return {**config, "qat": {}, "phases": stages}


def chosen(config: Config) -> dict[str, str]:
    """The options of what follows training that phases name, the last of each group."""
    sets = [entry["set"].items() for entry in config.get("phases") or []]
    return {key: value for items in sets for key, value in items if key in AFTER and isinstance(value, str)}


def spanned(config: Config) -> Config:
    """The config of a model that can take every phase: with every technique that any of them has, and their largest
    sizes; `model.plans` are the plans besides its own."""
    every = list(configs(config))
    techniques = {name: node for one in every for name, node in (one.get("technique") or {}).items() if node}
    sizes = {key.partition(".")[2]: max(at(one, key) for one in every) for key in SIZED}
    others = [one["model"]["plan"] for one in every[1:]]
    own = config["model"]["plan"]
    plans = [plan for number, plan in enumerate(others) if plan != own and plan not in others[:number]]
    model = {**config["model"], **sizes} | ({"plans": plans} if plans else {})
    return {**config, "model": model, "technique": {**(config.get("technique") or {}), **techniques}}
