"""Which files a user's own code opens while a model is built and run, beyond those that are counted with it.

Python tells of every file that it opens, by its own functions or a library's in Python (numpy, torch, pandas), and of
every module that it loads. What a library opens in native code (safetensors, sqlite) it does not tell.
"""

from __future__ import annotations

import importlib.util
import json
import os
import site
import sys
import sysconfig
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import unquote, urlparse

from golf.common.errors import ConfigError
from golf.common.files import cache_dir
from golf.common.log import logger

SYSTEM = ("/proc", "/sys", "/dev", "/etc", "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo")
"""What tells of a machine."""
COMPILERS = tuple(f"{os.sep}{name}{os.sep}" for name in ("torch/_dynamo", "torch/_inductor", "triton"))
"""Code that reads and writes caches of its own wherever a model is called."""
GOLF = str(Path(__file__).resolve().parents[1])
MODULES = (".py", ".pyc", ".so", ".pyd")


class Reads:
    """Files that are opened from code in the folders `code`, while it watches; `found` are those that lie neither there
    nor in `allowed`, among installed packages, in golf's cache, or among what this process has written.

    exempt: names of modules of that code that scoring has no use for: what they read is their own matter, but for
    modules. refuses: raise ConfigError at once; else a warning, and the file stays in `found` with its reader.
    """

    def __init__(
        self, code: Sequence[str], allowed: Sequence[str] = (), exempt: Collection[str] = (), refuses: bool = True
    ) -> None:
        self.code = tuple(os.path.join(os.path.realpath(path), "") for path in code)
        self.names = tuple(os.path.join(path, "") for path in code) + self.code
        places = [*allowed, *code, *installed(), str(cache_dir()), GOLF, *SYSTEM]
        self.allowed = tuple(os.path.join(os.path.realpath(path), "") for path in places)
        self.exempt, self.refuses = frozenset(exempt), refuses
        self.found: dict[str, str] = {}
        self.written: set[str] = set()

    def opened(self, path: Any, flags: int) -> None:
        """Take note of a file that is about to be opened. Raises ConfigError for one that nothing counts."""
        if not isinstance(path, str | bytes | os.PathLike):
            return
        place = os.path.realpath(os.fsdecode(path))
        if place.endswith(".pyc"):
            with suppress(ValueError):
                place = importlib.util.source_from_cache(place)
        if flags & (os.O_WRONLY | os.O_RDWR) and (flags & (os.O_TRUNC | os.O_EXCL) or not os.path.exists(place)):
            self.written.add(place)
            return
        known = place in self.written or (place in self.found and not self.refuses)
        if known or place.startswith(self.allowed) or not os.path.isfile(place):
            return
        module = place.endswith(MODULES)
        reader = self._reader(module)
        if reader is None or place.startswith(editable()):
            return
        self.found[place] = reader
        told = f"{reader} {self.sentence(place)}"
        if self.refuses:
            raise ConfigError(f"{told}\nput it beside that code, below --config-dir, where it is kept and counted")
        logger.warning("%s", told)

    def sentence(self, place: str) -> str:
        """What is wrong with a file that was found."""
        how = "imports" if place.endswith(MODULES) else "reads"
        return f"{how} {place}, which lies outside --config-dir: it is not counted, nor kept with the run"

    def violations(self) -> list[str]:
        """A sentence for each file that was found."""
        return [f"{reader} {self.sentence(place)}" for place, reader in self.found.items()]

    def _reader(self, module: bool) -> str | None:
        """File and line of the user's code that has a file opened; None where it is none of theirs."""
        frame: FrameType | None = sys._getframe(3)
        reader = None
        while frame is not None:
            file = frame.f_code.co_filename
            if any(part in file for part in COMPILERS):
                return None
            if frame.f_code.co_name == "<module>" and file.startswith(self.allowed) and not file.startswith(self.names):
                return None  # an installed package is imported
            if file.startswith(self.names):
                reader = reader or f"{file}, line {frame.f_lineno},"
                if module or frame.f_globals.get("__name__") not in self.exempt:
                    return reader
            frame = frame.f_back
        return None


Listener = Callable[[Any, int], None]
"""Is told of each file before it is opened: its path, if that is what it is opened by, and the flags."""
_watching: list[Reads] = []
_listeners: list[Listener] = []
_here = threading.local()
_hooked = False


def _heard(event: str, args: tuple[Any, ...]) -> None:
    if event != "open" or not (_watching or _listeners) or getattr(_here, "busy", False):
        return
    _here.busy = True
    try:
        for listener in _listeners:
            listener(args[0], args[2] or 0)
        if _watching:
            _watching[-1].opened(args[0], args[2] or 0)
    finally:
        _here.busy = False


def _hook() -> None:
    global _hooked
    if not _hooked:
        sys.addaudithook(_heard)  # for the rest of the process: Python takes none away
        _hooked = True


@contextmanager
def watching(reads: Reads) -> Iterator[Reads]:
    """Within the block these see what is opened; of several the innermost. Nothing is watched without code."""
    if not reads.code:
        yield reads
        return
    _hook()
    _watching.append(reads)
    try:
        yield reads
    finally:
        _watching.remove(reads)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Within the block this is told of what any code of the process opens."""
    _hook()
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def installed() -> list[str]:
    """Where Python's own modules and installed packages lie."""
    paths = sysconfig.get_paths()
    own = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return [*own, *site.getsitepackages(), site.getusersitepackages()]


def editable() -> tuple[str, ...]:
    """The folders of packages that are installed where their source lies."""
    found = []
    for one in metadata.distributions():
        with suppress(OSError, ValueError, AttributeError):
            told = json.loads(one.read_text("direct_url.json") or "{}")
            if (told.get("dir_info") or {}).get("editable"):
                folder = os.path.join(os.path.realpath(unquote(urlparse(told["url"]).path)), "")
                found += [] if GOLF.startswith(folder) else [folder]
    return tuple(found)
