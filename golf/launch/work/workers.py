"""Starting the workers of one run: a fresh set of processes, started and watched by torch's elastic agent.

`python -m golf.launch.work.workers DIR NPROC` does so in a process of its own, for a job of a sweep.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from golf.common.errors import WorkerFailed, at_rest
from golf.common.process import python_command

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def launch(
    directory: Path,
    nproc: int,
    module: str = "golf.launch.work.worker",
    on_killed: Callable[[Path, str], None] | None = None,
) -> None:
    """Run `nproc` workers on the run in `directory` and wait for them.

    on_killed(directory, told) is called for a worker that was killed, which could not say so itself. Raises
    WorkerFailed with the exit code of the first worker that failed; it has told why on the console.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from golf.common.process import usable_cores

    logging.getLogger("torch.distributed").setLevel(
        logging.CRITICAL
    )  # its account of a failure repeats the worker's own
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // nproc)))
    with tempfile.TemporaryDirectory(prefix="golf-workers-") as logs, _forwarding_interrupts():
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
            logs_specs=DefaultLogsSpecs(log_dir=logs),
            signals_to_handle="SIGTERM,SIGHUP,SIGQUIT",
        )
        try:
            command = python_command(module, f"run={directory}")
            elastic_launch(config, command[0])(*command[1:])
        except ChildFailedError as error:
            _, failure = error.get_first_failure()
            code = failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
            if failure.exitcode < 0:  # it could not say so itself
                name = signal.Signals(-failure.exitcode).name
                told = f"worker {failure.local_rank} was killed by {name}"
                print(f"golf: {told}", file=sys.stderr, flush=True)
                if on_killed is not None:
                    on_killed(directory, told)
            raise WorkerFailed(f"worker {failure.local_rank} ended with {code}", code) from None
        except SignalException as error:
            raise WorkerFailed(f"stopped by {error.sigval.name}", 128 + error.sigval.value) from None


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


def end_with_parent() -> None:
    """Have SIGTERM sent to this process when the one that started it dies, however it dies. On Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def main() -> int:
    """Run the workers that the command line names; the exit code is the first failed worker's."""
    from golf.launch.work.early_end import record_death

    end_with_parent()
    try:
        launch(Path(sys.argv[1]), int(sys.argv[2]), on_killed=record_death)
    except WorkerFailed as error:
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(at_rest(main()))
