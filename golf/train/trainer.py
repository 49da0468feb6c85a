"""The training loop: one process of one run, from the first batch to the weights that will be quantized."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import torch

from golf.common.clock import Clocks, TrainClock
from golf.common.log import logger
from golf.common.progress import ActsOverTime, Length, Progress
from golf.common.runtime import synchronize
from golf.evals.evaluators import Score
from golf.evals.protocol import Evaluates
from golf.nn.attend import preferred_sdpa_kernels
from golf.nn.linear import EffectiveWeights
from golf.nn.live import Live, attributes, copied, set_attributes
from golf.nn.models.gpt import GPT, Losses
from golf.runs.screen import COMPILING
from golf.train.compiling import compiled, records_graphs, scoring
from golf.train.control import Control, Interrupt
from golf.train.members import Adapts, Averages, Declared, Hooks, Observed, Rows, Validations
from golf.train.memory import put_back
from golf.train.parts import Parts
from golf.train.reference import peak_flops
from golf.train.saving import Saving
from golf.train.state import Saved, cloned, overwrite, randomness, set_randomness
from golf.train.timeline import Phase, Timeline

Report = Callable[[dict[str, Any], int], None]


class Trainer:
    """Trains `parts.model` in place. `report(metrics, step)` receives what metrics.jsonl holds, on rank 0."""

    def __init__(
        self, parts: Parts, clocks: Clocks, report: Report, interrupt: Interrupt | None = None,
        saving: Saving | None = None,
    ) -> None:  # fmt: skip
        self.parts, self.clocks, self.report = parts, clocks, report
        self.interrupt = interrupt or Interrupt()
        self.mark: Callable[[str], None] = unmarked
        cuda = parts.device.type == "cuda"
        self.clock = TrainClock(torch.cuda.synchronize if cuda else None)
        self.weights = EffectiveWeights(parts.model, compiled=cuda and self.compiled)
        self.params = dict(parts.model.named_parameters())
        self._live = Live(parts.model, temporary=True)  # made now: what the model declares is known by it
        self.run_model: Callable[..., torch.Tensor] = parts.model  # in evaluations
        self.fixed_shapes = False  # whether it wants them
        self.train_model: Callable[..., Any] = parts.model
        self.records_graphs = records_graphs(parts)
        self.train_seconds = parts.train_seconds
        self.step = 0
        self.tokens = 0
        self.interrupted = False
        self.saving = saving
        self.remembered: set[str] = set()
        """What of the model has changed in an evaluation that had no leave to change it, by name; it was put back."""
        self.attached = False
        """Whether the hooks are: what they keep is theirs to say only then."""
        self.rows = Rows()
        members = [Adapts(), Validations(self.rows.good), self.rows, self.rows.good, Averages(), Declared()]
        members += [Observed()] if parts.quantizer.observes_gradients else []
        self.hooks = Hooks([*members, *parts.callbacks, *([saving] if saving is not None else [])])
        self.timeline, self.control = self._timeline(), self._control()
        self.frozen = Saved({})
        self._over_time: list[ActsOverTime] = []
        self.enter(parts.phase)

    @property
    def compiled(self) -> bool:
        """Whether training's forwards are compiled."""
        return self.parts.runtime.compile_scope != "none"

    @property
    def last_loss(self) -> float | None:
        """The last loss that was looked at, over the tokens of all ranks."""
        return self.rows.good.loss

    @property
    def last_step_s(self) -> float:
        """Seconds of the last step that was looked at."""
        return self.control.last_step_s

    @property
    def flops_per_token(self) -> float:
        """Of training in the phase in force."""
        reach = getattr(self.parts.loader, "reach", self.parts.settings.train_seq_len / 2)
        return self.parts.model.flops_per_token(reach)

    def mfu(self, tokens_per_s: float) -> float | None:
        """Part of the devices' peak that a rate comes to; None where the peak isn't known."""
        peak = peak_flops(self.parts.device)
        return None if peak is None else tokens_per_s * self.flops_per_token / (peak * self.parts.ranks.world)

    def show(self, name: str, value: torch.Tensor) -> None:
        """Show a scalar in metrics.jsonl and wandb: its mean over calls and ranks since the last row.

        No host waits. The names must be the same on every rank.
        """
        self.rows.show(name, value)

    def train(self, state: Mapping[str, Any] | None = None) -> None:
        """Train until the clock, the planned steps or Ctrl-C says stop; from the moment of a `state_dict`, if given.

        Raises NonFiniteLoss on every rank, with the last good weights back in the model.
        """
        parts, hooks = self.parts, self.hooks
        with self._ready(state):
            stop = self.control.look(self.step) or self.control.ends(self.step)
            while not stop:
                now = self._progress()
                if (phase := self.timeline.due(now)) is not None:
                    now = self._begin(phase, now)
                for part in self._over_time:
                    part.at_step(now)
                hooks.tell("before_step", now)
                self.control.begin()
                hooks.tell("on_losses", now, self._forward_backward())
                self._update(now, hooks)
                self.step, self.tokens = self.step + 1, self.tokens + parts.settings.train_batch_tokens
                done = replace(now, step=self.step, tokens=self.tokens)
                hooks.tell("after_update", done)
                stop = self.control.end(self.step)
                hooks.tell("after_step", done, stop)
            late = parts.ranks.broadcast_object(self.interrupt.raised)  # since the last look
            self.interrupted = self.control.interrupted or late
            if late and not self.control.interrupted and self.saving is not None:
                self.saving.save(self.step, wait=True)  # what the last look did not see, no hook was told of
            if self.interrupted:
                self.interrupt.heeded()
            else:
                self._end_in_last_phase()

    @contextlib.contextmanager
    def _ready(self, state: Mapping[str, Any] | None) -> Iterator[None]:
        """Within the block the model is compiled and warmed up, the hooks are attached, and the clock runs."""
        parts = self.parts
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.interrupt.deferred())
            stack.callback(lambda: self.clocks.set("train", self.clock.stop()))  # however training ends
            stack.enter_context(preferred_sdpa_kernels(parts.device))
            variants = len(parts.phases)
            self.train_model = compiled(parts.model, parts.runtime.compile_scope, variants, self.records_graphs)
            self.run_model, self.fixed_shapes = scoring(parts.model, parts.runtime, variants)
            if self.records_graphs:
                self.weights.refresh(parts.qat)
                for weight in self.weights.leaves:  # a graph may read them where they are, as it does parameters
                    torch._dynamo.mark_static_address(weight, guard=False)
            if self.compiled:
                logger.info("%s", COMPILING)
            with self.clocks.phase("warmup"):
                self.warm_up()
            self.timeline, self.control = self._timeline(), self._control()
            self.hooks.tell("attach", self)
            self.attached = True
            stack.callback(self.rows.good.release)
            if state is not None:
                self.load_state_dict(state)
                self.control.renew(self.step)
            parts.model.train()
            self.weights.refresh(parts.qat)
            self.hooks.tell("at_phase", parts.phase, self._progress())
            self.clock.start()
            yield

    def _timeline(self) -> Timeline:
        limit = self.train_seconds if self.parts.schedule.clock == "wall" else None
        return Timeline(self.parts.phases, Length(self.parts.schedule.iterations, limit))

    def _control(self) -> Control:
        parts = self.parts
        return Control(
            self.clock, parts.ranks, self.interrupt, parts.runtime.check_interval, self.train_seconds,
            parts.schedule.clock == "wall", parts.device, parts.schedule.iterations,
        )  # fmt: skip

    def _progress(self) -> Progress:
        """The present moment, before the coming step."""
        elapsed = self.control.elapsed_s(self.step)
        multiplier = self.parts.schedule.multiplier(self.step, elapsed, self.train_seconds)
        fraction = self.timeline.length.fraction(self.step, elapsed)
        return Progress(self.step, self.tokens, elapsed, fraction, multiplier, self.parts.phase.number)

    def enter(self, phase: Phase) -> None:
        """Let everything be as this phase has it; the next step is its first."""
        parts, settings = self.parts, phase.settings
        parts.phase = phase
        phase.enter(parts.model)
        begins = parts.loader.state_dict()
        for root, found in parts.changeable().items():
            phase.give(root, found)
        if any(holder.startswith("loader") for holder in phase.values):
            parts.loader.load_state_dict(begins)  # what it has read ahead is as the phase before had it
        passes = parts.micro_steps(settings)
        parts.loader.reshape(settings.train_batch_tokens, settings.train_seq_len, passes)
        self.weights.refresh(phase.qat)
        self.rows.renew(self.step)
        self.frozen = Saved({name: self.params[name] for name in self._frozen(phase)})
        candidates: tuple[Any, ...] = (
            *parts.model.modules(), parts.loader, parts.optimizer, parts.averaging, parts.quantizer, phase.qat,
        )  # fmt: skip
        self._over_time = [one for one in candidates if isinstance(one, ActsOverTime) and getattr(one, "on", True)]

    def _frozen(self, phase: Phase) -> list[str]:
        """Parameters that updates leave alone: of frozen places, and of techniques that are off."""
        off = {id(p) for one in self.parts.model.off() for p in one.parameters()}
        specs = self.parts.model.specs()
        return [
            name
            for name, parameter in self.params.items()
            if id(parameter) in off or any(fnmatchcase(specs[name].place, place) for place in phase.settings.frozen)
        ]

    def _begin(self, phase: Phase, now: Progress) -> Progress:
        """Enter a phase in the course of the run, and say so everywhere."""
        self.enter(phase)
        self.control.renew(now.step)
        now = replace(now, phase=phase.number)
        elapsed = self.clock.elapsed_s
        self.timeline.begun.append(
            {"number": phase.number, "step": now.step, "tokens": now.tokens, "train_time_s": elapsed,
             "fraction": now.fraction, "set": dict(phase.changes)}
        )  # fmt: skip
        logger.info("phase %d begins after step %d (%.1f s): %s", phase.number, now.step, elapsed, phase.told)
        if self.parts.ranks.is_main:
            row = {"step": now.step, "tokens": now.tokens, "train_time_s": elapsed, "phase": phase.number}
            self.report(row, now.step)
        self.hooks.tell("at_phase", phase, now)
        return now

    def _end_in_last_phase(self) -> None:
        """What follows training goes by the last phase, be it that it never began."""
        last = self.parts.phases[-1]
        if self.parts.phase is not last:
            logger.warning("phase %d, from %s on, never began; what follows goes by it", last.number, last.start)
            self.enter(last)

    def warm_up(self) -> None:
        """Run real steps in each phase so that kernels are compiled and chosen, then put everything back."""
        steps = self.parts.schedule.warmup_steps
        if self.records_graphs and steps == 1:
            steps = 2  # what the first compiles, the second records
        if not steps or (self.parts.device.type == "cpu" and not self.compiled):
            return
        first, before = self.parts.phase, self.state_dict()
        for phase in self.parts.phases:
            self.enter(phase)
            for step in range(steps if phase is first else min(steps, 2)):
                if self.parts.ranks.broadcast_object(self.interrupt.raised):
                    break
                with self.clocks.phase("warmup" if step else "compile"):
                    self.rehearse(step)
                    synchronize(self.parts.device)
        self.load_state_dict(before)
        synchronize(self.parts.device)

    def rehearse(self, step: int = 0, update: bool = True) -> None:
        """One step at the full learning rate that is counted nowhere: the caller undoes it, or has no use for the
        weights. Without its update it waits for no other rank."""
        self._forward_backward()
        if update:
            self._update(Progress(step))
        else:
            self.parts.optimizer.zero_grad()

    def live_state(self) -> dict[str, Any]:
        """All that a run is between two steps, as it is: tensors and plain values. `own` is what ranks differ in."""
        parts = self.parts
        return {
            "step": self.step, "tokens": self.tokens, "phase": parts.phase.number, "begun": self.timeline.begun,
            "clock": self.clock.state_dict(), "control": self.control.state_dict(), "remembered": self.remembered,
            "model": dict(self._live), "beside": attributes(parts.model),
            "own": {"random": randomness(parts.device), "rows": self.rows.own_state()},
            **{name: part.state_dict() for name, part in parts.stateful().items()},
            "hooks": [one.state_dict() for one in self.hooks.members] if self.attached else [],
        }  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """The whole run in memory; the tensors are copies on their devices."""
        live = self.live_state()
        beside = copied(self.parts.model, live.pop("beside"))
        return {**cloned(live), "beside": beside}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave, of this trainer or of another one of the same config, or from the like of
        a checkpoint; it stays usable."""
        parts = self.parts
        self.enter(next(phase for phase in parts.phases if phase.number == state["phase"]))
        self.timeline.begun, self.remembered = cloned(state["begun"]), set(state["remembered"])
        self.step, self.tokens = state["step"], state["tokens"]
        self.control.load_state_dict(state["control"])
        self.clock.load_state_dict(state["clock"])
        overwrite(self._live, state["model"])
        set_attributes(parts.model, copied(parts.model, state["beside"]))
        set_randomness(state["own"]["random"], parts.device)
        for name, part in parts.stateful().items():
            part.load_state_dict(cloned(state[name]))
        for one, kept in zip(self.hooks.members if state["hooks"] else (), state["hooks"], strict=True):
            one.load_state_dict(cloned(kept))
        self.rows.load_own_state(state["own"]["rows"])
        parts.optimizer.zero_grad()
        self.weights.refresh(parts.qat)

    def release_graphs(self) -> None:
        """Give back the memory that recorded passes keep to themselves; only when no more of them will be run."""
        if self.records_graphs:
            from torch._inductor.cudagraph_trees import reset_cudagraph_trees

            reset_cudagraph_trees()
            torch.cuda.empty_cache()

    def adopt(self, model: GPT) -> None:
        """From now on evaluate this model in place of the one that was trained, whose weights are given back."""
        trained, self.parts.model = self.parts.model, model
        self.weights.detach()
        self.parts.averaging.attach({})
        self.params, self.frozen = {}, Saved({})
        for parameter in trained.parameters():  # the optimizer may hold them
            parameter.data, parameter.grad = parameter.data.new_empty(0), None
        self.weights = EffectiveWeights(model)
        self.run_model, self.fixed_shapes = scoring(model, self.parts.runtime, len(self.parts.phases))
        self.train_model = self.run_model

    def validate(self) -> Score:
        """Contiguous evaluation of the weights as they are, outside the clock."""
        with self.clock.paused(), self.clocks.phase("eval"):
            score = self.evaluate(self.parts.evaluator.contiguous())
        if self.parts.ranks.is_main:
            self.report(
                {
                    "step": self.step, "tokens": self.tokens, "train_time_s": self.clock.elapsed_s,
                    "val_loss": score.val_loss, "val_bpb": score.val_bpb,
                },
                self.step,
            )  # fmt: skip
        return score

    def evaluate(self, evaluator: Evaluates, limit_s: float | None = None) -> Score:
        """Run an evaluator on the model's present weights (never fake-quantized ones); training goes on as before.

        Raises EvaluationTooLong on every rank when it would take longer than `limit_s`.
        """
        model = self.parts.model
        training = model.training
        model.eval()
        self.weights.refresh()
        with put_back(model) as changed:
            score = evaluator.score(
                model, self.run_model, self.parts.validation, self.parts.ranks, self.fixed_shapes, limit_s=limit_s
            )
        if not getattr(evaluator, "adapts", False):
            self.remembered |= changed.keys()
        model.train(training)
        if training:
            self.weights.refresh(self.parts.qat)
        return score

    def _forward_backward(self) -> torch.Tensor:
        """One step's forward and backward passes; on the device [1 + K]: the mean nll over this rank's tokens, and the
        means of what is noted, which are over its passes."""
        self.mark("begin")
        batches = self.parts.loader.next_step()
        self.mark("data")
        total: torch.Tensor | None = None
        for x, y, borders in batches:
            if self.records_graphs:
                torch.compiler.cudagraph_mark_step_begin()  # what the last pass put out has been read
            found: Losses = self.train_model(x, y, borders=borders, noting=True)
            loss = (found.nll + sum(found.terms.values()) if found.terms else found.nll) / len(batches)
            self.mark("forward")
            loss.backward()
            self.weights.collect_gradients()
            self.mark("backward")
            part = self.rows.seen(found.nll, {**found.terms, **found.reports}) / len(batches)
            total = part if total is None else total + part
        assert total is not None
        return total

    def _update(self, now: Progress, hooks: Hooks | None = None) -> None:
        self.mark("other")
        observed = hooks is not None and hooks.listens("on_gradients")
        self.parts.optimizer.reduce_gradients(wait=observed)
        self.mark("reduce")
        if hooks is not None and observed:
            hooks.tell("on_gradients", now, [(n, p.grad) for n, p in self.params.items() if p.grad is not None])
        self.frozen.refresh()
        self.parts.optimizer.step(now.step, now.lr_multiplier)
        self.frozen.restore()
        self.parts.optimizer.zero_grad()
        self.weights.refresh(self.parts.qat)
        self.mark("optimizer")


def unmarked(phase: str) -> None:
    """What `Trainer.mark` calls at the end of every phase of a step when nobody measures them."""
