"""How far a run is: one value, the same on every rank, for whatever acts over time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class Progress:
    """The present moment of a run, as every rank knows it without asking another.

    step: optimizer steps done. tokens: trained on so far, over all ranks. elapsed_s: training seconds on rank 0's
    clock, extrapolated since it was last looked at. fraction: of the run, in [0, 1]: of its clock or of its planned
    steps, whichever is further. lr_multiplier: the coming step's; after its update, the one that was used. phase: the
    number of the phase in force.
    """

    step: int = 0
    tokens: int = 0
    elapsed_s: float = 0.0
    fraction: float = 0.0
    lr_multiplier: float = 1.0
    phase: int = 0


@dataclass(frozen=True)
class Length:
    """How long a run is: its planned steps, and the seconds of its training clock where that ends it too."""

    iterations: int
    clock_s: float | None = None

    def fraction(self, step: int, elapsed_s: float) -> float:
        """How far a run is that has done so many steps in so many seconds, from 0 to 1: by the end that is nearer."""
        by_clock = elapsed_s / self.clock_s if self.clock_s else 0.0
        return min(max(step / max(self.iterations, 1), by_clock), 1.0)

    def seconds_left(self, step: int, at_s: float, now_s: float | None = None) -> float | None:
        """Seconds of training to come at `now_s` on the clock (None: `at_s`), when `step` steps were done at `at_s`:
        what the clock leaves, or the steps at the mean pace, the shorter. None while neither is known."""
        now_s = at_s if now_s is None else now_s
        ends = [] if self.clock_s is None else [self.clock_s]
        if step > 0:
            ends.append(self.iterations * at_s / step)
        return max(0.0, min(ends) - now_s) if ends else None


@runtime_checkable
class ActsOverTime(Protocol):
    """What a component says that wants to know: a technique or any module of the model, its plan, the loader, the
    optimizer, an averaging, a quantizer, a fake quantizer."""

    def at_step(self, progress: Progress) -> None:
        """Called before every step, outside the compiled graph: tensors that the graph reads are written in place
        (`fill_`); a Python value that changed would have it compiled anew."""
        ...
