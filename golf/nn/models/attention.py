"""Attention slot: from the normed stream to what is added to it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from golf.nn import attend
from golf.nn.context import Context
from golf.nn.linear import Linear
from golf.nn.numerics import Numerics
from golf.nn.params import declare
from golf.nn.shape import Shape
from golf.nn.techniques.base import Techniques

Made = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
Heads = Callable[[torch.Tensor, int, torch.Tensor | None], Made]
HeadsOut = Callable[[torch.Tensor, Context], torch.Tensor]


class CausalAttention(nn.Module):
    """Grouped-query causal attention with optional QK norm and a learned gain per query head.

    Query head h reads kv head h // (H / Hkv). Order: project, norm q and k over hd, rotate, scale q by its gain
    (initially `qk_gain_init`; None leaves it out), attend with scale 1/sqrt(hd), project back.
    `heads` makes q, k and v, and v as techniques read it: `project`, or a fused kernel that stands for it, which may
    repeat keys and values for each query head; `heads_out` is `unfused_out` or such a kernel. `prunes` names the places
    whose matrices `forward` applies to the scored positions alone.
    """

    prunes: frozenset[str]

    def __init__(
        self,
        shape: Shape,
        numerics: Numerics,
        layer: int,
        position: nn.Module,
        techniques: Techniques,
        qk_norm: bool = True,
        qk_gain_init: float | None = 1.5,
        backend: attend.Backend = "sdpa",
    ) -> None:
        super().__init__()
        self.shape, self.numerics, self.qk_norm = shape, numerics, qk_norm
        self.position = position
        self.attend = attend.backend(backend)

        def linear(size_in: int, size_out: int, place: str, writes: bool = False) -> Linear:
            return Linear(size_in, size_out, numerics, place=place, layer=layer, writes_stream=writes)

        self.q = linear(shape.model_dim, shape.model_dim, "attn.q")
        self.k = linear(shape.model_dim, shape.kv_dim, "attn.k")
        self.v = linear(shape.model_dim, shape.kv_dim, "attn.v")
        self.proj = linear(shape.model_dim, shape.model_dim, "attn.proj", writes=True)
        self.gain: nn.Parameter | None = None
        if qk_gain_init is not None:
            declare(
                self, "gain", torch.full((shape.num_heads,), float(qk_gain_init)),
                role="scalar", place="attn.gain", layer=layer,
            )  # fmt: skip
        self.heads: Heads = self.project
        self.at_qk = techniques.at("qk", layer)
        self.at_v = techniques.at("v", layer)
        self.at_heads_out = techniques.at("heads_out", layer)
        self.heads_out: HeadsOut = self.unfused_out
        # A technique at qk is handed queries and keys of the same positions; what mixes time behind the attention
        # reads all of its outputs.
        places = () if techniques.mixes_time_after(("heads_out",), layer) else ("attn.q", "attn.proj")
        self.prunes = frozenset(place for place in places if place != "attn.q" or not self.at_qk)

    def forward(self, n: torch.Tensor, ctx: Context, score_from: int = 0) -> torch.Tensor:
        """n [B, T, D], the normed stream → [B, T', D] in the compute dtype.

        T' = T, or T − score_from: keys and values are made of all positions, and only the scored ones ask.
        """
        batch, time, _ = n.shape
        first = score_from if self.prunes else 0
        asking = first if "attn.q" in self.prunes else 0
        q, k, value, v = self.heads(n, asking, None if ctx.documents is None else ctx.documents.place)
        ctx = ctx._replace(n=n, v=v)
        for t in self.at_qk.values():
            q, k = t((q, k), ctx)
        for t in self.at_v.values():
            value = v = t(v, ctx)
        dtype = self.numerics.dtype
        q, k, value = q[:, first - asking :].to(dtype), k.to(dtype), value.to(dtype)
        if ctx.documents is None:
            y = self.attend.whole(q, k, value)
        else:
            assert self.attend.packed is not None  # GPT.cannot_pack says so before
            y = self.attend.packed(q, k, value, ctx.documents)
        y = self.heads_out(y, ctx._replace(v=v).since(first))
        return self.proj(y.reshape(batch, time - first, self.shape.model_dim))

    def unfused_out(self, y: torch.Tensor, ctx: Context) -> torch.Tensor:
        """The attention's outputs y [B, T, H, hd] → the same shape, by the techniques at heads_out."""
        for t in self.at_heads_out.values():
            y = t(y, ctx)
        return y

    def project(self, n: torch.Tensor, asking: int = 0, places: torch.Tensor | None = None) -> Made:
        """n [B, T, D] → q [B, T − asking, H, hd], k and twice v [B, T, Hkv, hd]: projected, normed, rotated, scaled."""
        return self.turned(self.q(n[:, asking:]), self.k(n), self.v(n), asking, places)

    def turned(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, asking: int = 0, places: torch.Tensor | None = None
    ) -> Made:
        """The products [B, T − asking, H hd] and twice [B, T, Hkv hd] → heads: normed, rotated, queries scaled."""
        hd = self.shape.head_dim
        q, k, v = (x.view(*x.shape[:2], x.shape[2] // hd, hd) for x in (q, k, v))
        if self.qk_norm:
            q, k = self.numerics.norm(q), self.numerics.norm(k)
        q, k = self.position(q, asking, places), self.position(k, 0, places)
        if self.gain is not None:
            q = q * self.gain.to(q.dtype)[:, None]
        return q, k, v, v
