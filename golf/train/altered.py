"""A forward tried again with some of its inputs changed: what must not move, and what may."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from golf.evals.evaluators import Scorer

ALLOWED = 1e-5
"""How far a prediction may move that must not, as part of how far a change moves those that it may move. In the same
shapes nothing moves at all where every run of a kernel gives the same; where not, four times what it differs by."""
UNSTEADY = 1e-3
"""From how much of that on, the same text has another score each time."""


@dataclass
class Moved:
    """How far scores moved: those that must not, those that may, and when nothing was changed."""

    wrongly: float = 0.0
    rightly: float = 0.0
    idly: float = 0.0

    @property
    def ahead(self) -> bool:
        """Whether something after a position reached it."""
        return not self.wrongly <= ALLOWED * self.rightly + 4 * self.idly

    @property
    def unsteady(self) -> bool:
        """Whether nothing was changed, and yet something moved."""
        return not self.idly <= UNSTEADY * max(self.rightly, 1e-2)

    def note(self, wrongly: torch.Tensor, rightly: torch.Tensor | None = None) -> None:
        """Take differences into account."""
        self.wrongly = max(self.wrongly, _most(wrongly))
        self.rightly = max(self.rightly, 0.0 if rightly is None else _most(rightly))


class Tried:
    """A forward for evaluators that tries the first call of every shape again, with some of its inputs changed; what it
    gives back is the forward's own. `blind`: none of its calls could be judged."""

    def __init__(
        self, forward: Scorer, alter: Callable[[torch.Tensor], torch.Tensor], late: Callable[[], bool] = lambda: False
    ) -> None:
        self.forward, self.alter, self.late = forward, alter, late
        self.moved, self.blind = Moved(), True
        self._seen: set[Any] = set()

    def __call__(self, ids: torch.Tensor, *rest: Any, **how: Any) -> torch.Tensor:
        """As GPT.forward."""
        out = self.forward(ids, *rest, **how)
        key = (ids.shape, out.shape, how.get("borders") is None)
        if key not in self._seen and out.dim() > 1 and len(out) == len(ids) and ids.shape[1] > 1:
            self._seen.add(key)
            with torch.no_grad():
                self._try(out.detach(), ids, rest, how)
        return out

    def _try(self, out: torch.Tensor, ids: torch.Tensor, rest: Sequence[Any], how: dict[str, Any]) -> None:
        moved, length = self.moved, ids.shape[1]
        if not bool(out.isfinite().all()):
            return
        self.blind = False
        first = length - out.shape[1]
        moved.idly = max(moved.idly, _most(self.forward(ids, *rest, **how) - out))
        for last in dict.fromkeys((first + (length - first) // 3, first, length - 2)):
            if first <= last < length - 1 and not (moved.rightly and self.late()):  # inputs behind `last` change
                by = self._difference(out, ids, slice(last + 1, None), rest, how)
                moved.note(by[:, : last + 1 - first], by[:, last + 1 - first :])
        borders = how.get("borders")
        inner = sorted({b for b in ([] if borders is None else borders.tolist()) if first < b < length})
        if inner and not self.late():  # an earlier document changes
            border = inner[len(inner) // 2]
            by = self._difference(out, ids, slice(0, border), rest, how)
            moved.note(by[:, border - first :], by[:, : border - first])

    def _difference(
        self, out: torch.Tensor, ids: torch.Tensor, part: slice, rest: Sequence[Any], how: dict[str, Any]
    ) -> torch.Tensor:
        other = ids.clone()
        other[:, part] = self.alter(ids[:, part])
        return self.forward(other, *rest, **how) - out


def _most(by: torch.Tensor) -> float:
    return float(by.float().abs().max()) if by.numel() else 0.0
