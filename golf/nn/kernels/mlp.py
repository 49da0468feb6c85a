"""The squared-activation MLP with its activation inside the products: up(n) leaves the registers as φ(u) already.

Backward, the product with down's weight leaves them as the gradient of u, so neither u's activation nor its gradient is
a pass of its own over memory. Plain relu² keeps h = φ(u) alone: its slope is 2√h. A leaky one keeps u as well.
Products accumulate in float32. Twin: SquaredMLP.forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from golf.nn.context import Context
from golf.nn.models.mlp import SquaredMLP


class Tiles(NamedTuple):
    """Rows, columns and depth of a program's step, steps in flight, and rows of tiles worked on side by side."""

    rows: int
    columns: int
    depth: int
    stages: int
    group: int


FORWARD = Tiles(128, 256, 64, stages=4, group=1)
BACKWARD = Tiles(128, 256, 64, stages=3, group=8)


@triton.jit
def _leave(total, KEPT, OUT, row, col, BACKWARD: tl.constexpr, SLOPE: tl.constexpr):
    """What leaves the registers: φ(u), or backward the sum times φ'(u)."""
    if BACKWARD:
        kept = KEPT.load([row, col]).to(tl.float32)
        slope = tl.sqrt(kept) if SLOPE == 0 else tl.where(kept > 0, kept, SLOPE * SLOPE * kept)
        OUT.store([row, col], (2 * slope * total).to(tl.bfloat16))
    else:
        if SLOPE != 0:
            KEPT.store([row, col], total.to(tl.bfloat16))
        u = tl.maximum(total, SLOPE * total)
        OUT.store([row, col], (u * u).to(tl.bfloat16))


@triton.jit
def _mlp_product(
    A, B, KEPT, OUT, rows,
    N: tl.constexpr, K: tl.constexpr, BACKWARD: tl.constexpr, SLOPE: tl.constexpr,
    R: tl.constexpr, C: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """OUT [rows, N]: φ(A Bᵀ) of A [rows, K] and B [N, K], or backward A B ⊙ φ'(u) of A [rows, K] and B [K, N]."""
    across: tl.constexpr = (N + C - 1) // C
    down = tl.cdiv(rows, R)
    for tile in tl.range(tl.program_id(0), down * across, tl.num_programs(0), flatten=True):
        first = tile // (GROUP * across) * GROUP
        height = min(GROUP, down - first)
        row = (first + tile % (GROUP * across) % height) * R
        col = tile % (GROUP * across) // height * C
        total = tl.zeros([R, C], tl.float32)
        for depth in range(0, K, DEPTH):
            if BACKWARD:
                total = tl.dot(A.load([row, depth]), B.load([depth, col]), total)
            else:
                total = tl.dot(A.load([row, depth]), B.load([col, depth]).T, total)
        left, right = tl.split(tl.permute(tl.reshape(total, (R, 2, C // 2)), (0, 2, 1)))
        _leave(left, KEPT, OUT, row, col, BACKWARD, SLOPE)  # by halves: less shared memory
        _leave(right, KEPT, OUT, row, col + C // 2, BACKWARD, SLOPE)


def _launch(a: Tensor, b: Tensor, kept: Tensor, out: Tensor, slope: float, backward: bool) -> None:
    rows, columns = out.shape
    tiles = BACKWARD if backward else FORWARD
    block = [tiles.depth, tiles.columns] if backward else [tiles.columns, tiles.depth]
    half = [tiles.rows, tiles.columns // 2]
    count = triton.cdiv(rows, tiles.rows) * triton.cdiv(columns, tiles.columns)
    programs = min(count, torch.cuda.get_device_properties(a.device).multi_processor_count)
    _mlp_product[(programs,)](
        TensorDescriptor.from_tensor(a, [tiles.rows, tiles.depth]), TensorDescriptor.from_tensor(b, block),
        TensorDescriptor.from_tensor(kept, half), TensorDescriptor.from_tensor(out, half), rows,
        N=columns, K=a.shape[1], BACKWARD=backward, SLOPE=slope,
        R=tiles.rows, C=tiles.columns, DEPTH=tiles.depth, GROUP=tiles.group,
        num_warps=8, num_stages=tiles.stages,
    )  # fmt: skip


@torch.library.custom_op("golf::squared_mlp", mutates_args=())
def squared_mlp(n: Tensor, up: Tensor, down: Tensor, slope: float) -> tuple[Tensor, Tensor, Tensor]:
    """n [..., D], up [M, D], down [D, M], all bf16 → (the MLP's output [..., D], h [rows, M], u [rows, M] or empty)."""
    flat = n.reshape(-1, n.shape[-1]).contiguous()
    h = flat.new_empty(flat.shape[0], up.shape[0])
    u = torch.empty_like(h) if slope else h.new_empty(0, up.shape[0])
    _launch(flat, up.contiguous(), u if slope else h, h, slope, backward=False)
    return F.linear(h, down).view(n.shape), h, u


@squared_mlp.register_fake
def _(n: Tensor, up: Tensor, down: Tensor, slope: float) -> tuple[Tensor, Tensor, Tensor]:
    h = n.new_empty(n.numel() // n.shape[-1], up.shape[0])
    return n.new_empty(n.shape), h, torch.empty_like(h) if slope else h.new_empty(0, up.shape[0])


@torch.library.custom_op("golf::squared_mlp_backward", mutates_args=())
def squared_mlp_backward(
    dy: Tensor, n: Tensor, h: Tensor, u: Tensor, up: Tensor, down: Tensor, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of n, up and down, from that of the output."""
    dy, flat = dy.reshape(-1, dy.shape[-1]).contiguous(), n.reshape(-1, n.shape[-1])
    du = torch.empty_like(h)
    _launch(dy, down.contiguous(), u if slope else h, du, slope, backward=True)
    return (du @ up).view(n.shape), du.T @ flat, dy.T @ h


@squared_mlp_backward.register_fake
def _(
    dy: Tensor, n: Tensor, h: Tensor, u: Tensor, up: Tensor, down: Tensor, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    return n.new_empty(n.shape), torch.empty_like(up), torch.empty_like(down)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    n, up, down, ctx.slope = inputs
    _, h, u = output
    ctx.mark_non_differentiable(h, u)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(n, h, u, up, down)


def _gradients(ctx: Any, dy: Tensor, dh: None, du: None) -> tuple[Any, ...]:
    return *squared_mlp_backward(dy, *ctx.saved_tensors, ctx.slope), None


squared_mlp.register_autograd(_gradients, setup_context=_save)


class FusedMLP:
    """Stands for `SquaredMLP.unfused` where nothing sits between the activation and the second product."""

    def __init__(self, mlp: SquaredMLP) -> None:
        self.mlp = mlp

    def __call__(self, n: Tensor, ctx: Context) -> Tensor:
        """n [B, T, D] → [B, T, D] in the compute dtype."""
        mlp = self.mlp
        n = n.to(mlp.up.compute_dtype)  # a technique at mlp_in may have made it wider
        return squared_mlp(n, mlp.up.multiplier(), mlp.down.multiplier(), mlp.negative_slope)[0]


class MLPCase:
    """Forward and backward of one MLP over `tokens` positions, all six products included."""

    name = "mlp"

    def __init__(self, tokens: int, dim: int = 512, hidden: int = 1536) -> None:
        self.tokens, self.dim, self.hidden = tokens, dim, hidden
        self.shapes = f"{tokens} tokens, {dim} × {hidden}"

    def make(self, device: torch.device) -> tuple[Callable[[], Any], Callable[[], Any], float, float]:
        """The kernel and its twin (compiled), bytes read and written by the products, and their FLOPs."""

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, device=device, dtype=torch.bfloat16, requires_grad=True)

        n, up, down = draw(self.tokens, self.dim), draw(self.hidden, self.dim), draw(self.dim, self.hidden)
        grad = torch.randn(self.tokens, self.dim, device=device, dtype=torch.bfloat16)
        twin = torch.compile(reference, dynamic=False)

        def run(function: Callable[..., Any]) -> None:
            torch.autograd.backward(function(n, up, down, 0.0)[0], grad)
            n.grad = up.grad = down.grad = None

        moved = 2.0 * self.tokens * (6 * self.dim + 7 * self.hidden)
        return lambda: run(squared_mlp), lambda: run(twin), moved, 12.0 * self.tokens * self.dim * self.hidden


def reference(n: Tensor, up: Tensor, down: Tensor, slope: float) -> tuple[Tensor, ...]:
    """What `squared_mlp` computes, by torch's own ops in the order of SquaredMLP."""
    u = F.leaky_relu(F.linear(n, up), slope)
    return (F.linear(u * u, down),)


CASES = [MLPCase(65_536), MLPCase(98_304, hidden=2048)]
