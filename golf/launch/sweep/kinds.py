"""What the kinds of sweep share: the settings of the `sweep` group, run identity, and the space a guided sweep has."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from golf.common.errors import ConfigError, did_you_mean
from golf.common.files import atomic_writer
from golf.launch.compose.ranges import Range
from golf.launch.sweep.job import SweepJob, free_folder
from golf.launch.sweep.watch import Guide
from golf.runs.figures import POST_QUANT
from golf.runs.seal import identity
from golf.runs.store import find_runs


@dataclass(frozen=True)
class SweepSettings:
    """Settings of every kind of sweep.

    params: swept keys beside those of the command line, which win: words, or a mapping of keys to values. metric: a
    number of result.json, the smaller the better. skip_done, done_roots: leave out what has a valid result there or in
    the sweep's folder. forecast: start no job whose artifact is forecast to be over its limit (golf.launch.sweep.room).
    Raises ConfigError for a metric that no result has.
    """

    params: list[str] | dict[str, Any] | None = None
    metric: str = POST_QUANT
    skip_done: bool = False
    done_roots: list[str] = field(default_factory=list)
    forecast: bool = False

    def __post_init__(self) -> None:
        check_figure("sweep.metric", self.metric)

    def results(self, folder: Path, invalid: bool = False) -> dict[str, Path]:
        """What `done` finds in the sweep's folder and `done_roots`; nothing unless `skip_done`."""
        roots = [folder, *(Path(root).expanduser() for root in self.done_roots)]
        return done(roots, invalid) if self.skip_done else {}

    def guide(self, space: Space) -> Guide | None:
        """Who leads the sweep through its space; None for a sweep whose jobs are all known before the first starts."""
        return None


@dataclass
class Space:
    """Where a guided sweep moves: `fixed` words, `ranges` of the others, `job` that composes and checks one.

    `folder` is the sweep's; `config_dirs` are the command line's.
    """

    fixed: list[str]
    ranges: list[Range]
    job: Callable[[Sequence[str], int], SweepJob]
    folder: Path
    config_dirs: list[Path] = field(default_factory=list)
    probes: list[SweepJob] = field(default_factory=list)
    given: set[Path] = field(default_factory=set)
    """The folders of the jobs so far."""

    def words(self, values: Mapping[str, str]) -> list[str]:
        """The override words of one job."""
        return [*self.fixed, *(f"{key}={value}" for key, value in values.items())]

    def compose(self, values: Mapping[str, str], number: int) -> SweepJob:
        """One job, composed and checked. Raises ConfigError."""
        job = self.job(self.words(values), number)
        job.varied = [f"{key}={value}" for key, value in values.items()]
        return job

    def probe(self) -> None:
        """Compose and check every choice and both ends of every range, beside the first or the last values of the
        others; what runs is kept in `probes`.

        Raises ConfigError for a value that runs with neither.
        """
        corners = [{one.key: one.ends[index] for one in self.ranges} for index in (0, -1)]
        tried: dict[str, SweepJob | ConfigError] = {}

        def attempt(values: Mapping[str, str]) -> SweepJob | ConfigError:
            key = repr(sorted(values.items()))
            if key not in tried:
                try:
                    tried[key] = self.compose(values, 0)
                except ConfigError as error:
                    tried[key] = error
            return tried[key]

        for one in self.ranges:
            for value in one.ends:
                first = attempt(corners[0] | {one.key: value})
                if isinstance(first, ConfigError) and isinstance(attempt(corners[1] | {one.key: value}), ConfigError):
                    raise first
        self.probes = [job for job in tried.values() if isinstance(job, SweepJob)]

    def command(self, words: Iterable[str]) -> str:
        """The command line that runs one job of the sweep alone."""
        folders = [part for folder in self.config_dirs for part in ("--config-dir", str(folder))]
        return shlex.join(["golf", "train", *folders, *words])


def check_figure(key: str, name: str) -> None:
    """Raises ConfigError, naming `key`, for a number that result.json does not have."""
    from golf.runs.record import figure_names  # pydantic, which a mistake on the line need not wait for

    known = figure_names()
    if name not in known and not any(name.startswith(group) for group in known if group.endswith(".")):
        nearest = did_you_mean(name, known) or f"(such as {', '.join(known[:3])})"
        raise ConfigError(f"{key}={name}: result.json has no such number {nearest}")


def figure(job: SweepJob, name: str) -> float | None:
    """A number of a job's result."""
    value = job.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def done(roots: Iterable[Path], invalid: bool = False) -> dict[str, Path]:
    """The valid runs below the roots that exist, by identity; with `invalid` those over a limit as well."""
    found = [run for run in find_runs(*(root for root in roots if root.is_dir())) if run.config]
    over = [run for run in found if invalid and run.status == "completed"]
    return {identity(run.config): run.dir for run in (*over, *(run for run in found if run.valid))}


def assign_folder(job: SweepJob, known: Mapping[str, Path], given: set[Path]) -> None:
    """Point a job that has a known result at it, and any other at a folder that is free, which is `given` then."""
    if (folder := known.get(identity(job.config))) is not None:
        job.state, job.directory = "skipped", folder
    else:
        job.directory = free_folder(job.directory, given)
        given.add(job.directory)


def write_best(path: Path, content: Mapping[str, Any]) -> None:
    """Leave what a guided sweep found beside its jobs."""
    with atomic_writer(path, "w") as file:
        yaml.safe_dump(dict(content), file, sort_keys=False, allow_unicode=True, width=4096)
