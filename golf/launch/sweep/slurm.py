"""Hydra's launcher for clusters: the jobs of a sweep as one Slurm job array, through submitit.

As with `local`, this process composes, checks and writes every job's run folder; the Slurm job runs `python -m
golf.launch.work.worker` on it with a rank a GPU, and what became of it is read from result.json. How jobs stand is
asked of squeue, so that a killed one is noticed without accounting too.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from golf.common.errors import ConfigError
from golf.launch.sweep.job import SweepJob, last_line
from golf.launch.sweep.local import LocalLauncher
from golf.launch.sweep.slurm_job import FAILURE, KILLED, WARNING_S, places, run_worker, setup_line
from golf.launch.sweep.watch import Backend, End, Seen
from golf.runs.folder import RunFolder
from golf.runs.states import ENDED

if TYPE_CHECKING:
    from submitit import Job as SubmititJob

OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "BOOT_FAIL",
        "DEADLINE", "GONE")  # fmt: skip
"""States that end a job; GONE is golf's own, for one that Slurm has forgotten."""
BEFORE = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")


@dataclass(frozen=True)
class Resources:
    """What each job asks of Slurm; fields as in conf/hydra/launcher/slurm.yaml. Raises ConfigError for bad values."""

    partition: str | None = None
    nodes: int = 1
    gpus_per_node: int | None = None
    time: int = 60
    cpus_per_task: int | None = None
    mem_gb: float | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    requeue: bool = True
    jobs: int | None = None
    extra: dict[str, str | int | bool] | None = None
    setup: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name, least in (("nodes", 1), ("gpus_per_node", 0), ("time", 1), ("cpus_per_task", 1), ("jobs", 1)):
            if (value := getattr(self, name)) is not None and value < least:
                unit = " minute" if name == "time" else ""
                raise ConfigError(f"hydra.launcher.{name}={value}: must be at least {least}{unit}")

    def gpus(self, job: SweepJob) -> int:
        """GPUs of a node for this job. Raises ConfigError where its workers don't fit its nodes and GPUs."""
        if job.nproc % self.nodes:
            raise ConfigError(f"runtime.nproc={job.nproc}: not to be shared by hydra.launcher.nodes={self.nodes}")
        ranks, on_cpu = job.nproc // self.nodes, job.config["runtime"]["device"] == "cpu"
        if self.gpus_per_node is None:
            return 0 if on_cpu else ranks
        if self.gpus_per_node and (on_cpu or self.gpus_per_node != ranks):
            fit = f"runtime.nproc={self.nodes * self.gpus_per_node} gives each GPU of {self.nodes} nodes a worker"
            fit = "the jobs run on the CPU (runtime.device=cpu)" if on_cpu else fit
            raise ConfigError(f"hydra.launcher.gpus_per_node={self.gpus_per_node}, runtime.nproc={job.nproc}: {fit}")
        return self.gpus_per_node

    def options(self, nproc: int, gpus: int) -> dict[str, Any]:
        """sbatch's long options for a job of `nproc` workers."""
        asked: dict[str, Any] = {
            "nodes": self.nodes, "ntasks_per_node": nproc // self.nodes, "time": self.time,
            "gpus_per_node": gpus or None, "cpus_per_task": self.cpus_per_task, "partition": self.partition,
            "account": self.account, "qos": self.qos, "constraint": self.constraint,
            "mem": None if self.mem_gb is None else f"{round(1024 * self.mem_gb)}M",
            "requeue" if self.requeue else "no_requeue": True,
        }  # fmt: skip
        return {name: value for name, value in asked.items() if value is not None} | (self.extra or {})


class SlurmLauncher(LocalLauncher):
    """`hydra/launcher=slurm`: each job on nodes of a cluster. Settings as for Resources. Raises ConfigError."""

    here = False

    def __init__(self, poll_s: float = 5.0, **kwargs: Any) -> None:
        super().__init__()
        from omegaconf import OmegaConf

        from golf.launch.compose import build
        from golf.launch.compose.annotations import check_types

        if not isinstance(poll_s, int | float) or not poll_s > 0:
            raise ConfigError(f"hydra.launcher.poll_s={poll_s}: must be more than 0 seconds")
        self.poll_s = poll_s
        given = OmegaConf.to_container(OmegaConf.create(kwargs))
        node: Any = {"_target_": f"{Resources.__module__}.Resources", **given}  # type: ignore[dict-item]
        check_types(node, "hydra.launcher")
        self.resources: Resources = build.make(node, "hydra.launcher")

    def backend(self, jobs: Sequence[SweepJob], say: Callable[[str], None], guided: bool = False) -> Backend:
        """The queue for these jobs. Raises ConfigError, before anything is written, for what Slurm would refuse, and
        for a guided sweep that may run all its jobs at once."""
        assert self.sweep_dir is not None
        if guided and self.resources.jobs is None:
            raise ConfigError("this sweep chooses its jobs by what earlier ones came to\n"
                              "say how many may run at a time: hydra.launcher.jobs=8")  # fmt: skip
        check_partition(self.resources.partition)
        for group in groups(jobs):
            options = self.resources.options(group[0].nproc, self.resources.gpus(group[0]))
            check_request(options, 1 if guided else len(group))
        return SlurmQueue(self.resources, self.sweep_dir / "slurm", self.poll_s, say)


class SlurmQueue:
    """A cluster's queue as a sweep's backend: jobs of one size are one array."""

    outlives_terminal = True

    def __init__(self, resources: Resources, logs: Path, look_every_s: float, say: Callable[[str], None]) -> None:
        """`say` tells what of the queue must be read."""
        self.resources, self.logs, self.look_every_s, self.say = resources, logs, look_every_s, say
        self.most = resources.jobs or sys.maxsize
        self.submitted: dict[int, SubmititJob[None]] = {}
        self.reasons: set[str] = set()
        """Why jobs wait, as far as it was told."""

    def check(self, jobs: Sequence[SweepJob]) -> None:
        """Raises ConfigError for one whose workers don't fit its nodes and GPUs."""
        for job in jobs:
            self.resources.gpus(job)

    def has_room(self, jobs: Sequence[SweepJob]) -> bool:
        """While fewer than may run are in the queue."""
        return sum(job.state not in ENDED for job in jobs) < self.most

    def fitting(self, jobs: Sequence[SweepJob]) -> list[SweepJob]:
        """All: they wait in the queue."""
        return list(jobs)

    def threads(self, job: SweepJob) -> int | None:
        """What Slurm is asked for."""
        return self.resources.cpus_per_task

    def start(self, jobs: Sequence[SweepJob]) -> list[SweepJob]:
        """Submit them. Raises ConfigError with sbatch's reason for what it refuses."""
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        for group in groups(jobs):
            options = self.resources.options(group[0].nproc, self.resources.gpus(group[0]))
            executor = submitit.SlurmExecutor(self.logs, max_num_timeout=0)
            cpus = self.resources.cpus_per_task
            executor.update_parameters(
                **{name: options.pop(name) for name in ("nodes", "ntasks_per_node", "time")}, job_name="golf",
                signal_delay_s=WARNING_S, array_parallelism=self.resources.jobs or len(group),
                setup=[*self.resources.setup, setup_line(shlex.quote(sys.executable))],
                srun_args=["--kill-on-bad-exit=1", *([f"--cpus-per-task={cpus}"] if cpus else [])],
                additional_parameters=options,
            )  # fmt: skip
            try:
                with executor.batch():
                    made = [
                        executor.submit(
                            run_worker, str(job.directory), 60.0 * self.resources.time, job.goes_on, places()
                        )
                        for job in group
                    ]
            except (FailedJobError, FailedSubmissionError) as error:
                raise ConfigError(f"sbatch: {_first(str(error.__cause__ or error))}") from None
            self.submitted |= {job.number: one for job, one in zip(group, made, strict=True)}
        return []

    def look(self, jobs: Sequence[SweepJob]) -> dict[int, Seen]:
        """What squeue says of them, else accounting; a squeue that does not answer is told of once."""
        known = slurm_states()
        if known is None:
            if "silent" not in self.reasons:
                self.say("squeue does not answer; the jobs go on without it, and golf asks again")
            self.reasons.add("silent")
            return {}
        self.reasons.discard("silent")
        ids = {job.number: self.submitted[job.number].job_id for job in jobs}
        known |= accounted([id for id in ids.values() if id not in known])
        return {job.number: self._seen(job, *known.get(ids[job.number], ("GONE", ""))) for job in jobs}

    def _seen(self, job: SweepJob, state: str, reason: str) -> Seen:
        if state in OVER:
            return end_of(job.directory, state, reason, self.submitted[job.number].paths.stderr)
        if state not in BEFORE:
            return "running"
        if reason not in ("None", "Priority", "Resources", "BeginTime", "JobArrayTaskLimit", *self.reasons):
            self.reasons.add(reason)
            self.say(f"job {job.number} waits in Slurm's queue: {reason}")
        return "waiting"

    def stop(self, jobs: Sequence[SweepJob], at_once: bool) -> None:
        """SIGINT, which a run answers with a record, or what Slurm does to a job that is cancelled."""
        if ids := [self.submitted[job.number].job_id for job in jobs if job.number in self.submitted]:
            ask("scancel", *([] if at_once else ["--signal=INT"]), *ids)


def groups(jobs: Sequence[SweepJob]) -> list[list[SweepJob]]:
    """The waiting jobs by what they ask for: each group is one job array."""
    found: dict[tuple[int, bool], list[SweepJob]] = {}
    for job in jobs:
        if job.state == "waiting":
            found.setdefault((job.nproc, job.config["runtime"]["device"] == "cpu"), []).append(job)
    return list(found.values())


def ask(*command: str) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands, out of Ctrl-C's reach; one that is missing or takes over a minute ends with 127."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, start_new_session=True)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))


def check_partition(partition: str | None) -> None:
    """Raises ConfigError for a partition that doesn't exist, and where there is no Slurm."""
    if importlib.util.find_spec("submitit") is None:
        raise ConfigError("hydra/launcher=slurm: submitit is not installed: pip install 'golf[slurm]'")
    if shutil.which("sbatch") is None:
        raise ConfigError("hydra/launcher=slurm: there is no sbatch here; run this where Slurm's commands work")
    answer = ask("sinfo", "--noheader", "--format=%R")
    if answer.returncode:
        raise ConfigError(f"hydra/launcher=slurm: Slurm does not answer: {_first(answer.stderr)}")
    there = sorted(set(answer.stdout.split()))
    if unknown := [name for name in (partition or "").split(",") if name and name not in there]:
        raise ConfigError(
            f"hydra.launcher.partition={partition}: there is no partition {unknown[0]}\nchoices: {', '.join(there)}"
        )


def check_request(options: Mapping[str, Any], count: int) -> None:
    """Have sbatch judge a request of `count` jobs without making it. Raises ConfigError with its reason."""
    words = []
    for name, value in {**options, "array": f"0-{count - 1}"}.items():
        flag = f"--{name.replace('_', '-')}"
        words.append(flag if value is True else f"{flag}={value}")
    answer = ask("sbatch", "--test-only", *words, "--wrap=true")
    if answer.returncode:
        asked = " ".join(word for word in words if not word.startswith("--array"))
        raise ConfigError(f"Slurm refuses {count} jobs of {asked}\n{_first(answer.stderr)}")


def slurm_states() -> dict[str, tuple[str, str]] | None:
    """State and reason of each of the user's jobs, ended ones for some minutes too; None when squeue fails."""
    answer = ask("squeue", f"--user={os.getuid()}", "--array", "--states=all", "--noheader", "--format=%i|%T|%r")
    if answer.returncode:
        return None
    rows = (line.strip().split("|") for line in answer.stdout.splitlines())
    return {row[0]: (row[1], row[2]) for row in rows if len(row) == 3}


def accounted(ids: Sequence[str]) -> dict[str, tuple[str, str]]:
    """The same of jobs that squeue has forgotten, where accounting is on; those it doesn't know are left out."""
    if not ids:
        return {}
    answer = ask(
        "sacct", "--allocations", "--noheader", "--parsable2", "--format=JobID,State", f"--jobs={','.join(ids)}"
    )
    rows = (line.split("|") for line in answer.stdout.splitlines())
    return {row[0]: (row[1].split()[0], "") for row in rows if len(row) == 2 and row[1].strip()}


def end_of(directory: Path, state: str, reason: str, errors: Path) -> End:
    """The end of a job that Slurm has ended in `state`; `errors` is where its first task's own errors went."""
    failure = first_failure(directory / "console.log") or last_line(errors)
    words = _first(failure) if failure else "it left no word"
    requeued = state in ("PREEMPTED", "NODE_FAIL")  # perhaps
    how = ""
    if state not in ("COMPLETED", "FAILED"):
        known = "Slurm no longer knows it" if state == "GONE" else f"ended by Slurm, {state}"
        how = f"{known}{'' if reason in ('', 'None') else f' ({reason})'}"
    return End(
        in_order=state in ("COMPLETED", "GONE"), how=how, told=words if KILLED in failure else "", last_words=words,
        by_hand=False,  # Slurm interrupts a run that takes too long
        certain=RunFolder(directory).result.exists() and not requeued,
    )  # fmt: skip


def first_failure(console: Path) -> str:
    """Which worker failed first and how, as the tasks put it down, or the console's last line.

    A worker that was killed goes before the others, which fail for want of it.
    """
    told: list[str] = []
    with suppress(OSError):
        lines = console.read_text(encoding="utf-8", errors="replace").splitlines()
        told = [line.removeprefix("golf: ").strip() for line in lines if line.startswith(FAILURE)]
    killed = [line for line in told if KILLED in line and "SIGTERM" not in line]  # that one is srun's, to the others
    return (killed or told or [last_line(console)])[0]


def _first(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return re.sub(r"^(s\w+: )?(error|allocation failure): ", "", lines[0]) if lines else "it says nothing"
