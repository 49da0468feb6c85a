"""Evaluations by a compiled model: the figures of the eager one, from few graphs."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter

from golf.common.ranks import Ranks
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
from golf.nn.techniques.xsa import XSA
from golf.tokenizers.byte_table import ByteTable

VOCAB, BOS = 17, 1
TABLE = ByteTable(np.arange(VOCAB) % 5, np.arange(VOCAB) % 3 == 0, np.arange(VOCAB) < 3)


@pytest.fixture(scope="module")
def model() -> GPT:
    techniques = {"smear": functools.partial(SmearGate), "xsa": functools.partial(XSA)}
    made = GPT(
        vocab_size=VOCAB, model_dim=16, num_layers=2, num_heads=4, num_kv_heads=2, mlp_mult=2, max_seq_len=128,
        attention=CausalAttention, mlp=SquaredMLP, position=Rope, residual=Residual, plan=Straight, head=Head,
        init=Init(), numerics=Numerics(), techniques=techniques,
    ).eval()  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0.0, 0.4, generator=generator)
    return made


@pytest.fixture
def validation() -> Validation:
    ids = torch.randint(2, VOCAB, (700,), generator=torch.Generator().manual_seed(1))
    ids[torch.tensor([0, 30, 41, 200, 210, 500])] = BOS
    return Validation(ids, TABLE, BOS)


@pytest.fixture
def counter() -> CompileCounter:
    torch._dynamo.reset()
    return CompileCounter()


def test_a_sweep_of_strides_compiles_two_graphs(model: GPT, validation: Validation, counter: CompileCounter) -> None:
    """One for windows that are scored whole, and one for all that are scored at their end."""
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=False)
    for stride in (64, 8, 16, 32, 100, 128):
        evaluator = Evaluator(128, stride, batch_tokens=512)
        eager = evaluator.evaluate(model, validation, Ranks())
        fast = evaluator.evaluate(compiled, validation, Ranks(), fixed_shapes=True)
        assert fast.val_bpb == pytest.approx(eager.val_bpb, rel=1e-6)
    assert counter.frame_count == 2
