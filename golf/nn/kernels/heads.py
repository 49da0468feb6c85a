"""Queries, keys and values in two steps: one product over q, k and v's adjacent weights, and one pass over its result.

The pass norms each query and key head, rotates it, scales queries by their gain, and writes q, k and v apart; backward
is one pass as well. The arithmetic is float32 with one rounding at the end. Twin: CausalAttention.project.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch.library import triton_op, wrap_triton

from golf.nn.linear import Joined
from golf.nn.models.attention import CausalAttention
from golf.nn.models.position import Rope

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
    QKV, COS, SIN, GAIN, PLACES, Q, K, V, rows, time,
    H: tl.constexpr, KV: tl.constexpr, SIZE: tl.constexpr, HALF: tl.constexpr, GAINED: tl.constexpr,
    PLACED: tl.constexpr, R: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64) * R + tl.arange(0, R)
    cols = tl.arange(0, SIZE)
    mask = (row < rows)[:, None] & (cols < SIZE)[None, :]
    at = row[:, None] * ((H + 2 * KV) * SIZE) + head * SIZE
    x = tl.load(QKV + at + cols[None, :], mask, 0.0).to(tl.float32)
    if head >= H + KV:
        tl.store(V + row[:, None] * (KV * SIZE) + (head - H - KV) * SIZE + cols[None, :], x, mask)
    else:
        scale = tl.rsqrt(tl.sum(x * x, 1) / SIZE + EPS)
        if HALF > 0:
            partner = tl.where(cols < HALF, cols + HALF, tl.where(cols < 2 * HALF, cols - HALF, cols))
            other = tl.load(QKV + at + partner[None, :], mask, 0.0).to(tl.float32)
            c, s = _rotated(row, cols, COS, SIN, PLACES, rows, time, PLACED, HALF, 1, mask)
            x = x * c + other * s
        x = x * scale[:, None]
        if head < H:
            if GAINED:
                x = x * tl.load(GAIN + head).to(tl.bfloat16).to(tl.float32)
            tl.store(Q + row[:, None] * (H * SIZE) + head * SIZE + cols[None, :], x, mask)
        else:
            tl.store(K + row[:, None] * (KV * SIZE) + (head - H) * SIZE + cols[None, :], x, mask)


@triton.jit
def _heads_backward(
    DQ, DK, DV, QKV, COS, SIN, GAIN, PLACES, DQKV, DGAIN, rows, time, qb, qt, qh, kb, kt, kh, vb, vt, vh,
    H: tl.constexpr, KV: tl.constexpr, SIZE: tl.constexpr, HALF: tl.constexpr, GAINED: tl.constexpr,
    PLACED: tl.constexpr, R: tl.constexpr, EPS: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)
    block = tl.program_id(1)
    row = block.to(tl.int64) * R + tl.arange(0, R)
    cols = tl.arange(0, SIZE)
    mask = (row < rows)[:, None] & (cols < SIZE)[None, :]
    at = row[:, None] * ((H + 2 * KV) * SIZE) + head * SIZE + cols[None, :]
    if head >= H + KV:
        start = (row // time) * vb + (row % time) * vt + (head - H - KV) * vh
        tl.store(DQKV + at, tl.load(DV + start[:, None] + cols[None, :], mask, 0.0), mask)
    else:
        if head < H:
            D = DQ + ((row // time) * qb + (row % time) * qt + head * qh)[:, None]
        else:
            D = DK + ((row // time) * kb + (row % time) * kt + (head - H) * kh)[:, None]
        d = tl.load(D + cols[None, :], mask, 0.0).to(tl.float32)
        x = tl.load(QKV + at, mask, 0.0).to(tl.float32)
        if HALF > 0:
            partner = tl.where(cols < HALF, cols + HALF, tl.where(cols < 2 * HALF, cols - HALF, cols))
            other = tl.load(D + partner[None, :], mask, 0.0).to(tl.float32)
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
    " Tensor? places) -> (Tensor, Tensor, Tensor)",
)
def heads(
    qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, gain: torch.Tensor | None, heads: int, kv_heads: int,
    eps: float, places: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """qkv [B, T, (H + 2 Hkv) hd] → q [B, T, H, hd], k and v [B, T, Hkv, hd], contiguous.

    cos, sin [≥ T, rotated/2] (rotated 0: no rotation); gain float32 [H] or None; places int64 [T]: where in the tables
    a token stands (None: 0 … T − 1).
    """
    batch, time, width = qkv.shape
    sizes = _sizes(heads, kv_heads, width, cos)
    qkv = qkv.contiguous()
    q = qkv.new_empty(batch, time, heads, sizes["SIZE"])
    k, v = (qkv.new_empty(batch, time, kv_heads, sizes["SIZE"]) for _ in range(2))
    grid = (heads + 2 * kv_heads, triton.cdiv(batch * time, TOKENS))
    wrap_triton(_heads_forward)[grid](
        qkv, cos, sin, gain if gain is not None else cos, places if places is not None else cos, q, k, v,
        batch * time, time, GAINED=gain is not None, PLACED=places is not None, EPS=eps, num_warps=4, **sizes,
    )  # fmt: skip
    return q, k, v


@triton_op(
    "golf::heads_backward",
    mutates_args=(),
    schema="(Tensor dq, Tensor dk, Tensor dv, Tensor qkv, Tensor cos, Tensor sin, Tensor? gain, int heads,"
    " int kv_heads, float eps, Tensor? places) -> (Tensor, Tensor)",
)
def heads_backward(
    dq: torch.Tensor, dk: torch.Tensor, dv: torch.Tensor, qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor,
    gain: torch.Tensor | None, heads: int, kv_heads: int, eps: float, places: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """The gradient of qkv, and that of the gain as float32 parts [H, blocks of tokens], from those of q, k and v."""
    batch, time, width = qkv.shape
    sizes = _sizes(heads, kv_heads, width, cos)
    blocks = triton.cdiv(batch * time, TOKENS)
    qkv = qkv.contiguous()
    dqkv = torch.empty_like(qkv)
    dgain = torch.empty(heads, blocks, dtype=torch.float32, device=qkv.device)
    grads = [g if g.stride(3) == 1 else g.contiguous() for g in (dq, dk, dv)]
    strides = [g.stride(i) for g in grads for i in range(3)]
    wrap_triton(_heads_backward)[(heads + 2 * kv_heads, blocks)](
        *grads, qkv, cos, sin, gain if gain is not None else cos, places if places is not None else cos, dqkv, dgain,
        batch * time, time, *strides, GAINED=gain is not None, PLACED=places is not None, EPS=eps, num_warps=4, **sizes,
    )  # fmt: skip
    return dqkv, dgain


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    qkv, cos, sin, gain, ctx.heads, ctx.kv_heads, ctx.eps, places = inputs
    ctx.save_for_backward(qkv, cos, sin, gain, places)


def _gradients(ctx: Any, dq: torch.Tensor, dk: torch.Tensor, dv: torch.Tensor) -> tuple[Any, ...]:
    qkv, cos, sin, gain, places = ctx.saved_tensors
    dqkv, parts = heads_backward(dq, dk, dv, qkv, cos, sin, gain, ctx.heads, ctx.kv_heads, ctx.eps, places)
    return dqkv, None, None, None if gain is None else parts.sum(1).to(gain.dtype), None, None, None, None


heads.register_autograd(_gradients, setup_context=_save)


class FusedHeads:
    """Stands for `CausalAttention.project` wherever all positions ask."""

    def __init__(self, attention: CausalAttention) -> None:
        self.attention = attention
        self.joined = Joined(attention.q, attention.k, attention.v)

    def __call__(
        self, n: torch.Tensor, asking: int = 0, places: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """n [B, T, D] → q, k, v as `project` gives them; fewer queries are left to torch."""
        attention = self.attention
        shape, position = attention.shape, attention.position
        if asking:
            if not torch.is_grad_enabled():
                return attention.project(n, asking, places)
            sizes = (shape.model_dim, shape.kv_dim, shape.kv_dim)  # gradients reach the joined product alone
            q, k, v = self.joined.forward(n).split(sizes, dim=-1)
            return attention.turned(q[:, asking:], k, v, asking, places)
        cos, sin = (position.cos, position.sin) if isinstance(position, Rope) else (n.new_empty(1, 0),) * 2
        return heads(
            self.joined.forward(n), cos, sin, attention.gain, shape.num_heads, shape.num_kv_heads,
            attention.numerics.norm_eps_low, places,
        )  # type: ignore[return-value]  # fmt: skip


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
            torch.autograd.backward(function(qkv, cos, sin, gain, h, kv, 1e-6, None), grads)
            qkv.grad = gain.grad = None

        moved = 2.0 * self.tokens * size * (2 * (h + 2 * kv) + (h + kv) + 2 * (h + 2 * kv))
        return lambda: run(heads), lambda: run(twin), moved, 0.0


def reference(
    qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, gain: torch.Tensor | None, heads: int, kv_heads: int,
    eps: float, places: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
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
    return q if gain is None else q * gain.to(q.dtype)[:, None], k, v


CASES = [HeadsCase(65_536, 1024), HeadsCase(98_304, 2048)]
