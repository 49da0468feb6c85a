"""Where the bits go: classes, groups whose parts sum to the whole, and the report's text."""

from __future__ import annotations

import math

import numpy as np
import pytest

from golf.evals.detail import CLASSES, Detail, token_classes
from golf.evals.evaluators import Score
from golf.evals.report import write_report
from golf.tokenizers.byte260 import Byte260

TOKENIZER = Byte260()
TEXTS = ["It was 1984, naïve me. " * 9, "x" * 70, "42" * 200, "a"]


def ids(texts: list[str]) -> np.ndarray:
    parts = [np.append([1], part) for part in TOKENIZER.encode_batch(texts)]
    return np.concatenate(parts).astype(np.int64)


def detail(gap: float | None = None) -> Detail:
    stream = ids(TEXTS)
    nll = np.random.default_rng(0).random(len(stream)).astype(np.float32)
    nll[0] = np.nan
    before = None if gap is None else nll - np.float32(gap)
    return Detail.of(stream, nll, np.arange(len(stream), dtype=np.int32) % 50 + 1, TOKENIZER, before)


def test_classes_of_bytes():
    kinds = token_classes(ids(["Hé 7a, b", ""]), TOKENIZER, TOKENIZER.byte_table())
    assert [CLASSES[k] for k in kinds] == [
        "document end", "word start", "byte fallback", "byte fallback", "other", "number", "word start", "other",
        "other", "word start", "document end",
    ]  # fmt: skip


def test_bytes_charged_are_the_texts():
    assert detail().charged.sum() == sum(len(text.encode()) for text in TEXTS)


def test_a_document_owns_its_tokens_and_the_end_that_follows():
    found = detail()
    assert np.bincount(found.document[1:]).tolist() == [len(t.encode()) + (t != TEXTS[-1]) for t in TEXTS]


@pytest.mark.parametrize("by", ["by_class", "by_context", "by_length"])
def test_groups_sum_to_the_whole(by):
    found = detail(gap=0.25)
    rows = getattr(found, by)()
    targets, size = len(found.ids) - 1, int(found.charged.sum())
    assert sum(row.targets for row in rows) == targets
    assert sum(row.bytes for row in rows) == size
    assert sum(row.share for row in rows) == pytest.approx(1.0)
    assert sum(row.loss * row.targets for row in rows) == pytest.approx(float(np.nansum(found.nll)), rel=1e-6)
    assert sum(row.gap for row in rows) == pytest.approx(0.25 / math.log(2) * targets / size, rel=1e-5)


def test_groups_are_named_by_powers_of_two():
    assert [row.name for row in detail().by_context()] == ["1", "2–3", "4–7", "8–15", "16–31", "32–63"]


def test_what_stands_for_no_bytes_has_no_bpb():
    (end,) = [row for row in detail().by_class() if row.name == "document end"]
    assert (end.bytes, end.bpb, end.gap) == (0, None, None)


def test_extremes_leave_out_documents_of_a_few_bytes():
    worst, best = detail().extremes()
    assert {number for number, _ in worst} == {0, 1, 2}
    assert worst == best[::-1]
    assert worst[0][1].bpb == max(row.bpb for _, row in worst)


def test_beginnings_stop_at_the_documents_end():
    found = detail()
    assert found.beginning(0, TOKENIZER).startswith("It was 1984, naïve me. It was")
    assert found.beginning(3, TOKENIZER) == "a"


def test_the_report_holds_tables_documents_and_losses(tmp_path):
    found = detail(gap=0.1)
    score = Score("document", 16, 64, "full", 0.5, 0.75, len(found.ids) - 1, int(found.charged.sum()), 2.0, 1e9)
    told = write_report(tmp_path / "report", "a run, quantized weights", score, found, TOKENIZER).read_text()
    assert told.startswith("# a run, quantized weights")
    assert "| number |" in told
    assert "| token class | targets | bytes | nats / token | bpb | share | gap |" in told
    assert "`xxxxx" in told
    with np.load(tmp_path / "report" / "tokens.npz", allow_pickle=False) as file:
        assert sorted(file) == ["context", "document", "ids", "nll", "nll_before"]
        assert np.allclose(file["nll"][1:], found.nll[1:], atol=1e-3)
