"""MLP slot: two matrices with an activation between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from golf.common.errors import ConfigError
from golf.nn.context import Context
from golf.nn.linear import Linear
from golf.nn.numerics import Numerics
from golf.nn.shape import Shape
from golf.nn.techniques.base import Techniques


class SquaredMLP(nn.Module):
    """proj(φ(up(n))) with φ(u) = max(u, slope·u)²: relu² for slope 0, leaky relu² above.

    `whole` computes it: `unfused`, or a fused kernel that stands for it.
    Source: Primer (relu²); leaky form from Parameter Golf PR 493.
    """

    def __init__(
        self, shape: Shape, numerics: Numerics, layer: int, techniques: Techniques, negative_slope: float = 0.0
    ) -> None:
        super().__init__()
        if not 0.0 <= negative_slope < 1.0:
            raise ConfigError(f"model.mlp.negative_slope={negative_slope}: must lie in [0, 1)")
        self.negative_slope = negative_slope
        self.up = Linear(shape.model_dim, shape.mlp_dim, numerics, place="mlp.up", layer=layer)
        self.down = Linear(shape.mlp_dim, shape.model_dim, numerics, place="mlp.down", layer=layer, writes_stream=True)
        self.at_mlp_hidden = techniques.at("mlp_hidden", layer)
        self.whole: Callable[[torch.Tensor, Context], torch.Tensor] = self.unfused

    def forward(self, n: torch.Tensor, ctx: Context) -> torch.Tensor:
        """n [B, T, D], the normed stream → [B, T, D] in the compute dtype."""
        return self.whole(n, ctx)

    def unfused(self, n: torch.Tensor, ctx: Context) -> torch.Tensor:
        """The same by torch's own ops, with the techniques at mlp_hidden."""
        u = self.up(n)
        h = F.relu(u) if self.negative_slope == 0.0 else F.leaky_relu(u, self.negative_slope)
        h = h * h  # pow would cost a slow backward on the CPU
        for t in self.at_mlp_hidden.values():
            h = t(h, ctx)
        return self.down(h)


class GatedMLP(nn.Module):
    """down(act(gate(n)) ⊙ up(n)), act silu or gelu; `match_params` narrows it to the size of a two-matrix MLP.
    Source: Shazeer 2020."""

    def __init__(
        self,
        shape: Shape,
        numerics: Numerics,
        layer: int,
        techniques: Techniques,
        match_params: bool = True,
        kind: Literal["silu", "gelu"] = "silu",
    ) -> None:
        super().__init__()
        hidden = shape.mlp_dim
        if match_params:
            hidden = max(8, round(hidden * 2 / 3 / 8) * 8)
        self.kind = kind
        self.up = Linear(shape.model_dim, hidden, numerics, place="mlp.up", layer=layer)
        self.gate = Linear(shape.model_dim, hidden, numerics, place="mlp.gate", layer=layer)
        self.down = Linear(hidden, shape.model_dim, numerics, place="mlp.down", layer=layer, writes_stream=True)
        self.at_mlp_hidden = techniques.at("mlp_hidden", layer)

    def forward(self, n: torch.Tensor, ctx: Context) -> torch.Tensor:
        """n [B, T, D], the normed stream → [B, T, D] in the compute dtype."""
        gate = self.gate(n)
        h = (F.silu(gate) if self.kind == "silu" else F.gelu(gate)) * self.up(n)
        for t in self.at_mlp_hidden.values():
            h = t(h, ctx)
        return self.down(h)
