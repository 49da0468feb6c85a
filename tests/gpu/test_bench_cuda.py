"""What of `golf bench` and of a worker's death only GPUs can show."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from golf.nn import attend_cases, kernels

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
GOLF = (sys.executable, "-m", "golf.cli.main")
SMALL = ("recipe=naive_baseline", "model.model_dim=256", "model.num_layers=2", "train_batch_tokens=65536",
         "tokenizer=byte260", "val_tokens=10000")  # fmt: skip


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("bench")
    done = subprocess.run(
        [*GOLF, "bench", *SMALL, "profile=true"], cwd=place, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    loaded: dict[str, Any] = json.loads(Path(done.stdout.splitlines()[-1]).read_text(encoding="utf-8"))
    return loaded


def test_utilisation_is_a_fraction_of_the_peak(measured: dict[str, Any]) -> None:
    assert measured["peak_flops"] is None or 0 < measured["mfu"] < 1


def test_the_attention_kernels_are_seen(measured: dict[str, Any]) -> None:
    assert measured["attention_kernels"]
    assert any(row["name"] == measured["attention_kernels"][0] for row in measured["profile"])


def test_the_device_is_busy_for_a_part_of_the_step(measured: dict[str, Any]) -> None:
    assert 0 < measured["device_busy"] < 1.05  # the profiled step and the measured ones are not the same


def test_the_host_takes_its_time_in_every_phase(measured: dict[str, Any]) -> None:
    assert all(measured["host_ms"][phase] > 0 for phase in ("data", "forward", "backward", "optimizer"))


def test_every_reference_figure_was_measured(measured: dict[str, Any]) -> None:
    assert {name for name, value in measured["reference"].items() if value is None} <= {
        f"attention_cudnn_{length}_ms" for length in (1024, 2048, 4096)
    }


def test_compiling_is_slower_with_an_empty_cache(measured: dict[str, Any]) -> None:
    assert measured["compile"]["cold_s"] > measured["compile"]["warm_s"]


def test_each_case_of_a_kernel_that_the_card_can_have_is_timed(tmp_path: Path) -> None:
    done = subprocess.run([*GOLF, "bench", "kernels"], cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(Path(done.stdout.splitlines()[-1]).read_text(encoding="utf-8"))
    attention = [(case.name, case.shapes) for case in attend_cases.cases(torch.device("cuda"))]
    assert [one for row in record["kernels"] if (one := (row["name"], row["shapes"])) in attention] == attention
    able = {kernel.name for kernel in kernels.KERNELS if kernel.takes(torch.cuda.get_device_capability())}
    rows = {(row["name"], row["shapes"]): row for row in record["kernels"] if row["name"] in able}
    assert list(rows) == [(case.name, case.shapes) for case in kernels.cases() if case.name in able]
    for row in rows.values():
        assert row["kernel_ms"] > 0
        assert f"{row['kernel_ms']:.4f}" in done.stdout


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_killed_worker_ends_those_that_wait_for_it_on_the_device(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = (*SMALL, "data=pystdlib", "runtime.nproc=2", "logger=jsonl", "val_every=0", f"hydra.run.dir={run}")
    with subprocess.Popen(
        [*GOLF, "train", *words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as golf:
        assert golf.stdout is not None
        for line in golf.stdout:
            if re.match(r"step 10/", line):
                break
        workers = [p for p in psutil.process_iter(["cmdline"]) if f"run={run}" in (p.info["cmdline"] or [])]
        (victim,) = (p for p in workers if p.environ().get("RANK") == "1")
        os.kill(victim.pid, signal.SIGKILL)
        rest = golf.communicate(timeout=300)[0]  # a collective would wait for half an hour
        assert golf.returncode == 137, rest
    assert json.loads((run / "result.json").read_text())["status"] == "failed"
    assert not any(p.is_running() for p in workers)
