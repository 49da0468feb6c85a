"""The jobs of a sweep on one machine: each in processes of its own, packed onto GPUs or CPU cores, watched to the end.

Nothing is shared between jobs but the machine: a job is handed its run folder and the devices it may see.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any, Protocol

from golf.common.errors import ConfigError, GolfError
from golf.common.files import sha256_file, write_json
from golf.common.process import python_command
from golf.runs.folder import RunFolder
from golf.runs.states import ENDED, PRUNED, SCORED, State, state_of
from golf.runs.store import Run

POLL_S = 0.1
GRACE_S = 30.0
"""How long a job that was told to stop may take to write its record."""
MOST_ON_CPU = 8


@dataclass
class Job:
    """One job: what it runs, and what has become of it."""

    number: int
    overrides: list[str]
    config: dict[str, Any]
    directory: Path
    state: State = "waiting"
    error: str = ""
    places: list[str] = field(default_factory=list)
    seconds: float = 0.0
    began: float = 0.0
    process: subprocess.Popen[bytes] | None = None
    console: IO[bytes] | None = None
    varied: list[str] = field(default_factory=list)
    """The overrides that tell it from the sweep's other jobs, where that is known beforehand."""
    pruned: str = ""
    """Why it was told to stop before its end, and since when (`told`, of time.monotonic)."""
    told: float = 0.0
    seal: str | None = None
    """The hash of the config.yaml that this job wrote; "" before it has, None where any run in its folder is meant."""

    @property
    def run(self) -> Run:
        """The job's own run: one without anything where its folder holds another's, or none."""
        own = self.seal is None or self.state == "skipped" or self.seal == seal_of(self.directory) != ""
        return Run(self.directory if own else self.directory / ".nothing")

    @property
    def lost(self) -> str:
        """Why its run is not to be had, where something else has written into its folder."""
        return "" if self.run.dir == self.directory else "another run's config.yaml is in its folder"

    @property
    def nproc(self) -> int:
        """Workers of this job."""
        return int(self.config["runtime"]["nproc"])

    def get(self, name: str) -> Any:
        """A value of the job's result or config by its dotted name."""
        return self.run.get(name)


class Watcher(Protocol):
    """Who is told how the jobs stand."""

    def update(self, jobs: Sequence[Job]) -> None:
        """Called some times a second."""

    def say(self, text: str) -> None:
        """Something that must be read."""


class Runner(Protocol):
    """Who runs the jobs of a sweep: a pool on this machine, or a cluster's queue."""

    @property
    def most(self) -> int:
        """Jobs at a time."""

    interrupts: int
    """How often it was told to stop."""

    def run(self, jobs: list[Job], guide: Guide | None = None) -> None:
        """Run the waiting jobs, and those that the guide adds to the list; each ends in one of the ENDED states."""


class Guide(Protocol):
    """Who decides, while jobs run, which come next and which are not worth their time: a search, a halving."""

    planned: int
    """How many jobs there will be at most."""

    def more(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """Further jobs, called while there is room for one and none waits; nothing when there is nothing to start
        yet. A job may come ended, when it need not run."""

    def ended(self, job: Job) -> None:
        """Called once for each job that has ended, however it did."""

    def prune(self, job: Job) -> str:
        """Called several times a second for a running job: why it is to be stopped, or nothing."""

    def finish(self, jobs: Sequence[Job]) -> None:
        """Called after the closing table: what to tell at the end."""


@dataclass
class Places:
    """Where jobs may run: GPUs by the name that CUDA_VISIBLE_DEVICES knows, or as many places on the CPU."""

    free: list[str]
    gpu: bool
    most: int
    """Jobs at a time."""

    @classmethod
    def of_gpus(cls, visible: Sequence[str], chosen: Sequence[int] | None, jobs: int | None) -> Places:
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
    def of_cpu(cls, cores: int, jobs: int | None, count: int, nproc: int) -> Places:
        """Room for `jobs` at a time, by default one a core, at most 8 and no more than there are."""
        most = min(jobs or max(1, min(MOST_ON_CPU, cores) // nproc), count)
        return cls([str(place) for place in range(most)], False, most)

    def needed(self, job: Job) -> int:
        """How many places a job takes."""
        return job.nproc if self.gpu else 1

    def check(self, jobs: Sequence[Job]) -> None:
        """Raises ConfigError for a job that will never fit."""
        for job in jobs:
            if self.needed(job) > len(self.free):
                raise ConfigError(f"runtime.nproc={job.nproc}: job {job.number} has {len(self.free)} GPUs to run on")


def command(job: Job) -> list[str]:
    """One worker needs nobody to watch it; several are started by torch's agent in a process of its own."""
    if job.nproc == 1:
        return python_command("golf.launch.work.worker", f"run={job.directory}")
    return python_command("golf.launch.work.workers", str(job.directory), str(job.nproc))


def environment(job: Job, places: Places, threads: int) -> dict[str, str]:
    """The job's environment: its GPUs, its share of the cores, nothing of another job's process group."""
    groups = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in groups}
    kept |= {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    if places.gpu:
        kept["CUDA_VISIBLE_DEVICES"] = ",".join(job.places)
    return kept


class Pool:
    """Runs jobs until all have ended, or until Ctrl-C: once to start nothing new, twice to stop what runs."""

    def __init__(self, places: Places, cores: int, watcher: Watcher, write: Callable[[Job], None]) -> None:
        """`write` makes a job's run folder just before it starts; a GolfError of its fails that job alone."""
        self.places, self.cores, self.watcher, self.write = places, cores, watcher, write
        self.interrupts = 0
        self._guided = self._drained = False
        self._stopped_at: float | None = None
        self._killed = False

    @property
    def most(self) -> int:
        """Jobs at a time."""
        return self.places.most

    def run(self, jobs: list[Job], guide: Guide | None = None) -> None:
        """Run the waiting jobs, and those that the guide adds to the list; each ends in one of the ENDED states."""
        self.places.check([job for job in jobs if job.state == "waiting"])
        heard: set[int] = set()
        self._guided = guide is not None
        with counting_interrupts(self._count):
            try:
                while True:
                    self._heed_interrupts(jobs)
                    if guide is not None:
                        self._ask(jobs, guide)
                    self._start_what_fits(jobs)
                    for job in jobs:
                        if job.process is not None and job.process.poll() is not None:
                            self._ended(job)
                    if guide is not None:
                        self._consult(jobs, guide, heard)
                    self.watcher.update(jobs)
                    # a guide that has just heard of the last job may have more
                    if not any(job.state in ("waiting", "running") for job in jobs) and (
                        guide is None or self.interrupts or not self._ask(jobs, guide)
                    ):
                        break
                    time.sleep(POLL_S)
            finally:
                for job in jobs:  # only after an error of our own is there anything left
                    if job.process is not None:
                        kill_tree(job.process.pid)
                        self._ended(job)

    def _ask(self, jobs: list[Job], guide: Guide) -> bool:
        """Add the guide's jobs while there is room; whether any came."""
        before = len(jobs)
        while not self.interrupts and not any(job.state == "waiting" for job in jobs) and self._room(jobs):
            if not (new := guide.more(jobs)):
                break
            self.places.check(new)
            jobs += new
        return len(jobs) > before

    def _room(self, jobs: Sequence[Job]) -> bool:
        return bool(self.places.free) and sum(job.state == "running" for job in jobs) < self.places.most

    def _consult(self, jobs: Sequence[Job], guide: Guide, heard: set[int]) -> None:
        """Tell the guide what has ended, and stop what it gives up."""
        for job in jobs:
            if job.state in ENDED and job.number not in heard:
                heard.add(job.number)
                guide.ended(job)
            elif job.process is not None and not job.pruned and (reason := guide.prune(job)):
                job.pruned, job.told = reason, time.monotonic()
                with suppress(ProcessLookupError):
                    os.kill(job.process.pid, signal.SIGINT)
            elif job.process is not None and job.pruned and time.monotonic() - job.told > GRACE_S:
                kill_tree(job.process.pid)

    def _start_what_fits(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            running = sum(other.state == "running" for other in jobs)
            if job.state != "waiting":
                continue
            if running >= self.places.most or self.places.needed(job) > len(self.places.free):
                return  # in order: a large job is not overtaken for ever by small ones
            self._start(job)

    def _start(self, job: Job) -> None:
        if job.config["runtime"].get("threads") is None:
            job.config["runtime"]["threads"] = max(1, self.cores // (self.places.most * job.nproc))
        try:
            self.write(job)
            job.console = open(job.directory / "console.log", "wb")  # noqa: SIM115 (closed when the job ends)
        except GolfError as error:
            job.state, job.error = "failed", str(error).splitlines()[0]
            return
        count = self.places.needed(job)
        job.places, self.places.free = self.places.free[:count], self.places.free[count:]
        job.process = subprocess.Popen(
            command(job),
            env=environment(job, self.places, job.config["runtime"]["threads"]),
            stdin=subprocess.DEVNULL,
            stdout=job.console,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a terminal's Ctrl-C is for the sweep to answer, not for each job
        )
        job.state, job.began = "running", time.monotonic()

    def _ended(self, job: Job) -> None:
        assert job.process is not None
        code = job.process.wait()
        if job.console is not None:
            job.console.close()
        job.process, job.console = None, None
        job.seconds = time.monotonic() - job.began
        self.places.free = [*job.places, *self.places.free]
        settle(job, verdict(job.directory, code, self._stopped_at is not None))

    def _heed_interrupts(self, jobs: Sequence[Job]) -> None:
        running = [job for job in jobs if job.process is not None]
        if self.interrupts and not self._drained and (self._guided or any(job.state == "waiting" for job in jobs)):
            self._drained = True
            for job in jobs:
                if job.state == "waiting":
                    job.state, job.error = "interrupted", "not started"
            self.watcher.say(f"interrupted: {len(running)} running jobs may finish, no other starts (again: stop them)")
        if self.interrupts >= 2 and self._stopped_at is None:
            self._stopped_at = time.monotonic()
            self.watcher.say(f"interrupted: stopping {len(running)} jobs")
            for job in running:
                with suppress(ProcessLookupError):
                    os.kill(job.process.pid, signal.SIGINT)  # type: ignore[union-attr]
        late = self._stopped_at is not None and time.monotonic() - self._stopped_at > GRACE_S
        if (late or self.interrupts >= 3) and not self._killed:
            self._killed = True
            for job in running:
                kill_tree(job.process.pid)  # type: ignore[union-attr]

    def _count(self, steps: int) -> None:
        self.interrupts += steps


@contextmanager
def counting_interrupts(count: Callable[[int], None], hangup: bool = True) -> Iterator[None]:
    """Within the block Ctrl-C counts 1, and SIGTERM, like a closed terminal where `hangup`, 2."""

    def handle(number: int, frame: FrameType | None) -> None:
        count(1 if number == signal.SIGINT else 2)

    heeded = (signal.SIGINT, signal.SIGTERM, *((signal.SIGHUP,) if hangup else ()))
    before: dict[int, Any] = {number: signal.signal(number, handle) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def verdict(directory: Path, code: int, stopped: bool) -> tuple[State, str]:
    """What became of a job whose process ended with `code`, and its error in one line."""
    record = Run(directory).record
    status = record.get("status")
    if code == 0 and status == "completed":
        return state_of(status, bool(record.get("valid"))), "; ".join(record.get("violations") or [])
    if stopped or status == "interrupted":
        return "interrupted", ""
    told = record.get("error") or last_line(directory / "console.log")
    if code < 0:
        told = f"killed by {signal.Signals(-code).name}" + (f" after: {told}" if told else "")
    return "failed", (str(told).splitlines() or [""])[0] or f"exit code {code}"


def settle(job: Job, told: tuple[State, str]) -> None:
    """Put down what became of a job: what its record `told`, unless it was pruned, or its folder is another run's,
    which is left as it is."""
    if lost := job.lost:
        job.state, job.error = "failed", lost
    elif job.pruned and told[0] not in SCORED:  # it may have been quicker
        job.state, job.error = "pruned", job.pruned
        note(job.directory, job.pruned)
    else:
        job.state, job.error = told


def seal_of(directory: Path) -> str:
    """The hash of the config.yaml in a folder; "" when there is none."""
    try:
        return sha256_file(RunFolder(directory).config)
    except OSError:
        return ""


def note(directory: Path, reason: str) -> None:
    """Put the reason why a run was pruned into its record, for those who read it later."""
    if record := Run(directory).record:
        with suppress(GolfError):
            write_json(RunFolder(directory).result, {**record, "error": PRUNED + reason})


def last_line(path: Path) -> str:
    """The last line with anything on it, or nothing."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def kill_tree(pid: int) -> None:
    """End a process and everything below it, at once."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in [*root.children(recursive=True), root]:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def free_folder(directory: Path, given: Collection[Path] = ()) -> Path:
    """`directory`, or where it holds a run already or is `given` to another, the first of `directory.2`, `directory.3`,
    … that is free."""
    candidate, number = directory, 1
    while candidate in given or RunFolder(candidate).config.exists() or RunFolder(candidate).result.exists():
        number += 1
        candidate = directory.with_name(f"{directory.name}.{number}")
    return candidate
