"""Which figures of runs may be compared, and what stands in a table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from golf.runs.figures import BY_METHOD, FINAL, POST_QUANT, SLIDING, Basis, basis, filled, kinds, named, says_more

ONE = Basis("sliding", 64, 1024, "full", "a" * 64, (28, 5000), "sp1024", 1000, 2400)


def record(method: str = "lora_ttt", bpb: float = 1.2) -> dict[str, Any]:
    facts = {"seq_len": 128, "stride": 128, "coverage": "full", "targets": 512, "bytes": 900}
    evals = [{"stage": "quantized", "method": "contiguous", "val_bpb": 1.3, **facts},
             {"stage": "quantized", "method": method, "val_bpb": bpb, **facts}]  # fmt: skip
    data = {"source_hash": "s", "tokenizer_hash": "t", "splits": {"val": {"documents": 3, "bytes": 901}}}
    return {"val_bpb": {"post_quant": 1.3}, "evals": evals, "data": data}


@pytest.mark.parametrize(
    "change",
    [{"method": "document"}, {"stride": 32}, {"seq_len": 512}, {"coverage": "seed_s2"}, {"targets": 999}, {"bytes": 1},
     {"source": "b", "text": (28, 5001)}, {"tokenizer": "byte", "bytes": 1200}, {"stage": "averaged"}],
    ids=str,
)  # fmt: skip
def test_other_text_or_other_rules_are_another_kind(change: dict[str, Any]) -> None:
    assert not ONE.compares(replace(ONE, **change))
    assert kinds([ONE, replace(ONE, **change), None, ONE]) == [0, 1, None, 0]


@pytest.mark.parametrize(
    "change",
    [{"source": "other training text"}, {"tokenizer": "sp4096", "targets": 700, "bytes": 2398}],
    ids=str,
)  # fmt: skip
def test_one_text_in_other_tokens_or_beside_other_training_text_compares(change: dict[str, Any]) -> None:
    assert ONE.compares(replace(ONE, **change))


def test_a_figure_is_of_the_evaluation_that_gave_it() -> None:
    one = filled(record())
    assert (basis(one, FINAL), basis(one, POST_QUANT)) == (basis(one, f"{BY_METHOD}lora_ttt"), basis(one, POST_QUANT))
    assert [basis(one, name).method for name in (FINAL, POST_QUANT)] == ["lora_ttt", "contiguous"]  # type: ignore[union-attr]
    assert basis(one, "bytes.artifact") is None
    assert named(one) == [f"{BY_METHOD}lora_ttt"]


def test_the_final_figure_stands_apart_only_where_it_is_no_other() -> None:
    assert not says_more({FINAL: [1.0, 1.1], SLIDING: [1.0, 1.1], POST_QUANT: [1.2, 1.2]})
    assert says_more({FINAL: [1.0, 1.2], SLIDING: [1.0, 1.1], POST_QUANT: [1.3, 1.2]})


def test_the_validation_text_is_known_by_its_hash_where_a_record_has_it() -> None:
    one, other = record(), record()
    for number, changed in enumerate((one, other)):
        changed["data"] = {**changed["data"], "source_hash": str(number)}
    assert kinds([basis(filled(made), FINAL) for made in (one, other)]) == [0, 0]  # as much text: all that was kept
    for number, changed in enumerate((one, other)):
        changed["data"]["splits"] = {"val": {"documents": 3, "bytes": 901, "text_sha256": str(number)}}
    assert kinds([basis(filled(made), FINAL) for made in (one, other)]) == [0, 1]


def test_averaged_and_unaveraged_weights_compare_and_quantized_ones_do_not() -> None:
    assert replace(ONE, stage="averaged").compares(replace(ONE, stage="stop"))


def test_a_broken_record_is_left_as_it_is() -> None:
    broken = {"val_bpb": {"post_quant": 1.0}, "evals": [3]}
    assert filled(broken) is broken
