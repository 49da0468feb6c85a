"""A user's own code: found beside the library's, copied into the run, and named when it raises an error."""

from __future__ import annotations

import ast
import os
import re
import shutil
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from golf.common.errors import ConfigError, GolfError
from golf.common.files import write_json
from golf.common.log import FILE_ONLY, logger
from golf.common.paths import is_option
from golf.launch.compose.options import package_dirs
from golf.launch.compose.own_folder import files
from golf.launch.compose.own_modules import (
    ORIGIN,
    folder_of,
    in_use,
    library,
    load,
    loaded,
    shadowed,
    sources_of,
    stands_for,
    use_code,
)

MOST_PYTHON = 5_000_000
MOST_DATA = 16_000_000
"""Bytes of a user's code, and of the data beside it, that a run keeps a copy of: an artifact holds no more."""
NO_DATA = (".pyc", ".md", ".rst", ".ipynb", ".html", ".png", ".jpg", ".jpeg", ".svg", ".gif", ".pdf", ".log")
"""Endings of what people keep beside code to read it themselves."""


class CodeError(GolfError):
    """A user's own code raised an error; the message names their file and line."""


def use_kept_first(kept: Sequence[str], nodes: Sequence[Any]) -> None:
    """Import the components that parts of a config name from a run's own copies, which then serve them whatever other
    folders `use_code` adds: what is new comes from these."""
    use_code([])  # nothing that was imported before counts
    use_code(kept)
    for name in {target.rpartition(".")[0] for node in nodes for target in targets(node)}:
        if library(name.partition(".")[0]) is None:
            with suppress(Exception):  # what is wrong with it is told when the component is made
                load(name)


def refuse_kept(kept: Sequence[str], nodes: Sequence[Any]) -> None:
    """Raises ConfigError where a component that the line names anew is in a module that one of these copies has served,
    and the user's own file of that name has changed since."""
    for target in (target for node in nodes for target in targets(node)):
        module = target.rpartition(".")[0]
        copy = folder_of(loaded(module), kept)
        for folder in in_use() if copy is not None else ():
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


def refuse_shadowed(source: Path) -> None:
    """Raises ConfigError for a file of the user's in whose place their own code, as far as it has been imported, gets
    another module of the same name: it would be kept and counted, and not be what has run."""
    python = {str(path) for path in files(source) if path.suffix == ".py"}  # an environment in the folder is no part
    for file in (str(module.__file__) for module in _modules(source)):
        for name in imported(Path(file)) if file in python else ():
            own = name == "golf" or getattr(loaded(name), "__file__", None) in python
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
    places = {Path(str(load(name).__file__)).parent for name in packages}
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
        file = getattr(loaded(name), "__file__", None)
        own = file is not None and any(folder.is_relative_to(Path(file).parent) for folder in package_dirs())
        if stands_for(name) or (own and name != "golf"):
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
    for place in (*sources, *(Path(str(load(name).__file__)).parent for name in packages)):
        python = [Path(str(module.__file__)) for module in _modules(place)]
        found += [*python, *data_beside(place, python, [*named, *package_dirs()])]
    return found


def _modules(source: Path) -> list[ModuleType]:
    return [module for module in list(sys.modules.values()) if folder_of(module, [str(source)]) is not None]


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
            owns = [source / match[1] for source in sources_of(Path(path))]
            return next((str(own) for own in owns if not _differ(Path(path, match[1]), own)), match[0])

        text = re.sub(re.escape(path + os.sep) + r"""([^\s"',:]+)""", original, text)
    return text


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
            owns = [source / missing.relative_to(path) for source in sources_of(Path(path))]
            own = next((one for one in owns if one.exists()), None)
            return "" if own is None else f" ({own} is none of the files that a run keeps a copy of)"
    return ""
