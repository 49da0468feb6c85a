"""The limits of a run, and the pure function that scales record-length settings to a fraction of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from golf.learn.checks import require

Horizons = Mapping[str, float | None]
"""Settings that count training time, by name; None where the run does without one."""


ARTIFACT_BYTES = 16_000_000
"""A record's limit, decimal."""


@dataclass(frozen=True)
class Budget:
    """What a run may spend: `fraction` of a record's training time, and the record's other limits.

    train_seconds: a record's training clock on `reference_nproc` GPUs (None: bound by steps alone).
    eval_seconds: the clock of the final evaluation. artifact_bytes: code plus compressed weights, decimal.
    Raises ConfigError for a limit that is not positive.
    """

    train_seconds: float | None = 600.0
    eval_seconds: float = 600.0
    artifact_bytes: int = ARTIFACT_BYTES
    fraction: float = 1.0
    reference_nproc: int = 8

    def __post_init__(self) -> None:
        seconds = self.train_seconds
        require(seconds is None or seconds > 0, "budget.train_seconds", seconds, "more than 0, or null for no clock")
        require(self.eval_seconds > 0, "budget.eval_seconds", self.eval_seconds, "more than 0")
        require(self.artifact_bytes > 0, "budget.artifact_bytes", self.artifact_bytes, "more than 0")
        require(self.fraction > 0, "budget.fraction", self.fraction, "more than 0 (1 is a whole record)")
        require(self.reference_nproc > 0, "budget.reference_nproc", self.reference_nproc, "at least 1")

    def clock_s(self, nproc: int) -> float | None:
        """The training clock of a run on so many workers, in seconds; None where steps alone bound it."""
        if self.train_seconds is None:
            return None
        return self.train_seconds * self.fraction * self.reference_nproc / nproc


class Scalable(Protocol):
    """A component with settings that count training time: it names them, and takes the scaled ones."""

    def horizons(self) -> Horizons:
        """Its record-scale settings by name; the names are the keys of `SCALED_BY`."""

    def rescale(self, scaled: Horizons) -> None:
        """Adopt the scaled values; names that are not its own are ignored."""


@dataclass(frozen=True)
class Scaled:
    """The settings that count training time, as a record has them and as this run uses them."""

    fraction: float
    nproc: int
    record: dict[str, float | None]
    scaled: dict[str, float | None]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for the run record."""
        return asdict(self)


def scale_steps(steps: float, fraction: float) -> float:
    """A number of steps times `fraction`, rounded half to even, at least 1; 0 (off) stays 0."""
    return max(round(steps * fraction), 1) if steps > 0 else 0


def scale_decay(decay: float, fraction: float) -> float:
    """The decay whose memory spans `fraction` as many steps: decay^(1/fraction)."""
    return float(decay ** (1.0 / fraction))


SCALED_BY: dict[str, Callable[[float, float], float]] = {
    "warmdown_iters": scale_steps,
    "adaptive_cap_step": scale_steps,
    "momentum_warmup_steps": scale_steps,
    "swa_every": scale_steps,
    "ema_decay": scale_decay,
    "ema_update_every": scale_steps,
}
"""The settings that shrink with the run; `iterations`, `warmup_steps` and everything else stay as they are."""


def scale_by_fraction(record: Horizons, budget: Budget, nproc: int) -> Scaled:
    """Scale record-length settings to `budget` on `nproc` workers; keeps both.

    The clock becomes train_seconds · fraction · reference_nproc / nproc.
    Steps don't depend on nproc: a step is the same global batch on any number of workers.
    Raises ValueError for a name that is not in `SCALED_BY`.
    """
    unknown = sorted(set(record) - set(SCALED_BY))
    if unknown:
        raise ValueError(f"no scaling is known for {unknown}: choose among {sorted(SCALED_BY)}")
    scaled: dict[str, float | None] = {
        name: None if value is None else SCALED_BY[name](value, budget.fraction) for name, value in record.items()
    }
    return Scaled(
        fraction=budget.fraction,
        nproc=nproc,
        record={"train_seconds": budget.train_seconds, **record},
        scaled={"train_seconds": budget.clock_s(nproc), **scaled},
    )


def rescale_components(components: list[Scalable], budget: Budget, nproc: int) -> Scaled:
    """Scale every component's settings to `budget` on `nproc` workers, hand them back, and return both sets.

    What is used is what the components made of it: a warmdown that the run is too short for is shortened.
    """
    record = {name: value for component in components for name, value in component.horizons().items()}
    result = scale_by_fraction(record, budget, nproc)
    for component in components:
        component.rescale(result.scaled)
    used = {name: value for component in components for name, value in component.horizons().items()}
    return replace(result, scaled={**result.scaled, **used})
