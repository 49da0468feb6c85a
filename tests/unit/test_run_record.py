"""The run folder, metrics.jsonl, and result.json's schema and verdicts."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from golf.common.errors import DataError, GolfError
from golf.runs import environment
from golf.runs.folder import MetricsWriter, RunFolder, deterministic_part, is_timing, read_metrics, rewind
from golf.runs.record import Budget, Bytes, EvalRecord, Git, Params, Result


def scored(stage: Any, method: Any, bpb: float, seconds: float = 1.0) -> EvalRecord:
    stride = 64 if method == "sliding" else None
    return EvalRecord(
        stage=stage, method=method, stride=stride, seq_len=1024, val_loss=2 * bpb, val_bpb=bpb, targets=10, bytes=20,
        seconds=seconds,
    )  # fmt: skip


def completed(**parts: Any) -> Result:
    return Result.from_parts(**{"status": "completed", "steps": 30, "train_time_s": 10.0, **parts})


FULL = [
    scored("stop", "contiguous", 1.25),
    scored("averaged", "contiguous", 1.24),
    scored("quantized", "contiguous", 1.2425),
    scored("quantized", "sliding", 1.21),
]


# --- the folder


def test_the_folder_knows_the_fixed_names(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    names = [
        folder.config,
        folder.overrides,
        folder.metrics,
        folder.result,
        folder.log,
        folder.artifact,
        folder.weights,
    ]
    assert [name.name for name in names] == [
        "config.yaml", "overrides.yaml", "metrics.jsonl", "result.json", "train.log", "artifact.golf",
        "weights.safetensors",
    ]  # fmt: skip
    assert folder.eval_path("sliding_32") == tmp_path / "evals" / "sliding_32.json"


@pytest.mark.parametrize("name", ["metrics.jsonl", "result.json", "artifact.golf"])
def test_a_folder_that_holds_a_run_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("")
    with pytest.raises(GolfError, match=f"already holds a run .{name}"):
        RunFolder.claim(tmp_path)


def test_a_claimed_folder_is_created_and_can_be_claimed_again_after_release(tmp_path: Path) -> None:
    folder = RunFolder.claim(tmp_path / "a" / "b")
    assert folder.path.is_dir()
    with pytest.raises(GolfError, match="another process"):
        RunFolder.claim(folder.path)
    folder.release()
    RunFolder.claim(folder.path)


def test_a_folder_whose_owner_died_can_be_claimed(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / ".running").write_text(json.dumps({"host": socket.gethostname(), "pid": dead.pid}))
    folder = RunFolder(tmp_path)
    assert folder.liveness() == "failed"
    assert RunFolder.claim(tmp_path).liveness() == "running"


def test_a_folder_with_nothing_but_a_config_is_prepared(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.config.write_text("seed: 1\n")
    assert folder.liveness() == "prepared"
    folder.log.write_text("")
    assert folder.liveness() == "failed"


def test_a_lock_whose_process_number_was_given_to_another_is_stale(tmp_path: Path) -> None:
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "born": "long ago"}
    (tmp_path / ".running").write_text(json.dumps(owner))
    assert RunFolder(tmp_path).liveness() == "failed"
    assert RunFolder.claim(tmp_path).liveness() == "running"


def test_a_run_is_begun_as_soon_as_it_is_marked_for_who_starts_it(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.config.write_text("seed: 1\n")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as worker:
        folder.mark(worker.pid)
        assert folder.liveness() == "running"
        with pytest.raises(GolfError, match="another process"):
            RunFolder.claim(tmp_path)
        worker.kill()
    assert folder.liveness() == "failed"
    folder.mark(os.getpid())
    RunFolder.claim(tmp_path)  # it was for this process
    folder.unmark()  # and is no mark any more
    assert folder.liveness() == "running"


def test_a_silent_owner_on_another_machine_is_taken_for_dead(tmp_path: Path) -> None:
    owner = tmp_path / ".running"
    owner.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    assert RunFolder(tmp_path).liveness() == "running"
    os.utime(owner, (0, 0))
    assert RunFolder(tmp_path).liveness() == "failed"


def test_an_unfinished_run_can_be_resumed_and_a_finished_one_not(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    Result.from_parts(status="interrupted", steps=3, train_time_s=1.0).write(tmp_path / "result.json")
    RunFolder.claim(tmp_path, resume=True).release()
    completed().write(tmp_path / "result.json")
    with pytest.raises(GolfError, match="nothing to resume"):
        RunFolder.claim(tmp_path, resume=True)


def test_a_path_that_is_a_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GolfError, match="as a run folder"):
        RunFolder.claim(tmp_path / "file" / "run")


# --- metrics.jsonl


def test_every_row_carries_the_three_axes(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path / "metrics.jsonl") as writer:
        writer.write({"step": 1, "tokens": 4096, "train_time_s": 0.5, "train_loss": 3.0})
        writer.write({"step": 1, "val_bpb": 1.3})
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert rows[1] == {"step": 1, "tokens": 4096, "train_time_s": 0.5, "val_bpb": 1.3}


def test_rows_are_on_disk_at_once(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    writer.write({"step": 1})
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1
    writer.close()


@pytest.mark.parametrize(("value", "name"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")])
def test_a_number_that_json_lacks_is_null_and_named(tmp_path: Path, value: float, name: str) -> None:
    with MetricsWriter(tmp_path / "metrics.jsonl") as writer:
        writer.write({"step": 1, "train_loss": torch.tensor(value), "scales": [value, 1.0]})
    row = read_metrics(tmp_path / "metrics.jsonl")[0]
    assert (row["train_loss"], row["train_loss_nonfinite"], row["scales"]) == (None, name, [name, 1.0])


def test_tensors_and_numpy_scalars_become_numbers(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path / "metrics.jsonl") as writer:
        row = writer.write({"step": np.int64(2), "train_loss": torch.tensor(1.5), "lrs": np.array([0.5, 0.25])})
    assert (row["step"], row["train_loss"], row["lrs"]) == (2, 1.5, [0.5, 0.25])
    assert type(row["step"]) is int


def test_floats_come_back_bit_for_bit(tmp_path: Path) -> None:
    value = 0.1 + 0.2
    with MetricsWriter(tmp_path / "metrics.jsonl") as writer:
        writer.write({"step": 1, "train_loss": value})
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["train_loss"] == value


def test_a_run_that_goes_on_drops_the_rows_that_will_come_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsWriter(path) as writer:
        writer.write({"step": 2, "tokens": 20})
        size = writer.settled()
        writer.write({"step": 2, "val_loss": 1.0})  # of the step at which the state was kept, but after it
        writer.write({"step": 3, "tokens": 30})
    with path.open("a") as file:
        file.write('{"step": 4, "tok')
    assert rewind(path, size)["step"] == 3
    assert rewind(path, size) == {}
    with MetricsWriter(path) as writer:
        writer.write({"train_loss": 1.0})
    rows = read_metrics(path)
    assert [row["step"] for row in rows] == [2, 2]
    assert rows[-1]["tokens"] == 20
    with pytest.raises(GolfError, match="when the checkpoint was made"):
        rewind(path, 10_000)


def test_a_cut_last_line_is_left_out_and_a_broken_middle_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"ste')
    assert read_metrics(path) == [{"step": 1}]
    path.write_text('{"ste\n{"step": 1}\n')
    with pytest.raises(DataError, match="line 1 is not"):
        read_metrics(path)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_a_clear_error() -> None:
    writer = MetricsWriter("/dev/full")
    with pytest.raises(GolfError, match="No space left"):
        writer.write({"step": 1})


def test_timings_can_be_told_from_what_must_repeat() -> None:
    row = {"step": 1, "train_loss": 2.0, "step_ms": 3.0, "tokens_per_s": 4.0, "train_time_s": 5.0, "mfu": 0.4}
    assert deterministic_part([row]) == [{"step": 1, "train_loss": 2.0}]
    assert is_timing("data_wait_ms")
    assert not is_timing("tokens")


# --- aliases


def test_aliases_and_gap() -> None:
    result = completed(evals=FULL)
    assert result.val_bpb.model_dump() == {
        "pre_quant": 1.24, "post_quant": 1.2425, "sliding": 1.21, "final": 1.21,
        "by_method": {"contiguous": 1.2425, "sliding": 1.21},
    }  # fmt: skip
    assert result.quant_gap == pytest.approx(0.0025)
    assert result.score == 1.21


def test_without_averaging_the_weights_at_stop_are_what_was_quantized() -> None:
    assert completed(evals=[FULL[0], FULL[2]]).val_bpb.pre_quant == 1.25


def test_averaged_weights_that_were_not_scored_contiguously_leave_pre_quant_open() -> None:
    result = completed(evals=[FULL[0], scored("averaged", "sliding", 1.2), FULL[2]])
    assert result.val_bpb.pre_quant is None
    assert result.quant_gap is None


def test_final_is_by_the_runs_own_method_whatever_it_is_called() -> None:
    evals = [*FULL, scored("quantized", "lora_ttt", 1.19)]
    found = completed(evals=evals, method="lora_ttt").val_bpb
    assert (found.final, found.by_method) == (1.19, {"contiguous": 1.2425, "sliding": 1.21, "lora_ttt": 1.19})
    assert completed(evals=FULL[:3], method="contiguous").val_bpb.final == 1.2425


def test_a_run_whose_own_evaluation_was_stopped_has_no_final_figure() -> None:
    result = completed(evals=FULL, method="lora_ttt")
    assert result.val_bpb.final is None
    assert result.score == 1.21


@pytest.mark.parametrize(("violations", "final"), [([], 1.21), (["the ttt evaluation would take about 9 s"], None)])
def test_a_record_from_before_the_final_figure_has_it(violations: list[str], final: Any, tmp_path: Path) -> None:
    completed(evals=FULL, violations=violations).write(tmp_path / "result.json")
    stored = json.loads((tmp_path / "result.json").read_text())
    del stored["val_bpb"]["final"], stored["val_bpb"]["by_method"]
    (tmp_path / "result.json").write_text(json.dumps(stored))
    found = Result.read(tmp_path / "result.json").val_bpb
    assert (found.final, found.by_method["sliding"]) == (final, 1.21)


def test_a_non_finite_figure_is_null() -> None:
    assert completed(evals=[scored("stop", "contiguous", math.nan)], train_loss=math.inf).val_bpb.pre_quant is None


# --- verdicts


def budget(**changes: Any) -> Budget:
    facts = {"name": "record_10min", "bound": "wall", "train_seconds": 600.0, "eval_seconds": 600.0}
    return Budget(**{**facts, "artifact_bytes": 16_000_000, **changes})


def test_a_run_within_every_limit_is_valid() -> None:
    result = completed(evals=FULL, bytes=Bytes.count(15_900_000, 100_000, 16_000_000), budget=budget())
    assert (result.valid, result.violations) == (True, [])


def test_an_artifact_over_the_limit_names_the_excess_and_the_three_largest_places() -> None:
    ledger = Bytes.count(15_999_999, 2, 16_000_000, {"a": 1, "mlp.up": 7_000, "embed": 9_000, "attn.q": 5_000})
    result = completed(bytes=ledger, budget=budget())
    assert not result.valid
    assert result.violations == [
        "the artifact is 16,000,001 bytes, 1 over the limit of 16,000,000;"
        " the largest places: embed 9,000, mlp.up 7,000, attn.q 5,000"
    ]


def test_the_budgets_limit_counts_when_the_ledger_names_none() -> None:
    assert not completed(bytes=Bytes.count(10, 1, None), budget=budget(artifact_bytes=10)).valid


@pytest.mark.parametrize(
    ("bound", "enforce", "valid"),
    [
        ("wall", "wall", False),
        ("steps", "wall", True),
        ("steps", "always", False),
        ("wall", "always", False),
        ("wall", "never", True),
    ],
)
def test_when_training_time_counts(bound: Any, enforce: Any, valid: bool) -> None:
    result = completed(train_time_s=700.0, budget=budget(bound=bound, enforce=enforce))
    assert result.valid is valid
    assert valid or result.violations == ["training took 700.0 s, 100.0 s over the limit of 600 s"]


def test_the_step_that_reaches_the_limit_may_end() -> None:
    assert completed(train_time_s=600.05, last_step_s=0.06, budget=budget()).valid
    assert not completed(train_time_s=600.05, last_step_s=0.04, budget=budget()).valid


def test_each_evaluation_of_the_quantized_model_is_held_to_the_limit() -> None:
    evals = [scored("stop", "contiguous", 1.2, 999), scored("quantized", "contiguous", 1.2, 500)]
    assert completed(evals=evals, budget=budget()).valid
    slow = completed(evals=[*evals, scored("quantized", "sliding", 1.1, 601.5)], budget=budget())
    assert slow.violations == ["the sliding evaluation took 601.5 s, 1.5 s over the limit of 600 s"]


@pytest.mark.parametrize(("status", "word"), [("interrupted", "was interrupted"), ("failed", "failed")])
def test_a_run_that_did_not_end_is_not_valid_and_says_where(status: Any, word: str) -> None:
    result = Result.from_parts(status=status, steps=12, train_time_s=1.0)
    assert (result.valid, result.violations) == (False, [f"the run {word} after step 12"])


def test_a_callers_violation_is_kept() -> None:
    assert completed(violations=["bpb was refused"]).violations == ["bpb was refused"]


# --- the file


def test_the_file_holds_the_fixed_names_and_reads_back_the_same(tmp_path: Path) -> None:
    result = completed(
        evals=FULL,
        bytes=Bytes.count(10, 1, 16, {"embed": 10}),
        budget=budget(scaled={"warmdown_iters": {"record": 1200, "used": 150}}),
        recipe="naive_baseline",
        tokens=1000,
        seeds={"seed": 7},
        clocks={"train": 10.0},
        params=Params(total=5, by_role={"matrix": 5}),
        git=Git(commit="0" * 40, dirty=False),
        hardware=environment.hardware(),
        peak_memory=environment.peak_memory(),
        versions=environment.versions(),
        data={"train_documents": np.int64(3), "checked": True},
        kernels={"attention": "sdpa"},
        numerics={"name": "torch27"},
    )
    result.write(tmp_path / "result.json")
    stored = json.loads((tmp_path / "result.json").read_text())
    assert stored["schema_version"] == 1
    assert set(stored["val_bpb"]) == {"pre_quant", "post_quant", "sliding", "final", "by_method"}
    assert set(stored["bytes"]) == {"model", "code", "code_is", "artifact", "limit", "by_group"}
    fixed = {"stage", "method", "stride", "seq_len", "val_loss", "val_bpb", "targets", "bytes", "seconds"}
    assert fixed <= set(stored["evals"][0])
    assert {"quant_gap", "valid", "violations"} <= set(stored)
    assert Result.read(tmp_path / "result.json") == result


def test_a_misspelt_fact_is_refused() -> None:
    with pytest.raises(TypeError, match=r"no field kernel$"):
        completed(kernel={})


def test_fields_added_later_are_passed_over_and_a_newer_schema_is_not(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps({**completed().model_dump(mode="json"), "more": 1}))
    assert Result.read(path).steps == 30
    path.write_text(json.dumps({"schema_version": 99}))
    with pytest.raises(GolfError, match="schema_version 99"):
        Result.read(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema_version": 1}', '{"schema_version": 1, "status": "done"}'])
def test_a_file_that_is_no_result_is_a_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(GolfError, match="is not a golf result"):
        Result.read(path)


def test_a_missing_result_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(GolfError, match="is missing"):
        Result.read(tmp_path / "result.json")


# --- the environment


def git(directory: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(directory), *identity, *arguments], check=True, capture_output=True)


def test_git_state_tells_clean_from_dirty(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "-b", "trunk")
    (tmp_path / "a.py").write_text("1")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-qm", "one")
    clean = environment.git_state(tmp_path)
    assert clean is not None
    assert (len(clean.commit), clean.branch, clean.dirty) == (40, "trunk", False)
    (tmp_path / "b.py").write_text("2")
    dirty = environment.git_state(tmp_path)
    assert dirty is not None
    assert dirty.dirty


def test_git_state_is_absent_outside_a_checkout(tmp_path: Path) -> None:
    assert environment.git_state(tmp_path) is None


def test_git_state_is_absent_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.git_state(tmp_path) is None


def test_versions_and_hardware_are_there() -> None:
    assert {"python", "golf", "torch"} <= set(environment.versions())
    assert environment.hardware().cores >= 1
    assert (environment.peak_memory().host_rss or 0) > 10_000_000
