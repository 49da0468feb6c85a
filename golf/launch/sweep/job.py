"""One job of a sweep, and its run folder: whose run lies there, and where a free one is."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from golf.common.errors import GolfError
from golf.common.files import sha256_file
from golf.common.progress import Length
from golf.launch.work import retry
from golf.learn.budget import Budget
from golf.runs.folder import RunFolder
from golf.runs.seal import amend
from golf.runs.states import PRUNED, SCORED, State
from golf.runs.store import Run


@dataclass
class SweepJob:
    """One job: what it runs, and what has become of it."""

    number: int
    overrides: list[str]
    config: dict[str, Any]
    directory: Path
    state: State = "waiting"
    error: str = ""
    seconds: float = 0.0
    began: float = 0.0
    varied: list[str] = field(default_factory=list)
    """The overrides that tell it from the sweep's other jobs, where that is known beforehand."""
    pruned: str = ""
    """Why it was told to stop before its end, and since when (`told`, of time.monotonic)."""
    told: float = 0.0
    over: float = 0.0
    """By which part of the limit its artifact is forecast to be over it, where it was not started for that."""
    goes_on: bool = False
    """Whether its folder holds the run already, which ended early and goes on from a checkpoint."""
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


def length_of(config: Mapping[str, Any]) -> Length:
    """How long the run of a config is."""
    given, clock_s = config["budget"], None
    if config["schedule"]["clock"] == "wall":
        names = [name for name in ("train_seconds", "fraction", "reference_nproc") if name in given]
        clock_s = Budget(**{name: given[name] for name in names}).clock_s(config["runtime"]["nproc"])
    return Length(config["schedule"]["iterations"], clock_s)


def settle(job: SweepJob, told: tuple[State, str]) -> None:
    """Put down what became of a job: what its record `told`, unless it was pruned, or its folder is another run's,
    which is left as it is."""
    if lost := job.lost:
        job.state, job.error = "failed", lost
    elif job.pruned and told[0] not in SCORED:  # it may have been quicker
        job.state, job.error = "pruned", job.pruned
        note(job.directory, job.pruned)
        shutil.rmtree(RunFolder(job.directory).checkpoints, ignore_errors=True)  # it will not go on
    else:
        job.state, job.error = told


def start_again(job: SweepJob) -> str:
    """Let a job that ran out of memory wait for another start where its config says so; the line to tell, or
    nothing."""
    why = None
    with suppress(GolfError):  # a disk that is full
        why = None if job.pruned or job.lost else retry.follow(job.directory)
    if why is None:
        return ""
    job.state, job.goes_on, job.seal = "waiting", True, seal_of(job.directory)
    return why


def seal_of(directory: Path) -> str:
    """The hash of the config.yaml in a folder; "" when there is none."""
    try:
        return sha256_file(RunFolder(directory).config)
    except OSError:
        return ""


def note(directory: Path, reason: str) -> None:
    """Put the reason why a run was pruned into its record, for those who read it later."""
    with suppress(GolfError, OSError, ValueError):
        amend(RunFolder(directory).result, {"error": PRUNED + reason})


def last_line(path: Path) -> str:
    """The last line with anything on it, or nothing."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def free_folder(directory: Path, given: Collection[Path] = ()) -> Path:
    """`directory`, or where it holds a run already or is `given` to another, the first of `directory.2`, `directory.3`,
    … that is free."""
    candidate, number = directory, 1
    while candidate in given or RunFolder(candidate).config.exists() or RunFolder(candidate).result.exists():
        number += 1
        candidate = directory.with_name(f"{directory.name}.{number}")
    return candidate
