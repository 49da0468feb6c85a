"""The boundary of two layers with two lanes in one pass: route what the layer gave, add a skip, mix with x0, norm both.

u' = c₀ u + c₂ a + c₄ b + c₆ skip, w' = c₁ w + c₃ a + c₅ b, nu = f norm(c₇ u' + c₈ x0) (or f norm(u')), nw = f norm(w').
Backward is one pass as well, with the per-channel gradients of c summed on the way, and takes in that of nu's first
features, which can be had as a tensor of their own. The arithmetic is float32, each result rounded once. Twin: TwoLane.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from golf.nn.kernels.stream import _of_norm, _present


class Tiles(NamedTuple):
    """Of the backward pass at 512 features: warps a row; programs, which sum over their rows each for itself; how many
    rows a program has in hand or on the way."""

    warps: int
    programs: int
    stages: int


BACKWARD = Tiles(warps=4, programs=396, stages=3)
"""Nine sums and nine factors leave registers for three programs on each multiprocessor of a Hopper GPU: few, so that
rows must be asked for ahead of their turn."""


@triton.jit
def _factors(C, cols, inside, D: tl.constexpr):
    """The rows of c, each [1, BLOCK]; nobody loads those that are not used."""
    row = C + cols[None, :]
    inside = inside[None, :]
    return (
        tl.load(row, inside, 0.0), tl.load(row + D, inside, 0.0), tl.load(row + 2 * D, inside, 0.0),
        tl.load(row + 3 * D, inside, 0.0), tl.load(row + 4 * D, inside, 0.0), tl.load(row + 5 * D, inside, 0.0),
        tl.load(row + 6 * D, inside, 0.0), tl.load(row + 7 * D, inside, 0.0), tl.load(row + 8 * D, inside, 0.0),
    )  # fmt: skip


@triton.jit
def _routed(u, w, a, b, skip, c, ONE: tl.constexpr, TWO: tl.constexpr, POPPED: tl.constexpr):
    """u' and w', rounded."""
    u = c[0].to(tl.float32) * u
    w = c[1].to(tl.float32) * w
    if ONE:
        u += c[2].to(tl.float32) * a
        w += c[3].to(tl.float32) * a
    if TWO:
        u += c[4].to(tl.float32) * b
        w += c[5].to(tl.float32) * b
    if POPPED:
        u += c[6].to(tl.float32) * skip
    return u.to(tl.bfloat16), w.to(tl.bfloat16)


@triton.jit
def _lanes_forward(
    U, W, A, B, SKIP, X0, C, U2, W2, NU, NW, FIRST, rows, factor,
    D: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, APART: tl.constexpr, ONE: tl.constexpr,
    TWO: tl.constexpr, POPPED: tl.constexpr, MIXED: tl.constexpr, R: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    cols = tl.arange(0, BLOCK)
    inside = cols < D
    mask = (row < rows)[:, None] & inside[None, :]
    at = row[:, None] * D + cols[None, :]
    c = _factors(C, cols, inside, D)
    u = tl.load(U + at, mask, 0.0).to(tl.float32)
    w = tl.load(W + at, mask, 0.0).to(tl.float32) if APART else u
    a = tl.load(A + at, mask, 0.0).to(tl.float32) if ONE else u
    b = tl.load(B + at, mask, 0.0).to(tl.float32) if TWO else u
    skip = tl.load(SKIP + at, mask, 0.0).to(tl.float32) if POPPED else u
    u, w = _routed(u, w, a, b, skip, c, ONE, TWO, POPPED)
    tl.store(U2 + at, u, mask)
    tl.store(W2 + at, w, mask)
    x = u.to(tl.float32)
    if MIXED:
        x0 = tl.load(X0 + at, mask, 0.0).to(tl.float32)
        x = c[7].to(tl.float32) * x + c[8].to(tl.float32) * x0
    nu = x * (tl.cast(factor, tl.float32) * tl.rsqrt(tl.sum(x * x, 1) / D + EPS))[:, None]
    tl.store(NU + at, nu, mask)
    if WIDTH:
        tl.store(FIRST + row[:, None] * WIDTH + cols[None, :], nu, mask & (cols < WIDTH)[None, :])
    w = w.to(tl.float32)
    tl.store(NW + at, w * (tl.cast(factor, tl.float32) * tl.rsqrt(tl.sum(w * w, 1) / D + EPS))[:, None], mask)


@triton.jit
def _add_four(a, b, c, d, e, f, g, h):
    return a + e, b + f, c + g, d + h


@triton.jit
def _through_norm(x, d, square, along, D: tl.constexpr, EPS: tl.constexpr):
    """The gradient of x from that of its norm, and from the sums of x² and x d over the row."""
    scale = tl.rsqrt(square / D + EPS)
    return scale[:, None] * (d - x * (scale * scale * along / D)[:, None])


@triton.jit
def _lanes_backward(
    DU2, DW2, DNU, DNW, DFIRST, U, W, A, B, SKIP, X0, C, DU, DW, DA, DB, DSKIP, DX0, PARTS, rows, factor,
    D: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, APART: tl.constexpr, ONE: tl.constexpr,
    TWO: tl.constexpr, POPPED: tl.constexpr, MIXED: tl.constexpr, R: tl.constexpr, EPS: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    cols = tl.arange(0, BLOCK)
    inside = cols < D
    c = _factors(C, cols, inside, D)
    own_u = tl.zeros([R, BLOCK], tl.float32)
    own_w = tl.zeros([R, BLOCK], tl.float32)
    a_u = tl.zeros([R, BLOCK], tl.float32)
    a_w = tl.zeros([R, BLOCK], tl.float32)
    b_u = tl.zeros([R, BLOCK], tl.float32)
    b_w = tl.zeros([R, BLOCK], tl.float32)
    popped = tl.zeros([R, BLOCK], tl.float32)
    mix0 = tl.zeros([R, BLOCK], tl.float32)
    mix1 = tl.zeros([R, BLOCK], tl.float32)
    for tile in tl.range(program, tl.cdiv(rows, R), tl.num_programs(0), num_stages=STAGES):
        row = tl.cast(tile, tl.int64) * R + tl.arange(0, R)
        mask = (row < rows)[:, None] & inside[None, :]
        at = row[:, None] * D + cols[None, :]
        # Everything is asked for before the first sum, at whose barrier all threads wait; u' and w' are made again
        # rather than read.
        u = tl.load(U + at, mask, 0.0)
        w = tl.load(W + at, mask, 0.0) if APART else u
        a = tl.load(A + at, mask, 0.0) if ONE else u
        b = tl.load(B + at, mask, 0.0) if TWO else u
        skip = tl.load(SKIP + at, mask, 0.0) if POPPED else u
        x0 = tl.load(X0 + at, mask, 0.0) if MIXED else u
        du = tl.cast(factor, tl.float32) * _of_norm(DNU, DFIRST, row, cols, at, mask, WIDTH)
        dw = tl.cast(factor, tl.float32) * tl.load(DNW + at, mask, 0.0).to(tl.float32)
        du2 = tl.load(DU2 + at, mask, 0.0)
        dw2 = tl.load(DW2 + at, mask, 0.0)
        made_u, made_w = _routed(
            u.to(tl.float32), w.to(tl.float32), a.to(tl.float32), b.to(tl.float32), skip.to(tl.float32), c,
            ONE, TWO, POPPED,
        )  # fmt: skip
        x, y = made_u.to(tl.float32), made_w.to(tl.float32)
        if MIXED:
            x = c[7].to(tl.float32) * x + c[8].to(tl.float32) * x0.to(tl.float32)
        xx, xd, yy, yd = tl.reduce((x * x, x * du, y * y, y * dw), 1, _add_four)
        du = _through_norm(x, du, xx, xd, D, EPS)
        dw = _through_norm(y, dw, yy, yd, D, EPS) + dw2.to(tl.float32)
        if MIXED:
            mix0 += du * made_u.to(tl.float32)
            mix1 += du * x0.to(tl.float32)
            tl.store(DX0 + at, c[8].to(tl.float32) * du, mask)
            du = c[7].to(tl.float32) * du
        du += du2.to(tl.float32)
        own_u += du * u.to(tl.float32)
        own_w += dw * w.to(tl.float32)
        to_u = c[0].to(tl.float32) * du
        to_w = c[1].to(tl.float32) * dw
        if APART:
            tl.store(DU + at, to_u, mask)
            tl.store(DW + at, to_w, mask)
        else:
            tl.store(DU + at, to_u + to_w, mask)
        if ONE:
            a_u += du * a.to(tl.float32)
            a_w += dw * a.to(tl.float32)
            tl.store(DA + at, c[2].to(tl.float32) * du + c[3].to(tl.float32) * dw, mask)
        if TWO:
            b_u += du * b.to(tl.float32)
            b_w += dw * b.to(tl.float32)
            tl.store(DB + at, c[4].to(tl.float32) * du + c[5].to(tl.float32) * dw, mask)
        if POPPED:
            popped += du * skip.to(tl.float32)
            tl.store(DSKIP + at, c[6].to(tl.float32) * du, mask)
    part = PARTS + program * 9 * D + cols
    tl.store(part, tl.sum(own_u, 0), inside)
    tl.store(part + D, tl.sum(own_w, 0), inside)
    tl.store(part + 2 * D, tl.sum(a_u, 0), inside)
    tl.store(part + 3 * D, tl.sum(a_w, 0), inside)
    tl.store(part + 4 * D, tl.sum(b_u, 0), inside)
    tl.store(part + 5 * D, tl.sum(b_w, 0), inside)
    tl.store(part + 6 * D, tl.sum(popped, 0), inside)
    tl.store(part + 7 * D, tl.sum(mix0, 0), inside)
    tl.store(part + 8 * D, tl.sum(mix1, 0), inside)


_IN = "Tensor u, Tensor? w, Tensor? a, Tensor? b, Tensor? skip, Tensor? x0, Tensor c"


@triton_op(
    "golf::lanes", mutates_args=(),
    schema=f"({_IN}, float eps, float factor, int width) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)  # fmt: skip
def lanes(
    u: Tensor, w: Tensor | None, a: Tensor | None, b: Tensor | None, skip: Tensor | None, x0: Tensor | None, c: Tensor,
    eps: float, factor: float, width: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(u', w', nu, nw, nu's first features) as the module describes, bf16 [..., D] like u, w, a, b, skip and x0, the
    last [..., width].

    c [9, D] is float32 and enters rounded to bf16; rows of what is absent are not used. Without w it is u; without x0
    nothing is mixed.
    """
    u = u.contiguous()
    outs = [torch.empty_like(u) for _ in range(4)]
    outs.append(u.new_empty(*u.shape[:-1], width) if width else u.new_empty(0))
    dim = u.shape[-1]
    rows, block = u.numel() // dim, triton.next_power_of_2(dim)
    tile = max(1, 512 // block)
    wrap_triton(_lanes_forward)[(triton.cdiv(rows, tile),)](
        u, *_present(u, w, a, b, skip, x0), c.to(torch.bfloat16).contiguous(), *outs, rows, factor,
        D=dim, BLOCK=block, WIDTH=width, APART=w is not None, ONE=a is not None, TWO=b is not None,
        POPPED=skip is not None, MIXED=x0 is not None, R=tile, EPS=eps, num_warps=4,
    )  # fmt: skip
    return outs[0], outs[1], outs[2], outs[3], outs[4]


@triton_op(
    "golf::lanes_backward",
    mutates_args=(),
    schema=f"(Tensor du2, Tensor dw2, Tensor dnu, Tensor dnw, Tensor? dfirst, {_IN}, float eps, float factor)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def lanes_backward(
    du2: Tensor, dw2: Tensor, dnu: Tensor, dnw: Tensor, dfirst: Tensor | None, u: Tensor, w: Tensor | None,
    a: Tensor | None, b: Tensor | None, skip: Tensor | None, x0: Tensor | None, c: Tensor, eps: float, factor: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of u, w, a, b, skip, x0 (empty where absent), and float32 parts [programs, 9, D] of c's, zero there."""
    u, dim = u.contiguous(), u.shape[-1]
    rows, block = u.numel() // dim, triton.next_power_of_2(dim)
    tile = max(1, 512 // block)
    grads = [torch.empty_like(u) if v is not None else u.new_empty(0) for v in (u, w, a, b, skip, x0)]
    parts = u.new_empty(BACKWARD.programs, 9, dim, dtype=torch.float32)
    wrap_triton(_lanes_backward)[(BACKWARD.programs,)](
        du2.contiguous(), dw2.contiguous(), dnu.contiguous(), dnw.contiguous(), *_present(u, dfirst), u,
        *_present(u, w, a, b, skip, x0), c.to(torch.bfloat16).contiguous(), *grads, parts, rows, factor,
        D=dim, BLOCK=block, WIDTH=0 if dfirst is None else dfirst.shape[-1], APART=w is not None, ONE=a is not None,
        TWO=b is not None, POPPED=skip is not None, MIXED=x0 is not None, R=tile, EPS=eps,
        STAGES=BACKWARD.stages if block <= 1024 else 2,
        num_warps=min(8, BACKWARD.warps * max(1, block // 512)),
    )  # fmt: skip
    return grads[0], grads[1], grads[2], grads[3], grads[4], grads[5], parts


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.eps, ctx.factor, ctx.width = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, du2: Tensor, dw2: Tensor, dnu: Tensor, dnw: Tensor, dfirst: Tensor) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    *grads, parts = lanes_backward(
        du2, dw2, dnu, dnw, dfirst if ctx.width else None, *saved, ctx.eps, ctx.factor
    )  # fmt: skip
    given = [grad if tensor is not None else None for grad, tensor in zip(grads, saved[:6], strict=True)]
    return (*given, parts.sum(0), None, None, None)


lanes.register_autograd(_gradients, setup_context=_save)


def reference(
    u: Tensor, w: Tensor | None, a: Tensor | None, b: Tensor | None, skip: Tensor | None, x0: Tensor | None, c: Tensor,
    eps: float, factor: float, width: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """What `lanes` computes, by torch's own ops."""
    c = c.to(u.dtype)
    u, w = c[0] * u, c[1] * (u if w is None else w)
    for row, value in ((2, a), (4, b)):
        if value is not None:
            u, w = u + c[row] * value, w + c[row + 1] * value
    if skip is not None:
        u = u + c[6] * skip
    wide = [(u if x0 is None else c[7] * u + c[8] * x0).float(), w.float()]
    nu, nw = (factor * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)).to(u.dtype) for x in wide)
    return u, w, nu, nw, nu[..., :width]
