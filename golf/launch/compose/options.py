"""Config groups and their options: golf's own, those of --config-dir folders, and of installed packages."""

from __future__ import annotations

import functools
import importlib
import pkgutil
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

import yaml

from golf.common.paths import conf_dir
from golf.launch.compose.own_folder import files

CONFIG_NAME = "train"
GLOBAL = ("recipe", "local")
"""Groups whose options set keys of the whole config."""


OURS = "golf_plugins"


def roots(config_dirs: Sequence[Path] = ()) -> list[Path]:
    """Where options are looked for, in Hydra's order: golf's conf, installed packages' folders, the given ones."""
    return [conf_dir(), *package_dirs(), *config_dirs]


@functools.cache
def package_dirs() -> tuple[Path, ...]:
    """The folders that installed packages add to Hydra's search path by a SearchPathPlugin, where they are on disk."""
    try:
        plugins = importlib.import_module("hydra_plugins")
    except ImportError:
        return ()
    if all(module.name == OURS for module in pkgutil.iter_modules(plugins.__path__)):
        return ()  # what most people have, who need not wait for Hydra's own look
    from hydra._internal.utils import create_config_search_path

    added = (one.path for one in create_config_search_path(None).get_path() if one.provider not in ("hydra", "schema"))
    return tuple(folder for path in added if (folder := _on_disk(path)) is not None)


def _on_disk(path: str) -> Path | None:
    """The folder of an entry of Hydra's search path, `pkg://…` or `file://…`."""
    scheme, _, rest = path.rpartition("://")
    try:
        found = resources(rest.replace("/", ".")) if scheme == "pkg" else Path(rest)
    except (ImportError, ValueError, TypeError):
        return None
    return found.absolute() if isinstance(found, Path) and found.is_dir() else None


DISCOVERED = {"technique": "technique", "callbacks": "callback"}
"""Folders in which every folder is a group of its own, `none` unless it is chosen, and what one of them is called."""


def discovered(folder: str, config_dirs: Sequence[Path] = ()) -> list[str]:
    """Names of the groups in one of the `DISCOVERED` folders of golf's conf and the given folders."""
    return sorted({path.parent.name for root in roots(config_dirs) for path in root.glob(f"{folder}/*/*.yaml")})


def is_discovered(group: str) -> bool:
    """Whether a group is one of a `DISCOVERED` folder, such as technique/xsa."""
    folder, slash, _ = group.partition("/")
    return bool(slash) and folder in DISCOVERED


def options(group: str, config_dirs: Sequence[Path] = ()) -> list[str]:
    """Option names of a config group, `none` of a discovered one included; [] when there is no such group."""
    if not group or group.startswith("/"):
        return []
    found = {path.stem for root in roots(config_dirs) for path in root.glob(f"{group}/*.yaml")}
    if found and is_discovered(group):
        found.add("none")
    return sorted(found)


def groups(config_dirs: Sequence[Path] = ()) -> list[str]:
    """Every config group of golf's and of the given folders, `model/attention` style."""
    found = set()
    for root in roots(config_dirs):
        found |= {path.parent.relative_to(root).as_posix() for path in files(root) if path.suffix == ".yaml"}
    return sorted(name for name in found - {"."} if not name.startswith("hydra/"))  # those have options of Hydra's too


@functools.cache
def built_later(group: str) -> bool | None:
    """Whether the components of a group are built by what they are handed to (`_partial_: true`), as golf's own options
    are; None where golf has none."""
    inner = f"{group.partition('/')[0]}/*" if is_discovered(group) else group
    texts = [path.read_text(encoding="utf-8") for path in conf_dir().glob(f"{inner}/*.yaml")]
    texts = [text for text in texts if re.search(r"^(_target_|defaults):", text, re.MULTILINE)]
    return any(re.search(r"^_partial_: true", text, re.MULTILINE) for text in texts) if texts else None


@dataclass(frozen=True)
class Primary:
    """What conf/train.yaml says there is: `values` by key, and the `options` of its groups, in their order."""

    values: Mapping[str, Any]
    options: Mapping[str, str]

    @property
    def known(self) -> list[str]:
        """The keys that a composed config has at its top."""
        return [*self.values, *(group for group in self.options if group not in GLOBAL)]

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups in their order."""
        return tuple(self.options)

    def after(self, group: str) -> tuple[str, ...]:
        """Groups that are composed after another, and so win over what it sets."""
        own = group.split("/")[0]
        return self.groups[self.groups.index(own) + 1 :] if own in self.groups else ()


@functools.cache
def primary() -> Primary:
    """The primary config, read once."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    content = yaml.load((conf_dir() / f"{CONFIG_NAME}.yaml").read_text(encoding="utf-8"), loader)
    chosen = [pair for entry in content["defaults"] if entry != "_self_" for pair in entry.items()]
    chosen = [(name.removeprefix("optional "), option) for name, option in chosen if not name.startswith("override ")]
    return Primary({k: v for k, v in content.items() if k not in ("defaults", "hydra")}, dict(chosen))
