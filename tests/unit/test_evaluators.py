"""Evaluators against a naive loop, with a scorer whose answer depends on all of a window's context."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from golf.common.errors import ConfigError, DataError
from golf.common.ranks import Ranks
from golf.evals.evaluators import Evaluator, Validation
from golf.evals.windows import plan_windows
from golf.tokenizers.byte_table import ByteTable

VOCAB = 13
RNG = np.random.default_rng(3)
TABLE = ByteTable(RNG.integers(0, 9, VOCAB), RNG.random(VOCAB) < 0.5, RNG.random(VOCAB) < 0.3)


class Scorer:
    """nll from the running sum of the inputs and the target; remembers the shapes that it was called with."""

    def __init__(self) -> None:
        self.shapes: set[tuple[int, ...]] = set()

    def __call__(self, x: Tensor, y: Tensor, *, reduction: str) -> Tensor:
        assert reduction == "none"
        score_from = x.shape[1] - y.shape[1]
        self.shapes.add((*x.shape, score_from))
        return ((x.cumsum(1)[:, score_from:] * 31 + y * 7) % 101).float() / 10


def stream(tokens: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(tokens).integers(0, VOCAB, tokens))


def naive(tokens: Tensor, seq_len: int, stride: int, coverage: str) -> tuple[float, int, int]:
    """Loss sum, targets and bytes, target by target."""
    ids = tokens.tolist()
    plan = plan_windows(len(ids), seq_len, stride, coverage)  # type: ignore[arg-type]
    loss, count, size = 0.0, 0, 0
    for start, first in zip(plan.start.tolist(), plan.first.tolist(), strict=True):
        for position in range(first, seq_len):
            x, y = ids[start + position], ids[start + position + 1]
            loss += np.float32((sum(ids[start : start + position + 1]) * 31 + y * 7) % 101) / np.float32(10)
            count += 1
            size += int(TABLE.base[y]) + int(TABLE.leading_space[y] and not TABLE.boundary[x])
    return loss, count, size


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 12), st.integers(0, 60), st.data(), st.sampled_from(["full", "seed_s2"]), st.integers(1, 64),
    st.booleans(),
)  # fmt: skip
def test_equals_a_naive_loop(seq_len, extra, data, coverage, batch_tokens, fixed_shapes):
    tokens = stream(seq_len + 1 + extra)
    stride = data.draw(st.integers(1, seq_len))
    evaluator = Evaluator(seq_len, stride, coverage, batch_tokens)
    loss, targets, size = naive(tokens, seq_len, stride, coverage)
    if not size:
        return
    score = evaluator.evaluate(Scorer(), Validation(tokens, TABLE), Ranks(), fixed_shapes)
    assert (score.targets, score.bytes) == (targets, size)
    assert score.val_loss == pytest.approx(loss / targets, rel=1e-6)
    assert score.val_bpb == pytest.approx(loss / math.log(2) / size, rel=1e-6)


def test_fixed_shapes_are_few():
    scorer = Scorer()
    Evaluator(16, 4, batch_tokens=64).evaluate(scorer, Validation(stream(200), TABLE), Ranks(), fixed_shapes=True)
    assert scorer.shapes == {(4, 16, 0), (4, 16, 12)}


def test_each_fixed_shape_is_met_once_before_the_first_batch_counts(caplog: pytest.LogCaptureFixture):
    """Kernels are built then, compiled or not; only compiling is told of."""
    scorer, shapes, evaluator = Scorer(), list[tuple[int, ...]](), Evaluator(16, 4, batch_tokens=64)
    validation = Validation(stream(200), TABLE)

    def told(x: Tensor, y: Tensor, *, reduction: str) -> Tensor:
        shapes.append((*x.shape, y.shape[1]))
        return scorer(x, y, reduction=reduction)

    with caplog.at_level("INFO"):
        plain = evaluator.evaluate(told, validation, Ranks())
        batches = len(shapes)
        fixed = evaluator.evaluate(told, validation, Ranks(), fixed_shapes=True)
    assert sorted(shapes[batches : batches + 2]) == [(4, 16, 4), (4, 16, 16)]
    assert len(shapes) == 2 * batches + 2
    assert fixed.val_loss == plain.val_loss
    assert not caplog.records


class Part(Ranks):
    """A rank whose sums stay its own."""

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor


@pytest.mark.parametrize("world", [2, 3, 8])
def test_shares_of_the_ranks_sum_to_the_whole(world):
    evaluator, validation = Evaluator(16, 4), Validation(stream(300), TABLE)
    whole = evaluator.evaluate(Scorer(), validation, Ranks())
    parts = [evaluator.evaluate(Scorer(), validation, Part(rank, world)) for rank in range(world)]
    assert sum(p.targets for p in parts) == whole.targets
    assert sum(p.bytes for p in parts) == whole.bytes
    assert sum(p.val_loss * p.targets for p in parts) == pytest.approx(whole.val_loss * whole.targets, rel=1e-12)


def test_method_follows_the_stride():
    sliding = Evaluator(16, 4, "seed_s2", 64)
    assert (sliding.method, sliding.stride) == ("sliding", 4)
    assert (sliding.contiguous().method, sliding.contiguous().stride) == ("contiguous", 16)
    assert sliding.contiguous().coverage == "seed_s2"
    assert Evaluator(16).method == "contiguous"


def test_score_as_dict_has_the_records_fields():
    score = Evaluator(16, 4).evaluate(Scorer(), Validation(stream(100), TABLE), Ranks()).as_dict()
    assert set(score) == {
        "method", "stride", "seq_len", "coverage", "val_loss", "val_bpb", "targets", "bytes", "seconds", "flops"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"seq_len": 0}, "eval.seq_len=0"), ({"seq_len": 8, "stride": 0}, "eval.stride=0"),
     ({"seq_len": 8, "stride": 9}, "eval.stride=9"), ({"seq_len": 8, "batch_tokens": 0}, "eval.batch_tokens=0")],
)  # fmt: skip
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Evaluator(**settings)


def test_a_stream_of_no_bytes_is_refused():
    silent = ByteTable(np.zeros(VOCAB), np.zeros(VOCAB, bool), np.zeros(VOCAB, bool))
    with pytest.raises(ConfigError, match="no bytes"):
        Evaluator(8).evaluate(Scorer(), Validation(stream(50), silent), Ranks())


def test_a_stream_shorter_than_a_window_is_refused():
    with pytest.raises(DataError, match=r"eval\.seq_len"):
        Evaluator(64).evaluate(Scorer(), Validation(stream(50), TABLE), Ranks())
