"""Copies of a run's state in memory: to undo the warm-up, and to fall back on after a non-finite loss."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from golf.common.errors import NonFiniteLoss
from golf.common.ranks import Ranks
from golf.common.runtime import Arriving


class Saved:
    """A copy of named tensors that can be refreshed and written back, on their device."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.live = [t.detach() for t in tensors.values()]
        self.copy = [t.clone() for t in self.live]

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the live tensors again."""
        torch._foreach_copy_(self.copy, self.live)

    @torch.no_grad()
    def restore(self) -> None:
        """Overwrite the live tensors with the copy."""
        torch._foreach_copy_(self.live, self.copy)


class LastGood:
    """The weights that last gave a finite loss, and the loss itself: the mean over all ranks' tokens.

    A loss may be judged later than it is computed, so that no host waits for its device: its weights are then kept in a
    copy of their own until it has arrived.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor], ranks: Ranks) -> None:
        self.ranks = ranks
        self.loss: float | None = None
        self.summed: float | None = None
        """What was handed over as `summed` with the loss."""
        self.step = 0
        """How many steps had been done with the weights that are kept."""
        self._good, self._spare = Saved(weights), Saved(weights)
        self._coming: tuple[int, Arriving] | None = None

    def check(self, done: int, loss: torch.Tensor, wait: bool, summed: torch.Tensor | None = None) -> None:
        """Judge the present weights, made by `done` steps, by this rank's `loss`: now, or at the next call.

        `summed`, a sum of losses since some step, travels with it: the mean over ranks arrives at the same time.
        Raises NonFiniteLoss on every rank, with the kept weights put back; without `wait` it may be an earlier loss's.
        """
        self.settle()
        self._spare.refresh()
        both = torch.stack((loss, loss if summed is None else summed))
        self._coming = done, Arriving(self.ranks.sum(both) / self.ranks.world)
        if wait:
            self.settle()

    def release(self) -> None:
        """Let go of the copies: training is over."""
        self._coming = None
        self._good = self._spare = Saved({})

    def settle(self) -> None:
        """Judge what has not been judged yet. Raises NonFiniteLoss."""
        if self._coming is None:
            return
        (done, coming), self._coming = self._coming, None
        self.loss, self.summed = coming.wait().tolist()
        if not math.isfinite(self.loss):
            self._good.restore()
            raise NonFiniteLoss(done + 1, self.loss, self.step)
        self._good, self._spare, self.step = self._spare, self._good, done
