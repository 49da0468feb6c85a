"""XSA in one pass over an attention's outputs and values, and one pass backward, float32 inside.

A program holds one kv head of some tokens, and goes through the query heads that read it: their shares of the value's
gradient are summed in registers. Twin: XSA.unfused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton

from golf.nn.techniques.xsa import XSA

TOKENS = 32
"""Tokens of one program."""


@triton.jit
def _unit(V, at, mask):
    """A value's direction, and its length [R, 1]."""
    v = tl.load(V + at, mask, 0.0).to(tl.float32)
    length = tl.sqrt(tl.sum(v * v, 1))[:, None]
    return v / tl.maximum(length, 1e-12), length


@triton.jit
def _xsa_forward(
    Y, V, OUT, rows, GROUP: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, R: tl.constexpr
):  # fmt: skip
    kv, kv_heads = tl.program_id(0), tl.num_programs(0)
    row = (tl.program_id(1).to(tl.int64) * R + tl.arange(0, R))[:, None]
    cols = tl.arange(0, BLOCK)[None, :]
    mask = (row < rows) & (cols < SIZE)
    unit, _ = _unit(V, (row * kv_heads + kv) * SIZE + cols, mask)
    for i in tl.static_range(GROUP):
        at = ((row * kv_heads + kv) * GROUP + i) * SIZE + cols
        y = tl.load(Y + at, mask, 0.0).to(tl.float32)
        tl.store(OUT + at, y - tl.sum(y * unit, 1)[:, None] * unit, mask)


@triton.jit
def _xsa_backward(
    DOUT, Y, V, DY, DV, rows, GROUP: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, R: tl.constexpr
):  # fmt: skip
    kv, kv_heads = tl.program_id(0), tl.num_programs(0)
    row = (tl.program_id(1).to(tl.int64) * R + tl.arange(0, R))[:, None]
    cols = tl.arange(0, BLOCK)[None, :]
    mask = (row < rows) & (cols < SIZE)
    own = (row * kv_heads + kv) * SIZE + cols
    unit, length = _unit(V, own, mask)
    dunit = tl.zeros([R, BLOCK], tl.float32)
    for i in tl.static_range(GROUP):
        at = ((row * kv_heads + kv) * GROUP + i) * SIZE + cols
        y = tl.load(Y + at, mask, 0.0).to(tl.float32)
        d = tl.load(DOUT + at, mask, 0.0).to(tl.float32)
        along = tl.sum(d * unit, 1)[:, None]
        tl.store(DY + at, d - along * unit, mask)
        dunit -= tl.sum(y * unit, 1)[:, None] * d + along * y
    across = dunit - tl.sum(dunit * unit, 1)[:, None] * unit  # a change along the value leaves its direction
    tl.store(DV + own, tl.where(length > 1e-12, across, dunit) / tl.maximum(length, 1e-12), mask)


def _launch(kernel: Any, y: torch.Tensor, v: torch.Tensor, tensors: tuple[torch.Tensor, ...]) -> None:
    (batch, time, heads, size), kv_heads = y.shape, v.shape[2]
    wrap_triton(kernel)[(kv_heads, triton.cdiv(batch * time, TOKENS))](
        *tensors, batch * time,
        GROUP=heads // kv_heads, SIZE=size, BLOCK=triton.next_power_of_2(size), R=TOKENS, num_warps=4,
    )  # fmt: skip


@triton_op("golf::xsa", mutates_args=())
def xsa(y: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """y [B, T, H, hd] less its component along v [B, T, Hkv, hd], of y's dtype."""
    y, v = y.contiguous(), v.contiguous()
    out = torch.empty_like(y)
    _launch(_xsa_forward, y, v, (y, v, out))
    return out


@triton_op("golf::xsa_backward", mutates_args=())
def xsa_backward(dout: torch.Tensor, y: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of y and v."""
    dout, y, v = dout.contiguous(), y.contiguous(), v.contiguous()
    dy, dv = torch.empty_like(y), torch.empty_like(v)
    _launch(_xsa_backward, y, v, (dout, y, v, dy, dv))
    return dy, dv


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, dout: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return xsa_backward(dout, *ctx.saved_tensors)  # type: ignore[no-any-return]


xsa.register_autograd(_gradients, setup_context=_save)


def fused(y: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Stands for `XSA.unfused`. A function: a model that held the operator itself could not be copied."""
    return xsa(y, v)  # type: ignore[no-any-return]


def stands_for(technique: XSA) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """What takes the place of a technique's `whole`."""
    return fused


class XSACase:
    """Forward and backward of one layer's XSA over `tokens` positions."""

    name = "xsa"

    def __init__(self, tokens: int, heads: int = 8, kv_heads: int = 4, size: int = 64) -> None:
        self.tokens, self.heads, self.kv_heads, self.size = tokens, heads, kv_heads, size
        self.shapes = f"{tokens} tokens, {heads}/{kv_heads} heads of {size}"

    def make(self, device: torch.device) -> tuple[Callable[[], Any], Callable[[], Any], float, float]:
        """The kernel and its twin (compiled), the bytes that both passes must move, and no FLOPs to speak of."""

        def draw(heads: int) -> torch.Tensor:
            return torch.randn(1, self.tokens, heads, self.size, device=device, dtype=torch.bfloat16)

        y, v, grad = draw(self.heads).requires_grad_(), draw(self.kv_heads).requires_grad_(), draw(self.heads)
        twin = torch.compile(reference, dynamic=False)

        def run(function: Callable[..., Any]) -> None:
            torch.autograd.backward(function(y, v), grad)
            y.grad = v.grad = None

        passes = 2 * self.heads + self.kv_heads + 3 * self.heads + 2 * self.kv_heads
        return lambda: run(xsa), lambda: run(twin), 2.0 * self.tokens * self.size * passes, 0.0


def reference(y: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """What `xsa` computes, by torch's own ops in the order of XSA, rounded once to y's dtype."""
    wide = v if v.dtype == torch.float64 else v.float()
    unit = (wide / wide.norm(dim=-1, keepdim=True).clamp_min(1e-12)).unsqueeze(3)
    grouped = y.to(wide.dtype).unflatten(2, (v.shape[2], -1))
    return (grouped - (grouped * unit).sum(-1, keepdim=True) * unit).flatten(2, 3).to(y.dtype)


CASES = [XSACase(65_536), XSACase(98_304)]
