"""Composing configs with Hydra: discovered groups, resolvers, and mistakes told in one clear line."""

from __future__ import annotations

import itertools
import math
import re
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
import omegaconf
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from golf.common.errors import ConfigError, did_you_mean
from golf.common.paths import conf_dir
from golf.launch.compose import phases
from golf.launch.compose.hydra_options import TOLD
from golf.launch.compose.hydra_options import check as check_hydra
from golf.launch.compose.keys import DROP, NotTaken, check_keys, flatten, no_component, put_right
from golf.launch.compose.line import CommandLine, searched
from golf.launch.compose.options import (
    CONFIG_NAME,
    DISCOVERED,
    discovered,
    groups,
    options,
    primary,
)
from golf.launch.compose.own_files import check_folders, check_option, strayed, where_set
from golf.launch.compose.words import (
    expanded,
    named,
    option_names,
    override_values,
    parse_override,
    readable,
    tried_values,
)

_DIRS: ContextVar[tuple[Path, ...]] = ContextVar("config_dirs", default=())
"""The folders that the `composer` in force searches too; a command line of Hydra's own knows its."""
MOST_CHECKED = 64
"""Up to so many jobs of a sweep are composed before the first starts; beyond, each swept value is checked once."""


def version_base() -> dict[str, Any]:
    """The `version_base` argument where this Hydra wants one (before 1.4)."""
    major, minor = (int(x) for x in hydra.__version__.split(".")[:2])
    return {"version_base": "1.3"} if (major, minor) < (1, 4) else {}


def register(config_dirs: Sequence[Path] = ()) -> None:
    """Teach Hydra golf's resolvers, and the discovered groups: each gets a `none` and a place in the defaults."""
    add: Any = OmegaConf.register_new_resolver
    if tuple(int(part) for part in omegaconf.__version__.split(".")[:2]) >= (2, 4):
        add = OmegaConf.register_resolver  # the same under a new name
    add("golf.max", _largest, replace=True)
    add("golf.part", lambda part, whole: round(part * whole), replace=True)
    add("golf.tag", lambda: secrets.token_hex(2), replace=True, use_cache=True)
    add("golf.called", _called, replace=True)
    # Hydra 1.4 wants to be told that a second command of one process may register the same again.
    again: dict[str, Any] = {} if version_base() else {"replace": True}
    store = ConfigStore.instance()
    for folder in DISCOVERED:
        names = discovered(folder, config_dirs)
        for name in names:
            store.store(group=f"{folder}/{name}", name="none", node={}, provider="golf", **again)
        node = {"defaults": [{name: "none"} for name in names]}
        store.store(group=folder, name="discovered", node=node, provider="golf", **again)


def _largest(*numbers: Any) -> Any:
    return max((n for n in numbers if isinstance(n, int | float)), default=None)  # what is none is told by its own key


def _called(name: str | None) -> str:
    """What a run's folder is called beside its time: the run's name, or its recipe's."""
    if name is not None:
        return str(name)
    return str(HydraConfig.get().runtime.choices.get("recipe", "run")) if HydraConfig.initialized() else "run"


@contextmanager
def composer(config_dirs: Sequence[Path] = ()) -> Iterator[None]:
    """Within the block, `compose_job` works: golf's conf is the primary source, `config_dirs` are searched too."""
    if sys.flags.optimize and version_base():  # 1.4 does without
        raise ConfigError("PYTHONOPTIMIZE (python -O) breaks Hydra, which reads the command line: unset it")
    register(config_dirs)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), job_name="golf", **version_base()):
        before = _DIRS.set(tuple(config_dirs))
        yield
        _DIRS.reset(before)
    GlobalHydra.instance().clear()


def compose_job(overrides: Sequence[str], config_dirs: Sequence[Path] = (), name: str = CONFIG_NAME) -> DictConfig:
    """Compose one job's config. Raises ConfigError with Hydra's reason in at most three lines."""
    try:
        config = compose(name, overrides=[*overrides, *searched(config_dirs)])
    except Exception as error:  # a yaml of the user's may bring Hydra down in any way
        raise ConfigError(short(error)) from error
    put_right(config, overrides)
    return config


def _option(group: str, name: str, told: str) -> Any:
    """The node of a group's option, None where there is no such group. Raises ConfigError for what is none of its."""
    known = {*options(group, _DIRS.get()), *GlobalHydra.instance().config_loader().get_group_options(group)}
    if not known:
        return None
    if name not in known:
        raise ConfigError(f"{told}={name}: there is no such option\nchoices: {', '.join(sorted(known))}")
    try:
        plain = compose(CONFIG_NAME, overrides=["recipe=none", f"{group}={name}", *searched(_DIRS.get())])
    except Exception as error:  # a yaml of the user's may bring Hydra down in any way
        raise ConfigError(short(error)) from error
    put_right(plain, ())
    return OmegaConf.select(plain, group.replace("/", "."), default={})


def without(config: DictConfig, name: str) -> DictConfig:
    """A copy of a config without one of its nodes."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != name])


def short(error: BaseException) -> str:
    """Hydra's or OmegaConf's reason in at most three lines, without their bookkeeping."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    key = next((line.partition(": ")[2] for line in lines if re.match(r"full_key: [\w.]+$", line)), "")
    noise = re.compile(r"(full_key|object_type|reference_type)\b|Config search path|provider=")
    kept = [line for line in lines if not noise.match(line)]
    if kept and (part := re.match(r"Could not override '([\w/]+)/(\w+)'\. No match", kept[0])):
        return f"{part[1]}/{part[2]}: the option chosen for {part[1]} has no {part[2]}; give {part[1]}= one that has"
    cause = error.__cause__
    if cause is not None and len(kept) < 2:
        kept += [line.strip() for line in str(cause).splitlines() if line.strip() and line.strip() not in kept][:1]
    if key and kept and key not in "\n".join(kept[:3]):
        kept[min(len(kept), 3) - 1] += f" ({key})"
    return "\n".join(kept[:3])


class Checker:
    """Finds mistakes in a command line before Hydra runs it; used within `composer`."""

    def __init__(self, line: CommandLine, name: str = CONFIG_NAME) -> None:
        self.line, self.name = line, name
        self.groups = groups(line.config_dirs)

    def complete(self) -> CommandLine:
        """The command line with bare names completed (`num_layers` → `model.num_layers`) and every key known.

        Raises ConfigError naming the key, the value and the choices.
        """
        words, chosen = self._chosen()
        first = [f"{o.get_key_element()}={override_values(o)[0]}" for o in chosen if override_values(o)]
        base = compose_job(first, self.line.config_dirs, self.name)
        return replace(self.line, overrides=self.completed(words, base))

    def whole(self) -> CommandLine | None:
        """The command line as `complete` returns it, found without composing anything; None unless composing the line
        itself finds each wrong key: where one is written in part, added, taken away, or a group's with a dot.

        Raises ConfigError for options.
        """
        words, _ = self._chosen()
        found = [parse_override(word) for word in words]
        return replace(self.line, overrides=words) if all(map(self._is_whole, found)) else None

    def _is_whole(self, override: Override) -> bool:
        key = override.key_or_group
        if self.is_group(override) or key.startswith("hydra"):
            return True
        if override.is_add() or override.is_force_add() or override.is_delete():
            return False
        return key.split(".")[0] in primary().known and key.replace(".", "/") not in self.groups

    def _chosen(self) -> tuple[list[str], list[Override]]:
        """The words as Hydra can read them, and those that choose options. Raises ConfigError for such as there are
        not."""
        words = [self.plain(word) for word in self.line.overrides]
        parsed = [parse_override(word) for word in words]
        chosen = [o for o in parsed if self.is_group(o)]
        named = [(o.key_or_group, name) for o in chosen if not o.is_delete() for name in option_names(o)]
        check_folders(self.line.config_dirs, named)
        check_option("local", "default", self.line.config_dirs)
        for override in parsed:
            self.check_named(override)
        for override in chosen:
            self.check_options(override)
        return words, chosen

    def plain(self, word: str) -> str:
        """The word as Hydra can read it: quotes where they must be, a glob as the options it stands for."""
        word = named(readable(word), lambda group: options(group, self.line.config_dirs))
        # Hydra 1.3's own sweeper adds up binary fractions
        listed = "hydra/sweeper=basic" in self.line.overrides
        return expanded(word, parse_override(word), lambda group: options(group, self.line.config_dirs), listed)

    def completed(self, words: Sequence[str], base: DictConfig) -> list[str]:
        """Words with bare names completed and every key known in `base`. Raises ConfigError as `complete` does."""
        keys = flat_keys(base)
        found = []
        for word in map(self.plain, words):
            override = parse_override(word)
            if self.is_group(override):
                self.check_options(override)
            found.append(word if self.is_group(override) else self._completed(override, word, keys, base))
        return found

    def jobs(self, line: CommandLine, most: int = MOST_CHECKED, whole: bool = False) -> list[list[str]]:
        """Override lists to compose: one without --multirun; the whole grid, or beyond `most` each swept value once.

        whole: never less than the grid. Raises ConfigError for a sweep without --multirun, with an empty list of
        values, or with more than `most` jobs where the `whole` is wanted.
        """
        parsed = [parse_override(word) for word in line.overrides]
        fixed: list[str] = []
        axes: list[list[str]] = []
        for override, word in zip(parsed, line.overrides, strict=True):
            if override.key_or_group.startswith("hydra"):
                continue
            if not override.is_sweep_override():
                fixed.append(word)
                continue
            if not line.multirun:
                lists = f"; a list of them is {override.get_key_element()}=[…]" if self._texts(override) else ""
                raise ConfigError(f"{word}: several values need --multirun (-m){lists}")
            values = tried_values(override)
            if not values:
                raise ConfigError(f"{word}: there is nothing to sweep over")
            axes.append([f"{override.get_key_element()}={value}" for value in values])
        if not axes:
            return [fixed]
        count = math.prod(len(axis) for axis in axes)
        if whole and count > most:
            raise ConfigError(f"{count:,} combinations of values: more than {most:,} are not run")
        if count <= most:
            return [fixed + list(job) for job in itertools.product(*axes)]
        firsts = [axis[0] for axis in axes]
        return [[*fixed, *firsts[:i], value, *firsts[i + 1 :]] for i, axis in enumerate(axes) for value in axis]

    def _texts(self, override: Override) -> bool:
        """Whether the values are texts, which a list may hold, and no options."""
        return not self.is_group(override) and bool(re.search(r"[A-Za-z/]", override.get_value_string()))

    def grid(self, line: CommandLine, most: int = 1_000) -> list[list[str]]:
        """The override lists of a whole grid. Raises ConfigError as `jobs` does."""
        return self.jobs(line, most, whole=True)

    def is_group(self, override: Override) -> bool:
        """Whether an override chooses an option of a group."""
        return override.key_or_group in self.groups and "." not in override.key_or_group

    def check_named(self, override: Override) -> None:
        """Raises ConfigError for null where a folder of groups is named, and for a run without a folder."""
        key, value = override.key_or_group, override.value()
        inner = [f"{group}=…" for group in self.groups if group.startswith(f"{key}/")]
        if value is None and (inner or key == "hydra") and not override.is_delete():
            raise ConfigError(f"{key}=null: it holds groups; choose one's option ({', '.join(inner) or 'hydra/…=…'})")
        if key == "hydra" and not isinstance(value, dict):
            raise ConfigError(f"{override.input_line}: choose by {' or '.join(f'{group}=…' for group in TOLD)}")
        if (what := DISCOVERED.get(key)) is not None and not isinstance(value, dict):
            one = f"{key}/{value}"
            chosen = [one] if one in self.groups else [group for group in self.groups if group.startswith(f"{key}/")]
            known = "; ".join(f"{group}={', '.join(options(group, self.line.config_dirs))}" for group in chosen)
            raise ConfigError(f"{override.input_line}: each {what} is a group of its own, {key}/NAME=…\n"
                              f"choices: {known}")  # fmt: skip
        if key.startswith("hydra/") and not override.is_delete():
            check_hydra(override, option_names(override))
        if key in ("hydra.launcher", "hydra.sweeper") and not isinstance(value, dict):
            raise ConfigError(f"{override.input_line}: choose one by {key.replace('.', '/')}=…")
        if key in ("hydra.run.dir", "hydra.sweep.dir") and value in (None, ""):
            raise ConfigError(f"{key}=: name the folder, such as {key}=outputs/mine")
        if key == "hydra.searchpath":
            raise ConfigError(f"{override.input_line}: name a folder of your own options by --config-dir DIR")

    def check_options(self, override: Override) -> None:
        """Raises ConfigError for an option that a group does not have, or whose yaml cannot be used."""
        group, dirs = override.key_or_group, self.line.config_dirs
        known = options(group, dirs)
        if override.is_delete():
            raise ConfigError(f"~{group}: a group cannot be left out; choose an option\nchoices: {', '.join(known)}")
        for name in option_names(override):
            if name not in known:
                choices = f"\nchoices: {', '.join(known)}{strayed(group, name, dirs)}"
                raise ConfigError(f"{group}={name}: there is no such option{choices}")
            check_option(group, name, dirs)

    def _completed(self, override: Override, word: str, keys: list[str], base: DictConfig) -> str:
        key = override.key_or_group
        if key == "hydra" or key.startswith(("hydra.", "hydra/")):
            return word
        if override.is_force_add() or override.is_add():
            top = re.split(r"[./]", key)[0]
            if top not in (*base, *primary().groups) and not options(key, self.line.config_dirs):
                raise ConfigError(f"{word}: there is no key '{top}' {did_you_mean(top, primary().known)}".rstrip())
            return word
        if key in keys:
            value, group = override.value(), key.replace(".", "/")
            if group in self.groups and not isinstance(value, dict | None) and _is_node(base, key):
                known = ", ".join(options(group, self.line.config_dirs))
                raise ConfigError(f"{word}: choose an option with a slash, {group}=…\nchoices: {known}")
            return word
        leaves = [k for k in keys if k.rsplit(".", 1)[-1] == key]
        if len(leaves) == 1:
            return word.replace(key, leaves[0], 1)
        if len(leaves) > 1:
            raise ConfigError(f"{key}: several keys end so; write one of {', '.join(leaves)}")
        if (group := key.replace(".", "/")) in self.groups:
            known = ", ".join(options(group, self.line.config_dirs))
            raise ConfigError(f"{word}: choose an option with {group}=…\nchoices: {known}")
        near = [k for k in keys if k.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
        near = near or [k for k in keys if k.endswith(f"_{key}")][:6]
        hint = f"(did you mean {' or '.join(near)}?)" if near else did_you_mean(key, [*keys, *self.groups])
        raise ConfigError(f"{word}: there is no key '{key}' {hint}")


@contextmanager
def told_where(line: CommandLine) -> Iterator[None]:
    """Within the block, a ConfigError on a key that a yaml of the user's sets names that file too; one on a setting
    that a component does not take golf's file as well, and the remedy."""
    try:
        yield
    except ConfigError as error:
        found = re.match(r"[a-z_][\w.\[\]]*", str(error))
        if found is None or len(lines := str(error).splitlines()) > 2:
            raise
        file, remedy = None, ""
        with suppress(ConfigError):  # the words themselves may be what is wrong
            checker = Checker(line)
            parsed = [parse_override(checker.plain(word)) for word in line.overrides]
            if found[0] not in {override.key_or_group for override in parsed if not checker.is_group(override)}:
                chosen = [(o.key_or_group, name) for o in parsed if checker.is_group(o) for name in option_names(o)]
                recipe = [] if "recipe" in dict(chosen) else [("recipe", primary().options["recipe"])]
                chosen = [*recipe, *chosen, ("local", "default")]
                file = where_set(found[0], chosen, line.config_dirs)
                if isinstance(error, NotTaken):
                    file = file or where_set(found[0], chosen, line.config_dirs, golfs=True)
                    own = where_set(f"{found[0].rpartition('.')[0]}._target_", chosen, line.config_dirs)
                    told = f"\nwhat {own} does not take it can leave out: {DROP}: [{', '.join(error.names)}]"
                    remedy = told if own else ""
        if file is None or file in lines[0]:
            raise
        raise ConfigError(f"{error}\n{found[0]} is set in {file}{remedy}") from error


def _is_node(config: DictConfig, key: str) -> bool:
    return isinstance(OmegaConf.select(config, key), DictConfig)


def flat_keys(config: DictConfig) -> list[str]:
    """Every dotted key of a config, inner nodes included."""
    return flatten(OmegaConf.to_container(config, resolve=False))


def resolved(config: DictConfig, added: Sequence[str] = ()) -> dict[str, Any]:
    """The config as plain data with every interpolation filled in. Raises ConfigError where one cannot be, and for a
    key that nothing takes (`added` are known besides)."""
    check_keys(config, added)
    plain = _filled(config)
    plain.pop("hydra", None)
    if plain.get("phases"):
        plain["phases"] = phases.settled(config, _filled, _option)
    return plain


def resolved_node(config: DictConfig, name: str) -> dict[str, Any]:
    """One node of a config, whatever the others still lack. Raises ConfigError as `resolved` does."""
    check_keys(config)
    return _filled(config, name)


def _filled(config: DictConfig, name: str = "") -> dict[str, Any]:
    prefix = f"{name}." if name else ""
    try:
        node = config[name] if name else config
        if not isinstance(node, DictConfig):  # it was an interpolation
            raise ConfigError(no_component(name))
        if missing := sorted(key for key in OmegaConf.missing_keys(node) if not key.startswith("hydra.")):
            raise ConfigError(f"{prefix}{missing[0]} must be given: {prefix}{missing[0]}=…")
        plain = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(short(error)) from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
