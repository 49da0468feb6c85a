"""The training loop: one process of one run, from the first batch to the weights that will be quantized."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Literal

import torch

from golf.common.clock import Clocks, TrainClock
from golf.common.errors import GolfError
from golf.common.log import logger
from golf.common.runtime import synchronize
from golf.evals.evaluators import Score
from golf.nn.attend import preferred_sdpa_kernels
from golf.nn.linear import EffectiveWeights
from golf.nn.live import Live, copied, set_attributes
from golf.nn.models.gpt import GPT, Losses
from golf.runs.screen import COMPILING
from golf.train.control import GRACE_S, Control, Interrupt
from golf.train.parts import SPANS, Parts
from golf.train.state import LastGood, Saved

Report = Callable[[dict[str, Any], int], None]
FIRST_STEPS = 10
"""Every one of the first steps is logged: they show a wrong init or learning rate at once."""


class Trainer:
    """Trains `parts.model` in place. `report(metrics, step)` receives what metrics.jsonl holds, on rank 0."""

    def __init__(self, parts: Parts, clocks: Clocks, report: Report, interrupt: Interrupt | None = None) -> None:
        self.parts, self.clocks, self.report = parts, clocks, report
        self.interrupt = interrupt or Interrupt()
        self.mark: Callable[[str], None] = unmarked
        cuda = parts.device.type == "cuda"
        self.clock = TrainClock(torch.cuda.synchronize if cuda else None)
        self.weights = EffectiveWeights(parts.model, compiled=cuda and self.compiled)
        self.params = dict(parts.model.named_parameters())
        self.run_model: Callable[..., torch.Tensor] = parts.model
        self.train_model: Callable[..., Any] = parts.model
        self.records_graphs = parts.runtime.records_graphs(
            SPANS, parts.loader.local, parts.ranks.world, parts.model.compiles_whole
        )
        if self.records_graphs and parts.runtime.cuda_graphs == "auto" and parts.model.keeps_state:
            self.records_graphs = False
            logger.info("no CUDA graphs: a part of your own keeps tensors, which it may replace (runtime.cuda_graphs)")
        self.train_seconds = parts.train_seconds
        self.step = 0
        self.tokens = 0
        self._good: LastGood | None = None
        self.last_step_s = 0.0
        self.noted: tuple[str, ...] | None = None
        """Names of what techniques add to the loss or report, once a pass has told them."""
        self.summed = torch.zeros(1, device=parts.device)
        """This rank's losses since the last row of metrics, which came after step `row`, summed on the device; behind
        them what is `noted`."""
        self.row = 0
        self.interrupted = False
        self.flops_per_token = parts.model.flops_per_token(parts.settings.train_seq_len)

    @property
    def compiled(self) -> bool:
        """Whether forwards are compiled, hence want fixed shapes."""
        return self.parts.runtime.compile_scope != "none"

    @property
    def last_loss(self) -> float | None:
        """The last loss that was looked at, over the tokens of all ranks."""
        return None if self._good is None else self._good.loss

    def warm_up(self) -> None:
        """Run real steps so that kernels are compiled and chosen, then put weights, optimizer and loader back."""
        steps = self.parts.schedule.warmup_steps
        if self.records_graphs and steps == 1:
            steps = 2  # what the first compiles, the second records
        if not steps or (self.parts.device.type == "cpu" and not self.compiled):
            return
        model = self.parts.model
        before, optimizer = Saved(Live(model, temporary=True)), self.parts.optimizer.snapshot()
        plain = copied(model)
        devices = [self.parts.device] if self.parts.device.type == "cuda" else []
        self.weights.refresh(self.parts.qat)
        with torch.random.fork_rng(devices):
            with self.clocks.phase("compile"):
                self.rehearse(0)
                synchronize(self.parts.device)
            for step in range(1, steps):
                if self.parts.ranks.broadcast_object(self.interrupt.raised):
                    break
                self.rehearse(step)
        before.restore()
        set_attributes(model, plain)
        self.parts.optimizer.restore(optimizer)
        self.parts.optimizer.zero_grad()
        self.parts.loader.reset()
        synchronize(self.parts.device)

    def rehearse(self, step: int = 0, update: bool = True) -> None:
        """One step at the full learning rate that is counted nowhere: the caller undoes it, or has no use for the
        weights. Without its update it waits for no other rank."""
        self._forward_backward()
        if update:
            self._update(step, 1.0)
        else:
            self.parts.optimizer.zero_grad()

    def train(self) -> None:
        """Train until the clock, the planned steps or Ctrl-C says stop.

        Raises NonFiniteLoss on every rank, with the last good weights back in the model.
        """
        parts, settings, schedule = self.parts, self.parts.settings, self.parts.schedule
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.interrupt.deferred())
            stack.callback(lambda: self.clocks.set("train", self.clock.stop()))  # however training ends
            stack.enter_context(preferred_sdpa_kernels(parts.device))
            self.run_model = self.train_model = compiled(parts.model, parts.runtime.compile_scope)
            if self.records_graphs:
                self.train_model = compiled(parts.model, "model", as_graphs=True)
                self.weights.refresh(parts.qat)
                for weight in self.weights.leaves:  # a graph may read them where they are, as it does parameters
                    torch._dynamo.mark_static_address(weight, guard=False)
            if self.compiled:
                logger.info("%s", COMPILING)
            with self.clocks.phase("warmup"):
                self.warm_up()
            with torch.no_grad():
                parts.averaging.attach(Live(parts.model))
            control = Control(
                self.clock, parts.ranks, self.interrupt, parts.runtime.check_interval, self.train_seconds,
                schedule.clock == "wall", parts.device,
            )  # fmt: skip
            live = Live(parts.model)
            before = {name: live[name].shape if name in live else None for name in live.declared}
            good = self._good = LastGood(Live(parts.model), parts.ranks)
            stack.callback(good.release)
            parts.model.train()
            self.weights.refresh(parts.qat)
            self.clock.start()
            stop = control.look(0) or schedule.iterations <= 0
            rows_every = parts.rows_every
            level = True  # the device has done what the host has queued
            while not stop:
                if settings.val_every and self.step % settings.val_every == 0:
                    good.settle()
                    self.validate()
                    level = True
                began = self.clock.elapsed_s
                multiplier = schedule.multiplier(self.step, control.elapsed_s(self.step), self.train_seconds)
                losses = self._forward_backward()
                self.summed = self.summed + losses
                done = self.step + 1
                last = done >= schedule.iterations
                logged = last or done <= FIRST_STEPS or done % rows_every == 0
                if logged or control.due(done):
                    good.check(self.step, losses[0], wait=logged or control.waits(done), summed=self.summed)
                self._update(self.step, multiplier)
                self.step, self.tokens = done, self.tokens + settings.train_batch_tokens
                with torch.no_grad():
                    parts.averaging.update(done, multiplier)
                if done == 1:
                    check_state(before, Live(parts.model))
                if control.due(done) or last:
                    stop = control.look(done, wait=last) or last
                    self.interrupt.patience_s = GRACE_S + 4 * control.interval * control.pace_s
                    self.last_step_s = self.clock.elapsed_s - began if level else control.pace_s
                level = control.waits(done)
                if (line := schedule.adapt(done, control.elapsed_s(done), self.train_seconds)) is not None:
                    logger.info("%s", line)
                if stop:
                    good.settle()
                if logged or stop:
                    self._log(multiplier)
            late = parts.ranks.broadcast_object(self.interrupt.raised)  # since the last look
            self.interrupted = control.interrupted or late
            if self.interrupted:
                self.interrupt.heeded()

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
        self.params = {}
        for parameter in trained.parameters():  # the optimizer may hold them
            parameter.data, parameter.grad = parameter.data.new_empty(0), None
        self.weights = EffectiveWeights(model)
        self.run_model = self.train_model = compiled(model, self.parts.runtime.compile_scope)

    def validate(self) -> Score:
        """Contiguous evaluation of the weights as they are, outside the clock."""
        with self.clock.paused(), self.clocks.phase("eval"):
            score = self.evaluate(self.parts.evaluator.contiguous())
            self.weights.refresh(self.parts.qat)
        if self.parts.ranks.is_main:
            self.report(
                {
                    "step": self.step, "tokens": self.tokens, "train_time_s": self.clock.elapsed_s,
                    "val_loss": score.val_loss, "val_bpb": score.val_bpb,
                },
                self.step,
            )  # fmt: skip
        return score

    def evaluate(self, evaluator: Any, limit_s: float | None = None) -> Score:
        """Run an evaluator on the model's present weights (never fake-quantized ones); training mode is put back.

        Raises EvaluationTooLong on every rank when it would take longer than `limit_s`.
        """
        model = self.parts.model
        training = model.training
        model.eval()
        self.weights.refresh()
        score: Score = evaluator.score(
            model, self.run_model, self.parts.validation, self.parts.ranks, self.compiled, limit_s=limit_s
        )
        model.train(training)
        return score

    def _forward_backward(self) -> torch.Tensor:
        """One step's forward and backward passes; on the device [1 + K]: the mean nll over this rank's tokens, and the
        means of what is noted, which are over its passes."""
        self.mark("begin")
        batches = self.parts.loader.next_step()
        self.mark("data")
        total: torch.Tensor | None = None
        for x, y in batches:
            if self.records_graphs:
                torch.compiler.cudagraph_mark_step_begin()  # what the last pass put out has been read
            found: Losses = self.train_model(x, y, noting=True)
            loss = (found.nll + sum(found.terms.values()) if found.terms else found.nll) / len(batches)
            self.mark("forward")
            loss.backward()
            self.weights.collect_gradients()
            self.mark("backward")
            part = self._seen(found) / len(batches)
            total = part if total is None else total + part
        assert total is not None
        return total

    def _seen(self, found: Losses) -> torch.Tensor:
        """[1 + K]: the nll of a pass, and what was noted in it. Raises GolfError for other names than before."""
        shown = {**found.terms, **found.reports}
        self.noted = tuple(shown) if self.noted is None else self.noted
        if tuple(shown) != self.noted:
            raise GolfError(f"techniques noted {list(shown)} in this pass, {list(self.noted)} before: "
                            "the names must be the same in every one")  # fmt: skip
        return torch.cat([value.detach()[None] for value in (found.nll, *shown.values())])

    def _update(self, step: int, multiplier: float) -> None:
        self.mark("other")
        observed = self.parts.quantizer.observes_gradients and self.clock.running
        self.parts.optimizer.reduce_gradients(wait=observed)
        self.mark("reduce")
        if observed:
            grads = ((n, p.grad) for n, p in self.params.items() if p.grad is not None)
            self.parts.quantizer.observe(grads, multiplier)
        self.parts.optimizer.step(step, multiplier)
        self.parts.optimizer.zero_grad()
        self.weights.refresh(self.parts.qat)
        self.mark("optimizer")

    def _log(self, multiplier: float) -> None:
        steps, self.row = self.step - self.row, self.step
        self.summed = torch.zeros_like(self.summed)
        if not self.parts.ranks.is_main:
            return
        summed = self._good.summed if self._good is not None and self._good.summed is not None else []
        means: list[float | None] = [value / steps for value in summed] or [None]
        elapsed = self.clock.elapsed_s
        pace = elapsed / self.step
        rate = self.parts.settings.train_batch_tokens / pace
        metrics = {
            "step": self.step, "tokens": self.tokens, "train_time_s": elapsed, "train_loss": self.last_loss,
            "train_loss_mean": means[0],
            "lr_multiplier": multiplier, "step_ms": 1000 * pace, "tokens_per_s": rate,
            "data_wait_ms": self.parts.loader.data_wait_ms,
        }  # fmt: skip
        metrics = {**dict(zip(self.noted or (), means[1:], strict=False)), **metrics}
        peak = peak_flops(self.parts.device)
        if peak is not None:
            metrics["mfu"] = rate * self.flops_per_token / (peak * self.parts.ranks.world)
        self.report(metrics, self.step)


def check_state(before: dict[str, torch.Size | None], now: Live) -> None:
    """Raises GolfError for state that a step has made or reshaped: no model built anew could read it from an artifact.

    before: the shapes of what was declared, None of what was empty.
    """
    for name, tensor in now.items():
        shape = before.get(name, tensor.shape)
        if name in before and (shape is None or shape == tensor.shape):
            continue
        was = f"has another shape, {list(tensor.shape)}, than before" if name in before else "was not there before"
        raise GolfError(
            f"{name}: this state {was} the first step, so that no artifact could be read back\n"
            "declare it by register_buffer in __init__, in its final shape or as None"
        )


def unmarked(phase: str) -> None:
    """What `Trainer.mark` calls at the end of every phase of a step when nobody measures them."""


def compiled(
    model: GPT, scope: Literal["model", "block", "none"], as_graphs: bool = False
) -> Callable[..., torch.Tensor]:
    """The forward to call when the model or its blocks are to be compiled; the work happens at the first call.

    as_graphs: of the whole model, launched as CUDA graphs. What a pass puts out, gradients too, lasts until the next.
    """
    if scope == "none":
        return model
    # A graph per visit, in training and each evaluator's shapes.
    torch._dynamo.config.cache_size_limit = max(64, 8 * len(model.visits))
    if scope == "model":
        forward: Callable[..., torch.Tensor] = torch.compile(
            model, fullgraph=model.compiles_whole, dynamic=False,
            options={"triton.cudagraphs": True} if as_graphs else None,
        )  # fmt: skip
        return forward
    for block in model.blocks:
        block.compile(fullgraph=model.compiles_whole, dynamic=False)
    return model


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 peak of a known GPU in FLOP/s, by the vendor's datasheet; None when it isn't known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    known = {
        "H100": 989e12,
        "H200": 989e12,
        "H800": 989e12,
        "A100": 312e12,
        "B200": 2250e12,
        "L40S": 362e12,
        "4090": 165e12,
    }
    return next((flops for part, flops in known.items() if part in name), None)
