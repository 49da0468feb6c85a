"""A sweep's jobs on this machine: each in processes of its own, packed onto GPUs or CPU cores (see watch.py).

Nothing is shared between jobs but the machine: a job is handed its run folder and the devices it may see.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from golf.common.errors import ConfigError, WorkerFailed
from golf.common.process import python_command, started
from golf.launch.sweep.job import SweepJob, last_line
from golf.launch.sweep.watch import End, Seen
from golf.launch.work.attempts import AUTO
from golf.launch.work.early_end import record_death
from golf.launch.work.workers import OF_A_GROUP, started_here
from golf.runs.folder import RunFolder

MOST_ON_CPU = 8


@dataclass
class Devices:
    """What jobs may take: GPUs by the name that CUDA_VISIBLE_DEVICES knows, or as many shares of the CPU."""

    free: list[str]
    gpu: bool
    most: int
    """Jobs at a time."""
    count: int = field(init=False)

    def __post_init__(self) -> None:
        self.count = len(self.free)

    @classmethod
    def of_gpus(cls, visible: Sequence[str], chosen: Sequence[int] | None, jobs: int | None) -> Devices:
        """The chosen of the visible GPUs. Raises ConfigError for one that is not there."""
        for number in chosen or ():
            if not 0 <= number < len(visible):
                there = f"GPUs 0 to {len(visible) - 1}" if len(visible) > 1 else f"{len(visible) or 'no'} GPU"
                raise ConfigError(
                    f"hydra.launcher.gpus={list(chosen or ())}: no GPU {number}; this machine has {there}"
                )
        if chosen is not None and (not chosen or len(set(chosen)) < len(chosen)):
            raise ConfigError(f"hydra.launcher.gpus={list(chosen)}: name one GPU or more, each once")
        names = [visible[number] for number in chosen] if chosen is not None else list(visible)
        return cls(names, True, min(jobs or len(names), len(names)))

    @classmethod
    def of_cpu(cls, cores: int, jobs: int | None, count: int, nproc: int) -> Devices:
        """Room for `jobs` at a time, by default one a core, at most 8 and no more than there are."""
        most = min(jobs or max(1, min(MOST_ON_CPU, cores) // nproc), count)
        return cls([str(share) for share in range(most)], False, most)

    def needed(self, job: SweepJob) -> int:
        """How many a job takes."""
        return job.nproc if self.gpu else 1

    def check(self, jobs: Sequence[SweepJob]) -> None:
        """Raises ConfigError for a job that will never fit."""
        for job in jobs:
            if self.needed(job) > self.count:
                raise ConfigError(f"runtime.nproc={job.nproc}: job {job.number} has {self.count} GPUs to run on")

    def take(self, count: int) -> list[str]:
        """Take so many of those that are free."""
        taken, self.free = self.free[:count], self.free[count:]
        return taken


def command(job: SweepJob) -> list[str]:
    """One worker needs nobody to watch it; several are started by torch's agent in a process of its own."""
    words = [f"resume={AUTO}"] if job.goes_on else []
    if job.nproc == 1:
        return python_command("golf.launch.work.worker", f"run={job.directory}", *words)
    return python_command("golf.launch.work.workers", str(job.directory), str(job.nproc), *words)


def environment(gpus: Sequence[str] | None, threads: int) -> dict[str, str]:
    """A job's environment: its GPUs (None: on the CPU), its cores, nothing of another job's process group."""
    kept = {name: value for name, value in os.environ.items() if name not in OF_A_GROUP}
    kept |= {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"} | started_here()
    if gpus is not None:
        kept["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    return kept


@dataclass
class Running:
    """A job's process, the file that its output goes to, and the devices that it has."""

    process: subprocess.Popen[bytes]
    console: IO[bytes]
    devices: list[str]


class Pool:
    """The processes of this machine as a sweep's backend."""

    look_every_s = 0.0
    outlives_terminal = False

    def __init__(self, devices: Devices, cores: int) -> None:
        self.devices, self.cores, self.most = devices, cores, devices.most
        self.running: dict[int, Running] = {}

    def check(self, jobs: Sequence[SweepJob]) -> None:
        """Raises ConfigError for one that will never fit."""
        self.devices.check(jobs)

    def has_room(self, jobs: Sequence[SweepJob]) -> bool:
        """While none waits, and another could run."""
        waits = any(job.state == "waiting" for job in jobs)
        return not waits and bool(self.devices.free) and len(self.running) < self.most

    def fitting(self, jobs: Sequence[SweepJob]) -> list[SweepJob]:
        """The first of the waiting jobs: a large one is not overtaken for ever by small ones. Raises ConfigError for
        one that will never fit."""
        self.check(jobs)
        found, free = list[SweepJob](), len(self.devices.free)
        for job in jobs[: self.most - len(self.running)]:
            if (free := free - self.devices.needed(job)) < 0:
                break
            found.append(job)
        return found

    def threads(self, job: SweepJob) -> int:
        """An equal share of the cores."""
        return max(1, self.cores // (self.most * job.nproc))

    def start(self, jobs: Sequence[SweepJob]) -> list[SweepJob]:
        """Each in a process of its own."""
        for job in jobs:
            console = open(job.directory / "console.log", "ab")  # noqa: SIM115 (closed when the job ends)
            devices = self.devices.take(self.devices.needed(job))
            process = started(
                command(job),
                env=environment(devices if self.devices.gpu else None, job.config["runtime"]["threads"]),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a terminal's Ctrl-C is for the sweep to answer, not for each job
            )
            RunFolder(job.directory).mark(process.pid)
            self.running[job.number] = Running(process, console, devices)
        return list(jobs)

    def look(self, jobs: Sequence[SweepJob]) -> dict[int, Seen]:
        """Which processes have ended, and how."""
        seen: dict[int, Seen] = {}
        for job in jobs:
            one = self.running[job.number]
            if (code := one.process.poll()) is not None:
                one.console.close()
                self.devices.free = [*one.devices, *self.devices.free]
                del self.running[job.number]
                seen[job.number] = end = end_of(job.directory, code)
                if code and not job.lost:
                    words = " after: ".join(filter(None, (end.how, end.last_words)))
                    record_death(job.directory, words if end.how else WorkerFailed(words))
        return seen

    def stop(self, jobs: Sequence[SweepJob], at_once: bool) -> None:
        """SIGINT, which a run answers with a record, or SIGKILL to it and all below it."""
        for process in (self.running[job.number].process for job in jobs if job.number in self.running):
            if at_once:
                kill_tree(process.pid)
            else:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGINT)


def end_of(directory: Path, code: int) -> End:
    """The end of a job whose process ended with `code`."""
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else ""
    words = last_line(directory / "console.log") or ("" if how else f"exit code {code}")
    return End(in_order=code == 0, how=how, last_words=words)


def kill_tree(pid: int) -> None:
    """End a process and everything below it, at once."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in [*root.children(recursive=True), root]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
