"""Runs that run out of memory, as a user meets them: a real allocation fails, and smaller passes fit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

WORDS = (
    "technique/greedy=v1", "budget=smoke", "recipe=quickstart", "schedule.iterations=1", "val_tokens=512", "data=text",
    "tokenizer=byte260", "logger=jsonl", "model.num_layers=1", "runtime=cpu", "runtime.threads=1", "data.val_docs=8",
)  # fmt: skip
GREEDY = """import torch
from golf.nn.techniques.base import Technique


class Greedy(Technique):
    site = "logits"

    def forward(self, value, ctx):
        if self.training and value.shape[:-1].numel() > 1024:
            torch.empty(2**52)
        return value
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "where", "tried"),
    [(["runtime.nproc=2"], "run", [2048]), (["-m", "seed=1", "hydra.sweep.dir=sweep"], "sweep/0", [4096, 2048])],
)
def test_a_run_is_started_again_with_what_fits(
    words: list[str], where: str, tried: list[int], workplace: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine" / "technique" / "greedy").mkdir(parents=True)
    (tmp_path / "mine" / "technique" / "greedy" / "v1.yaml").write_text("_target_: greedy.Greedy\n_partial_: true\n")
    (tmp_path / "mine" / "greedy.py").write_text(GREEDY)
    line = [sys.executable, "-m", "golf.cli.main", "train", "--config-dir", "mine", *WORDS, *words,
            f"data.paths=[{workplace}/corpus.jsonl]", *(["hydra.run.dir=run"] if where == "run" else [])]  # fmt: skip
    done = subprocess.run(
        [*line, "runtime.retry_out_of_memory=true"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    told = done.stdout + done.stderr
    assert (done.returncode, told.count("did not fit into memory: starts again")) == (0, len(tried)), told
    record = json.loads((tmp_path / where / "result.json").read_text())
    assert [one["tokens"] for one in record["retried"]] == tried
    assert yaml.safe_load((tmp_path / where / "config.yaml").read_text())["runtime"]["micro_tokens"] == 1024
    first = json.loads((tmp_path / where / "attempts" / "1" / "result.json").read_text())
    assert (first["status"], first["error"].splitlines()[1].split()[0]) == (
        "failed", f"runtime.micro_tokens={tried[0] // 2}"
    )  # fmt: skip
