"""FlashAttention-4's operator: values and gradients against exact attention, compiled without a break."""

from __future__ import annotations

import pytest
import torch

from golf.nn.attend import backend, installed, packed, sdpa
from golf.nn.context import Documents

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(not installed("flash_attn_4"), reason="flash-attn-4 is not installed"),
]
BORDERS = (0, 1, 130, 387, 600, 600, 600)


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
def test_whole_windows(time: int, kv_heads: int, compiled: bool) -> None:
    whole = backend("flash_attn_4").whole
    run = torch.compile(whole, fullgraph=True, dynamic=False) if compiled else whole
    given = draw(2, time, 8, kv_heads)
    exact = wide(given)
    check(run(*given), sdpa(*exact), given, exact)


@pytest.mark.parametrize("asked", [1, 64, 300])
def test_fewer_queries_stand_at_the_end(asked: int) -> None:
    q, k, v = draw(2, 512, 8, 4)
    exact = wide([q, k, v])
    out = backend("flash_attn_4").whole(q[:, -asked:], k, v)
    check(out, sdpa(*exact)[:, -asked:], [q, k, v], exact)


@pytest.mark.parametrize("compiled", [False, True])
def test_packed_documents(compiled: bool) -> None:
    documents = backend("flash_attn_4").packed
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
