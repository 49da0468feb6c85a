"""The boundary of two layers with two lanes in one pass: route what the layer gave, add a skip, mix with x0, norm both.

u' = c₀ u + c₂ a + c₄ b + c₆ skip, w' = c₁ w + c₃ a + c₅ b, nu = f norm(c₇ u' + c₈ x0) (or f norm(u')), nw = f norm(w').
Backward is one pass as well, with the per-channel gradients of c summed on the way; where routes, gates and scales
make up c, autograd goes on from there. The arithmetic is float32, each result rounded once. Twin: TwoLane.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from golf.nn.context import Visit
from golf.nn.kernels.stream import PROGRAMS, FusedResidual, Waiting, _present, _scale
from golf.nn.models.lanes import Lanes, TwoLane
from golf.nn.slots import Norm


@triton.jit
def _lanes_forward(
    U, W, A, B, SKIP, X0, C, U2, W2, NU, NW, rows, factor,
    D: tl.constexpr, BLOCK: tl.constexpr, APART: tl.constexpr, ONE: tl.constexpr, TWO: tl.constexpr,
    POPPED: tl.constexpr, MIXED: tl.constexpr, R: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    cols = tl.arange(0, BLOCK)
    inside = cols < D
    mask = (row < rows)[:, None] & inside[None, :]
    at = row[:, None] * D + cols[None, :]
    u = tl.load(U + at, mask, 0.0).to(tl.float32)
    w = u
    if APART:
        w = tl.load(W + at, mask, 0.0).to(tl.float32)
    u = _scale(C, cols, inside) * u
    w = _scale(C + D, cols, inside) * w
    if ONE:
        a = tl.load(A + at, mask, 0.0).to(tl.float32)
        u += _scale(C + 2 * D, cols, inside) * a
        w += _scale(C + 3 * D, cols, inside) * a
    if TWO:
        b = tl.load(B + at, mask, 0.0).to(tl.float32)
        u += _scale(C + 4 * D, cols, inside) * b
        w += _scale(C + 5 * D, cols, inside) * b
    if POPPED:
        u += _scale(C + 6 * D, cols, inside) * tl.load(SKIP + at, mask, 0.0).to(tl.float32)
    u = u.to(tl.bfloat16)
    w = w.to(tl.bfloat16)
    tl.store(U2 + at, u, mask)
    tl.store(W2 + at, w, mask)
    x = u.to(tl.float32)
    if MIXED:
        x0 = tl.load(X0 + at, mask, 0.0).to(tl.float32)
        x = _scale(C + 7 * D, cols, inside) * x + _scale(C + 8 * D, cols, inside) * x0
    tl.store(NU + at, x * (tl.cast(factor, tl.float32) * tl.rsqrt(tl.sum(x * x, 1) / D + EPS))[:, None], mask)
    w = w.to(tl.float32)
    tl.store(NW + at, w * (tl.cast(factor, tl.float32) * tl.rsqrt(tl.sum(w * w, 1) / D + EPS))[:, None], mask)


@triton.jit
def _through_norm(x, d, D: tl.constexpr, EPS: tl.constexpr):
    """The gradient of x from that of its norm."""
    scale = tl.rsqrt(tl.sum(x * x, 1) / D + EPS)[:, None]
    n = x * scale
    return scale * (d - n * (tl.sum(d * n, 1) / D)[:, None])


@triton.jit
def _lanes_backward(
    DU2, DW2, DNU, DNW, U, W, A, B, SKIP, X0, C, U2, W2, DU, DW, DA, DB, DSKIP, DX0, PARTS, rows, factor,
    D: tl.constexpr, BLOCK: tl.constexpr, APART: tl.constexpr, ONE: tl.constexpr, TWO: tl.constexpr,
    POPPED: tl.constexpr, MIXED: tl.constexpr, R: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    cols = tl.arange(0, BLOCK)
    inside = cols < D
    own_u = tl.zeros([R, BLOCK], tl.float32)
    own_w = tl.zeros([R, BLOCK], tl.float32)
    a_u = tl.zeros([R, BLOCK], tl.float32)
    a_w = tl.zeros([R, BLOCK], tl.float32)
    b_u = tl.zeros([R, BLOCK], tl.float32)
    b_w = tl.zeros([R, BLOCK], tl.float32)
    popped = tl.zeros([R, BLOCK], tl.float32)
    mix0 = tl.zeros([R, BLOCK], tl.float32)
    mix1 = tl.zeros([R, BLOCK], tl.float32)
    for tile in range(program, tl.cdiv(rows, R), tl.num_programs(0)):
        row = tile.to(tl.int64) * R + tl.arange(0, R)
        mask = (row < rows)[:, None] & inside[None, :]
        at = row[:, None] * D + cols[None, :]
        w = tl.load(W2 + at, mask, 0.0).to(tl.float32)
        dw = _through_norm(w, tl.cast(factor, tl.float32) * tl.load(DNW + at, mask, 0.0).to(tl.float32), D, EPS)
        dw += tl.load(DW2 + at, mask, 0.0).to(tl.float32)
        u = tl.load(U2 + at, mask, 0.0).to(tl.float32)
        du = tl.cast(factor, tl.float32) * tl.load(DNU + at, mask, 0.0).to(tl.float32)
        if MIXED:
            x0 = tl.load(X0 + at, mask, 0.0).to(tl.float32)
            m0 = _scale(C + 7 * D, cols, inside)
            m1 = _scale(C + 8 * D, cols, inside)
            du = _through_norm(m0 * u + m1 * x0, du, D, EPS)
            mix0 += du * u
            mix1 += du * x0
            tl.store(DX0 + at, m1 * du, mask)
            du = m0 * du
        else:
            du = _through_norm(u, du, D, EPS)
        du += tl.load(DU2 + at, mask, 0.0).to(tl.float32)
        u = tl.load(U + at, mask, 0.0).to(tl.float32)
        own_u += du * u
        if APART:
            own_w += dw * tl.load(W + at, mask, 0.0).to(tl.float32)
            tl.store(DU + at, _scale(C, cols, inside) * du, mask)
            tl.store(DW + at, _scale(C + D, cols, inside) * dw, mask)
        else:
            own_w += dw * u
            tl.store(DU + at, _scale(C, cols, inside) * du + _scale(C + D, cols, inside) * dw, mask)
        if ONE:
            a = tl.load(A + at, mask, 0.0).to(tl.float32)
            a_u += du * a
            a_w += dw * a
            tl.store(DA + at, _scale(C + 2 * D, cols, inside) * du + _scale(C + 3 * D, cols, inside) * dw, mask)
        if TWO:
            b = tl.load(B + at, mask, 0.0).to(tl.float32)
            b_u += du * b
            b_w += dw * b
            tl.store(DB + at, _scale(C + 4 * D, cols, inside) * du + _scale(C + 5 * D, cols, inside) * dw, mask)
        if POPPED:
            popped += du * tl.load(SKIP + at, mask, 0.0).to(tl.float32)
            tl.store(DSKIP + at, _scale(C + 6 * D, cols, inside) * du, mask)
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
    "golf::lanes", mutates_args=(), schema=f"({_IN}, float eps, float factor) -> (Tensor, Tensor, Tensor, Tensor)"
)
def lanes(
    u: Tensor, w: Tensor | None, a: Tensor | None, b: Tensor | None, skip: Tensor | None, x0: Tensor | None, c: Tensor,
    eps: float, factor: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(u', w', nu, nw) as the module describes, bf16 [..., D] like u, w, a, b, skip and x0.

    c [9, D] is float32 and enters rounded to bf16; rows of what is absent are not read. Without w it
    is u; without x0 nothing is mixed.
    """
    u, c = u.contiguous(), c.contiguous()
    outs = [torch.empty_like(u) for _ in range(4)]
    dim = u.shape[-1]
    rows, block = u.numel() // dim, triton.next_power_of_2(dim)
    tile = max(1, 1024 // block)
    wrap_triton(_lanes_forward)[(triton.cdiv(rows, tile),)](
        u, *_present(u, w, a, b, skip, x0), c, *outs, rows, factor,
        D=dim, BLOCK=block, APART=w is not None, ONE=a is not None, TWO=b is not None, POPPED=skip is not None,
        MIXED=x0 is not None, R=tile, EPS=eps, num_warps=4,
    )  # fmt: skip
    return outs[0], outs[1], outs[2], outs[3]


@triton_op(
    "golf::lanes_backward",
    mutates_args=(),
    schema=f"(Tensor du2, Tensor dw2, Tensor dnu, Tensor dnw, {_IN}, Tensor u2, Tensor w2, float eps, float factor)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def lanes_backward(
    du2: Tensor, dw2: Tensor, dnu: Tensor, dnw: Tensor, u: Tensor, w: Tensor | None, a: Tensor | None,
    b: Tensor | None, skip: Tensor | None, x0: Tensor | None, c: Tensor, u2: Tensor, w2: Tensor, eps: float,
    factor: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of u, w, a, b, skip, x0 (empty where absent), and float32 parts [programs, 9, D] of c's, zero there."""
    u, u2, w2, dim = u.contiguous(), u2.contiguous(), w2.contiguous(), u.shape[-1]
    rows, block = u.numel() // dim, triton.next_power_of_2(dim)
    tile = max(1, 512 // block)  # nine sums fill the registers
    grads = [torch.empty_like(u) if v is not None else u.new_empty(0) for v in (u, w, a, b, skip, x0)]
    parts = u.new_empty(PROGRAMS, 9, dim, dtype=torch.float32)
    wrap_triton(_lanes_backward)[(PROGRAMS,)](
        du2.contiguous(), dw2.contiguous(), dnu.contiguous(), dnw.contiguous(), u, *_present(u, w, a, b, skip, x0),
        c.contiguous(), u2, w2, *grads, parts, rows, factor,
        D=dim, BLOCK=block, APART=w is not None, ONE=a is not None, TWO=b is not None, POPPED=skip is not None,
        MIXED=x0 is not None, R=tile, EPS=eps, num_warps=4 if block <= 512 else 8,
    )  # fmt: skip
    return grads[0], grads[1], grads[2], grads[3], grads[4], grads[5], parts


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.eps, ctx.factor = inputs
    ctx.save_for_backward(*tensors, *output[:2])


def _gradients(ctx: Any, du2: Tensor, dw2: Tensor, dnu: Tensor, dnw: Tensor) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    *grads, parts = lanes_backward(du2, dw2, dnu, dnw, *saved, ctx.eps, ctx.factor)
    given = [grad if tensor is not None else None for grad, tensor in zip(grads, saved[:6], strict=True)]
    return (*given, parts.sum(0), None, None)


lanes.register_autograd(_gradients, setup_context=_save)


@dataclass(frozen=True)
class WaitingLanes:
    """Two lanes u, w [B, T, D] whose last outputs wait for the next layer, with x0 and the encoder outputs.

    w: None where the lanes begin, as copies of u. kept: what remains of each lane (None: all of it); added: (output,
    how much of it goes to u, to w), None: all; popped: (skip, its factor) for u alone. These factors are float32, [D]
    or scalars. a: the attention's output, and n what the MLP reads, of the layer that runs.
    """

    u: Tensor
    w: Tensor | None
    x0: Tensor
    skips: tuple[Tensor, ...] = ()
    kept: tuple[Tensor | None, Tensor | None] = (None, None)
    added: tuple[tuple[Tensor, Tensor | None, Tensor | None], ...] = ()
    popped: tuple[Tensor, Tensor] | None = None
    a: Tensor | None = None
    n: Tensor | None = None


class FusedTwoLane(FusedResidual):
    """Stands for a TwoLane; its vectors stay that module's. After pruning the module itself goes on."""

    module: TwoLane

    def skip_pop(self, s: Any, visit: Visit) -> Any:
        """As many lanes as the layer has; let the encoder output that was pushed last be added."""
        if visit.layer not in self.module.two_lane:
            return super().skip_pop(self._merged(s) if isinstance(s, WaitingLanes) else s, visit)
        if isinstance(s, Waiting):
            if s.keep or len(s.added) > 1 or s.gain is not None:
                s = self._settled(s)
            s = WaitingLanes(s.x, None, s.x0, s.skips, added=tuple((v, scale, scale) for v, scale in s.added))
        vectors = self.module.skip_vectors(visit)
        if vectors is None or not s.skips:
            return s
        share, factor = vectors
        kept, added = s.kept, s.added
        if share is not None:
            kept = (_times(share, kept[0]), kept[1])
            added = tuple((value, _times(share, to_u), to_w) for value, to_u, to_w in added)
        return replace(s, kept=kept, added=added, popped=(s.skips[-1], factor), skips=s.skips[:-1])

    def skip_push(self, s: Any, visit: Visit) -> Any:
        """In the first half of the visits: the layer's output is kept."""
        if not isinstance(s, WaitingLanes):
            return super().skip_push(s, visit)
        if not self.module.pushes(visit):
            return s
        s = _together(s)
        return WaitingLanes(s.u, s.w, s.x0, (*s.skips, self.module.finish(s)))

    def attn_in(self, s: Any, visit: Visit, norm: Norm) -> tuple[Any, Tensor]:
        """Both lanes after what waits, and the norm of attention's after the x0 mix: one kernel, the MLP's norm too."""
        if isinstance(s, Waiting):
            return super().attn_in(s, visit, norm)
        mix: Tensor | None = self.module._vectors(visit).mix
        (a, a_u, a_w), (b, b_u, b_w) = (*s.added, (None, None, None), (None, None, None))[:2]
        skip, popped = s.popped or (None, None)
        mixed = (None, None) if mix is None else (mix[0], mix[1])
        one = torch.ones(s.u.shape[-1], device=s.u.device)
        c = torch.stack([one if v is None else v * one for v in (*s.kept, a_u, a_w, b_u, b_w, popped, *mixed)])
        factor = self.module.norm_scales[visit.layer]
        u, w, n, mlp_n = lanes(s.u, s.w, a, b, skip, None if mix is None else s.x0, c, self.eps, factor)
        return WaitingLanes(u, w, s.x0, s.skips, n=mlp_n), n

    def attn_add(self, s: Any, a: Tensor, visit: Visit) -> Any:
        """The attention's output [B, T, D], to be added with the MLP's."""
        return replace(s, a=a) if isinstance(s, WaitingLanes) else super().attn_add(s, a, visit)

    def mlp_in(self, s: Any, visit: Visit, norm: Norm) -> tuple[Any, Tensor]:
        """The state, and the norm of the MLP's lane, which is there already."""
        if not isinstance(s, WaitingLanes):
            return super().mlp_in(s, visit, norm)
        assert s.n is not None
        return s, s.n

    def mlp_add(self, s: Any, m: Tensor, visit: Visit) -> Any:
        """Let both outputs [B, T, D] be added to both lanes."""
        if not isinstance(s, WaitingLanes):
            return super().mlp_add(s, m, visit)
        assert s.a is not None
        vectors, (to_u, to_w) = self.module._vectors(visit), self.module.routes(visit).unbind()
        scales = vectors.output_scale("attn_scale"), vectors.output_scale("mlp_scale")
        added = tuple(
            (value, _times(scale, to_u[i]), _times(scale, to_w[i]))
            for i, (value, scale) in enumerate(zip((s.a, m), scales, strict=True), 1)
        )
        return replace(s, kept=(to_u[0], to_w[0]), added=added, a=None, n=None)

    def prune(self, s: Any, score_from: int) -> Any:
        """Drop positions before `score_from`, and leave the rest to the module."""
        if isinstance(s, WaitingLanes):
            return self.module.prune(_together(s), score_from)
        return super().prune(s, score_from)

    def replace(self, s: Any, x: Tensor) -> Any:
        """The state with another mean of the lanes, x [B, T, D]."""
        if not isinstance(s, WaitingLanes):
            return super().replace(s, x)
        moved = self.module.replace(_together(s), x)
        return WaitingLanes(moved.u, moved.w, moved.x0, moved.skips)

    def finish(self, s: Any) -> Tensor:
        """Close the stream: [B, T, D] for the final norm."""
        return super().finish(_together(s) if isinstance(s, WaitingLanes) else s)

    def _merged(self, s: WaitingLanes) -> Waiting:
        one = self.module.merged(_together(s))
        return Waiting(one.x, one.x0, (), one.skips)


def _together(s: WaitingLanes) -> Lanes:
    """The lanes with all that waits added."""
    u, w = _part(s.kept[0], s.u), _part(s.kept[1], s.u if s.w is None else s.w)
    for value, to_u, to_w in s.added:
        u, w = u + _part(to_u, value), w + _part(to_w, value)
    if s.popped is not None:
        u = u + _part(s.popped[1], s.popped[0])
    return Lanes(u, w, s.x0, s.skips)


def _part(factor: Tensor | None, value: Tensor) -> Tensor:
    return value if factor is None else factor.to(value.dtype) * value


def _times(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """The product of two factors, of which None is 1."""
    return other if one is None else one if other is None else one * other


class LanesCase:
    """Forward and backward of the pass between two layers of two lanes, with the mix, and with or without a skip."""

    name = "lanes"

    def __init__(self, tokens: int, dim: int = 512, popped: bool = False) -> None:
        self.tokens, self.dim, self.popped = tokens, dim, popped
        self.shapes = f"{tokens} tokens of {dim}, {'skip and mix' if popped else 'mix'}"

    def make(self, device: torch.device) -> tuple[Callable[[], Any], Callable[[], Any], float, float]:
        """The kernel and its twin (compiled), the bytes that both passes must move, and no FLOPs to speak of."""

        def draw(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
            return torch.randn(*shape, device=device, dtype=dtype, requires_grad=True)

        wide = (self.tokens, self.dim)
        skip = draw(*wide) if self.popped else None
        c = draw(9, self.dim, dtype=torch.float32)
        inputs = [draw(*wide), draw(*wide), draw(*wide), draw(*wide), skip, draw(*wide), c]
        grads = [torch.randn(wide, device=device, dtype=torch.bfloat16) for _ in range(4)]
        twin = torch.compile(reference, dynamic=False)

        def run(function: Callable[..., Any]) -> None:
            torch.autograd.backward(function(*inputs, 1e-6, 1.0), grads)
            for tensor in inputs:
                if tensor is not None:
                    tensor.grad = None

        passes = (5 + 4) + (11 + 5) + (3 if self.popped else 0)
        return lambda: run(lanes), lambda: run(twin), 2.0 * self.tokens * self.dim * passes, 0.0


def reference(
    u: Tensor, w: Tensor | None, a: Tensor | None, b: Tensor | None, skip: Tensor | None, x0: Tensor | None, c: Tensor,
    eps: float, factor: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
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
    return u, w, nu, nw


CASES = [LanesCase(98_304), LanesCase(98_304, popped=True)]
