"""Evaluation by several processes: the same set and bytes exactly, the same loss, and one decision to stop."""

from __future__ import annotations

import functools
import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from golf.common.errors import EvaluationTooLong
from golf.common.ranks import Ranks, join, leave
from golf.evals.evaluators import Evaluator, Validation
from golf.nn.models.attention import CausalAttention
from golf.nn.models.gpt import GPT
from golf.nn.models.head import Head
from golf.nn.models.init import Init
from golf.nn.models.mlp import SquaredMLP
from golf.nn.models.position import Rope
from golf.nn.models.residual import Residual, Straight
from golf.nn.numerics import Numerics
from golf.nn.techniques.smear_gate import SmearGate
from golf.tokenizers.byte_table import ByteTable

VOCAB = 23
TABLE = ByteTable(np.arange(VOCAB) % 5, np.arange(VOCAB) % 3 == 0, np.arange(VOCAB) < 2)
EVALUATORS: dict[str, dict[str, Any]] = {
    "contiguous": {"seq_len": 64},
    "sliding": {"seq_len": 64, "stride": 24},
    "document": {"seq_len": 64, "stride": 24, "documents": True},
    "packed": {"seq_len": 64, "stride": 24, "documents": True, "packed": True},
}


def scores(ranks: Ranks) -> dict[str, Any]:
    """What one rank finds, by method; and after how long it stops where no time is allowed."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = GPT(
        vocab_size=VOCAB, model_dim=16, num_layers=2, num_heads=2, num_kv_heads=1, mlp_mult=2, max_seq_len=64,
        attention=CausalAttention, mlp=SquaredMLP, position=Rope, residual=Residual, plan=Straight, head=Head,
        init=Init(), numerics=Numerics(), techniques={"smear": functools.partial(SmearGate)},
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.5)
    rng = np.random.default_rng(2)
    parts = [np.append([1], rng.integers(2, VOCAB, size)) for size in (100, 7, 333, 64, 1, 90, 20, 500)]
    validation = Validation(torch.from_numpy(np.concatenate(parts)), TABLE, bos_id=1)
    found: dict[str, Any] = {}
    for name, settings in EVALUATORS.items():
        for fixed_shapes in (False, True):
            evaluator = Evaluator(**settings, batch_tokens=256)
            nll = torch.zeros(len(validation.tokens))
            score = evaluator.score(model, model, validation, ranks, fixed_shapes, nll=nll)
            total = ranks.sum((nll > 0).int())
            found[f"{name} {fixed_shapes}"] = [score.val_loss, score.targets, score.bytes, total.tolist()]
    try:
        Evaluator(64, 1, batch_tokens=128).evaluate(model, validation, ranks, limit_s=1e-9)
    except EvaluationTooLong as error:
        found["stopped"] = str(error)
    return found


def worker(local: int, world: int, port: int, out: str) -> None:
    import os

    os.environ |= {
        "RANK": str(local), "LOCAL_RANK": str(local), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    ranks = join("cpu", timeout_s=60)
    try:
        (Path(out) / f"{local}.json").write_text(json.dumps(scores(ranks)))
        ranks.barrier()
    finally:
        leave()


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return scores(Ranks())


@pytest.fixture(scope="module", params=[2, 4])
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(worker, (request.param, port, str(out)), nprocs=request.param)
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(request.param)]


@pytest.mark.parametrize("fixed_shapes", [False, True])
@pytest.mark.parametrize("method", EVALUATORS)
def test_ranks_score_the_same_set_and_bytes_and_loss(method, fixed_shapes, alone, together):
    loss, targets, size, scored = alone[f"{method} {fixed_shapes}"]
    assert scored == [0] + [1] * targets
    for one in together:
        assert one[f"{method} {fixed_shapes}"][1:] == [targets, size, scored]
        assert one[f"{method} {fixed_shapes}"][0] == pytest.approx(loss, abs=1e-7, rel=0)


def test_ranks_stop_together_by_the_word_of_the_first(alone, together):
    assert "over the limit of 1e-09 s" in alone["stopped"]
    assert all("over the limit of 1e-09 s" in one["stopped"] for one in together)
