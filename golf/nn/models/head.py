"""Head slot: from the final norm to logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from golf.common.errors import ConfigError
from golf.nn.numerics import Numerics
from golf.nn.params import declare
from golf.nn.shape import Shape


class Head(nn.Module):
    """logits = c·tanh(z/c), z = h Wᵀ, with W the token embedding (`tied`) or a matrix of its own that starts at zero.

    `softcap` None leaves z as it is. Logits are float32. Source: Gemma 2 (softcap).
    """

    def __init__(self, shape: Shape, numerics: Numerics, tied: bool = True, softcap: float | None = 30.0) -> None:
        super().__init__()
        if softcap is not None and softcap <= 0:
            raise ConfigError(f"model.head.softcap={softcap}: must be positive or null")
        self.tied, self.softcap, self.dtype = tied, softcap, numerics.dtype
        self.weight: nn.Parameter | None = None
        if not tied:
            declare(self, "weight", torch.zeros(shape.vocab_size, shape.model_dim), role="head", place="head")

    def forward(self, h: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """h [B, T, D], embedding [V, D] → logits [B, T, V], float32."""
        weight = embedding if self.weight is None else self.weight
        z = F.linear(h.to(self.dtype), weight.to(self.dtype)).float()
        return z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)
