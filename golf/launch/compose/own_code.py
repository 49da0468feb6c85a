"""A user's own code: found beside the library's, copied into the run, and named when it raises an error."""

from __future__ import annotations

import ast
import os
import re
import shutil
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module, invalidate_caches
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from golf.common.errors import ConfigError, GolfError
from golf.common.files import read_json, write_json
from golf.common.log import FILE_ONLY, logger
from golf.common.paths import is_option
from golf.launch.compose.options import package_dirs
from golf.launch.compose.own_folder import files

MOST_PYTHON = 5_000_000
MOST_DATA = 16_000_000
"""Bytes of a user's code, and of the data beside it, that a run keeps a copy of: an artifact holds no more."""
NO_DATA = (".pyc", ".md", ".rst", ".ipynb", ".html", ".png", ".jpg", ".jpeg", ".svg", ".gif", ".pdf", ".log")
"""Endings of what people keep beside code to read it themselves."""
ORIGIN = "code.json"
"""The file beside a run's code/ that says which folders, and which installed packages, it is a copy of."""


class CodeError(GolfError):
    """A user's own code raised an error; the message names their file and line."""


class _Finder(MetaPathFinder):
    """Finds modules in the user's folders: before what they are copies of, which may be on the import path too, but
    never in place of one of Python's, an installed one, or one of PYTHONPATH's."""

    def __init__(self) -> None:
        self.folders: list[str] = []
        self.originals: list[str] = []
        self.packages: set[str] = set()
        """Installed packages of which a run has kept a copy, which stands in their place."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if path is not None or not self.folders:
            return None
        found = PathFinder.find_spec(fullname, self.folders)
        if found is None or library(fullname) is not None:
            return None
        if found.origin is None and (other := PathFinder.find_spec(fullname)) is not None and other.origin is not None:
            return None  # a mere folder stands in no module's place
        return found


_finder = _Finder()


def use_code(paths: Sequence[str]) -> None:
    """Have modules found in these folders of a user's own, and in no others that were named before.

    The folders stand last on the import path, for processes that are started from here.
    """
    for before in _finder.folders:
        if before in sys.path and before not in paths:
            sys.path.remove(before)
    packages = {name for path in paths for name in _told(Path(path)).get("packages") or ()}
    for name, module in list(sys.modules.items()):  # another folder's module of the same name would be taken for it
        place = _folder_of(module, [*_finder.folders, *paths])
        if place not in paths and (place is not None or name.partition(".")[0] in packages):
            del sys.modules[name]
    _finder.folders, _finder.packages = list(paths), packages
    _finder.originals = [str(source) for path in paths for source in _origins(Path(path))]
    sys.path += [path for path in paths if path not in sys.path]
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    invalidate_caches()  # a run's copy may be younger than what is remembered of its folder


def use_kept_first(kept: Sequence[str], nodes: Sequence[Any]) -> None:
    """Import the components that parts of a config name from a run's own copies, which then serve them whatever other
    folders `use_code` adds: what is new comes from these."""
    use_code([])  # nothing that was imported before counts
    use_code(kept)
    for name in {target.rpartition(".")[0] for node in nodes for target in targets(node)}:
        if library(name.partition(".")[0]) is None:
            with suppress(Exception):  # what is wrong with it is told when the component is made
                import_module(name)


def refuse_kept(kept: Sequence[str], nodes: Sequence[Any]) -> None:
    """Raises ConfigError where a component that the line names anew is in a module that one of these copies has served,
    and the user's own file of that name has changed since."""
    for target in (target for node in nodes for target in targets(node)):
        module = target.rpartition(".")[0]
        copy = _folder_of(sys.modules.get(module), kept)
        for folder in _finder.folders if copy is not None else ():
            file = Path(module.replace(".", os.sep) + ".py")
            own = Path(folder) / file
            if own.is_file() and _differ(Path(str(copy)) / file, own):
                raise ConfigError(
                    f"{own}: the run's model is of its own copy of this file, which differs, and so would {target} be\n"
                    "put what is new into a file of its own"
                )


def targets(node: Any) -> Iterator[str]:
    """The components that a part of a config names."""
    if isinstance(node, dict):
        if isinstance(node.get("_target_"), str):
            yield node["_target_"]
        for item in node.values():
            yield from targets(item)
    elif isinstance(node, list):
        for item in node:
            yield from targets(item)


def library(name: str, folders: Sequence[str] = ()) -> str | None:
    """Where a top-level module of this name is that is no part of the user's folders: Python's own, an installed one,
    or one of PYTHONPATH's; None when there is none. folders: others of the user's than those in use."""
    if name in sys.stdlib_module_names:
        return "Python's own"
    if name == "golf":
        return "golf itself"
    if name in _finder.packages:
        return None
    own = {os.path.realpath(path) for path in (*_finder.folders, *_finder.originals, *folders, "")}  # and the working folder
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


def refuse_shadowed(source: Path) -> None:
    """Raises ConfigError for a file of the user's in whose place their own code, as far as it has been imported, gets
    another module of the same name: it would be kept and counted, and not be what has run."""
    python = {str(path) for path in files(source) if path.suffix == ".py"}  # an environment in the folder is no part
    for file in (str(module.__file__) for module in _modules(source)):
        for name in imported(Path(file)) if file in python else ():
            own = name == "golf" or getattr(sys.modules.get(name), "__file__", None) in python
            if not own and (hidden := shadowed(name)) is not None:
                raise ConfigError(f"{hidden}\n({file} imports {name})")


def imported(file: Path | str) -> list[str]:
    """The top-level names that a Python file imports, anywhere in it."""
    try:
        tree = ast.parse(Path(file).read_bytes())
    except (OSError, SyntaxError, ValueError):  # no source, as of a module in C
        return []
    found: dict[str, None] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= dict.fromkeys(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found[node.module.partition(".")[0]] = None
    return list(found)


def _folder_of(module: ModuleType | None, folders: Sequence[str]) -> str | None:
    file = getattr(module, "__file__", None)
    return next((folder for folder in folders if file and file.startswith(folder + os.sep)), None)


def kept(source: Path, named: Sequence[Path] = ()) -> list[Path]:
    """What of a config folder goes with a run: its Python files, the data beside those that have been imported, and its
    options, so that the run can be trained again from the copy.

    `named` is the data that the config itself names, which is no part of the code. Raises ConfigError for more of
    either than a run keeps, naming the largest file.
    """
    python = [path for path in files(source) if path.suffix == ".py"]
    if sum(path.stat().st_size for path in python) > MOST_PYTHON:
        raise ConfigError(
            f"--config-dir {source}: holds over 5 MB of Python; give a folder of its own to your techniques"
        )
    data = data_beside(source, [Path(str(module.__file__)) for module in _modules(source)], named)
    sizes = {path: path.stat().st_size for path in data}
    if sum(sizes.values()) > MOST_DATA:
        largest = max(data, key=lambda path: sizes[path])
        raise ConfigError(
            f"{largest}: {sizes[largest]:,} bytes beside your techniques, where all data is copied into the run and "
            f"counted, at most {MOST_DATA:,} bytes\n(give your techniques and their data a folder of their own)"
        )
    options = [path for path in files(source) if is_option(path.relative_to(source))]
    return [*python, *data, *options]


def keep_code(sources: Sequence[Path], target: Path, named: Sequence[Path] = (), packages: Sequence[str] = ()) -> None:
    """Copy what `kept` gives of each folder, and these installed packages, into the run's `target`, so that it can be
    loaded when the user's files have changed. Of two of one name the first is kept: see `refuse_doubles`.

    Raises ConfigError as `kept` does, and for a file that cannot be read.
    """
    places = {Path(str(sys.modules[name].__file__)).parent for name in packages}
    try:
        for source, paths in (
            *((source, kept(source, named)) for source in sources),
            *((place.parent, _code_of(place)) for place in sorted(places)),
        ):
            for path in paths:
                copy = target / path.relative_to(source)
                if not copy.exists():
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, copy)
    except OSError as error:
        raise ConfigError(f"{error.filename}: cannot be copied into the run: {error.strerror}") from error
    if target.is_dir():
        origins = [str(source) for source in (*sources, *sorted(place.parent for place in places))]
        told: dict[str, Any] = {"copied_from": origins[0] if len(origins) == 1 else origins}
        write_json(target.with_name(ORIGIN), told | ({"packages": sorted(packages)} if packages else {}))


def _code_of(package: Path) -> list[Path]:
    """An installed package's Python files, and the data beside those that have been imported; not its options."""
    apart = [folder for folder in package_dirs() if folder.is_relative_to(package)]
    python = [path for path in files(package) if path.suffix == ".py"]
    data = data_beside(package, [Path(str(module.__file__)) for module in _modules(package)], apart)
    return [*python, *data]


def used_packages(names: Iterable[str]) -> list[str]:
    """Which of these top-level packages, which a config names, are installed beside options of their own."""
    found = []
    for name in names:
        file = getattr(sys.modules.get(name), "__file__", None)
        own = file is not None and any(folder.is_relative_to(Path(file).parent) for folder in package_dirs())
        if name in _finder.packages or (own and name != "golf"):
            found.append(name)
    return found


def refuse_doubles(sources: Sequence[Path], named: Sequence[Path] = ()) -> None:
    """Raises ConfigError for a module that was imported, or data beside one, of which two folders have one of the same
    name: the second would not be found."""
    imported = {str(module.__file__) for source in sources for module in _modules(source)}
    first: dict[Path, Path] = {}
    for source in sources if len(sources) > 1 else ():
        for path in kept(source, named):
            name = path.relative_to(source)
            other = first.setdefault(name, path)
            unused = path.suffix == ".py" and imported.isdisjoint((str(path), str(other)))
            if other != path and not unused and not is_option(name) and path.read_bytes() != other.read_bytes():
                raise ConfigError(f"{path}: has the name of {other}, which is found before it; rename one of them")


def data_beside(source: Path, python: Sequence[Path], named: Sequence[Path] = ()) -> list[Path]:
    """The data files of a config folder that lie beside these Python files of it, or in a folder there."""
    folders, apart = {path.resolve().parent for path in python}, {path.resolve() for path in named}
    return [
        path
        for path in files(source)
        if path.suffix.lower() != ".py"
        and not path.name.lower().endswith(NO_DATA)
        and not is_option(path.relative_to(source))
        and folders & set((place := path.resolve()).parents)
        and apart.isdisjoint((place, *place.parents))
    ]


def counted(sources: Sequence[Path], named: Sequence[Path] = (), packages: Sequence[str] = ()) -> list[Path]:
    """What of a run's copy of these folders and installed packages counts as its code: the modules that have been
    imported, and the data beside them."""
    found = []
    for place in (*sources, *(Path(str(sys.modules[name].__file__)).parent for name in packages)):
        python = [Path(str(module.__file__)) for module in _modules(place)]
        found += [*python, *data_beside(place, python, [*named, *package_dirs()])]
    return found


def _modules(source: Path) -> list[ModuleType]:
    return [module for module in list(sys.modules.values()) if _folder_of(module, [str(source)]) is not None]


@contextmanager
def naming(paths: Sequence[str]) -> Iterator[None]:
    """Within the block an error of the user's own code, in these folders, becomes a CodeError; train.log gets the
    traceback. Errors of golf's that such code caused are told with its file and line."""
    from golf.common.ranks import lost_another

    try:
        yield
    except GolfError as error:
        cause = _cause(error)
        where = None if cause is None or isinstance(cause, GolfError) else blame(cause, paths)
        if where is None or where in str(error):
            raise
        logger.debug("%s", "".join(traceback.format_exception(error)), extra=FILE_ONLY)
        first, *rest = _translated(str(error), paths).splitlines()
        error.args = ("\n".join([f"{first} ({where})", *rest]),)
        raise
    except Exception as error:
        where = None if lost_another(error) else blame(error, paths)
        if where is None:
            raise
        logger.info("%s", "".join(traceback.format_exception(error)), extra=FILE_ONLY)
        told = (_translated(str(error), paths).strip().splitlines() or [""])[0]
        told += _left_behind(error, paths)
        raise CodeError(f"{where}: {type(error).__name__}{': ' if told else ''}{told}") from error


def blame(error: BaseException, paths: Sequence[str]) -> str | None:
    """`FILE, line N`, the user's own, where an error or what caused it was raised below their code; else None."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(one.__traceback__)]
        for path in paths:
            inside = [(file, line) for file, line in frames if file.startswith(path + os.sep)]
            # a compiler's error tells in its text which line it was at
            pattern = rf'File "({re.escape(path + os.sep)}[^"]+)", line (\d+)'
            inside = inside or [(file, int(line)) for file, line in re.findall(pattern, str(one))]
            if inside:
                file, line = inside[-1]
                return f"{_translated(file, paths)}, line {line}"
        one = _cause(one)
    return None


def _cause(error: BaseException) -> BaseException | None:
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _translated(text: str, paths: Sequence[str]) -> str:
    """A text in which copies of files go by the names of what they are copies of, unless that has changed since."""
    for path in paths:

        def original(match: re.Match[str], path: str = path) -> str:
            owns = [source / match[1] for source in _origins(Path(path))]
            return next((str(own) for own in owns if not _differ(Path(path, match[1]), own)), match[0])

        text = re.sub(re.escape(path + os.sep) + r"""([^\s"',:]+)""", original, text)
    return text


def _told(code: Path) -> Mapping[str, Any]:
    """What the file beside a run's code/ says of it; nothing of any other folder."""
    try:
        told = read_json(code.with_name(ORIGIN))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _origins(code: Path) -> list[Path]:
    """The folders that a run's code/ was copied from."""
    told = _told(code).get("copied_from") or []
    return [Path(one) for one in ([told] if isinstance(told, str) else told)]


def _differ(copy: Path, own: Path) -> bool:
    try:
        return copy.read_bytes() != own.read_bytes()
    except OSError:
        return copy.exists() or own.exists()


def _left_behind(error: Exception, paths: Sequence[str]) -> str:
    """A clause for a file that is not there since no run keeps a copy of its kind; else nothing."""
    missing = Path(str(getattr(error, "filename", None) or ""))
    for path in paths:
        if isinstance(error, FileNotFoundError) and missing.is_relative_to(path):
            owns = [source / missing.relative_to(path) for source in _origins(Path(path))]
            own = next((one for one in owns if one.exists()), None)
            return "" if own is None else f" ({own} is none of the files that a run keeps a copy of)"
    return ""
