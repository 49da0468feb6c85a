"""Measuring the trainer's own steps: how long they take, where the time goes, what compiling costs and gains."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from golf.common.log import logger
from golf.common.runtime import synchronize
from golf.nn.attend import preferred_sdpa_kernels
from golf.runs import environment
from golf.runs.screen import FIRST_STEPS
from golf.train import checkpoint
from golf.train.doubts import load, waited_ms
from golf.train.reference import peak_flops
from golf.train.saving import Saving
from golf.train.trainer import Trainer, unmarked

PHASES = ("data", "forward", "backward", "reduce", "optimizer", "other")
"""Parts of a step, in order: until the batch is on the device; the passes; until the first gradients are summed over
the ranks; the update, with the wait for the others and the effective weights; checks, averaging, logging."""
SETTLE = FIRST_STEPS + 5
"""Steps before the measured ones: the first ten of a run are logged, hence synchronized, one by one."""


@dataclass
class Plateau:
    """A schedule of so many steps at the full learning rate: what golf train does for most of a run.

    Averaging, quantizers and optimizers that wait for the final decay stay as they are before it.
    """

    iterations: int
    warmup_steps: int
    clock: str = "steps"

    def multiplier(self, step: int, elapsed_s: float, train_seconds: float | None) -> float:
        """Always 1."""
        return 1.0

    def adapt(self, step: int, elapsed_s: float, train_seconds: float | None) -> str | None:
        """Never."""
        return None


class Stopwatch:
    """The times of the phases of every step, by device events on CUDA and by the clock on the CPU.

    `mark` is a `Trainer.mark`: it ends the phase that it names, and "begin" begins a step. Nothing is synchronized
    before the times are read. waited: how long the thread had waited for a core when each step began.
    """

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.steps: list[list[tuple[str, Any]]] = []
        self.waited: list[float | None] = []

    def mark(self, phase: str) -> None:
        """Note the present moment on the device as the end of `phase`."""
        if phase == "begin":
            self.steps.append([])
            self.waited.append(waited_ms())
        if self.steps:
            self.steps[-1].append((phase, self._moment()))

    def step_ms(self, index: int) -> float:
        """From the begin of a step to the begin of the next, or to its own last mark when it is the last."""
        return self._between(self.steps[index][0][1], self._end(index))

    def phases_ms(self, index: int) -> dict[str, float]:
        """The same time by phase."""
        found = dict.fromkeys(PHASES, 0.0)
        marks = [*self.steps[index], ("other", self._end(index))]
        for (_, before), (phase, after) in pairwise(marks):
            found[phase] += self._between(before, after)
        return found

    def _end(self, index: int) -> Any:
        following = index + 1 < len(self.steps)
        return self.steps[index + 1][0][1] if following else self.steps[index][-1][1]

    def _moment(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, before: Any, after: Any) -> float:
        return float(before.elapsed_time(after)) if self.cuda else 1000 * (after - before)


def measure(trainer: Trainer, steps: int) -> dict[str, Any]:
    """Train, and measure the last `steps` steps but one; a record of plain numbers, the same on every rank.

    The whole of `Trainer.train` runs, warm-up included. Raises KeyboardInterrupt when Ctrl-C stopped it too soon.
    """
    parts = trainer.parts
    parts.schedule = Plateau(SETTLE + steps + 1, parts.schedule.warmup_steps)
    watch, late = Stopwatch(parts.device), list[float]()

    def mark(phase: str) -> None:
        if phase == "data":
            late.append(parts.loader.data_wait_ms)
        watch.mark(phase)

    trainer.mark = mark
    if watch.cuda:
        torch.cuda.reset_peak_memory_stats(parts.device)
    trainer.train()
    if trainer.interrupted:
        raise KeyboardInterrupt
    synchronize(parts.device)
    trainer.mark = unmarked
    measured = range(len(watch.steps) - 1 - steps, len(watch.steps) - 1)
    times = sorted(watch.step_ms(index) for index in measured)
    phases = [watch.phases_ms(index) for index in measured]
    waits = late[-1 - steps : -1]
    before, after = watch.waited[measured.start], watch.waited[measured.stop]
    own = {
        "rank": parts.ranks.rank,
        "step_ms": statistics.median(times),
        "step_ms_mean": statistics.fmean(times),
        "step_ms_p10": times[len(times) // 10],
        "step_ms_p90": times[len(times) * 9 // 10],
        "phases_ms": {name: statistics.fmean(one[name] for one in phases) for name in PHASES},
        "first_step_ms": watch.step_ms(0),
        "data_wait_ms": statistics.fmean(waits) if waits else 0.0,
        "host_wait_ms": None if before is None or after is None else (after - before) / steps,
        **_memory(),
    }
    ranks = parts.ranks.gather_objects(own)
    step_ms = max(one["step_ms"] for one in ranks)
    tokens = parts.settings.train_batch_tokens
    rate, peak = 1000 * tokens / step_ms, peak_flops(parts.device)
    return {
        "step_ms": step_ms,
        "tokens_per_s": rate,
        "mfu": None if peak is None else rate * trainer.flops_per_token / (peak * parts.ranks.world),
        "step_ms_mean": max(one["step_ms_mean"] for one in ranks),
        "step_ms_p10": ranks[0]["step_ms_p10"],
        "step_ms_p90": ranks[0]["step_ms_p90"],
        "steps_ms": [watch.step_ms(index) for index in measured],
        "host_wait_ms": max((one["host_wait_ms"] for one in ranks if one["host_wait_ms"] is not None), default=None),
        "data_wait_ms": max(one["data_wait_ms"] for one in ranks),
        **load(),
        "phases_ms": ranks[0]["phases_ms"],
        "peak_memory_bytes": max(one["peak_memory_bytes"] for one in ranks),
        "ranks": ranks,
        "measured_steps": steps,
        "tokens_per_step": tokens,
        "seq_len": parts.settings.train_seq_len,
        "micro_steps": parts.loader.micro_steps,
        "flops_per_token": trainer.flops_per_token,
        "peak_flops": peak,
        "train_loss": trainer.last_loss,
    }


def host_ms(trainer: Trainer, steps: int = 5) -> dict[str, float]:
    """Median ms that the host takes to queue each phase of a step, the device being idle whenever one begins.

    A device that is done with a step sooner than the host has queued it waits. Steps are run for it: the weights are
    worth nothing afterwards.
    """
    device, rows, began = trainer.parts.device, list[dict[str, float]](), 0.0

    def mark(phase: str) -> None:
        nonlocal began
        now = time.perf_counter()
        if phase == "begin":
            rows.append(dict.fromkeys(PHASES, 0.0))
        else:
            rows[-1][phase] += 1000 * (now - began)
        synchronize(device)
        began = time.perf_counter()

    trainer.mark = mark
    with preferred_sdpa_kernels(device):
        for _ in range(steps):
            trainer.rehearse()
    trainer.mark = unmarked
    return {phase: statistics.median(row[phase] for row in rows) for phase in PHASES}


def checkpoint_cost(trainer: Trainer, folder: Path, step_ms: float) -> dict[str, Any] | None:
    """What a checkpoint costs the step that it follows, in ms until host and device go on, and as a share of training
    at the pace of the config; its bytes, and the seconds that a thread writes it. None where the config has none.

    It is written twice, for the first finds no memory of the host's, and taken away again.
    """
    settings, device = trainer.parts.checkpoint, trainer.parts.device
    if settings is None or not settings.keep_last:
        return None
    saving = Saving(replace(settings, keep_last=1), folder)
    saving.attach(trainer)
    cost: dict[str, Any] = {}
    for step in (1, 2):
        synchronize(device)
        began = time.perf_counter()
        saving.save(step)
        synchronize(device)
        held = time.perf_counter() - began
        saving.close()
        cost = {"ms": 1000 * max(trainer.parts.ranks.gather_objects(held)), "write_s": time.perf_counter() - began}
    size = 0
    if trainer.parts.ranks.is_main:
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        checkpoint.clear(folder)
    steps_ms = settings.every * step_ms if isinstance(settings.every, int) else None
    every_s = settings.seconds if steps_ms is None else steps_ms / 1000
    share = None if every_s is None else cost["ms"] / 1000 / every_s
    return {**cost, "bytes": size, "every_s": every_s, "share": share}


def _memory() -> dict[str, Any]:
    """This rank's peak so far: what its GPU's allocator handed out, or the process's resident set."""
    peak = environment.peak_memory()
    reserved = peak.gpu_reserved[0] if peak.gpu_reserved else None
    return {
        "peak_memory_bytes": peak.gpu_allocated[0] if peak.gpu_allocated else peak.host_rss or 0,
        "peak_memory_reserved_bytes": reserved,
    }


def graphs_skipped() -> bool:
    """Whether the compiler could not record what it was asked to; it has warned of the reason."""
    return bool(torch._dynamo.utils.counters["inductor"]["cudagraph_skips"])


def cache_found() -> str:
    """Whether this process found the graphs that it compiled so far in the compiler's cache: warm, part or cold."""
    counters = torch._dynamo.utils.counters
    names = {"inductor": "fxgraph_cache", "aot_autograd": "autograd_cache"}
    hits, misses = (sum(counters[group][f"{name}_{what}"] for group, name in names.items()) for what in ("hit", "miss"))
    return "cold" if not hits else "part" if misses else "warm"


def compile_costs(trainer: Trainer, record: dict[str, Any], eager_steps: int = 3) -> dict[str, Any]:
    """Seconds of compiling with an empty and with a filled cache, the eager step, and when compiling has paid back.

    `record` is what `measure` returned. Steps are run for it: the weights are worth nothing afterwards. A figure that
    cannot be had (an eager step that does not fit into memory) is None.
    """
    parts = trainer.parts
    if not trainer.compiled:
        return {"scope": parts.runtime.compile_scope}
    from torch._inductor.utils import fresh_cache

    step_s = record["step_ms"] / 1000
    first = max(one["first_step_ms"] for one in record["ranks"]) / 1000 - step_s
    by_rank = set(parts.ranks.gather_objects(cache_found()))  # a GPU's code is not another one's
    found = by_rank.pop() if len(by_rank) == 1 else "part"
    if found == "cold":
        cold = first
    else:
        logger.info("compiling again with an empty cache")
        with fresh_cache():
            cold = _first_step_s(trainer) - step_s
    if found == "warm":
        warm = first
    else:
        logger.info("compiling again from the cache")
        warm = _first_step_s(trainer) - step_s
    logger.info("%d steps without compiling", eager_steps)
    torch._dynamo.reset()
    if parts.device.type == "cuda":
        torch.cuda.empty_cache()  # recorded passes keep their memory to themselves
    eager = _eager_step_s(trainer, eager_steps)
    return {
        "scope": parts.runtime.compile_scope, "cache_found": found, "cold_s": cold, "warm_s": warm,
        "eager_step_ms": None if eager is None else 1000 * eager,
        "payback_steps_cold": payback(cold, step_s, eager), "payback_steps_warm": payback(warm, step_s, eager),
    }  # fmt: skip


def payback(compile_s: float, step_s: float, eager_step_s: float | None) -> int | None:
    """Steps after which compiling has saved what it cost; None when it never does, or nobody knows."""
    if eager_step_s is None or eager_step_s <= step_s:
        return None
    return math.ceil(max(compile_s, 0.0) / (eager_step_s - step_s))


def _first_step_s(trainer: Trainer) -> float:
    torch._dynamo.reset()
    return max(trainer.parts.ranks.gather_objects(_timed(trainer, 1)[0]))


def _eager_step_s(trainer: Trainer, steps: int) -> float | None:
    """The median eager step, after one that is not counted; None on every rank when one of them lacks the memory."""
    ranks, fits = trainer.parts.ranks, True
    with torch.compiler.set_stance("force_eager"):
        try:  # the passes alone: no rank may wait in the update for one that lacks the memory
            with preferred_sdpa_kernels(trainer.parts.device):
                trainer.rehearse(update=False)
        except torch.OutOfMemoryError:
            fits = False
        if not all(ranks.gather_objects(fits)):
            logger.warning("a step without compiling does not fit into the device's memory")
            return None
        return max(ranks.gather_objects(statistics.median(_timed(trainer, steps + 1)[1:])))


def _timed(trainer: Trainer, steps: int) -> list[float]:
    device = trainer.parts.device
    times: list[float] = []
    with preferred_sdpa_kernels(device):
        for _ in range(steps):
            synchronize(device)
            trainer.parts.ranks.barrier()
            began = time.perf_counter()
            trainer.rehearse()
            synchronize(device)
            times.append(time.perf_counter() - began)
    return times
