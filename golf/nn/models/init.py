"""Init slot: starting values, drawn on the CPU so that a seed means the same everywhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from golf.common.errors import ConfigError
from golf.common.seeding import generator_of
from golf.nn.linear import Linear

SMALLEST_ORTHOGONAL = 64
Draw = Callable[[str], torch.Generator]
"""The generator that a parameter of this name is drawn from."""


class Init:
    """Fill a model's embedding and matrices; vectors keep the values they were declared with.

    Matrices: uniform in ±1/sqrt(fan_in), then with matrices="orthogonal" replaced by orthogonal ones where both sides
    are ≥ 64. Projections into the stream: `projections` "zero" sets them to zero, "scaled" multiplies them by
    1/sqrt(2L), "plain" leaves them. The embedding is N(0, embed_std²).

    draws: with "by_name" every parameter has a generator of its own, seeded by the run's seed and the parameter's name,
    so that a model with one matrix more starts as the one without it does everywhere else, and an ablation compares
    like with like. "in_order" draws all from one generator in the order of the record scripts.
    """

    def __init__(
        self,
        embed_std: float = 0.005,
        matrices: Literal["uniform", "orthogonal"] = "uniform",
        projections: Literal["zero", "scaled", "plain"] = "zero",
        draws: Literal["by_name", "in_order"] = "by_name",
    ) -> None:
        if embed_std <= 0:
            raise ConfigError(f"model.init.embed_std={embed_std}: must be positive")
        self.embed_std, self.matrices, self.projections, self.draws = embed_std, matrices, projections, draws

    @torch.no_grad()
    def __call__(self, embedding: nn.Parameter, model: nn.Module, num_layers: int, seed: int) -> None:
        """Initialise `embedding` [V, D] and every Linear of `model` in place, drawing on the CPU from `seed`."""
        draw = self._draw(seed)
        linears = {f"{name}.weight": m for name, m in model.named_modules() if isinstance(m, Linear)}
        if self.draws == "in_order":
            # The scripts fill the embedding twice, here and after the matrices: this draw only moves the generator on.
            torch.empty(embedding.shape, dtype=torch.float32).normal_(generator=draw("embedding"))
        fresh = {}
        for name, linear in linears.items():
            bound = 1 / math.sqrt(linear.weight.shape[1])
            fresh[name] = torch.empty(linear.weight.shape).uniform_(-bound, bound, generator=draw(name))
        table = torch.empty(embedding.shape, dtype=torch.float32)
        embedding.copy_(table.normal_(0.0, self.embed_std, generator=draw("embedding")))
        for name, value in fresh.items():
            linear, large = linears[name], min(value.shape) >= SMALLEST_ORTHOGONAL
            if self.matrices == "orthogonal" and large:
                nn.init.orthogonal_(value, gain=1.0, generator=draw(name))
            if linear.writes_stream and self.projections != "plain":
                # among orthogonal matrices a projection too small to be one keeps the scripts' zero
                scaled = self.projections == "scaled" and (large or self.matrices == "uniform")
                value.mul_(1 / math.sqrt(2 * num_layers)) if scaled else value.zero_()
            linear.weight.copy_(value)

    def _draw(self, seed: int) -> Draw:
        if self.draws == "by_name":
            return lambda name: generator_of(seed, name)
        shared = torch.Generator(device="cpu").manual_seed(seed)
        return lambda name: shared
