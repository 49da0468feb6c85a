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
WORDS = (
    "recipe=naive_baseline", "budget=smoke", "runtime=cuda", "runtime.compile=none", "tokenizer=byte260",
    "logger=jsonl", "train_batch_tokens=524288", "schedule.iterations=2", "schedule.warmup_steps=0", "val_tokens=4097",
)  # fmt: skip


def run(folder: Path, fraction: float, *words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "golf.cli.main", "train", "--prepare", *WORDS, *words, f"hydra.run.dir={folder}"]
    subprocess.run(line, check=True, cwd=folder.parent)
    command = [sys.executable, "-P", "-c", LIMITED, str(fraction), f"run={folder}"]
    return subprocess.run(command, cwd=folder.parent, capture_output=True, text=True)


def test_what_does_not_fit_is_told_with_what_does(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", 1.0)
    assert whole.returncode == 0, whole.stdout + whole.stderr
    peak = Run(tmp_path / "whole").record["peak_memory"]["gpu_reserved"][0]
    fraction = 0.7 * peak / torch.cuda.get_device_properties(0).total_memory
    short = run(tmp_path / "short", fraction)
    error = str(Run(tmp_path / "short").record["error"])
    assert (short.returncode, "Traceback" in short.stderr) == (1, False), short.stderr
    assert error.startswith("out of memory: the GPU has ")
    assert len(error.splitlines()) <= 3
    fits = re.search(r"runtime\.micro_tokens=\d+", error)
    assert fits is not None, error
    assert run(tmp_path / "again", fraction, fits[0]).returncode == 0
