"""The head and its cross entropy as one operator: the logits are read once, and their gradient is left in their place.

A program has a row of z = h Wᵀ in its registers: softcap, log-sum-exp, the target's nll and d nll / d z without another
pass. What the loss's gradient scales a token by is known only later, and reaches the two products backward with h and
dh, [tokens, D], instead of [tokens, V]. The arithmetic is float32; z and its gradient are bf16. In evaluation z is
only read. Twin: GPT.unfused_loss. Source: Parameter Golf PR 1787 (softcap and cross entropy in one pass); Liger Kernel
(the gradient made in the forward, in place).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from golf.nn.models.gpt import GPT, Reduction
from golf.nn.models.head import Head

REGISTERS = 16_384
"""Columns that a program keeps in registers; a longer row is read twice."""
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _block(Z, row, rows, start, V: tl.constexpr, BLOCK: tl.constexpr, CAP: tl.constexpr):
    """[R, BLOCK] of x, of which logits are a multiple and a constant: σ(2z/c), as c·tanh(z/c) = 2c·σ(2z/c) − c, or z
    without a cap; with their columns, addresses and mask."""
    cols = start + tl.arange(0, BLOCK)[None, :]
    mask = (row < rows) & (cols < V)
    at = row * V + cols
    x = tl.load(Z + at, mask, 0.0).to(tl.float32)
    if CAP != 0:
        root = tl.rsqrt(1 + tl.exp2(x * (-2 * LOG2E / CAP)))  # cheaper than a division
        x = root * root
    if V % BLOCK != 0:
        x = tl.where(cols < V, x, float("-inf"))
    return x, cols, at, mask


@triton.jit
def _by_z(x, share, total, hit, CAP: tl.constexpr):
    """d nll / d z of columns with share / total of the probability."""
    if CAP == 0:
        d = share * (1 / total) - tl.where(hit, 1.0, 0.0)
    else:
        d = (share * (4 / total) - tl.where(hit, 4.0, 0.0)) * (x - x * x)
    return d


@triton.jit
def _head_loss(
    Z, TARGETS, NLL, rows,
    V: tl.constexpr, BLOCK: tl.constexpr, CAP: tl.constexpr, R: tl.constexpr, DIFFERENTIATE: tl.constexpr,
):  # fmt: skip
    """NLL [rows] of z in Z [rows, V]; with DIFFERENTIATE Z then holds the gradient of each row's nll by its z."""
    unit: tl.constexpr = LOG2E if CAP == 0 else 2 * CAP * LOG2E  # from x to logits in powers of two
    line = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    row = line[:, None]
    target = tl.load(TARGETS + line, line < rows, 0).to(tl.int32)[:, None]
    if V <= BLOCK:
        x, cols, at, mask = _block(Z, row, rows, 0, V, BLOCK, CAP)
        top = tl.max(x, 1)[:, None] * unit
        share = tl.exp2(x * unit - top)
        total = tl.sum(share, 1)[:, None]
        hit = cols == target
        own = tl.sum(tl.where(hit, x, 0.0), 1)[:, None]
        if DIFFERENTIATE:
            tl.store(Z + at, _by_z(x, share, total, hit, CAP), mask)
    else:
        top = tl.full([R, 1], float("-inf"), tl.float32)
        total = tl.zeros([R, 1], tl.float32)
        own = tl.zeros([R, 1], tl.float32)
        for start in range(0, V, BLOCK):
            x, cols, _, _ = _block(Z, row, rows, start, V, BLOCK, CAP)
            higher = tl.maximum(top, tl.max(x, 1)[:, None] * unit)
            total = total * tl.exp2(top - higher) + tl.sum(tl.exp2(x * unit - higher), 1)[:, None]
            own += tl.sum(tl.where(cols == target, x, 0.0), 1)[:, None]
            top = higher
        if DIFFERENTIATE:
            for start in range(0, V, BLOCK):
                x, cols, at, mask = _block(Z, row, rows, start, V, BLOCK, CAP)
                tl.store(Z + at, _by_z(x, tl.exp2(x * unit - top), total, cols == target, CAP), mask)
    tl.store(NLL + row, (top + tl.log2(total) - own * unit) * (1 / LOG2E), row < rows)


def _launch(z: Tensor, targets: Tensor, nll: Tensor, softcap: float, differentiate: bool) -> None:
    rows, columns = z.shape
    block = min(triton.next_power_of_2(columns), REGISTERS)
    tile = max(1, 2048 // block)
    _head_loss[(triton.cdiv(rows, tile),)](
        z, targets, nll, rows, V=columns, BLOCK=block, CAP=softcap, R=tile, DIFFERENTIATE=differentiate,
        num_warps=max(4, block // 1024),
    )  # fmt: skip


@torch.library.custom_op("golf::head_loss", mutates_args=())
def head_loss(h: Tensor, weight: Tensor, targets: Tensor, softcap: float, differentiate: bool) -> tuple[Tensor, Tensor]:
    """h [N, D] and weight [V, D] bf16, targets int64 [N] → (nll float32 [N], d nll / d z bf16 [N, V]).

    softcap 0: none. Without `differentiate` the gradient is empty.
    """
    z = F.linear(h, weight)
    nll = z.new_empty(z.shape[0], dtype=torch.float32)
    _launch(z, targets.contiguous(), nll, softcap, differentiate)
    return nll, z if differentiate else z.new_empty(0)


@head_loss.register_fake
def _(h: Tensor, weight: Tensor, targets: Tensor, softcap: float, differentiate: bool) -> tuple[Tensor, Tensor]:
    rows, columns = h.shape[0], weight.shape[0]
    return h.new_empty(rows, dtype=torch.float32), h.new_empty((rows, columns) if differentiate else 0)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    h, weight, *_ = inputs
    _, dz = output
    ctx.mark_non_differentiable(dz)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(h, weight, dz)


def _gradients(ctx: Any, dnll: Tensor, ddz: None) -> tuple[Any, ...]:
    h, weight, dz = ctx.saved_tensors
    dh = dweight = None
    if ctx.needs_input_grad[0]:
        dh = ((dz @ weight) * dnll[:, None]).to(h.dtype)
    if ctx.needs_input_grad[1]:
        dweight = dz.T @ (h * dnll[:, None]).to(h.dtype)
    return dh, dweight, None, None, None


head_loss.register_autograd(_gradients, setup_context=_save)


class FusedLoss:
    """Stands for `GPT.unfused_loss` where nothing sits at the logits."""

    def __init__(self, head: Head) -> None:
        self.head = head

    def __call__(self, h: Tensor, embedding: Tensor, targets: Tensor, reduction: Reduction) -> Tensor:
        """h [B, T, D], embedding [V, D], targets [B, T] → the nll in float32: a scalar, or [B T] for "none"."""
        head = self.head
        flat = h.to(head.dtype).flatten(0, 1)
        weight = head.matrix(embedding).to(head.dtype)
        nll, _ = head_loss(flat, weight, targets.flatten(), head.softcap or 0.0, torch.is_grad_enabled())
        if reduction == "none":
            return nll
        return nll.mean() if reduction == "mean" else nll.sum()


def stands_for(model: GPT) -> FusedLoss:
    """What takes the place of a model's `loss`."""
    assert isinstance(model.head, Head)
    return FusedLoss(model.head)


class LossCase:
    """Forward and backward of the head and the mean nll of `tokens` tokens, all three products included."""

    name = "loss"

    def __init__(self, tokens: int, vocab_size: int, dim: int = 512, softcap: float = 30.0) -> None:
        self.tokens, self.vocab_size, self.dim, self.softcap = tokens, vocab_size, dim, softcap
        self.shapes = f"{tokens} tokens, {dim} × {vocab_size}"

    def make(self, device: torch.device) -> tuple[Callable[[], Any], Callable[[], Any], float, float]:
        """The kernel and its twin (both compiled), bytes read and written by products and loss, and their FLOPs."""

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, device=device, dtype=torch.bfloat16)

        h = draw(self.tokens, self.dim).requires_grad_()
        weight = (draw(self.vocab_size, self.dim) / self.dim**0.5).requires_grad_()
        targets = torch.randint(self.vocab_size, (self.tokens,), device=device)

        def prepared(function: Callable[..., Any]) -> Callable[[], Any]:
            fast = torch.compile(lambda: function(h, weight, targets, self.softcap, True)[0].mean(), dynamic=False)

            def run() -> None:
                fast().backward()
                h.grad = weight.grad = None

            return run

        wide, narrow = self.tokens * self.vocab_size, (self.tokens + self.vocab_size) * self.dim
        # z and its gradient: written and read by the product and the loss, and the gradient read by two products
        return prepared(head_loss), prepared(reference), 2.0 * (5 * wide + 5 * narrow), 6.0 * wide * self.dim


def reference(h: Tensor, weight: Tensor, targets: Tensor, softcap: float, differentiate: bool) -> tuple[Tensor]:
    """What `head_loss` computes, by torch's own ops in the order of Head and GPT.unfused_loss: the nll alone."""
    z = F.linear(h, weight)
    z = z if z.dtype == torch.float64 else z.float()
    if softcap:
        z = softcap * torch.tanh(z / softcap)
    return (F.cross_entropy(z, targets, reduction="none"),)


CASES = [LossCase(65_536, 1024), LossCase(98_304, 8192)]
