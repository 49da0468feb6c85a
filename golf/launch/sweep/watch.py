"""The jobs of a sweep from the first to the last, wherever they run: one loop of looks.

A `Backend` starts jobs, looks at them and stops them: the processes of this machine (pool.py), or a Slurm cluster's
queue (slurm.py). All else is here: which job comes next, which is given up, Ctrl-C, how long is waited for whom, and
what became of each.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol

from golf.common.errors import GolfError, stopping
from golf.launch.sweep.job import SweepJob, settle, start_again
from golf.launch.work.attempts import has_checkpoint
from golf.runs.states import ENDED, State, state_of
from golf.runs.store import Run

TICK_S = 0.1
"""How long the loop rests; a backend may be looked at less often (`look_every_s`)."""
GRACE_S = 30.0
"""How long a job that was told to stop may take to write its record."""
LAG_S = 10.0
"""How long an end that is not certain may take to become so: a shared file system shows records late."""


@dataclass(frozen=True)
class End:
    """How a backend saw a job end.

    in_order: whether a record that says `completed` is believed. how: what ended it, if not itself. told: the cause, if
    it is known better than from the record. last_words: what is told where the record tells no error. by_hand: whether
    a record that says `interrupted` means that somebody wanted it so. certain: false while a record may still come, or
    the job come back.
    """

    in_order: bool
    how: str = ""
    told: str = ""
    last_words: str = ""
    by_hand: bool = True
    certain: bool = True


Seen = Literal["waiting", "running"] | End


class Backend(Protocol):
    """Where the jobs of a sweep run, and how they are started, looked at and stopped."""

    most: int
    """Jobs at a time."""
    look_every_s: float
    """How long lies between two looks at least."""
    outlives_terminal: bool
    """Whether the jobs are to go on when the terminal is closed."""

    def check(self, jobs: Sequence[SweepJob]) -> None:
        """Raises ConfigError for a job that can never run here."""

    def has_room(self, jobs: Sequence[SweepJob]) -> bool:
        """Whether a guide is to be asked for another job."""

    def fitting(self, jobs: Sequence[SweepJob]) -> list[SweepJob]:
        """Those of the waiting jobs that can be handed over now. Raises ConfigError for one that never can be."""

    def threads(self, job: SweepJob) -> int | None:
        """The cores for each worker of a job, where that is known before it runs."""

    def start(self, jobs: Sequence[SweepJob]) -> list[SweepJob]:
        """Take over jobs whose folders are written; those that run from now on, others wait in a queue."""

    def look(self, jobs: Sequence[SweepJob]) -> Mapping[int, Seen]:
        """How the jobs that have not ended stand, by number; those of which nothing new is known are left out."""

    def stop(self, jobs: Sequence[SweepJob], at_once: bool) -> None:
        """Have jobs leave a record and end, or end `at_once`."""


class Display(Protocol):
    """Who is told how the jobs stand."""

    def update(self, jobs: Sequence[SweepJob]) -> None:
        """Called some times a second."""

    def say(self, text: str) -> None:
        """Something that must be read."""


class Guide(Protocol):
    """Who decides, while jobs run, which come next and which are not worth their time: a search, a halving."""

    planned: int
    """How many jobs there will be at most."""

    def more(self, jobs: Sequence[SweepJob]) -> Sequence[SweepJob]:
        """Further jobs, called while there is room for one; nothing when there is nothing to start yet. A job may come
        ended, when it need not run."""

    def ended(self, job: SweepJob) -> None:
        """Called once for each job that has ended, however it did."""

    def prune(self, job: SweepJob) -> str:
        """Called several times a second for a running job: why it is to be stopped, or nothing."""

    def finish(self, jobs: Sequence[SweepJob]) -> None:
        """Called after the closing table: what to tell at the end."""


class Watch:
    """Runs jobs until all have ended, or until Ctrl-C: once to start nothing new, twice to stop what runs, a third time
    at once."""

    def __init__(
        self, backend: Backend, display: Display, write: Callable[[SweepJob], None], guide: Guide | None = None,
        refuse: Callable[[SweepJob], str] | None = None, coming: Iterator[SweepJob] | None = None,
    ) -> None:  # fmt: skip
        """`coming` are jobs beside those that `run` is given, which take their time to make. `write` makes a job's run
        folder just before it is handed over; a GolfError of its fails that job alone. `refuse` is asked before that why
        a job is not worth its time."""
        self.backend, self.display, self.write, self.guide = backend, display, write, guide
        self.refuse, self.coming = refuse, coming
        self.interrupts = 0
        """How often it was told to stop."""
        self._heeded = 0
        self._stopped_at: float | None = None
        self._looked_at = -backend.look_every_s
        self._handed_over: set[int] = set()
        self._heard: set[int] = set()
        self._first_seen_ended: dict[int, float] = {}

    def run(self, jobs: list[SweepJob]) -> None:
        """Run the waiting jobs, and those that the guide adds to the list; each ends in one of the ENDED states."""
        with counting_interrupts(self._count, hangup=not self.backend.outlives_terminal):
            try:
                while True:
                    self._heed_interrupts(jobs)
                    self._look(jobs)
                    self._consult(jobs)
                    self._ask(jobs)
                    came = self._take(jobs)
                    self._start(jobs)
                    self.display.update(jobs)
                    heard = self.guide is None or len(self._heard) == len(jobs)  # else it may have more
                    if came:
                        continue
                    if heard and all(job.state in ENDED for job in jobs):
                        break
                    time.sleep(TICK_S)
            finally:  # only after an error of our own is there anything left
                self.backend.stop([job for job in jobs if job.state not in ENDED], at_once=True)

    def _count(self, steps: int) -> None:
        self.interrupts += steps

    def _heed_interrupts(self, jobs: Sequence[SweepJob]) -> None:
        late = self._stopped_at is not None and time.monotonic() - self._stopped_at > GRACE_S
        wanted = 3 if late else min(self.interrupts, 3)
        if wanted <= self._heeded:
            return
        self._heeded = wanted
        if waiting := [job for job in jobs if job.state == "waiting"]:
            self.backend.stop(waiting, at_once=True)
            for job in waiting:
                job.state, job.error = "interrupted", "not started"
        running = [job for job in jobs if job.state == "running"]
        if wanted == 1:
            self.display.say(f"interrupted: {len(running)} running jobs may finish, no other starts (again: stop them)")
            return
        if self._stopped_at is None:
            self._stopped_at = time.monotonic()
            self.display.say(f"interrupted: stopping {len(running)} jobs")
        self.backend.stop(running, at_once=wanted == 3)

    def _look(self, jobs: Sequence[SweepJob]) -> None:
        """Put down what the backend sees."""
        now = time.monotonic()
        handed_over = [job for job in jobs if job.state not in ENDED and job.number in self._handed_over]
        if not handed_over or now - self._looked_at < self.backend.look_every_s:
            return
        self._looked_at = now
        seen = self.backend.look(handed_over)
        for job in handed_over:
            match seen.get(job.number):
                case End() as end:
                    since = self._first_seen_ended.setdefault(job.number, now)
                    if not self.interrupts and (why := start_again(job)):
                        self._handed_over.discard(job.number)
                        self._first_seen_ended.pop(job.number)
                        self.display.say(f"job {job.number}: {why}")
                    elif end.certain or now - since >= LAG_S or self._stopped_at is not None:
                        job.seconds = now - job.began if job.began else 0.0
                        settle(job, verdict(job.directory, end, self._stopped_at is not None))
                case "running":
                    self._first_seen_ended.pop(job.number, None)
                    if job.state != "running":
                        job.state, job.began = "running", now
                case "waiting":
                    self._first_seen_ended.pop(job.number, None)
                    if job.state == "running":
                        job.state = "waiting"
                        goes = "will go on" if has_checkpoint(job.run.folder) else "has no checkpoint and begins anew"
                        self.display.say(f"job {job.number} was put back in the queue; its run {goes} there")

    def _consult(self, jobs: Sequence[SweepJob]) -> None:
        """Tell the guide what has ended, and stop what it gives up."""
        if self.guide is None:
            return
        for job in jobs:
            if job.state in ENDED and job.number not in self._heard:
                self._heard.add(job.number)
                self.guide.ended(job)
            elif job.state == "running" and not job.pruned and (reason := self.guide.prune(job)):
                job.pruned, job.told = reason, time.monotonic()
                self.backend.stop([job], at_once=False)
            elif job.state == "running" and job.pruned and time.monotonic() - job.told > GRACE_S:
                job.told = time.monotonic()
                self.backend.stop([job], at_once=True)

    def _ask(self, jobs: list[SweepJob]) -> None:
        """Add the guide's jobs while there is room."""
        while self.guide is not None and not self.interrupts and self.backend.has_room(jobs):
            if not (new := self.guide.more(jobs)):
                return
            jobs += new

    def _take(self, jobs: list[SweepJob]) -> bool:
        """Add the next of the jobs that are to come; whether there was one."""
        new = None if self.coming is None or self.interrupts else next(self.coming, None)
        jobs += [] if new is None else [new]
        return new is not None

    def _start(self, jobs: Sequence[SweepJob]) -> None:
        """Write and hand over what fits."""
        waiting = [job for job in jobs if job.state == "waiting" and job.number not in self._handed_over]
        written = []
        for job in self.backend.fitting(waiting) if waiting else []:
            if self.refuse is not None and (why := self.refuse(job)):
                job.state, job.error = "pruned", why
                continue
            if job.config["runtime"].get("threads") is None and (threads := self.backend.threads(job)) is not None:
                job.config["runtime"]["threads"] = threads
            try:
                self.write(job)
                written.append(job)
            except GolfError as error:
                job.state, job.error = "failed", str(error).splitlines()[0]
        self._handed_over |= {job.number for job in written}
        for job in self.backend.start(written) if written else []:
            job.state, job.began = "running", time.monotonic()


def verdict(directory: Path, end: End, stopped: bool) -> tuple[State, str]:
    """What became of a job that ended, by its record, and its error in one line; `stopped`: with all others."""
    record = Run(directory).record
    status = record.get("status")
    if end.in_order and status == "completed":
        return state_of(status, bool(record.get("valid"))), "; ".join(record.get("violations") or [])
    if stopped or (end.by_hand and status == "interrupted"):
        return "interrupted", ""
    told = (str(end.told or record.get("error") or end.last_words).splitlines() or [""])[0]
    return "failed", " after: ".join(part for part in (end.how, told) if part)


@contextmanager
def counting_interrupts(count: Callable[[int], None], hangup: bool = True) -> Iterator[None]:
    """Within the block Ctrl-C counts 1, and a signal of the system's 2, a closed terminal's only where `hangup`."""

    def handle(number: int, frame: FrameType | None) -> None:
        count(1 if number == signal.SIGINT else 2)

    heeded = [signal.SIGINT, *(number for number in stopping() if hangup or number != signal.SIGHUP)]
    before: dict[int, Any] = {number: signal.signal(number, handle) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
