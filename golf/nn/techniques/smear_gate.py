"""SmearGate: every token's embedding takes something of its predecessor's, as much as a learned gate says."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from golf.common.errors import ConfigError
from golf.nn.context import Context, begins
from golf.nn.params import declare
from golf.nn.shape import Shape
from golf.nn.techniques.base import Technique


class SmearGate(Technique):
    """v1, a gate a channel: y_t = (1 − g) e_t + g e_{t−1} with g = σ(θ) and e_{−1} = 0 before a document, on the raw
    embedding [B, T, D].

    θ starts at `gate_init` (0: an even blend). Source: modded-nanogpt's smear, GradQuant record (PR 422).
    """

    site = "post_embed"
    mixes_time = True
    reads = ("documents",)
    gate: torch.Tensor

    def __init__(self, shape: Shape, layer: int | None = None, gate_init: float = 0.0) -> None:
        super().__init__(shape, layer)
        declare(self, "gate", torch.full((shape.model_dim,), float(gate_init)), role="gate", place="smear.gate")

    def forward(self, e: torch.Tensor, ctx: Context) -> torch.Tensor:
        """[B, T, D] → [B, T, D]."""
        gate = torch.sigmoid(self.gate.to(e.dtype))
        previous = F.pad(e[:, :-1], (0, 0, 1, 0))
        if ctx.documents is not None:
            previous = previous.masked_fill((ctx.documents.place == 0)[:, None], 0)
        return (1 - gate) * e + gate * previous


class SmearGateByToken(Technique):
    """v2, a gate that each token computes: y_t = e_t + λ σ(w · e_t[:width]) e_{t−1}, on the raw embedding [B, T, D].

    w and λ start at zero, so that y = e. A token without a predecessor in its document takes nothing, in windows that
    hold several documents too. Raises ConfigError for a `width` that is not 1 … model_dim.
    Source: modded-nanogpt's smear; PR 1667, without its look across documents: PR 1851.
    """

    site = "post_embed"
    mixes_time = True
    reads = ("ids", "documents", "border_id")
    weight: torch.Tensor
    strength: torch.Tensor

    def __init__(self, shape: Shape, layer: int | None = None, width: int = 12) -> None:
        super().__init__(shape, layer)
        if not 1 <= width <= shape.model_dim:
            raise ConfigError(f"technique.smear_gate.width={width}: from 1 to model.model_dim={shape.model_dim}")
        self.width = width
        declare(self, "weight", torch.zeros(width), role="gate", place="smear.weight")
        declare(self, "strength", torch.zeros(1), role="scalar", place="smear.strength")

    def forward(self, e: torch.Tensor, ctx: Context) -> torch.Tensor:
        """[B, T, D] → [B, T, D]."""
        gate = torch.sigmoid((e[..., : self.width].float() * self.weight).sum(-1))
        share = (self.strength * gate).masked_fill(begins(ctx), 0)
        return e + share[..., None].to(e.dtype) * F.pad(e[:, :-1], (0, 0, 1, 0))
