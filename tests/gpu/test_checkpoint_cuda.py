"""On a GPU a run that goes on from a checkpoint is the run that ran through, to what two equal runs differ by there."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from golf.runs.folder import read_metrics
from golf.runs.store import Run

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
STEPS, STOP = 70, 20
GOLF = (sys.executable, "-m", "golf.cli.main", "train")


def corpus(folder: Path) -> Path:
    rng = random.Random(1)
    path = folder / "corpus.txt"
    words = ["a", "byte", "predicts", "another", "model", "reads", "42"]
    path.write_text("\n\n".join(" ".join(rng.choice(words) for _ in range(120)) for _ in range(400)))
    return path


@pytest.mark.parametrize("graphs", ["true", "false"])
def test_a_stopped_run_goes_on_with_the_losses_of_one_that_ran_through(graphs: str, tmp_path: Path) -> None:
    words = (
        "recipe=gradquant_11l", "budget=smoke", "runtime=cuda", "tokenizer=byte260", "logger=jsonl", "data=text",
        f"data.paths=[{corpus(tmp_path)}]", "data.val_docs=8", f"schedule.iterations={STEPS}", "val_tokens=2049",
        "log_every=1", "model.num_layers=3", f"runtime.cuda_graphs={graphs}", "averaging=ema",
    )  # fmt: skip
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    subprocess.run([*GOLF, *words, f"hydra.run.dir={whole}"], check=True, cwd=tmp_path)
    command = [*GOLF, *words, f"hydra.run.dir={stopped}"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(f"step {STOP}/"):
                break
        os.kill(process.pid, signal.SIGTERM)
        rest = process.stdout.read()
        assert process.wait(timeout=120) in (75, 0), rest
    if Run(stopped).status != "completed":
        subprocess.run([*GOLF, f"resume={stopped}"], check=True, cwd=tmp_path)
        assert len(Run(stopped).record["resumed"]) == 1
    rows, others = (
        {row["step"]: row["train_loss"] for row in read_metrics(folder / "metrics.jsonl") if "train_loss" in row}
        for folder in (whole, stopped)
    )
    assert list(rows) == list(others) == list(range(1, STEPS + 1))
    assert list(others.values()) == pytest.approx(list(rows.values()), rel=1e-3)
