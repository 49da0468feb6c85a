"""Windows by documents: what is scored, from which context, and that it equals one document at a time."""

from __future__ import annotations

import functools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from golf.common.errors import ConfigError, DataError
from golf.common.ranks import Ranks
from golf.evals.evaluators import Evaluator, Validation
from golf.evals.windows import document_starts, plan_documents, plan_windows
from golf.nn.models.attention import CausalAttention
from golf.nn.models.gpt import GPT
from golf.nn.models.head import Head
from golf.nn.models.init import Init
from golf.nn.models.mlp import SquaredMLP
from golf.nn.models.position import Rope
from golf.nn.models.residual import Residual, Straight
from golf.nn.numerics import Numerics
from golf.nn.techniques.smear_gate import SmearGate
from golf.nn.techniques.xsa import XSA
from golf.tokenizers.byte_table import ByteTable

BOS, VOCAB = 1, 17
TABLE = ByteTable(np.arange(VOCAB) % 5, np.arange(VOCAB) % 3 == 0, np.arange(VOCAB) < 3)


@st.composite
def streams(draw: st.DrawFn) -> tuple[np.ndarray, int, int]:
    """(ids with documents of any length, seq_len, stride)."""
    sizes = draw(st.lists(st.integers(0, 90), min_size=1, max_size=6))
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    parts = [np.append([BOS], rng.integers(2, VOCAB, size)) for size in sizes]
    ids = np.concatenate(parts)[draw(st.integers(0, 1)) :]
    if len(ids) < 2:
        ids = np.array([BOS, 5])
    seq_len = draw(st.integers(1, 40))
    return ids, seq_len, draw(st.integers(1, seq_len))


@settings(deadline=None)
@given(streams())
def test_every_target_is_scored_once_and_from_its_own_document(stream):
    ids, seq_len, stride = stream
    starts = document_starts(ids, BOS)
    plan = plan_documents(starts, len(ids), seq_len, stride)
    scored: Counter[int] = Counter()
    for start, first, stop in zip(plan.start.tolist(), plan.first.tolist(), plan.stop.tolist(), strict=True):
        assert 0 <= first < stop <= seq_len
        own = starts[starts <= start].max()
        following = starts[starts > own].min(initial=len(ids) - 1)
        assert start + stop <= following
        scored.update(range(start + first + 1, start + stop + 1))
    assert scored == Counter(range(1, len(ids)))
    assert plan.targets == len(ids) - 1


@settings(deadline=None)
@given(streams(), st.sampled_from([1, 2, 4]))
def test_parts_and_shares_make_the_whole(stream, world):
    ids, seq_len, stride = stream
    plan = plan_documents(document_starts(ids, BOS), len(ids), seq_len, stride)
    found: Counter[tuple[int, int, int]] = Counter()
    for part, length, score_from in plan.parts(stride):
        assert (part.first >= score_from).all()
        assert (part.stop <= length).all()
        for rank in range(world):
            mine = part.share(rank, world)
            found.update(zip(mine.start.tolist(), mine.first.tolist(), mine.stop.tolist(), strict=True))
    assert found == Counter(zip(plan.start.tolist(), plan.first.tolist(), plan.stop.tolist(), strict=True))


@settings(deadline=None)
@given(streams())
def test_contexts_count_the_tokens_before_a_target(stream):
    ids, seq_len, stride = stream
    starts = document_starts(ids, BOS)
    contexts = plan_documents(starts, len(ids), seq_len, stride).contexts(len(ids))
    assert contexts[0] == 0
    assert contexts[1:].min() >= 1
    place = np.arange(1, len(ids)) - starts[np.searchsorted(starts, np.arange(1, len(ids))) - 1]
    assert (contexts[1:] <= np.minimum(place, seq_len)).all()
    assert (contexts[1:] >= np.minimum(place, seq_len - stride)).all()


def model() -> GPT:
    techniques = {"smear": functools.partial(SmearGate), "xsa": functools.partial(XSA)}
    made = GPT(
        vocab_size=VOCAB, model_dim=16, num_layers=3, num_heads=4, num_kv_heads=2, mlp_mult=2, max_seq_len=160,
        attention=CausalAttention, mlp=SquaredMLP, position=Rope, residual=Residual, plan=Straight, head=Head,
        init=Init(), numerics=Numerics(), techniques=techniques,
    ).eval()  # fmt: skip
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0.0, 0.4)
    return made


MODEL = model()


def documents(sizes: list[int]) -> torch.Tensor:
    rng = np.random.default_rng(5)
    return torch.from_numpy(np.concatenate([np.append([BOS], rng.integers(2, VOCAB, size)) for size in sizes]))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("fixed_shapes", [False, True])
@pytest.mark.parametrize(("seq_len", "stride"), [(160, 40), (160, 160), (100, 7)])
def test_equals_one_document_at_a_time(seq_len, stride, fixed_shapes, packed):
    """Each document alone, target by target, from at most the context that its window has."""
    ids = documents([3, 150, 30, 0, 70, 333, 12])
    starts = document_starts(ids.numpy(), BOS)
    total = 0.0
    with torch.no_grad():
        for start, end in zip(starts, [*starts[1:], len(ids) - 1], strict=True):
            alone = ids[start : end + 1]
            plan = (
                [(0, 0, len(alone) - 1)]
                if len(alone) - 1 <= seq_len
                else [(s, f, seq_len) for s, f in _windows(len(alone), seq_len, stride)]
            )
            for begin, first, stop in plan:
                x, y = alone[None, begin : begin + stop], alone[None, begin + 1 : begin + stop + 1]
                total += float(MODEL(x, y, reduction="none")[0, first:].double().sum())
    kept = torch.full((len(ids),), float("nan"))
    evaluator = Evaluator(seq_len, stride, batch_tokens=400, documents=True, packed=packed)
    score = evaluator.score(MODEL, MODEL, Validation(ids, TABLE, BOS), Ranks(), fixed_shapes, nll=kept)
    assert score.method == "document"
    assert score.targets == len(ids) - 1
    assert score.bytes == TABLE.count(ids.numpy())
    assert score.val_loss * score.targets == pytest.approx(total, rel=1e-6)
    assert kept[0].isnan()
    assert float(kept[1:].double().sum()) == pytest.approx(total, rel=1e-6)


def _windows(tokens: int, seq_len: int, stride: int) -> list[tuple[int, int]]:
    plan = plan_windows(tokens, seq_len, stride)
    return list(zip(plan.start.tolist(), plan.first.tolist(), strict=True))


@settings(deadline=None, max_examples=40)
@given(streams(), st.sampled_from([1, 30, 64]), st.booleans(), st.sampled_from([1, 2, 4]))
def test_packed_rows_hold_every_window_once(stream, batch_tokens, fixed, world):
    """Each rank's rows: inputs are the windows' own tokens, in documents of their own, and count once in all."""
    ids, seq_len, stride = stream
    plan = plan_documents(document_starts(ids, BOS), len(ids), seq_len, stride)
    scored: Counter[int] = Counter()
    for rank in range(world):
        evaluator = Evaluator(seq_len, stride, batch_tokens=batch_tokens, documents=True)
        for batch in evaluator._batches(plan, Ranks(rank, world), torch.device("cpu"), lambda n, first: n, packed=True):
            if not len(batch.windows):
                continue
            if not batch.packed:
                indices, counted = batch.rows(fixed)
                scored.update((indices[:, batch.score_from :][counted] + 1).tolist())
                continue
            indices, counted, borders = batch.row(fixed)
            assert indices.shape == counted.shape == (1, int(borders[-1]))
            assert not fixed or (indices.shape[1], len(borders)) == (batch.length, batch.size + 1)
            sizes = borders.diff().tolist()
            assert max(sizes) <= seq_len
            for low, size in zip(borders.tolist(), sizes, strict=False):
                assert indices[0, low : low + size].diff().eq(1).all()
            assert sizes[: len(batch.windows)] == batch.windows.stop.tolist()
            assert indices[0, borders[: len(batch.windows)].long()].tolist() == batch.windows.start.tolist()
            scored.update((indices[counted] + 1).tolist())
    assert scored == Counter(range(1, len(ids)))


def test_documents_are_padded_where_the_model_cannot_pack(caplog, monkeypatch):
    monkeypatch.setattr(MODEL, "looks_across", ["mine"])
    validation = Validation(documents([40, 25, 60]), TABLE, BOS)
    padded = Evaluator(64, 16, documents=True, packed=True).score(MODEL, MODEL, validation, Ranks())
    assert "documents are padded, not packed: technique/mine mixes time" in caplog.text
    assert (
        padded.val_loss
        == Evaluator(64, 16, documents=True, packed=False).score(MODEL, MODEL, validation, Ranks()).val_loss
    )


def test_a_changed_document_changes_no_other():
    ids = documents([40, 25, 60])
    changed = ids.clone()
    changed[1:41] = (changed[1:41] - 2 + 3) % (VOCAB - 2) + 2
    losses = []
    for stream in (ids, changed):
        kept = torch.full((len(ids),), float("nan"))
        Evaluator(64, 16, documents=True).evaluate(MODEL, Validation(stream, TABLE, BOS), Ranks(), nll=kept)
        losses.append(kept)
    assert not torch.equal(losses[0][1:42], losses[1][1:42])
    assert torch.allclose(losses[0][42:], losses[1][42:], rtol=0, atol=1e-6)


def test_bad_requests_are_refused():
    with pytest.raises(ConfigError, match=r"eval\.coverage=seed_s2: evaluation by documents"):
        Evaluator(8, 4, "seed_s2", documents=True)
    with pytest.raises(ConfigError, match=r"eval\.packed=true: only evaluation by documents"):
        Evaluator(8, 4, packed=True)
    with pytest.raises(ConfigError, match="marks no beginning"):
        Evaluator(8, 4, documents=True).evaluate(MODEL, Validation(documents([30]), TABLE), Ranks())
    with pytest.raises(ConfigError, match=r"eval\.stride=0"):
        plan_documents(np.zeros(1, np.int64), 30, 8, 0)
    with pytest.raises(DataError, match="nothing to score"):
        plan_documents(np.zeros(1, np.int64), 1, 8, 4)


def test_flops_of_an_evaluation_are_those_of_its_windows():
    ids = documents([30, 20, 45])
    evaluator = Evaluator(16, 4, batch_tokens=48)
    score = evaluator.evaluate(MODEL, Validation(ids, TABLE), Ranks(), flops=MODEL.window_flops)
    assert score.flops == MODEL.window_flops(16) + 21 * MODEL.window_flops(16, 12)
    assert "targets/s" in score.speed
    assert "TFLOP/s" in score.speed
