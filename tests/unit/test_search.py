"""The search between Optuna and the pool: real studies on functions in place of training."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from golf.common.errors import ConfigError
from golf.launch.compose.ranges import Range
from golf.launch.sweep.job import SweepJob
from golf.launch.sweep.kinds import Space
from golf.launch.sweep.search import Search, Trials, best_trials, bound, progress, violations

X, LAYERS = Range("x", low=-4.0, high=4.0), Range("layers", low=1, high=8, integer=True)
Values = dict[str, float]
CONFIG: dict[str, Any] = {
    "val_every": 1, "runtime": {"nproc": 1}, "schedule": {"iterations": 100, "clock": "steps"}, "budget": {},
}  # fmt: skip


def space(folder: Path, *ranges: Range, fixed: Sequence[str] = ()) -> Space:
    """A space whose jobs are composed at once."""

    def job(words: Sequence[str], number: int) -> SweepJob:
        return SweepJob(number, list(words), {**CONFIG, "words": list(words)}, folder / str(number))

    made = Space(list(fixed), list(ranges or (X, LAYERS)), job, folder)
    made.probe()
    return made


def values(job: SweepJob) -> Values:
    return {key: float(value) for key, value in (word.split("=") for word in job.varied)}


def bowl(found: Values) -> dict[str, Any]:
    """A result whose bpb is smallest at x = 1, and whose artifact grows with the layers."""
    bpb, size = (found["x"] - 1) ** 2, int(found.get("layers", 1)) * 100
    over = size > 600
    return {
        "status": "completed", "valid": not over, "violations": ["too large"] * over,
        "val_bpb": {"post_quant": bpb}, "bytes": {"artifact": size, "limit": 600},
    }  # fmt: skip


def leave(job: SweepJob, record: dict[str, Any]) -> None:
    """What a job leaves in its folder."""
    job.directory.mkdir(parents=True, exist_ok=True)
    (job.directory / "config.yaml").write_text(yaml.safe_dump(job.config))
    (job.directory / "result.json").write_text(json.dumps(record))
    job.state = "completed" if record["valid"] else "invalid" if record["status"] == "completed" else "failed"


def drive(trials: Trials, function: Callable[[Values], dict[str, Any]] = bowl, at_a_time: int = 2) -> list[SweepJob]:
    """Do what the pool does: keep jobs going, and tell of those that end, the last begun first."""
    jobs: list[SweepJob] = []
    while True:
        begun = [job for _ in range(at_a_time) for job in trials.more(jobs)]
        if not begun:
            return jobs
        jobs += begun
        for job in reversed(begun):
            if job.state == "waiting":
                leave(job, function(values(job)))
            trials.ended(job)


def search(folder: Path, *ranges: Range, fixed: Sequence[str] = (), **settings: Any) -> Trials:
    settings = {"trials": 8, "startup": 4, **settings}
    return Search(**settings).guide(space(folder, *ranges, fixed=fixed))


def test_a_search_nears_the_minimum(tmp_path: Path) -> None:
    trials = search(tmp_path, X, trials=40, startup=8)
    drive(trials)
    assert best_trials(trials.study)[0].value < 0.01


def test_a_study_goes_on_with_new_numbers_and_new_values(tmp_path: Path) -> None:
    first = search(tmp_path, trials=5)
    drive(first)
    first.finish([])
    second = search(tmp_path, trials=9)
    assert second.planned == 4
    drive(second)
    numbers = [trial.number for trial in second.study.trials]
    drawn = [trial.params["x"] for trial in second.study.trials]
    assert (numbers, len(set(drawn))) == (list(range(9)), 9)


def test_a_study_with_all_its_trials_asks_for_none(tmp_path: Path) -> None:
    first = search(tmp_path)
    drive(first)
    first.lock.release()
    assert drive(search(tmp_path)) == []


def test_a_run_over_its_cap_tells_its_bpb_and_by_how_much(tmp_path: Path) -> None:
    trials = search(tmp_path, trials=12)
    drive(trials)
    over = [trial for trial in trials.study.trials if trial.params["layers"] > 6]
    assert over
    for trial in over:
        assert trial.state.name == "COMPLETE"
        assert trial.value == pytest.approx((trial.params["x"] - 1) ** 2, rel=1e-3, abs=1e-4)
        assert trial.constraints["artifact"] == pytest.approx(trial.params["layers"] / 6 - 1)
    assert not {trial.number for trial in over} & {trial.number for trial in best_trials(trials.study)}


@pytest.mark.parametrize("metrics", [[], ["val_bpb.post_quant", "bytes.artifact"]])
def test_a_trial_that_is_not_started_tells_by_how_much_it_would_be_over(metrics: list[str], tmp_path: Path) -> None:
    trials = search(tmp_path, trials=2, metrics=metrics)
    (job,) = trials.more([])
    job.state, job.over = "pruned", 0.25
    trials.ended(job)
    drive(trials)
    told = trials.study.trials[0]
    assert (told.state.name, told.constraints) == ("PRUNED", {"artifact": 0.25})
    assert 0 not in {trial.number for trial in best_trials(trials.study)}


def scored(record: dict[str, Any], seq_len: int) -> dict[str, Any]:
    """A record with the evaluation that its bpb is of."""
    of = {"stage": "quantized", "method": "contiguous", "seq_len": seq_len, "targets": 9, "bytes": 20, "seconds": 1.0}
    return {**record, "evals": [of]}


def test_a_trial_scored_by_other_rules_fails_in_a_study_that_goes_on_too(tmp_path: Path) -> None:
    for trials, seq_len, state in ((2, 128, "completed"), (3, 64, "failed")):
        begun = search(tmp_path, X, trials=trials, startup=1)
        jobs = drive(begun, lambda found, seq_len=seq_len: scored(bowl(found), seq_len), at_a_time=1)  # type: ignore[misc]
        assert {job.state for job in jobs} == {state}
        begun.lock.release()
    assert "val_bpb.post_quant is of other text or by other rules (contiguous, 64 tokens" in jobs[0].error


def test_a_crash_is_a_failed_trial_and_the_search_goes_on(tmp_path: Path) -> None:
    def crash(found: Values) -> dict[str, Any]:
        return bowl(found) if found["x"] < 0 else {"status": "failed", "valid": False, "error": "died"}

    trials = search(tmp_path, trials=10)
    assert len(drive(trials, crash)) == 10
    states = {trial.params["x"] < 0: trial.state.name for trial in trials.study.trials}
    assert states == {True: "COMPLETE", False: "FAIL"}


def test_a_config_that_cannot_be_is_a_failed_trial(tmp_path: Path) -> None:
    place = space(tmp_path)
    compose = place.job

    def picky(words: Sequence[str], number: int) -> SweepJob:
        if number % 2:
            raise ConfigError("does not divide")
        return compose(words, number)

    place.job = picky
    trials = Search(trials=4).guide(place)
    assert [(job.state, job.error) for job in drive(trials)] == [("completed", ""), ("failed", "does not divide")] * 2


def test_a_result_without_the_metric_is_a_failed_trial(tmp_path: Path) -> None:
    (job,) = drive(search(tmp_path, trials=1, metric="val_bpb.sliding", prune=False))
    assert (job.state, job.error) == ("failed", "its result has no val_bpb.sliding")


def test_an_interrupted_trial_is_asked_for_anew(tmp_path: Path) -> None:
    trials = search(tmp_path, trials=3)
    (job,) = trials.more([])
    job.state = "interrupted"
    trials.ended(job)
    trials.lock.release()
    assert search(tmp_path, trials=3).planned == 3


def test_a_killed_sweep_leaves_no_trial_running(tmp_path: Path) -> None:
    trials = search(tmp_path, trials=3)
    (finished,), (lost,) = trials.more([]), trials.more([])
    leave(finished, bowl(values(finished)))
    trials.lock.release()  # as the end of the process does
    again = search(tmp_path, trials=3)
    assert [trial.state.name for trial in again.study.trials] == ["COMPLETE", "FAIL"]
    assert again.planned == 2
    assert lost.number not in again.asked


def test_a_job_that_outlived_its_sweep_is_not_run_twice(tmp_path: Path) -> None:
    trials = search(tmp_path)
    (job,) = trials.more([])
    job.directory.mkdir(parents=True)
    (job.directory / ".running").write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
    trials.lock.release()
    with pytest.raises(ConfigError, match="trial 0 of an earlier sweep is still running"):
        search(tmp_path)


def test_two_sweeps_of_one_study_at_once_are_refused(tmp_path: Path) -> None:
    first = search(tmp_path)
    with pytest.raises(ConfigError, match="another sweep is running this study"):
        search(tmp_path)
    first.lock.release()


OTHERS = {
    "x was interval": {"ranges": (Range("x", low=0.0, high=4.0), LAYERS)},
    "layers was int": {"ranges": (X,)},
    "it minimises val_bpb.post_quant": {"metric": "bytes.artifact", "prune": False},
    "the settings that all its trials share": {"fixed": ("seed=2",)},
}


@pytest.mark.parametrize("told", OTHERS)
def test_the_study_of_another_search_is_refused(told: str, tmp_path: Path) -> None:
    search(tmp_path).lock.release()
    changed = dict(OTHERS[told])
    with pytest.raises(ConfigError, match=rf"study\.db: the study there is another search \({told}"):
        search(tmp_path, *changed.pop("ranges", ()), **changed)


def test_a_storage_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a database, however long this line may be\n" * 99)
    with pytest.raises(ConfigError, match=r"sweep\.storage=.*notes\.txt"):
        search(tmp_path, storage=str(tmp_path / "notes.txt"))


def test_a_storage_elsewhere_holds_several_studies(tmp_path: Path) -> None:
    for name in ("one", "two"):
        trials = search(tmp_path / name, storage=str(tmp_path / "all.db"), study=name, trials=2)
        drive(trials)
        trials.finish([])
        assert len(trials.study.trials) == 2


def test_the_same_values_take_the_same_result(tmp_path: Path) -> None:
    few = Range("x", choices=("0", "1"))
    trials = search(tmp_path, few, trials=6, skip_done=True)
    jobs = drive(trials, at_a_time=1)
    assert sorted(job.state for job in jobs) == ["completed"] * 2 + ["skipped"] * 4
    assert {trial.value for trial in trials.study.trials} == {0.0, 1.0}
    assert [trial.value for trial in best_trials(trials.study)] == [0.0, 1.0]


def test_several_metrics_give_their_front(tmp_path: Path) -> None:
    trials = search(tmp_path, trials=15, metrics=["val_bpb.post_quant", "bytes.artifact"])
    drive(trials)
    front = [trial.values for trial in best_trials(trials.study)]
    assert all(a[0] < b[0] and a[1] > b[1] for a, b in pairwise(front))
    assert all(size <= 600 for _, size in front)


def test_the_best_are_left_in_a_file_with_their_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trials = search(tmp_path, X, fixed=["run_name=a b"])
    drive(trials)
    trials.finish([])
    kept = yaml.safe_load((tmp_path / "best.yaml").read_text())
    best = kept["best"][0]
    assert best["figures"]["val_bpb.post_quant"] == min(trial.value for trial in trials.study.trials)
    assert best["command"] == f"golf train 'run_name=a b' x={best['values']['x']}"
    assert best["command"] in capsys.readouterr().out.splitlines()


def test_a_bound_of_the_users_counts_as_a_limit_does(tmp_path: Path) -> None:
    trials = search(tmp_path, trials=10, constraints=["bytes.artifact<=300"])
    drive(trials)
    assert all(trial.params["layers"] <= 3 for trial in best_trials(trials.study))


def watch(trials: Trials, *curves: Sequence[float]) -> list[str]:
    """Let one job after the other write validations, step by step of a hundred; why each was stopped."""
    reasons = []
    for curve in curves:
        (job,) = trials.more([])
        job.directory.mkdir(parents=True)
        reason = ""
        for step, bpb in enumerate(curve):
            with (job.directory / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": step * 10, "train_time_s": step * 1.0, "val_bpb": bpb}) + "\n")
            if reason := trials.prune(job):
                break
        leave(job, bowl({"x": curve[-1]}))
        job.state = "pruned" if reason else "completed"
        trials.ended(job)
        reasons.append(reason)
    return reasons


def test_a_run_that_does_badly_is_stopped(tmp_path: Path) -> None:
    trials = search(tmp_path)
    good, bad, better = watch(trials, [9, 4, 3, 2, 2, 2], [9, 6, 5, 5, 5, 5], [9, 3, 2, 2, 1, 1])
    assert (good, better) == ("", "")
    assert bad == "val_bpb 5.0000 after 20% of the run: not among the best 1/3 there"
    assert [trial.state.name for trial in trials.study.trials] == ["COMPLETE", "PRUNED", "COMPLETE"]


def test_no_run_is_stopped_before_its_part_or_at_its_end(tmp_path: Path) -> None:
    trials = search(tmp_path, prune_from=0.9)
    curve = [5.0] * 9
    assert watch(trials, [1.0] * 11, [*curve, 0.5, 9.0]) == ["", ""]


def test_pruning_can_be_turned_off(tmp_path: Path) -> None:
    assert watch(search(tmp_path, prune=False), [1.0] * 11, [9.0] * 11) == ["", ""]


@pytest.mark.parametrize(
    ("settings", "val_every", "told"),
    [
        ({"metrics": ["val_bpb.post_quant", "steps"]}, 1, "several metrics"),
        ({"metric": "bytes.artifact"}, 1, "not known while a run lasts"),
        ({}, 0, "val_every=0"),
    ],
)
def test_pruning_that_cannot_be_is_said_or_refused(
    settings: dict[str, Any], val_every: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {**CONFIG, "val_every": val_every}
    assert not Search(**settings).prunes(config)
    assert told in capsys.readouterr().out
    with pytest.raises(ConfigError, match=told):
        Search(prune=True, **settings).prunes(config)


def test_a_run_has_come_as_far_as_its_steps_or_its_clock() -> None:
    by_steps = {**CONFIG, "budget": {}}
    by_clock = {
        "schedule": {"iterations": 10_000, "clock": "wall"}, "runtime": {"nproc": 8},
        "budget": {"train_seconds": 600.0, "fraction": 0.5, "reference_nproc": 8},
    }  # fmt: skip
    row = {"step": 25, "train_time_s": 30.0}
    assert (progress(by_steps, row), progress(by_clock, row), progress(by_clock, {"step": 0})) == (250, 100, 0)


LIMITS = {"bytes": {"artifact": 120, "limit": 100}, "train_time_s": 61.0,
          "budget": {"train_seconds": 60.0, "eval_seconds": 10.0},
          "evals": [{"stage": "stop", "seconds": 99.0}, {"stage": "quantized", "seconds": 5.0}]}  # fmt: skip


def test_limits_are_told_as_parts_of_themselves() -> None:
    told = violations({**LIMITS, "valid": False})
    assert told == pytest.approx({"artifact": 0.2, "train_time": 1 / 60, "eval_time": -0.5})


def test_a_valid_run_is_over_no_limit() -> None:
    assert max(violations({**LIMITS, "valid": True}).values()) == 0.0


def test_an_invalid_run_is_over_some_limit() -> None:
    assert violations({"valid": False}) == {"valid": 1.0}


def test_bounds() -> None:
    assert bound("bytes.artifact<=15e6") == ("bytes.artifact", 1, 15e6)
    assert bound("steps >= 100") == ("steps", -1, 100)


BAD: dict[str, dict[str, Any]] = {
    "did you mean 'val_bpb.post_quant'": {"metric": "val_bpb.post_qant"},
    "did you mean 'bytes.artifact'": {"metrics": ["val_bpb.post_quant", "bytes.artefact"]},
    "name each once": {"metrics": ["steps", "steps"]},
    "sweep.trials=0": {"trials": 0},
    "sweep.eta=1": {"eta": 1},
    "sweep.prune_from=1.5": {"prune_from": 1.5},
    "sweep.constraints=steps": {"constraints": ["steps"]},
    "write name<=number": {"constraints": ["steps<=many"]},
}


@pytest.mark.parametrize("told", BAD)
def test_a_mistaken_setting(told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Search(**BAD[told])
