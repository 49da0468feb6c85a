"""`golf trust`: packages and folders whose code may run beside golf's own."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from golf.common.errors import ConfigError
from golf.common.shown import plain_line

PAGE = """golf trust [PACKAGE|DIR …]
golf trust --remove PACKAGE|DIR …

Whose code may run beside golf's own. A config names its components by _target_, and only these are taken: golf's own,
those that an installed package's options name, modules of your --config-dir folders, and what is allowed here.

A run that you trained yourself brings its code/, and golf knows it by a key in your config folder: eval, quantize,
sample, check, bench and train take it as it is. One that somebody sent you is refused, with what it would run, until

  golf eval run=DIR --trust         you say so once (resume=DIR --trust: for good, as it then is your run)
  golf trust DIR                    or for good, for every run at or below that folder
  golf trust acme                   classes of the installed package acme may be components, whoever names them

Nothing given lists what is allowed: golf/trusted.json in $XDG_CONFIG_HOME or ~/.config keeps it, beside the key.
"""


def run(argv: list[str]) -> int:
    """Allow, take back, or list. Raises ConfigError for what is neither a package nor a folder."""
    if any(word in ("--help", "-h") for word in argv):
        print(PAGE, end="")
        return 0
    from golf.launch.compose import trust

    remove = argv[:1] == ["--remove"]
    words = argv[1:] if remove else argv
    if wrong := [word for word in words if word.startswith("-")]:
        raise ConfigError(f"{wrong[0]}: golf trust has no such flag")
    if remove and not words:
        raise ConfigError("--remove: name the package or folder")
    found = trust.trusted()
    for word in words:
        kind, name = named(word, remove, found)
        found[kind] = [one for one in found[kind] if one != name] + ([] if remove else [name])
    if words:
        print(f"kept in {trust.keep_trusted(found)}", file=sys.stderr)
    for kind, listed in found.items():
        for name in sorted(set(listed)):
            print(f"{kind.removesuffix('s')} {plain_line(name)}")
    return 0


def named(word: str, remove: bool, found: dict[str, list[str]]) -> tuple[str, str]:
    """The list that a word belongs to, and what stands there. Raises ConfigError."""
    folder = str(Path(word).expanduser().resolve())
    if remove:
        kinds = [(kind, name) for kind, name in (("packages", word), ("folders", folder)) if name in found[kind]]
        if not kinds:
            raise ConfigError(f"{word}: is not allowed now; `golf trust` lists what is")
        return kinds[0]
    if os.sep not in word and word.isidentifier() and not Path(word).is_dir():
        if word in sys.stdlib_module_names or word == "golf":
            raise ConfigError(f"{word}: no component of a model lies there, and any function would be taken for one")
        try:
            there = importlib.util.find_spec(word) is not None
        except (ImportError, ValueError):
            there = False
        if not there:
            raise ConfigError(f"{word}: neither an installed package nor a folder")
        return "packages", word
    if not Path(folder).is_dir():
        raise ConfigError(f"{word}: neither an installed package nor a folder")
    if Path(folder) in (Path("/"), Path.home()):
        raise ConfigError(f"{word}: holds what others sent you too; name a folder of runs")
    return "folders", folder
