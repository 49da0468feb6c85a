"""Limits of time, and evaluations that are cut short and go on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from golf.common.errors import EvaluationTooLong
from golf.common.ranks import Ranks
from golf.evals.evaluators import Evaluator, Validation
from golf.evals.pace import Pace, Partial, Tally
from golf.tokenizers.byte_table import ByteTable

TABLE = ByteTable(np.arange(13) % 4 + 1, np.arange(13) % 2 == 0, np.arange(13) < 2)
IDS = torch.from_numpy(np.random.default_rng(0).integers(0, 13, 500))
EVALUATOR = Evaluator(16, 4, batch_tokens=16)


class Counting:
    """A scorer that is interrupted at a chosen call."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.calls, self.stop_at = 0, stop_at

    def __call__(self, x: Tensor, y: Tensor, *, reduction: str) -> Tensor:
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        self.calls += 1
        return ((x.cumsum(1)[:, x.shape[1] - y.shape[1] :] * 31 + y * 7) % 101).float() / 7


def pace(limit_s: float | None, batches: int = 100) -> Pace:
    return Pace("sliding", [1.0] * batches, Ranks(), limit_s, lambda: None)


@pytest.mark.parametrize("batches", [1, 7, 50, 51, 1000])
def test_looks_are_few_and_begin_after_two_percent(batches):
    looks = [done for done in range(1, batches + 1) if pace(None, batches).due(done)]
    assert len(looks) <= 50
    assert all(look < batches for look in looks)
    if batches >= 50:
        assert looks[0] == -(-batches // 50)


def test_a_first_batch_of_little_work_is_not_projected_from():
    """The first window of a stream is a batch of its own, and tells nothing of the others' pace."""
    watched = Pace("sliding", [0.001, *[1.0] * 20], Ranks(), None, lambda: None)
    assert [done for done in range(1, 22) if watched.due(done)] == list(range(2, 21))


def test_the_projection_is_told_once(caplog):
    watched = pace(600.0)
    with caplog.at_level("INFO", "golf"):
        watched.look(2, lambda: 3.0)
        watched.look(4, lambda: 6.0)
    assert [r.getMessage() for r in caplog.records] == [
        "sliding: 2 % after 3.0 s, about 150 s in all, of 600 s allowed"
    ]


def test_short_evaluations_are_not_announced(caplog):
    with caplog.at_level("INFO", "golf"):
        pace(600.0).look(2, lambda: 0.01)
    assert not caplog.records


def test_a_projection_far_over_the_limit_stops_from_a_tenth_on():
    watched = pace(100.0)
    watched.look(2, lambda: 4.0)  # 200 s in all, but a first guess
    with pytest.raises(EvaluationTooLong, match=r"about 200\.0 s, over the limit of 100 s .*stopped after 20\.0 s"):
        watched.look(10, lambda: 20.0)


def test_a_projection_just_over_the_limit_stops_before_the_limit():
    watched = pace(100.0)
    watched.look(50, lambda: 52.0)
    watched.look(94, lambda: 97.0)
    with pytest.raises(EvaluationTooLong):
        watched.look(96, lambda: 99.0)


def test_within_the_limit_nothing_stops():
    watched = pace(100.0)
    for done in range(2, 100, 2):
        watched.look(done, lambda done=done: 0.99 * done)


def test_an_evaluation_over_its_limit_is_stopped():
    with pytest.raises(EvaluationTooLong, match="the sliding evaluation would take"):
        EVALUATOR.evaluate(Counting(), Validation(IDS, TABLE), Ranks(), limit_s=1e-9)


@pytest.mark.parametrize("stop_at", [1, 60, 121])
def test_an_interrupted_evaluation_goes_on_to_the_same_bits(tmp_path, stop_at):
    partial = Partial(tmp_path / ".partial.npz")
    validation = Validation(IDS, TABLE)
    kept, whole_nll = torch.full((500,), torch.nan), torch.full((500,), torch.nan)
    whole = EVALUATOR.evaluate(Counting(), validation, Ranks(), nll=whole_nll)
    with pytest.raises(KeyboardInterrupt):
        EVALUATOR.evaluate(Counting(stop_at), validation, Ranks(), partial=partial, nll=kept)
    assert partial.path.exists()
    second, kept = Counting(), torch.full((500,), torch.nan)
    resumed = EVALUATOR.evaluate(second, validation, Ranks(), partial=partial, nll=kept)
    assert second.calls == 122 - stop_at
    assert (resumed.val_loss, resumed.targets, resumed.bytes) == (whole.val_loss, whole.targets, whole.bytes)
    assert torch.equal(kept[1:], whole_nll[1:])
    assert not partial.path.exists()


def test_an_interruption_before_the_first_batch_leaves_nothing(tmp_path):
    partial = Partial(tmp_path / ".partial.npz")
    with pytest.raises(KeyboardInterrupt):
        EVALUATOR.evaluate(Counting(0), Validation(IDS, TABLE), Ranks(), partial=partial)
    assert not partial.path.exists()


def test_a_broken_file_is_passed_over(tmp_path, caplog):
    partial = Partial(tmp_path / ".partial.npz")
    partial.path.write_bytes(b"PK\x03\x04 cut")
    fresh = Tally(torch.zeros(3, dtype=torch.float64))
    assert partial.load(fresh, 122) is fresh
    assert "is no unfinished evaluation" in caplog.text


def test_what_was_cut_into_other_batches_begins_anew(tmp_path):
    partial, validation = Partial(tmp_path / ".partial.npz"), Validation(IDS, TABLE)
    with pytest.raises(KeyboardInterrupt):
        EVALUATOR.evaluate(Counting(9), validation, Ranks(), partial=partial)
    larger, scorer = Evaluator(16, 4, batch_tokens=64), Counting()
    whole = larger.evaluate(Counting(), validation, Ranks())
    assert larger.evaluate(scorer, validation, Ranks(), partial=partial).val_loss == whole.val_loss
    assert scorer.calls == 32
