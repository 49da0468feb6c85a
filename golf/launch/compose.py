"""Composing configs with Hydra: discovered techniques, resolvers, and mistakes told in one clear line."""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import hydra
import omegaconf
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from golf.common.errors import ConfigError, did_you_mean
from golf.common.paths import conf_dir

CONFIG_NAME = "train"
MOST_CHECKED = 64
"""Up to so many jobs of a sweep are composed before the first starts; beyond, each swept value is checked once."""


def version_base() -> dict[str, Any]:
    """The `version_base` argument where this Hydra wants one (before 1.4)."""
    major, minor = (int(x) for x in hydra.__version__.split(".")[:2])
    return {"version_base": "1.3"} if (major, minor) < (1, 4) else {}


@dataclass
class CommandLine:
    """A command line, taken apart: overrides in order, flags, --config-dir folders, --multirun."""

    overrides: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    config_dirs: list[Path] = field(default_factory=list)
    multirun: bool = False

    @property
    def prepare(self) -> bool:
        """Whether run folders are made, and nothing is run."""
        return "--prepare" in self.flags

    @property
    def hydra_flags(self) -> list[str]:
        """The flags that Hydra knows."""
        return [flag for flag in self.flags if flag != "--prepare"]

    @classmethod
    def parse(cls, argv: Sequence[str]) -> CommandLine:
        """Split `argv`; flags may stand anywhere. Raises ConfigError for a flag without its value or a missing
        folder."""
        line = cls()
        words = iter(argv)
        for word in words:
            if not word.startswith("-"):
                line.overrides.append(spelled(word))
                continue
            name, given, value = word.partition("=")
            if name in ("-m", "--multirun"):
                line.multirun = True
            elif name in ("--config-dir", "-cd", "--cfg", "-c", "--info", "-i", "--package", "-p"):
                if not given:
                    value = next(words, "")
                if not value:
                    raise ConfigError(f"{name}: a value must follow")
                if name in ("--config-dir", "-cd"):
                    folder = Path(value).expanduser().absolute()
                    if not folder.is_dir():
                        raise ConfigError(f"--config-dir {value}: there is no such folder")
                    line.config_dirs.append(folder)
                else:
                    line.flags += [name, value]
            elif word in ("--prepare", "--resolve", "--hydra-help", "--version"):
                line.flags.append(word)
            else:
                known = ["--multirun", "--config-dir", "--prepare", "--cfg", "--info", "--package", "--resolve"]
                raise ConfigError(f"{word}: unknown flag {did_you_mean(word, known)}")
        if len(line.config_dirs) > 1:
            raise ConfigError("--config-dir: give one folder")
        return line

    def hydra_argv(self) -> list[str]:
        """The same line in the order in which Hydra's own parser takes it."""
        dirs = [word for folder in self.config_dirs for word in ("--config-dir", str(folder))]
        return [*dirs, *self.hydra_flags, *(["--multirun"] if self.multirun else []), *self.overrides]


def techniques(config_dirs: Sequence[Path] = ()) -> list[str]:
    """Names of the groups under technique/ in golf's conf and the given folders."""
    roots = [conf_dir(), *config_dirs]
    return sorted({path.parent.name for root in roots for path in root.glob("technique/*/*.yaml")})


def options(group: str, config_dirs: Sequence[Path] = ()) -> list[str]:
    """Option names of a config group, `none` of a technique included; [] when there is no such group."""
    found = {path.stem for root in (conf_dir(), *config_dirs) for path in root.glob(f"{group}/*.yaml")}
    if found and group.startswith("technique/"):
        found.add("none")
    return sorted(found)


def groups(config_dirs: Sequence[Path] = ()) -> list[str]:
    """Every config group of golf's, `model/attention` style."""
    found = set()
    for root in (conf_dir(), *config_dirs):
        found |= {path.parent.relative_to(root).as_posix() for path in root.rglob("*.yaml")}
    return sorted(name for name in found - {"."} if not name.startswith("hydra/"))  # those have options of Hydra's too


def register(config_dirs: Sequence[Path] = ()) -> None:
    """Teach Hydra golf's resolvers, and the discovered techniques: each gets a `none` and a place in the defaults."""
    add: Any = OmegaConf.register_new_resolver
    if tuple(int(part) for part in omegaconf.__version__.split(".")[:2]) >= (2, 4):
        add = OmegaConf.register_resolver  # the same under a new name
    add("golf.max", _largest, replace=True)
    add("golf.part", lambda part, whole: round(part * whole), replace=True)
    add("golf.tag", lambda: secrets.token_hex(2), replace=True, use_cache=True)
    add("golf.called", _called, replace=True)
    names = techniques(config_dirs)
    defaults = [{name: "none"} for name in names]
    # Hydra 1.4 wants to be told that a second command of one process may register the same again.
    again: dict[str, Any] = {} if version_base() else {"replace": True}
    store = ConfigStore.instance()
    for name in names:
        store.store(group=f"technique/{name}", name="none", node={}, provider="golf", **again)
    store.store(group="technique", name="discovered", node={"defaults": defaults}, provider="golf", **again)


def _largest(*numbers: Any) -> Any:
    return max((n for n in numbers if n is not None), default=None)


def _called(name: str | None) -> str:
    """What a run's folder is called beside its time: the run's name, or its recipe's."""
    if name is not None:
        return str(name)
    return str(HydraConfig.get().runtime.choices.get("recipe", "run")) if HydraConfig.initialized() else "run"


@contextmanager
def composer(config_dirs: Sequence[Path] = ()) -> Iterator[None]:
    """Within the block, `compose_job` works: golf's conf is the primary source, `config_dirs` are searched too."""
    register(config_dirs)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), job_name="golf", **version_base()):
        yield
    GlobalHydra.instance().clear()


def compose_job(overrides: Sequence[str], config_dirs: Sequence[Path] = (), name: str = CONFIG_NAME) -> DictConfig:
    """Compose one job's config. Raises ConfigError with Hydra's reason in at most three lines."""
    quoted = ",".join("'file://{}'".format(str(d).replace("'", r"\'")) for d in config_dirs)
    search = [f"hydra.searchpath=[{quoted}]"] if config_dirs else []
    try:
        return compose(name, overrides=[*overrides, *search])
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(short(error)) from error


def short(error: BaseException) -> str:
    """Hydra's or OmegaConf's reason in at most three lines, without their bookkeeping."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kept = [
        line
        for line in lines
        if not re.match(r"(full_key|object_type|reference_type)\b|Config search path|provider=", line)
    ]
    cause = error.__cause__
    if cause is not None and len(kept) < 2:
        kept += [line.strip() for line in str(cause).splitlines() if line.strip() and line.strip() not in kept][:1]
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
        parsed = [parse_override(word) for word in self.line.overrides]
        for override in parsed:
            self.check_named(override)
        chosen = [o for o in parsed if self.is_group(o)]
        for override in chosen:
            self.check_options(override)
        first = [f"{o.key_or_group}={override_values(o)[0]}" for o in chosen if override_values(o)]
        base = compose_job(first, self.line.config_dirs, self.name)
        return replace(self.line, overrides=self.completed(self.line.overrides, base))

    def completed(self, words: Sequence[str], base: DictConfig) -> list[str]:
        """Words with bare names completed and every key known in `base`. Raises ConfigError as `complete` does."""
        keys = flat_keys(base)
        found = []
        for word in words:
            override = parse_override(word)
            if self.is_group(override):
                self.check_options(override)
            found.append(word if self.is_group(override) else self._completed(override, word, keys, base))
        return found

    def jobs(self, line: CommandLine, most: int = MOST_CHECKED) -> list[list[str]]:
        """Override lists to compose: one without --multirun; the whole grid, or beyond `most` each swept value once.

        Raises ConfigError for a sweep without --multirun, or with an empty list of values.
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
                raise ConfigError(f"{word}: several values need --multirun (-m)")
            values = tried_values(override)
            if not values:
                raise ConfigError(f"{word}: there is nothing to sweep over")
            axes.append([f"{override.get_key_element()}={value}" for value in values])
        if not axes:
            return [fixed]
        count = 1
        for axis in axes:
            count *= len(axis)
        if count <= most:
            return [fixed + list(job) for job in itertools.product(*axes)]
        firsts = [axis[0] for axis in axes]
        return [[*fixed, *firsts[:i], value, *firsts[i + 1 :]] for i, axis in enumerate(axes) for value in axis]

    def is_group(self, override: Override) -> bool:
        """Whether an override chooses an option of a group."""
        return override.key_or_group in self.groups and "." not in override.key_or_group

    def check_named(self, override: Override) -> None:
        """Raises ConfigError for null where a folder of groups is named, and for a run without a folder."""
        key, value = override.key_or_group, override.value()
        inner = [f"{group}=…" for group in self.groups if group.startswith(f"{key}/")]
        if value is None and (inner or key == "hydra") and not override.is_delete():
            raise ConfigError(f"{key}=null: it holds groups; choose one's option ({', '.join(inner) or 'hydra/…=…'})")
        if key in ("hydra.run.dir", "hydra.sweep.dir") and value in (None, ""):
            raise ConfigError(f"{key}=: name the folder, such as {key}=outputs/mine")

    def check_options(self, override: Override) -> None:
        """Raises ConfigError for an option that a group does not have."""
        group = override.key_or_group
        known = options(group, self.line.config_dirs)
        if override.is_delete():
            raise ConfigError(f"~{group}: a group cannot be left out; choose an option\nchoices: {', '.join(known)}")
        for value in override_values(override):
            if value not in known:
                raise ConfigError(f"{group}={value}: there is no such option\nchoices: {', '.join(known)}")

    def _completed(self, override: Override, word: str, keys: list[str], base: DictConfig) -> str:
        key = override.key_or_group
        if override.is_force_add() or override.is_add() or key == "hydra" or key.startswith(("hydra.", "hydra/")):
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


def spelled(word: str) -> str:
    """`key=log(1,9)` and `key=int(1,9)` in Hydra's own words, `sweep.params.key=…` as `key=…`; the rest as it is."""
    word = re.sub(r"^\+{0,2}sweep\.params\.(?=[^=]+=)", "", word)
    key, equals, value = word.partition("=")
    match = re.fullmatch(r"\s*(log|int)\(\s*([^(),]+),([^(),]+)\)\s*", value)
    if not equals or match is None:
        return word
    name, low, high = match.groups()
    inside = f"interval({low.strip()},{high.strip()})"
    return f"{key}=tag(log,{inside})" if name == "log" else f"{key}=int({inside})"


def parse_override(word: str) -> Override:
    """One override, parsed. Raises ConfigError naming it."""
    try:
        return OverridesParser.create().parse_overrides([word])[0]
    except HydraException as error:
        raise ConfigError(f"{word}: not an override ({short(error).splitlines()[0]})") from error


def _is_node(config: DictConfig, key: str) -> bool:
    return isinstance(OmegaConf.select(config, key), DictConfig)


def override_values(override: Override) -> list[str]:
    """The values an override takes, as strings: one, or those of its sweep. Raises ConfigError for a continuous one."""
    if override.is_delete():
        return []
    if override.is_sweep_override() and not override.is_discrete_sweep():
        raise ConfigError(f"{override.input_line}: a range without steps; name its values, a,b,c or range(0,8,2)\n"
                          "or let sweep=tpe search it")  # fmt: skip
    if override.is_sweep_override():
        return [str(v) for v in override.sweep_string_iterator()]
    return [str(override.get_value_element_as_str())]


def tried_values(override: Override) -> list[str]:
    """The values of an override, of a continuous range its two ends: what is composed to find mistakes."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        return [f"{value.start:g}", f"{value.end:g}"]  # 4 for 4.0: it may be for a whole number
    return override_values(override)


def flat_keys(config: DictConfig) -> list[str]:
    """Every dotted key of a config, inner nodes included."""
    found: list[str] = []

    def walk(node: Any, prefix: str) -> None:
        if isinstance(node, dict):
            for name, value in node.items():
                full = f"{prefix}.{name}" if prefix else str(name)
                found.append(full)
                walk(value, full)

    walk(OmegaConf.to_container(config, resolve=False), "")
    return found


def resolved(config: DictConfig) -> dict[str, Any]:
    """The config as plain data with every interpolation filled in. Raises ConfigError where one cannot be."""
    try:
        if missing := sorted(key for key in OmegaConf.missing_keys(config) if not key.startswith("hydra.")):
            raise ConfigError(f"{missing[0]} must be given: {missing[0]}=…")
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(short(error)) from error
    assert isinstance(plain, dict)
    plain.pop("hydra", None)
    return {str(key): value for key, value in plain.items()}
