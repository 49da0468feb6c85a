"""The words for what becomes of a run: one for each status and validity, and what an invalid one is over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from golf.common.errors import EvaluationTooLong
from golf.launch.sweep.job import note
from golf.runs.record import Budget, Bytes, EvalRecord, Result
from golf.runs.states import ENDED, SCORED, STATES, Status, over, state_of, verdict
from golf.runs.store import Run


@pytest.mark.parametrize(
    ("status", "valid", "state"),
    [
        ("completed", True, "completed"),
        ("completed", False, "invalid"),
        ("interrupted", False, "interrupted"),
        ("failed", False, "failed"),
        ("running", False, "running"),
        ("prepared", False, "prepared"),
        ("invalid", False, "failed"),
        ("done", True, "failed"),
    ],
)
def test_status_and_validity_are_one_word(status: str, valid: bool, state: str) -> None:
    assert state_of(status, valid) == state


def test_a_run_that_a_search_gave_up_is_pruned(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps({"status": "interrupted", "error": None}))
    run = Run(tmp_path)
    assert run.state == "interrupted"
    note(tmp_path, "not among the best 1/3 there")
    assert Run(tmp_path).state == "pruned"
    assert Run(tmp_path).record["error"] == "pruned: not among the best 1/3 there"


def test_every_status_of_a_record_is_a_state() -> None:
    assert set(get_args(Status)) < set(STATES)
    assert set(SCORED) < set(ENDED) < set(STATES)


def test_each_limit_that_a_record_names_is_told() -> None:
    score: dict[str, Any] = {"stride": 64, "seq_len": 8, "val_loss": 1, "val_bpb": 1, "targets": 1, "bytes": 1}
    found = Result.from_parts(
        status="completed", steps=1, train_time_s=9.0, bytes=Bytes.count(20, 1, 10, {"embed": 20}),
        evals=[EvalRecord(stage="quantized", method="sliding", seconds=9, **score)],
        budget=Budget(name="b", bound="wall", train_seconds=1.0, eval_seconds=1.0, artifact_bytes=10),
    )  # fmt: skip
    assert over(found.violations) == "over artifact bytes, training time, evaluation time"
    assert [over([sentence]) for sentence in found.violations] == [
        "over artifact bytes", "over training time", "over evaluation time",
    ]  # fmt: skip


def test_an_evaluation_that_was_stopped_is_over_its_time() -> None:
    assert over([str(EvaluationTooLong("sliding", 20.0, 10.0, 1.0)).splitlines()[0]]) == "over evaluation time"


def test_a_verdict_says_what_an_invalid_run_is_over() -> None:
    assert verdict("invalid", ["the artifact is 11 bytes, 1 over the limit of 10"]) == "invalid: over artifact bytes"
    assert verdict("invalid", ["bpb was refused"]) == "invalid: bpb was refused"
    assert verdict("invalid", []) == "invalid: over a limit"
    assert verdict("completed", []) == "completed"
