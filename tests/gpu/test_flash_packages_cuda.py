"""The packages of attention that are installed: operators against exact attention, compiled, and a model of each."""

from __future__ import annotations

import pytest
import torch

from golf.launch.compose.build import build_model
from golf.launch.compose.configs import compose_job, composer, resolved
from golf.nn import kernels
from golf.nn.attend import (
    OPTIONAL,
    QUICKEST,
    Backend,
    backend,
    installed,
    packed,
    preferred_sdpa_kernels,
    quickest,
    sdpa,
)
from golf.nn.context import Documents
from golf.nn.linear import EffectiveWeights
from golf.nn.models.gpt import GPT
from golf.train.compiling import compiled

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
BORDERS = (0, 1, 130, 387, 600, 600, 600)


@pytest.fixture(params=OPTIONAL)
def name(request: pytest.FixtureRequest) -> Backend:
    chosen: Backend = request.param
    if not installed(chosen):
        pytest.skip(f"{chosen} is not installed")
    return chosen


def draw(batch: int, time: int, heads: int, kv_heads: int) -> list[torch.Tensor]:
    shapes = [(batch, time, n, 64) for n in (heads, kv_heads, kv_heads)]
    return [torch.randn(shape, device="cuda").bfloat16().requires_grad_() for shape in shapes]


def wide(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [t.detach().double().requires_grad_() for t in tensors]


def check(out: torch.Tensor, want: torch.Tensor, given: list[torch.Tensor], exact: list[torch.Tensor]) -> None:
    assert (out - want).norm() / want.norm() < 1e-2
    grad = torch.randn_like(out)
    out.backward(grad)
    want.backward(grad.double())
    for fast, slow in zip(given, exact, strict=True):
        assert (fast.grad - slow.grad).norm() / slow.grad.norm() < 1e-2


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kv_heads", [8, 4])
@pytest.mark.parametrize("time", [512, 333])
def test_whole_windows(name: Backend, time: int, kv_heads: int, compiled: bool) -> None:
    whole = backend(name).whole
    run = torch.compile(whole, fullgraph=True, dynamic=False) if compiled else whole
    given = draw(2, time, 8, kv_heads)
    exact = wide(given)
    check(run(*given), sdpa(*exact), given, exact)


@pytest.mark.parametrize("asked", [1, 64, 300])
def test_fewer_queries_stand_at_the_end(name: Backend, asked: int) -> None:
    q, k, v = draw(2, 512, 8, 4)
    exact = wide([q, k, v])
    out = backend(name).whole(q[:, -asked:], k, v)
    check(out, sdpa(*exact)[:, -asked:], [q, k, v], exact)


def test_what_is_installed_can_serve(name: Backend) -> None:
    assert backend(name).why_not(torch.device("cuda"), torch.bfloat16, 64) is None


def test_the_quickest_is_the_first_that_is_installed() -> None:
    names = [name for name in QUICKEST if installed(name)]
    want = backend(names[0]).name if names else "sdpa"
    assert quickest(torch.device("cuda"), torch.bfloat16, 64).name == want
    assert quickest(torch.device("cuda"), torch.float32, 64).name == "sdpa"


@pytest.mark.parametrize("compiled", [False, True])
def test_packed_documents(name: Backend, compiled: bool) -> None:
    documents = backend(name).packed
    assert documents is not None

    def fast(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, borders: torch.Tensor) -> torch.Tensor:
        return documents(q, k, v, Documents.of(borders, 600, 300))

    run = torch.compile(fast, fullgraph=True, dynamic=False) if compiled else fast
    given = draw(1, 600, 8, 4)
    exact = [t.detach().float().cpu().requires_grad_() for t in given]
    borders = torch.tensor(BORDERS, dtype=torch.int32)
    out, want = run(*given, borders.cuda()), packed(*exact, Documents.of(borders, 600, 300))
    assert (out.cpu() - want).norm() / want.norm() < 1e-2
    grad = torch.randn(out.shape)
    out.backward(grad.bfloat16().cuda())
    want.backward(grad.bfloat16().float())
    for slow, quick in zip(exact, given, strict=True):
        assert (quick.grad.cpu() - slow.grad).norm() / slow.grad.norm() < 1e-2


SMALL = ("recipe=naive_baseline", "model.model_dim=256", "model.num_heads=4", "model.num_kv_heads=2",
         "model.num_layers=3", "train_seq_len=256", "tokenizer=byte260")  # fmt: skip


def model_by(name: Backend) -> GPT:
    """A small model on the GPU, in training's numerics and with its kernels; the same weights by any attention."""
    with composer():
        model = build_model(resolved(compose_job([*SMALL, f"model.attention.backend={name}"])), "bfloat16")
    model.initialize(1337)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():  # projections that start at zero would hide the attention
        for key, parameter in model.named_parameters():
            if key.endswith("weight"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[1] ** 0.5)
    model.cuda()
    assert kernels.install(model) == []
    return model


def loss_and_gradients(model: GPT, how: str) -> tuple[float, dict[str, torch.Tensor]]:
    ids = torch.randint(4, 260, (4, 257), generator=torch.Generator().manual_seed(1)).cuda()
    run = model if how == "eager" else compiled(model, "model", as_graphs=how == "recorded")
    weights = EffectiveWeights(model)
    weights.refresh()
    for _ in range(3 if how == "recorded" else 1):  # compiled by the first, recorded by the second
        model.zero_grad()
        torch.compiler.cudagraph_mark_step_begin()
        with preferred_sdpa_kernels(ids.device):
            loss = run(ids[:, :-1], ids[:, 1:])
            loss.backward()
        weights.collect_gradients()
    return float(loss.detach()), {n: p.grad.float() for n, p in model.named_parameters() if p.grad is not None}


def test_a_model_keeps_the_attention_that_it_was_given(name: Backend) -> None:
    assert model_by(name).kernels()["attention"] == backend(name).name


@pytest.mark.parametrize("how", ["eager", "compiled", "recorded"])
def test_a_model_learns_by_it_what_it_learns_by_torchs_own(name: Backend, how: str) -> None:
    want, want_grads = loss_and_gradients(model_by("sdpa"), "eager")
    loss, grads = loss_and_gradients(model_by(name), how)
    assert loss == pytest.approx(want, rel=2e-3)
    assert grads.keys() == want_grads.keys()
    for name, grad in want_grads.items():
        assert (grads[name] - grad).norm() <= 0.06 * grad.norm() + 1e-6, name
