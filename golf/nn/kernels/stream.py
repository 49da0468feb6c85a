"""The residual stream between two products in one pass: add what a layer gave, mix with x0, norm.

y = x + s₁ v₁ + s₂ v₂, x' = m₀ y + m₁ x0 (or x' = y), n = f norm(x'); backward is one pass as well, with the per-channel
gradients summed on the way. Without s₁, v₁ is added as it is and its gradient is that of x: nothing is read or written
for it. The arithmetic is float32; x' and y are rounded once. Twin: Residual, whose additions are put off here until the
next norm. The first features of n can be had as a tensor of their own, whose gradient is added to n's on the way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from golf.nn.context import Visit
from golf.nn.models.gpt import GPT
from golf.nn.models.lanes import TwoLane
from golf.nn.models.residual import Norm, Residual, Stream
from golf.nn.numerics import Numerics
from golf.nn.techniques.base import AtSite, Technique

PROGRAMS = 1056
"""Programs of a backward pass that sums over rows, each for itself: eight for every multiprocessor of a Hopper GPU."""


@triton.jit
def _scale(S, cols, inside):
    """A per-channel vector as the model's dtype rounds it."""
    return tl.load(S + cols, inside, 0.0).to(tl.bfloat16).to(tl.float32)[None, :]


@triton.jit
def _of_norm(DN, DFIRST, row, cols, at, mask, WIDTH: tl.constexpr):
    """The gradient of n, with that of its first features."""
    d = tl.load(DN + at, mask, 0.0).to(tl.float32)
    if WIDTH:
        first = row[:, None] * WIDTH + cols[None, :]
        d += tl.load(DFIRST + first, mask & (cols < WIDTH)[None, :], 0.0).to(tl.float32)
    return d


@triton.jit
def _stream_forward(
    X, V1, S1, V2, S2, X0, MIX, OUT, N, Y, FIRST, rows, factor,
    D: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, ONE: tl.constexpr, SCALED: tl.constexpr,
    TWO: tl.constexpr, MIXED: tl.constexpr, KEEP: tl.constexpr, R: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    cols = tl.arange(0, BLOCK)
    inside = cols < D
    mask = (row < rows)[:, None] & inside[None, :]
    at = row[:, None] * D + cols[None, :]
    x = tl.load(X + at, mask, 0.0).to(tl.float32)
    if ONE:
        v1 = tl.load(V1 + at, mask, 0.0).to(tl.float32)
        if SCALED:
            v1 *= _scale(S1, cols, inside)
        x += v1
    if TWO:
        x += _scale(S2, cols, inside) * tl.load(V2 + at, mask, 0.0).to(tl.float32)
    if KEEP:
        tl.store(Y + at, x, mask)
    if MIXED:
        x0 = tl.load(X0 + at, mask, 0.0).to(tl.float32)
        x = _scale(MIX, cols, inside) * x + _scale(MIX + D, cols, inside) * x0
    x = x.to(tl.bfloat16)
    tl.store(OUT + at, x, mask)
    x = x.to(tl.float32)
    # a graph that inductor made hands `factor` on as float64
    n = x * (tl.cast(factor, tl.float32) * tl.rsqrt(tl.sum(x * x, 1) / D + EPS))[:, None]
    tl.store(N + at, n, mask)
    if WIDTH:
        tl.store(FIRST + row[:, None] * WIDTH + cols[None, :], n, mask & (cols < WIDTH)[None, :])


@triton.jit
def _stream_backward(
    DOUT, DN, DY, DFIRST, X, V1, S1, V2, S2, X0, MIX, OUT, DX, DV1, DV2, DX0, PARTS, rows, factor,
    D: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr, ONE: tl.constexpr, SCALED: tl.constexpr,
    TWO: tl.constexpr, MIXED: tl.constexpr, KEEP: tl.constexpr, R: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    programs = tl.num_programs(0)
    program = tl.program_id(0)
    cols = tl.arange(0, BLOCK)
    inside = cols < D
    one = tl.zeros([R, BLOCK], tl.float32)
    two = tl.zeros([R, BLOCK], tl.float32)
    mix0 = tl.zeros([R, BLOCK], tl.float32)
    mix1 = tl.zeros([R, BLOCK], tl.float32)
    for tile in range(program, tl.cdiv(rows, R), programs):
        row = tile.to(tl.int64) * R + tl.arange(0, R)
        mask = (row < rows)[:, None] & inside[None, :]
        at = row[:, None] * D + cols[None, :]
        x = tl.load(OUT + at, mask, 0.0).to(tl.float32)
        d = tl.cast(factor, tl.float32) * _of_norm(DN, DFIRST, row, cols, at, mask, WIDTH)
        dout = tl.load(DOUT + at, mask, 0.0).to(tl.float32)
        scale = tl.rsqrt(tl.sum(x * x, 1) / D + EPS)[:, None]
        n = x * scale
        d = scale * (d - n * (tl.sum(d * n, 1) / D)[:, None]) + dout
        if SCALED:
            v1 = tl.load(V1 + at, mask, 0.0).to(tl.float32)
        if TWO:
            v2 = tl.load(V2 + at, mask, 0.0).to(tl.float32)
        if MIXED:
            y = tl.load(X + at, mask, 0.0).to(tl.float32)
            if not KEEP:  # else X is y already
                if SCALED:
                    y += _scale(S1, cols, inside) * v1
                elif ONE:
                    y += tl.load(V1 + at, mask, 0.0).to(tl.float32)
                if TWO:
                    y += _scale(S2, cols, inside) * v2
            mix0 += d * y
            mix1 += d * tl.load(X0 + at, mask, 0.0).to(tl.float32)
            tl.store(DX0 + at, _scale(MIX + D, cols, inside) * d, mask)
            d = _scale(MIX, cols, inside) * d
        if KEEP:
            d += tl.load(DY + at, mask, 0.0).to(tl.float32)
        tl.store(DX + at, d, mask)
        if SCALED:
            one += d * v1
            tl.store(DV1 + at, _scale(S1, cols, inside) * d, mask)
        if TWO:
            two += d * v2
            tl.store(DV2 + at, _scale(S2, cols, inside) * d, mask)
    part = PARTS + program * 4 * D + cols
    if SCALED:
        tl.store(part, tl.sum(one, 0), inside)
    if TWO:
        tl.store(part + D, tl.sum(two, 0), inside)
    if MIXED:
        tl.store(part + 2 * D, tl.sum(mix0, 0), inside)
        tl.store(part + 3 * D, tl.sum(mix1, 0), inside)


_IN = "Tensor x, Tensor? v1, Tensor? s1, Tensor? v2, Tensor? s2, Tensor? x0, Tensor? mix"


@triton_op(
    "golf::stream", mutates_args=(),
    schema=f"({_IN}, bool keep, float eps, float factor, int width) -> (Tensor, Tensor, Tensor, Tensor)",
)  # fmt: skip
def stream(
    x: Tensor, v1: Tensor | None, s1: Tensor | None, v2: Tensor | None, s2: Tensor | None, x0: Tensor | None,
    mix: Tensor | None, keep: bool, eps: float, factor: float, width: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(x', n, y, n's first features) as the module describes, bf16 [..., D] like x, v₁, v₂ and x0, the last
    [..., width]; y is empty unless `keep`.

    s₁, s₂ [D] and mix [2, D] are float32 and enter rounded to bf16; v₁ may come without s₁.
    """
    x = x.contiguous()
    out, n = torch.empty_like(x), torch.empty_like(x)
    y = torch.empty_like(x) if keep else x.new_empty(0)
    first = x.new_empty(*x.shape[:-1], width) if width else x.new_empty(0)
    dim = x.shape[-1]
    rows, block = x.numel() // dim, triton.next_power_of_2(dim)
    tile = max(1, 1024 // block)
    wrap_triton(_stream_forward)[(triton.cdiv(rows, tile),)](
        x, *_present(x, v1, s1, v2, s2, x0, mix), out, n, y, first, rows, factor,
        D=dim, BLOCK=block, WIDTH=width, ONE=v1 is not None, SCALED=s1 is not None, TWO=v2 is not None,
        MIXED=mix is not None, KEEP=keep, R=tile, EPS=eps, num_warps=4,
    )  # fmt: skip
    return out, n, y, first


@triton_op(
    "golf::stream_backward",
    mutates_args=(),
    schema=f"(Tensor dout, Tensor dn, Tensor? dy, Tensor? dfirst, {_IN}, Tensor out, float eps, float factor)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def stream_backward(
    dout: Tensor, dn: Tensor, dy: Tensor | None, dfirst: Tensor | None, x: Tensor, v1: Tensor | None,
    s1: Tensor | None, v2: Tensor | None, s2: Tensor | None, x0: Tensor | None, mix: Tensor | None, out: Tensor,
    eps: float, factor: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, v₁, v₂ and x0 (empty where absent), and float32 parts [programs, 4, D] of s₁, s₂, m₀ and m₁.

    v₁'s is empty without s₁, too: it is that of x. With dy, x is to be y, which is not added up again. The parts of
    what is absent hold anything.
    """
    x, out, dim = x.contiguous(), out.contiguous(), out.shape[-1]
    rows, block = out.numel() // dim, triton.next_power_of_2(dim)
    tile = max(1, (1024 if mix is None or v2 is None else 512) // block)  # a skip and the mix fill the registers
    grads = [torch.empty_like(out) if v is not None else out.new_empty(0) for v in (out, s1, v2, x0)]
    summed = s1 is not None or s2 is not None or mix is not None
    programs = PROGRAMS if summed else triton.cdiv(rows, tile)
    parts = out.new_empty(programs if summed else 0, 4, dim, dtype=torch.float32)  # what is absent has no sum in it
    wrap_triton(_stream_backward)[(programs,)](
        dout.contiguous(), dn.contiguous(), *_present(out, dy, dfirst), x, *_present(x, v1, s1, v2, s2, x0, mix), out,
        *grads, parts, rows, factor,
        D=dim, BLOCK=block, WIDTH=0 if dfirst is None else dfirst.shape[-1], ONE=v1 is not None,
        SCALED=s1 is not None, TWO=v2 is not None, MIXED=mix is not None, KEEP=dy is not None, R=tile, EPS=eps,
        num_warps=4,
    )  # fmt: skip
    return grads[0], grads[1], grads[2], grads[3], parts


def _present(x: Tensor, *tensors: Tensor | None) -> list[Tensor]:
    """Contiguous tensors, with x for each absent one, whose pointer is never followed."""
    return [x if t is None else t.contiguous() for t in tensors]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, v1, s1, v2, s2, x0, mix, ctx.keep, ctx.eps, ctx.factor, ctx.width = inputs
    out, _, y, _ = output
    ctx.added = v1 is not None
    adds_again = mix is not None and not ctx.keep
    base = x if adds_again else y if mix is not None else None
    ctx.save_for_backward(base, v1 if s1 is not None or adds_again else None, s1, v2, s2, x0, mix, out)


def _gradients(ctx: Any, dout: Tensor, dn: Tensor, dy: Tensor, dfirst: Tensor) -> tuple[Any, ...]:
    base, v1, s1, v2, s2, x0, mix, out = ctx.saved_tensors
    dx, dv1, dv2, dx0, parts = stream_backward(
        dout, dn, dy if ctx.keep else None, dfirst if ctx.width else None, out if base is None else base, v1, s1, v2,
        s2, x0, mix, out, ctx.eps, ctx.factor,
    )  # fmt: skip
    sums = parts.sum(0)
    scaled, two, mixed = s1 is not None, v2 is not None, mix is not None
    unscaled = dx if ctx.added else None
    return (
        dx, dv1 if scaled else unscaled, sums[0] if scaled else None, dv2 if two else None, sums[1] if two else None,
        dx0 if mixed else None, sums[2:] if mixed else None, None, None, None, None,
    )  # fmt: skip


stream.register_autograd(_gradients, setup_context=_save)


@dataclass(frozen=True)
class Waiting:
    """A stream whose last additions wait for the next norm: x, x0 [B, T, D], (value, scale or None), kept outputs.

    keep: the sum is to be pushed on `skips` once it is known. gain: what the sum is multiplied by [D], float32, before
    the mix; None: nothing. first: features of what the attention reads, where a technique asks for them.
    """

    x: Tensor
    x0: Tensor
    added: tuple[tuple[Tensor, Tensor | None], ...] = ()
    skips: tuple[Tensor, ...] = ()
    keep: bool = False
    gain: Tensor | None = None
    first: Tensor | None = None


class FusedResidual:
    """Stands for a Residual; its vectors stay that module's. After pruning the module itself goes on.

    widths: how many first features of what the attention reads each layer hands out apart.
    """

    def __init__(self, module: Residual, numerics: Numerics, widths: list[int]) -> None:
        self.module, self.eps, self.widths = module, numerics.norm_eps_low, widths

    def start(self, x: Tensor) -> Waiting:
        """Open the stream with the normed embedding [B, T, D]."""
        return Waiting(x, x)

    def skip_pop(self, s: Waiting, visit: Visit) -> Waiting:
        """Let the encoder output that was pushed last be added."""
        if not (s.skips or s.keep) or (vectors := self.module.skip_vectors(visit)) is None:
            return s
        share, factor = vectors
        if s.keep:  # the sum itself, which nobody else will read: it is not kept at all
            return replace(s, keep=False, gain=factor + (1 if share is None else share))
        weight = factor if share is None else factor / share
        return replace(s, added=(*s.added, (s.skips[-1], weight)), skips=s.skips[:-1], gain=share)

    def skip_push(self, s: Waiting, visit: Visit) -> Waiting:
        """In the first half of the visits: the layer's output will be kept."""
        return replace(s, keep=True) if self.module.pushes(visit) else s

    def attn_in(self, s: Waiting, visit: Visit, norm: Norm) -> tuple[Waiting, Tensor]:
        """The stream after additions and x0 mix, and its norm."""
        mix: Tensor | None = self.module._vectors(visit).mix
        if s.gain is not None:
            own, first = (s.gain, torch.zeros_like(s.gain)) if mix is None else (s.gain * mix[0], mix[1])
            mix = torch.stack((own, first))
        return self._pass(s, mix, visit, self.widths[visit.layer])

    @staticmethod
    def narrow(s: Any, n: Tensor) -> tuple[Tensor, Tensor] | None:
        """What `attn_in` gave as the normed input, with its first features; None: no technique of the layer asks."""
        return None if s.first is None else (n, s.first)

    def attn_add(self, s: Any, a: Tensor, visit: Visit) -> Any:
        """Let the attention's output [B, T, D] be added."""
        if not isinstance(s, Waiting):
            return self.module.attn_add(s, a, visit)
        return self._add(s, a, self.module._vectors(visit).output_scale("attn_scale"))

    def mlp_in(self, s: Any, visit: Visit, norm: Norm) -> tuple[Any, Tensor]:
        """The stream after additions, and its norm."""
        return self._pass(s, None, visit) if isinstance(s, Waiting) else self.module.mlp_in(s, visit, norm)

    def mlp_add(self, s: Any, m: Tensor, visit: Visit) -> Any:
        """Let the MLP's output [B, T, D] be added."""
        if not isinstance(s, Waiting):
            return self.module.mlp_add(s, m, visit)
        return self._add(s, m, self.module._vectors(visit).output_scale("mlp_scale"))

    def prune(self, s: Any, score_from: int) -> Any:
        """Drop positions before `score_from`, and leave the rest to the module."""
        s = self._settled(s)
        return self.module.prune(Stream(s.x, s.x0, s.skips), score_from)

    def replace(self, s: Any, x: Tensor) -> Any:
        """The stream with another x [B, T, D]."""
        return replace(self._settled(s), x=x) if isinstance(s, Waiting) else self.module.replace(s, x)

    def finish(self, s: Any) -> Tensor:
        """Close the stream: [B, T, D] for the final norm."""
        return self._settled(s).x if isinstance(s, Waiting) else self.module.finish(s)

    @staticmethod
    def _add(s: Waiting, value: Tensor, scale: Tensor | None) -> Waiting:
        return replace(s, added=(*s.added, (value, scale)))

    def _settled(self, s: Waiting) -> Waiting:
        x = s.x
        for value, scale in s.added:
            x = x + (value if scale is None else scale.to(x.dtype) * value)
        if s.gain is not None:
            x = s.gain.to(x.dtype) * x
        return Waiting(x, s.x0, (), (*s.skips, x) if s.keep else s.skips)

    def _pass(self, s: Waiting, mix: Tensor | None, visit: Visit, width: int = 0) -> tuple[Waiting, Tensor]:
        """Everything that waits, the mix, and the norm: one kernel."""
        one, two = (*s.added, (None, None), (None, None))[:2]
        factor = self.module.norm_scales[visit.layer]
        x, n, y, first = stream(
            s.x, *one, *two, None if mix is None else s.x0, mix, s.keep, self.eps, factor, width
        )  # fmt: skip
        return Waiting(x, s.x0, (), (*s.skips, y) if s.keep else s.skips, first=first if width else None), n


def stands_for(model: GPT) -> FusedResidual:
    """What takes the place of a model's `stream`."""
    assert isinstance(model.residual, Residual)
    if isinstance(model.residual, TwoLane):
        from golf.nn.kernels.two_lane import FusedTwoLane  # it builds upon this module

        return FusedTwoLane(model.residual, model.numerics, _asked(model))
    return FusedResidual(model.residual, model.numerics, _asked(model))


def _asked(model: GPT) -> list[int]:
    """How many first features of n techniques of each layer ask for, rounded up to what products take well."""
    asked = [[m.asks_first for m in block.modules() if isinstance(m, Technique | AtSite)] for block in model.layers()]
    return [min(-(-max(widths, default=0) // 16) * 16, model.shape.model_dim) for widths in asked]


def reference(
    x: Tensor, v1: Tensor | None, s1: Tensor | None, v2: Tensor | None, s2: Tensor | None, x0: Tensor | None,
    mix: Tensor | None, keep: bool, eps: float, factor: float, width: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """What `stream` computes, by torch's own ops in the order of Residual."""
    for value, scale in ((v1, s1), (v2, s2)):
        if value is not None:
            x = x + (value if scale is None else scale.to(x.dtype) * value)
    y = x if keep else x.new_empty(0)
    if mix is not None and x0 is not None:
        m = mix.to(x.dtype)
        x = m[0] * x + m[1] * x0
    wide = x.float()
    n = factor * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
    return x, n, y, n[..., :width]
