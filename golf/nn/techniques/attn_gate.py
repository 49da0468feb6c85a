"""AttnGate: each attention head's output is scaled by a gate that its position computes from the attention's input."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from golf.common.errors import ConfigError
from golf.nn.context import Context
from golf.nn.params import declare
from golf.nn.shape import Shape
from golf.nn.techniques.base import Technique


class AttnGate(Technique):
    """y_h ← g_h y_h with g = ceiling · σ(slope · W n[:width]), behind XSA and before the projection, on [B, T, H, hd].

    n: the attention's normed input, `width` None all of it. W [H, width] starts at zero, or N(0, init_std²). `gate`
    computes g. Raises ConfigError for a width that is not 1 … model_dim. Source: Qiu et al. 2025 (gated attention,
    arXiv 2505.06708); options sparse PR 1787, doubled PR 1667, dense PR 1736.
    """

    site = "heads_out"
    reads = ("n",)
    order = 0  # behind XSA
    weight: torch.Tensor

    def __init__(
        self,
        shape: Shape,
        layer: int | None = None,
        width: int | None = 12,
        slope: float = 0.5,
        ceiling: float = 1.0,
        init_std: float = 0.0,
    ) -> None:
        super().__init__(shape, layer)
        if width is not None and not 1 <= width <= shape.model_dim:
            raise ConfigError(
                f"technique.attn_gate.width={width}: from 1 to model.model_dim={shape.model_dim}, or null"
            )
        if init_std < 0:
            raise ConfigError(f"technique.attn_gate.init_std={init_std}: must not be negative")
        self.width, self.slope, self.ceiling = width, slope, ceiling
        self.asks_first = width or 0
        start = torch.zeros(shape.num_heads, width or shape.model_dim)
        if init_std:
            start.normal_(0.0, init_std)
        declare(self, "weight", start, role="gate", place="attn.gate", layer=layer)

    def forward(self, y: torch.Tensor, ctx: Context) -> torch.Tensor:
        """[B, T, H, hd] → the same shape, float32."""
        return y * self.gate(ctx)[..., None]

    def gate(self, ctx: Context) -> torch.Tensor:
        """g [B, T, H], float32; the product is in n's dtype."""
        assert ctx.n is not None
        part, weight = ctx.n, self.weight.to(ctx.n.dtype)
        if self.width is not None:
            part = ctx.first_of_n(self.width)
            weight = F.pad(weight, (0, part.shape[-1] - self.width))
        return self.ceiling * torch.sigmoid(self.slope * F.linear(part, weight).float())
