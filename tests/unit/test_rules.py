"""The field's rules as rows: what a record and its proof say of each."""

from __future__ import annotations

from typing import Any

import pytest

from golf.runs.rules import compared, rules

RECORD: dict[str, Any] = {
    "bytes": {"artifact": 15_900_000, "limit": 16_000_000, "code_is": "packed"},
    "budget": {"train_seconds": 600.0, "eval_seconds": 600.0},
    "train_time_s": 599.0,
    "evals": [{"stage": "quantized", "seconds": 90.0}],
    "proof": {"proved": ["causal", "once each"], "not_checked": ["sums to one (over 5 s; golf check takes its time)"]},
    "data": {
        "disjoint": "checked: all",
        "byte_proof": {"proved": True, "documents": 9},
        "tokenizer_training": "unknown",
    },
}


def states(**changes: Any) -> dict[str, str]:
    return {one.rule: one.state for one in rules({**RECORD, **changes})}


def test_what_was_not_looked_at_has_not_passed() -> None:
    found = {one.rule: one for one in rules(RECORD)}
    assert found["no prediction sees later text"].state == found["seconds of evaluation"].state == "pass"
    assert found["probabilities sum to 1"].state == "not run"
    assert "golf check takes its time" in found["probabilities sum to 1"].told
    assert found["the artifact alone gives the figure"].told == "golf check run=DIR looks"
    assert found["the tokenizer saw no validation text"].state == "not run"


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("bytes of artifact and code", {"bytes": {"artifact": 16_000_001, "limit": 16_000_000}}),
        ("seconds of training and calibration",
         {"violations": ["training took 640.0 s, 40.0 s over the limit of 600 s"]}),
        ("seconds of evaluation",
         {"violations": ["the sliding evaluation took 700.0 s, 100.0 s over the limit of 600 s"]}),
        ("no prediction sees later text", {"proof": {"broken": {"causal": "technique/x: it looks ahead"}}}),
        ("no validation document is training text",
         {"data": {**RECORD["data"], "texts_apart": {"train": 20, "val": 9, "both": 1, "repeated": 0}}}),
        ("no validation document is training text", {"data": {**RECORD["data"], "copies_in_training": 1}}),
    ],
)  # fmt: skip
def test_what_is_broken_fails_alone(rule: str, changes: dict[str, Any]) -> None:
    before, after = states(), states(**changes)
    assert before[rule] == "pass"
    assert {name for name, state in after.items() if state == "fail"} == {rule}


def test_what_proves_that_training_and_validation_are_apart_is_told() -> None:
    def row(**data: Any) -> tuple[str, str]:
        found = {one.rule: one for one in rules({**RECORD, "data": {**RECORD["data"], **data}})}
        return found["no validation document is training text"][1:]

    texts = {"train": 20_000, "val": 9, "both": 0, "repeated": 3}
    said = "all; of 20,000 training and 9 validation texts 0 are in both, by their hashes"
    assert row(texts_apart=texts, overlap={"share": 0.01}) == ("pass", f"{said}; near copies: 1.0% of a sample")
    assert row(disjoint="not checked as text: made elsewhere") == ("not run", "made elsewhere")
    state, said = row(source="fineweb", copies_in_training=2)  # the challenge's own are what they are
    assert state == "pass"
    assert "2 training documents are validation documents" in said


def scored(bpb: float = 1.2, text: str = "a", stride: int = 64) -> dict[str, Any]:
    one = {"stage": "quantized", "method": "sliding", "stride": stride, "seq_len": 1024, "coverage": "full",
           "targets": 99, "bytes": 220, "val_bpb": bpb}  # fmt: skip
    data = {"source_hash": text, "tokenizer_hash": "t", "splits": {"val": {"text_sha256": text}}}
    return {"evals": [one], "val_bpb": {"final": bpb}, "data": data}


def test_only_what_is_scored_alike_is_of_the_same_text() -> None:
    alike, other = [scored(1.3), scored(1.4)], [scored(1.3), scored(text="b")]

    def state(others: list[dict[str, Any]], named: bool) -> str | None:
        found = compared(scored(), others, "they", named)
        return None if found is None else found.state

    assert [state(alike, named) for named in (False, True)] == ["pass", "pass"]
    assert [state(other, named) for named in (False, True)] == ["not run", "fail"]
    assert [state([scored(stride=32)], named) for named in (False, True)] == ["not run", "fail"]
    assert [state([], named) for named in (False, True)] == [None, "not run"]
    assert [state([{}], named) for named in (False, True)] == [None, "not run"]
    assert rules(RECORD)[-1].state == "not run"
    assert rules(RECORD, compared(scored(), alike, "they", True))[-1].told.startswith("they: 2 scored as this one is")
