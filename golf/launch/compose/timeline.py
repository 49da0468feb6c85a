"""From the phases of a config to a run's timeline: what each one has in force, and whether all of it may change."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from golf.common.errors import ConfigError
from golf.launch.compose.annotations import Config, locate
from golf.launch.compose.phases import SIZED, WHOLE, at, configs, entries, spanned, whole
from golf.learn.budget import Budget, scale_steps
from golf.train.settings import Settings
from golf.train.timeline import Phase


def check(config: Config) -> None:
    """Raises ConfigError for what no part lets change."""
    before = config
    for entry, after in zip(entries(config), list(configs(config))[1:], strict=True):
        for key in entry["values"]:
            if whole(key, before, after) is None and not _changes(key, after):
                raise ConfigError(_refusal(key, after))
        before = after


def _declared(holder: str, config: Config) -> Sequence[str]:
    """The settings of a component that its class lets change."""
    node = at(config, holder)
    kind = locate(node["_target_"], holder) if isinstance(node, Mapping) and "_target_" in node else None
    return tuple(getattr(kind, "changes", ()))


def _changes(key: str, config: Config) -> bool:
    holder, _, name = key.rpartition(".")
    return name in (Settings.changes if not holder else _declared(holder, config))


def _refusal(key: str, config: Config) -> str:
    holder = key.rpartition(".")[0]
    own = _declared(holder, config) if holder else ()
    may = [*Settings.changes, *WHOLE, "technique.NAME", *(f"{holder}.{name}" for name in own)]
    return (f"phases: {key} cannot change in the course of a run\n"
            f"what can: {', '.join(may)}, and settings that a class names in its `changes`")  # fmt: skip


def timeline(config: Config, make: Callable[[Any, str], Any], settings: Sequence[str], budget: Budget) -> list[Phase]:
    """What a run goes through, from its plain config. make: of a node, its component; settings: the top-level keys that
    the loop reads. Steps at which phases begin are scaled by the budget."""
    every, written = list(configs(config)), [{}, *(config.get("phases") or [])]
    plans = spanned(config)["model"].get("plans", [])
    touched = {key for entry in written for key in entry.get("values", {})}
    single = sorted(key for key in touched - {*WHOLE, *SIZED} if key.rpartition(".")[0] not in ("", "technique"))
    rounding: dict[str, Any] = {}
    found = []
    for number, (one, entry) in enumerate(zip(every, written, strict=True)):
        qat = json.dumps(one.get("qat") or {}, sort_keys=True, default=str)
        if qat not in rounding:
            rounding[qat] = make(one.get("qat"), "qat")
        values: dict[str, dict[str, Any]] = {}
        for key in single:
            holder, _, name = key.rpartition(".")
            if isinstance(node := at(one, holder), Mapping) and name in node:
                values.setdefault(holder, {})[name] = node[name]
        step = entry.get("from_step")
        found.append(
            Phase(
                settings=Settings(**{name: one[name] for name in settings if name in one}),
                number=number,
                fraction=float(entry.get("from", 0.0)),
                qat=rounding[qat],
                values=values,
                step=None if step is None else int(scale_steps(step, budget.fraction)),
                plan=0 if (plan := one["model"]["plan"]) == config["model"]["plan"] else 1 + plans.index(plan),
                techniques=frozenset(name for name, node in (one.get("technique") or {}).items() if node),
                changes=entry.get("set", {}),
            )
        )
    return found
