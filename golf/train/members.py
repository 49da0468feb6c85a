"""The hooks that every run has: validation, rows of metrics, the last good weights, observed gradients, averages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from golf.common.errors import GolfError, NonFiniteLoss
from golf.common.log import logger
from golf.common.progress import Progress
from golf.common.runtime import Arriving
from golf.nn.live import Live
from golf.nn.preflight import TAKEN
from golf.runs.screen import FIRST_STEPS
from golf.train.hooks import Hook, NamedGradients
from golf.train.state import Saved

if TYPE_CHECKING:
    from golf.train.timeline import Phase
    from golf.train.trainer import Trainer


class LastGood(Hook):
    """The weights that last gave a finite loss, and the loss itself: the mean over all ranks' tokens.

    A loss may be judged later than it is computed, so that no host waits for its device: its weights are then kept in a
    copy of their own until it has arrived. The sums of `rows` travel with it.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.loss: float | None = None
        self.summed: list[float] = []
        """The means over ranks of what `rows` had summed."""
        self.step = 0
        """How many steps had been done with the weights that are kept."""
        self.trainer: Trainer | None = None
        self._good = self._spare = Saved({})
        self._coming: tuple[int, Arriving] | None = None

    def attach(self, trainer: Trainer) -> None:
        """Keep the weights as they are."""
        self.trainer = trainer
        self._good, self._spare = (Saved(Live(trainer.parts.model)) for _ in range(2))

    def on_losses(self, progress: Progress, losses: torch.Tensor) -> None:
        """Judge the present weights where a row needs the loss, or the clock is looked at."""
        assert self.trainer is not None
        done, control = progress.step + 1, self.trainer.control
        logged = self.rows.due(done)
        if logged or control.due(done):
            self.check(progress.step, losses[0], self.rows.take(logged), wait=logged or control.waits(done))

    def check(self, done: int, loss: torch.Tensor, summed: torch.Tensor, wait: bool) -> None:
        """Judge the present weights, made by `done` steps, by this rank's `loss`: now, or at the next call.

        Raises NonFiniteLoss on every rank, with the kept weights put back; without `wait` it may be an earlier loss's.
        """
        self.settle()
        self._spare.refresh()
        assert self.trainer is not None
        ranks = self.trainer.parts.ranks
        self._coming = done, Arriving(ranks.sum(torch.cat((loss[None], summed))) / ranks.world)
        if wait:
            self.settle()

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

    def release(self) -> None:
        """Let go of the copies: training is over."""
        self._coming = None
        self._good = self._spare = Saved({})

    def state_dict(self) -> dict[str, Any]:
        """The last loss, and how many steps have been done."""
        return {"loss": self.loss, "step": 0 if self.trainer is None else self.trainer.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The weights that were put back are good: nothing is awaited."""
        self._coming = None
        self._good.refresh()
        self.loss, self.step = state["loss"], state["step"]


class Rows(Hook):
    """Rows of metrics: of each of the first steps, then every so many, with the losses' means in between.

    Sums stay on the device; the names of what techniques note are found at a phase's first pass.
    """

    def __init__(self) -> None:
        self.good = LastGood(self)
        self.names: tuple[str, ...] | None = None
        """What techniques add to the loss or report, once a pass has told it."""
        self.summed = torch.zeros(1)
        """This rank's losses since the last row, which came after step `row`; behind them what is noted."""
        self.row = 0
        self.since = 0
        """The step after which what is noted began to be summed, where a phase began later than the last row came."""
        self._shown: dict[str, list[torch.Tensor]] = {}
        self._sent: list[tuple[str, int]] = []

    def attach(self, trainer: Trainer) -> None:
        """Sum from here on."""
        self.trainer, self.every = trainer, trainer.parts.rows_every
        self.summed = torch.zeros(1, device=trainer.parts.device)

    def renew(self, step: int) -> None:
        """Other things may be noted from here on: their sums begin anew."""
        self.names, self.since, self.summed = None, step, self.summed[:1]

    def show(self, name: str, value: torch.Tensor) -> None:
        """Let the next row hold this scalar, or the mean of all that were shown by its name. Raises GolfError for what
        is none, and for a name of golf's own."""
        if name in TAKEN:
            raise GolfError(f"{name}: golf reports a number of this name itself; show yours by another")
        if not isinstance(value, torch.Tensor) or value.numel() != 1:
            given = f"a tensor {list(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
            raise GolfError(f"{name}: what is shown is a scalar tensor, not {given}")
        self._shown.setdefault(name, []).append(value.detach().to(torch.float32, copy=True).reshape(1))

    def take(self, logged: bool) -> torch.Tensor:
        """What travels to the host with a loss: the sums, and for a row what has been shown."""
        if logged and self.trainer.parts.callbacks:
            self._check_shown()
        if not logged or not self._shown:
            return self.summed
        self._sent = [(name, len(values)) for name, values in self._shown.items()]
        device = self.summed.device
        sums = [torch.stack([one.to(device) for one in values]).sum(0) for values in self._shown.values()]
        self._shown = {}
        return torch.cat([self.summed, *sums])

    def _check_shown(self) -> None:
        """Raises GolfError on every rank where they differ in what they show: their sums could not be added."""
        if taken := sorted(self._shown.keys() & set(self.names or ())):
            raise GolfError(f"{taken[0]}: a technique reports a number of this name; show yours by another")
        everywhere = self.trainer.parts.ranks.gather_objects([(name, len(one)) for name, one in self._shown.items()])
        for rank, shown in enumerate(everywhere):
            if shown != everywhere[0]:
                raise GolfError(f"callbacks showed {_told(everywhere[0])} on rank 0, and {_told(shown)} on rank {rank} "
                                "since the last row: it must be the same on every rank")  # fmt: skip

    def due(self, done: int) -> bool:
        """Whether a row follows when so many steps are done."""
        return done <= FIRST_STEPS or done % self.every == 0 or self.trainer.control.ends(done)

    def seen(self, nll: torch.Tensor, shown: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """[1 + K]: the nll of a pass, and what was noted in it. Raises GolfError for other names than before."""
        self.names = tuple(shown) if self.names is None else self.names
        if tuple(shown) != self.names:
            raise GolfError(f"techniques noted {list(shown)} in this pass, {list(self.names)} before: "
                            "the names must be the same in every one")  # fmt: skip
        return torch.cat([value.detach()[None] for value in (nll, *shown.values())])

    def on_losses(self, progress: Progress, losses: torch.Tensor) -> None:
        """Add a step's."""
        missing = len(losses) - len(self.summed)
        self.summed = (F.pad(self.summed, (0, missing)) if missing else self.summed) + losses

    def after_step(self, progress: Progress, stop: bool) -> None:
        """Report a row if one is due, and after the last step."""
        if stop:
            self.good.settle()
        if not (stop or self.due(progress.step)):
            return
        steps, noted = progress.step - self.row, progress.step - max(self.row, self.since)
        self.row = progress.step
        self.summed, self._sent, sent = torch.zeros_like(self.summed), [], self._sent
        if not self.trainer.parts.ranks.is_main:
            return
        own = len(self.summed)
        mean = next((value / steps for value in self.good.summed[:1]), None)
        shown = {name: value / n for (name, n), value in zip(sent, self.good.summed[own:], strict=False)}
        elapsed = self.trainer.clock.elapsed_s
        pace = elapsed / progress.step
        rate = progress.tokens / elapsed
        metrics = {
            **shown,
            **{name: value / noted for name, value in zip(self.names or (), self.good.summed[1:own], strict=False)},
            "step": progress.step, "tokens": progress.tokens, "train_time_s": elapsed, "train_loss": self.good.loss,
            "train_loss_mean": mean,
            "lr_multiplier": progress.lr_multiplier, "step_ms": 1000 * pace, "tokens_per_s": rate,
            "data_wait_ms": self.trainer.parts.loader.data_wait_ms,
        }  # fmt: skip
        if (mfu := self.trainer.mfu(rate)) is not None:
            metrics["mfu"] = mfu
        self.trainer.report(metrics, progress.step)

    def state_dict(self) -> dict[str, Any]:
        """Since when what is summed."""
        return {"row": self.row, "since": self.since, "names": self.names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.row, self.since, self.names = state["row"], state["since"], state["names"]

    def own_state(self) -> dict[str, Any]:
        """This rank's sums, and what was shown since the last row."""
        return {"summed": self.summed, "shown": self._shown}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Take up what `own_state` gave."""
        device = self.summed.device
        self.summed = state["summed"].to(device, copy=True)
        self._shown = {name: [one.clone() for one in values] for name, values in state["shown"].items()}


def _told(shown: list[tuple[str, int]]) -> str:
    return ", ".join(f"{name} ({times} times)" for name, times in shown) or "nothing"


class Validations(Hook):
    """Contiguous validation every `val_every` steps, the first before any."""

    def __init__(self, good: LastGood) -> None:
        self.good = good

    def attach(self, trainer: Trainer) -> None:
        """Validate this one."""
        self.trainer = trainer

    def before_step(self, progress: Progress) -> None:
        """Validate if it is time to."""
        every = self.trainer.parts.settings.val_every
        if every and progress.step % every == 0:
            self.good.settle()
            self.trainer.validate()
            self.trainer.control.level = True


class Observed(Hook):
    """Shows the quantizer the gradients from which it chooses."""

    def attach(self, trainer: Trainer) -> None:
        """Its quantizer."""
        self.quantizer = trainer.parts.quantizer

    def on_gradients(self, progress: Progress, named_gradients: NamedGradients) -> None:
        """Observe them."""
        self.quantizer.observe(named_gradients, progress.lr_multiplier)


class Averages(Hook):
    """Hands the averaging the weights after each update."""

    def attach(self, trainer: Trainer) -> None:
        """Follow the weights as they are now."""
        self.averaging = trainer.parts.averaging
        with torch.no_grad():
            self.averaging.attach(Live(trainer.parts.model))

    def after_update(self, progress: Progress) -> None:
        """Look at them."""
        with torch.no_grad():
            self.averaging.update(progress.step, progress.lr_multiplier)


class Declared(Hook):
    """Stops a run where a phase's first step makes or reshapes state: no model built anew could read it from an
    artifact."""

    def attach(self, trainer: Trainer) -> None:
        """Note the shapes of what is declared, None of what is empty."""
        self.model = trainer.parts.model
        live = Live(self.model)
        self.before = {name: live[name].shape if name in live else None for name in live.declared}

    def at_phase(self, phase: Phase, progress: Progress) -> None:
        """Compare after its first step."""
        self.first = progress.step + 1

    def after_update(self, progress: Progress) -> None:
        """Compare. Raises GolfError."""
        if progress.step != self.first:
            return
        for name, tensor in Live(self.model).items():
            shape = self.before.get(name, tensor.shape)
            if name in self.before and (shape is None or shape == tensor.shape):
                continue
            known = name in self.before
            was = f"has another shape, {list(tensor.shape)}, than before" if known else "was not there before"
            raise GolfError(
                f"{name}: this state {was} the first step, so that no artifact could be read back\n"
                "declare it by register_buffer in __init__, in its final shape or as None"
            )


class Adapts(Hook):
    """Lets the schedule adapt to the pace after each step, and logs what it did."""

    def attach(self, trainer: Trainer) -> None:
        """Its schedule and clock."""
        self.trainer = trainer

    def after_step(self, progress: Progress, stop: bool) -> None:
        """Ask it."""
        trainer = self.trainer
        elapsed = trainer.control.elapsed_s(progress.step)
        line = trainer.parts.schedule.adapt(progress.step, elapsed, trainer.train_seconds)
        if line is not None:
            logger.info("%s", line)


class Hooks:
    """The list, in order: `tell` calls those members that have a method of an event's name."""

    def __init__(self, members: list[Hook]) -> None:
        self.members = members
        events = [name for name, value in vars(Hook).items() if callable(value) and not name.startswith("_")]
        self._of = {
            event: [getattr(one, event) for one in members if getattr(type(one), event) is not getattr(Hook, event)]
            for event in events
        }

    def tell(self, event: str, *values: Any) -> None:
        """Call this method of every member that has one of its own."""
        for call in self._of[event]:
            call(*values)

    def listens(self, event: str) -> bool:
        """Whether anybody does."""
        return bool(self._of[event])
