"""Evaluations by a compiled model: where they are, the figures of the eager one, from few graphs."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter

from golf.common.errors import ConfigError
from golf.common.ranks import Ranks
from golf.common.runtime import Runtime
from golf.evals.evaluators import Evaluator, Validation
from golf.evals.windows import plan_windows
from golf.nn import kernels
from golf.nn.linear import EffectiveWeights
from golf.nn.models.attention import CausalAttention
from golf.nn.models.gpt import GPT
from golf.nn.models.head import Head
from golf.nn.models.init import Init
from golf.nn.models.mlp import SquaredMLP
from golf.nn.models.position import NoPosition, Rope
from golf.nn.models.residual import Residual, Straight
from golf.nn.numerics import Numerics
from golf.nn.techniques.smear_gate import SmearGate
from golf.nn.techniques.xsa import XSA
from golf.tokenizers.byte_table import ByteTable
from golf.train import compiling

VOCAB, BOS = 17, 1
TABLE = ByteTable(np.arange(VOCAB) % 5, np.arange(VOCAB) % 3 == 0, np.arange(VOCAB) < 3)


def built(max_seq_len: int, position: Any, compute: Any = "float32") -> GPT:
    """A tiny model with random weights, the same for any positions."""
    techniques = {"smear": functools.partial(SmearGate), "xsa": functools.partial(XSA)}
    made = GPT(
        vocab_size=VOCAB, model_dim=16, num_layers=2, num_heads=2, num_kv_heads=1, mlp_mult=2, max_seq_len=max_seq_len,
        attention=CausalAttention, mlp=SquaredMLP, position=position, residual=Residual, plan=Straight, head=Head,
        init=Init(), numerics=Numerics(), techniques=techniques, compute=compute,
    ).eval()  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0.0, 0.4, generator=generator)
    return made


@pytest.fixture(scope="module")
def model() -> GPT:
    return built(128, Rope)


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
        fast = evaluator.evaluate(compiled, validation, Ranks(), fixed_shapes=True, compiles=True)
        assert fast.val_bpb == pytest.approx(eager.val_bpb, rel=1e-6)
    assert counter.frame_count == 2


@pytest.mark.parametrize("fixed_shapes", [False, True])
@pytest.mark.parametrize("stride", [128, 50, 7])
def test_a_score_is_that_of_whole_windows_one_at_a_time(
    model: GPT, validation: Validation, stride: int, fixed_shapes: bool
) -> None:
    """Every window alone, all its logits, the softmax in float64."""
    ids, total = validation.tokens, 0.0
    plan = plan_windows(len(ids), 128, stride)
    with torch.no_grad():
        for start, first in zip(plan.start.tolist(), plan.first.tolist(), strict=True):
            chances = model(ids[None, start : start + 128])[0].double().log_softmax(-1)
            total -= float(chances.gather(1, ids[start + 1 : start + 129, None])[first:].sum())
    score = Evaluator(128, stride, batch_tokens=600).score(model, model, validation, Ranks(), fixed_shapes)
    assert score.targets == len(ids) - 1
    assert score.val_loss * score.targets == pytest.approx(total, rel=1e-6)


def test_packed_documents_compile_one_graph(model: GPT, validation: Validation, counter: CompileCounter) -> None:
    """Beside it one for windows that are scored at their end; padded, every length has its own."""
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=False)
    for stride in (64, 16, 32):
        settings = (128, stride, "full", 512, True)
        padded = Evaluator(*settings, packed=False).score(model, model, validation, Ranks())
        packed = Evaluator(*settings, packed=True).score(model, compiled, validation, Ranks(), fixed_shapes=True)
        assert packed.val_bpb == pytest.approx(padded.val_bpb, rel=1e-6)
        assert (packed.targets, packed.bytes) == (padded.targets, padded.bytes)
    assert counter.frame_count == 2


def test_compiling_is_told_of_once(
    model: GPT, validation: Validation, counter: CompileCounter, caplog: pytest.LogCaptureFixture
) -> None:
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=False)
    with caplog.at_level("INFO"):
        for _ in range(2):
            Evaluator(128, batch_tokens=512).score(model, compiled, validation, Ranks(), fixed_shapes=True)
    assert [record.getMessage() for record in caplog.records].count(
        "contiguous: compiling the forward for what it scores"
    ) == 1


# ----------------------------------------------------------------------------------------------------- whether at all


def served_by(*names: str) -> GPT:
    """A model in which these kernels stand, as far as it tells; they are those of a GPU."""
    made = built(128, Rope)
    for kernel in kernels.KERNELS:
        if kernel.name in names:
            made.fused += [(kernel, host) for host in kernel.hosts(made)]
    return made


THROUGHOUT = ("heads", "stream", "mlp", "loss")


@pytest.mark.parametrize(
    ("how", "names", "expected"),
    [
        ({}, (), True),
        ({}, THROUGHOUT, False),
        ({}, (*THROUGHOUT, "xsa"), False),
        ({}, THROUGHOUT[1:], True),
        ({}, ("heads", "stream", "loss", "xsa"), True),
        ({"compile_eval": True}, THROUGHOUT, True),
        ({"compile_eval": False}, (), False),
        ({"compile": "none"}, (), False),
        ({"device": "cpu", "compile": "auto", "compile_eval": True}, (), False),
    ],
)
def test_evaluations_are_compiled_as_training_is_unless_kernels_serve_throughout(
    how: dict[str, Any], names: tuple[str, ...], expected: bool
) -> None:
    scored = served_by(*names)
    forward, compiled = compiling.scoring(scored, Runtime(**{"compile": "model", **how}))
    assert compiled == expected
    assert (forward is scored) != expected


def test_one_layer_that_a_kernel_leaves_to_torch_is_worth_compiling() -> None:
    scored = served_by(*THROUGHOUT)
    scored.fused.remove((kernels.MLP, scored.layers()[0].mlp))
    assert compiling.scoring(scored, Runtime(compile="model"))[1]


def test_evaluations_leave_blocks_alone_that_training_compiled(counter: CompileCounter) -> None:
    trained, ids = built(128, Rope), torch.full((2, 32), 5)
    with torch.no_grad():
        want = trained(ids)
    torch._dynamo.utils.counters.clear()
    assert compiling.compiled(trained, "block") is trained
    forward, compiled = compiling.scoring(trained, Runtime(compile="block", compile_eval=False))
    with torch.no_grad():
        assert torch.equal(forward(ids), want)
    assert not compiled
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 0


# ------------------------------------------------------------------------------------------------ longer than trained


def test_windows_beyond_the_tables_are_refused_unless_positions_are_stretched(
    model: GPT, validation: Validation
) -> None:
    with pytest.raises(ConfigError, match=r"window of 200 tokens is longer than the position tables \(128\)"):
        Evaluator(200, 50).score(model, model, validation, Ranks())
    with pytest.raises(ConfigError, match=r"eval\.rope=ntk: eval\.trained_seq_len must say"):
        Evaluator(200, 50, rope="ntk")
    assert Evaluator(200, 50, rope="extend").score(model, model, validation, Ranks()).seq_len == 200
    with pytest.raises(ConfigError, match="window of 129"):
        model(torch.zeros(1, 129, dtype=torch.long))


@pytest.mark.parametrize("rope", ["extend", "ntk"])
def test_stretched_positions_are_those_of_a_model_built_so(model: GPT, rope: str, validation: Validation) -> None:
    """A model with longer tables, and with the base that NTK scaling from 128 gives, scores the same."""
    longer = built(256, functools.partial(Rope, ntk_seq_len=256 if rope == "ntk" else None, ntk_from=128))
    expected = Evaluator(256, 64).score(longer, longer, validation, Ranks())
    stretched = Evaluator(256, 64, rope=rope, trained_seq_len=128)  # type: ignore[arg-type]
    before = model.position.cos
    assert stretched.score(model, model, validation, Ranks()).val_loss == pytest.approx(expected.val_loss, rel=1e-7)
    assert model.position.cos is before
    assert model.longest == 128


def test_positions_as_trained_serve_shorter_windows(model: GPT, validation: Validation) -> None:
    plain = Evaluator(128, 64).score(model, model, validation, Ranks())
    for rope in ("extend", "ntk"):
        scaled = Evaluator(128, 64, rope=rope, trained_seq_len=128).score(model, model, validation, Ranks())  # type: ignore[arg-type]
        assert scaled.val_loss == plain.val_loss


@pytest.mark.slow
def test_a_compiled_model_follows_the_stretch(model: GPT, validation: Validation, counter: CompileCounter) -> None:
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=False)
    for seq_len, rope in ((128, "trained"), (256, "ntk"), (128, "trained"), (256, "extend")):
        evaluator = Evaluator(seq_len, 64, batch_tokens=512, rope=rope, trained_seq_len=128)  # type: ignore[arg-type]
        eager = evaluator.score(model, model, validation, Ranks())
        fast = evaluator.score(model, compiled, validation, Ranks(), fixed_shapes=True)
        assert fast.val_bpb == pytest.approx(eager.val_bpb, rel=1e-6)
    assert counter.frame_count == 4


def test_ntk_scaling_needs_rotary_positions(validation: Validation) -> None:
    nope = built(256, NoPosition)
    assert Evaluator(300, 64, rope="extend").score(nope, nope, validation, Ranks()).seq_len == 300
    with pytest.raises(ConfigError, match=r"eval\.rope=ntk: the model has no rotary positions"):
        Evaluator(300, 64, rope="ntk", trained_seq_len=128).score(nope, nope, validation, Ranks())


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@torch.no_grad()
def test_a_model_built_anew_runs_the_graph_that_was_compiled_for_the_first(compute: str) -> None:
    torch._dynamo.reset()
    counter, ids = CompileCounter(), torch.full((2, 32), 5)
    for _ in range(2):
        model = built(64, Rope, compute)
        weights = EffectiveWeights(model)
        weights.refresh()
        for weight in weights.leaves:  # as training does before it records graphs
            torch._dynamo.mark_static_address(weight, guard=False)
        torch.compile(model, backend=counter, fullgraph=True, dynamic=False)(ids, ids)
    assert counter.frame_count == 1
