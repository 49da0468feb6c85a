"""What of wandb's environment variables counts for a run: one order of precedence, and a word on each that does not.

A key of the config goes before its variable, a variable before golf's own value. Under `wandb agent` the sweep's
project, entity and run id go before all, for wandb itself then takes no others. A run that must be one of its own (a
job of a multirun, a later evaluation) leaves the variables that would make it another one.
"""

from __future__ import annotations

import os
import re
import secrets
import string
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

from golf.common.errors import ConfigError, reason

WandbMode = Literal["offline", "online", "disabled"]
PROJECT = "golf"

LONGEST_NAME = 128
"""Characters that wandb takes of the names of projects, groups and runs, and of ids."""
LONGEST_TAG = 64
FORBIDDEN = "/\\#?%:"
"""Characters that wandb takes in no project's name."""

VARIABLES = {
    "project": ("WANDB_PROJECT",), "entity": ("WANDB_ENTITY",), "group": ("WANDB_RUN_GROUP",),
    "name": ("WANDB_NAME", "WANDB_RUN_NAME"), "tags": ("WANDB_TAGS", "WANDB_RUN_TAGS"),
}  # fmt: skip
"""The keys of logger=wandb that a variable may fill."""
MODES = {"dryrun": "offline", "run": "online", **{mode: mode for mode in get_args(WandbMode)}}
IDENTITY = (
    "WANDB_RUN_ID", "WANDB_RESUME", "WANDB_RESUME_FROM", "WANDB_FORK_FROM", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH",
    "WANDB_LAUNCH", *VARIABLES["name"],
)  # fmt: skip
"""What makes a run this or that one; inherited by several runs, it would make them the same."""
OURS = {
    "WANDB_DIR": "wandb's files lie in the run folder",
    "WANDB_ROOT_DIR": "wandb's files lie in the run folder",
    "WANDB_CONFIG_PATHS": "the config that is logged is the run's",
    "WANDB_JOB_TYPE": "the job type is train or eval",
    "WANDB_RUN_JOB_TYPE": "the job type is train or eval",
    "WANDB_CONSOLE": "train.log has the lines",
    "WANDB_REINIT": "every run is a wandb run of its own",
    "WANDB_ANONYMOUS": "wandb has given it up",
}
"""What golf has settled, and how."""
UNCHECKED = ("WANDB_API_KEY", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR",
             "WANDB_SERVICE")  # fmt: skip
"""Any text will do for these: they alone need no look at what wandb's settings take."""
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|HEADER|PROXY")


@dataclass(frozen=True)
class Choice:
    """What a run gives to wandb, and what golf says of the variables it found.

    `own` says why the run must be one of its own, or nothing. `hidden` are the variables that wandb is not to see;
    `told` are the lines for the log.
    """

    project: str
    entity: str | None
    mode: WandbMode
    group: str | None
    name: str | None
    tags: list[str]
    run_id: str | None
    source: bool
    hidden: frozenset[str]
    told: tuple[str, ...]


def choose(keys: Mapping[str, Any], environ: Mapping[str, str], own: str = "") -> Choice:
    """Settle what counts: `keys` are those of logger=wandb, None where the config says nothing.

    Raises ConfigError for a value that wandb does not take, naming the key or the variable, the value and the limit.
    """
    given = {name: value for name, value in environ.items() if name.startswith("WANDB_") and value.strip()}
    hidden = {name for name in environ if name.startswith("WANDB_") and name not in given}  # empty: as if not there
    told: list[str] = []
    mode, line = _mode(keys.get("mode"), given)
    told += line
    foreign = [name for name in IDENTITY if name in given] if own else []
    if foreign:
        told.append(f"{own}, so not used: {_listed(foreign, given)}")
    hidden.update(foreign)
    agent = not own and any(given.get(name) for name in ("WANDB_SWEEP_ID", "WANDB_LAUNCH"))
    taken: dict[str, Any] = {}
    for key, names in VARIABLES.items():
        names = tuple(name for name in names if name in given and name not in hidden)
        value, origin = keys.get(key), f"logger.{key}"
        if names and ((agent and key in ("project", "entity")) or value is None):
            if value is not None and value != given[names[0]]:
                told.append(f"{names[0]}={given[names[0]]} counts under a wandb agent, not {origin}={value}")
            value, origin = given[names[0]], names[0]
        elif names and _words(value) != _words(given[names[0]]):
            told.append(f"{origin}={_shown(value)} counts, not {names[0]}={given[names[0]]}")
        taken[key] = accepted(key, value, origin)
        if key not in ("project", "entity"):
            hidden.update(names)
    hidden.update(name for name in (*OURS, "WANDB_MODE", "WANDB_DISABLED") if name in given)
    if unused := [name for name in OURS if name in given]:
        told.append("not used: " + ", ".join(f"{_listed([name], given)} ({OURS[name]})" for name in unused))
    if mode != "disabled":
        path = given.get("WANDB_SWEEP_PARAM_PATH", "")
        if path and "WANDB_SWEEP_PARAM_PATH" not in hidden and not os.path.isfile(path):
            raise ConfigError(f"WANDB_SWEEP_PARAM_PATH={path}: there is no such file")
        told += _resuming(given, mode, hidden)
        check_variables(given, hidden)
    run_id = None if own else given.get("WANDB_RUN_ID")
    _limited("WANDB_RUN_ID", run_id, LONGEST_NAME)
    if run_id and mode != "disabled":
        told.append(f"the wandb run is {run_id} by WANDB_RUN_ID")
    source = not (_switch(given, "WANDB_DISABLE_CODE") or _switch(given, "WANDB_SAVE_CODE") is False)
    if not source:
        told.append("golf's source is not kept with the run (WANDB_DISABLE_CODE, WANDB_SAVE_CODE)")
    return Choice(taken["project"] or PROJECT, taken["entity"], mode, taken["group"], taken["name"],
                  taken["tags"] or [], run_id, source, frozenset(hidden), tuple(told))  # fmt: skip


def group_of(sweep: str, environ: Mapping[str, str] = os.environ) -> str:
    """The group of a multirun's jobs when the config names none: WANDB_RUN_GROUP, else the sweep's name."""
    return environ.get("WANDB_RUN_GROUP", "").strip() or sweep[:LONGEST_NAME]


def kept_off(environ: Mapping[str, str]) -> str:
    """The variable that keeps this process off wandb's server, `NAME=value`, or nothing.

    Raises ConfigError for a mode that there is not.
    """
    given = {name: value for name, value in environ.items() if name in ("WANDB_MODE", "WANDB_DISABLED")}
    mode, _ = _mode(None, {name: value for name, value in given.items() if value.strip()})
    name = "WANDB_DISABLED" if _switch(given, "WANDB_DISABLED") else "WANDB_MODE"
    return f"{name}={given[name]}" if mode != "online" and given.get(name, "").strip() else ""


def new_id() -> str:
    """A run's id in wandb's own form; handed over, it leaves wandb no variable of any system to take one from."""
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))


def check_variables(given: Mapping[str, str], hidden: Collection[str] = ()) -> None:
    """Raise ConfigError for a variable whose value wandb's settings do not take; wandb is asked only where one is."""
    seen = {name: value for name, value in given.items() if name not in hidden}
    if (key := seen.get("WANDB_API_KEY", "")) != key.strip():
        raise ConfigError("WANDB_API_KEY begins or ends with a blank: wandb does not take it so")
    if not set(seen) - set(UNCHECKED):
        return
    import wandb

    for part in (*({name: value} for name, value in seen.items()), seen):
        settings = wandb.Settings()
        try:
            settings.update_from_env_vars(dict(part))
        except (ValueError, wandb.errors.Error) as error:
            raise ConfigError(
                f"{_listed(part, given)}: wandb does not take it ({reason(error, where=False)})"
            ) from None


@contextmanager
def as_chosen(choice: Choice) -> Iterator[None]:
    """Within the block the process's environment says what was chosen, and nothing that was not."""
    before = {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}
    for name in choice.hidden & before.keys():
        del os.environ[name]
    os.environ["WANDB_PROJECT"] = choice.project  # under an agent wandb reads it here, and passes over init's arguments
    if choice.entity:
        os.environ["WANDB_ENTITY"] = choice.entity
    try:
        yield
    finally:
        for name in ("WANDB_PROJECT", "WANDB_ENTITY"):
            os.environ.pop(name, None)
        os.environ.update(before)


def _mode(key: str | None, given: Mapping[str, str]) -> tuple[WandbMode, list[str]]:
    """The mode, and the line that says who chose it, if a variable did or would have."""
    origin, found = "WANDB_DISABLED", "disabled"
    if not _switch(given, "WANDB_DISABLED"):
        origin, found = "WANDB_MODE", given.get("WANDB_MODE", "").strip().lower()
    told = f"{origin}={given.get(origin, '')}"
    if key is not None:
        mode: Any = key
        return mode, [f"logger.mode={key} counts, not {told}"] if found and MODES.get(found) != key else []
    if not found:
        return "offline", []
    if found == "shared":
        raise ConfigError(
            f"{told}: golf writes a run from one process alone\nchoices: {', '.join(get_args(WandbMode))}"
        )
    if found not in MODES:
        raise ConfigError(f"{told}: there is no such mode\nchoices: {', '.join(MODES)}")
    mode = MODES[found]
    return mode, [f"wandb is {'off' if mode == 'disabled' else mode} by {told}"]


def _resuming(given: Mapping[str, str], mode: WandbMode, hidden: Collection[str]) -> list[str]:
    """What is to be said of resuming. Raises ConfigError for a run that must be resumed and is not named."""
    names = [name for name in ("WANDB_RESUME", "WANDB_RESUME_FROM", "WANDB_FORK_FROM") if name in given]
    names = [name for name in names if name not in hidden]
    if names and mode != "online":
        return [f"an offline run resumes nothing: {_listed(names, given)}"]
    if "WANDB_RESUME" in names and given["WANDB_RESUME"] == "must" and "WANDB_RUN_ID" not in given:
        raise ConfigError("WANDB_RESUME=must: which run is said by WANDB_RUN_ID, and there is none")
    return []


def accepted(key: str, value: Any, origin: str) -> Any:
    """The value of a key as wandb gets it; `origin` is who gave it. Raises ConfigError for what wandb does not take."""
    if key == "tags":
        return _tags(value, origin)
    if key == "project" and value is not None and not value.strip():
        raise ConfigError(f"{origin} is empty: wandb files every run under a project")
    value = (value or "").strip() or None
    _limited(origin, value, LONGEST_NAME)
    bad = [character for character in FORBIDDEN if character in (value or "")]
    if key in ("project", "entity") and bad:
        raise ConfigError(f"{origin}={value}: wandb takes no {' '.join(bad)} in it")
    return value


def _tags(value: str | Sequence[str] | None, origin: str) -> list[str]:
    if isinstance(value, str):
        value = [part for part in value.split(",") if part.strip()]
    found = [str(tag).strip() for tag in value or ()]
    if not all(found):
        raise ConfigError(f"{origin}: tag {found.index('') + 1} is empty; wandb takes 1 to {LONGEST_TAG} characters")
    for tag in found:
        _limited(origin, tag, LONGEST_TAG)
    return found


def _limited(origin: str, value: str | None, limit: int) -> None:
    if value is not None and len(value) > limit:
        raise ConfigError(f"{origin}: '{value[:24]}…' has {len(value)} characters, wandb takes {limit}")


def _switch(given: Mapping[str, str], name: str) -> bool | None:
    """A variable that is true or false. Raises ConfigError for another word."""
    value = given.get(name, "").strip().lower()
    if value in ("", "true", "yes", "on", "1", "t", "y", "false", "no", "off", "0", "f", "n"):
        return None if not value else value in ("true", "yes", "on", "1", "t", "y")
    raise ConfigError(f"{name}={given[name]}: true or false")


def _words(value: Any) -> list[str]:
    parts = value.split(",") if isinstance(value, str) else value or []
    return [str(part).strip() for part in parts]


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else f"[{','.join(map(str, value))}]"


def _listed(names: Collection[str], given: Mapping[str, str]) -> str:
    """Variables with their values, those of secrets without."""
    return ", ".join(name if SECRET.search(name) else f"{name}={given[name]}" for name in names)
