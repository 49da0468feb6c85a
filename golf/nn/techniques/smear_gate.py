"""SmearGate v1: every token's embedding is blended with its predecessor's, one learned gate per channel."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from golf.nn.context import Context
from golf.nn.params import declare
from golf.nn.shape import Shape
from golf.nn.techniques.base import Technique


class SmearGate(Technique):
    """y_t = (1 − g) e_t + g e_{t−1} with g = σ(θ) per channel and e_{−1} = 0 before a document, on the raw embedding
    [B, T, D].

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
