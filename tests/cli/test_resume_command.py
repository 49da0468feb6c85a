"""`golf train resume=DIR`, as a user meets it: a process that is killed, lines that cannot go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from golf.runs.folder import deterministic_part, read_metrics

WORDS = (
    "budget=smoke", "tokenizer=byte260", "model.num_layers=2", "schedule.iterations=24", "val_tokens=2049",
    "logger=jsonl", "data=text", "data.val_docs=8", "runtime.threads=1", "checkpoint.every=3", "log_every=1",
)  # fmt: skip
GOLF = (sys.executable, "-m", "golf.cli.main", "train")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["seed=2"], "leave out seed"),
        (["-m"], "leave out -m"),
        (["runtime.nproc=3"], "1, 2, 4 or 8"),
        ([], "this run is complete: golf train run="),
    ],
)
def test_a_line_that_cannot_go_on_is_a_mistake(words: list[str], told: str, trained: Path, golf_command: Any) -> None:
    done = golf_command("train", f"resume={trained}", *words)
    assert done.code == 2
    assert told in done.err


def test_resume_auto_wants_a_folder_that_is_named(golf_command: Any) -> None:
    for words, told in (["resume=auto"], "hydra.run.dir="), (["resume=auto", "-m"], "sweep.skip_done=true"):
        done = golf_command("train", *words)
        assert done.code == 2
        assert told in done.err


def killed(directory: Path, words: list[str], number: signal.Signals, of_worker: bool, cwd: Path) -> tuple[int, str]:
    """The exit code and the lines of a run that is sent a signal after its seventh step."""
    command = [*GOLF, *words, f"hydra.run.dir={directory}"]
    with subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step 7/"):
                break
        (worker,) = psutil.Process(process.pid).children()
        os.kill(worker.pid if of_worker else process.pid, number)
        rest = process.stdout.read()
        return process.wait(timeout=120), rest


@pytest.mark.slow
def test_a_run_that_was_killed_or_stopped_ends_as_the_one_that_was_not(workplace: Path, tmp_path: Path) -> None:
    words = [*WORDS, f"data.paths=[{workplace}/corpus.jsonl]"]
    subprocess.run([*GOLF, *words, f"hydra.run.dir={tmp_path}/whole"], check=True, cwd=tmp_path)
    code, rest = killed(tmp_path / "killed", words, signal.SIGKILL, True, tmp_path)
    assert code == 137, rest
    code, rest = killed(tmp_path / "stopped", words, signal.SIGTERM, False, tmp_path)
    assert (code, f"golf train resume={tmp_path}/stopped goes on after step" in rest) == (75, True), rest
    expected = deterministic_part(read_metrics(tmp_path / "whole" / "metrics.jsonl"))
    for name in ("killed", "stopped"):
        subprocess.run([*GOLF, f"resume={tmp_path / name}"], check=True, cwd=tmp_path)
        assert deterministic_part(read_metrics(tmp_path / name / "metrics.jsonl")) == expected
        assert (tmp_path / name / "artifact.golf").read_bytes() == (tmp_path / "whole" / "artifact.golf").read_bytes()
        record = json.loads((tmp_path / name / "result.json").read_text())
        assert (record["status"], len(record["resumed"])) == ("completed", 1)


@pytest.mark.slow
def test_where_the_weights_find_no_room_the_artifact_does(workplace: Path, tmp_path: Path) -> None:
    words = [*WORDS, "schedule.iterations=6", f"data.paths=[{workplace}/corpus.jsonl]"]
    words.append(f"hydra.run.dir={tmp_path}/run")
    limited = "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (150_000,) * 2)\n"
    command = [
        sys.executable,
        "-c",
        f"{limited}runpy.run_module('golf.cli.main', run_name='__main__')",
        "train",
        *words,
    ]
    done = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    assert "the weights are not kept" in done.stdout
    assert "no checkpoint after step 3" in done.stdout
    assert not (tmp_path / "run" / "weights.safetensors").exists()
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "completed"
