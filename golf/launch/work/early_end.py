"""What is left of a run that ends early: why a worker died, and a record that the run itself could not write."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from golf.common.errors import GolfError, GolfInterrupted, LostWorker, NonFiniteLoss, told_of
from golf.common.files import hold

if TYPE_CHECKING:
    from golf.common.ranks import Ranks
    from golf.runs.folder import RunFolder


DEATH = ".died.rank*"
"""Where a worker of several leaves its last words for rank 0's record."""
BEAT = ".beat.rank*"
"""A worker's file in the run's folder by which the others know that it lives."""
STARTING = ".starting.lock"
"""The file in a run's folder that the process has locked that starts its workers."""
NO_WORD = "another worker ended without a word (killed, or out of memory?)"


@contextmanager
def among_others(directory: Path, ranks: Ranks) -> Iterator[None]:
    """Within the block an error that follows from another worker's death becomes a LostWorker, which names the cause;
    any other is noted for those that will meet it so."""
    from golf.common.ranks import lost_another

    try:
        yield
    except (NonFiniteLoss, GolfInterrupted, LostWorker):
        raise
    except Exception as error:
        if ranks.world > 1 and lost_another(error):
            raise LostWorker(last_words(directory)) from None
        if ranks.world > 1:
            kind = "" if isinstance(error, GolfError) else f"{type(error).__name__}: "
            note = directory / DEATH.replace("*", str(ranks.rank))
            with suppress(OSError):
                note.write_text(f"worker {ranks.rank} failed: {kind}{told_of(error)}", encoding="utf-8")
        raise


def last_words(directory: Path, wait_s: float = 2.0, otherwise: str = NO_WORD) -> str:
    """Why another worker died, as it left it in the run's folder within `wait_s`, or as it was known `otherwise`."""
    until = time.monotonic() + wait_s
    while not (notes := sorted(directory.glob(DEATH), key=lambda path: path.stat().st_mtime)):
        if time.monotonic() > until:
            return otherwise
        time.sleep(0.05)
    return notes[0].read_text(encoding="utf-8")


def record_early(
    folder: RunFolder, error: BaseException, clocks: dict[str, float], steps: int = 0, train_time_s: float = 0.0
) -> None:
    """The record of a run that ended before its first step, or that can tell no more of itself."""
    from golf.runs import environment
    from golf.runs.record import Result

    interrupted = isinstance(error, KeyboardInterrupt | GolfInterrupted)
    at_keyboard = isinstance(error, KeyboardInterrupt) or (isinstance(error, GolfInterrupted) and not error.by_system)
    Result.from_parts(
        status="interrupted" if interrupted else "failed", error=None if at_keyboard else told_of(error),
        steps=steps, trained=folder.weights.exists(), train_time_s=train_time_s, name=folder.path.name,
        clocks=clocks, versions=environment.versions(), git=environment.git_state(), hardware=environment.hardware(),
    ).write(folder.result)  # fmt: skip


def record_death(directory: Path, told: str | GolfError) -> None:
    """The record of a run whose worker 0 could not write one; `told`: why, as a text where a worker was killed, unless
    one left word of it. A record that is there stays, and one that another process is about to write."""
    from golf.runs.folder import RunFolder, read_metrics

    folder = RunFolder(directory)
    if isinstance(told, str) and folder.result.exists() and not folder.held:
        _put_right(folder, told)
    if folder.result.exists() or not folder.config.exists() or folder.held:
        return
    rows: list[dict[str, Any]] = []
    with suppress(GolfError, OSError):
        rows = read_metrics(folder.metrics)
    last = rows[-1] if rows else {}
    error = LostWorker(last_words(directory, 0.0, told)) if isinstance(told, str) else told
    record_early(folder, error, {}, last.get("step", 0), last.get("train_time_s", 0.0))
    folder.release()
    clear(directory)


def clear(directory: Path) -> None:
    """Take away what workers leave for each other in a run's folder, and the lock of a starter that is gone."""
    for note in (*directory.glob(DEATH), *directory.glob(BEAT)):
        with suppress(OSError):
            note.unlink(missing_ok=True)
    lock = directory / STARTING
    with suppress(GolfError, OSError):
        if lock.exists() and (held := hold(lock)) is not None:
            lock.unlink(missing_ok=True)
            held.release()


def _put_right(folder: RunFolder, told: str) -> None:
    """Have a record say that a worker failed, where the others were stopped for it and could not know why."""
    from golf.runs.seal import amend
    from golf.runs.store import Run

    record = Run(folder.path).record
    if record.get("status") == "interrupted" and str(record.get("error")).startswith("stopped by SIGTERM"):
        with suppress(GolfError, OSError, ValueError):
            amend(folder.result, {"status": "failed", "error": told})
