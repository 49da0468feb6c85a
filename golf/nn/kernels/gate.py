"""The gates of attention's heads from a few first features of its input: one pass forward, one backward.

Alone they are a padded copy of the weight, a product far too thin for its kernel, and a sigmoid; backward two such
products. A program makes all heads' gates of some tokens, in float32 with the product rounded as the twin's is; its
part of the weight's gradient is summed with the others' afterwards. Twin: AttnGate.unfused_gate.
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
from golf.nn.techniques.attn_gate import AttnGate

TILE = 8192
"""Products of a feature with a weight that a program holds at once: tokens × heads × features."""


@triton.jit
def _sigmoids(
    N, W, line, rows, slope, WIDE: tl.constexpr, H: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Features [R, BLOCK], weights [HEADS, BLOCK], and σ(slope · W n) [R, HEADS]; zeros beyond either's end."""
    heads, cols = tl.arange(0, HEADS), tl.arange(0, BLOCK)
    used = (cols < WIDTH)[None, :]
    n = tl.load(N + line[:, None] * WIDE + cols[None, :], (line < rows)[:, None] & used, 0.0).to(tl.float32)
    w = tl.load(W + heads[:, None] * WIDTH + cols[None, :], (heads < H)[:, None] & used, 0.0)
    w = w.to(tl.bfloat16).to(tl.float32)
    product = tl.sum(n[:, None, :] * w[None, :, :], 2).to(tl.bfloat16).to(tl.float32)
    return n, w, tl.sigmoid(slope * product)


@triton.jit
def _gate_forward(
    N, W, G, rows, slope, ceiling,
    WIDE: tl.constexpr, H: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr,
    R: tl.constexpr,
):  # fmt: skip
    line = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    heads = tl.arange(0, HEADS)
    _, _, s = _sigmoids(N, W, line, rows, slope, WIDE, H, WIDTH, HEADS, BLOCK)
    tl.store(G + line[:, None] * H + heads[None, :], ceiling * s, (line < rows)[:, None] & (heads < H)[None, :])


@triton.jit
def _gate_backward(
    DG, N, W, DN, DW, rows, slope, ceiling,
    WIDE: tl.constexpr, H: tl.constexpr, WIDTH: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr,
    R: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    line = block.to(tl.int64) * R + tl.arange(0, R)
    heads, cols = tl.arange(0, HEADS), tl.arange(0, BLOCK)
    n, w, s = _sigmoids(N, W, line, rows, slope, WIDE, H, WIDTH, HEADS, BLOCK)
    mask = (line < rows)[:, None] & (heads < H)[None, :]
    d = tl.load(DG + line[:, None] * H + heads[None, :], mask, 0.0).to(tl.float32) * (ceiling * slope) * s * (1 - s)
    dn = tl.sum(d[:, :, None] * w[None, :, :], 1)
    tl.store(DN + line[:, None] * WIDE + cols[None, :], dn, (line < rows)[:, None] & (cols < WIDE)[None, :])
    dw = tl.sum(d[:, :, None] * n[:, None, :], 0)
    at = (block * H + heads)[:, None] * WIDTH + cols[None, :]
    tl.store(DW + at, dw, (heads < H)[:, None] & (cols < WIDTH)[None, :])


def _sizes(n: Tensor, weight: Tensor) -> dict[str, int]:
    wide, (heads, width) = n.shape[-1], weight.shape
    padded, block = triton.next_power_of_2(heads), triton.next_power_of_2(wide)
    tokens = max(1, TILE // (padded * block))
    return {"WIDE": wide, "H": heads, "WIDTH": width, "HEADS": padded, "BLOCK": block, "R": tokens}


@triton_op("golf::gate", mutates_args=(), schema="(Tensor n, Tensor weight, float slope, float ceiling) -> Tensor")
def gate(n: Tensor, weight: Tensor, slope: float, ceiling: float) -> Tensor:
    """ceiling · σ(slope · W n) [B, T, H] float32, of n bf16 [B, T, ≥ width] and W float32 [H, width], which products
    take as bf16."""
    n, weight = n.contiguous(), weight.contiguous()
    rows, sizes = n.shape[0] * n.shape[1], _sizes(n, weight)
    out = n.new_empty(*n.shape[:2], weight.shape[0], dtype=torch.float32)
    wrap_triton(_gate_forward)[(triton.cdiv(rows, sizes["R"]),)](
        n, weight, out, rows, slope, ceiling, **sizes, num_warps=4
    )
    return out


@triton_op(
    "golf::gate_backward", mutates_args=(),
    schema="(Tensor dgate, Tensor n, Tensor weight, float slope, float ceiling) -> (Tensor, Tensor)",
)  # fmt: skip
def gate_backward(dgate: Tensor, n: Tensor, weight: Tensor, slope: float, ceiling: float) -> tuple[Tensor, Tensor]:
    """The gradient of n, and that of the weight as float32 parts [blocks of tokens, H, width]."""
    dgate, n, weight = dgate.contiguous(), n.contiguous(), weight.contiguous()
    rows, sizes = n.shape[0] * n.shape[1], _sizes(n, weight)
    blocks = triton.cdiv(rows, sizes["R"])
    dn, parts = torch.empty_like(n), weight.new_empty(blocks, *weight.shape, dtype=torch.float32)
    wrap_triton(_gate_backward)[(blocks,)](dgate, n, weight, dn, parts, rows, slope, ceiling, **sizes, num_warps=4)
    return dn, parts


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    n, weight, ctx.slope, ctx.ceiling = inputs
    ctx.save_for_backward(n, weight)


def _gradients(ctx: Any, dgate: Tensor) -> tuple[Any, ...]:
    n, weight = ctx.saved_tensors
    dn, parts = gate_backward(dgate, n, weight, ctx.slope, ctx.ceiling)
    return dn, parts.sum(0).to(weight.dtype), None, None


gate.register_autograd(_gradients, setup_context=_save)


class FusedGate:
    """Stands for `AttnGate.unfused_gate` where few features are read."""

    def __init__(self, technique: AttnGate) -> None:
        self.technique = technique

    def __call__(self, ctx: Context) -> Tensor:
        """As the method has it."""
        one = self.technique
        assert one.width is not None
        return gate(ctx.first_of_n(one.width), one.weight, one.slope, one.ceiling)


stands_for = FusedGate


class GateCase:
    """Forward and backward of one layer's gates over `tokens` positions."""

    name = "gate"

    def __init__(self, tokens: int, heads: int = 8, width: int = 12, wide: int = 16) -> None:
        self.tokens, self.heads, self.width, self.wide = tokens, heads, width, wide
        self.shapes = f"{tokens} tokens, {heads} heads of {width} features"

    def make(self, device: torch.device) -> tuple[Callable[[], Any], Callable[[], Any], float, float]:
        """The kernel and its twin (compiled), the bytes that both passes must move, and no FLOPs to speak of."""
        n = torch.randn(1, self.tokens, self.wide, device=device, dtype=torch.bfloat16, requires_grad=True)
        weight = torch.randn(self.heads, self.width, device=device, requires_grad=True)
        grad = torch.randn(1, self.tokens, self.heads, device=device)
        twin = torch.compile(reference, dynamic=False)

        def run(function: Callable[..., Any]) -> None:
            torch.autograd.backward(function(n, weight, 0.5, 1.0), grad)
            n.grad = weight.grad = None

        return lambda: run(gate), lambda: run(twin), self.tokens * (3 * 2.0 * self.wide + 2 * 4.0 * self.heads), 0.0


def reference(n: Tensor, weight: Tensor, slope: float, ceiling: float) -> Tensor:
    """What `gate` computes, by torch's own ops."""
    product = n[..., : weight.shape[1]] @ weight.to(n.dtype).mT
    return ceiling * torch.sigmoid(slope * (product if n.dtype == torch.float64 else product.float()))


CASES = [GateCase(98_304)]
