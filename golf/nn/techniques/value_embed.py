"""ValueEmbed: some layers' values get an embedding of the token, from one table for all of them."""

from __future__ import annotations

import torch

from golf.common.errors import ConfigError
from golf.nn.context import Context
from golf.nn.linear import Linear
from golf.nn.numerics import Numerics
from golf.nn.params import declare
from golf.nn.shape import Shape
from golf.nn.table import Table
from golf.nn.techniques.base import Technique

EMBEDDED = "value_embed.embedded"


class ValueEmbed(Technique):
    """v ← v + s_i P E[id] in layer i, on values [B, T, Hkv, hd]; E [V, dim] and P [Hkv hd, dim] are the layers' own.

    E starts at zero, so that v stays; P is drawn as any matrix, s at `scale_init` (s of other layers rests).
    Raises ConfigError for a `dim` below 1. Source: modded-nanogpt's value embeddings; this form: PR 374.
    """

    site = "v"
    shared = True
    reads = ("ids", "visit", "carried")
    table: torch.Tensor
    scale: torch.Tensor

    def __init__(
        self, shape: Shape, numerics: Numerics, layer: int | None = None, dim: int = 128, scale_init: float = 0.1
    ) -> None:
        super().__init__(shape, layer)
        if dim < 1:
            raise ConfigError(f"technique.value_embed.dim={dim}: must be at least 1")
        table = torch.zeros(shape.vocab_size, dim, dtype=numerics.embed_dtype)
        declare(self, "table", table, role="embed", place="value_embed.table")
        self.lookup = Table(self, "table", numerics.dtype, cast=False)
        self.proj = Linear(dim, shape.kv_dim, numerics, place="value_embed.proj")
        scale = torch.full((shape.num_layers,), float(scale_init))
        declare(self, "scale", scale, role="scalar", place="value_embed.scale")

    def forward(self, v: torch.Tensor, ctx: Context) -> torch.Tensor:
        """[B, T, Hkv, hd] → the same."""
        assert ctx.visit is not None
        if EMBEDDED not in ctx.carried:  # made once, however many layers add it
            ctx.carry(EMBEDDED, self.proj(self.lookup.looked_up(ctx.ids, self.table)).view(v.shape))
        return v + (self.scale[ctx.visit.layer] * ctx.fetch(EMBEDDED)).to(v.dtype)
