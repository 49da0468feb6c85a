"""What one task of a Slurm job does: become one worker of the run whose folder it was handed (see slurm.py)."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType

from golf.common.errors import STOPPED, ConfigError, WorkerFailed
from golf.common.files import cache_dir
from golf.common.process import python_command, started
from golf.common.secret import config_home
from golf.launch.sweep.job import last_line
from golf.launch.work.attempts import AUTO
from golf.launch.work.early_end import record_death
from golf.launch.work.workers import started_here
from golf.runs.folder import RunFolder
from golf.runs.store import Run

WARNING_S = 60
"""Slurm tells a job so many seconds before its time is up."""
LINGER_S = 900
"""How long a task outlives a worker that SIGTERM ended; Slurm kills it sooner, after the grace of its partition."""
FAILURE = "golf: rank "
"""How a line of console.log begins that tells which worker ended a job."""
KILLED = "was killed by"
INTERRUPTED = (130, STOPPED, -signal.SIGTERM)
"""How a worker ends that was told to by a signal."""
SETUP = 'export PYTHONSAFEPATH=1 MASTER_ADDR="$(hostname)" MASTER_PORT="$({python} -P -c {code})"'
PORT = "\"import socket; s = socket.socket(); s.bind(('', 0)); print(s.getsockname()[1])\""


def setup_line(python: str) -> str:
    """The line of the batch script, run on the job's first node, that finds a free port for its workers to meet at.

    What the script starts after it imports nothing from the folder it was submitted in.
    """
    return SETUP.format(python=python, code=PORT)


def places() -> dict[str, str]:
    """This process's HOME, and where golf keeps things below it, by the variables that say so to a job with another."""
    found = {"HOME": os.environ.get("HOME", "")}
    with suppress(ConfigError, RuntimeError):  # there is none
        found |= {"XDG_CONFIG_HOME": str(config_home().parent), "GOLF_CACHE": str(cache_dir())}
    return found


def run_worker(
    directory: str, time_s: float, goes_on: bool = False, submitted: Mapping[str, str] | None = None
) -> None:
    """Run the worker of this task's rank on the run in `directory` and wait for it. submitted: the `places` of the
    process that submitted it.

    A job that Slurm put back in the queue, or that `goes_on`, takes its run up at the last checkpoint; without one it
    starts anew, and what it had is kept under attempts/. A minute before the job's `time_s` seconds are over the
    worker is interrupted, so that it leaves a record. A worker that Slurm's SIGTERM ended is outlived until Slurm
    kills the task. Raises WorkerFailed for an exit code but 0: the task fails, and srun ends the others.
    """
    folder, rank, began = Path(directory), int(os.environ["SLURM_PROCID"]), time.monotonic()
    if Run(folder).record.get("status") == "completed":
        return
    if (restarts := int(os.environ.get("SLURM_RESTART_COUNT", "0"))) and rank == 0:
        RunFolder(folder).release()  # its process is gone
    if rank == 0:
        RunFolder(folder).mark(os.getpid())
    words = [f"resume={AUTO}"] if restarts or goes_on else []
    terminations: list[int] = []
    console = folder / ("console.log" if rank == 0 else f"console.{rank}.log")
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # inherited by the worker, which the step's signals reach too
    with console.open("ab") as out:  # appending, for other ranks append to it too
        worker = started(
            python_command("golf.launch.work.worker", f"run={directory}", *words),
            env=environment(os.environ, submitted), stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip

        def warned(number: int, frame: FrameType | None) -> None:
            if time.monotonic() - began > time_s - 2 * WARNING_S:  # else Slurm speaks of preemption, and will requeue
                worker.send_signal(signal.SIGINT)

        signal.signal(signal.SIGUSR2, warned)
        signal.signal(signal.SIGINT, lambda number, frame: None)  # it is the worker's, to answer with a record
        signal.signal(signal.SIGTERM, lambda number, frame: terminations.append(number))  # it reaches the worker too
        code = worker.wait()
    if code:
        what = f"{KILLED} {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        with (folder / "console.log").open("a", encoding="utf-8") as file:
            file.write(f"{FAILURE}{rank} {what} after: {last_line(console)}\n")
        if rank == 0:
            record_death(folder, WorkerFailed(f"rank 0 {what}"))
        if code in INTERRUPTED and not terminations:
            time.sleep(1)  # the worker may have been told a little earlier
        if terminations:
            time.sleep(LINGER_S)  # a preempted job that ends within its grace is over for Slurm, and not requeued
        raise WorkerFailed(f"rank {rank} {what}")


def environment(slurm: Mapping[str, str], submitted: Mapping[str, str] | None = None) -> dict[str, str]:
    """The worker's environment: its rank in torch's words; where the workers meet, the batch script has set.

    Where HOME is another than it was for who `submitted` the job, or none, the key by which golf knows its own runs and
    the prepared data are looked for where they were, if that is there and no variable says otherwise.
    """
    tasks, nodes = int(slurm["SLURM_NTASKS"]), int(slurm["SLURM_NNODES"])
    place = {
        "RANK": slurm["SLURM_PROCID"], "WORLD_SIZE": str(tasks), "LOCAL_RANK": slurm["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(tasks // nodes), "PYTHONUNBUFFERED": "1", **started_here(),
    }  # fmt: skip
    if nodes == 1:
        place["MASTER_ADDR"] = "localhost"  # a host's own name need not lead anywhere
    known = dict(submitted or {})
    if known.pop("HOME", None) not in (None, slurm.get("HOME")):
        place |= {name: where for name, where in known.items() if name not in slurm and Path(where).is_dir()}
    return {**slurm, **place}
