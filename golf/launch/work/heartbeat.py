"""Whether a run's workers still live: each says so by a file with a time stamp that grows, and looks at the others'."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from golf.common.log import logger
from golf.launch.work.early_end import BEAT, DEATH

ELSEWHERE = 5
"""So many times longer a worker may be silent of which nothing but its file is known, as on another machine."""
LINGER_S = 10.0
"""How long is waited for what started the workers to end this one, when another hangs."""
STOPPED = "Tt"
"""How the kernel names the states of a process that a signal or a debugger stopped."""


@dataclass
class Other:
    """Another worker, as far as it was heard of."""

    stamp: int | None = None
    lives: bool = False
    """Whether it was seen to beat: a file may be an earlier attempt's."""
    silent_s: float = 0.0
    busy: int = -1
    """The processor's time that it had used when it was last heard."""


class Heartbeat:
    """Within the block this worker beats, and ends the run when another one hangs: when it was silent for `limit_s`
    and did nothing meanwhile.

    The stacks of all threads at such an end go to this worker's log. The one that hangs is made to leave its own there
    too (see `fatal_errors_to`), and dies of it. limit_s: None looks at nobody.
    """

    def __init__(self, directory: Path, rank: int, world: int, limit_s: float | None) -> None:
        self.limit_s, self.log = limit_s, log_of(directory, rank)
        self.others = {other: Other() for other in range(world) if other != rank}
        self.file = directory / BEAT.replace("*", str(rank))
        self.count = 0
        self._ends = threading.Event()

    @property
    def tick_s(self) -> float:
        """How long lies between two beats."""
        return min(5.0, (self.limit_s or 40.0) / 8)

    def __enter__(self) -> Heartbeat:
        if self.others and self.limit_s is not None:
            with suppress(OSError):
                told = {"host": socket.gethostname(), "pid": os.getpid()}
                self.file.write_text(json.dumps(told), encoding="utf-8")
            threading.Thread(target=self._watch, name="golf-heartbeat", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        with suppress(OSError):
            self.file.unlink(missing_ok=True)

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._ends.wait(self.tick_s):
            now, before = time.monotonic(), last
            last = now
            if not (self.beat() and now - before < 3 * self.tick_s):
                before = now  # all were stopped, or the disk is gone: nobody's silence tells anything
                for other in self.others.values():
                    other.silent_s = 0.0
            if (found := self.look(now - before)) is not None:
                return self._end(found)
        return None

    def beat(self) -> bool:
        """Say that this worker lives; whether that could be said. It takes no room on the disk."""
        self.count += 1
        try:
            os.utime(self.file, (self.count, self.count))
        except OSError:
            return False
        return True

    def look(self, seconds: float) -> tuple[int, str] | None:
        """Look at the others, `seconds` after the last time; the first that hangs, and what is known of it."""
        assert self.limit_s is not None
        for rank, other in self.others.items():
            file = self.file.with_name(BEAT.replace("*", str(rank)))
            try:
                stamp, told = file.stat().st_mtime_ns, json.loads(file.read_text(encoding="utf-8"))
                pid, here = int(told["pid"]), told["host"] == socket.gethostname()
            except (OSError, ValueError, KeyError, TypeError):
                continue  # not begun yet, or ended
            state, busy = of_process(pid) if here else ("", 0)
            if stamp != other.stamp or (busy != other.busy and state not in STOPPED):
                other.lives |= other.stamp not in (None, stamp)
                other.stamp, other.busy, other.silent_s = stamp, busy, 0.0
                continue
            other.silent_s += seconds
            if other.lives and other.silent_s >= self.limit_s * (1 if state else ELSEWHERE):
                how = ("was stopped" if state in STOPPED else "does nothing") if state else "cannot be looked at here"
                return rank, (f"worker {rank} hangs: nothing was heard of it for {other.silent_s:.0f} s "
                              f"(process {pid} of {told['host']} {how})")  # fmt: skip
        return None

    def _end(self, found: tuple[int, str]) -> None:
        """Say who hangs, leave all stacks, and end the run."""
        rank, told = found
        logger.error("%s; the stacks of all workers are in train.log and rank*.log", told)
        with suppress(OSError):
            self.file.with_name(DEATH.replace("*", str(rank))).write_text(told, encoding="utf-8")
        with suppress(OSError), open(self.log, "a", encoding="utf-8") as stacks:
            faulthandler.dump_traceback(stacks)
        with suppress(OSError, ValueError, KeyError):
            other = json.loads(self.file.with_name(BEAT.replace("*", str(rank))).read_text(encoding="utf-8"))
            if other["host"] == socket.gethostname():
                os.kill(other["pid"], signal.SIGABRT)  # which leaves its stacks
                os.kill(other["pid"], signal.SIGCONT)
        if not self._ends.wait(LINGER_S):
            os.kill(os.getpid(), signal.SIGTERM)
            if not self._ends.wait(LINGER_S):
                os._exit(1)


@contextmanager
def fatal_errors_to(log: Path) -> Iterator[None]:
    """Within the block a fatal error of this process, in code that is not Python's, leaves all threads' stacks in its
    log, as the signal that ends a worker that hangs does."""
    if faulthandler.is_enabled():
        yield
        return
    with open(log, "a", encoding="utf-8") as stacks:
        faulthandler.enable(stacks)
        try:
            yield
        finally:
            faulthandler.disable()


def log_of(directory: Path, rank: int) -> Path:
    """Where a worker's lines go, as `golf.common.log.setup` has it."""
    return directory / ("train.log" if rank == 0 else f"rank{rank}.log")


def of_process(pid: int) -> tuple[str, int]:
    """The state of a process of this machine, as the kernel names it, and how much of the processor's time it has
    used; of one that is gone, or where there is no /proc, nothing."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "", 0
    state, *rest = stat.rpartition(")")[2].split()
    return state, int(rest[10]) + int(rest[11])
