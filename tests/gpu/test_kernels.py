"""Fused kernels on a CUDA device: each against its twin in float64, and whole models with and without them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from golf.common.ranks import Ranks
from golf.common.runtime import Runtime
from golf.data.random_tokens import random_prepared
from golf.evals.evaluators import Evaluator, Validation
from golf.launch.compose import build
from golf.launch.compose.configs import compose_job, composer, resolved
from golf.nn import kernels
from golf.nn.attend import preferred_sdpa_kernels
from golf.nn.context import Context
from golf.nn.linear import EffectiveWeights
from golf.nn.models.gpt import GPT
from golf.quant.calibration import Trained
from golf.tokenizers.byte260 import Byte260
from golf.train import compiling

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
RECIPES = ["naive_baseline", "seq4096", "sp2048_normuon_int6", "gradquant_11l"]
EPS = 2.0**-23


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    got, want = got.detach(), want.detach()
    return float((got.double() - want.double()).norm() / want.double().norm().clamp_min(1e-30))


def compare(
    fast: Callable[..., Any], twin: Callable[..., Any], inputs: list[Any], rest: tuple[Any, ...],
    laid: Callable[[torch.Tensor], torch.Tensor] = lambda grad: grad, close: float = 5e-3,
) -> None:  # fmt: skip
    """Outputs and gradients of the kernel in bf16 against its twin in float64 on the same values.

    laid: brings the gradients of the outputs into the layout in which they come; close: how near outputs are.
    """
    wide = [None if t is None else t.detach().double().requires_grad_(t.requires_grad) for t in inputs]
    outs, wants = fast(*inputs, *rest), twin(*wide, *rest)
    pairs = [(o, w) for o, w in zip(outs, wants, strict=True) if w.numel()]
    grads = [laid(torch.randn_like(o)) for o, _ in pairs]
    torch.autograd.backward([o for o, _ in pairs], grads)
    torch.autograd.backward([w for _, w in pairs], [g.double() for g in grads])
    for out, want in pairs:
        assert out.shape == want.shape
        assert error(out, want) < close
    for given, same in zip(inputs, wide, strict=True):
        if given is not None and given.requires_grad:
            assert error(given.grad, same.grad) < 1e-2


def draw(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape, device="cuda").to(dtype).float().to(dtype).requires_grad_()


def rounded(*shape: int) -> torch.Tensor:
    """Float32 values that bf16 holds, so that the twin in float64 has the same ones."""
    return torch.randn(*shape, device="cuda").bfloat16().float().requires_grad_()


@pytest.mark.parametrize("placed", [True, False])
@pytest.mark.parametrize("gained", [True, False])
@pytest.mark.parametrize(("copies", "apart"), [(1, False), (1, True), (2, True), (3, False)])
@pytest.mark.parametrize(
    ("batch", "time", "heads", "kv_heads", "size", "rotated"),
    [(2, 128, 8, 4, 64, 64), (3, 77, 4, 2, 32, 16), (1, 5, 2, 2, 128, 0), (2, 64, 6, 1, 16, 16)],
)
def test_heads(
    batch: int, time: int, heads: int, kv_heads: int, size: int, rotated: int, gained: bool, placed: bool, copies: int,
    apart: bool,
) -> None:  # fmt: skip
    from golf.nn.kernels.heads import heads as fast
    from golf.nn.kernels.heads import reference

    angles = torch.rand(time + 3, rotated // 2, device="cuda") * 6
    inputs = [
        draw(batch, time, (heads + 2 * kv_heads) * size), angles.cos().bfloat16(), angles.sin().bfloat16(),
        rounded(heads) if gained else None,
    ]  # fmt: skip
    places = torch.randint(0, time + 3, (time,), device="cuda") if placed else None
    compare(fast, reference, inputs, (heads, kv_heads, EPS, places, copies, apart))


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "heads before positions": lambda grad: grad.transpose(1, 2).contiguous().transpose(1, 2),
    "one row for all": lambda grad: grad[:1].expand_as(grad),
    "features apart": lambda grad: grad.mT.contiguous().mT,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_heads_take_inputs_and_gradients_in_any_layout(layout: str) -> None:
    from golf.nn.kernels.heads import heads as fast
    from golf.nn.kernels.heads import reference

    angles = torch.rand(77, 16, device="cuda") * 6
    inputs = [
        draw(2, (4 + 2 * 2) * 32, 77).detach().mT.requires_grad_(), angles.cos().bfloat16(), angles.sin().bfloat16(),
        rounded(4),
    ]  # fmt: skip
    compare(fast, reference, inputs, (4, 2, EPS, None, 2, True), LAYOUTS[layout])


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("added", [0, 1, 2])
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(("dim", "width"), [(512, 16), (384, 0), (48, 48)])
def test_stream(dim: int, width: int, keep: bool, scaled: bool, added: int, mixed: bool) -> None:
    from golf.nn.kernels.stream import reference
    from golf.nn.kernels.stream import stream as fast

    inputs: list[Any] = [draw(3, 67, dim)]
    for number in range(2):
        scale = rounded(dim) if scaled or number == 1 else None
        inputs += [draw(3, 67, dim), scale] if number < added else [None, None]
    inputs += [draw(3, 67, dim), rounded(2, dim)] if mixed else [None, None]
    close = 1e-2 if width else 5e-3  # of a few channels those where sums nearly cancel may be many
    compare(fast, reference, inputs, (keep, EPS, 0.3 if scaled else 1.0, width), close=close)
    _, n, _, first = fast(*inputs, keep, EPS, 1.0, width)
    assert torch.equal(first, n[..., :width]) if width else not first.numel()


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("popped", [True, False])
@pytest.mark.parametrize(("apart", "added"), [(False, 0), (False, 1), (True, 0), (True, 2)])
@pytest.mark.parametrize(("dim", "width"), [(512, 16), (1024, 0), (1536, 32), (48, 16), (48, 0)])
def test_lanes(dim: int, width: int, apart: bool, added: int, popped: bool, mixed: bool) -> None:
    from golf.nn.kernels.lanes import lanes as fast
    from golf.nn.kernels.lanes import reference

    there = [True, apart, added > 0, added > 1, popped, mixed]
    inputs = [*(draw(3, 667, dim) if given else None for given in there), rounded(9, dim)]  # several rows a program
    compare(fast, reference, inputs, (EPS, 0.3 if popped else 1.0, width), close=1e-2 if width else 5e-3)
    _, _, n, _, first = fast(*inputs, EPS, 1.0, width)
    assert torch.equal(first, n[..., :width]) if width else not first.numel()


@pytest.mark.parametrize("slope", [0.0, 0.5])
@pytest.mark.parametrize(("dim", "hidden"), [(512, 1536), (384, 1000), (48, 136)])
def test_mlp(dim: int, hidden: int, slope: float) -> None:
    from golf.nn.kernels.mlp import reference
    from golf.nn.kernels.mlp import squared_mlp as fast

    up, down = ((draw(*s).detach() / s[1] ** 0.5).requires_grad_() for s in ((hidden, dim), (dim, hidden)))
    compare(lambda *given: fast(*given)[:1], reference, [draw(3, 67, dim), up, down], (slope,))


def test_the_mlp_takes_inputs_in_any_layout() -> None:
    from golf.nn.kernels.mlp import reference
    from golf.nn.kernels.mlp import squared_mlp as fast

    n, up, down = (draw(*s).detach().mT.requires_grad_() for s in ((4, 48, 67), (48, 136), (136, 48)))
    compare(lambda *given: fast(*given)[:1], reference, [n, up, down], (0.0,))


def test_the_mlp_takes_what_a_technique_made_wider() -> None:
    model = model_of("naive_baseline")
    kernels.install(model)
    mlp, n = model.layers()[0].mlp, draw(2, 5, 256).detach().float()
    ctx = Context(torch.zeros(2, 5, dtype=torch.int64, device="cuda"))
    with torch.no_grad():
        assert error(mlp(n, ctx), mlp.unfused(n, ctx)) < 1e-2


@pytest.mark.parametrize("slope", [0.0, 0.5, 0.25])
@pytest.mark.parametrize(("tokens", "dim", "hidden"), [(4096, 512, 2048), (201, 64, 136), (7, 512, 1536)])
def test_quacks_products_are_tritons_bit_by_bit(tokens: int, dim: int, hidden: int, slope: float) -> None:
    from golf.nn.kernels import mlp

    if mlp.written_in(torch.device("cuda")) != "CuTe":
        pytest.skip("needs QuACK and a Hopper GPU")
    mlp_cute = pytest.importorskip("golf.nn.kernels.mlp_cute")
    n, dy, up, down = (draw(*shape).detach() for shape in ((tokens, dim), (tokens, dim), (hidden, dim), (dim, hidden)))
    made = []
    for launch in (mlp.by_triton, mlp_cute.launch):
        h, du = torch.empty(2, tokens, hidden, device="cuda", dtype=torch.bfloat16)
        launch(n, up, h, None, slope)
        launch(dy, down, h, du, slope)
        made.append((h, du))
    for triton, cute in zip(*made, strict=True):
        assert torch.equal(triton, cute)


@pytest.mark.parametrize("softcap", [30.0, 5.0, 0.0])
@pytest.mark.parametrize(
    ("tokens", "dim", "vocab"), [(201, 512, 8192), (77, 256, 1024), (33, 48, 1000), (5, 16, 260), (7, 64, 40_000)]
)
def test_loss(tokens: int, dim: int, vocab: int, softcap: float) -> None:
    from golf.nn.kernels.loss import head_loss, reference

    h, weight = draw(tokens, dim), (3 * draw(vocab, dim).detach() / dim**0.5).requires_grad_()
    targets = torch.randint(vocab, (tokens,), device="cuda")
    compare(lambda *given: head_loss(*given)[:1], reference, [h, weight], (targets, softcap, True))
    with torch.no_grad():
        nll, gradient = head_loss(h, weight, targets, softcap, False)
        assert torch.equal(nll, head_loss(h, weight, targets, softcap, True)[0])
    assert not gradient.numel()


def test_the_loss_of_certain_tokens_is_finite() -> None:
    """Logits as far apart as float32 shows no share of the others; the target may be either."""
    from golf.nn.kernels.loss import head_loss

    h = torch.ones(2, 16, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.zeros(260, 16, device="cuda", dtype=torch.bfloat16)
    weight[7] = 50.0
    nll, dz = head_loss(h, weight, torch.tensor([7, 8], device="cuda"), 0.0, True)
    assert nll.tolist() == pytest.approx([0.0, 800.0], abs=1e-4)
    nll.sum().backward()
    assert dz[0].abs().max() < 1e-6
    assert h.grad[1].tolist() == [50.0] * 16


def test_the_loss_takes_inputs_in_any_layout() -> None:
    from golf.nn.kernels.loss import head_loss, reference

    h, weight = (draw(16, n).detach().mT.requires_grad_() for n in (33, 260))
    targets = torch.randint(260, (33, 2), device="cuda")[:, 0]
    compare(lambda *given: head_loss(*given)[:1], reference, [h, weight], (targets, 30.0, True))


GATES = {"no gate": None, "float32": torch.float32, "bfloat16": torch.bfloat16}


def xsa_is_its_twin(inputs: list[Any], laid: Callable[[torch.Tensor], torch.Tensor] = lambda grad: grad) -> None:
    from golf.nn.kernels.xsa import reference
    from golf.nn.kernels.xsa import xsa as fast

    compare(lambda *given: (fast(*given),), lambda *given: (reference(*given),), inputs, (), laid)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(8, 4, 64), (6, 2, 24), (3, 1, 16), (2, 2, 128)])
def test_xsa(heads: int, kv_heads: int, size: int, gate: str) -> None:
    dtype = GATES[gate]
    gates = None if dtype is None else rounded(3, 67, heads).detach().sigmoid().bfloat16().to(dtype).requires_grad_()
    xsa_is_its_twin([draw(3, 67, heads, size), draw(3, 67, kv_heads, size), gates])


def test_xsa_takes_inputs_and_gradients_in_any_layout() -> None:
    inputs = [draw(3, n, 67, 32).transpose(1, 2).detach().requires_grad_() for n in (4, 2)]
    gates = rounded(3, 4, 67).mT.detach().requires_grad_()
    xsa_is_its_twin([*inputs, gates], LAYOUTS["heads before positions"])


def test_xsa_of_a_zero_value_has_its_limits() -> None:
    from golf.nn.kernels.xsa import xsa as fast

    y, v = draw(1, 3, 4, 32), torch.zeros(1, 3, 2, 32, dtype=torch.bfloat16, device="cuda", requires_grad=True)
    out = fast(y, v, None)
    out.backward(torch.ones_like(out))
    assert torch.equal(out, y)
    assert torch.equal(y.grad, torch.ones_like(y))
    assert not v.grad.any()


@pytest.mark.parametrize("resting", [(), ("xsa",), ("attn_gate",)])
def test_xsa_and_its_gate_with_kernels_are_those_without(resting: tuple[str, ...]) -> None:
    """The gate stands in three layers, XSA in four of the five; in a phase one of the two may rest."""
    words = ("technique/xsa=all", "technique.xsa.layers=last:4", "technique/attn_gate=sparse")
    plain = model_of("naive_baseline", *words, "technique.attn_gate.layers=[0,1,3]")
    with torch.no_grad():
        for gate in plain.techniques("attn_gate"):
            gate.weight.normal_()
    fused = copy.deepcopy(plain)
    assert kernels.install(fused) == []
    for model in (plain, fused):
        model.enter(0, {"xsa", "attn_gate"} - set(resting))
    run = torch.compile(fused, fullgraph=True, dynamic=False)
    loss, grads = loss_and_gradients(fused, run)
    want, want_grads = loss_and_gradients(plain, plain)
    assert loss == pytest.approx(want, rel=2e-3)
    assert grads.keys() == want_grads.keys()
    for name, grad in want_grads.items():
        assert (grads[name] - grad).norm() <= 0.06 * grad.norm() + 1e-6, name


def test_a_transposed_stream_is_the_same_stream() -> None:
    from golf.nn.kernels.stream import reference
    from golf.nn.kernels.stream import stream as fast

    x, x0 = (draw(64, 5, 48).transpose(0, 1).detach().requires_grad_() for _ in range(2))
    compare(fast, reference, [x, draw(5, 64, 48), rounded(48), None, None, x0, rounded(2, 48)], (True, EPS, 1.0, 0))


@pytest.mark.parametrize("recipe", ["naive_baseline"])
def test_gradients_of_scored_positions_reach_queries_keys_and_values(recipe: str) -> None:
    plain = model_of(recipe)
    fused = copy.deepcopy(plain)
    kernels.install(fused)
    ids = torch.randint(4, 260, (4, 257), generator=torch.Generator().manual_seed(1)).cuda()
    grads = []
    for model in (plain, fused):
        weights = EffectiveWeights(model)
        weights.refresh()
        with preferred_sdpa_kernels(torch.device("cuda")):
            model(ids[:, :-1], ids[:, 129:]).backward()
        weights.collect_gradients()
        grads.append([m.weight.grad for m in (model.layers()[-1].attn.q, model.layers()[-1].attn.k)])
    for want, got in zip(*grads, strict=True):
        assert error(got, want) < 0.06


def model_of(recipe: str, *overrides: str) -> GPT:
    with composer():
        config = resolved(compose_job([
            f"recipe={recipe}", "model.model_dim=256", "model.num_layers=5", "train_seq_len=256", "tokenizer=byte260",
            *overrides,
        ]))  # fmt: skip
    model = build.build_model(config, "bfloat16")
    model.initialize(1337)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():  # projections that start at zero, and neutral vectors, would hide most of the model
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("weight"):
                parameter.copy_(noise / parameter.shape[1] ** 0.5)
            elif parameter.ndim < 3 and name != "embedding":
                parameter.add_(0.3 * noise)
    return model.cuda()


def loss_and_gradients(model: GPT, run: Any) -> tuple[float, dict[str, torch.Tensor]]:
    ids = torch.randint(4, 260, (8, 257), generator=torch.Generator().manual_seed(1)).cuda()
    weights = EffectiveWeights(model)
    weights.refresh()
    with preferred_sdpa_kernels(torch.device("cuda")):
        loss = run(ids[:, :-1], ids[:, 1:])
        loss.backward()
    weights.collect_gradients()
    return float(loss), {n: p.grad.float() for n, p in model.named_parameters() if p.grad is not None}


GATED = ["model/residual=unet_gated", "model.residual.norm_scale=depth"]
TWO_LANE = ["model/residual=two_lane", "model.residual.skip_gates=true", "model.residual.norm_scale=depth"]
LOOP = ["model/plan=loop", "model.plan.first=1", "model.plan.last=2", "model.plan.passes=3"]
GATE = ["technique/xsa=all", "technique/attn_gate=sparse", "technique.attn_gate.init_std=1.0"]
RESIDUALS = {
    "gated": [*GATED, *LOOP],
    "gated, no mix": [*GATED, "model.residual.x0_mix=false", "model.residual.scales=false"],
    "two lanes": [*TWO_LANE, *LOOP],
    "lanes, gates": [*TWO_LANE, *LOOP, *GATE],
    "two lanes everywhere": [*TWO_LANE, "model.residual.lanes=all"],
    "lanes that meet again": [*TWO_LANE, "model.residual.lanes=[1,3]", "model.residual.x0_mix=false"],
}
COMPILED = [(name, how) for name in (*RECIPES, "gated", "two lanes", "lanes, gates") for how in ("not", "whole")]
COMPILED += [(name, "not") for name in list(RESIDUALS) if (name, "not") not in COMPILED] + [("two lanes", "by block")]


@pytest.mark.parametrize(("name", "compiled"), COMPILED)
def test_a_model_with_kernels_is_the_model_without(name: str, compiled: str) -> None:
    plain = model_of(name) if name in RECIPES else model_of("naive_baseline", *RESIDUALS[name])
    fused = copy.deepcopy(plain)
    assert kernels.install(fused) == []
    assert all(served != "torch" for op, served in fused.kernels().items() if op != "attention")
    run = compiling.compiled(fused, {"whole": "model", "by block": "block", "not": "none"}[compiled])
    loss, grads = loss_and_gradients(fused, run)
    want, want_grads = loss_and_gradients(plain, plain)
    assert loss == pytest.approx(want, rel=2e-3)
    assert grads.keys() == want_grads.keys()
    for parameter, grad in want_grads.items():
        few = name in RESIDUALS and grad.numel() <= 16  # a head's gain, a route: sums over all tokens, near cancelling
        assert (grads[parameter] - grad).norm() <= (0.12 if few else 0.06) * grad.norm() + 1e-6, parameter


@pytest.mark.parametrize(
    ("recipe", "words"),
    [("seq4096", []), ("gradquant_11l", []), *(("naive_baseline", [*words, *GATE]) for words in (GATED, TWO_LANE))],
)
def test_scored_positions_with_kernels_are_those_without(recipe: str, words: list[str]) -> None:
    plain = model_of(recipe, *words)
    fused = copy.deepcopy(plain)
    kernels.install(fused)
    ids = torch.randint(4, 260, (4, 257), generator=torch.Generator().manual_seed(1)).cuda()
    with torch.no_grad(), preferred_sdpa_kernels(torch.device("cuda")):
        nll = [m(ids[:, :-1], ids[:, 193:], reduction="none") for m in (plain, fused)]
    assert nll[0].shape == (4, 64)
    assert error(nll[1], nll[0]) < 1e-2


def test_an_evaluation_with_kernels_is_the_compiled_one_and_leaves_the_compiler_alone() -> None:
    model = model_of("gradquant_11l").eval()
    kernels.install(model)
    ids = torch.randint(4, 260, (4099,), generator=torch.Generator().manual_seed(2)).cuda()
    ids[torch.tensor([0, 700, 900, 2500])] = Byte260.bos_id
    validation = Validation(ids, Byte260().byte_table(), Byte260.bos_id)
    (plain, few), (fast, fixed) = (compiling.scoring(model, Runtime(compile_eval=how)) for how in ("auto", True))
    assert (plain is model, few, fixed) == (True, False, True)
    for evaluator in (Evaluator(256, 64, batch_tokens=2048), Evaluator(256, batch_tokens=2048, documents=True)):
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        eager = evaluator.score(model, plain, validation, Ranks(), few)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
        compiled = evaluator.score(model, fast, validation, Ranks(), fixed)
        assert compiled.val_bpb == pytest.approx(eager.val_bpb, rel=2e-3)
        assert (compiled.targets, compiled.bytes) == (eager.targets, eager.bytes)


def stand_ins(model: GPT) -> list[Any]:
    of_layers = [(block.attn.heads, block.attn.heads_out, block.mlp.whole) for block in model.layers()]
    return [model.stream, model.loss, *of_layers]


@pytest.mark.parametrize("recipe", RECIPES)
def test_calibration_sees_with_kernels_and_compiled_blocks_what_it_sees_without(recipe: str, tmp_path: Path) -> None:
    plain = model_of(recipe)
    fused = copy.deepcopy(plain)
    kernels.install(fused)
    served = stand_ins(fused)
    for block in fused.blocks:
        block.compile(fullgraph=True, dynamic=False)
    with torch.no_grad():
        fused.eval()(torch.zeros(2, 256, dtype=torch.int64, device="cuda"))  # the graphs are there
    data = random_prepared(260, 10_000, tmp_path).train
    found = []
    for model in (plain, fused):
        trained = Trained(model, data, Ranks(), seed=1, seq_len=256)
        found.append(trained.hessians(trained.batches(16)))
    assert found[0].keys() == found[1].keys()
    for name, want in found[0].items():
        assert want.dtype == torch.float32
        assert error(found[1][name], want) < 1e-2, name
    assert stand_ins(fused) == served


def test_what_cannot_be_fused_says_why() -> None:
    model = model_of("naive_baseline", "model.attention.qk_norm=false")
    (line,) = kernels.install(model)
    assert "heads" in line
    assert "qk_norm" in line
    assert model.kernels()["norm"].endswith("(Triton)")
    assert model.kernels()["rope"] == "torch"
