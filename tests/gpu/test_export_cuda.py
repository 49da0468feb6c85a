"""An exported file on a GPU: the run's losses, its kernels, and its pace."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
GOLF = (sys.executable, "-m", "golf.cli.main")
WORDS = ("recipe=gradquant_11l", "budget=smoke", "model.num_layers=4", "model.model_dim=256",
         "train_batch_tokens=65536", "train_seq_len=1024", "tokenizer=byte260",
         "val_tokens=10000", "schedule.iterations=40", "log_every=1", "logger=jsonl")  # fmt: skip


@pytest.mark.parametrize("form", ["readable", "packed"])
def test_the_file_trains_as_the_run_did(form: str, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    exporting = ["export", f"run={run}", f"out={out}", f"export.form={form}"]
    for words in (["train", *WORDS, f"hydra.run.dir={run}"], exporting):
        done = subprocess.run([*GOLF, *words], cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((run / "result.json").read_text())
    (tmp_path / "data").mkdir()
    for shard in Path(record["data"]["folder"]).glob("*.bin"):
        (tmp_path / "data" / shard.name.replace("golf_", "fineweb_")).symlink_to(shard)
    done = subprocess.run(
        [sys.executable, "-P", out / "train_gpt.py"], cwd=tmp_path, env={**os.environ, "DATA_PATH": "data"},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    expected = {row["step"]: row["train_loss"] for row in rows if "train_loss" in row}
    told = {int(step): float(loss) for step, loss in re.findall(r"step:(\d+)/40 train_loss:(\S+) ", done.stdout)}
    assert told == pytest.approx(expected, rel=2e-3)
    assert len(told) == 40
    if form == "readable":
        fused = any(by != "torch" for op, by in record["kernels"].items() if op != "attention")
        assert ("triton.jit" in (out / "train_gpt.py").read_text()) == fused
    (bpb,) = re.findall(r"_roundtrip_exact val_loss:\S+ val_bpb:(\S+)", done.stdout)
    assert float(bpb) == pytest.approx(record["val_bpb"]["post_quant"], rel=2e-3)
