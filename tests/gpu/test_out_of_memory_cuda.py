"""A GPU whose memory does not suffice ends a run in three lines that name what would fit, and that setting fits."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from golf.runs.store import Run

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
LIMITED = """
import sys, torch
torch.cuda.set_per_process_memory_fraction(float(sys.argv.pop(1)))
from golf.launch.work.worker import main
sys.exit(main(sys.argv[1:]))
"""
LIMIT = """
import torch
from golf.nn.techniques.base import Technique


class Limited(Technique):
    site = "post_embed"

    def __init__(self, shape, layer=None, fraction=1.0):
        super().__init__(shape, layer)
        torch.cuda.set_per_process_memory_fraction(fraction)

    def forward(self, value, ctx):
        return value
"""
"""A technique that does nothing, but leaves its process a part of the GPU's memory alone."""
WORDS = (
    "recipe=naive_baseline", "budget=smoke", "runtime=cuda", "runtime.compile=none", "tokenizer=byte260",
    "logger=jsonl", "train_batch_tokens=524288", "schedule.iterations=2", "schedule.warmup_steps=0", "val_tokens=4097",
)  # fmt: skip


def run(folder: Path, fraction: float, *words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "golf.cli.main", "train", "--prepare", *WORDS, *words, f"hydra.run.dir={folder}"]
    subprocess.run(line, check=True, cwd=folder.parent)
    command = [sys.executable, "-P", "-c", LIMITED, str(fraction), f"run={folder}"]
    return subprocess.run(command, cwd=folder.parent, capture_output=True, text=True)


@pytest.fixture(scope="module")
def fraction(tmp_path_factory: pytest.TempPathFactory) -> float:
    """Which part of the GPU's memory is too little for the run as it is."""
    folder = tmp_path_factory.mktemp("whole") / "whole"
    whole = run(folder, 1.0)
    assert whole.returncode == 0, whole.stdout + whole.stderr
    peak = Run(folder).record["peak_memory"]["gpu_reserved"][0]
    return float(0.7 * peak / torch.cuda.get_device_properties(0).total_memory)


def test_what_does_not_fit_is_told_with_what_does(fraction: float, tmp_path: Path) -> None:
    short = run(tmp_path / "short", fraction)
    error = str(Run(tmp_path / "short").record["error"])
    assert (short.returncode, "Traceback" in short.stderr) == (1, False), short.stderr
    assert error.startswith("out of memory: the GPU has ")
    assert len(error.splitlines()) <= 3
    fits = re.search(r"runtime\.micro_tokens=\d+", error)
    assert fits is not None, error
    assert run(tmp_path / "again", fraction, fits[0]).returncode == 0


def test_by_choice_the_run_is_started_again_with_what_fits(fraction: float, tmp_path: Path) -> None:
    (tmp_path / "mine" / "technique" / "limited").mkdir(parents=True)
    yaml = f"_target_: limited.Limited\n_partial_: true\nfraction: {fraction}\n"
    (tmp_path / "mine" / "technique" / "limited" / "v1.yaml").write_text(yaml)
    (tmp_path / "mine" / "limited.py").write_text(LIMIT)
    line = [sys.executable, "-m", "golf.cli.main", "train", "--config-dir", "mine", "technique/limited=v1", *WORDS,
            "runtime.retry_out_of_memory=true", f"hydra.run.dir={tmp_path / 'run'}"]  # fmt: skip
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    again = Run(tmp_path / "run")
    (tried, *_) = again.record["retried"]
    assert tried["error"].startswith("out of memory: the GPU has ")
    assert again.config["runtime"]["micro_tokens"] < tried["tokens"]
