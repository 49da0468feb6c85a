"""What a user's own code has besides itself: the files that it opens, the installed packages that it imports."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from golf.common.reads import Reads
from golf.launch.compose.own_code import imported, targets
from golf.launch.compose.own_modules import PACKAGE

SCORING = ("model", "technique", "eval", "codec", "phases")
"""Groups whose components a model's scoring needs; what others read is in its weights, or nowhere."""


def reads_of(config: dict[str, Any], allowed: Sequence[str] = (), refuses: bool = True) -> Reads:
    """What watches the code that a config names; see Reads."""
    needed, every = (
        {target.rpartition(".")[0] for target in targets(node)}
        for node in ([config.get(group) for group in SCORING], config)
    )
    exempt = {name for module in every - needed for name in (module, f"{PACKAGE}.{module}")}
    return Reads(config.get("code_paths") or [], allowed, exempt, refuses)


def packages(paths: Sequence[str]) -> dict[str, str]:
    """Installed packages that code in these folders, as far as it was loaded, imports beyond those that golf needs
    itself: their versions by name."""
    own = tuple(f"{path}/" for path in paths)
    files = [str(file) for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None))]
    names = {name for file in files if file.startswith(own) for name in imported(file)}
    names -= {"golf", *sys.stdlib_module_names}
    if not names:
        return {}
    known = metadata.packages_distributions()
    found = {_plain(one) for name in names for one in known.get(name, ())} - _needed(known) - {"golf"}
    return {name: metadata.version(name) for name in sorted(found)}


def _needed(known: Mapping[str, Sequence[str]]) -> set[str]:
    """What golf needs: as it says where it is installed, else what its modules import."""
    try:
        return {_plain(re.split(r"[^\w.-]", one)[0]) for one in metadata.requires("golf") or ()}
    except metadata.PackageNotFoundError:  # run from a folder of sources
        files = [module.__file__ for name, module in list(sys.modules.items()) if name.partition(".")[0] == "golf"]
        return {_plain(one) for file in files if file for name in imported(file) for one in known.get(name, ())}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
