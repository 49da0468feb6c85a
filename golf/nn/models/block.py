"""One layer: attention and MLP between their norms and sites; the residual object owns how outputs are added."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from golf.nn.context import Context, Visit
from golf.nn.numerics import Numerics
from golf.nn.shape import Shape
from golf.nn.slots import MLP, Attention, Build, Position, Residual, fitted
from golf.nn.techniques.base import Techniques

AFTER_ATTENTION = ("attn_out", "mlp_in", "mlp_hidden", "mlp_out", "block_out")


class Block(nn.Module):
    """A layer with its techniques; the layers of a model differ in theirs alone, or in the kind of a slot."""

    attn: Attention
    mlp: MLP

    def __init__(
        self, shape: Shape, numerics: Numerics, layer: int, attention: Build, mlp: Build, position: Position,
        techniques: Techniques,
    ) -> None:  # fmt: skip
        super().__init__()
        self.numerics = numerics
        # Behind the attention everything is pointwise unless a technique says otherwise: then nothing is left out here.
        self.prunable = not techniques.mixes_time_after(AFTER_ATTENTION, layer)
        part = attention(shape=shape, numerics=numerics, layer=layer, position=position, techniques=techniques)
        self.attn = fitted("attention", part)
        self.mlp = fitted("mlp", mlp(shape=shape, numerics=numerics, layer=layer, techniques=techniques))
        self.at_attn_in = techniques.at("attn_in", layer)
        self.at_attn_out = techniques.at("attn_out", layer)
        self.at_mlp_in = techniques.at("mlp_in", layer)
        self.at_mlp_out = techniques.at("mlp_out", layer)
        self.at_block_out = techniques.at("block_out", layer)

    def forward(self, stream: Any, residual: Residual, ctx: Context, visit: Visit, prune: int) -> Any:
        """Run the layer once. `prune` > 0 leaves out the positions before it behind the attention."""
        ctx = ctx._replace(visit=visit)
        stream, n = residual.attn_in(stream, visit, self.numerics.norm)
        if (narrow := getattr(residual, "narrow", None)) is not None:  # a fused one has it
            ctx = ctx._replace(narrow=narrow(stream, n))
        for t in self.at_attn_in.values():
            n = t(n, ctx)
        a = self.attn(n, ctx, prune)
        ctx = ctx._replace(n=n)
        if prune:
            stream, ctx = residual.prune(stream, prune), ctx.since(prune)
            a = a[:, a.shape[1] - (n.shape[1] - prune) :]  # an attention may have left these positions out itself
        for t in self.at_attn_out.values():
            a = t(a, ctx)
        stream = residual.attn_add(stream, a, visit)
        stream, n = residual.mlp_in(stream, visit, self.numerics.norm)
        ctx = ctx._replace(n=n)
        for t in self.at_mlp_in.values():
            n = t(n, ctx)
        m: torch.Tensor = self.mlp(n, ctx)
        for t in self.at_mlp_out.values():
            m = t(m, ctx)
        stream = residual.mlp_add(stream, m, visit)
        if self.at_block_out:
            x = residual.finish(stream)
            for t in self.at_block_out.values():
                x = t(x, ctx)
            stream = residual.replace(stream, x)
        return stream
