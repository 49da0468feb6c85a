"""`golf train run=DIR`: the words of a command line that compose a run's config again."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from golf.common.errors import ConfigError, GolfError
from golf.launch.compose.configs import compose_job, composer, resolved, short
from golf.launch.compose.line import CommandLine, searched
from golf.launch.compose.options import CONFIG_NAME, DISCOVERED, options, primary
from golf.launch.compose.trust import admit
from golf.launch.compose.words import literal
from golf.runs.store import Run, load_run

OWN = ("choices", "published", "code_paths", "name", "tags")
"""Keys of a config that belong to one run alone."""
OWN_OF_LOGGER = ("group", "multirun", "name", "tags")
PLACE_OF_LOGGER = ("project", "entity", "mode")
"""Where a run's figures went: whoever trains it again has an account of their own, and says where theirs go."""
BEFORE = {"model.init.draws": "in_order"}
"""What a run did that was made before there was a setting."""
ABSENT = object()


def again(line: CommandLine) -> CommandLine:
    """A line that names a run by `run=DIR`, with the words in its place that compose the run's config; what else stands
    on the line wins. Lines without one stay as they are.

    The run's own copy of its code serves unless --config-dir names another folder. Raises ConfigError for a folder
    without a config, for one that the present options cannot be composed to, and for code that nobody has allowed.
    """
    named = [word for word in line.overrides if word.startswith("run=")]
    if not named:
        return line
    if len(named) > 1:
        raise ConfigError(f"{named[1]}: the line names a run already, {named[0]}")
    try:
        run = load_run(named[0].removeprefix("run="))
    except GolfError as error:
        raise ConfigError(f"run={error}") from error
    if not run.config:
        raise ConfigError(f"{named[0]}: its {run.folder.config.name} is missing or broken: it cannot be trained again")
    code = admit(run.dir, run.config, named[0], trust=line.trust, named=line.config_dirs)
    dirs = line.config_dirs or [Path(one) for one in code]
    rest = [word for word in line.overrides if word not in named]
    chosen = {_key(word) for word in rest}
    words = [word for word in words_of(run, dirs) if not _replaced(_key(word), chosen)]
    if left := [word for word in place_of(run) if not _replaced(_key(word), chosen)]:
        print(f"{named[0]}: where it was logged is not taken over: {' '.join(left)}", file=sys.stderr)
    return replace(line, overrides=[*words, *rest], config_dirs=dirs, trust=False)


def place_of(run: Run) -> list[str]:
    """The words that say where a run's figures went, as far as its config did."""
    logger = run.config.get("logger")
    given = logger if isinstance(logger, dict) else {}
    return [f"logger.{name}={literal(given[name])}" for name in PLACE_OF_LOGGER if given.get(name) is not None]


def words_of(run: Run, config_dirs: Sequence[Any]) -> list[str]:
    """The options and settings that compose a run's config today: options first, then the values that differ."""
    not_chosen = ("local", *DISCOVERED)
    choices = {str(k): str(v) for k, v in (run.config.get("choices") or {}).items() if k not in not_chosen}
    known = {group: one for group, one in choices.items() if one in options(group, config_dirs)}
    start = [f"{group}={known[group]}" for group in ("recipe", "budget") if group in known]
    with composer(config_dirs):
        whole = _with_choices([*start, *searched(config_dirs)])
        standard = OmegaConf.to_container(whole.hydra.runtime.choices)
        assert isinstance(standard, dict)
        more = [f"{g}={o}" for g, o in known.items() if g not in ("recipe", "budget") and standard.get(g) != o]
        words = [*start, *more]
        wanted = _shared(run.config, run.overridden)
        # First what follows from nothing: much of the rest then follows from it, and goes on doing so on another line.
        for follows in (False, True):
            base = compose_job(words, config_dirs)
            written = _plain(base, resolve=False)
            words += [
                word
                for word in differences(_plain(base, resolve=True), wanted)
                if follows or not _is_followed(written, _key(word))
            ]
        found = _shared(resolved(compose_job(words, config_dirs)), run.overridden)
    if left := differences(found, wanted):
        raise ConfigError(f"run={run.dir}: golf's present options cannot be composed to its config\n{left[0]}")
    for word in differences(wanted, _chosen(found)):
        print(f"run={run.dir}: it had no such setting, which is now {word.lstrip('+')}", file=sys.stderr)
    return words


def _with_choices(words: Sequence[str]) -> DictConfig:
    """A composed config with Hydra's part, which knows the option of every group. Raises ConfigError."""
    try:
        return compose(CONFIG_NAME, overrides=list(words), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(short(error)) from error


def differences(base: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The words that turn one config into another: one a value that differs, lists as wholes."""
    words = []
    for name, value in wanted.items():
        key, own = f"{prefix}{name}", base.get(name, ABSENT)
        if isinstance(value, dict) and isinstance(own, dict) and own:
            words += differences(own, value, f"{key}.")
        elif own is ABSENT or own != value or type(own) is not type(value):
            words.append(f"{'+' if own is ABSENT else ''}{key}={literal(value)}")
    return words


def _plain(config: DictConfig, resolve: bool) -> dict[str, Any]:
    try:
        plain = OmegaConf.to_container(config, resolve=resolve)
    except OmegaConfBaseException as error:
        raise ConfigError(short(error)) from error
    assert isinstance(plain, dict)
    return {str(name): value for name, value in plain.items()}


def _is_followed(config: Mapping[str, Any], key: str) -> bool:
    """Whether a config has an interpolation of other values at this key."""
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return isinstance(node, str) and "${" in node


def _shared(config: Mapping[str, Any], given: Sequence[str]) -> dict[str, Any]:
    """What another run may share of a run's config; its share of a machine's cores only if it was `given`."""
    kept = {name: deepcopy(value) for name, value in config.items() if name not in OWN and name in primary().known}
    kept.pop("sweep", None)
    if isinstance(logger := kept.get("logger"), dict):
        aside = (*OWN_OF_LOGGER, *PLACE_OF_LOGGER)
        kept["logger"] = {name: value for name, value in logger.items() if name not in aside}
    if isinstance(runtime := kept.get("runtime"), dict) and "runtime.threads" not in given:
        kept["runtime"] = {name: value for name, value in runtime.items() if name != "threads"}
    for key, value in BEFORE.items():
        *path, last = key.split(".")
        node: Any = kept
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node.setdefault(last, value)
    return kept


def _chosen(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without what is off or empty in it: a run that had no key for it had none of it either."""
    on = {folder: {name: node for name, node in config.get(folder, {}).items() if node} for folder in DISCOVERED}
    return {name: value for name, value in {**config, **on}.items() if value not in ({}, [])}


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0].replace("/", ".")


def _replaced(key: str, chosen: set[str]) -> bool:
    """Whether a word on the line stands for one of the run's: it has the same key, or chooses a group that holds it."""
    return any(key == one or key.startswith(f"{one}.") for one in chosen)
