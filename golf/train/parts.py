"""What a training run is made of: the components a config names, behind the interfaces the loop uses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from golf.artifact.codecs import Codec
from golf.common.ranks import Ranks
from golf.common.runtime import SPANS, Runtime
from golf.data.loader import Loader
from golf.data.prepare import Prepared
from golf.evals.evaluators import Validation
from golf.evals.protocol import Evaluates
from golf.learn.averaging import Averaging
from golf.learn.budget import Budget, Scaled
from golf.nn.linear import Rounds
from golf.nn.models.gpt import GPT
from golf.nn.params import ParamSpec
from golf.quant.quantizer import Quantizer
from golf.runs.folder import Names
from golf.train.hooks import Hook
from golf.train.saving import Checkpoints
from golf.train.settings import Settings
from golf.train.timeline import Phase


class Optimizer(Protocol):
    """Updates parameters; see golf.learn.optimizer.

    reduce_gradients: with wait=False only `step` reads the gradients afterwards. zero_grad: sets every `.grad` to None.
    """

    def attach(
        self, named_params: Mapping[str, torch.nn.Parameter], specs: Mapping[str, ParamSpec], ranks: Ranks, tied: bool
    ) -> None: ...
    def reduce_gradients(self, wait: bool = True) -> None: ...
    def step(self, step: int, lr_multiplier: float) -> None: ...
    def zero_grad(self) -> None: ...
    def state_dict(self) -> dict[str, torch.Tensor]: ...
    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None: ...


class Schedule(Protocol):
    """Learning-rate multiplier over the run; see golf.learn.schedule."""

    iterations: int
    warmup_steps: int
    clock: str

    def multiplier(self, step: int, elapsed_s: float, train_seconds: float | None) -> float: ...
    def adapt(self, step: int, elapsed_s: float, train_seconds: float | None) -> str | None: ...


@dataclass
class Parts:
    """Everything a run needs, built from its config by golf.launch.compose.build."""

    phases: Sequence[Phase]
    """The first one is the run's beginning."""
    runtime: Runtime
    ranks: Ranks
    device: torch.device
    model: GPT
    fresh: Callable[..., GPT]
    """Builds the config's model anew on the same device, with unset weights, as a process would that never trained;
    `exact=True`: computing in float32 by the plain ops."""
    optimizer: Optimizer
    schedule: Schedule
    averaging: Averaging
    loader: Loader
    prepared: Prepared
    validation: Validation
    evaluator: Evaluates
    quantizer: Quantizer
    codec: Codec
    budget: Budget
    scaled: Scaled
    folder: Names
    callbacks: Sequence[Hook] = ()
    checkpoint: Checkpoints | None = None
    """When the run's state is written to disk (None: as it is by default)."""

    def __post_init__(self) -> None:
        self.phase = self.phases[0]

    @property
    def settings(self) -> Settings:
        """Those of the phase in force."""
        return self.phase.settings

    @property
    def qat(self) -> Rounds | None:
        """What rounds weights in the phase in force."""
        return self.phase.qat

    def only(self, number: int) -> None:
        """Let the run have no other phase than this one."""
        self.phases = [self.phases[number]]
        self.phase = self.phases[0]

    def stateful(self) -> dict[str, Any]:
        """The components, besides the model, that keep something in the course of a run, by name."""
        names = ("optimizer", "schedule", "averaging", "quantizer", "loader")
        parts = {name: getattr(self, name) for name in names} | {f"qat/{one.number}": one.qat for one in self.phases}
        return {name: part for name, part in parts.items() if hasattr(part, "load_state_dict")}

    def changeable(self) -> dict[str, Sequence[Any]]:
        """The components, besides the model, that may have settings that phases change, by their group."""
        matrix = getattr(self.optimizer, "matrix", None)
        return {
            "optimizer": (self.optimizer, matrix), "schedule": (self.schedule,), "averaging": (self.averaging,),
            "loader": (self.loader,), "callbacks": self.callbacks,
        }  # fmt: skip

    def micro_steps(self, settings: Settings) -> int:
        """Passes of a step under these settings."""
        return self.runtime.micro_steps(SPANS, settings.train_batch_tokens // SPANS, self.ranks.world)

    @property
    def bound_by_clock(self) -> bool:
        """Whether the clock ends the run, if the planned steps don't."""
        return self.schedule.clock == "wall" and self.scaled.scaled["train_seconds"] is not None

    @property
    def reserve_s(self) -> float:
        """Seconds of the training clock that are kept for the quantizer's calibration."""
        here, record = self.scaled.scaled["train_seconds"], self.budget.train_seconds
        return 0.0 if here is None or record is None else self.quantizer.reserve_s * here / record

    @property
    def train_seconds(self) -> float | None:
        """Seconds of it that steps may take: the budget's, less those."""
        here = self.scaled.scaled["train_seconds"]
        return None if here is None else here - self.reserve_s

    @property
    def rows_every(self) -> int:
        """Steps between rows of metrics: `log_every`, or what gives a run of the planned length 100 to 250 of them."""
        if self.settings.log_every is not None:
            return self.settings.log_every
        part = min(1.0, self.budget.fraction) if self.bound_by_clock else 1.0
        return round_down(self.schedule.iterations * part / 100)

    @property
    def lines_every(self) -> int:
        """Steps between plain lines of the log: a line a row where `log_every` was set, else one for ten rows."""
        return self.settings.log_every or 10 * self.rows_every


def round_down(count: float) -> int:
    """The largest of 1, 2, 5, 10, 20, 50, … that is no more than `count`; at least 1."""
    power = 10 ** int(math.log10(max(1.0, count)))
    return next(times * power for times in (5, 2, 1) if times * power <= max(1.0, count))
