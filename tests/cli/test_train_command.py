"""`golf train` for real, on the CPU: what lands in the run folder, determinism, ranks, sweeps, failures."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from golf.runs.folder import deterministic_part, read_metrics

COMMON = (
    "budget=smoke", "recipe=quickstart", "model.num_layers=2", "schedule.iterations=4", "val_tokens=2049",
    "logger=jsonl", "data=text", "data.val_docs=8", "runtime.threads=1",
)  # fmt: skip
Train = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def train(workplace: Path, tmp_path: Path) -> Train:
    """Run `golf train` in a process of its own, in an empty folder, and return what it came to."""

    def call(*words: str, check: int | None = 0) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "golf.cli.main",
            "train",
            *COMMON,
            f"data.paths=[{workplace}/corpus.jsonl]",
            *words,
        ]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
        assert check is None or done.returncode == check, done.stdout + done.stderr
        return done

    return call


def result(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "result.json").read_text())


def losses(directory: Path) -> list[float]:
    return [row["train_loss"] for row in read_metrics(directory / "metrics.jsonl") if "train_loss" in row]


def test_the_log_tells_where_it_runs_and_that_nothing_is_fused_there(trained: Path) -> None:
    log = (trained / "train.log").read_text(encoding="utf-8")
    assert "runtime: cpu x 1, float32, compile none, no fused kernels" in log


def test_the_run_folder(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    fixed = {"config.yaml", "overrides.yaml", "metrics.jsonl", "result.json", "train.log", "artifact.golf"}
    assert fixed | {"weights.safetensors"} <= names


def test_model_bytes_are_the_size_of_the_artifact(trained: Path) -> None:
    assert result(trained)["bytes"]["model"] == (trained / "artifact.golf").stat().st_size


def test_the_ledger_sums_to_the_artifact(trained: Path) -> None:
    counted = result(trained)["bytes"]
    assert sum(counted["by_group"].values()) == counted["model"]


def test_every_stage_was_scored(trained: Path) -> None:
    stages = {(one["stage"], one["method"]) for one in result(trained)["evals"]}
    assert stages == {("stop", "contiguous"), ("quantized", "contiguous"), ("quantized", "sliding")}


def test_full_coverage_scores_every_target_once(trained: Path) -> None:
    assert {one["targets"] for one in result(trained)["evals"]} == {2049}


def test_the_config_in_the_run_folder_is_complete(trained: Path) -> None:
    text = (trained / "config.yaml").read_text()
    assert "${" not in text
    assert yaml.safe_load(text)["choices"]["recipe"] == "quickstart"


def test_a_run_repeats_bit_for_bit(trained: Path, train: Train, tmp_path: Path) -> None:
    overrides = yaml.safe_load((trained / "overrides.yaml").read_text())
    train(*overrides, f"hydra.run.dir={tmp_path}/again")
    ours, theirs = (deterministic_part(read_metrics(d / "metrics.jsonl")) for d in (trained, tmp_path / "again"))
    assert ours == theirs
    assert (trained / "artifact.golf").read_bytes() == (tmp_path / "again" / "artifact.golf").read_bytes()


@pytest.mark.slow
def test_two_workers_with_half_the_micro_steps_train_the_same(train: Train, tmp_path: Path) -> None:
    # Both see the same 8 spans a step; only the order in which gradients are summed differs, hence float32 rounding,
    # which bf16 Newton–Schulz amplifies: 1e-3 covers four steps, and the first losses must agree to rounding.
    train("runtime.nproc=1", "runtime.micro_tokens=1024", f"hydra.run.dir={tmp_path}/one")
    train("runtime.nproc=2", "runtime.micro_tokens=1024", f"hydra.run.dir={tmp_path}/two")
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert two[0] == pytest.approx(one[0], rel=1e-6)
    assert two == pytest.approx(one, rel=1e-3)
    assert result(tmp_path / "two")["numerics"]["nproc"] == 2


def test_the_last_line_is_the_run_folder(train: Train, tmp_path: Path) -> None:
    last = train().stdout.splitlines()[-1]
    assert (Path(last) / "result.json").exists()
    assert Path(last).is_relative_to(tmp_path / "outputs")


@pytest.mark.slow
def test_a_sweep_over_ones_own_technique(train: Train, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    (mine / "technique" / "twice").mkdir(parents=True)
    (mine / "technique" / "twice" / "v1.yaml").write_text("_target_: twice.Twice\n_partial_: true\nlayers: all\n")
    (mine / "twice.py").write_text(
        "import torch\n"
        "from golf.nn.params import declare\n"
        "from golf.nn.techniques.base import Technique\n\n\n"
        "class Twice(Technique):\n"
        "    site = 'attn_out'\n\n"
        "    def __init__(self, shape, layer=None):\n"
        "        super().__init__(shape, layer)\n"
        "        declare(self, 'gain', torch.full((shape.model_dim,), 2.0), role='scalar', place='twice.gain')\n\n"
        "    def forward(self, a, ctx):\n"
        "        return a * self.gain\n"
    )
    train("--config-dir", str(mine), "technique/twice=none,v1", "-m", "hydra.sweep.dir=sweep", "schedule.iterations=2")
    off, on = (result(tmp_path / "sweep" / str(i)) for i in (0, 1))
    assert on["params"]["total"] - off["params"]["total"] == 2 * 64
    assert "twice.gain" in on["bytes"]["by_group"]
    assert (tmp_path / "sweep" / "1" / "code" / "twice.py").exists()


def test_an_artifact_over_the_limit_is_completed_and_invalid(train: Train, tmp_path: Path) -> None:
    done = train("budget.artifact_bytes=1000", f"hydra.run.dir={tmp_path}/big", check=3)
    record = result(tmp_path / "big")
    assert (record["status"], record["valid"]) == ("completed", False)
    assert re.search(r"over the limit of 1,000; the largest places: \S+ [\d,]+, \S+ [\d,]+, \S+ [\d,]+", done.stdout)


def test_a_folder_that_holds_a_run_is_left_alone(trained: Path, train: Train) -> None:
    before = (trained / "config.yaml").read_bytes()
    done = train(f"hydra.run.dir={trained}", check=1)
    assert "already holds a run" in done.stderr
    assert (trained / "config.yaml").read_bytes() == before


def test_a_non_finite_loss_stops_the_run_and_keeps_the_last_good_weights(train: Train, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    done = train("optimizer.matrix_lr=1e30", "optimizer.tied_embed_lr=1e30", "schedule.iterations=20",
                 f"hydra.run.dir={tmp_path}/nan", check=1)  # fmt: skip
    record = result(tmp_path / "nan")
    assert (record["status"], record["valid"]) == ("failed", False)
    assert re.search(r"train_loss is (nan|inf) at step \d+", done.stdout + done.stderr)
    assert "Traceback" not in done.stderr
    state = load_file(tmp_path / "nan" / "weights.safetensors")
    assert all(t.isfinite().all() for t in state.values())


@pytest.mark.slow
def test_a_failing_job_does_not_end_the_sweep(train: Train, tmp_path: Path) -> None:
    done = train("-m", "optimizer.tied_embed_lr=1e30,0.01", "schedule.iterations=12", "hydra.sweep.dir=sweep", check=1)
    assert result(tmp_path / "sweep" / "0")["status"] == "failed"
    assert result(tmp_path / "sweep" / "1")["status"] == "completed"
    assert "1 of 2 jobs failed" in done.stderr


def test_ctrl_c_leaves_a_valid_record(workplace: Path, tmp_path: Path) -> None:
    directory = tmp_path / "stopped"
    command = [sys.executable, "-m", "golf.cli.main", "train", *COMMON, f"data.paths=[{workplace}/corpus.jsonl]",
               "schedule.iterations=100000", f"hydra.run.dir={directory}"]  # fmt: skip
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step 2/"):
                break
        os.kill(process.pid, signal.SIGINT)
        rest = process.stdout.read()
        code = process.wait(timeout=240)
    assert code == 130, rest
    record = result(directory)
    assert record["status"] == "interrupted"
    assert record["steps"] >= 2
    assert (directory / "weights.safetensors").exists()
    assert "Traceback" not in rest


def test_a_worker_under_torchrun_does_the_same(trained: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    (directory / "config.yaml").write_bytes((trained / "config.yaml").read_bytes())
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=1",
        "-m",
        "golf.launch.work.worker",
        f"run={directory}",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert losses(directory) == losses(trained)


def test_averaged_weights_are_scored_and_quantized(train: Train, tmp_path: Path) -> None:
    train("averaging=ema", f"hydra.run.dir={tmp_path}/ema")
    record = result(tmp_path / "ema")
    averaged = [one for one in record["evals"] if one["stage"] == "averaged"]
    assert [one["val_bpb"] for one in averaged] == [record["val_bpb"]["pre_quant"]]


def test_every_stage_is_scored_by_evals_own_method_when_asked(train: Train, tmp_path: Path) -> None:
    train("averaging=ema", "eval=sliding", "eval.stride=32", "eval_all_stages=true", f"hydra.run.dir={tmp_path}/all")
    scored = [(one["stage"], one["method"]) for one in result(tmp_path / "all")["evals"]]
    assert scored == [(s, m) for s in ("stop", "averaged", "quantized") for m in ("contiguous", "sliding")]


RESULT_NAMES = [
    "evals", "val_bpb.pre_quant", "val_bpb.post_quant", "val_bpb.sliding", "quant_gap", "valid", "violations",
    "bytes.model", "bytes.code", "bytes.artifact", "bytes.limit", "bytes.by_group", "schema_version", "status", "steps",
    "tokens", "clocks", "seeds", "versions", "hardware", "data.disjoint", "data.byte_proof", "budget.scaled",
    "kernels.attention", "kernels.norm",
]  # fmt: skip


@pytest.mark.parametrize("name", RESULT_NAMES)
def test_fixed_name_in_the_result(name: str, trained: Path) -> None:
    node: Any = result(trained)
    for part in name.split("."):
        assert part in node
        node = node[part]


@pytest.mark.parametrize(
    "name", ["stage", "method", "stride", "seq_len", "val_loss", "val_bpb", "targets", "bytes", "seconds"]
)
def test_fixed_name_in_an_evaluation(name: str, trained: Path) -> None:
    assert all(name in one for one in result(trained)["evals"])


@pytest.mark.parametrize(
    "name", ["step", "train_loss", "tokens_per_s", "step_ms", "data_wait_ms", "tokens", "train_time_s"]
)
def test_fixed_name_in_the_metrics(name: str, trained: Path) -> None:
    assert all(name in row for row in read_metrics(trained / "metrics.jsonl"))


@pytest.mark.slow
def test_a_multirun_is_one_wandb_group_of_a_run_a_job(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "abc123")
    done = train("-m", "seed=1,2", "logger=wandb", "schedule.iterations=2", "hydra.sweep.dir=lr_study")
    files = []
    for job in ("0", "1"):
        directory = tmp_path / "lr_study" / job
        assert yaml.safe_load((directory / "config.yaml").read_text())["logger"]["group"] == "lr_study"
        (file,) = directory.glob("wandb/offline-run-*/*.wandb")
        assert result(directory)["tracking"]["wandb"]["id"] in file.name
        files.append(file.name)
    assert len({"run-abc123.wandb", *files}) == 3
    line = "each job of a multirun is a wandb run of its own, so not used: WANDB_RUN_ID=abc123"
    assert done.stdout.count(line) == 1
    assert line in (tmp_path / "lr_study" / "1" / "train.log").read_text()


def test_one_text_file_is_enough_and_what_was_done_to_it_is_said(train: Train, tmp_path: Path) -> None:
    text = "".join(f"{i} words on a line of their own\n" for i in range(3000))
    (tmp_path / "input.txt").write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\xff\n")
    words = ("data.paths=[input.txt]", "data.val_docs=null", "tokenizer=byte260", "schedule.iterations=1")
    done = train(*words, f"hydra.run.dir={tmp_path}/run")
    data = result(tmp_path / "run")["data"]
    assert sum(split["bytes"] for split in data["splits"].values()) == len(text) + len("\ufffd\n".encode())
    assert len(data["notes"]) == 2
    told = " ".join(done.stdout.split())
    assert [note for note in data["notes"] if " ".join(note.split()) not in told] == []


def test_data_that_fails_leaves_a_record(train: Train, tmp_path: Path) -> None:
    (tmp_path / "short.jsonl").write_text('{"text": "too little"}\n{"text": "by far"}\n')
    done = train(f"data.paths=[{tmp_path}/short.jsonl]", "data.val_docs=1", f"hydra.run.dir={tmp_path}/short", check=1)
    assert "validation" in done.stdout + done.stderr
    assert result(tmp_path / "short")["status"] == "failed"
    assert "Traceback" not in done.stderr


def test_an_evaluation_over_its_budget_is_stopped_and_the_run_invalid(train: Train, tmp_path: Path) -> None:
    words = ("eval.stride=8", "eval.batch_tokens=128", "budget.eval_seconds=0.01")
    train(*words, f"hydra.run.dir={tmp_path}/run", check=3)
    record = result(tmp_path / "run")
    assert record["status"] == "completed"
    assert any(line.startswith("the sliding evaluation would take about") for line in record["violations"])
    assert record["val_bpb"]["sliding"] is None


def test_what_another_machine_will_run_is_prepared_here(train: Train, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train("--prepare", "runtime=cuda", "runtime.nproc=8", f"hydra.run.dir={run}")
    config = yaml.safe_load((run / "config.yaml").read_text())["runtime"]
    assert (config["device"], config["nproc"]) == ("cuda", 8)


def test_relative_paths_mean_the_folder_of_the_command_also_when_hydra_leaves_it(train: Train, tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"text": "a"}\n')
    words = ("data.paths=[mine.jsonl]", "hydra.job.chdir=true", "hydra.run.dir=run")
    train("--prepare", *words, "name=wide mlp", "tags=[mlp]")
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["data"]["paths"] == [str(tmp_path / "mine.jsonl")]
    assert (config["name"], config["tags"]) == ("wide mlp", ["mlp"])


def test_a_run_is_called_by_its_name(train: Train, tmp_path: Path) -> None:
    train("--prepare", "name=wide")
    assert [path.name.split("_")[1] for path in (tmp_path / "outputs").glob("*/*")] == ["wide"]
