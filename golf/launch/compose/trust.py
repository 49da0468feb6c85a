"""Which code may run for a config that golf reads: components, the user's own, and what came with a folder.

A config names components by `_target_`, and any function has such a name. Only these are taken: what an option file of
golf's or of an installed package names, in that group; modules of folders that the line names; packages that the user
allowed by `golf trust`. What a run's folder brings besides, its code/, is imported if this user's golf has made it,
which a keyed digest in the folder's code.json proves, if the user trusts the folder, or if the line says --trust.
"""

from __future__ import annotations

import functools
import hmac
import json
import os
import re
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from golf.common.errors import ConfigError, GolfError
from golf.common.files import read_json, sha256_file, write_json
from golf.common.paths import conf_dir
from golf.common.secret import config_home, keyed, secret_key
from golf.common.shown import plain_line
from golf.launch.compose import own_modules
from golf.launch.compose.options import package_dirs
from golf.launch.compose.own_folder import files

FLAG = "--trust"
BY_CODE = {"model": {"golf.nn.slots.by_layer"}}
"""Components of golf's that no option of its own names, by group."""
SIGNATURE = "made_by"
"""The field of code.json with the keyed digest."""
MOST_CODE = 64_000_000
"""Bytes of a code/ that are looked at: what a run keeps of Python and data is less than half of it."""


def components_of(config: Any) -> Iterator[tuple[str, str, Any]]:
    """Every component that a config names: its group, its key, its `_target_`."""
    for name, node in config.items() if isinstance(config, Mapping) else ():
        if name == "phases" and isinstance(node, list):
            for number, phase in enumerate(node):
                for group, key, target in components_of(phase):
                    yield group, f"phases[{number}].{key}", target
        elif name == "values":  # of a phase
            yield from components_of(node)
        else:
            group = str(name).replace("/", ".").partition(".")[0]  # a phase has `model.plan`
            yield from ((group, key, target) for key, target in _named(node, str(name)))


def _named(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield key, node["_target_"]
        for name, item in node.items():
            yield from _named(item, f"{key}.{name}")
    elif isinstance(node, list):
        for number, item in enumerate(node):
            yield from _named(item, f"{key}[{number}]")


def strangers(config: Mapping[str, Any], folders: Sequence[Path] = ()) -> dict[str, str]:
    """The components of a config that are neither golf's, nor an installed package's, nor allowed, nor of these
    folders of the user's: target by key."""
    found: dict[str, str] = {}
    named: dict[str, set[str]] | None = None
    for group, key, target in components_of(config):
        if isinstance(target, str):
            top = target.partition(".")[0]
            if target in registered().get(group, ()) or target in BY_CODE.get(group, ()):
                continue
            if own_modules.is_own(top, folders) or (top != "golf" and top in trusted()["packages"]):
                continue
            if folders:
                named = _targets_of(folders) if named is None else named
                if target in named.get(group, ()):
                    continue
        found[key] = str(target)
    return found


@functools.cache
def registered() -> dict[str, set[str]]:
    """The components that options of golf's and of installed packages name, by group."""
    return _targets_of([conf_dir(), *package_dirs()])


def _targets_of(roots: Sequence[Path]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for root in roots:
        for path in files(root):
            if path.suffix == ".yaml" and len(parts := path.relative_to(root).parts) > 1:
                with suppress(OSError):
                    text = path.read_text(encoding="utf-8", errors="replace")
                    named = re.findall(r"""\b_target_["']?\s*:\s*["']?([\w.]+)""", text)
                    found.setdefault(parts[0], set()).update(named)
                    if parts[0] in ("recipe", "local"):  # they set keys of every group
                        for group in re.findall(r"^(\w+)\s*:", text, re.MULTILINE):
                            found.setdefault(group, set()).update(named)
    return found


def check_composed(config: Mapping[str, Any], folders: Sequence[Path]) -> None:
    """Raises ConfigError for a component of a composed config that nothing the user named, or has allowed, holds."""
    for key, target in strangers(config, folders).items():
        raise ConfigError(f"{key}._target_={target}: {_unknown(target)}")


def _unknown(target: str) -> str:
    top = target.partition(".")[0]
    if top == "golf":
        return "golf has no such component of that group"
    return (
        f"no option and no folder of the line names it\n`golf trust {plain_line(top)}` allows what that package holds"
    )


def admit(
    folder: Path, config: Mapping[str, Any], told: str, *, trust: bool = False, named: Sequence[Path] = ()
) -> list[str]:
    """The folders that code is imported from for a config that was read from a run's `folder`: its code/, or none.

    told: the folder as the line names it. trust: the line says --trust; what would run is then printed to stderr.
    named: folders of the line. Raises ConfigError for a config that needs code which nobody has allowed, and for one
    that holds an interpolation: golf writes values alone.
    """
    _refuse_interpolations(config, told)
    code = folder.absolute() / "code"
    brings = code.is_dir() and any(code.iterdir())
    if (why := unsigned(folder, config)) is None:
        return [str(code)] if brings else []
    unknown = strangers(config, named)
    if trust or is_listed(folder):
        if trust and (brings or unknown):
            print(f"{told}: trusted, and may run {_brought(code, unknown)}", file=sys.stderr)
        return [str(code)] if brings else []
    if not unknown:
        return []  # nothing of what it brings is asked for
    key, target = next(iter(unknown.items()))
    if not brings:
        raise ConfigError(f"{told}: {key}._target_={plain_line(target)}: {_unknown(target)}")
    raise ConfigError(
        f"{told}: would run {_brought(code, unknown)}\n"
        f"{why}; look at it, then add {FLAG}, or `golf trust {plain_line(told.partition('=')[2] or told)}` for good"
    )


def _brought(code: Path, unknown: Mapping[str, str]) -> str:
    """What a folder's config names, and the Python files that it brings."""
    parts = [plain_line(f"{key}={target}") for key, target in unknown.items()]
    python = sorted(path.relative_to(code).as_posix() for path in code.rglob("*.py")) if code.is_dir() else []
    names = [plain_line(name) for name in python]
    listed = [", ".join(some[:most]) + (", …" if len(some) > most else "") for some, most in ((parts, 4), (names, 12))]
    return (listed[0] or "what options name") + (f", from {plain_line(str(code))}: {listed[1]}" if names else "")


def _refuse_interpolations(node: Any, told: str, key: str = "") -> None:
    if isinstance(node, Mapping):
        for name, item in node.items():
            _refuse_interpolations(item, told, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for item in node:
            _refuse_interpolations(item, told, key)
    elif isinstance(node, str) and "${" in node:
        raise ConfigError(f"{told}: {plain_line(key)} of its config.yaml holds {plain_line(node)[:60]}\n"
                          "golf writes values alone, and nothing of this machine is read for it")  # fmt: skip


def sign(folder: Path, config: Mapping[str, Any]) -> None:
    """Put down in a run's code.json that this user's golf has made its code/, for this config.

    Raises ConfigError where the key can't be kept.
    """
    beside = folder.absolute() / own_modules.ORIGIN
    told = _told(folder)
    write_json(beside, {**told, SIGNATURE: _digest(folder, config, secret_key(make=True))})


def unsigned(folder: Path, config: Mapping[str, Any]) -> str | None:
    """Why a run's code/ is not known to be this user's own, made for this config: a clause; None where it is."""
    given = _told(folder).get(SIGNATURE)
    if not isinstance(given, str):
        return "it does not say whose golf made it"
    try:
        digest = _digest(folder, config, secret_key())
    except (OSError, ConfigError) as error:
        return f"nothing says that you made it ({str(error).splitlines()[0]})"
    if not hmac.compare_digest(given.encode(), digest.encode()):
        return "it has changed, or another user or machine made it"
    return None


def vouch(config: Mapping[str, Any]) -> str | None:
    """What says, in a file for workers of this user's, that the code_paths and components of its config are the
    user's; None where nothing beyond golf's own is named. Raises ConfigError where no key can be kept."""
    if not config.get("code_paths") and not strangers(config):
        return None
    return _vouched(config, secret_key(make=True))


def check_vouched(config: Mapping[str, Any], given: Any, told: str) -> None:
    """Raises ConfigError for a config of such a file that `vouch` has not given this word for."""
    _refuse_interpolations(config, told)
    if not config.get("code_paths") and not strangers(config):
        return
    if not isinstance(given, str) or not hmac.compare_digest(given.encode(), _vouched(config, secret_key()).encode()):
        raise ConfigError(f"{told}: names code, and another user or machine made it")


def _vouched(config: Mapping[str, Any], secret: bytes) -> str:
    named = sorted([key, str(target)] for _, key, target in components_of(config))
    whole = {"code_paths": config.get("code_paths") or [], "components": named}
    return keyed(secret, json.dumps(whole, sort_keys=True).encode())


def _told(folder: Path) -> dict[str, Any]:
    try:
        told = read_json(folder.absolute() / own_modules.ORIGIN)
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _digest(folder: Path, config: Mapping[str, Any], secret: bytes) -> str:
    """What a key says of a folder: every file of its code/, the packages that are said to be in it, and all components
    of the config. Raises ConfigError for a code/ that is no run's."""
    code, tree, size = folder.absolute() / "code", {}, 0
    for place, inner, names in os.walk(code):
        inner[:] = [name for name in inner if name != "__pycache__"]  # Python's own; see own_modules
        for name in (*names, *(one for one in inner if Path(place, one).is_symlink())):
            path = Path(place, name)
            shown = path.relative_to(code).as_posix()
            kind = path.lstat()
            if not stat.S_ISREG(kind.st_mode):
                raise ConfigError(f"code/{plain_line(shown)} is no plain file")
            size += kind.st_size
            if size > MOST_CODE:
                raise ConfigError(f"code/ holds over {MOST_CODE:,} bytes")
            tree[shown] = sha256_file(path)
    named = sorted([key, str(target)] for _, key, target in components_of(config))
    whole = {"code": tree, "packages": _told(folder).get("packages") or [], "components": named}
    return keyed(secret, json.dumps(whole, sort_keys=True).encode())


def trusted() -> dict[str, list[str]]:
    """What the user has allowed for good: names of `packages`, paths of `folders`."""
    found: dict[str, list[str]] = {"packages": [], "folders": []}
    try:
        told = read_json(config_home() / "trusted.json")
    except (OSError, ValueError, GolfError):
        return found
    for name in found if isinstance(told, dict) else ():
        listed = told.get(name)
        found[name] = [one for one in listed if isinstance(one, str)] if isinstance(listed, list) else []
    return found


def keep_trusted(found: Mapping[str, Sequence[str]]) -> Path:
    """Write what is allowed for good; the file. Raises GolfError where that can't be."""
    path = config_home() / "trusted.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_json(path, {name: sorted(set(listed)) for name, listed in found.items()})
        path.chmod(0o600)
    except OSError as error:
        raise GolfError(f"cannot write {path}: {error.strerror}") from error
    return path


def is_listed(folder: Path) -> bool:
    """Whether a folder is, or lies in, one that the user has allowed for good."""
    place = folder.resolve()
    return any(place.is_relative_to(one) for one in trusted()["folders"])
