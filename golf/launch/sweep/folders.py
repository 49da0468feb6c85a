"""A sweep's jobs and their folders: one each, none within another."""

from __future__ import annotations

import math
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hydra import compose
from hydra.errors import HydraException
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from golf.common.errors import ConfigError
from golf.launch.compose.configs import MOST_CHECKED, resolved, short, without
from golf.launch.compose.keys import put_right
from golf.launch.compose.line import CommandLine, searched
from golf.launch.compose.options import CONFIG_NAME
from golf.launch.compose.words import parse_override, tried_values
from golf.launch.sweep.board import differing
from golf.launch.sweep.job import SweepJob
from golf.launch.work.jobs import check

if TYPE_CHECKING:
    from golf.launch.sweep.kinds import Space

REMEDY = "let hydra.sweep.subdir name all that differs; without it every job gets its number"


class Apart:
    """The folders of a sweep's jobs, one after another: no job's may be another's or lie within it, nor be the sweep's
    own. Names that differ in case alone are one folder on some file systems, hence here."""

    def __init__(self, sweep_dir: Path) -> None:
        self._own = real_parts(sweep_dir)
        self._at: dict[tuple[str, ...], SweepJob] = {}
        self._below: dict[tuple[str, ...], SweepJob] = {}
        """For each folder that holds jobs' folders one of these jobs."""

    def add(self, job: SweepJob, jobs: Sequence[SweepJob] = ()) -> None:
        """One more job. Raises ConfigError, naming two by what tells them from the other `jobs`, or from each other."""
        parts = real_parts(job.directory)
        if self._own[: len(parts)] == parts:
            named = _named(job, jobs or [job])
            raise ConfigError(f"hydra.sweep.subdir: job {named} would have the sweep's own folder, "
                              f"{job.directory}\n{REMEDY}")  # fmt: skip
        above = [parts[:length] for length in range(len(parts))]
        same = self._at.get(parts)
        if (other := same or self._below.get(parts) or next(filter(None, map(self._at.get, above)), None)) is not None:
            one, two = both = sorted((job, other), key=lambda job: job.number)
            jobs = jobs or both
            how = "share the folder" if same else "run in folders within each other,"
            where = f"{one.directory}" if same else f"{one.directory} and {two.directory}"
            raise ConfigError(f"hydra.sweep.subdir: jobs {_named(one, jobs)} and {_named(two, jobs)} would {how} "
                              f"{where}\n{REMEDY}")  # fmt: skip
        self._at[parts] = job
        for folder in above:
            self._below.setdefault(folder, job)


def check_apart(jobs: Sequence[SweepJob], sweep_dir: Path) -> None:
    """Raises ConfigError, naming two jobs, where one's folder is the other's or lies within it, and where a job's is
    the sweep's own."""
    apart = Apart(sweep_dir)
    for job in jobs:
        apart.add(job, jobs)


def real_parts(directory: Path) -> tuple[str, ...]:
    """The parts of a folder's path by which it is the same as another: links followed, case and accents levelled."""
    real = os.path.realpath(directory)
    return tuple(unicodedata.normalize("NFC", part).casefold() for part in Path(real).parts)


def _named(job: SweepJob, jobs: Sequence[SweepJob]) -> str:
    words = " ".join(differing(job, jobs))
    return f"{job.number} ({words})" if words else str(job.number)


def check_space(space: Space) -> None:
    """The same for a guided sweep, whose jobs come later: by their numbers, or by the values at the ends of its ranges.

    Raises ConfigError.
    """
    first, *others = space.probes
    again = space.job(first.overrides, 1)
    again.varied = first.varied
    if real_parts(again.directory) != real_parts(first.directory):
        check_apart([first, again], space.folder)
        return
    probes = [replace(one, number=number) for number, one in enumerate([first, *others])]
    check_apart(probes, space.folder)


def check_line(line: CommandLine, lists: Sequence[Sequence[str]]) -> None:
    """The same for a sweep that another sweeper than golf's will make of a command line, job by job in `lists`, and
    whether the jobs can run.

    Called within `composer`; of many jobs `lists` has each swept value once. Raises ConfigError.
    """
    own = [word for word in line.overrides if word.startswith("hydra")]
    swept = [one for one in map(parse_override, line.overrides) if one.is_sweep_override()]
    if math.prod(len(tried_values(one)) for one in swept) > MOST_CHECKED:
        lists = list(dict.fromkeys(map(tuple, lists)))
    jobs, configs, sweep_dir = list[SweepJob](), list[DictConfig](), Path()
    for number, words in enumerate(lists):
        try:
            config = compose(CONFIG_NAME, [*words, *own, *searched(line.config_dirs)], return_hydra_config=True)
            with open_dict(config):
                config.hydra.job.update(num=number, id=str(number))
            sweep_dir = sweep_dir if number else Path(str(config.hydra.sweep.dir)).absolute()
            directory = sweep_dir / str(config.hydra.sweep.subdir)
            configs.append(without(config, "hydra"))
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(short(error)) from error
        jobs.append(SweepJob(number, list(words), {}, directory))
    check_apart(jobs, sweep_dir)
    for config, words in zip(configs, lists, strict=True):
        put_right(config, words)
        check(resolved(config), line.config_dirs, Path.cwd(), runs_here=not line.prepare)
