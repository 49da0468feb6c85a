"""Hydra's launcher for one machine: composes each job once and runs it in processes of its own (see pool.py)."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from golf.common.errors import ConfigError, GolfError
from golf.common.files import hold
from golf.launch.compose.configs import short
from golf.launch.compose.keys import put_right
from golf.launch.sweep.board import Board, closing_table
from golf.launch.sweep.coming import Coming
from golf.launch.sweep.folders import check_apart
from golf.launch.sweep.job import SweepJob, seal_of
from golf.launch.sweep.pool import Devices, Pool
from golf.launch.sweep.room import too_large
from golf.launch.sweep.watch import Backend, Guide, Watch
from golf.launch.work.jobs import INTERRUPTED, INVALID, TrainTask, logger_notes, prepared, write
from golf.runs.figures import POST_QUANT
from golf.runs.states import SCORED

Composed = tuple[DictConfig, DictConfig, Path]
"""A job's config, Hydra's own part of it, and the job's folder."""
METRIC = POST_QUANT


class LocalLauncher(Launcher):
    """Packs jobs onto this machine's GPUs, or onto its cores.

    gpus: numbers of the GPUs to use (None: all visible). jobs: most jobs at a time (None: as many as fit). Raises
    ConfigError for a number below 1.
    """

    here = True
    """Whether jobs run on this machine."""

    def __init__(self, gpus: list[int] | None = None, jobs: int | None = None) -> None:
        if jobs is not None and (not isinstance(jobs, int) or jobs < 1):
            raise ConfigError(f"hydra.launcher.jobs={jobs}: must be at least 1, or null for as many as fit")
        if gpus is not None and not all(isinstance(number, int) for number in gpus):
            raise ConfigError(f"hydra.launcher.gpus={gpus}: expected numbers of GPUs, such as '[0,1]'")
        self.gpus, self.most = None if gpus is None else list(gpus), jobs
        self._ran: list[SweepJob] = []
        self._held: FileLock | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra. Raises ConfigError for a task that is not `golf train`'s."""
        owner = getattr(task_function, "__self__", None)
        if not isinstance(owner, TrainTask):
            raise ConfigError("hydra/launcher=local runs the jobs of `golf train`; others take hydra/launcher=basic")
        self.owner, self.context, self.config = owner, hydra_context, config
        self.sweep_dir: Path | None = None

    def compose(self, overrides: Sequence[str], number: int) -> Composed:
        """One job's config, Hydra's own part of it, and the job's absolute folder. Raises ConfigError."""
        try:
            config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
            with open_dict(config):
                config.hydra.job.id = str(number)
                config.hydra.job.num = number
            HydraConfig.instance().set_config(config)
            hydra_config = config.hydra
            if self.sweep_dir is None:  # once: the folder's name holds a time and a random tag
                self.sweep_dir = Path(str(hydra_config.sweep.dir)).absolute()
            directory = self.sweep_dir / str(hydra_config.sweep.subdir)
            with read_write(config), open_dict(config):
                del config["hydra"]
            put_right(config, overrides)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(f"{' '.join(overrides)}: {short(error)}") from error
        return config, hydra_config, directory

    def job(self, overrides: Sequence[str], number: int, composed: Composed | None = None) -> SweepJob:
        """One job, composed unless it was before, and checked. Raises ConfigError."""
        config, hydra_config, directory = composed or self.compose(overrides, number)
        assert self.sweep_dir is not None
        plain = self.owner.checked(config, hydra_config, self.sweep_dir.name, self.here)
        return SweepJob(number, list(overrides), plain, directory, seal="")

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch of jobs for any of Hydra's sweepers; the score of each is its return value."""
        setup_globals()
        jobs = [self.job(overrides, initial_job_idx + index) for index, overrides in enumerate(job_overrides)]
        assert self.sweep_dir is not None
        check_apart([*self._ran, *jobs], self.sweep_dir)
        return self.run(jobs)

    @property
    def takes_more(self) -> bool:
        """Whether jobs can start while others are composed."""
        return self.here and not self.owner.line.prepare

    def run_all(self, coming: Coming, metric: str, forecast: bool) -> list[JobReturn]:
        """Run the jobs of a large grid, which are composed meanwhile; the first of them say where and how many."""
        alike = list(itertools.islice(itertools.cycle(coming.ready.values()), len(coming.lists)))
        return self.run(alike, metric, forecast=forecast, coming=coming)

    def run(
        self, jobs: list[SweepJob], metric: str = METRIC, guide: Guide | None = None, forecast: bool = False,
        coming: Coming | None = None,
    ) -> list[JobReturn]:  # fmt: skip
        """Run jobs that are composed, and those that a guide adds; show them, and tell the command what they came to.

        With a guide, and where they are `coming`, `jobs` stand for those to come: they say where and how many, and are
        not run themselves. forecast: start none that will be too large.
        """
        if self.owner.line.prepare:
            if guide is not None:
                raise ConfigError("--prepare: this sweep chooses its jobs by what earlier ones came to")
            return self.prepare(jobs)
        planned = guide.planned if guide is not None else sum(job.state == "waiting" for job in jobs)
        assert self.sweep_dir is not None
        by_and_by = guide is not None or coming is not None
        board = Board(planned=planned if by_and_by else 0)
        backend = self.backend(jobs, board.say, guide is not None)
        self._hold()
        OmegaConf.save(self.config, self.sweep_dir / "multirun.yaml")
        for line in logger_notes(job.config for job in jobs):
            print(line)
        print(f"{planned} jobs, {min(backend.most, planned)} at a time, in {self.sweep_dir}", flush=True)
        if by_and_by:
            jobs = []
        others = None if coming is None else coming.jobs(backend.check, board.say)
        watch = Watch(backend, board, self.write, guide, too_large if forecast else None, others)
        with board:
            watch.run(jobs)
        self._ran += jobs
        self._report(jobs, metric)
        if by_and_by:
            self.owner.interrupted = bool(watch.interrupts)  # what did not come is no row
        if guide is not None:
            guide.finish(jobs)
        print(self.sweep_dir, flush=True)
        return [self._return(job) for job in jobs]

    def prepare(self, jobs: Sequence[SweepJob]) -> list[JobReturn]:
        """Make the run folders of jobs that something else will run."""
        assert self.sweep_dir is not None
        self._hold()
        OmegaConf.save(self.config, self.sweep_dir / "multirun.yaml")
        for job in jobs:
            if job.state == "waiting":
                self.write(job)
                print(prepared(job.directory, job.config))
        self.owner.exit_codes += [0] * len(jobs)
        return [self._return(job) for job in jobs]

    def backend(self, jobs: Sequence[SweepJob], say: Callable[[str], None], guided: bool = False) -> Backend:
        """What runs these jobs, or such jobs where they are `guided`, chosen as others end; `say` is for what it has to
        tell. Raises ConfigError, before anything is written, for what cannot be."""
        devices, cores = self.devices(jobs)
        devices.check([job for job in jobs if job.state == "waiting"])
        return Pool(devices, cores)

    def write(self, job: SweepJob) -> None:
        """Make a job's run folder, unless its run goes on there. Raises GolfError for a used one."""
        if not job.goes_on:
            write(job.directory, job.config, job.overrides, self.owner.line.config_dirs)
        job.seal = seal_of(job.directory)

    def _hold(self) -> None:
        """Take the sweep's folder for as long as this process lives. Raises ConfigError when another sweep has it."""
        assert self.sweep_dir is not None
        if self._held is None and (held := hold(self.sweep_dir / ".sweep.lock")) is None:
            raise ConfigError(f"hydra.sweep.dir={self.sweep_dir}: another sweep is running there; name another folder")
        self._held = self._held or held

    def devices(self, jobs: Sequence[SweepJob]) -> tuple[Devices, int]:
        """Where these jobs run, and the cores there are. Raises ConfigError for GPUs that are not there."""
        import torch

        from golf.common.process import usable_cores
        from golf.launch.compose import build

        cores, count = usable_cores(), max(1, len(jobs))
        kinds = {build.make(job.config["runtime"], "runtime").device_type for job in jobs}
        if "cuda" in kinds:
            named = os.environ.get("CUDA_VISIBLE_DEVICES")
            visible = [str(n) for n in range(torch.cuda.device_count())]
            if named:
                visible = named.split(",")[: len(visible)]
            return Devices.of_gpus(visible, self.gpus, self.most), cores
        if self.gpus:
            Devices.of_gpus([str(n) for n in range(torch.cuda.device_count())], self.gpus, self.most)
            raise ConfigError(f"hydra.launcher.gpus={self.gpus}: these jobs run on the CPU (runtime.device=cpu)")
        largest = max((job.nproc for job in jobs), default=1)
        return Devices.of_cpu(cores, self.most, count, largest), cores

    def _report(self, jobs: Sequence[SweepJob], metric: str) -> None:
        """The closing table; failures go to stderr at the end of the command."""
        from golf.cli.tables import print_table
        from golf.launch.sweep.ablation import ablation_table

        codes = {"failed": 1, "interrupted": INTERRUPTED, "invalid": INVALID}
        self.owner.exit_codes += [codes.get(job.state, 0) for job in jobs]
        self.owner.failures += [f"{job.directory}: {job.error}" for job in jobs if job.state == "failed"]
        for table in (closing_table(jobs, metric), *ablation_table(jobs, metric)):
            print_table(table)
        if jobs and all(job.get(metric) is None for job in jobs) and any(job.state == "completed" for job in jobs):
            print(f"golf: sweep.metric={metric}: no result has such a number", file=sys.stderr)

    def _return(self, job: SweepJob) -> JobReturn:
        given: Any = JobReturn(overrides=job.overrides, task_name="golf", working_dir=str(Path.cwd()))
        given.status = JobStatus.COMPLETED
        given.return_value = None
        if job.state in SCORED:
            try:
                given.return_value = job.run.result.score
            except GolfError:
                given.status = JobStatus.FAILED
        return given  # type: ignore[no-any-return]
