"""What happens around a training step besides the step: one list, in order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from golf.common.progress import Progress

if TYPE_CHECKING:
    from golf.train.timeline import Phase
    from golf.train.trainer import Trainer

NamedGradients = Iterable[tuple[str, torch.Tensor]]


class Hook:
    """A member of the list; a user's own callback (`callbacks/NAME=…`) is one. Every method may be left as it is.

    They are called on every rank, in the order of the list, and must do the same collective operations on each. One
    that changes weights calls `trainer.weights.refresh(trainer.parts.qat)`: products read copies of them.
    """

    def attach(self, trainer: Trainer) -> None:
        """Training is about to begin: model, optimizer and loader are as they will be at the first step."""

    def before_step(self, progress: Progress) -> None:
        """Before a step's forward."""

    def on_losses(self, progress: Progress, losses: torch.Tensor) -> None:
        """After the passes; losses [1 + K] on the device: this rank's mean nll, and the means of what was noted."""

    def on_gradients(self, progress: Progress, named_gradients: NamedGradients) -> None:
        """After gradients have been averaged over ranks, before the update (and its clipping).

        A hook that has this method makes the update wait for all gradients.
        """

    def after_update(self, progress: Progress) -> None:
        """After an update: `progress.step` counts it, `progress.lr_multiplier` is the one it used."""

    def after_step(self, progress: Progress, stop: bool) -> None:
        """After the look at the clock; `stop`: no step follows."""

    def at_phase(self, phase: Phase, progress: Progress) -> None:
        """A phase begins with the coming step; the first one too."""

    def state_dict(self) -> dict[str, Any]:
        """What a run restored from memory must know."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
