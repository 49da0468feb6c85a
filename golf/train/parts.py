"""What a training run is made of: the components a config names, behind the interfaces the loop uses."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from golf.artifact.codecs import Codec
from golf.common.errors import ConfigError
from golf.common.ranks import Ranks
from golf.common.runtime import Runtime
from golf.data.loader import TrainLoader
from golf.data.prepare import Prepared
from golf.evals.evaluators import Evaluator, Validation
from golf.learn.averaging import Averaging
from golf.learn.budget import Budget, Scaled
from golf.nn.linear import FakeQuantizer
from golf.nn.models.gpt import GPT
from golf.nn.params import ParamSpec
from golf.quant.quantizer import Quantizer
from golf.runs.folder import RunFolder

SPANS = 8
"""Spans of a global batch: the record scripts' eight GPUs, whatever the number of workers."""


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
    def snapshot(self) -> Any: ...
    def restore(self, saved: Any) -> None: ...


class Schedule(Protocol):
    """Learning-rate multiplier over the run; see golf.learn.schedule."""

    iterations: int
    warmup_steps: int
    clock: str

    def multiplier(self, step: int, elapsed_s: float, train_seconds: float | None) -> float: ...
    def adapt(self, step: int, elapsed_s: float, train_seconds: float | None) -> str | None: ...


@dataclass(frozen=True)
class Settings:
    """Top-level keys of the config that the loop itself reads.

    `log_every` and `val_every` count steps; log_every None leaves it to the run's length (`Parts.rows_every`),
    val_every 0 validates only at the end; val_tokens None uses them all.
    `eval_all_stages` scores the weights at stop and the averaged ones by the eval group's method too.
    Raises ConfigError for values out of range.
    """

    seed: int = 1337
    train_batch_tokens: int = 524_288
    train_seq_len: int = 1024
    log_every: int | None = None
    val_every: int = 0
    val_tokens: int | None = None
    eval_all_stages: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed={self.seed}: must lie between 0 and 2^32 − 1")
        for key in ("train_batch_tokens", "train_seq_len", "log_every"):
            if (value := getattr(self, key)) is not None and value < 1:
                raise ConfigError(f"{key}={value}: must be at least 1")
        if self.val_tokens is not None and self.val_tokens < 1:
            raise ConfigError(f"val_tokens={self.val_tokens}: must be at least 1, or null for all")
        if self.val_every < 0:
            raise ConfigError(f"val_every={self.val_every}: must not be negative")
        if self.train_batch_tokens % (SPANS * self.train_seq_len):
            raise ConfigError(
                f"train_batch_tokens={self.train_batch_tokens}: must be a multiple of "
                f"{SPANS} spans x train_seq_len={self.train_seq_len} = {SPANS * self.train_seq_len}"
            )


@dataclass
class Parts:
    """Everything a run needs, built from its config by golf.launch.compose.build."""

    settings: Settings
    runtime: Runtime
    ranks: Ranks
    device: torch.device
    model: GPT
    fresh: Callable[[], GPT]
    """Builds the config's model anew on the same device, with unset weights, as a process would that never trained."""
    optimizer: Optimizer
    schedule: Schedule
    averaging: Averaging
    loader: TrainLoader
    prepared: Prepared
    validation: Validation
    evaluator: Evaluator
    quantizer: Quantizer
    qat: FakeQuantizer | None
    codec: Codec
    budget: Budget
    scaled: Scaled
    folder: RunFolder

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
        by_clock = self.schedule.clock == "wall" and self.scaled.scaled["train_seconds"] is not None
        return round_down(self.schedule.iterations * (min(1.0, self.budget.fraction) if by_clock else 1.0) / 100)

    @property
    def lines_every(self) -> int:
        """Steps between plain lines of the log: a line a row where `log_every` was set, else one for ten rows."""
        return self.settings.log_every or 10 * self.rows_every


def round_down(count: float) -> int:
    """The largest of 1, 2, 5, 10, 20, 50, … that is no more than `count`; at least 1."""
    power = 10 ** int(math.log10(max(1.0, count)))
    return next(times * power for times in (5, 2, 1) if times * power <= max(1.0, count))
