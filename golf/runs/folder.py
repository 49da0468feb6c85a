"""A run's folder: its fixed file names, who holds it, and `metrics.jsonl` (rows out, rows in)."""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal

from golf.common.bounded import lines_of, open_plain, parse_json, read_json
from golf.common.errors import DataError, GolfError

Liveness = Literal["prepared", "running", "failed", "finished"]

AXES = ("step", "tokens", "train_time_s")
"""On every row of metrics.jsonl: updates done, training tokens seen, seconds on the training clock."""

ROOM_BYTES = 65_536
"""What a run keeps free, so that a disk that others filled still takes its record."""
MOST_ROWS = 1_000_000
_QUIET_S = 900.0  # a run on another machine that has not written for this long is taken for dead


class Names:
    """The fixed names inside one run's folder (docs/run-record.md)."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.overrides = self.path / "overrides.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.result = self.path / "result.json"
        self.log = self.path / "train.log"
        self.artifact = self.path / "artifact.golf"
        self.weights = self.path / "weights.safetensors"
        self.evals = self.path / "evals"
        self.checkpoints = self.path / "checkpoints"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    def eval_path(self, name: str) -> Path:
        """Where the later evaluation `name` is kept: evals/<name>.json."""
        return self.evals / f"{name}.json"


class RunFolder(Names):
    """A run's folder, and which process holds it."""

    def __init__(self, path: Path | str) -> None:
        super().__init__(path)
        self._owner = self.path / ".running"
        self._room = self.path / ".room"

    @classmethod
    def claim(cls, path: Path | str, resume: bool = False) -> RunFolder:
        """Create the folder for a new run, and mark this process as its owner until `release`.

        Raises GolfError when it already holds a run (metrics.jsonl, result.json or artifact.golf) or another
        live process is writing there; `resume=True` takes an unfinished run over instead.
        """
        folder = cls(path)
        held = [file.name for file in (folder.metrics, folder.result, folder.artifact) if file.exists()]
        if resume and folder.result.exists() and not _unfinished(folder.result):
            raise GolfError(f"{folder.path} holds a finished run: there is nothing to resume")
        if held and not resume:
            raise GolfError(
                f"{folder.path} already holds a run ({', '.join(held)})\n"
                "name another folder, or move this one away: a run never overwrites another"
            )
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            folder._take()
            folder._room.write_bytes(bytes(ROOM_BYTES))
        except OSError as error:
            folder.release()
            raise GolfError(f"cannot use {folder.path} as a run folder: {error.strerror}") from error
        return folder

    def mark(self, pid: int) -> None:
        """Say that the process `pid`, or one that it starts, is about to `claim` this folder: from now on a run was
        begun here, whatever becomes of it. Does nothing where another process is writing."""
        with suppress(OSError):
            if not self._owned():
                _write_owner(self._owner, pid, "w", starting=True)

    def unmark(self) -> None:
        """Take this process's own mark back, where nobody claimed the folder."""
        if (owner := self._owner_here()).get("starting") and owner["pid"] == os.getpid():
            self.release()

    def release(self) -> None:
        """Say that no process writes here any more; called once result.json is written."""
        with suppress(OSError):  # on a disk that has become read-only, or is gone
            self._owner.unlink(missing_ok=True)
            self._room.unlink(missing_ok=True)

    def give_room(self) -> bool:
        """Free the room that was kept for the run's record on a disk that is full now; whether there was any."""
        try:
            self._room.unlink()
        except OSError:
            return False
        return True

    @property
    def held(self) -> bool:
        """Whether a process lives that is writing a run here, other than this one and what marked the folder for it."""
        return self._owned() and not self._for_this_process()

    def liveness(self) -> Liveness:
        """`finished` with a result.json, `prepared` before a run, `running` while the owner lives, else `failed` (it
        died without a word)."""
        if self.result.exists():
            return "finished"
        if self.config.exists() and not any(file.exists() for file in (self._owner, self.metrics, self.log)):
            return "prepared"
        return "running" if self._owned() else "failed"

    def _take(self) -> None:
        for _ in range(2):
            try:
                _write_owner(self._owner, os.getpid(), "x")
                return
            except FileExistsError:
                if self._owner_here().get("starting") and self._for_this_process():
                    _write_owner(self._owner, os.getpid(), "w")
                    return
                if self._owned():
                    raise GolfError(f"another process is writing a run into {self.path}: name another folder") from None
                self._owner.unlink(missing_ok=True)  # its owner is dead: once more
        raise GolfError(f"another process took {self.path} at the same moment: name another folder")

    def _owner_here(self) -> dict[str, Any]:
        """What is known of the owner, if it is a process of this machine."""
        try:
            owner = read_json(self._owner, 1 << 16)
            return dict(owner) if owner["host"] == socket.gethostname() and owner["pid"] else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _for_this_process(self) -> bool:
        owner = self._owner_here()
        return owner.get("pid") == os.getpid() or bool(owner.get("starting") and owner["pid"] == os.getppid())

    def _owned(self) -> bool:
        try:
            owner = read_json(self._owner, 1 << 16)
            if owner["host"] == socket.gethostname():
                return _alive(int(owner["pid"]), owner.get("born"))
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError, TypeError):
            pass  # half-written, this very moment or long ago: judge by its age
        stamps = [file.stat().st_mtime for file in (self._owner, self.metrics, self.log) if file.exists()]
        return bool(stamps) and time.time() - max(stamps) < _QUIET_S


class MetricsWriter:
    """Appends rows to metrics.jsonl: one JSON object a line, flushed, so that a crash loses nothing.

    Every row carries `step`, `tokens` and `train_time_s`; one that leaves an axis out gets the last row's value.
    JSON has no NaN or infinity: such a number is written as null, beside `<name>_nonfinite` holding its name.
    What depends on the machine's speed is named `…_s`, `…_ms` or `mfu`; everything else repeats bit for bit
    (`deterministic_part`).
    """

    def __init__(self, path: Path | str) -> None:
        """Open `path` for appending; the axes go on from the last row there is.

        Raises GolfError when the file cannot be written.
        """
        self.path = Path(path)
        self._axes: dict[str, Any] = {"step": 0, "tokens": 0, "train_time_s": 0.0}
        if self.path.is_file() and (rows := read_metrics(self.path)):
            self._axes.update({name: rows[-1][name] for name in AXES if name in rows[-1]})
        try:
            self._file: IO[str] = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (lives as long as the run)
        except OSError as error:
            raise GolfError(f"cannot write {self.path}: {error.strerror}") from error

    def settled(self) -> int:
        """Have the disk keep all rows so far, and say how many bytes they are."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    def write(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Append one row and return it as written. Raises GolfError when the disk is full."""
        self._axes.update({name: plain(metrics[name]) for name in AXES if name in metrics})
        row = dict(self._axes)
        for name, value in metrics.items():
            value = plain(value)
            if isinstance(value, float) and not math.isfinite(value):
                row[name], row[f"{name}_nonfinite"] = None, str(value)
            else:
                row[name] = value
        try:
            self._file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise GolfError(f"cannot write {self.path}: {error.strerror}") from error
        return row

    def close(self) -> None:
        """Close the file; safe to call twice. What a full disk did not take is told of by `write`."""
        with suppress(OSError):
            self._file.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def rewind(path: Path | str, size: int) -> dict[str, Any]:
    """Cut a metrics.jsonl back to its first `size` bytes, as it was when a checkpoint was made; the last row that goes,
    which tells of what was trained in vain, or nothing. Raises GolfError."""
    path = Path(path)
    try:
        rows = read_metrics(path) if path.exists() else []
        there = path.stat().st_size if path.exists() else 0
        if there < size:
            raise GolfError(f"{path} has {there:,} bytes, and had {size:,} when the checkpoint was made")
        os.truncate(path, size)
    except OSError as error:
        raise GolfError(f"cannot write {path}: {error.strerror}") from error
    kept = len(read_metrics(path))
    return rows[-1] if len(rows) > kept else {}


def read_metrics(path: Path | str) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a last line that a crash cut short is left out.

    Raises DataError when a line before the last is not a JSON object.
    """
    rows: list[dict[str, Any]] = []
    for row in each_row(path):
        rows.append(row)
        if len(rows) > MOST_ROWS:
            raise DataError(f"{path} holds over {MOST_ROWS:,} rows, too many for a list: take its columns")
    return rows


def each_row(path: Path | str) -> Iterator[dict[str, Any]]:
    """The same rows one after another, however many there are. Raises DataError, for a file that can't be read too."""
    broken = 0
    try:
        with open_plain(path) as file:
            for number, line in enumerate(lines_of(file), start=1):
                if broken:
                    break
                try:
                    row = parse_json(line.decode("utf-8", "replace"))
                except ValueError:
                    row = None
                if isinstance(row, dict):
                    yield row
                else:
                    broken = number
            else:
                return  # a broken last line was cut by a crash
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None
    raise DataError(f"{path} line {broken} is not a JSON object")


def is_timing(name: str) -> bool:
    """Whether a metric depends on the speed of the machine, so that two equal runs may differ in it."""
    return name.endswith(("_s", "_ms")) or name == "mfu"


def deterministic_part(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows without their timings: what two runs with one seed must share exactly."""
    return [{name: value for name, value in row.items() if not is_timing(name)} for row in rows]


def plain(value: Any) -> Any:
    """`value` as JSON types: 0-d tensors and numpy scalars become numbers, arrays lists, paths strings.

    Numbers keep NaN and infinities only at the top level; nested ones become their names.
    """
    if isinstance(value, Mapping):
        return {str(key): _named(plain(item)) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_named(plain(item)) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if hasattr(value, "tolist"):  # tensors and numpy arrays; a 0-d one gives a number
        return plain(value.tolist())
    return str(value)


def _named(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _write_owner(path: Path, pid: int, mode: Literal["x", "w"], starting: bool = False) -> None:
    told = {"host": socket.gethostname(), "pid": pid, "born": _born(pid)} | ({"starting": True} if starting else {})
    with open(path, mode, encoding="utf-8") as file:
        json.dump(told, file)


def _alive(pid: int, born: str | None) -> bool:
    """Whether the process lives that had this number when it was `born`; another may have been given the number
    since."""
    found = _born(pid)
    return found is not None and (born is None or found == born)


def _born(pid: int) -> str | None:
    """What tells a process of this machine from all others that had or will have its number; None for one that is not
    there, or that has ended and was not waited for. No clock that somebody may set has a say where there is /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        state, *rest = stat.rpartition(")")[2].split()  # what stands before may hold blanks
        return None if state in "ZX" else f"{boot} {rest[18]}"
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    import psutil

    try:
        return str(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None


def _unfinished(result: Path) -> bool:
    try:
        return bool(read_json(result).get("status") != "completed")
    except (OSError, ValueError, AttributeError):
        return True
