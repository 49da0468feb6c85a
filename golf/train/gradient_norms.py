"""A callback that shows how large gradients are, by what their parameters are for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from golf.common.errors import ConfigError
from golf.common.progress import Progress
from golf.train.hooks import Hook, NamedGradients

if TYPE_CHECKING:
    from golf.train.trainer import Trainer


class GradientNorms(Hook):
    """Shows `grad_norm_ROLE`, the norm of all gradients of a role (matrix, embed, head, scalar, gate), averaged over
    ranks and not clipped yet, of the first step and of every `every` steps.

    Raises ConfigError for `every` below 1.
    """

    def __init__(self, every: int = 100) -> None:
        if every < 1:
            raise ConfigError(f"callbacks.gradient_norms.every={every}: must be at least 1")
        self.every = every

    def attach(self, trainer: Trainer) -> None:
        """Look up every parameter's role."""
        self.trainer = trainer
        self.roles = {name: spec.role for name, spec in trainer.parts.model.specs().items()}

    def on_gradients(self, progress: Progress, named_gradients: NamedGradients) -> None:
        """Norms are shown in the next row."""
        step = progress.step + 1
        if step != 1 and step % self.every:
            return
        squares: dict[str, list[torch.Tensor]] = {}
        for name, gradient in named_gradients:
            squares.setdefault(self.roles[name], []).append(gradient.float().square().sum())
        for role, found in squares.items():
            self.trainer.show(f"grad_norm_{role}", torch.stack(found).sum().sqrt())
