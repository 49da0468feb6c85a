"""From the phases of a config to a run's timeline: what each one has in force, and whether all of it may change."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from golf.common.errors import ConfigError
from golf.launch.compose.annotations import Config, locate
from golf.launch.compose.phases import SIZED, WHOLE, at, configs, entries, flat, spanned, whole
from golf.learn.budget import Budget, rescale_components, scale_steps
from golf.nn.models.gpt import GPT
from golf.train.settings import Settings
from golf.train.timeline import Phase

CHANGEABLE = ("technique", "model", "optimizer", "schedule", "averaging", "loader", "callbacks")
"""Groups whose classes may name settings that change."""
SCALED = ("optimizer", "schedule", "averaging")
"""Those among them that have settings which a budget scales."""


def check(config: Config) -> None:
    """Raises ConfigError for what no part lets change."""
    before = config
    for entry, after in zip(entries(config), list(configs(config))[1:], strict=True):
        for key in entry["values"]:
            if whole(key, before, after) is None and not _changes(key, after):
                raise ConfigError(_refusal(key, after))
        before = after
    every = list(configs(config))
    for key in sorted(_of_techniques(every)):
        after = next(one for one in reversed(every) if at(one, ".".join(key.split(".")[:2])))
        if not _changes(key, after):
            raise ConfigError(_refusal(key, after))


def fits(stages: Sequence[Phase], model: GPT) -> None:
    """Raises ConfigError for what a phase asks of a model that does not have it."""
    places = sorted({spec.place for spec in model.specs().values()})
    for phase in stages:
        if (length := phase.settings.train_seq_len) > model.longest:
            raise ConfigError(
                f"train_seq_len={length} is longer than the position tables, model.max_seq_len={model.longest}"
            )
        for pattern in phase.settings.frozen:
            if not any(fnmatchcase(place, pattern) for place in places):
                raise ConfigError(f"frozen={pattern}: the model has no such place\nchoices: {', '.join(places)}")


def _of_techniques(every: Sequence[Config]) -> set[str]:
    """The settings, by key, in which a technique differs between phases that have it."""
    found: set[str] = set()
    for name in {name for one in every for name in one.get("technique") or {}}:
        nodes = [flat(node) for one in every if (node := at(one, f"technique.{name}"))]
        for node in nodes[1:]:
            odd = (key for key in {**nodes[0], **node} if nodes[0].get(key, ...) != node.get(key, ...))
            found |= {f"technique.{name}.{key}" for key in odd}
    return found


def _declared(holder: str, config: Config) -> Sequence[str]:
    """The settings of a component that its class lets change."""
    node = at(config, holder)
    kind = locate(node["_target_"], holder) if isinstance(node, Mapping) and "_target_" in node else None
    return tuple(getattr(kind, "changes", ()))


def _used(node: Config, key: str, make: Callable[[Any, str], Any], budget: Budget) -> Any:
    """The value of a component's setting, scaled by the budget where it is one that counts steps."""
    holder, _, name = key.rpartition(".")
    if holder not in SCALED:
        return node[name]
    component = make(node, holder)
    rescale_components([component], budget, nproc=1)
    return getattr(component, name, node[name])


def _kind(holder: str, every: Sequence[Config]) -> Callable[..., Any]:
    """The class of a component that some phase has."""
    target = next(node["_target_"] for one in every if (node := at(one, holder)))
    return locate(target, holder)


def _changes(key: str, config: Config) -> bool:
    holder, _, name = key.rpartition(".")
    if holder and holder.partition(".")[0] not in CHANGEABLE:
        return False
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
    touched = {key for entry in written for key in entry.get("values", {})} | _of_techniques(every)
    single = sorted(key for key in touched - {*WHOLE, *SIZED} if key.rpartition(".")[0] not in ("", "technique"))
    rounding: dict[str, Any] = {}
    kinds = {holder: _kind(holder, every) for holder in {key.rpartition(".")[0] for key in single}}
    found = []
    for number, (one, entry) in enumerate(zip(every, written, strict=True)):
        qat = json.dumps(one.get("qat") or {}, sort_keys=True, default=str)
        if qat not in rounding:
            rounding[qat] = make(one.get("qat"), "qat")
        values: dict[str, dict[str, Any]] = {}
        for key in single:
            holder, _, name = key.rpartition(".")
            if isinstance(node := at(one, holder), Mapping) and name in node:
                values.setdefault(holder, {})[name] = _used(node, key, make, budget)
        step = entry.get("from_step")
        found.append(
            Phase(
                settings=Settings(**{name: one[name] for name in settings if name in one}),
                number=number,
                fraction=float(entry.get("from", 0.0)),
                qat=rounding[qat],
                values=values,
                kinds=kinds,
                step=None if step is None else int(scale_steps(step, budget.fraction)),
                plan=0 if (plan := one["model"]["plan"]) == config["model"]["plan"] else 1 + plans.index(plan),
                techniques=frozenset(name for name, node in (one.get("technique") or {}).items() if node),
                changes=entry.get("set", {}),
            )
        )
    return found
