"""A run's phases: stretches that differ in what its parts let change, found by how far the run is.

The list is data, as the stages of modded-nanogpt's speedruns are; a phase is looked up, nothing counts towards it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from golf.common.errors import ConfigError
from golf.common.progress import Length, Progress
from golf.nn.linear import Rounds
from golf.nn.models.gpt import GPT
from golf.train.settings import Settings


@dataclass(frozen=True)
class Phase:
    """What is in force from its beginning to the next one's.

    fraction: of the run, at which it begins; step: instead, the steps done before it. plan: the index among the
    model's. techniques: those that are on. qat: what training rounds weights by. values: settings by component
    (`optimizer`, `technique.NAME`, …), whose classes are `kinds`. changes: what the config says of it, against the
    phase before.
    """

    settings: Settings
    number: int = 0
    fraction: float = 0.0
    step: int | None = None
    plan: int = 0
    techniques: frozenset[str] | None = None
    qat: Rounds | None = None
    values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    kinds: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)

    def begun(self, progress: Progress) -> bool:
        """Whether a run that is so far has reached it."""
        return progress.fraction >= self.fraction if self.step is None else progress.step >= self.step

    def enter(self, model: GPT) -> None:
        """Let a model be as it is in this phase. Raises ConfigError, as `give` does."""
        model.enter(self.plan, self.techniques)
        self.give("model", model.modules())
        self.give("technique", model.modules())

    def give(self, root: str, parts: Iterable[Any]) -> None:
        """Set the settings below `root`, the first part of their keys, where they belong among these parts.

        Raises ConfigError where none keeps them.
        """
        parts = list(parts)
        for holder, values in self.values.items():
            if holder.partition(".")[0] != root:
                continue
            kind, name = self.kinds[holder], holder.removeprefix("technique.")
            theirs = [one for one in parts if type(one) is kind and getattr(one, "called", name) == name]
            for key, value in values.items():
                if not theirs or not all(hasattr(one, key) for one in theirs):
                    raise ConfigError(f"phases: {holder}.{key} cannot change: no attribute of this name is kept by it")
                for one in theirs:
                    vars(one)[key] = value

    @property
    def told(self) -> str:
        """What it changes, in the words of its config."""
        return ", ".join(f"{key}={value}" for key, value in self.changes.items()) or "as at the start"

    @property
    def start(self) -> str:
        """When it begins, in words."""
        return f"{100 * self.fraction:g} % of the run" if self.step is None else f"step {self.step}"


class Timeline:
    """The phases of a run in their order, and how long it is."""

    def __init__(self, phases: Sequence[Phase], length: Length) -> None:
        self.phases, self.length = phases, length
        self.begun: list[dict[str, Any]] = []
        """For the record: where each phase but the first began."""

    def due(self, progress: Progress) -> Phase | None:
        """The phase that begins with the coming step, if one does: the last one reached. None goes back to one before
        the phase in force, though a clock that is looked at again may."""
        reached = [phase for phase in self.phases if phase.number > progress.phase and phase.begun(progress)]
        return reached[-1] if reached else None
