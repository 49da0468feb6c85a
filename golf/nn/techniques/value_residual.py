"""ValueResidual: later layers attend to the first layer's values besides their own."""

from __future__ import annotations

import torch

from golf.nn.context import Context
from golf.nn.params import declare
from golf.nn.shape import Shape
from golf.nn.techniques.base import Technique

FIRST = "value_residual.first"


class ValueResidual(Technique):
    """v ← v + σ(α) v₀, v₀ [B, T, Hkv, hd] being the values of the first of its layers to run, which keeps them as they
    are.

    α, one a layer, starts at `alpha_init`; the first layer's own serves when a loop comes back to it.
    Source: value residual learning, Zhou et al. 2024 (arXiv 2410.17897); this form: Parameter Golf's records.
    """

    site = "v"
    reads = ("carried",)
    alpha: torch.Tensor

    def __init__(self, shape: Shape, layer: int | None = None, alpha_init: float = 0.0) -> None:
        super().__init__(shape, layer)
        alpha = torch.full((1,), float(alpha_init))
        declare(self, "alpha", alpha, role="scalar", place="attn.value_residual", layer=layer)

    def forward(self, v: torch.Tensor, ctx: Context) -> torch.Tensor:
        """[B, T, Hkv, hd] → the same."""
        if FIRST not in ctx.carried:
            ctx.carry(FIRST, v)
            return v
        return v + torch.sigmoid(self.alpha).to(v.dtype) * ctx.fetch(FIRST)
