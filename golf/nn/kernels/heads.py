"""Queries, keys and values in two steps: one product over q, k and v's adjacent weights, and one pass over its result.

The pass norms each query and key head, rotates it, scales queries by their gain, and writes q, k and v apart: keys and
values as often as the attention wants them, and values once more for techniques, so that nobody has to add up two
gradients of theirs. Backward is one pass as well. The arithmetic is float32 with one rounding at the end. Twin:
CausalAttention.project.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton

from golf.nn.linear import Joined
from golf.nn.models.attention import CausalAttention, Made
from golf.nn.models.position import Rope
from golf.nn.techniques.base import Technique

TOKENS = 32
"""Tokens of one program, which works on one head of them."""


@triton.jit
def _rotated(
    row, cols, cos, sin, places, rows, time, PLACED: tl.constexpr, half: tl.constexpr, first: tl.constexpr, mask
):
    """Cosines and signed sines of tile [tokens, size]: out = x cos + partner sin; 1 and 0 beyond the rotated."""
    turns = cols < 2 * half
    place = row % time
    if PLACED:
        place = tl.load(places + place, row < rows, 0)
    at = place[:, None] * half + (cols % half)[None, :]
    c = tl.load(cos + at, mask & turns[None, :], 1.0).to(tl.float32)
    s = tl.load(sin + at, mask & turns[None, :], 0.0).to(tl.float32)
    return c, tl.where((cols < half)[None, :], first * s, -first * s)


@triton.jit
def _heads_forward(
    QKV, COS, SIN, GAIN, PLACES, Q, K, V, OWN, rows, time,
    H: tl.constexpr, KV: tl.constexpr, SIZE: tl.constexpr, HALF: tl.constexpr, GAINED: tl.constexpr,
    PLACED: tl.constexpr, COPIES: tl.constexpr, APART: tl.constexpr, R: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64) * R + tl.arange(0, R)
    cols = tl.arange(0, SIZE)
    mask = (row < rows)[:, None] & (cols < SIZE)[None, :]
    at = row[:, None] * ((H + 2 * KV) * SIZE) + head * SIZE
    turns = (cols < 2 * HALF)[None, :]  # what a rotation leaves alone has no partner to load
    x = tl.load(QKV + at + cols[None, :], mask, 0.0).to(tl.float32)
    if head >= H + KV:
        for i in tl.static_range(COPIES):
            at = row[:, None] * (KV * COPIES * SIZE) + ((head - H - KV) * COPIES + i) * SIZE
            tl.store(V + at + cols[None, :], x, mask)
        if APART:
            tl.store(OWN + row[:, None] * (KV * SIZE) + (head - H - KV) * SIZE + cols[None, :], x, mask)
    else:
        scale = tl.rsqrt(tl.sum(x * x, 1) / SIZE + EPS)
        if HALF > 0:
            partner = tl.where(cols < HALF, cols + HALF, tl.where(cols < 2 * HALF, cols - HALF, cols))
            other = tl.load(QKV + at + partner[None, :], mask & turns, 0.0).to(tl.float32)
            c, s = _rotated(row, cols, COS, SIN, PLACES, rows, time, PLACED, HALF, 1, mask)
            x = x * c + other * s
        x = x * scale[:, None]
        if head < H:
            if GAINED:
                x = x * tl.load(GAIN + head).to(tl.bfloat16).to(tl.float32)
            tl.store(Q + row[:, None] * (H * SIZE) + head * SIZE + cols[None, :], x, mask)
        else:
            for i in tl.static_range(COPIES):
                at = row[:, None] * (KV * COPIES * SIZE) + ((head - H) * COPIES + i) * SIZE
                tl.store(K + at + cols[None, :], x, mask)


@triton.jit
def _summed(at, step, mask, COPIES: tl.constexpr):
    """The sum of so many heads in a row, float32."""
    total = tl.load(at, mask, 0.0).to(tl.float32)
    for i in tl.static_range(1, COPIES):
        total += tl.load(at + i * step, mask, 0.0).to(tl.float32)
    return total


@triton.jit
def _heads_backward(
    DQ, DK, DV, DOWN, QKV, COS, SIN, GAIN, PLACES, DQKV, DGAIN, rows, time,
    qb, qt, qh, kb, kt, kh, vb, vt, vh, ob, ot, oh,
    H: tl.constexpr, KV: tl.constexpr, SIZE: tl.constexpr, HALF: tl.constexpr, GAINED: tl.constexpr,
    PLACED: tl.constexpr, COPIES: tl.constexpr, APART: tl.constexpr, R: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)
    block = tl.program_id(1)
    row = block.to(tl.int64) * R + tl.arange(0, R)
    cols = tl.arange(0, SIZE)
    mask = (row < rows)[:, None] & (cols < SIZE)[None, :]
    at = row[:, None] * ((H + 2 * KV) * SIZE) + head * SIZE + cols[None, :]
    if head >= H + KV:
        start = (row // time) * vb + (row % time) * vt + (head - H - KV) * COPIES * vh
        d = _summed(DV + start[:, None] + cols[None, :], vh, mask, COPIES)
        if APART:
            start = (row // time) * ob + (row % time) * ot + (head - H - KV) * oh
            d += tl.load(DOWN + start[:, None] + cols[None, :], mask, 0.0).to(tl.float32)
        tl.store(DQKV + at, d, mask)
    else:
        x = tl.load(QKV + at, mask, 0.0).to(tl.float32)
        turns = (cols < 2 * HALF)[None, :]
        partner = tl.where(cols < HALF, cols + HALF, tl.where(cols < 2 * HALF, cols - HALF, cols))
        other = x
        if head < H:
            D = DQ + ((row // time) * qb + (row % time) * qt + head * qh)[:, None]
            d = tl.load(D + cols[None, :], mask, 0.0).to(tl.float32)
            if HALF > 0:
                other = tl.load(D + partner[None, :], mask & turns, 0.0).to(tl.float32)
        else:
            D = DK + ((row // time) * kb + (row % time) * kt + (head - H) * COPIES * kh)[:, None]
            d = _summed(D + cols[None, :], kh, mask, COPIES)
            if HALF > 0:
                other = _summed(D + partner[None, :], kh, mask & turns, COPIES)
        if HALF > 0:
            c, s = _rotated(row, cols, COS, SIN, PLACES, rows, time, PLACED, HALF, -1, mask)
            d = d * c + other * s
        scale = tl.rsqrt(tl.sum(x * x, 1) / SIZE + EPS)
        n = x * scale[:, None]
        if GAINED:  # noqa: SIM102 (known when compiled, unlike the head)
            if head < H:
                # a rotation keeps inner products: the gain's gradient needs no rotated queries
                tl.store(DGAIN + head * tl.num_programs(1) + block, tl.sum(tl.sum(d * n, 1), 0))
                d = d * tl.load(GAIN + head).to(tl.bfloat16).to(tl.float32)
        d = scale[:, None] * (d - n * (tl.sum(d * n, 1) / SIZE)[:, None])
        tl.store(DQKV + at, d, mask)


def _sizes(q_heads: int, kv_heads: int, width: int, cos: torch.Tensor) -> dict[str, int]:
    return {"H": q_heads, "KV": kv_heads, "SIZE": width // (q_heads + 2 * kv_heads), "HALF": cos.shape[1], "R": TOKENS}


@triton_op(
    "golf::heads",
    mutates_args=(),
    schema="(Tensor qkv, Tensor cos, Tensor sin, Tensor? gain, int heads, int kv_heads, float eps,"
    " Tensor? places, int copies, bool apart) -> (Tensor, Tensor, Tensor, Tensor)",
)
def heads(
    qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, gain: torch.Tensor | None, heads: int, kv_heads: int,
    eps: float, places: torch.Tensor | None, copies: int, apart: bool,
) -> Made:  # fmt: skip
    """qkv [B, T, (H + 2 Hkv) hd] → q [B, T, H, hd], k and v [B, T, Hkv copies, hd], and with `apart` v [B, T, Hkv, hd]
    once more (else an empty tensor), all contiguous.

    cos, sin [≥ T, rotated/2] (rotated 0: no rotation); gain float32 [H] or None; places int64 [T]: where in the tables
    a token stands (None: 0 … T − 1).
    """
    batch, time, width = qkv.shape
    sizes = _sizes(heads, kv_heads, width, cos)
    qkv = qkv.contiguous()
    q = qkv.new_empty(batch, time, heads, sizes["SIZE"])
    k, v = (qkv.new_empty(batch, time, kv_heads * copies, sizes["SIZE"]) for _ in range(2))
    own = qkv.new_empty(batch, time, kv_heads if apart else 0, sizes["SIZE"])
    grid = (heads + 2 * kv_heads, triton.cdiv(batch * time, TOKENS))
    wrap_triton(_heads_forward)[grid](
        qkv, cos, sin, gain if gain is not None else cos, places if places is not None else cos, q, k, v, own,
        batch * time, time, GAINED=gain is not None, PLACED=places is not None, COPIES=copies, APART=apart, EPS=eps,
        num_warps=4, **sizes,
    )  # fmt: skip
    return q, k, v, own


@triton_op(
    "golf::heads_backward",
    mutates_args=(),
    schema="(Tensor dq, Tensor dk, Tensor dv, Tensor down, Tensor qkv, Tensor cos, Tensor sin, Tensor? gain, int heads,"
    " int kv_heads, float eps, Tensor? places, int copies, bool apart) -> (Tensor, Tensor)",
)
def heads_backward(
    dq: torch.Tensor, dk: torch.Tensor, dv: torch.Tensor, down: torch.Tensor, qkv: torch.Tensor, cos: torch.Tensor,
    sin: torch.Tensor, gain: torch.Tensor | None, heads: int, kv_heads: int, eps: float, places: torch.Tensor | None,
    copies: int, apart: bool,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """The gradient of qkv, and that of the gain as float32 parts [H, blocks of tokens], from those of `heads`' results
    (down: that of v once more)."""
    batch, time, width = qkv.shape
    sizes = _sizes(heads, kv_heads, width, cos)
    blocks = triton.cdiv(batch * time, TOKENS)
    qkv = qkv.contiguous()
    dqkv = torch.empty_like(qkv)
    dgain = torch.empty(heads, blocks, dtype=torch.float32, device=qkv.device)
    grads = [g if g.stride(3) == 1 else g.contiguous() for g in (dq, dk, dv, down)]
    strides = [g.stride(i) for g in grads for i in range(3)]
    wrap_triton(_heads_backward)[(heads + 2 * kv_heads, blocks)](
        *grads, qkv, cos, sin, gain if gain is not None else cos, places if places is not None else cos, dqkv, dgain,
        batch * time, time, *strides, GAINED=gain is not None, PLACED=places is not None, COPIES=copies, APART=apart,
        EPS=eps, num_warps=4, **sizes,
    )  # fmt: skip
    return dqkv, dgain


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    qkv, cos, sin, gain, ctx.heads, ctx.kv_heads, ctx.eps, places, ctx.copies, ctx.apart = inputs
    ctx.save_for_backward(qkv, cos, sin, gain, places)


def _gradients(ctx: Any, dq: torch.Tensor, dk: torch.Tensor, dv: torch.Tensor, down: torch.Tensor) -> tuple[Any, ...]:
    qkv, cos, sin, gain, places = ctx.saved_tensors
    dqkv, parts = heads_backward(
        dq, dk, dv, down, qkv, cos, sin, gain, ctx.heads, ctx.kv_heads, ctx.eps, places, ctx.copies, ctx.apart
    )
    return dqkv, None, None, None if gain is None else parts.sum(1).to(gain.dtype), *[None] * 6


heads.register_autograd(_gradients, setup_context=_save)


class FusedHeads:
    """Stands for `CausalAttention.project` wherever all positions ask."""

    def __init__(self, attention: CausalAttention) -> None:
        self.attention = attention
        self.joined = Joined(attention.q, attention.k, attention.v)

    @property
    def copies(self) -> int:
        """How often the attention wants each key and value; techniques that change them see them once."""
        one, shape = self.attention, self.attention.shape
        alone = not (len(one.at_qk) or len(one.at_v))
        return shape.num_heads // shape.num_kv_heads if alone and one.attend.repeated else 1

    @property
    def apart(self) -> bool:
        """Whether techniques read the values too, and as the attention does."""
        one = self.attention
        readers = [cast(Technique, technique).reads for technique in one.at_heads_out.values()]
        return not len(one.at_v) and any("v" in reads for reads in readers)

    def __call__(self, n: torch.Tensor, asking: int = 0, places: torch.Tensor | None = None) -> Made:
        """n [B, T, D] → q, k, v and v as `project` gives them; fewer queries are left to torch."""
        attention = self.attention
        shape, position = attention.shape, attention.position
        if asking:
            if not torch.is_grad_enabled():
                return attention.project(n, asking, places)
            sizes = (shape.model_dim, shape.kv_dim, shape.kv_dim)  # gradients reach the joined product alone
            q, k, v = self.joined.forward(n).split(sizes, dim=-1)
            return attention.turned(q[:, asking:], k, v, asking, places)
        cos, sin = (position.cos, position.sin) if isinstance(position, Rope) else (n.new_empty(1, 0),) * 2
        copies, apart = self.copies, self.apart
        q, k, v, own = heads(
            self.joined.forward(n), cos, sin, attention.gain, shape.num_heads, shape.num_kv_heads,
            attention.numerics.norm_eps_low, places, copies, apart,
        )  # fmt: skip
        return q, k, v, own if apart else v


stands_for = FusedHeads


class HeadsCase:
    """Forward and backward of one layer's heads, `tokens` of them in windows of `time`."""

    name = "heads"

    def __init__(self, tokens: int, time: int, heads: int = 8, kv_heads: int = 4, size: int = 64) -> None:
        self.tokens, self.time, self.heads, self.kv_heads, self.size = tokens, time, heads, kv_heads, size
        self.shapes = f"{tokens} tokens, {heads}/{kv_heads} heads of {size}"

    def make(self, device: torch.device) -> tuple[Callable[[], Any], Callable[[], Any], float, float]:
        """The kernel and its twin (compiled), the bytes that both passes must move, and no FLOPs to speak of."""
        h, kv, size = self.heads, self.kv_heads, self.size
        batch, width = self.tokens // self.time, (h + 2 * kv) * size
        qkv = torch.randn(batch, self.time, width, device=device, dtype=torch.bfloat16, requires_grad=True)
        gain = torch.full((h,), 1.5, device=device, requires_grad=True)
        angles = torch.rand(self.time, size // 2, device=device) * 6.28
        cos, sin = angles.cos().bfloat16(), angles.sin().bfloat16()
        grads = [torch.randn(batch, self.time, n, size, device=device, dtype=torch.bfloat16) for n in (h, kv, kv)]
        twin = torch.compile(reference, dynamic=False)

        def run(function: Callable[..., Any]) -> None:
            torch.autograd.backward(function(qkv, cos, sin, gain, h, kv, 1e-6, None, 1, False)[:3], grads)
            qkv.grad = gain.grad = None

        moved = 2.0 * self.tokens * size * (2 * (h + 2 * kv) + (h + kv) + 2 * (h + 2 * kv))
        return lambda: run(heads), lambda: run(twin), moved, 0.0


def reference(
    qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, gain: torch.Tensor | None, heads: int, kv_heads: int,
    eps: float, places: torch.Tensor | None, copies: int, apart: bool,
) -> Made:  # fmt: skip
    """What `heads` computes, by torch's own ops in the order of CausalAttention.project."""
    batch, time, width = qkv.shape
    size = width // (heads + 2 * kv_heads)
    q, k, v = qkv.view(batch, time, -1, size).split((heads, kv_heads, kv_heads), dim=2)
    half = cos.shape[1]

    def turned(x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        n = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
        c, s = (table[slice(time) if places is None else places, None].to(x.dtype) for table in (cos, sin))
        a, b = n[..., :half], n[..., half : 2 * half]
        return torch.cat((a * c + b * s, b * c - a * s, n[..., 2 * half :]), dim=-1)

    q, k = turned(q), turned(k)
    q = q if gain is None else q * gain.to(q.dtype)[:, None]
    again = [x.repeat_interleave(copies, dim=2) if copies > 1 else x for x in (k, v)]
    return q, again[0], again[1], v if apart else v[:, :, :0]


CASES = [HeadsCase(65_536, 1024), HeadsCase(98_304, 2048)]
