"""Hashes of whole files, and what was found out about data, remembered in the cache so that it is done once."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock

from golf.common.errors import DataError, GolfError
from golf.common.files import read_json, write_json
from golf.tokenizers.base import OnProgress

_BLOCK = 1 << 22
_WORTH_TELLING = 1 << 28  # bytes to be hashed that take long enough for a line of progress


class Memo:
    """A JSON object in the cache that processes add to; where it cannot be kept it is empty, and nothing fails.

    `path` None: it is not kept.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def load(self) -> dict[str, Any]:
        """What is known; a damaged file is as good as none."""
        try:
            known = read_json(self._path) if self._path is not None else {}
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def add(self, new: Mapping[str, Any]) -> None:
        """Keep these entries beside the others; the caller is inside `held`."""
        if self._path is None or not new:
            return
        try:
            write_json(self._path, self.load() | dict(new))
        except (OSError, GolfError):
            return

    @contextmanager
    def held(self) -> Iterator[None]:
        """One process of the machine at a time, so that others wait for what it finds out instead of doing it too."""
        lock: BaseFileLock | None = None
        try:
            if self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                lock = FileLock(f"{self._path}.lock")
                lock.acquire()
        except OSError:
            lock = None
        try:
            yield
        finally:
            if lock is not None:
                lock.release()


class FileHashes:
    """SHA-256 of whole files, remembered in `cache` by path, size, times and inode: unchanged files are not read again.

    From the first file that has to be read to the end of the `with` block no other process of the machine hashes;
    those that wait find what was found.
    """

    def __init__(self, cache: Path | None) -> None:
        self._memo = Memo(None if cache is None else cache / "file_hashes.json")
        self._known: dict[str, Any] = {}
        self._new: dict[str, Any] = {}
        self._stack = ExitStack()
        self._alone = False

    def __enter__(self) -> FileHashes:
        self._known = self._memo.load()
        return self

    def __exit__(self, *_: object) -> None:
        with self._stack:
            self._memo.add(self._new)

    def of(self, path: Path) -> str:
        """Hex SHA-256 of the file. Raises DataError when it cannot be read."""
        return self.all([path])[0]

    def all(self, paths: Sequence[Path], progress: OnProgress | None = None) -> list[str]:
        """Hex SHA-256 of each file; `progress` hears of what takes long. Raises DataError for what cannot be read."""
        known = [self._remembered(path) for path in paths]
        if None in known and not self._alone:
            self._alone = True
            self._stack.enter_context(self._memo.held())
            self._known = self._memo.load()
            known = [self._remembered(path) for path in paths]
        unread = [path for path, digest in zip(paths, known, strict=True) if digest is None]
        total, done = sum(_state(path)[0] for path in unread), 0

        def count(size: int) -> None:
            nonlocal done
            done += size
            if progress is not None and total >= _WORTH_TELLING:
                progress(f"hash {len(unread)} files, {total / 1e9:.1f} GB", done / total)

        return [digest or self._read(path, count) for path, digest in zip(paths, known, strict=True)]

    def _remembered(self, path: Path) -> str | None:
        known = self._new.get(str(path)) or self._known.get(str(path))
        size, *times, inode = _state(path)
        if not isinstance(known, list) or len(known) < 5:  # older golf remembered no inode
            return None
        return str(known[3]) if [*known[:3], known[4]] == [size, *times, inode] else None

    def _read(self, path: Path, count: Callable[[int], None]) -> str:
        before, digest = _state(path), hashlib.sha256()
        try:
            with open(path, "rb", buffering=0) as file:
                block = memoryview(bytearray(_BLOCK))
                while size := file.readinto(block):
                    digest.update(block[:size])
                    count(size)
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror}") from None
        size, modified, changed, inode = before
        # A file changed within the clock's grain keeps its times: only one that has rested is remembered. `modified`
        # says nothing of that, since anybody may set it, even to a time to come.
        if _state(path) == before and time.time_ns() - changed > 2_000_000_000:
            self._new[str(path)] = [size, modified, changed, digest.hexdigest(), inode]
        return digest.hexdigest()


def _state(path: Path) -> tuple[int, int, int, int]:
    """What changes with a file: size, times of its content's and of its own last change, inode. Raises DataError."""
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino
