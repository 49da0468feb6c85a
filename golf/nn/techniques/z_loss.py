"""ZLoss: keeps the log of the partition function near zero, so that logits do not drift."""

from __future__ import annotations

import torch

from golf.common.errors import ConfigError
from golf.nn.context import Context
from golf.nn.shape import Shape
from golf.nn.techniques.base import Technique


class ZLoss(Technique):
    """Adds weight · mean(log²Z), Z = Σ exp(logits), to the training loss, and reports mean(log Z) as `log_z`.

    A phase may change `weight`; at 0 nothing is computed. Raises ConfigError for a negative one. Source: PaLM,
    Chowdhery et al. 2022.
    """

    site = "logits"
    reads = ("targets",)
    changes = ("weight",)

    def __init__(self, shape: Shape, layer: int | None = None, weight: float = 1e-4) -> None:
        super().__init__(shape, layer)
        if weight < 0:
            raise ConfigError(f"technique.z_loss.weight={weight}: must not be negative")
        self.weight = weight

    def forward(self, logits: torch.Tensor, ctx: Context) -> torch.Tensor:
        """[B, T, V] → the same."""
        if ctx.targets is not None and self.weight:
            log_z = logits.logsumexp(-1)
            ctx.add_loss("z_loss", self.weight * log_z.square().mean())
            ctx.report("log_z", log_z.mean())
        return logits
