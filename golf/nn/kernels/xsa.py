"""XSA, and a gate behind it, in one pass over an attention's outputs and values, and one pass backward, float32 inside.

A program holds one kv head of some tokens, and goes through the query heads that read it: their shares of the value's
gradient are summed in registers. Twin: CausalAttention.unfused_out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from golf.nn.context import Context
from golf.nn.models.attention import CausalAttention
from golf.nn.techniques.attn_gate import AttnGate
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
    Y, V, G, OUT, rows,
    GROUP: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, R: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    kv, kv_heads = tl.program_id(0), tl.num_programs(0)
    line = tl.program_id(1).to(tl.int64) * R + tl.arange(0, R)
    row = line[:, None]
    cols = tl.arange(0, BLOCK)[None, :]
    mask = (row < rows) & (cols < SIZE)
    unit, _ = _unit(V, (row * kv_heads + kv) * SIZE + cols, mask)
    for i in tl.static_range(GROUP):
        head = (line * kv_heads + kv) * GROUP + i
        at = head[:, None] * SIZE + cols
        y = tl.load(Y + at, mask, 0.0).to(tl.float32)
        out = y - tl.sum(y * unit, 1)[:, None] * unit
        if GATED:
            out *= tl.load(G + head, line < rows, 0.0).to(tl.float32)[:, None]
        tl.store(OUT + at, out, mask)


@triton.jit
def _xsa_backward(
    DOUT, Y, V, G, DY, DV, DG, rows,
    GROUP: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, R: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    kv, kv_heads = tl.program_id(0), tl.num_programs(0)
    line = tl.program_id(1).to(tl.int64) * R + tl.arange(0, R)
    row = line[:, None]
    cols = tl.arange(0, BLOCK)[None, :]
    mask = (row < rows) & (cols < SIZE)
    own = (row * kv_heads + kv) * SIZE + cols
    unit, length = _unit(V, own, mask)
    dunit = tl.zeros([R, BLOCK], tl.float32)
    for i in tl.static_range(GROUP):
        head = (line * kv_heads + kv) * GROUP + i
        at = head[:, None] * SIZE + cols
        y = tl.load(Y + at, mask, 0.0).to(tl.float32)
        d = tl.load(DOUT + at, mask, 0.0).to(tl.float32)
        along_y = tl.sum(y * unit, 1)[:, None]
        along_d = tl.sum(d * unit, 1)[:, None]
        if GATED:
            tl.store(DG + head, tl.sum(d * (y - along_y * unit), 1), line < rows)
            gate = tl.load(G + head, line < rows, 0.0).to(tl.float32)[:, None]
            d *= gate
            along_d *= gate
        tl.store(DY + at, d - along_d * unit, mask)
        dunit -= along_y * d + along_d * y
    across = dunit - tl.sum(dunit * unit, 1)[:, None] * unit  # a change along the value leaves its direction
    tl.store(DV + own, tl.where(length > 1e-12, across, dunit) / tl.maximum(length, 1e-12), mask)


def _launch(kernel: Any, y: Tensor, v: Tensor, tensors: tuple[Tensor, ...], gated: bool) -> None:
    (batch, time, heads, size), kv_heads = y.shape, v.shape[2]
    wrap_triton(kernel)[(kv_heads, triton.cdiv(batch * time, TOKENS))](
        *tensors, batch * time,
        GROUP=heads // kv_heads, SIZE=size, BLOCK=triton.next_power_of_2(size), R=TOKENS, GATED=gated, num_warps=4,
    )  # fmt: skip


@triton_op("golf::xsa", mutates_args=(), schema="(Tensor y, Tensor v, Tensor? gate) -> Tensor")
def xsa(y: Tensor, v: Tensor, gate: Tensor | None) -> Tensor:
    """y [B, T, H, hd] less its component along v [B, T, Hkv, hd], times the gate [B, T, H] if any; of y's dtype."""
    y, v = y.contiguous(), v.contiguous()
    out = torch.empty_like(y)
    given = y if gate is None else gate.contiguous()  # in place of none a pointer that is never followed
    _launch(_xsa_forward, y, v, (y, v, given, out), gate is not None)
    return out


@triton_op(
    "golf::xsa_backward", mutates_args=(),
    schema="(Tensor dout, Tensor y, Tensor v, Tensor? gate) -> (Tensor, Tensor, Tensor)",
)  # fmt: skip
def xsa_backward(dout: Tensor, y: Tensor, v: Tensor, gate: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of y, v and the gate; the last is empty where there is none."""
    dout, y, v = dout.contiguous(), y.contiguous(), v.contiguous()
    given = y.new_empty(0) if gate is None else gate.contiguous()
    dy, dv, dgate = (torch.empty_like(x) for x in (y, v, given))
    _launch(_xsa_backward, y, v, (dout, y, v, given, dy, dv, dgate), gate is not None)
    return dy, dv, dgate


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    *given, gate = ctx.saved_tensors
    dy, dv, dgate = xsa_backward(dout, *given, gate)
    return dy, dv, None if gate is None else dgate


xsa.register_autograd(_gradients, setup_context=_save)


class FusedOut:
    """Stands for `CausalAttention.unfused_out`: of the techniques that are on, XSA and a gate right behind it are one
    pass."""

    def __init__(self, attention: CausalAttention) -> None:
        self.attention = attention

    def __call__(self, y: Tensor, ctx: Context) -> Tensor:
        """y [B, T, H, hd] → the same shape; of y's dtype where XSA comes last or its gate does."""
        waiting = list(self.attention.at_heads_out.values())
        while waiting:
            technique = waiting.pop(0)
            if type(technique) is XSA:
                assert ctx.v is not None
                behind, gate = waiting[0] if waiting else None, None
                if type(behind) is AttnGate:
                    gate = behind.gate(ctx)
                    waiting.pop(0)
                y = xsa(y, ctx.v, gate)
            else:
                y = technique(y, ctx)
        return y


stands_for = FusedOut


class XSACase:
    """Forward and backward of one layer's XSA over `tokens` positions, with a gate behind it or without."""

    name = "xsa"

    def __init__(self, tokens: int, heads: int = 8, kv_heads: int = 4, size: int = 64, gated: bool = False) -> None:
        self.tokens, self.heads, self.kv_heads, self.size, self.gated = tokens, heads, kv_heads, size, gated
        self.shapes = f"{tokens} tokens, {heads}/{kv_heads} heads of {size}{', gated' if gated else ''}"

    def make(self, device: torch.device) -> tuple[Callable[[], Any], Callable[[], Any], float, float]:
        """The kernel and its twin (compiled), the bytes that both passes must move, and no FLOPs to speak of."""

        def draw(heads: int) -> Tensor:
            return torch.randn(1, self.tokens, heads, self.size, device=device, dtype=torch.bfloat16)

        y, v, grad = draw(self.heads).requires_grad_(), draw(self.kv_heads).requires_grad_(), draw(self.heads)
        gate = torch.rand(1, self.tokens, self.heads, device=device).requires_grad_() if self.gated else None
        twin = torch.compile(reference, dynamic=False)

        def run(function: Callable[..., Any]) -> None:
            torch.autograd.backward(function(y, v, gate), grad)
            for tensor in (y, v, gate):
                if tensor is not None:
                    tensor.grad = None

        passes = 2 * self.heads + self.kv_heads + 3 * self.heads + 2 * self.kv_heads
        gates = 3 * 4.0 * self.heads if self.gated else 0.0
        return lambda: run(xsa), lambda: run(twin), self.tokens * (2.0 * self.size * passes + gates), 0.0


def reference(y: Tensor, v: Tensor, gate: Tensor | None) -> Tensor:
    """What `xsa` computes, by torch's own ops in the order of the techniques, rounded once to y's dtype."""
    wide = v if v.dtype == torch.float64 else v.float()
    unit = (wide / wide.norm(dim=-1, keepdim=True).clamp_min(1e-12)).unsqueeze(3)
    grouped = y.to(wide.dtype).unflatten(2, (v.shape[2], -1))
    out = (grouped - (grouped * unit).sum(-1, keepdim=True) * unit).flatten(2, 3)
    return (out if gate is None else out * gate[..., None]).to(y.dtype)


CASES = [XSACase(65_536), XSACase(98_304), XSACase(98_304, gated=True)]
