"""What a sweep shows: how far a job is, and the closing table."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from golf.launch.sweep.board import Board, Settings, closing_table
from golf.launch.sweep.job import SweepJob
from golf.runs.tables import Table

CONFIG: dict[str, Any] = {
    "schedule": {"iterations": 10, "clock": "steps"},
    "budget": {"train_seconds": None},
    "runtime": {"nproc": 1},
}


def ended(folder: Path, number: int, **val_bpb: float) -> SweepJob:
    directory = folder / str(number)
    directory.mkdir()
    (directory / "result.json").write_text(json.dumps({"val_bpb": val_bpb, "steps": 10}))
    return SweepJob(number, [f"seed={number}"], CONFIG, directory, "completed")


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
    job = SweepJob(0, [], CONFIG, tmp_path, "running")
    assert Board(live=False).figures(job)[-1] == said


def test_an_invalid_run_stands_behind_the_valid_ones_whatever_its_score(tmp_path: Path) -> None:
    jobs = [ended(tmp_path, number, post_quant=bpb) for number, bpb in enumerate((1.0, 1.3, 1.2))]
    for job, valid in zip(jobs, (False, True, True)):
        path = job.directory / "result.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "status": "completed", "valid": valid}))
    assert list(closing_table(jobs, "val_bpb.post_quant").columns[0].cells) == ["2", "1", "0"]


def test_jobs_scored_by_other_rules_stand_apart_and_say_so(tmp_path: Path) -> None:
    jobs = [ended(tmp_path, number, post_quant=bpb) for number, bpb in enumerate((1.0, 1.3, 1.2))]
    for job, seq_len in zip(jobs, (64, 128, 128)):
        path = job.directory / "result.json"
        one = {"stage": "quantized", "method": "contiguous", "seq_len": seq_len, "targets": 9, "bytes": 20}
        path.write_text(json.dumps({**json.loads(path.read_text()), "evals": [one]}))
    table = closing_table(jobs, "val_bpb.post_quant")
    assert list(table.columns[0].cells) == ["2", "1", "0"]
    (column,) = (one for one in table.columns if str(one.header) == "scored by")
    assert list(column.cells)[-1] == "contiguous, 64 tokens, 20 bytes of text"


SWEPT = [
    "optimizer.matrix_lr=0.0234", "seed=1", "model.num_layers=11", "optimizer.momentum_warmup_steps=1500",
    "tokenizer=sp2048", "schedule.warmdown_frac=0.4321",
]  # fmt: skip


def wide_jobs(folder: Path) -> list[SweepJob]:
    """Two jobs that differ in six settings; the second one is better, but over the limit."""
    jobs = [ended(folder, 0, post_quant=1.3001, sliding=1.2002), ended(folder, 1, post_quant=1.2003, sliding=1.1004)]
    for job, invalid in zip(jobs, (False, True)):
        job.overrides = SWEPT if job.number else [word.partition("=")[0] + "=0" for word in SWEPT]
        record = json.loads((job.directory / "result.json").read_text())
        (job.directory / "result.json").write_text(json.dumps({**record, "valid": not invalid, "train_time_s": 600.0}))
        if invalid:
            job.state, job.error = "invalid", f"the artifact in {folder} is over the limit"
    return jobs


def drawn(table: Table, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(table, crop=False)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_closing_table_holds_every_swept_value_and_whole_scores(tmp_path: Path, width: int) -> None:
    jobs = wide_jobs(tmp_path)
    lines = drawn(closing_table(jobs, "val_bpb.post_quant"), width).splitlines()
    note = f"job 1 invalid: the artifact in {tmp_path} is over the limit"
    assert note in lines, "what went wrong is not folded: it may hold a path"
    assert max(len(line) for line in lines if line != note) <= width
    for word in SWEPT:
        assert any(word.partition("=")[2] in line for line in lines)
    assert any(" 1.3001" in line for line in lines)


def test_what_is_over_a_limit_stands_behind_what_is_valid(tmp_path: Path) -> None:
    table = closing_table(wide_jobs(tmp_path), "val_bpb.post_quant")
    assert table.columns[0].cells == ["0", "1"]


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_live_table_fits_the_screen_and_shows_what_is_swept(tmp_path: Path, width: int) -> None:
    jobs = wide_jobs(tmp_path)
    jobs += [SweepJob(n, [*SWEPT[1:], f"optimizer.matrix_lr={n}"], CONFIG, tmp_path / str(n)) for n in range(2, 60)]
    lines = drawn(Board(live=False).table(jobs, height=30, width=width), width).splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) < 30
    assert any("0.0234" in line for line in lines)
    assert any("1.3001" in line for line in lines)


def test_a_key_that_a_job_adds_or_takes_away_is_a_column(tmp_path: Path) -> None:
    jobs = [SweepJob(n, words, CONFIG, tmp_path) for n, words in enumerate((["~qat", "a=1"], ["+model.x=2", "a=1"]))]
    told = Settings(jobs)
    assert told.keys == ["qat", "model.x"]
    assert [told.of(job) for job in jobs] == [["~", ""], ["", "2"]]
