"""Files that are whole or absent: atomic writes, locks between processes, content hashes."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from golf.common import bounded
from golf.common.errors import ConfigError, GolfError


@contextmanager
def atomic_writer(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path` that replaces it when the block ends well, and vanishes when it fails.

    Raises GolfError when the disk is full or the folder cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = {} if "b" in mode else {"encoding": "utf-8"}
    temporary = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(handle, mode, **text) as file:  # type: ignore[call-overload]
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp's 0600 would hide shared caches from colleagues
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES):
            raise GolfError(f"cannot write {path}: {error.strerror} (nothing was left half-written)") from error
        raise
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, is that there is no room on the disk."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return error is not None and ((isinstance(error, OSError) and error.errno in full) or is_full(error.__cause__))


def sync_folder(folder: Path) -> None:
    """Have the disk know which files a folder has, so that a new name outlasts a power failure; where the file system
    can't, nothing."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. Raises ValueError on NaN and infinities, which JSON lacks."""
    with atomic_writer(path, "w") as file:
        file.write(json.dumps(value, indent=1, allow_nan=False, default=str) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises OSError, and ValueError for what is none, too large or too deep."""
    return bounded.read_json(path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path`.lock between processes of this machine; waits for its holder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(path) + ".lock", mode=0o666):  # less the umask: a shared cache's may be a group's
        yield


def hold(path: Path) -> FileLock | None:
    """Take the lock file `path` at once, until it is released or this process ends; None when another process has it.

    Raises ConfigError where it cannot be made.
    """
    lock = FileLock(path)
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        return None
    except OSError as error:
        raise ConfigError(f"cannot use {Path(path).parent}: {error.strerror}") from error
    return lock


@contextmanager
def scratch_folder(place: Path, prefix: str) -> Iterator[Path]:
    """A folder in `place` for the block, gone after it; those that killed processes left there go first."""
    for left in place.glob(f"{prefix}*"):
        if (lock := _lock_folder(left)) is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
    lock = _lock_folder(folder)
    folder.mkdir(exist_ok=True)  # before it was locked it looked like one that was left
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _lock_folder(folder: Path) -> int | None:
    """A descriptor that holds the lock of a folder until it is closed or the process ends; None where another has it,
    or there is none to be had."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes. Raises OSError, for what is no plain file too."""
    with bounded.open_plain(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hex SHA-256 of a JSON-able value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def cache_dir() -> Path:
    """Where prepared shards and trained tokenizers are kept: $GOLF_CACHE, or golf/ in the user's cache folder."""
    chosen = os.environ.get("GOLF_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).expanduser() / "golf"


def use_cache() -> None:
    """Settle `cache_dir` for this process and those it starts, and have torch keep what it compiles there, so that the
    next run finds it; call it before torch is imported.

    Jobs that run side by side may share it: files are named by the hash of all that made them, and appear whole. The
    user's own TORCHINDUCTOR_* and TRITON_CACHE_DIR win; where the default folder cannot be written torch's own stays.
    Raises GolfError for a GOLF_CACHE that is no folder and cannot become one.
    """
    folder, chosen = cache_dir(), os.environ.get("GOLF_CACHE")
    if chosen:
        os.environ["GOLF_CACHE"] = str(folder)  # the same folder wherever a process goes
    if why := unusable(folder):
        if chosen:
            raise GolfError(f"cannot use GOLF_CACHE={chosen}: {why}")
        return
    if not os.access(folder, os.W_OK):
        return
    compiled = folder / "compiled"
    if compiled.exists() and compiled.stat().st_uid != os.getuid():
        compiled = folder / f"compiled-{os.getuid()}"  # whose folders torch makes are writable for one user
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(compiled / "inductor")
        os.environ.setdefault("TRITON_CACHE_DIR", str(compiled / "triton"))
    os.environ.setdefault("TORCHINDUCTOR_FX_GRAPH_CACHE", "1")
    os.environ.setdefault("TORCHINDUCTOR_AUTOGRAD_CACHE", "1")


def unusable(folder: Path) -> str | None:
    """Why `folder` cannot be used as one, None when it can: it is made when it is not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        return "not a folder"
    except OSError as error:
        return error.strerror or type(error).__name__
    return None if os.access(folder, os.R_OK | os.X_OK) else "no permission to read it"
