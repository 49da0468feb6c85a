"""What a technique is worth: runs that differ from a baseline in one technique alone, which they have turned off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from golf.runs.dotted import key_of
from golf.runs.report.compare import Group, group, measure

if TYPE_CHECKING:
    from golf.runs.report.gather import ReportRun

ABLATED = ("averaging", "qat")
"""Groups beside technique/ whose option `none` turns something off."""
BASELINE = "baseline (all on)"


@dataclass
class Ablation:
    """A baseline, and by the technique that is off the group to compare with it: what costs most to lose first."""

    baseline: Group
    arms: dict[str, Group]


def is_switch(name: str) -> bool:
    """Whether a config group is one whose option `none` turns something off."""
    return name.startswith("technique/") or name in ABLATED


def is_off(option: Any) -> bool:
    """Whether an option of such a group turns it off."""
    return option in (None, "none")


def later(phases: Any) -> dict[str, str]:
    """The switches that a config's phases turn on, each with its last option and when: `quant from 0.85`."""
    found = {}
    for entry in phases or ():
        for key, option in entry["set"].items():
            if _is_one(name := key.replace(".", "/")) and isinstance(option, str) and not is_off(option):
                found[name] = f"{option} from " + str(entry.get("from", f"step {entry.get('from_step')}"))
    return found


def without(phases: Any, switch: str) -> list[dict[str, Any]]:
    """A config's phases as they are written, but for what turns this switch on and for its settings."""
    found = []
    for entry in phases or ():
        left = {key: value for key, value in entry["set"].items() if not _belongs(key.replace("/", "."), switch)}
        if left:
            found.append({**{key: value for key, value in entry.items() if key != "values"}, "set": left})
    return found


def told_apart(config: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """The choices of a config, with what its phases turn on, and the phases without that."""
    choices, phases = config.get("choices"), config.get("phases")
    choices = dict(choices) if isinstance(choices, Mapping) else {}
    if not isinstance(phases, list):
        return choices, phases
    sets = [one.get("set") if isinstance(one, Mapping) else None for one in phases]
    if not all(isinstance(one, Mapping) for one in sets):
        return choices, phases
    switches = later(phases)
    phases = [{key: value for key, value in one.items() if key != "values"} for one in phases]
    for name, option in switches.items():
        choices[name] = option if is_off(choices.get(name)) else f"{choices[name]}, {option}"
        phases = without(phases, name)
    return choices, phases


def _is_one(name: str) -> bool:
    return name in ABLATED or (name.startswith("technique/") and name.count("/") == 1)


def arm_name(switch: str) -> str:
    """How a run without a technique is called: `xsa off`."""
    return f"{switch.removeprefix('technique/')} off"


def ablations(runs: Sequence[ReportRun], settings: Sequence[Mapping[str, Any] | None]) -> list[Ablation]:
    """Every baseline among the runs, with the runs that lack one technique of it; by the baselines' means.

    `settings` tell runs apart that are not equal but for the seed; None for a run about which nothing is known. A run
    that lacks a technique of some baseline is none itself.
    """
    names = dict.fromkeys(name for found in settings if found for name in found if is_switch(name))
    options = {name: {is_off(found.get(name)) for found in settings if found is not None} for name in names}
    varied = [name for name, found in options.items() if len(found) == 2]
    if not varied:
        return []
    groups = group(runs, [None if found is None else key_of(found) for found in settings])
    shared = _shared(settings)
    told = [{k: v for k, v in (settings[one.runs[0]] or {}).items() if k not in shared} for one in groups]
    found: list[tuple[int, str, int]] = []  # baseline, switch, arm
    for switch in varied:
        on: dict[str, list[int]] = {}
        off: dict[str, list[int]] = {}
        for number, values in enumerate(told):
            key = key_of({name: value for name, value in values.items() if not _belongs(name, switch)})
            (off if _is_without(values, switch) else on).setdefault(key, []).append(number)
        found += [(base, switch, arm) for key, bases in on.items() for base in bases for arm in off.get(key, ())]
    arms = {arm for _, _, arm in found}
    made: dict[int, Ablation] = {}
    for base, switch, arm in found:
        if base not in arms:
            one = made.setdefault(base, Ablation(groups[base], {}))
            one.arms[switch] = Group(groups[arm].runs, groups[arm].spread, groups[arm].valid)
    for one in made.values():
        measure(runs, list(one.arms.values()), one.baseline)
        one.arms = dict(sorted(one.arms.items(), key=lambda item: -item[1].spread.mean))
    return sorted(made.values(), key=lambda one: (not one.baseline.valid, one.baseline.spread.mean))


def roles(found: Sequence[Ablation]) -> dict[int, str]:
    """What each run is in an ablation, by its number: `baseline`, or the technique that is off."""
    told = {run: arm_name(switch) for one in found for switch, arm in one.arms.items() for run in arm.runs}
    return told | {run: "baseline" for one in found for run in one.baseline.runs}


def _shared(settings: Sequence[Mapping[str, Any] | None]) -> set[str]:
    known = [found for found in settings if found is not None]
    return {
        name for name, value in known[0].items() if all(key_of(one.get(name, ...)) == key_of(value) for one in known)
    }


def _is_without(values: Mapping[str, Any], switch: str) -> bool:
    """Whether a run lacks a technique: its option is off, and it has no settings of it either."""
    settings = switch.replace("/", ".") + "."
    there = switch.startswith("technique/") and any(name.startswith(settings) for name in values)
    return is_off(values.get(switch)) and not there


def _belongs(name: str, switch: str) -> bool:
    """Whether a setting is the switch, or one of those that come with its option."""
    part = switch.replace("/", ".")
    return name in (switch, part) or name.startswith(part + ".")
