"""What a person sees of a run: a live line on a terminal, plain lines in a pipe or log, a small table at the end."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from golf.common.clock import Clocks
from golf.common.log import FILE_ONLY, interactive, logger
from golf.common.progress import Length
from golf.common.shown import plain_text
from golf.runs.dotted import of_kind
from golf.runs.live import LiveLine, Said
from golf.runs.states import state_of

if TYPE_CHECKING:
    from golf.runs.record import EvalRecord, Result

FIRST_STEPS = 10
"""Every one of the first steps is logged: they show a wrong init or learning rate at once."""
_SHOWN_AFTER_S = 1.0
COMPILING = "compiling the model: the first time takes half a minute or more"
_PHASES = {
    "data": "preparing the data", "compile": COMPILING, "warmup": "warming up", "eval": "evaluating",
    "count": "packing the code to count it",
    "prove": "proving the figures", "calibrate": "calibrating", "quantize": "quantizing",
}  # fmt: skip
"""What goes on in a phase of `golf.common.clock.Clocks`."""


class Screen:
    """Shows a run as it goes.

    On a terminal one line moves all the time (`golf.runs.live`): the phase that `clocks` is in, or training, whose
    step and seconds it reads from the host's counters and never from the device; the plain lines go to train.log
    alone. Elsewhere the plain lines are all there is: the first ten steps, every `train_log_every`-th, the last, and
    every validation.
    """

    def __init__(
        self,
        iterations: int = 0,
        train_seconds: float | None = None,
        train_log_every: int = 100,
        live: bool | None = None,
        clocks: Clocks | None = None,
        what: str = "getting ready",
        stderr: bool = False,
    ) -> None:
        """`iterations` is the planned maximum of steps; `train_seconds` the budget, None when steps bound the run;
        `live` None means: on a terminal. `what` goes on as long as no phase and no training does. `stderr`: there,
        not on stdout."""
        self._live = interactive(sys.stderr if stderr else None) if live is None else live
        self._clocks = clocks
        self._what, self._began = what, time.monotonic()
        self._seen: dict[str, Any] = {}
        self._row = (0, 0.0)
        self._position: Callable[[], tuple[int, float]] | None = None
        self._compiles = False
        self._line = LiveLine(self.said, stderr)
        self._plan(iterations, train_seconds, train_log_every)

    def _plan(self, iterations: int, train_seconds: float | None, train_log_every: int) -> None:
        self._length, self._every = Length(iterations, train_seconds), max(1, train_log_every)

    def follow(
        self,
        position: Callable[[], tuple[int, float]],
        iterations: int,
        train_seconds: float | None,
        train_log_every: int,
        compiles: bool = False,
    ) -> None:
        """From now on training goes on: `position` answers (steps done, seconds on the clock) from any thread, at once.

        `compiles`: whether the model is compiled, in the first step at the latest.
        """
        self._plan(iterations, train_seconds, train_log_every)
        self._position, self._compiles = position, compiles

    def log(self, metrics: Mapping[str, Any], step: int, last: bool = False) -> None:
        """Show a row of metrics after `step` updates, of training (`train_loss`) or of validation (`val_bpb`)."""
        self._seen = {**self._seen, **metrics}  # replaced, not changed: another thread may be reading it
        self._row = (step, self._seen.get("train_time_s", 0.0))
        logged = "train_loss" in metrics and (last or step <= FIRST_STEPS or step % self._every == 0)
        if "val_bpb" in metrics or logged:
            self._say(self.line(metrics, step))

    def line(self, metrics: Mapping[str, Any], step: int) -> str:
        """One plain line, for example `step 20/300  train_loss 3.4121  312,400 tokens/s  41.0 ms  left 12 s`."""
        parts = [f"step {step}/{self._length.iterations}"]
        parts += [
            f"{name} {float(metrics[name]):.4f}"
            for name in ("train_loss", "val_loss", "val_bpb")
            if _has(metrics, name)
        ]
        parts += [text for _, text in _speeds(metrics)]
        left = self.seconds_left(step)
        if left is not None:
            parts.append(f"left {duration(left)}")
        return "  ".join(parts)

    def seconds_left(self, step: int) -> float | None:
        """Seconds of training to come after `step` steps, as far as the rows so far tell."""
        spent = self._seen.get("train_time_s")
        return None if spent is None else self._length.seconds_left(step, spent)

    def said(self) -> Said | None:
        """What the live line says now; None while there is nothing that lasts."""
        phase = self._clocks.current if self._clocks is not None else None
        if phase is not None and phase[1] >= _SHOWN_AFTER_S:
            name = "warmup" if phase[0] == "compile" and not self._compiles else phase[0]
            what = _PHASES.get(name, name)
            if name == "eval" and self._compiles:
                what += " (compiles the model's forward first)"
            return Said(what, None, [(0, duration(phase[1]))])
        if self._position is None:
            age = time.monotonic() - self._began
            return Said(self._what, None, [(0, duration(age))]) if age >= _SHOWN_AFTER_S else None
        step, spent = self._position()
        if step == 0 and self._compiles and phase is None:
            return Said(COMPILING, None, [(0, duration(spent))])
        return self._training(step, spent)

    def _training(self, step: int, spent: float) -> Said:
        seen = self._seen
        parts = [(0, f"step {step}/{self._length.iterations}")]
        loss = next((name for name in ("train_loss_mean", "train_loss") if _has(seen, name)), None)
        if loss is not None:
            parts.append((2, f"loss {float(seen[loss]):.4f}"))
        if _has(seen, "val_bpb"):
            parts.append((1, f"bpb {float(seen['val_bpb']):.4f}"))
        parts += _speeds(seen)
        left = self._length.seconds_left(*self._row, max(spent, self._row[1]))
        parts.append((0, f"left {duration(left)}" if left is not None else duration(spent)))
        return Said("training", self._length.fraction(step, spent), parts)

    def phase(self, name: str) -> None:
        """Say what is done now that no clock tells of."""
        self._say(name)
        self._what, self._began = name, time.monotonic() - _SHOWN_AFTER_S

    def close(self) -> None:
        """Take the live line away; safe to call twice."""
        self._line.stop()

    def __enter__(self) -> Screen:
        if self._live:
            self._line.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _say(self, text: str) -> None:
        logger.info(text, extra=FILE_ONLY if self._live else None)


def _speeds(metrics: Mapping[str, Any]) -> list[tuple[int, str]]:
    """How fast it goes, each with how soon the live line may leave it out."""
    forms = (
        (3, "tokens_per_s", "{:,.0f} tokens/s"), (4, "step_ms", "{:.1f} ms"), (5, "mfu", "mfu {:.1%}"),
        (6, "train_time_s", "train_time {:.1f} s"),
    )  # fmt: skip
    return [(drop, form.format(float(metrics[name]))) for drop, name, form in forms if _has(metrics, name)]


def final_table(result: Result, run_dir: Path | str, published: Mapping[str, Any] | None = None) -> str:
    """The closing table of a run as plain text; its very last line is the run folder's path, and nothing else.

    `published` maps dotted names of result.json (`val_bpb.sliding`, `bytes.model`, `steps`) to the figures that
    a record's author printed; they stand in a column of their own beside `here`. Its `dataset` and `seed` say of what.
    """
    figures = dict(of_kind(published, dict))
    dataset, seed = figures.pop("dataset", None), figures.pop("seed", None)
    beside = {str(name): _figure(value) for name, value in figures.items()}
    rows = [(label, here, beside.get(name, "")) for name, label, here in _rows(result) if here or name in beside]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    if beside:
        rows.insert(0, ("", "here", "published"))
        widths[2] = max(widths[2], len("published"))
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    rule = "─" * max(len(line) for line in lines)
    notes = [f"{state_of(result.status, result.valid)}: {one}" for one in result.violations]
    if result.bytes and result.bytes.limit and result.bytes.artifact > result.bytes.limit:
        fewer = (
            "quant.allocation.low_fraction=0.3,0.4,0.5"
            if "mean_gradient" in result.quantization
            else "quant.bits=4,5,6"
        )
        notes.append(f"the same weights in fewer bytes: golf quantize run={run_dir} -m {fewer} codec=zstd,brotli")
    if result.error:
        notes.append(result.error)
    if dataset is not None:
        notes.append(f"published: seed {seed}, {dataset}")
    proof = [told] if (told := str(result.proof)) else []
    return plain_text("\n".join([rule, *lines, rule, *notes, *proof, str(run_dir)]))


def duration(seconds: float) -> str:
    """Seconds as people say them: `8 s`, `3 min 05 s`, `2 h 07 min`; `?` for what a record cannot mean."""
    if not math.isfinite(seconds):
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _rows(result: Result) -> list[tuple[str, str, str]]:
    """(dotted name, label, text) of each line; an empty text means that the run has no such figure."""
    bpb, stop = result.val_bpb, _last(result, "stop", "contiguous")
    averaged = any(one.stage == "averaged" for one in result.evals)
    sliding = _last(result, "quantized", "sliding")
    gap = "" if result.quant_gap is None else f"  ({result.quant_gap:+.4f})"
    stride = "" if sliding is None or sliding.stride is None else f", stride {sliding.stride}"
    rows = [
        ("val_bpb.stop", "bpb at stop, not averaged", _figure(stop.val_bpb) if stop and averaged else ""),
        ("val_bpb.pre_quant", "bpb before quantization", _figure(bpb.pre_quant)),
        ("val_bpb.post_quant", "bpb after quantization", _figure(bpb.post_quant) + gap),
        ("val_bpb.sliding", f"bpb sliding{stride}", _figure(bpb.sliding)),
    ]
    named = {("stop", "contiguous"), ("averaged", "contiguous"), ("quantized", "contiguous"), ("quantized", "sliding")}
    rows += [
        (f"val_bpb.{one.stage}.{one.method}", f"bpb {one.stage}, {one.method}", _figure(one.val_bpb))
        for one in result.evals
        if (one.stage, one.method) not in named
    ]
    if result.bytes is not None:
        ledger = result.bytes
        size = f"{ledger.artifact:,}" + (f" of {ledger.limit:,}" if ledger.limit else "")
        rows.append(("bytes.artifact", "artifact bytes", size))
        rows.append(("bytes.model", "  model", f"{ledger.model:,}"))
        rows.append(("bytes.code", "  code", ledger.code_told))
    limit = result.budget.train_seconds if result.budget is not None and result.budget.times_count else None
    spent = duration(result.train_time_s) + (f" of {duration(limit)}" if limit else "")
    rows.append(("steps", "steps", f"{result.steps:,}"))
    rows.append(("tokens", "training tokens", f"{result.tokens:,}" if result.tokens else ""))
    rows.append(("train_time_s", "training time", spent))
    rows.append(
        ("eval_time_s", "evaluation time", duration(sum(one.seconds for one in result.evals)) if result.evals else "")
    )
    return rows


def _last(result: Result, stage: str, method: str) -> EvalRecord | None:
    found = [one for one in result.evals if one.stage == stage and one.method == method]
    return found[-1] if found else None


def _figure(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _has(metrics: Mapping[str, Any], name: str) -> bool:
    return isinstance(metrics.get(name), (int, float))
