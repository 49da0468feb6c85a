"""Copies of a run's state in memory: to undo the warm-up, and to fall back on after a non-finite loss."""

from __future__ import annotations

import math
from collections.abc import MutableMapping

import torch

from golf.common.errors import NonFiniteLoss
from golf.common.ranks import Ranks
from golf.common.runtime import Arriving
from golf.nn.live import alike


class Saved:
    """A copy of named tensors that can be refreshed and written back, on their device.

    `tensors` are asked by name each time: one may have been replaced, have come or gone since.
    """

    def __init__(self, tensors: MutableMapping[str, torch.Tensor]) -> None:
        self.tensors = tensors
        self.copy: dict[str, torch.Tensor] = {}
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the live tensors again."""
        live = dict(self.tensors)
        self.copy = {
            name: self.copy[name] if name in self.copy and alike(self.copy[name], tensor) else torch.empty_like(tensor)
            for name, tensor in live.items()
        }
        if live:
            torch._foreach_copy_(list(self.copy.values()), list(live.values()))

    @torch.no_grad()
    def restore(self) -> None:
        """Overwrite the live tensors with the copy; those that are gone or of another kind now come back, those that
        were not there yet go."""
        live = dict(self.tensors)
        fit = [name for name, copy in self.copy.items() if name in live and alike(live[name], copy)]
        if fit:
            torch._foreach_copy_([live[name] for name in fit], [self.copy[name] for name in fit])
        for name in self.copy.keys() - set(fit):
            self.tensors[name] = self.copy[name].clone()
        for name in live.keys() - self.copy.keys():
            del self.tensors[name]


class LastGood:
    """The weights that last gave a finite loss, and the loss itself: the mean over all ranks' tokens.

    A loss may be judged later than it is computed, so that no host waits for its device: its weights are then kept in a
    copy of their own until it has arrived.
    """

    def __init__(self, weights: MutableMapping[str, torch.Tensor], ranks: Ranks) -> None:
        self.ranks = ranks
        self.loss: float | None = None
        self.summed: list[float] | None = None
        """The means over ranks of what was handed over as `summed` with the loss."""
        self.step = 0
        """How many steps had been done with the weights that are kept."""
        self._good, self._spare = Saved(weights), Saved(weights)
        self._coming: tuple[int, Arriving] | None = None

    def check(self, done: int, loss: torch.Tensor, wait: bool, summed: torch.Tensor | None = None) -> None:
        """Judge the present weights, made by `done` steps, by this rank's `loss`: now, or at the next call.

        `summed`, sums since some step, travel with it: their means over ranks arrive at the same time.
        Raises NonFiniteLoss on every rank, with the kept weights put back; without `wait` it may be an earlier loss's.
        """
        self.settle()
        self._spare.refresh()
        both = loss[None].clone() if summed is None else torch.cat((loss[None], summed))
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
        self.loss, *self.summed = coming.wait().tolist()
        if not math.isfinite(self.loss):
            self._good.restore()
            raise NonFiniteLoss(done + 1, self.loss, self.step)
        self._good, self._spare, self.step = self._spare, self._good, done
