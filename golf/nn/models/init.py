"""Init slot: starting values, drawn on the CPU in one documented order so that a seed means the same everywhere."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

from golf.common.errors import ConfigError
from golf.nn.linear import Linear

SMALLEST_ORTHOGONAL = 64


class Init:
    """Fill a model's embedding and matrices; vectors keep the values they were declared with.

    Matrices: uniform in ±1/sqrt(fan_in), then with matrices="orthogonal" replaced by orthogonal ones where both sides
    are ≥ 64. Projections into the stream: `projections` "zero" sets them to zero, "scaled" multiplies them by
    1/sqrt(2L), "plain" leaves them.
    The embedding is N(0, embed_std²). The order of draws is that of the record scripts.
    """

    def __init__(
        self,
        embed_std: float = 0.005,
        matrices: Literal["uniform", "orthogonal"] = "uniform",
        projections: Literal["zero", "scaled", "plain"] = "zero",
    ) -> None:
        if embed_std <= 0:
            raise ConfigError(f"model.init.embed_std={embed_std}: must be positive")
        self.embed_std, self.matrices, self.projections = embed_std, matrices, projections

    @torch.no_grad()
    def __call__(self, embedding: nn.Parameter, model: nn.Module, num_layers: int, seed: int) -> None:
        """Initialise `embedding` [V, D] and every Linear of `model` in place, drawing on the CPU from `seed`."""
        generator = torch.Generator(device="cpu").manual_seed(seed)
        linears = [m for m in model.modules() if isinstance(m, Linear)]
        # The scripts fill the embedding twice, here and after the matrices: this draw only moves the generator on.
        torch.empty(embedding.shape, dtype=torch.float32).normal_(generator=generator)
        fresh = []
        for linear in linears:
            bound = 1 / math.sqrt(linear.weight.shape[1])
            fresh.append(torch.empty(linear.weight.shape).uniform_(-bound, bound, generator=generator))
        table = torch.empty(embedding.shape, dtype=torch.float32).normal_(0.0, self.embed_std, generator=generator)
        embedding.copy_(table)
        for linear, value in zip(linears, fresh, strict=True):
            large = min(value.shape) >= SMALLEST_ORTHOGONAL
            if self.matrices == "orthogonal" and large:
                nn.init.orthogonal_(value, gain=1.0, generator=generator)
            if linear.writes_stream and self.projections != "plain":
                # among orthogonal matrices a projection too small to be one keeps the scripts' zero
                scaled = self.projections == "scaled" and (large or self.matrices == "uniform")
                value.mul_(1 / math.sqrt(2 * num_layers)) if scaled else value.zero_()
            linear.weight.copy_(value)
