"""What a sweep shows: how far a job is, and the closing table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from golf.launch.board import Board, closing_table
from golf.launch.pool import Job

CONFIG: dict[str, Any] = {
    "schedule": {"iterations": 10, "clock": "steps"},
    "budget": {"train_seconds": None},
    "runtime": {"nproc": 1},
}


def ended(folder: Path, number: int, **val_bpb: float) -> Job:
    directory = folder / str(number)
    directory.mkdir()
    (directory / "result.json").write_text(json.dumps({"val_bpb": val_bpb, "steps": 10}))
    return Job(number, [f"seed={number}"], CONFIG, directory, "completed")


@pytest.mark.parametrize(("sliding", "columns"), [({}, 1), ({"sliding": 1.1}, 2)])
def test_the_sliding_figure_stands_beside_the_metric_where_there_is_one(
    tmp_path: Path, sliding: dict[str, float], columns: int
) -> None:
    jobs = [ended(tmp_path, 0, post_quant=1.3), ended(tmp_path, 1, post_quant=1.2, **sliding)]
    table = closing_table(jobs, "val_bpb.post_quant")
    headers = [str(column.header) for column in table.columns]
    assert headers[3 : 3 + columns] == ["val_bpb.post_quant", "val_bpb.sliding"][:columns]
    assert list(table.columns[0].cells) == ["1", "0"]
    assert list(table.columns[2 + columns].cells) == (["1.1000", ""] if sliding else ["1.2000", "1.3000"])


def test_a_job_that_is_done_shows_its_result_and_not_its_last_validation(tmp_path: Path) -> None:
    job = ended(tmp_path, 0, post_quant=1.2)
    (job.directory / "metrics.jsonl").write_text(json.dumps({"step": 0, "val_bpb": 7.9}) + "\n")
    assert Board(live=False).figures(job)[3] == "bpb 1.2000"


@pytest.mark.parametrize(("step", "said"), [(None, "starting"), (5, "left 2 s"), (10, "finishing")])
def test_a_running_job_says_what_is_left_of_it(tmp_path: Path, step: int | None, said: str) -> None:
    row = {"step": step, "train_loss": 2.0, "train_time_s": 2.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n" if step else "")
    job = Job(0, [], CONFIG, tmp_path, "running")
    assert Board(live=False).figures(job)[-1] == said


def test_an_invalid_run_stands_behind_the_valid_ones_whatever_its_score(tmp_path: Path) -> None:
    jobs = [ended(tmp_path, number, post_quant=bpb) for number, bpb in enumerate((1.0, 1.3, 1.2))]
    for job, valid in zip(jobs, (False, True, True)):
        path = job.directory / "result.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "status": "completed", "valid": valid}))
    assert list(closing_table(jobs, "val_bpb.post_quant").columns[0].cells) == ["2", "1", "0"]
