"""`golf train -m` for real: packing, failures, what is left out, Ctrl-C, and mistakes told before anything starts."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from golf.common.files import hold

SWEEP = (
    "budget=smoke", "recipe=quickstart", "model.num_layers=2", "schedule.iterations=3", "val_tokens=2049",
    "logger=jsonl", "data=text", "data.val_docs=8", "quant.passthrough_numel=1024", "hydra.sweep.dir=sweep",
)  # fmt: skip
Sweep = Callable[..., "subprocess.CompletedProcess[str]"]


def words(workplace: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "golf.cli.main", "train", "-m", *SWEEP, f"data.paths=[{workplace}/corpus.jsonl]",
            *more]  # fmt: skip


@pytest.fixture
def sweep(workplace: Path, tmp_path: Path) -> Sweep:
    """Run a sweep in a process of its own, in an empty folder."""

    def call(*more: str, check: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            words(workplace, *more), cwd=tmp_path, capture_output=True, text=True, timeout=240,
            env={**os.environ, **environment},
        )  # fmt: skip
        assert done.returncode == check, done.stdout + done.stderr
        return done

    return call


def result(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "result.json").read_text())


def started(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stdout.splitlines() if " started" in line]


def test_a_sweep_runs_two_at_a_time_and_goes_on_after_a_failure(sweep: Sweep, tmp_path: Path) -> None:
    done = sweep("seed=1,2", "optimizer.tied_embed_lr=0.01,1e30", "schedule.iterations=12", "hydra.launcher.jobs=2",
                 check=1)  # fmt: skip
    assert "4 jobs, 2 at a time" in done.stdout
    assert [result(tmp_path / "sweep" / str(n))["status"] for n in range(4)] == ["completed", "failed"] * 2
    assert "2 of 4 jobs failed" in done.stderr
    assert "train_loss is" in done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / "sweep")
    assert (tmp_path / "sweep" / "multirun.yaml").exists()
    assert "step 12/12" in (tmp_path / "sweep" / "0" / "console.log").read_text()


@pytest.mark.slow
def test_runs_that_are_done_are_left_out(sweep: Sweep, tmp_path: Path) -> None:
    sweep("seed=1,2", "sweep.metric=steps")
    again = sweep("seed=1,2,3", "sweep.skip_done=true", "log_every=7")
    assert len(started(again)) == 1
    assert result(tmp_path / "sweep" / "2")["seeds"] == {"seed": 3}
    assert "skipped" in again.stdout


def test_a_job_that_found_its_folder_used_shows_nothing_of_the_run_there(sweep: Sweep, tmp_path: Path) -> None:
    sweep("seed=1")
    score = f"{result(tmp_path / 'sweep' / '0')['val_bpb']['post_quant']:.4f}"
    again = sweep("seed=2", check=1)
    assert "already holds a run" in again.stderr
    assert score not in again.stdout


def test_an_invalid_run_is_a_row_and_no_failure(sweep: Sweep) -> None:
    done = sweep("seed=1", "budget.artifact_bytes=1000")
    assert "over the limit of 1,000" in done.stdout


def test_a_search_starts_no_trial_that_will_be_too_large(sweep: Sweep) -> None:
    search = ("sweep=tpe", "sweep.trials=2", "model.num_layers=int(2,3)", "budget.artifact_bytes=1000")
    done = sweep(*search)
    assert not started(done)
    assert "its artifact is forecast to take" in done.stdout


@pytest.mark.slow
def test_two_workers_a_job(sweep: Sweep, tmp_path: Path) -> None:
    sweep("seed=1", "runtime.nproc=2", "runtime.threads=1")
    assert result(tmp_path / "sweep" / "0")["numerics"]["nproc"] == 2


MISTAKES = {
    "too many jobs": (["seed=range(0,10000)"], "sweep.max_jobs=10000"),
    "a GPU that is not there": (["seed=1,2", "hydra.launcher.gpus=[7]", "runtime.device=cpu"], "gpus=[7]"),
    "no job at a time": (["seed=1,2", "hydra.launcher.jobs=0"], "hydra.launcher.jobs=0"),
    "nothing to ablate": (["sweep=ablate"], "no technique"),
    "a key of a set": (["sweep.sets=['model.num_layer=3']"], "did you mean 'model.num_layers'"),
    "a key of the params": (["sweep.params=['model.num_layer=3,4']"], "did you mean 'model.num_layers'"),
    "an option of a set": (["sweep.sets=['tokenizer=sp1025']"], "tokenizer=sp1025: there is no such option"),
    "a grid without values": (["sweep.params=['seed=range(0,0)']"], "nothing to sweep over"),
    "a value that nobody gives": (["data.paths=???"], "data.paths must be given"),
    "a metric named by no key": (["sweep=grid", "sweep.metric=${nokey}"], "nokey"),
    "a range in a grid": (["optimizer.matrix_lr=interval(0.1,0.2)"], "sweep=tpe"),
    "an unknown metric": (["seed=1,2", "sweep.metric=val_bpb.post_qant"], "did you mean 'val_bpb.post_quant'"),
    "a search of nothing": (["sweep=tpe"], "nothing to sweep over"),
    "a key of a search": (["sweep=tpe", "sweep.params.optimizer.matrix_l=log(0.1,0.2)"], "matrix_lr"),
    "a range turned round": (["sweep=tpe", "matrix_lr=log(0.2,0.1)"], "optimizer.matrix_lr=log(0.2,0.1): the low end"),
    "values of which one cannot be": (["sweep=tpe", "model.num_heads=4,7"], "model.num_heads=7"),
    "a search without room": (["sweep=tpe", "seed=1,2", "hydra.launcher.gpus=[7]", "runtime.device=cpu"], "gpus=[7]"),
    "a search by another launcher": (["sweep=tpe", "seed=1,2", "hydra/launcher=basic"], "hydra/launcher=local"),
    "a search that cannot prune": (["sweep=tpe", "seed=1,2", "sweep.prune=true"], "val_every=0"),
    "fractions without a clock": (["sweep=halving", "seed=1,2"], "schedule.clock=steps"),
    "one job that cannot be": (["model.num_heads=4,7"], "model.num_heads=7"),
    "a limit that is no number": (["seed=1", "sweep.max_jobs=many"], "sweep.max_jobs=many"),
    "a folder named by no key": (["seed=1,2", "hydra/sweeper=basic", "hydra.sweep.subdir=${nokey}"], "nokey"),
    "a key that sweeps lack": (["seed=1,2", "hydra/sweeper=basic", "hydra.sweep.nokey=1"], "nokey"),
    "a key that a launcher lacks":
        (["seed=1,2", "hydra/sweeper=basic", "hydra/launcher=basic", "hydra.launcher.jobs=9"], "jobs"),
    **{
        f"two jobs in one folder, {name}": (["seed=1,2", f"hydra.sweep.subdir={subdir}", *more], part)
        for name, subdir, more, part in (
            ("a grid", "lr${optimizer.matrix_lr}", [], "jobs 0 (seed=1) and 1 (seed=2) would share the folder"),
            ("a grid prepared", "same", ["--prepare"], "jobs 0 (seed=1) and 1 (seed=2) would share the folder"),
            ("a grid by another launcher", "same", ["hydra/launcher=basic"], "jobs 0 (seed=1) and 1 (seed=2)"),
            ("another sweeper", "same", ["hydra/sweeper=basic"], "jobs 0 (seed=1) and 1 (seed=2)"),
            ("nothing of golf's", "same", ["hydra/sweeper=basic", "hydra/launcher=basic"], "jobs 0 (seed=1) and 1"),
            ("a name that leaves a key out", "${hydra.job.override_dirname}",
             ["hydra/sweeper=basic", "hydra.job.config.override_dirname.exclude_keys=[seed]"], "jobs 0 (seed=1) and 1"),
            ("an ablation", "same", ["sweep=ablate", "technique/smear_gate=v1"], "would share the folder"),
            ("a search", "same", ["sweep=tpe"], "(seed=1) and 1 (seed=2) would share the folder"),
            ("a halving", "same", ["sweep=halving", "schedule.clock=wall", "budget.train_seconds=1"], "would share"),
            ("the sweep's own", ".", [], "the sweep's own folder"),
        )
    },
}  # fmt: skip


@pytest.fixture
def told(golf_command, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What a mistaken sweep says; it must be brief, and nothing may be written."""

    def call(*more: str) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["golf"])
        outcome = golf_command("train", "-m", *SWEEP, f"data.paths=[{workplace}/corpus.jsonl]", *more)
        assert (outcome.code, outcome.out) == (2, "")
        assert len(outcome.err.splitlines()) <= 3
        assert list(tmp_path.iterdir()) == []
        return outcome.err

    return call


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_before_any_job_starts(mistake: str, told: Callable[..., str]) -> None:
    given, part = MISTAKES[mistake]
    assert part in told(*given)


@pytest.mark.parametrize("plan", ["grid", "tpe"])
def test_a_plan_of_one_s_own_may_sweep_what_must_be_given(
    plan: str, golf_command, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["golf"])
    corpus = str(workplace / "corpus.jsonl")
    content = {"defaults": [plan, "_self_"], "params": {"data.paths": [[corpus], [corpus, corpus]]}}
    (tmp_path / "mine" / "sweep").mkdir(parents=True)
    (tmp_path / "mine" / "sweep" / "my.yaml").write_text(yaml.safe_dump(content))
    folder = tmp_path / "sweep"
    outcome = golf_command("train", "-m", *SWEEP, f"hydra.sweep.dir={folder}", "sweep=my", "--prepare",
                           "--config-dir", str(tmp_path / "mine"))  # fmt: skip
    if plan == "tpe":  # every job is known to be right by then
        assert (outcome.code, "--prepare: this sweep chooses" in outcome.err) == (2, True)
        return
    assert outcome.code == 0, outcome.err
    configs = [yaml.safe_load((folder / str(number) / "config.yaml").read_text()) for number in range(2)]
    assert [config["data"]["paths"] for config in configs] == [[corpus], [corpus, corpus]]


def test_where_there_is_no_slurm_its_launcher_says_so(
    told: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    assert "no sbatch here" in told("seed=1,2", "hydra/launcher=slurm")


def test_a_sweep_inside_torchrun_is_refused_with_the_right_command(
    told: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    message = told("seed=1,2")
    assert "golf train -m" in message
    assert "runtime.nproc=4" in message


def test_a_second_sweep_in_one_folder_is_refused(sweep: Sweep, tmp_path: Path) -> None:
    held = hold(tmp_path / "sweep" / ".sweep.lock")
    assert held is not None
    done = sweep("seed=1", check=2)
    assert "another sweep is running there" in done.stderr
    assert [path.name for path in (tmp_path / "sweep").iterdir()] == [".sweep.lock"]
    held.release()
    sweep("seed=1")


@pytest.mark.slow
def test_an_ablation_comes_from_the_composed_config(sweep: Sweep, tmp_path: Path) -> None:
    done = sweep("sweep=ablate", "technique/smear_gate=v1", "averaging=ema", "schedule.iterations=2")
    overrides = [yaml.safe_load((tmp_path / "sweep" / str(n) / "overrides.yaml").read_text()) for n in range(3)]
    changed = [[word for word in one if word.endswith("=none")] for one in overrides]
    assert changed == [[], ["averaging=none"], ["technique/smear_gate=none"]]
    assert re.search(r"job 0 completed in .* ablation=baseline$", done.stdout, re.MULTILINE)
    told = done.stdout.partition("\nablation")[2]
    assert re.search(r"baseline \(all on\) .*– ", told)
    for arm in ("averaging off", "smear_gate off"):
        assert re.search(rf"{arm} .* [+-]\d\.\d{{4}} ", told)


HELD = """
import os, time
from pathlib import Path
from golf.nn.techniques.base import Technique

class Held(Technique):
    site = "attn_out"
    seen = 0

    def forward(self, a, ctx):
        Held.seen += a.requires_grad
        if Held.seen == 8:  # some steps on
            place = Path(os.environ["HELD_IN"])
            (place / f"{os.getpid()}.held").touch()
            while not (place / "go").exists():
                time.sleep(0.05)
        return a
"""


def held(directory: Path) -> list[str]:
    """The words that give a sweep the technique above, which holds every job until told to let go."""
    (directory / "technique" / "held").mkdir(parents=True)
    (directory / "technique" / "held" / "v1.yaml").write_text("_target_: held.Held\n_partial_: true\n")
    (directory / "held.py").write_text(HELD)
    return ["--config-dir", str(directory), "technique/held=v1"]


def interrupted_sweep(
    workplace: Path, directory: Path, times: int, iterations: int, *swept: str
) -> tuple[int, str, int]:
    """Start a sweep, of three seeds where no other is given, and press Ctrl-C once the first two train.

    They are held there until the first Ctrl-C has been answered. Its exit code, its output, and how many orphans it
    left.
    """
    swept = (*(swept or ("seed=1,2,3",)), *held(directory / "mine"))
    command = words(workplace, *swept, "hydra.launcher.jobs=2", f"schedule.iterations={iterations}")
    environment = {**os.environ, "HELD_IN": str(directory)}
    with subprocess.Popen(
        command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as sweep:
        assert sweep.stdout is not None
        deadline = time.monotonic() + 240
        while len(list(directory.glob("*.held"))) < 2:
            assert time.monotonic() < deadline
            assert sweep.poll() is None, sweep.stdout.read()
            time.sleep(0.05)
        jobs = psutil.Process(sweep.pid).children(recursive=True)
        rest = ""
        for _ in range(times):
            os.kill(sweep.pid, signal.SIGINT)
            while "interrupted:" not in rest and (line := sweep.stdout.readline()):
                rest += line  # two signals at once are one: the first must be answered before the second
            (directory / "go").touch()
        rest += sweep.stdout.read()
        code = sweep.wait(timeout=240)
    return code, rest, sum(job.is_running() for job in jobs)


@pytest.mark.slow
def test_ctrl_c_once_lets_the_running_jobs_finish(workplace: Path, tmp_path: Path) -> None:
    code, told, orphans = interrupted_sweep(workplace, tmp_path, times=1, iterations=12)
    assert (code, orphans) == (130, 0), told
    assert [result(tmp_path / "sweep" / job)["status"] for job in ("0", "1")] == ["completed"] * 2
    assert not (tmp_path / "sweep" / "2").exists()


@pytest.mark.slow
def test_ctrl_c_twice_stops_all_and_keeps_their_records(workplace: Path, tmp_path: Path) -> None:
    code, told, orphans = interrupted_sweep(workplace, tmp_path, times=2, iterations=100_000)
    assert (code, orphans) == (130, 0), told
    assert [result(tmp_path / "sweep" / job)["status"] for job in ("0", "1")] == ["interrupted"] * 2


SEARCH = ("sweep=tpe", "sweep.params.optimizer.matrix_lr=log(1e-5,0.3)", "optimizer.momentum=interval(0.5,0.95)")


@pytest.mark.slow
def test_a_search_stops_bad_runs_and_goes_on_where_it_was_left(sweep: Sweep, tmp_path: Path) -> None:
    words = (*SEARCH, "sweep.startup=3", "schedule.iterations=20", "val_every=4", "hydra.launcher.jobs=1")
    first = sweep(*words, "sweep.trials=4").stdout
    folders = [tmp_path / "sweep" / str(number) for number in range(4)]
    pruned = [folder for folder in folders if result(folder)["status"] == "interrupted"]
    assert 0 < len(pruned) < 4
    assert first.count(" pruned in ") == len(pruned)
    for folder in pruned:
        assert "not among the best 1/3" in result(folder)["error"]
        assert 0 < result(folder)["steps"] < 20
    again = sweep(*words, "sweep.trials=5").stdout
    assert "the study has 4 trials; 1 more" in again
    best = yaml.safe_load((tmp_path / "sweep" / "best.yaml").read_text())
    assert sum(best["trials"].values()) == 5
    assert best["best"][0]["command"] in again.splitlines()
    assert again.splitlines()[-1] == str(tmp_path / "sweep")


@pytest.mark.slow
def test_ctrl_c_once_ends_a_search_and_leaves_no_trial_running(workplace: Path, tmp_path: Path) -> None:
    import optuna

    code, told, orphans = interrupted_sweep(workplace, tmp_path, 1, 12, *SEARCH, "sweep.trials=9")
    assert (code, orphans) == (130, 0), told
    study = optuna.load_study(study_name="golf", storage=f"sqlite:///{tmp_path}/sweep/study.db")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 2


@pytest.mark.slow
def test_a_halving_runs_few_to_the_end(sweep: Sweep, tmp_path: Path) -> None:
    words = ("sweep=halving", "seed=1,2,3,4", "sweep.fractions=[1/4,1]", "schedule.clock=wall",
             "budget.train_seconds=1", "budget.reference_nproc=1", "schedule.iterations=1000")  # fmt: skip
    sweep(*words)
    fractions = [result(tmp_path / "sweep" / str(number))["budget"]["fraction"] for number in range(5)]
    assert fractions == [0.25] * 4 + [1.0]
    assert started(sweep(*words)) == []
