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
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from golf.common.errors import ConfigError, GolfError
from golf.launch.sweep.local import LocalLauncher
from golf.launch.sweep.pool import GRACE_S, Guide, Job, Runner, Watcher, counting_interrupts, last_line, settle
from golf.launch.sweep.slurm_job import FAILURE, KILLED, WARNING_S, run_worker, setup_line
from golf.runs.folder import RunFolder
from golf.runs.states import ENDED, State, state_of
from golf.runs.store import Run

if TYPE_CHECKING:
    from submitit import Job as SubmititJob

TICK_S = 0.2
LAG_S = 10.0
"""How long after its end a job's record may take to be seen here, through a shared file system."""
OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "BOOT_FAIL",
        "DEADLINE", "GONE")  # fmt: skip
"""States that end a job; GONE is golf's own, for one that Slurm has forgotten."""
BEFORE = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")


@dataclass(frozen=True)
class Request:
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

    def gpus(self, job: Job) -> int:
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
    """`hydra/launcher=slurm`: each job on nodes of a cluster. Settings as for Request. Raises ConfigError."""

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
        node: Any = {"_target_": f"{Request.__module__}.Request", **given}  # type: ignore[dict-item]
        check_types(node, "hydra.launcher")
        self.request: Request = build.make(node, "hydra.launcher")

    def check_places(self, jobs: Sequence[Job], guided: bool = False) -> None:
        """Raises ConfigError for what Slurm would refuse, and for a guided sweep that may run all its jobs at once."""
        if guided and self.request.jobs is None:
            raise ConfigError("this sweep chooses its jobs by what earlier ones came to\n"
                              "say how many may run at a time: hydra.launcher.jobs=8")  # fmt: skip
        check_partition(self.request.partition)
        for group in groups(jobs):
            options = self.request.options(group[0].nproc, self.request.gpus(group[0]))
            check_request(options, 1 if guided else len(group))

    def runner(self, jobs: Sequence[Job], watcher: Watcher, guide: Guide | None = None) -> Runner:
        """The queue for these jobs. Raises ConfigError for what Slurm would refuse, before anything is written."""
        assert self.sweep_dir is not None
        self.check_places(jobs, guide is not None)
        return Queue(self.request, self.sweep_dir / "slurm", self.poll_s, watcher, self.write)


class Queue:
    """Submits jobs and watches them until all have ended, or until Ctrl-C: once to start nothing new, twice to stop
    what runs."""

    def __init__(
        self, request: Request, logs: Path, poll_s: float, watcher: Watcher, write: Callable[[Job], None]
    ) -> None:
        self.request, self.logs, self.poll_s, self.watcher, self.write = request, logs, poll_s, watcher, write
        self.most = request.jobs or sys.maxsize
        self.interrupts, self.heeded = 0, 0
        self.stopped_at: float | None = None
        self.submitted: dict[int, SubmititJob[None]] = {}
        self.over: dict[int, tuple[str, float]] = {}
        """When each job was first seen ended, and how."""
        self.reasons: set[str] = set()

    def run(self, jobs: list[Job], guide: Guide | None = None) -> None:
        """Run the waiting jobs, and those that the guide adds to the list; each ends in one of the ENDED states.

        A closed terminal leaves them to Slurm.
        """
        heard: set[int] = set()
        with counting_interrupts(self._count, hangup=False):
            try:
                self._submit(jobs)
                asked = -self.poll_s
                while True:
                    self._heed_interrupts(jobs)
                    if time.monotonic() - asked >= self.poll_s:
                        asked = time.monotonic()
                        self._look(jobs)
                    if guide is not None:
                        self._consult(jobs, guide, heard)
                        self._ask(jobs, guide)
                    self.watcher.update(jobs)
                    if all(job.state in ENDED for job in jobs) and (guide is None or len(heard) == len(jobs)):
                        break
                    time.sleep(TICK_S)
            finally:
                # only after an error of our own is one left
                self._cancel(job for job in jobs if job.state not in ENDED)

    def _count(self, steps: int) -> None:
        self.interrupts += steps

    def _ask(self, jobs: list[Job], guide: Guide) -> None:
        """Submit the guide's next jobs while there is room."""
        while not self.interrupts and sum(job.state not in ENDED for job in jobs) < self.most:
            if not (new := guide.more(jobs)):
                return
            jobs += new
            self._submit(new)

    def _consult(self, jobs: Sequence[Job], guide: Guide, heard: set[int]) -> None:
        """Tell the guide what has ended, and stop what it gives up."""
        for job in jobs:
            if job.state in ENDED and job.number not in heard:
                heard.add(job.number)
                guide.ended(job)
            elif job.state == "running" and not job.pruned and (reason := guide.prune(job)):
                job.pruned, job.told = reason, time.monotonic()
                self._cancel([job], "--signal=INT")
            elif job.state == "running" and job.pruned and time.monotonic() - job.told > GRACE_S:
                job.told = time.monotonic()
                self._cancel([job])

    def _submit(self, jobs: Sequence[Job]) -> None:
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        for job in (job for job in jobs if job.state == "waiting"):
            if self.request.cpus_per_task and job.config["runtime"].get("threads") is None:
                job.config["runtime"]["threads"] = self.request.cpus_per_task
            try:
                self.write(job)
            except GolfError as error:
                job.state, job.error = "failed", str(error).splitlines()[0]
        for group in groups(jobs):
            options = self.request.options(group[0].nproc, self.request.gpus(group[0]))
            executor = submitit.SlurmExecutor(self.logs, max_num_timeout=0)
            cpus = self.request.cpus_per_task
            executor.update_parameters(
                **{name: options.pop(name) for name in ("nodes", "ntasks_per_node", "time")}, job_name="golf",
                signal_delay_s=WARNING_S, array_parallelism=self.request.jobs or len(group),
                setup=[*self.request.setup, setup_line(shlex.quote(sys.executable))],
                srun_args=["--kill-on-bad-exit=1", *([f"--cpus-per-task={cpus}"] if cpus else [])],
                additional_parameters=options,
            )  # fmt: skip
            try:
                with executor.batch():
                    made = [executor.submit(run_worker, str(job.directory), 60.0 * self.request.time) for job in group]
            except (FailedJobError, FailedSubmissionError) as error:
                raise ConfigError(f"sbatch: {_first(str(error.__cause__ or error))}") from None
            self.submitted |= {job.number: one for job, one in zip(group, made, strict=True)}

    def _look(self, jobs: Sequence[Job]) -> None:
        """Ask Slurm, and put down what has changed."""
        open_jobs = [job for job in jobs if job.state not in ENDED]
        known = slurm_states()
        if known is None:
            if "silent" not in self.reasons:
                self.watcher.say("squeue does not answer; the jobs go on without it, and golf asks again")
            self.reasons.add("silent")
            return
        self.reasons.discard("silent")
        missing = [self.submitted[job.number].job_id for job in open_jobs
                   if self.submitted[job.number].job_id not in known]  # fmt: skip
        known |= accounted(missing)
        for job in open_jobs:
            state, reason = known.get(self.submitted[job.number].job_id, ("GONE", ""))
            if state not in OVER:
                self.over.pop(job.number, None)
                self._goes_on(job, state, reason)
                continue
            _, since = self.over.setdefault(job.number, (state, time.monotonic()))
            seen = RunFolder(job.directory).result.exists()
            fleeting = not seen or state in ("PREEMPTED", "NODE_FAIL")  # a requeue may follow
            if not fleeting or time.monotonic() - since >= LAG_S or self.stopped_at:
                job.seconds = time.monotonic() - job.began if job.began else 0.0
                errors = self.submitted[job.number].paths.stderr
                settle(job, verdict(job.directory, state, reason, errors, bool(self.stopped_at)))

    def _goes_on(self, job: Job, state: str, reason: str) -> None:
        if state not in BEFORE:
            if job.state != "running":
                job.state, job.began = "running", time.monotonic()
            return
        if job.state == "running":
            self.watcher.say(f"job {job.number} was put back in the queue; its run will start anew")
            job.state = "waiting"
        if reason not in ("None", "Priority", "Resources", "BeginTime", "JobArrayTaskLimit", *self.reasons):
            self.reasons.add(reason)
            self.watcher.say(f"job {job.number} waits in Slurm's queue: {reason}")

    def _heed_interrupts(self, jobs: Sequence[Job]) -> None:
        late = self.stopped_at is not None and time.monotonic() - self.stopped_at > GRACE_S
        wanted = 3 if late else min(self.interrupts, 3)
        if wanted <= self.heeded:
            return
        self.heeded = wanted
        waiting = [job for job in jobs if job.state == "waiting"]
        running = [job for job in jobs if job.state == "running"]
        if waiting:
            self._cancel(waiting)  # one that has just started too
            for job in waiting:
                job.state, job.error = "interrupted", "not started"
        if wanted == 1:
            self.watcher.say(f"interrupted: {len(running)} running jobs may finish, no other starts (again: stop them)")
            return
        if self.stopped_at is None:
            self.stopped_at = time.monotonic()
            self.watcher.say(f"interrupted: stopping {len(running)} jobs")
        self._cancel(running, *(["--signal=INT"] if wanted == 2 else []))

    def _cancel(self, jobs: Iterable[Job], *options: str) -> None:
        if ids := [self.submitted[job.number].job_id for job in jobs if job.number in self.submitted]:
            ask("scancel", *options, *ids)


def groups(jobs: Sequence[Job]) -> list[list[Job]]:
    """The waiting jobs by what they ask for: each group is one job array."""
    found: dict[tuple[int, bool], list[Job]] = {}
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


def verdict(directory: Path, state: str, reason: str, errors: Path, stopped: bool) -> tuple[State, str]:
    """What became of a job that Slurm has ended in `state`; `errors` is where its first task's own errors went."""
    record = Run(directory).record
    if record.get("status") == "completed" and state in ("COMPLETED", "GONE"):
        return state_of("completed", bool(record.get("valid"))), "; ".join(record.get("violations") or [])
    if stopped:
        return "interrupted", ""
    failure = first_failure(directory / "console.log") or last_line(errors)
    told = failure if KILLED in failure else record.get("error") or failure
    told = _first(str(told)) if told else "it left no word"
    if state not in ("COMPLETED", "FAILED"):
        known = "Slurm no longer knows it" if state == "GONE" else f"ended by Slurm, {state}"
        told = f"{known}{'' if reason in ('', 'None') else f' ({reason})'} after: {told}"
    return "failed", told


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
