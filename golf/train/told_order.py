"""In which order an evaluator tells its targets' losses: whether it goes through the text once, from left to right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class _Heard(torch.Tensor):
    """A tensor that tells after everything that is done with it, or with a part of it."""

    told: Callable[[], None] = staticmethod(lambda: None)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_function__(func, types, args, kwargs or {})
        cls.told()
        return out


class Order:
    """Watches a tensor of losses, float32 [tokens] of NaN, while an evaluator fills it by way of `tensor`.

    groups int64 [tokens]: texts for which the evaluator begins anew; their order among each other is free.
    """

    def __init__(self, losses: torch.Tensor, groups: torch.Tensor) -> None:
        self._losses, self._groups = losses, groups
        self._kept = losses.clone()
        self._last = torch.full((int(groups.max()) + 1,), -1, device=losses.device)
        self.tellings = 0
        self.wrong: str | None = None

        class Heard(_Heard):
            told = staticmethod(self._look)

        self.tensor: torch.Tensor = losses.as_subclass(Heard)

    def _look(self) -> None:
        """See what is new, and whether it comes after what was there."""
        now, before = self._losses, self._kept
        known, there = ~before.isnan(), ~now.isnan()
        if self.wrong is not None or not bool((there ^ known | (now != before) & known).any()):
            return
        new = (there & ~known).nonzero()[:, 0]
        if bool(((now != before) & known).any()):
            self.wrong = f"scores target {int(((now != before) & known).nonzero()[0])} a second time"
        elif bool((late := new < self._last[self._groups[new]]).any()):
            at = new[late][0]
            self.wrong = f"scores target {int(at)} after target {int(self._last[self._groups[at]])}"
        self._last.scatter_reduce_(0, self._groups[new], new, "amax")
        self._kept = now.clone()
        self.tellings += 1
