"""Several workers of one run: torchrun starts them too, one that dies ends them all, their number changes nothing."""

from __future__ import annotations

import json
import os
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
from golf.common.ranks import Ranks
from golf.launch.work.early_end import last_words, record_death
from golf.launch.work.workers import _children
from golf.runs.folder import deterministic_part, read_metrics

TINY = ("budget=smoke", "recipe=quickstart", "model.num_layers=2", "schedule.iterations=8", "val_tokens=4097",
        "logger=jsonl", "runtime=cpu", "runtime.threads=1", "log_every=1")  # fmt: skip
HANGS = 300
"""Seconds after which a process hangs: far above what any needs on a busy machine, far below a collective's half hour."""
Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    cache = tmp_path_factory.mktemp("cache")
    source = str(Path(golf.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": source, "GOLF_CACHE": str(cache), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def train(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Command:
    """`golf train` of a tiny model in a process of its own."""
    place = tmp_path_factory.mktemp("place")

    def call(*words: str, code: int | None = 0, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "golf.cli.main", "train", *TINY, *words]
        done = subprocess.run(
            command, cwd=place, env={**environment, **more}, capture_output=True, text=True, timeout=HANGS
        )
        assert code is None or done.returncode == code, done.stdout + done.stderr
        return done

    return call


def losses(directory: Path) -> list[float]:
    return [row["train_loss"] for row in read_metrics(directory / "metrics.jsonl") if "train_loss" in row]


def result(directory: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((directory / "result.json").read_text(encoding="utf-8"))
    return loaded


@contextmanager
def two_training(
    environment: dict[str, str], run: Path, *words: str, **more: str
) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """`golf train` with two workers that have trained two of endless steps, and all the processes below it."""
    endless = ("runtime.nproc=2", "schedule.iterations=100000", "log_every=100000", f"hydra.run.dir={run}")
    with subprocess.Popen(
        [sys.executable, "-m", "golf.cli.main", "train", *TINY, *endless, *words], cwd=run.parent,
        env={**environment, **more}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as golf:  # fmt: skip
        assert golf.stdout is not None
        try:
            seen = ""
            for line in golf.stdout:
                seen += line
                if line.startswith("step 2/"):
                    break
            assert golf.poll() is None, seen
            yield golf, psutil.Process(golf.pid).children(recursive=True)
        finally:
            golf.kill()  # does nothing where it has ended, as it should have


def after_a_beat(golf: subprocess.Popen[str], file: Path) -> None:
    """Read what is printed until a worker has beaten once more."""
    assert golf.stdout is not None
    at = file.stat().st_mtime
    while file.stat().st_mtime == at:
        assert golf.stdout.readline()


def left(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run, or ended and were never waited for: psutil counts a zombie among the running."""
    return [process for process in processes if process.is_running()]


BOMB = """
import os, signal
from pathlib import Path
from golf.nn.techniques.base import Technique


class Bomb(Technique):
    site = "attn_out"

    def forward(self, a, ctx):
        if os.environ.get("RANK") == os.environ.get("BOMB_RANK", "nobody") and Path(os.environ["BOMB_FUSE"]).exists():
            if os.environ["BOMB"] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("tick tock")
        return a
"""


def lay_bomb(directory: Path) -> tuple[str, ...]:
    """The words that give a run the technique above, which is written below `directory`."""
    (directory / "technique" / "bomb").mkdir(parents=True)
    (directory / "technique" / "bomb" / "v1.yaml").write_text("_target_: bomb.Bomb\n_partial_: true\n")
    (directory / "bomb.py").write_text(BOMB)
    return "--config-dir", str(directory), "technique/bomb=v1"


@pytest.mark.parametrize(("way", "rank", "code", "told"), [
    ("raise", 1, 1, "[rank 1] "),
    ("kill", 1, 137, "worker 1 was killed by SIGKILL"),
    ("kill", 0, 137, "worker 0 was killed by SIGKILL"),
])  # fmt: skip
def test_a_worker_that_dies_ends_the_run(
    way: str, rank: int, code: int, told: str, environment: dict[str, str], tmp_path: Path
) -> None:
    run, fuse = tmp_path / "run", tmp_path / "fuse"
    words, bomb = lay_bomb(tmp_path / "mine"), {"BOMB": way, "BOMB_RANK": str(rank), "BOMB_FUSE": str(fuse)}
    with two_training(environment, run, *words, **bomb) as (golf, workers):
        fuse.touch()
        rest = golf.communicate(timeout=HANGS)[0]
        assert golf.returncode == code, rest
    assert told in rest
    assert "Traceback" not in rest
    if way == "raise":
        assert f"{tmp_path}/mine/bomb.py, line 14: RuntimeError: tick tock" in rest
        assert "Traceback" in (run / f"rank{rank}.log").read_text()
    assert result(run)["status"] == "failed"
    assert ("tick tock" if way == "raise" else "killed") in result(run)["error"]
    assert result(run)["steps"] >= 2
    assert list(run.glob(".*")) == []
    assert len(workers) >= 2
    assert left(workers) == []


def test_ctrl_c_ends_two_workers_and_leaves_a_valid_record(environment: dict[str, str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    with two_training(environment, run) as (golf, workers):
        golf.send_signal(signal.SIGINT)
        rest = golf.communicate(timeout=HANGS)[0]
        assert golf.returncode == 130, rest
    assert (result(run)["status"], result(run)["numerics"]["nproc"]) == ("interrupted", 2)
    assert result(run)["steps"] >= 2
    assert (run / "weights.safetensors").exists()
    assert "Traceback" not in rest
    assert len(workers) >= 2
    assert left(workers) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
def test_workers_end_when_what_started_them_is_killed(environment: dict[str, str], tmp_path: Path) -> None:
    with two_training(environment, tmp_path / "run") as (golf, workers):
        golf.kill()
        _, there = psutil.wait_procs(workers, timeout=HANGS)
        running = [worker for worker in there if worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE]
        assert running == []  # who inherits them may not wait for them: then they stay zombies
    assert result(tmp_path / "run")["status"] == "interrupted"
    assert "what started it is gone" in result(tmp_path / "run")["error"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="without /proc nothing is known of a process")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_worker_is_named_and_leaves_its_stacks(
    rank: int, environment: dict[str, str], tmp_path: Path
) -> None:
    """The exit code is that of the worker that hung, whichever of the two torch's agent finds gone first."""
    run = tmp_path / "run"
    with two_training(environment, run, "runtime.hang_seconds=3", "log_every=1") as (golf, _):
        for one, more in ((1 - rank, 2), (rank, 1), (1 - rank, 2)):  # after that the other has heard it twice
            for _ in range(more):
                after_a_beat(golf, run / f".beat.rank{one}")
        os.kill(json.loads((run / f".beat.rank{rank}").read_text())["pid"], signal.SIGSTOP)
        rest = golf.communicate(timeout=HANGS)[0]
        assert golf.returncode == 134, rest
    assert f"worker {rank} hangs: " in result(run)["error"]
    assert all("most recent call first" in (run / name).read_text() for name in ("train.log", "rank1.log"))
    assert list(run.glob(".*")) == []


def test_a_worker_that_has_ended_is_sent_no_signal() -> None:
    with subprocess.Popen([sys.executable, "-c", "", "golf.launch.work.worker"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie now
        assert _children() == []


@pytest.mark.parametrize("rows", ["", '{"step": 7, "tokens": 70, "train_time_s": 1.5}\n'], ids=["none yet", "one"])
def test_the_record_of_a_killed_worker_knows_how_far_it_came(rows: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    (tmp_path / "metrics.jsonl").write_text(rows)
    record_death(tmp_path, "worker 0 was killed by SIGKILL")
    told = result(tmp_path)
    assert (told["status"], told["error"]) == ("failed", "worker 0 was killed by SIGKILL")
    assert (told["steps"], told["train_time_s"]) == ((7, 1.5) if rows else (0, 0.0))


def test_last_words_are_read_in_the_order_of_death(tmp_path: Path) -> None:
    assert "without a word" in last_words(tmp_path, wait_s=0)
    for rank, age in ((1, 100), (3, 200)):
        (tmp_path / f".died.rank{rank}").write_text(f"worker {rank} failed")
        os.utime(tmp_path / f".died.rank{rank}", (time.time() - age,) * 2)
    assert last_words(tmp_path) == "worker 3 failed"
    assert Ranks().world == 1


def test_a_prepared_run_has_a_config_and_was_not_run(train: Command, tmp_path: Path) -> None:
    done = train("--prepare", "runtime.nproc=2", f"hydra.run.dir={tmp_path}/run")
    line, folder = done.stdout.splitlines()[-2:]
    assert line.endswith(f"torchrun --standalone --nproc_per_node=2 -m golf.launch.work.worker run={folder}")
    assert {path.name for path in Path(folder).iterdir()} == {"config.yaml", "overrides.yaml"}


def test_a_prepared_sweep_has_a_folder_a_job(train: Command, tmp_path: Path) -> None:
    train("--prepare", "-m", "seed=1,2", f"hydra.sweep.dir={tmp_path}/sweep")
    assert all((tmp_path / "sweep" / job / "config.yaml").exists() for job in "01")
    assert not list(tmp_path.glob("sweep/*/result.json"))


def torchrun(environment: dict[str, str], run: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", *words, "-m", "golf.launch.work.worker", f"run={run}"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_torchrun_on_one_node_and_on_two_does_what_golf_train_does(
    train: Command, environment: dict[str, str], tmp_path: Path
) -> None:
    for name, words in (("golf", ()), ("node", ("--prepare",)), ("nodes", ("--prepare",))):
        train(*words, "runtime.nproc=2", f"hydra.run.dir={tmp_path / name}")
    from torch.distributed.elastic.utils.distributed import get_free_port

    to = ("--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1", f"--master_port={get_free_port()}")
    started = [
        [torchrun(environment, tmp_path / "node", "--standalone", "--nproc_per_node=2")],
        [torchrun(environment, tmp_path / "nodes", *to, f"--node_rank={rank}") for rank in (0, 1)],
    ]
    for processes in started:
        outputs = [process.communicate(timeout=HANGS)[0] for process in processes]
        assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(outputs)
    assert losses(tmp_path / "node") == losses(tmp_path / "golf")
    assert losses(tmp_path / "nodes") == losses(tmp_path / "golf")
    assert (tmp_path / "nodes" / "artifact.golf").read_bytes() == (tmp_path / "golf" / "artifact.golf").read_bytes()


@pytest.mark.slow
def test_a_worker_killed_on_one_node_ends_the_other(
    train: Command, environment: dict[str, str], tmp_path: Path
) -> None:
    from torch.distributed.elastic.utils.distributed import get_free_port

    run, fuse = tmp_path / "run", tmp_path / "fuse"
    fuse.touch()
    train("--prepare", *lay_bomb(tmp_path / "mine"), "runtime.nproc=2", f"hydra.run.dir={run}")
    lit = {**environment, "BOMB": "kill", "BOMB_RANK": "1", "BOMB_FUSE": str(fuse)}
    to = ("--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1", f"--master_port={get_free_port()}")
    nodes = [torchrun(lit, run, *to, f"--node_rank={rank}") for rank in (0, 1)]
    outputs = [node.communicate(timeout=HANGS)[0] for node in nodes]
    assert all(node.returncode for node in nodes), "\n".join(outputs)
    assert result(run)["status"] == "failed"


@pytest.fixture(scope="module")
def worlds(train: Command, tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Path]]:
    """Two runs each of 1, 2 and 4 workers, by their number."""
    sweep = tmp_path_factory.mktemp("worlds")
    calm = ("optimizer.matrix_lr=0.005", "optimizer.tied_embed_lr=0.0025", "optimizer.scalar_lr=0.0025")
    train("-m", "runtime.nproc=1,2,4", "seed=5,5", *calm, "hydra.launcher.jobs=1", f"hydra.sweep.dir={sweep}")
    return {nproc: [sweep / str(2 * index + again) for again in (0, 1)] for index, nproc in enumerate((1, 2, 4))}


@pytest.mark.slow
@pytest.mark.parametrize("nproc", [1, 2, 4])
def test_a_world_size_repeats_bit_for_bit(worlds: dict[int, list[Path]], nproc: int) -> None:
    first, second = worlds[nproc]
    assert result(first)["numerics"]["nproc"] == nproc
    rows = [deterministic_part(read_metrics(run / "metrics.jsonl")) for run in (first, second)]
    assert rows[0] == rows[1]
    assert (first / "artifact.golf").read_bytes() == (second / "artifact.golf").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("nproc", [2, 4])
def test_the_number_of_workers_changes_nothing(worlds: dict[int, list[Path]], nproc: int) -> None:
    # The spans of a step are the same; their gradients are summed in another order. A step size at which bpb falls
    # smoothly keeps the difference from growing in so short a run.
    one, other = worlds[1][0], worlds[nproc][0]
    assert losses(other) == pytest.approx(losses(one), rel=1e-4)
    ours, theirs = result(one), result(other)
    assert theirs["val_bpb"]["post_quant"] == pytest.approx(ours["val_bpb"]["post_quant"], abs=1e-3)
    assert theirs["bytes"]["model"] == pytest.approx(ours["bytes"]["model"], rel=1e-3)


@pytest.fixture(scope="module")
def whole(train: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one worker that nothing happened to."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train(*CALM, "runtime.nproc=1", f"hydra.run.dir={run}")
    return run


CALM = ("schedule.iterations=24", "checkpoint.every=3", "optimizer.matrix_lr=0.005", "optimizer.tied_embed_lr=0.0025",
        "optimizer.scalar_lr=0.0025")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_goes_on_with_another_number_of_workers(
    before: int, after: int, whole: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    golf = [sys.executable, "-m", "golf.cli.main", "train"]
    words = [*TINY, *CALM, f"runtime.nproc={before}", f"hydra.run.dir={run}"]
    with subprocess.Popen([*golf, *words], env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step 8/"):
                process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=HANGS) == 75
    subprocess.run([*golf, f"resume={run}", f"runtime.nproc={after}"], env=environment, cwd=tmp_path, check=True)
    assert [one["world"] for one in result(run)["resumed"]] == [after]
    assert losses(run) == pytest.approx(losses(whole), rel=1e-4)  # as close as two numbers of workers are
    ours, theirs = result(whole)["val_bpb"]["post_quant"], result(run)["val_bpb"]["post_quant"]
    assert theirs == pytest.approx(ours, abs=1e-3)
