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


@runtime_checkable
class ActsOverTime(Protocol):
    """What a component says that wants to know: a technique or any module of the model, its plan, the loader, the
    optimizer, an averaging, a quantizer, a fake quantizer."""

    def at_step(self, progress: Progress) -> None:
        """Called before every step, outside the compiled graph: tensors that the graph reads are written in place
        (`fill_`); a Python value that changed would have it compiled anew."""
        ...
