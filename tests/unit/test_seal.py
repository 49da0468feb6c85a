"""A record and the files beside it: sealed together, and what is said when a part is another."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from golf.launch.sweep.job import note
from golf.runs.listing import runs_table
from golf.runs.record import Bytes, EvalRecord, Result
from golf.runs.report import gather, tables
from golf.runs.seal import is_sealed
from golf.runs.store import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A finished run's folder."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed": 1}))
    (folder / "overrides.yaml").write_text("[]")
    (folder / "metrics.jsonl").write_text('{"step": 1, "val_bpb": 1.4}\n')
    (folder / "artifact.golf").write_bytes(b"GOLF of a kind")
    facts = {"seq_len": 8, "val_loss": 1, "targets": 9, "bytes": 20, "seconds": 1}
    evals = [
        EvalRecord(stage="averaged", method="contiguous", val_bpb=1.3, **facts),
        EvalRecord(stage="quantized", method="contiguous", val_bpb=1.31, **facts),
        EvalRecord(stage="quantized", method="sliding", stride=4, val_bpb=1.27, **facts),
    ]
    counted = Bytes.count(model=14, code=3, limit=100)
    Result.from_parts(
        status="completed", steps=1, train_time_s=1.0, evals=evals, bytes=counted, method="sliding"
    ).write(folder / "result.json")
    return Run(folder)


def edited(run: Run, change: Callable[[dict[str, Any]], Any]) -> Run:
    record = json.loads(run.folder.result.read_text())
    change(record)
    run.folder.result.write_text(json.dumps(record))
    return Run(run.dir)


def test_a_run_as_it_was_written_agrees(run: Run) -> None:
    assert is_sealed(run.record)
    assert run.disagreements(whole=True) == []
    assert set(run.record["seal"]) == {"record", "config.yaml", "metrics.jsonl", "artifact.golf"}


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "artifact.golf"])
def test_a_file_that_is_another_is_named(run: Run, name: str) -> None:
    path = run.dir / name
    path.write_bytes(path.read_bytes()[:-2] + b"?\n")  # as long as it was
    os.utime(path, ns=(1 << 62, 1 << 62))
    assert Run(run.dir).disagreements() == [f"{name}: is not the one that result.json speaks of"]
    path.unlink()
    assert Run(run.dir).disagreements() == [f"{name}: is gone"]


def test_an_artifact_of_the_same_size_and_an_older_time_is_found_when_it_is_read(run: Run) -> None:
    run.folder.artifact.write_bytes(b"GOLF in disguise"[:14])
    os.utime(run.folder.artifact, ns=(1, 1))
    assert run.disagreements() == []
    assert run.disagreements(whole=True) == ["artifact.golf: is not the one that result.json speaks of"]


@pytest.mark.parametrize("figure", ["pre_quant", "post_quant", "sliding", "final"])
def test_an_edited_figure_has_no_evaluation_behind_it(run: Run, figure: str) -> None:
    told = edited(run, lambda record: record["val_bpb"].update({figure: 1.0})).disagreements()
    assert told[0] == f"result.json: no evaluation in it gave val_bpb.{figure} (1.0)"
    assert told[1] == "result.json: has changed since golf wrote it"


def test_an_edited_evaluation_is_found_by_the_seal(run: Run) -> None:
    def lower(record: dict[str, Any]) -> None:
        record["evals"][2]["val_bpb"] = record["val_bpb"]["sliding"] = record["val_bpb"]["final"] = 1.0
        record["val_bpb"]["by_method"]["sliding"] = 1.0

    assert edited(run, lower).disagreements() == ["result.json: has changed since golf wrote it"]


def test_an_older_record_is_unsealed_and_nothing_is_wrong_with_it(run: Run) -> None:
    older = edited(run, lambda record: record.pop("seal"))
    assert not is_sealed(older.record)
    assert older.disagreements(whole=True) == []


def test_what_golf_itself_adds_to_a_record_keeps_its_seal(run: Run) -> None:
    note(run.dir, "not among the best")
    assert Run(run.dir).record["error"].endswith("not among the best")
    assert Run(run.dir).disagreements(whole=True) == []
    edited(run, lambda record: record.update(steps=7))
    note(run.dir, "again")
    assert Run(run.dir).disagreements() == ["result.json: has changed since golf wrote it"]


def test_tables_and_report_mark_an_altered_record(run: Run) -> None:
    def shown(run: Run) -> str:
        console = Console(file=io.StringIO(), width=250)
        for table in (runs_table([run]), *tables(gather([run]))):
            console.print(table)
        return str(console.file.getvalue())  # type: ignore[attr-defined]

    assert "altered" not in shown(run)
    told = shown(edited(run, lambda record: record["val_bpb"].update(sliding=1.0)))
    assert "a record that is altered does not agree with its parts" in told
    assert "record altered: result.json: no evaluation in it gave val_bpb.sliding (1.0)" in told
