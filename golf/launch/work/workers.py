"""Starting the workers of one run: a fresh set of processes; several are watched by torch's elastic agent.

`python -m golf.launch.work.workers DIR NPROC [resume=auto]` does so in a process of its own, for a job of a sweep.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from golf.common.errors import STOPPED, GolfError, GolfInterrupted, WorkerFailed, at_rest, stopping
from golf.common.files import scratch_folder
from golf.common.process import NotStarted, python_command, started, usable_cores

PR_SET_PDEATHSIG = 1  # linux/prctl.h
STARTED_BY = "GOLF_STARTED_BY"
"""The variable that tells a process who started it."""
STOP_S = 30.0
"""How long a worker that was told to stop may take to write its record, as torch's agent has it."""
OF_A_GROUP = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Variables that tell a worker of the others; a run's only one is to meet none."""


def launch(
    directory: Path,
    nproc: int,
    module: str = "golf.launch.work.worker",
    on_failed: Callable[[Path, str | GolfError], None] | None = None,
    words: Sequence[str] = (),
) -> None:
    """Run `nproc` workers on the run in `directory` and wait for them; `words` stand on their lines too.

    on_failed(directory, told) is called for a worker that failed, which may not have been able to say so itself: a text
    speaks of one that was killed.
    Raises WorkerFailed with the exit code of the first worker that failed; it has told why on the console. NotStarted
    where there is none.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // nproc)))
    command = python_command(module, f"run={directory}", *words)
    try:
        with _forwarding_interrupts():
            rank, code = _alone(command) if nproc == 1 else _together(command, nproc)
    except NotStarted as error:
        if on_failed is not None:
            on_failed(directory, error)
        raise
    if code == 0:
        return
    told: str | GolfError = WorkerFailed(f"worker {rank} ended with exit code {code}")
    if code < 0:  # it could not say so itself
        told = f"worker {rank} was killed by {signal.Signals(-code).name}"
        print(f"golf: {told}", file=sys.stderr, flush=True)
    if code in (130, -signal.SIGINT):  # Ctrl-C came before the worker could answer it
        told = GolfInterrupted(0, None)
    if on_failed is not None:
        on_failed(directory, told)
    exit_code = code if code > 0 else 128 - code
    raise WorkerFailed(f"worker {rank} ended with {exit_code}", exit_code)


def _alone(command: list[str]) -> tuple[int, int]:
    """Run the only worker of a run, which needs nobody to meet; its rank and exit code. Raises WorkerFailed for a
    signal that stops this process, and it first."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise WorkerFailed(f"stopped by {signal.Signals(number).name}", 128 + number)

    environment = {name: value for name, value in os.environ.items() if name not in OF_A_GROUP} | started_here()
    before: dict[int, Any] = {number: signal.signal(number, stop) for number in stopping()}
    try:
        worker = started(command, env=environment, start_new_session=True)
        try:
            return 0, worker.wait()
        except WorkerFailed as error:
            worker.send_signal(error.exit_code - 128)
            try:
                worker.wait(STOP_S)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
            raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _together(command: list[str], nproc: int) -> tuple[int, int]:
    """Run several workers by torch's agent; rank and exit code of the first that failed, or zeros. Raises
    WorkerFailed for a signal that stopped them."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed").setLevel(
        logging.CRITICAL
    )  # its account of a failure repeats the worker's own
    with scratch_folder(Path(tempfile.gettempdir()), "golf-workers-") as logs, _told_whose_children():
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=nproc,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            monitor_interval=0.1,
            logs_specs=DefaultLogsSpecs(log_dir=str(logs)),
            signals_to_handle=",".join(signal.Signals(number).name for number in stopping()),
        )
        try:
            elastic_launch(config, command[0])(*command[1:])
        except ChildFailedError as error:
            failure = cause(error.failures.values())
            return failure.local_rank, failure.exitcode
        except SignalException as error:
            raise WorkerFailed(f"stopped by {error.sigval.name}", 128 + error.sigval.value) from None
        except OSError as error:
            if error.filename != command[0]:
                raise
            raise NotStarted(command, error) from error
    return 0, 0


def cause(failures: Iterable[Any]) -> Any:
    """The failure that the others follow from, of torch's ProcessFailures: the first. Those that its agent came upon
    together have one time, of whole seconds; then the worker that a signal killed, but for SIGTERM, by which the agent
    ends the others: whose neighbour is gone fails by itself, and may do so before the agent looks."""
    found = list(failures)
    began = min(one.timestamp for one in found)
    together = [one for one in found if one.timestamp <= began + 1]
    return min(together, key=lambda one: (one.exitcode >= 0 or one.exitcode == -signal.SIGTERM, one.timestamp))


@contextmanager
def _told_whose_children() -> Iterator[None]:
    """Within the block processes that torch's agent starts know this one, as they inherit its environment."""
    os.environ |= started_here()
    try:
        yield
    finally:
        os.environ.pop(STARTED_BY, None)  # what is started afterwards may be another's child


@contextmanager
def _forwarding_interrupts() -> Iterator[None]:
    """Within the block Ctrl-C reaches the workers, which live in sessions of their own; a second one is passed on
    too."""

    def forward(number: int, frame: FrameType | None) -> None:
        children = _children()
        if not children:  # none has started yet, or all have ended
            raise KeyboardInterrupt
        for child in children:
            try:
                os.kill(child, signal.SIGINT)
            except ProcessLookupError:
                continue

    before: Any = signal.signal(signal.SIGINT, forward)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _children() -> list[int]:
    """Direct child processes that run a worker."""
    import psutil

    found = []
    for child in psutil.Process().children():
        try:
            if "golf.launch." in " ".join(child.cmdline()):
                found.append(child.pid)
        except psutil.Error:  # it ended meanwhile
            continue
    return found


def started_here() -> dict[str, str]:
    """The variable by which a process that is started knows this one."""
    return {STARTED_BY: str(os.getpid())}


def end_with_parent() -> bool:
    """Have SIGTERM sent to this process when the one that started it dies, however it dies; False where it is dead
    already. On Linux only."""
    parent = os.environ.pop(STARTED_BY, None)  # it speaks of this process alone
    if sys.platform != "linux":
        return True
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    return parent is None or int(parent) == os.getppid()  # asked last: who dies after it was asked sends the signal


def main() -> int:
    """Run the workers that the command line names; the exit code is the first failed worker's."""
    from golf.launch.work.early_end import record_death

    directory = Path(sys.argv[1])
    if not end_with_parent():
        record_death(directory, GolfInterrupted(0, signal.SIGTERM))
        return STOPPED
    try:
        launch(directory, int(sys.argv[2]), on_failed=record_death, words=sys.argv[3:])
    except WorkerFailed as error:
        return error.exit_code
    except NotStarted as error:
        print(f"golf: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(at_rest(main()))
