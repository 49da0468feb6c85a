"""`hydra/launcher=slurm` on a real Slurm of two nodes, without accounting (tests/slurm/cluster.sh)."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

import golf

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif("SLURM_CONF" not in os.environ, reason="needs a Slurm of its own: make test-slurm"),
]

SWEEP = (
    "budget=smoke", "recipe=quickstart", "tokenizer=byte260", "model.num_layers=2", "val_tokens=2049", "logger=jsonl",
    "data=text", "data.val_docs=8", "quant.passthrough_numel=1024", "runtime=cpu", "runtime.threads=1",
    "hydra/launcher=slurm", "hydra.launcher.poll_s=0.5", "hydra.sweep.dir=sweep",
)  # fmt: skip
LONG = 100_000


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    rng, words = random.Random(1), ["the", "quick", "model", "reads", "a", "byte", "and", "predicts", "another"]
    texts = [" ".join(rng.choices(words, k=80)) for _ in range(120)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def started(corpus: Path, tmp_path: Path) -> Callable[..., Any]:
    """Starts a sweep in a process of its own, in an empty folder; it is killed with what Slurm runs for it."""

    @contextmanager
    def call(*more: str) -> Iterator[subprocess.Popen[str]]:
        path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(Path(golf.__file__).parents[1]))))
        command = [sys.executable, "-m", "golf.cli.main", "train", "-m", *SWEEP, f"data.paths=[{corpus}]", *more]
        sweep = subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "PYTHONPATH": path, "GOLF_CACHE": str(corpus.parent / "cache"), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        try:
            yield sweep
        finally:
            sweep.kill()
            sweep.communicate()
            subprocess.run(["scancel", "--me", "--full", "--signal=KILL"], check=False)

    return call


def told(sweep: subprocess.Popen[str], code: int) -> str:
    """All that a sweep says, until it ends with `code`."""
    out, _ = sweep.communicate(timeout=300)
    assert sweep.returncode == code, out
    return out


def until(condition: Callable[[], Any]) -> Any:
    """What `condition` comes to, once it is true."""
    deadline = time.monotonic() + 240
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return value


def training(tmp_path: Path, *jobs: int) -> Callable[[], bool]:
    files = [tmp_path / "sweep" / str(job) / "metrics.jsonl" for job in jobs]
    return lambda: all(file.exists() and file.stat().st_size for file in files)


def workers(directory: Path) -> list[psutil.Process]:
    """The worker processes of a run, wherever Slurm put them."""
    command = ["-P", "-m", "golf.launch.work.worker", f"run={directory}"]
    return [one for one in psutil.process_iter(["cmdline"]) if (one.info["cmdline"] or [])[1:] == command]


def result(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "result.json").read_text())


def queued(state: str = "PENDING,RUNNING") -> list[str]:
    words = ["squeue", "--me", "--array", "--noheader", "--format=%i", f"--states={state}"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()


def test_a_killed_worker_is_one_failed_row_and_the_sweep_goes_on(started: Any, tmp_path: Path) -> None:
    with started(f"schedule.iterations=3,{LONG},4", "runtime.nproc=2") as sweep:
        until(training(tmp_path, 1))
        victim = next(one for one in workers(tmp_path / "sweep" / "1") if one.environ()["RANK"] == "1")
        victim.kill()
        out = told(sweep, 1)
    assert [result(tmp_path / "sweep" / job)["numerics"]["nproc"] for job in "02"] == [2, 2]
    assert [result(tmp_path / "sweep" / job)["steps"] for job in "02"] == [3, 4]
    assert "1 of 3 jobs failed" in out
    assert "rank 1 was killed by SIGKILL" in out
    assert not workers(tmp_path / "sweep" / "1"), "srun ends the other rank"


def test_a_job_that_vanishes_whole_is_noticed_without_accounting(started: Any, tmp_path: Path) -> None:
    with started(f"schedule.iterations={LONG}") as sweep:
        until(training(tmp_path, 0))
        (job,) = queued()
        subprocess.run(["scancel", "--signal=KILL", "--full", job], check=True)
        out = told(sweep, 1)
    assert "1 of 1 jobs failed" in out


def test_a_cancelled_job_is_a_failed_row_that_names_slurm(started: Any, tmp_path: Path) -> None:
    with started(f"schedule.iterations={LONG}") as sweep:
        until(training(tmp_path, 0))
        subprocess.run(["scancel", *queued()], check=True)
        out = told(sweep, 1)
    assert "ended by Slurm, CANCELLED" in out


def test_a_requeued_job_goes_on_with_its_run(started: Any, tmp_path: Path) -> None:
    with started("schedule.iterations=60", "runtime.nproc=2") as sweep:
        until(training(tmp_path, 0))
        (job,) = queued()
        subprocess.run(["scontrol", "requeue", job], check=True)
        until(lambda: queued("PENDING"))
        # else in two minutes; a start within the second of the requeue is refused ("Job credential revoked")
        subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now+2"], check=True)
        told(sweep, 0)
    rows = [json.loads(line)["step"] for line in (tmp_path / "sweep" / "0" / "metrics.jsonl").read_text().splitlines()]
    assert rows == sorted(rows)
    assert result(tmp_path / "sweep" / "0")["steps"] == 60
    assert len(result(tmp_path / "sweep" / "0")["resumed"]) == 1


def test_a_preempted_job_is_requeued_and_goes_on_with_its_run(started: Any, tmp_path: Path) -> None:
    with started("schedule.iterations=60", "runtime.nproc=2") as sweep:
        until(training(tmp_path, 0))
        (job,) = queued()
        # SIGTERM at once, the rest after the partition's grace: a job that has ended by then is not requeued
        subprocess.run(["sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--wrap=true"], check=True)
        until(lambda: job in queued("PENDING"))
        subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now+2"], check=True)
        out = told(sweep, 0)
    assert "was put back in the queue" in out
    assert result(tmp_path / "sweep" / "0")["steps"] == 60
    assert len(result(tmp_path / "sweep" / "0")["resumed"]) == 1


def test_a_job_over_two_nodes_with_a_gpu_a_worker(started: Any, tmp_path: Path) -> None:
    words = ("schedule.iterations=3", "runtime.nproc=4", "runtime.device=auto", "hydra.launcher.nodes=2")
    with started(*words) as sweep:
        told(sweep, 0)
    assert result(tmp_path / "sweep" / "0")["numerics"]["nproc"] == 4
    script = next((tmp_path / "sweep" / "slurm").glob("*_submission.sh")).read_text()
    assert {"#SBATCH --nodes=2", "#SBATCH --gpus-per-node=2", "#SBATCH --requeue"} <= set(script.splitlines())


def test_a_job_warned_of_the_end_of_its_time_leaves_a_record(started: Any, tmp_path: Path) -> None:
    with started(f"schedule.iterations={LONG}", "runtime.nproc=2", "hydra.launcher.time=2") as sweep:
        until(training(tmp_path, 0))
        subprocess.run(["scancel", "--signal=USR2", *queued()], check=True)  # as Slurm does a minute before the end
        out = told(sweep, 1)
    assert result(tmp_path / "sweep" / "0")["status"] == "interrupted"
    assert "1 of 1 jobs failed" in out


def test_a_search_chooses_its_jobs_by_what_earlier_ones_came_to(started: Any, tmp_path: Path) -> None:
    words = (
        "sweep=tpe",
        "sweep.trials=4",
        "sweep.startup=2",
        "optimizer.matrix_lr=log(0.01,0.1)",
        "hydra.launcher.jobs=2",
    )
    with started("schedule.iterations=3", *words) as sweep:
        out = told(sweep, 0)
    assert [result(tmp_path / "sweep" / job)["status"] for job in "0123"] == ["completed"] * 4
    assert "4 jobs, 2 at a time" in out
    assert (tmp_path / "sweep" / "best.yaml").exists()


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c(started: Any, tmp_path: Path, times: int) -> None:
    iterations = 100 if times == 1 else LONG
    with started("seed=1,2", f"schedule.iterations={iterations}", "hydra.launcher.jobs=1") as sweep:
        until(training(tmp_path, 0))
        assert sweep.stdout is not None
        out = ""
        for _ in range(times):
            sweep.send_signal(signal.SIGINT)
            while "interrupted:" not in out and (line := sweep.stdout.readline()):
                out += line  # two signals at once are one: the first must be answered before the second
        out += told(sweep, 130)
        left = queued()
    assert "1 running jobs may finish" in out
    assert result(tmp_path / "sweep" / "0")["status"] == ("completed" if times == 1 else "interrupted")
    assert not (tmp_path / "sweep" / "1" / "metrics.jsonl").exists()
    assert left == []


MISTAKES = {
    "a partition that is not there": (["hydra.launcher.partition=gpu"], "no partition gpu\nchoices: main, urgent"),
    "more nodes than there are": (["hydra.launcher.nodes=8", "runtime.nproc=8"], "configuration is not available"),
    "GPUs that are not there": (["runtime.device=auto", "runtime.nproc=4"], "gpus-per-node=4"),
    "workers that cannot be spread": (["hydra.launcher.nodes=2"], "runtime.nproc=1: not to be shared"),
    "GPUs for jobs on the CPU": (["hydra.launcher.gpus_per_node=1"], "the jobs run on the CPU"),
    "a search of all jobs at once": (["sweep=tpe", "optimizer.matrix_lr=log(0.01,0.1)"], "hydra.launcher.jobs=8"),
    "no number": (["hydra.launcher.nodes=many"], "hydra.launcher.nodes=many"),
    "no time": (["hydra.launcher.time=0"], "hydra.launcher.time=0"),
    "more jobs than an array may have": (["seed=range(0,5)"], "Invalid job array specification"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_before_anything_is_written(mistake: str, started: Any, tmp_path: Path) -> None:
    words, part = MISTAKES[mistake]
    with started(*words) as sweep:
        out = told(sweep, 2)
    assert part in out
    assert len(out.splitlines()) <= 3
    assert list(tmp_path.iterdir()) == []
