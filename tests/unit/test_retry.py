"""What ran out of memory is started again with what would fit, where it was wished, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from golf.launch.sweep.job import SweepJob, seal_of, start_again
from golf.launch.sweep.watch import Watch
from golf.launch.work import retry
from golf.runs.seal import identity
from golf.runs.store import Run
from golf.train.out_of_memory import OutOfMemory
from tests.unit.test_watch import DONE, Script, Told


def left(directory: Path, wished: bool = True, micro_tokens: int | None = None) -> dict[str, Any]:
    """A run's folder whose attempt of 4,096 tokens a pass failed; its config."""
    runtime = {"nproc": 1, "micro_tokens": micro_tokens, "retry_out_of_memory": wished}
    directory.mkdir()
    (directory / "config.yaml").write_text(yaml.safe_dump({"seed": 1, "runtime": runtime}))
    (directory / "result.json").write_text(json.dumps({"status": "failed", "error": "out of memory: here"}))
    retry.note(directory, OutOfMemory("out of memory: here\nmore", 4096, 2048))
    return Run(directory).config


def test_what_would_fit_is_set_once(tmp_path: Path) -> None:
    before = left(tmp_path / "run")
    line = retry.follow(tmp_path / "run")
    assert line == "4,096 tokens a pass did not fit into memory: starts again with runtime.micro_tokens=2048"
    after = Run(tmp_path / "run").config
    assert after == {**before, "runtime": {**before["runtime"], "micro_tokens": 2048}}
    assert identity(after) == identity(before)  # so it goes on from its checkpoint, and a sweep knows it
    assert retry.follow(tmp_path / "run") is None


def test_each_attempt_is_told_of_once_and_smaller_than_the_last(tmp_path: Path) -> None:
    left(tmp_path / "run")
    retry.note(tmp_path / "run", OutOfMemory("another worker", 4096, 2048))
    retry.note(tmp_path / "run", OutOfMemory("no less fits", 2048, None))
    retry.note(tmp_path / "run", OutOfMemory("out of memory: again", 2048, 1024))
    told = [(one["tokens"], one["micro_tokens"], one["error"]) for one in retry.attempts(tmp_path / "run")]
    assert told == [(4096, 2048, "out of memory: here"), (2048, 1024, "out of memory: again")]


def test_nobody_wished_it(tmp_path: Path) -> None:
    left(tmp_path / "run", wished=False)
    assert retry.follow(tmp_path / "run") is None


@pytest.mark.parametrize("text", ["{", "[1]", '[{"tokens": 4096}]', '[{"tokens": true, "micro_tokens": -1}]', "{}"])
def test_a_file_of_somebody_else_s_is_nothing(text: str, tmp_path: Path) -> None:
    left(tmp_path / "run")
    (tmp_path / "run" / "retried.json").write_text(text)
    assert (retry.attempts(tmp_path / "run"), retry.follow(tmp_path / "run")) == ([], None)


def test_a_sweep_s_job_waits_for_another_start_with_its_seal_anew(tmp_path: Path) -> None:
    job = SweepJob(0, [], left(tmp_path / "0"), tmp_path / "0", state="running", seal=seal_of(tmp_path / "0"))
    display, written = Told(), list[int]()

    def write(one: SweepJob) -> None:
        written.append(Run(one.directory).config["runtime"]["micro_tokens"])

    def completes() -> None:
        (tmp_path / "0" / "result.json").write_text(json.dumps({"status": "completed", "valid": True}))

    job.state = "waiting"
    Watch(Script({0: DONE}, completes, {0: DONE}), display, write).run([job])
    assert (job.state, written[-1], job.goes_on, job.lost) == ("completed", 2048, True, "")
    assert display.lines == ["job 0: 4,096 tokens a pass did not fit into memory: starts again with "
                             "runtime.micro_tokens=2048"]  # fmt: skip


def test_a_job_whose_folder_is_another_s_is_left_as_it_is(tmp_path: Path) -> None:
    job = SweepJob(0, [], left(tmp_path / "0"), tmp_path / "0", state="running", seal="another")
    assert (start_again(job), job.state) == ("", "running")
