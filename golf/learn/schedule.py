"""Learning-rate multiplier and momentum over a run: constant, then a linear warmdown that ends with the budget."""

from __future__ import annotations

from typing import Literal

from golf.common.log import logger
from golf.learn.budget import Horizons
from golf.learn.checks import require


def momentum_at(step: int, start: float, final: float, warmup_steps: int) -> float:
    """Momentum of the 0-based `step`: linear from `start` to `final` over `warmup_steps`, then `final`."""
    done = min(step / warmup_steps, 1.0) if warmup_steps > 0 else 1.0
    return (1.0 - done) * start + done * final


class Warmdown:
    """Multiplier 1, then linear to 0 at the end of the run: of the clock, or of the planned steps.

    iterations: planned maximum of steps. warmup_steps: compile warm-up steps, which the trainer undoes; no effect here.
    warmdown_iters: length of the decay in steps (0: none); on the wall clock, that many steps at the mean pace so far.
    `rescale` shortens it to a run that is bound by fewer steps, which would else begin in the midst of the decay.
    warmdown_frac: length of the decay as a part of the run; when given, it stands in warmdown_iters' place.
    clock: `wall` ends with the training seconds (without a limit it falls back to `steps`), `steps` with `iterations`.
    floor: the multiplier never falls below this.
    adaptive_cap, adaptive_cap_step: after that many steps, once, limit warmdown_iters to this part of the steps that
    the clock is expected to allow (None: never). A run bound by steps knows its length: there the cap has no effect.
    adaptive_cap_scaled: the step counts a record's steps, and comes earlier in a run of a fraction of its time.
    Raises ConfigError for values out of range. Source: the naive baseline record; the cap: the GradQuant 11L record;
    fraction and floor: the records from April 2026 on.
    """

    def __init__(
        self,
        iterations: int = 20_000,
        warmup_steps: int = 20,
        warmdown_iters: int = 1200,
        warmdown_frac: float | None = None,
        clock: Literal["wall", "steps"] = "wall",
        floor: float = 0.0,
        adaptive_cap: float | None = None,
        adaptive_cap_step: int = 100,
        adaptive_cap_scaled: bool = True,
    ) -> None:
        require(iterations >= 1, "schedule.iterations", iterations, "at least 1")
        require(warmup_steps >= 0, "schedule.warmup_steps", warmup_steps, "at least 0")
        require(warmdown_iters >= 0, "schedule.warmdown_iters", warmdown_iters, "at least 0")
        if warmdown_frac is not None:
            require(0.0 <= warmdown_frac <= 1.0, "schedule.warmdown_frac", warmdown_frac, "from 0 to 1, or null")
        require(clock in ("wall", "steps"), "schedule.clock", clock, "wall or steps")
        require(0.0 <= floor <= 1.0, "schedule.floor", floor, "from 0 to 1")
        if adaptive_cap is not None:
            require(0.0 < adaptive_cap <= 1.0, "schedule.adaptive_cap", adaptive_cap, "in (0, 1], or null")
            require(
                warmdown_frac is None, "schedule.adaptive_cap", adaptive_cap, "null unless schedule.warmdown_frac=null"
            )
        require(adaptive_cap_step >= 1, "schedule.adaptive_cap_step", adaptive_cap_step, "at least 1")
        self.iterations = iterations
        self.warmup_steps = warmup_steps
        self.warmdown_iters = warmdown_iters
        self.warmdown_frac = warmdown_frac
        self.clock = clock
        self.floor = floor
        self.adaptive_cap = adaptive_cap
        self.adaptive_cap_step = adaptive_cap_step
        self.adaptive_cap_scaled = adaptive_cap_scaled

    def horizons(self) -> Horizons:
        """The record-scale warmdown and the cap's step, for `scale_by_fraction`; a fraction of the run needs none."""
        looks = self.adaptive_cap is not None and self.adaptive_cap_scaled
        return {
            "warmdown_iters": self.warmdown_iters, "adaptive_cap_step": self.adaptive_cap_step if looks else None
        }  # fmt: skip

    def rescale(self, scaled: Horizons) -> None:
        """Adopt the scaled warmdown, no longer than a run that is bound by steps, and the scaled step of the cap."""
        self.warmdown_iters = int(scaled["warmdown_iters"] or 0)
        if (step := scaled.get("adaptive_cap_step")) is not None:
            self.adaptive_cap_step = int(step)
        by_steps = self.clock == "steps" or scaled.get("train_seconds") is None
        if by_steps and self.warmdown_frac is None and self.warmdown_iters > self.iterations:
            logger.warning(
                "warmdown: %d steps are more than the run's %d (schedule.iterations): it decays over all of them",
                self.warmdown_iters, self.iterations,
            )  # fmt: skip
            self.warmdown_iters = self.iterations

    def multiplier(self, step: int, elapsed_s: float, train_seconds: float | None) -> float:
        """The multiplier of every learning rate in the 0-based `step`, `elapsed_s` of training before it began.

        Each rank may ask with its own clock, as the records did; broadcasting one rank's answer keeps ranks equal.
        """
        if self.clock == "wall" and train_seconds is not None:
            left = max(train_seconds - elapsed_s, 0.0)
            if self.warmdown_frac is not None:
                length = self.warmdown_frac * train_seconds
            else:
                length = self.warmdown_iters * elapsed_s / max(step, 1)
        else:
            left = float(max(self.iterations - step, 0))
            length = float(self.warmdown_iters)
            if self.warmdown_frac is not None:
                length = self.warmdown_frac * self.iterations
        decays = length > 0.0 and left <= length
        return max(left / max(length, 1e-12), self.floor) if decays else 1.0

    def adapt(self, step: int, elapsed_s: float, train_seconds: float | None) -> str | None:
        """Apply the adaptive cap when exactly `adaptive_cap_step` steps are done; the line to log if it took hold.

        `step` counts completed steps, `elapsed_s` their training time; call it once after each step.
        """
        if self.adaptive_cap is None or train_seconds is None or step != self.adaptive_cap_step:
            return None
        if self.clock == "steps":
            return None
        step_ms = 1000.0 * elapsed_s / step
        expected = int(1000.0 * train_seconds / max(step_ms, 1e-9))
        limit = max(int(self.adaptive_cap * expected), 1)
        if limit >= self.warmdown_iters:
            return None
        line = (
            f"warmdown capped at {limit} steps, was {self.warmdown_iters} "
            f"({self.adaptive_cap:g} of the {expected} steps expected at {step_ms:.1f} ms each)"
        )
        self.warmdown_iters = limit
        return line

    def state_dict(self) -> dict[str, int]:
        """What a resumed run must know: the warmdown in force."""
        return {"warmdown_iters": self.warmdown_iters}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restore what `state_dict` gave."""
        self.warmdown_iters = int(state["warmdown_iters"])
