"""Where a user's own modules are found and loaded: as modules of a package of golf's own, in no other's place."""

from __future__ import annotations

import builtins
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module, invalidate_caches
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from golf.common.files import read_json

PACKAGE = "golf_own"
"""The package that a user's modules are loaded into: none of theirs can stand in another module's place."""
ORIGIN = "code.json"
"""The file beside a run's code/ that says which folders, and which installed packages, it is a copy of."""


class _Finder(MetaPathFinder):
    """Finds modules in the user's folders, as modules of PACKAGE; never in place of one of Python's, an installed one,
    or one of PYTHONPATH's."""

    def __init__(self) -> None:
        self.root = ModuleType(PACKAGE, "A user's own modules.")
        self.root.__path__ = []
        self.known: dict[str, bool] = {}
        self.folders: list[str] = []
        self.originals: list[str] = []
        self.packages: set[str] = set()
        """Installed packages of which a run has kept a copy, which stands in their place."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(f"{PACKAGE}."):
            return None
        found = PathFinder.find_spec(fullname, path)
        if found is not None and isinstance(found.loader, SourceFileLoader):
            found.loader, found.cached = _Loader(fullname, found.loader.path), None
        return found

    def has(self, name: str) -> bool:
        """Whether a top-level name in a user's code, or in a config, is one of these modules."""
        if name not in self.known:
            found = PathFinder.find_spec(name, self.folders)
            own = found is not None and library(name) is None
            if own and found is not None and found.origin is None:  # a mere folder stands in no module's place
                own = (other := PathFinder.find_spec(name)) is None or other.origin is None
            self.known[name] = own
        return self.known[name]


_finder = _Finder()


class _Loader(SourceFileLoader):
    """Loads one of a user's files as it stands: bytecode beside it, which may be another's, is neither read nor
    written. What the file imports by the name of another of theirs is that one."""

    def get_code(self, fullname: str) -> CodeType:
        code: CodeType = self.source_to_code(self.get_data(self.path), self.path)
        return code

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__builtins__"] = _BUILTINS
        super().exec_module(module)


def _import(
    name: str,
    globals: Mapping[str, Any] | None = None,
    locals: Mapping[str, Any] | None = None,
    fromlist: Sequence[str] = (),
    level: int = 0,
) -> ModuleType:
    """What `import` does in a user's file."""
    top = name.partition(".")[0]
    if level or not _finder.has(top):
        return builtins.__import__(name, globals, locals, fromlist, level)
    leaf = builtins.__import__(f"{PACKAGE}.{name}", globals, locals, fromlist, 0)
    return leaf if fromlist else sys.modules[f"{PACKAGE}.{top}"]


_BUILTINS = {**vars(builtins), "__import__": _import}


def located(name: str) -> str:
    """The full name of what a config or a user's file calls by this dotted name."""
    own = not name.startswith((f"{PACKAGE}.", "golf.")) and _finder.has(name.partition(".")[0])
    return f"{PACKAGE}.{name}" if own else name


def load(name: str) -> ModuleType:
    """Import the module that a config or a user's file calls by this name. Raises whatever importing it raises."""
    return import_module(located(name))


def loaded(name: str) -> ModuleType | None:
    """That module, if it has been imported."""
    return sys.modules.get(located(name))


def in_use() -> list[str]:
    """The folders whose modules are found."""
    return _finder.folders


def stands_for(name: str) -> bool:
    """Whether a run has kept a copy of the installed package of this name, and that is what is found."""
    return name in _finder.packages


def use_code(paths: Sequence[str]) -> None:
    """Have modules found in these folders of a user's own, and in no others that were named before."""
    packages = {name for path in paths for name in packages_in(Path(path))}
    for name, module in list(sys.modules.items()):  # another folder's module of the same name would be taken for it
        if name.startswith(f"{PACKAGE}.") and folder_of(module, paths) is None:
            del sys.modules[name]
            vars(_finder.root).pop(name.split(".")[1], None)
    _finder.folders, _finder.packages = list(paths), packages
    _finder.originals = [str(source) for path in paths for source in sources_of(Path(path))]
    _finder.root.__path__, _finder.known = list(paths), {}
    sys.modules[PACKAGE] = _finder.root
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    invalidate_caches()  # a run's copy may be younger than what is remembered of its folder


def library(name: str, folders: Sequence[str] = ()) -> str | None:
    """Where a top-level module of this name is that is no part of the user's folders: Python's own, an installed one,
    or one of PYTHONPATH's; None when there is none. folders: others of the user's than those in use."""
    if name in sys.stdlib_module_names:
        return "Python's own"
    if name == "golf":
        return "golf itself"
    if name in _finder.packages:
        return None
    own = {
        os.path.realpath(path) for path in (*_finder.folders, *_finder.originals, *folders, "")
    }  # and the working folder
    found = PathFinder.find_spec(name, [path for path in sys.path if os.path.realpath(path) not in own])
    if found is None:
        return None
    if found.origin is None:  # a mere folder, of which a checkout has many
        places = [place for place in found.submodule_search_locations or () if "-packages" in place]
        return places[0] if places else None
    return found.origin


def is_own(name: str, folders: Sequence[Path]) -> bool:
    """Whether a top-level name stands for a module of these folders of the user's."""
    own = [str(folder) for folder in folders]
    there = any(Path(one, f"{name}.py").is_file() or Path(one, name).is_dir() for one in own)
    return there and library(name, own) is None


def shadowed(name: str | None) -> str | None:
    """Why a user's own module of this top-level name is not found: a clause that names its file, or None."""
    for folder in _finder.folders:
        for file in (Path(folder, f"{name}.py"), Path(folder, str(name), "__init__.py")):
            if name and file.is_file() and (other := library(name)) is not None:
                return f"{file} has the name of another module, {other}: rename it"
    return None


def folder_of(module: ModuleType | None, folders: Sequence[str]) -> str | None:
    file = getattr(module, "__file__", None)
    return next((folder for folder in folders if file and file.startswith(folder + os.sep)), None)


def beside(code: Path) -> Mapping[str, Any]:
    """What the file beside a run's code/ says of it; nothing of any other folder."""
    try:
        said = read_json(code.with_name(ORIGIN))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def packages_in(code: Path) -> list[str]:
    """The installed packages that a run's code/ holds a copy of."""
    said = beside(code).get("packages")
    return [one for one in said if isinstance(one, str)] if isinstance(said, list) else []


def sources_of(code: Path) -> list[Path]:
    """The folders that a run's code/ was copied from."""
    said = beside(code).get("copied_from") or []
    return [Path(one) for one in ([said] if isinstance(said, str) else said) if isinstance(one, str)]
