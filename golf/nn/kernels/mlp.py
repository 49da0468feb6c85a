"""The squared-activation MLP with its activation inside the products: up(n) leaves the registers as φ(u) already.

Backward, the product with down's weight leaves them as the gradient of u, so neither u's activation nor its gradient is
a pass of its own over memory. What is kept is h = φ(u) alone: the slope is 2√h, and of a leaky φ −2·slope·√h where u
was negative, which the last bit of h tells. That takes half a bit of h; it is still nearer to φ(u) than the square of a
rounded u. Products accumulate in float32. Twin: SquaredMLP.unfused.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from golf.common.log import logger
from golf.nn.context import Context
from golf.nn.models.mlp import SquaredMLP


class Tiles(NamedTuple):
    """Rows, columns and depth of a program's step; steps in flight; warps; programs a multiprocessor; GROUP."""

    rows: int
    columns: int
    depth: int
    stages: int
    warps: int
    programs: int
    group: int


FORWARD = Tiles(128, 256, 64, stages=4, warps=8, programs=1, group=1)
BACKWARD = Tiles(128, 128, 64, stages=3, warps=4, programs=2, group=16)


@triton.jit
def _corner(tile, rows, N: tl.constexpr, R: tl.constexpr, C: tl.constexpr, GROUP: tl.constexpr):
    """A tile's first row and column. GROUP rows of tiles are worked on side by side: they share what they read."""
    across: tl.constexpr = (N + C - 1) // C
    first = tile // (GROUP * across) * GROUP
    height = min(GROUP, tl.cdiv(rows, R) - first)
    return (first + tile % (GROUP * across) % height) * R, tile % (GROUP * across) // height * C


@triton.jit
def _halves(total, R: tl.constexpr, C: tl.constexpr):
    """Left and right half of [R, C]: what leaves the registers by halves takes half the shared memory."""
    return tl.split(tl.permute(tl.reshape(total, (R, 2, C // 2)), (0, 2, 1)))


@triton.jit
def _marked(h, negative):
    """Float32 h ≥ 0 → the nearest number that bf16 holds and whose last bit there is set just where `negative` is."""
    bit = negative.to(tl.int32) << 16
    nearest = (h.to(tl.int32, bitcast=True) - bit + 0x10000) >> 17
    return ((nearest << 17) | bit).to(tl.float32, bitcast=True)


@triton.jit
def _activate(total, H, row, col, SLOPE: tl.constexpr):
    u = tl.maximum(total, SLOPE * total)
    h = u * u
    if SLOPE != 0:
        h = _marked(h, total < 0)
    H.store([row, col], h.to(tl.bfloat16))


@triton.jit
def _up(
    A, B, H, rows,
    N: tl.constexpr, K: tl.constexpr, SLOPE: tl.constexpr,
    R: tl.constexpr, C: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """H [rows, N] = φ(A Bᵀ) of A [rows, K] and B [N, K], marked where the product is negative if φ is leaky."""
    tiles = tl.cdiv(rows, R) * tl.cdiv(N, C)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        row, col = _corner(tile, rows, N, R, C, GROUP)
        total = tl.zeros([R, C], tl.float32)
        for depth in range(0, K, DEPTH):
            total = tl.dot(A.load([row, depth]), B.load([col, depth]).T, total)
        left, right = _halves(total, R, C)
        _activate(left, H, row, col, SLOPE)
        _activate(right, H, row, col + C // 2, SLOPE)


@triton.jit
def _kept(H, row, col, rows, N: tl.constexpr, R: tl.constexpr, C: tl.constexpr):
    """The tile [R, C] at (row, col) of H [rows, N]."""
    row += tl.arange(0, R)
    col += tl.arange(0, C)
    at = row.to(tl.int64)[:, None] * N + col[None, :]
    return tl.load(H + at, (row < rows)[:, None] & (col < N)[None, :])


@triton.jit
def _differentiate(total, kept, OUT, row, col, SLOPE: tl.constexpr):
    kept = kept.to(tl.float32)
    slope = tl.sqrt(kept)
    if SLOPE != 0:
        negative = kept.to(tl.int32, bitcast=True) & 0x10000
        slope *= tl.where(negative != 0, -SLOPE, 1.0)
    OUT.store([row, col], (2 * slope * total).to(tl.bfloat16))


@triton.jit
def _down_gradient(
    A, B, H, OUT, rows,
    N: tl.constexpr, K: tl.constexpr, SLOPE: tl.constexpr,
    R: tl.constexpr, C: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """OUT [rows, N] = A B ⊙ φ'(u) of A [rows, K] and B [K, N], and H [rows, N] as `_up` left it."""
    tiles = tl.cdiv(rows, R) * tl.cdiv(N, C)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0)):
        row, col = _corner(tile, rows, N, R, C, GROUP)
        # Asked for before the products and into registers: it travels while they run. Two programs a multiprocessor,
        # so that one multiplies while the other writes.
        kept_left = _kept(H, row, col, rows, N, R, C // 2)
        kept_right = _kept(H, row, col + C // 2, rows, N, R, C // 2)
        total = tl.zeros([R, C], tl.float32)
        for depth in range(0, K, DEPTH):
            total = tl.dot(A.load([row, depth]), B.load([depth, col]), total)
        left, right = _halves(total, R, C)
        _differentiate(left, kept_left, OUT, row, col, SLOPE)
        _differentiate(right, kept_right, OUT, row, col + C // 2, SLOPE)


def written_in(device: torch.device) -> str:
    """The language of the kernels that serve on this device: CuTe's where QuACK is installed, on Hopper."""
    return "Triton" if _cute(device) is None else "CuTe"


@cache
def _cute(device: torch.device) -> Callable[[Tensor, Tensor, Tensor, Tensor | None, float], None] | None:
    """What launches CuTe's kernels, where they serve."""
    if importlib.util.find_spec("quack") is None:
        return None
    try:
        from golf.nn.kernels.mlp_cute import launch, why_not

        reason = why_not(device)
        if reason is None:
            return launch
        logger.info("the MLP's kernels are Triton's: %s", reason)
    except ImportError as error:  # another release, or a part of it that is missing
        logger.info("the MLP's kernels are Triton's: QuACK cannot be imported (%s)", error)
    return None


def _launch(a: Tensor, b: Tensor, h: Tensor, du: Tensor | None, slope: float) -> None:
    """Make h, or with du that of h."""
    (_cute(a.device) or by_triton)(a, b, h, du, slope)


def by_triton(a: Tensor, b: Tensor, h: Tensor, du: Tensor | None, slope: float) -> None:
    """What golf.nn.kernels.mlp_cute's `launch` does, by the kernels above."""
    (rows, columns), backward = h.shape, du is not None
    tiles = BACKWARD if backward else FORWARD
    block = [tiles.depth, tiles.columns] if backward else [tiles.columns, tiles.depth]
    half = [tiles.rows, tiles.columns // 2]
    count = triton.cdiv(rows, tiles.rows) * triton.cdiv(columns, tiles.columns)
    resident = tiles.programs * torch.cuda.get_device_properties(a.device).multi_processor_count
    out = TensorDescriptor.from_tensor(h if du is None else du, half)
    kernel = _down_gradient if backward else _up
    kernel[(min(count, resident),)](
        TensorDescriptor.from_tensor(a, [tiles.rows, tiles.depth]), TensorDescriptor.from_tensor(b, block),
        *((h, out) if backward else (out,)), rows,
        N=columns, K=a.shape[1], SLOPE=slope,
        R=tiles.rows, C=tiles.columns, DEPTH=tiles.depth, GROUP=tiles.group,
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip


@torch.library.custom_op("golf::squared_mlp", mutates_args=())
def squared_mlp(n: Tensor, up: Tensor, down: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    """n [..., D], up [M, D], down [D, M], all bf16 → (the MLP's output [..., D], h [rows, M])."""
    flat = n.reshape(-1, n.shape[-1]).contiguous()
    h = flat.new_empty(flat.shape[0], up.shape[0])
    _launch(flat, up.contiguous(), h, None, slope)
    return F.linear(h, down).view(n.shape), h


@squared_mlp.register_fake
def _(n: Tensor, up: Tensor, down: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    return n.new_empty(n.shape), n.new_empty(n.numel() // n.shape[-1], up.shape[0])


@torch.library.custom_op("golf::squared_mlp_backward", mutates_args=())
def squared_mlp_backward(
    dy: Tensor, n: Tensor, h: Tensor, up: Tensor, down: Tensor, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of n, up and down, from that of the output."""
    dy, flat = dy.reshape(-1, dy.shape[-1]).contiguous(), n.reshape(-1, n.shape[-1])
    du = torch.empty_like(h)
    _launch(dy, down.contiguous(), h, du, slope)
    return (du @ up).view(n.shape), du.T @ flat, dy.T @ h


@squared_mlp_backward.register_fake
def _(dy: Tensor, n: Tensor, h: Tensor, up: Tensor, down: Tensor, slope: float) -> tuple[Tensor, Tensor, Tensor]:
    return n.new_empty(n.shape), torch.empty_like(up), torch.empty_like(down)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    n, up, down, ctx.slope = inputs
    _, h = output
    ctx.mark_non_differentiable(h)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(n, h, up, down)


def _gradients(ctx: Any, dy: Tensor, dh: None) -> tuple[Any, ...]:
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


stands_for = FusedMLP


class MLPCase:
    """Forward and backward of one MLP over `tokens` positions, all six products included."""

    name = "mlp"

    def __init__(self, tokens: int, dim: int = 512, hidden: int = 1536, slope: float = 0.0) -> None:
        self.tokens, self.dim, self.hidden, self.slope = tokens, dim, hidden, slope
        self.shapes = f"{tokens} tokens, {dim} × {hidden}{', leaky' if slope else ''}"

    def make(self, device: torch.device) -> tuple[Callable[[], Any], Callable[[], Any], float, float]:
        """The kernel and its twin (compiled), bytes read and written by the products, and their FLOPs."""

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, device=device, dtype=torch.bfloat16, requires_grad=True)

        n, up, down = draw(self.tokens, self.dim), draw(self.hidden, self.dim), draw(self.dim, self.hidden)
        grad = torch.randn(self.tokens, self.dim, device=device, dtype=torch.bfloat16)
        twin = torch.compile(reference, dynamic=False)

        def run(function: Callable[..., Any]) -> None:
            torch.autograd.backward(function(n, up, down, self.slope)[0], grad)
            n.grad = up.grad = down.grad = None

        moved = 2.0 * self.tokens * (6 * self.dim + 7 * self.hidden)
        return lambda: run(squared_mlp), lambda: run(twin), moved, 12.0 * self.tokens * self.dim * self.hidden


def reference(n: Tensor, up: Tensor, down: Tensor, slope: float) -> tuple[Tensor, ...]:
    """What `squared_mlp` computes, by torch's own ops in the order of SquaredMLP."""
    u = F.leaky_relu(F.linear(n, up), slope)
    return (F.linear(u * u, down),)


CASES = [MLPCase(65_536), MLPCase(98_304, hidden=2048), MLPCase(98_304, hidden=2048, slope=0.5)]
