"""Packed documents in training on a GPU: the kernel's gradients, one graph for all steps, and the eager loss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from golf.data.loader import Feed, TrainLoader
from golf.data.orders import Shuffled, Spans
from golf.data.shards import Shards
from golf.launch.compose.build import build_model
from golf.launch.compose.configs import compose_job, composer, resolved
from golf.nn import kernels
from golf.nn.attend import installed, packed, preferred_sdpa_kernels
from golf.nn.context import Documents
from golf.nn.linear import EffectiveWeights
from golf.nn.models.gpt import GPT, Losses
from golf.train.compiling import compiled

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
BORDER = 1


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kv_heads", [8, 4])
def test_the_kernels_gradients_equal_those_of_its_masked_twin(kv_heads: int, compiled: bool) -> None:
    borders = torch.tensor([0, 1, 130, 130, 387, 600, 600, 600], dtype=torch.int32)
    given = [torch.randn(1, 600, n, 64, device="cuda").bfloat16().requires_grad_() for n in (8, kv_heads, kv_heads)]
    exact = [t.detach().float().cpu().requires_grad_() for t in given]

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, borders: torch.Tensor) -> torch.Tensor:
        return packed(q, k, v, Documents.of(borders, 600, 300))

    fast = torch.compile(run, fullgraph=True, dynamic=False) if compiled else run
    grad = torch.randn(1, 600, 8, 64)
    fast(*given, borders.cuda()).backward(grad.cuda().bfloat16())
    run(*exact, borders).backward(grad.bfloat16().float())
    for quick, slow in zip(given, exact, strict=True):
        assert quick.grad is not None
        assert slow.grad is not None
        assert (quick.grad.cpu() - slow.grad).norm() / slow.grad.norm() < 1e-2


def small(*words: str, mode: kernels.Mode = "auto") -> GPT:
    """A small model, with all the kernels that it can have or with none."""
    with composer():
        config = resolved(compose_job([
            "recipe=none", "model.model_dim=256", "model.num_layers=3", "model.num_heads=4", "model.num_kv_heads=2",
            "train_seq_len=128", "train_batch_tokens=8192", "tokenizer=byte260", *words,
        ]))  # fmt: skip
    model = build_model(config, "bfloat16")
    model.initialize(1337)
    with torch.no_grad():  # projections that start at zero would hide most of the model
        generator = torch.Generator().manual_seed(7)
        for name, parameter in model.named_parameters():
            if name.endswith("weight"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
    model.cuda()
    kernels.install(model, mode)
    return model.train()


def text() -> Shards:
    """Random bytes in documents of 60 on average; some are longer than 128."""
    rng = np.random.default_rng(1)
    ids = np.where(rng.random(400_000) < 1 / 60, BORDER, rng.integers(4, 260, 400_000)).astype(np.uint16)
    return Shards([Path("text")], [ids], 260)


@pytest.mark.parametrize(
    ("order", "micro_steps", "recorded"), [(Spans, 1, True), (Spans, 2, False), (Shuffled, 4, False)]
)
@pytest.mark.parametrize(
    "words",
    [
        (),
        ("technique/smear_gate=v1", "technique/xsa=all"),
        pytest.param(
            ("model.attention.backend=cudnn",),
            marks=pytest.mark.skipif(not installed("cudnn"), reason="nvidia-cudnn-frontend is not installed"),
        ),
    ],
)
def test_packed_training_compiles_once_and_follows_the_eager_loss(
    order: type[TrainLoader], micro_steps: int, recorded: bool, words: tuple[str, ...]
) -> None:
    model = small(*words)
    loader = order(Feed(text(), 8192, 128, micro_steps, device="cuda", border_id=BORDER), packed=True)
    run = compiled(model, "model", as_graphs=recorded)
    weights = EffectiveWeights(model)
    weights.refresh()
    for weight in weights.leaves if recorded else ():
        torch._dynamo.mark_static_address(weight, guard=False)
    stats = torch._dynamo.utils.counters["stats"]
    graphs, shapes = 0, set()
    with preferred_sdpa_kernels(torch.device("cuda")):
        for step in range(20):
            for x, y, borders in loader.next_step():
                assert borders is not None
                shapes.add(len(borders))
                torch.compiler.cudagraph_mark_step_begin()
                found = run(x, y, borders=borders, noting=True)
                assert isinstance(found, Losses)
                found.nll.backward()
                weights.collect_gradients()
                fast, gradients = float(found.nll.detach()), {n: p.grad for n, p in model.named_parameters()}
                gradients = {name: None if grad is None else grad.float().clone() for name, grad in gradients.items()}
                model.zero_grad()
                eager = model(x, y, borders=borders, noting=True)
                assert isinstance(eager, Losses)
                eager.nll.backward()
                weights.collect_gradients()
                assert fast == pytest.approx(float(eager.nll.detach()), rel=2e-3)
                for name, parameter in model.named_parameters():
                    if (exact := parameter.grad) is not None and (grad := gradients[name]) is not None:
                        # Of random text attention learns nothing: the gains' gradients are rounding of sums near 0.
                        assert (grad - exact).norm() <= 0.06 * exact.norm() + 1e-5, name
                model.zero_grad()
            graphs = stats["unique_graphs"] if step < 2 else graphs
    loader.close()
    assert len(shapes) == 1
    assert stats["unique_graphs"] == graphs


def test_kernels_train_on_packed_documents_like_the_ops_they_stand_for() -> None:
    loader = Spans(Feed(text(), 8192, 128, device="cuda", border_id=BORDER), packed=True)
    ((x, y, borders),) = loader.next_step()
    loader.close()
    found = []
    modes: tuple[kernels.Mode, ...] = ("auto", "reference")
    for mode in modes:
        model = small("technique/xsa=all", mode=mode)
        weights = EffectiveWeights(model)
        weights.refresh()
        losses = model(x, y, borders=borders, noting=True)
        assert isinstance(losses, Losses)
        losses.nll.backward()
        weights.collect_gradients()
        gradients = {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}
        found.append((float(losses.nll.detach()), gradients))
    (fused, fast), (plain, exact) = found
    assert fused == pytest.approx(plain, rel=2e-3)
    assert fast.keys() == exact.keys()
    for name, gradient in exact.items():
        assert (fast[name] - gradient).norm() <= 0.06 * gradient.norm() + 1e-6, name


def test_techniques_and_terms_of_the_loss_compile_and_follow_the_eager_model() -> None:
    choices = ("xsa=all", "attn_gate=sparse", "smear_gate=v2", "bigram_hash=v1", "value_residual=v1",
               "value_embed=last2", "z_loss=v1", "mtp=v1")  # fmt: skip
    model = small("model/head=asymmetric", *(f"technique/{choice}" for choice in choices))
    model.border_id = BORDER
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0.0, 0.1)
    loader = Spans(Feed(text(), 8192, 128, device="cuda", border_id=BORDER), packed=True)
    ((x, y, borders),) = loader.next_step()
    loader.close()
    weights = EffectiveWeights(model)
    weights.refresh()
    found = []
    for run in (compiled(model, "model"), model):
        losses = run(x, y, borders=borders, noting=True)
        assert isinstance(losses, Losses)
        (losses.nll + sum(losses.terms.values())).backward()
        weights.collect_gradients()
        gradients = {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}
        found.append((losses.nll.detach(), losses.terms, gradients))
        model.zero_grad()
    (fused, terms, fast), (plain, wanted, exact) = found
    assert float(fused) == pytest.approx(float(plain), rel=2e-3)
    assert terms.keys() == {"z_loss", "mtp"}
    for name, term in terms.items():
        assert term.item() == pytest.approx(wanted[name].item(), rel=5e-3)
    assert fast.keys() == exact.keys()
    for name, gradient in exact.items():
        if gradient.numel() > 100:  # of a few numbers, sums over all tokens that nearly cancel, little is exact
            assert (fast[name] - gradient).norm() <= 0.06 * gradient.norm() + 1e-5, name
