"""The residual stream between two products in one pass: add what a layer gave, mix with x0, norm.

y = x + s₁ v₁ + s₂ v₂, x' = m₀ y + m₁ x0 (or x' = y), n = f norm(x'); backward is one pass as well, with the per-channel
gradients summed on the way. Without s₁, v₁ is added as it is and its gradient is that of x: nothing is read or written
for it. The arithmetic is float32; x' and y are rounded once. Twin: Residual, whose additions are put off here until the
next norm.
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
from golf.nn.models.gpt import GPT
from golf.nn.models.lanes import TwoLane
from golf.nn.models.residual import Norm, Residual, Stream
from golf.nn.numerics import Numerics

PROGRAMS = 1056
"""Programs of a backward pass that sums over rows, each for itself: eight for every multiprocessor of a Hopper GPU."""


@triton.jit
def _scale(S, cols, inside):
    """A per-channel vector as the model's dtype rounds it."""
    return tl.load(S + cols, inside, 0.0).to(tl.bfloat16).to(tl.float32)[None, :]


@triton.jit
def _stream_forward(
    X, V1, S1, V2, S2, X0, MIX, OUT, N, Y, rows, factor,
    D: tl.constexpr, BLOCK: tl.constexpr, ONE: tl.constexpr, SCALED: tl.constexpr, TWO: tl.constexpr,
    MIXED: tl.constexpr, KEEP: tl.constexpr, R: tl.constexpr, EPS: tl.constexpr,
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


@triton.jit
def _stream_backward(
    DOUT, DN, DY, X, V1, S1, V2, S2, X0, MIX, OUT, DX, DV1, DV2, DX0, PARTS, rows, factor,
    D: tl.constexpr, BLOCK: tl.constexpr, ONE: tl.constexpr, SCALED: tl.constexpr, TWO: tl.constexpr,
    MIXED: tl.constexpr, KEEP: tl.constexpr, R: tl.constexpr, EPS: tl.constexpr,
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
        d = tl.cast(factor, tl.float32) * tl.load(DN + at, mask, 0.0).to(tl.float32)
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
    "golf::stream", mutates_args=(), schema=f"({_IN}, bool keep, float eps, float factor) -> (Tensor, Tensor, Tensor)"
)
def stream(
    x: Tensor, v1: Tensor | None, s1: Tensor | None, v2: Tensor | None, s2: Tensor | None, x0: Tensor | None,
    mix: Tensor | None, keep: bool, eps: float, factor: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(x', n, y) as the module describes, bf16 [..., D] like x, v₁, v₂ and x0; y is empty unless `keep`.

    s₁, s₂ [D] and mix [2, D] are float32 and enter rounded to bf16; v₁ may come without s₁.
    """
    x = x.contiguous()
    out, n = torch.empty_like(x), torch.empty_like(x)
    y = torch.empty_like(x) if keep else x.new_empty(0)
    dim = x.shape[-1]
    rows, block = x.numel() // dim, triton.next_power_of_2(dim)
    tile = max(1, 1024 // block)
    wrap_triton(_stream_forward)[(triton.cdiv(rows, tile),)](
        x, *_present(x, v1, s1, v2, s2, x0, mix), out, n, y, rows, factor,
        D=dim, BLOCK=block, ONE=v1 is not None, SCALED=s1 is not None, TWO=v2 is not None, MIXED=mix is not None,
        KEEP=keep, R=tile, EPS=eps, num_warps=4,
    )  # fmt: skip
    return out, n, y


@triton_op(
    "golf::stream_backward",
    mutates_args=(),
    schema=f"(Tensor dout, Tensor dn, Tensor? dy, {_IN}, Tensor out, float eps, float factor)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def stream_backward(
    dout: Tensor, dn: Tensor, dy: Tensor | None, x: Tensor, v1: Tensor | None, s1: Tensor | None, v2: Tensor | None,
    s2: Tensor | None, x0: Tensor | None, mix: Tensor | None, out: Tensor, eps: float, factor: float,
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
        dout.contiguous(), dn.contiguous(), dy.contiguous() if dy is not None else out, x,
        *_present(x, v1, s1, v2, s2, x0, mix), out, *grads, parts, rows, factor,
        D=dim, BLOCK=block, ONE=v1 is not None, SCALED=s1 is not None, TWO=v2 is not None, MIXED=mix is not None,
        KEEP=dy is not None, R=tile, EPS=eps, num_warps=4,
    )  # fmt: skip
    return grads[0], grads[1], grads[2], grads[3], parts


def _present(x: Tensor, *tensors: Tensor | None) -> list[Tensor]:
    """Contiguous tensors, with x for each absent one, whose pointer is never followed."""
    return [x if t is None else t.contiguous() for t in tensors]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, v1, s1, v2, s2, x0, mix, ctx.keep, ctx.eps, ctx.factor = inputs
    out, _, y = output
    ctx.added = v1 is not None
    adds_again = mix is not None and not ctx.keep
    base = x if adds_again else y if mix is not None else None
    ctx.save_for_backward(base, v1 if s1 is not None or adds_again else None, s1, v2, s2, x0, mix, out)


def _gradients(ctx: Any, dout: Tensor, dn: Tensor, dy: Tensor) -> tuple[Any, ...]:
    base, v1, s1, v2, s2, x0, mix, out = ctx.saved_tensors
    dx, dv1, dv2, dx0, parts = stream_backward(
        dout, dn, dy if ctx.keep else None, out if base is None else base, v1, s1, v2, s2, x0, mix, out, ctx.eps,
        ctx.factor,
    )  # fmt: skip
    sums = parts.sum(0)
    scaled, two, mixed = s1 is not None, v2 is not None, mix is not None
    unscaled = dx if ctx.added else None
    return (
        dx, dv1 if scaled else unscaled, sums[0] if scaled else None, dv2 if two else None, sums[1] if two else None,
        dx0 if mixed else None, sums[2:] if mixed else None, None, None, None,
    )  # fmt: skip


stream.register_autograd(_gradients, setup_context=_save)


@dataclass(frozen=True)
class Waiting:
    """A stream whose last additions wait for the next norm: x, x0 [B, T, D], (value, scale or None), kept outputs.

    keep: the sum is to be pushed on `skips` once it is known. gain: what the sum is multiplied by [D], float32, before
    the mix; None: nothing.
    """

    x: Tensor
    x0: Tensor
    added: tuple[tuple[Tensor, Tensor | None], ...] = ()
    skips: tuple[Tensor, ...] = ()
    keep: bool = False
    gain: Tensor | None = None


class FusedResidual:
    """Stands for a Residual; its vectors stay that module's. After pruning the module itself goes on."""

    def __init__(self, module: Residual, numerics: Numerics) -> None:
        self.module, self.eps = module, numerics.norm_eps_low

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
        return self._pass(s, mix, visit)

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

    def _pass(self, s: Waiting, mix: Tensor | None, visit: Visit) -> tuple[Waiting, Tensor]:
        """Everything that waits, the mix, and the norm: one kernel."""
        one, two = (*s.added, (None, None), (None, None))[:2]
        factor = self.module.norm_scales[visit.layer]
        x, n, y = stream(s.x, *one, *two, None if mix is None else s.x0, mix, s.keep, self.eps, factor)
        return Waiting(x, s.x0, (), (*s.skips, y) if s.keep else s.skips), n


def stands_for(model: GPT) -> FusedResidual:
    """What takes the place of a model's `stream`."""
    assert isinstance(model.residual, Residual)
    if isinstance(model.residual, TwoLane):
        from golf.nn.kernels.lanes import FusedTwoLane  # it builds upon this module

        return FusedTwoLane(model.residual, model.numerics)
    return FusedResidual(model.residual, model.numerics)


class StreamCase:
    """Forward and backward of the pass before a layer: two additions and the mix, or one addition.

    As in a model, the first addition's scale is in a weight.
    """

    name = "stream"

    def __init__(self, tokens: int, dim: int = 512, mixed: bool = True) -> None:
        self.tokens, self.dim, self.mixed = tokens, dim, mixed
        self.shapes = f"{tokens} tokens of {dim}, {'skip and mix' if mixed else 'one addition'}"

    def make(self, device: torch.device) -> tuple[Callable[[], Any], Callable[[], Any], float, float]:
        """The kernel and its twin (compiled), the bytes that both passes must move, and no FLOPs to speak of."""

        def draw(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
            return torch.randn(*shape, device=device, dtype=dtype, requires_grad=True)

        wide = (self.tokens, self.dim)
        inputs: list[Tensor | None] = [draw(*wide), draw(*wide), None, None, None, None, None]
        if self.mixed:
            inputs[3:] = [
                draw(*wide),
                draw(self.dim, dtype=torch.float32),
                draw(*wide),
                draw(2, self.dim, dtype=torch.float32),
            ]
        grads = [torch.randn(wide, device=device, dtype=torch.bfloat16) for _ in range(2)]
        twin = torch.compile(reference, dynamic=False)

        def run(function: Callable[..., Any]) -> None:
            torch.autograd.backward(function(*inputs, False, 1e-6, 1.0)[:2], grads)
            for tensor in inputs:
                if tensor is not None:
                    tensor.grad = None

        passes = (4 + 2) + (7 + 3) if self.mixed else (2 + 2) + (3 + 1)
        return lambda: run(stream), lambda: run(twin), 2.0 * self.tokens * self.dim * passes, 0.0


def reference(
    x: Tensor, v1: Tensor | None, s1: Tensor | None, v2: Tensor | None, s2: Tensor | None, x0: Tensor | None,
    mix: Tensor | None, keep: bool, eps: float, factor: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """What `stream` computes, by torch's own ops in the order of Residual."""
    for value, scale in ((v1, s1), (v2, s2)):
        if value is not None:
            x = x + (value if scale is None else scale.to(x.dtype) * value)
    y = x if keep else x.new_empty(0)
    if mix is not None and x0 is not None:
        m = mix.to(x.dtype)
        x = m[0] * x + m[1] * x0
    wide = x.float()
    return x, factor * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype), y


CASES = [StreamCase(65_536), StreamCase(65_536, mixed=False), StreamCase(98_304)]
