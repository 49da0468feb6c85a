"""What a person sees of a run: a live line on a terminal, plain lines in a pipe or log, a small table at the end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from golf.common.log import FILE_ONLY, interactive, logger
from golf.runs.record import EvalRecord, Result
from golf.runs.states import state_of

_FIRST_STEPS = 10
_REDRAW_S = 0.2


class Progress:
    """Shows training as it goes.

    On a terminal one line is redrawn at most five times a second, from the training thread (no thread of its own
    that would disturb a step); the plain lines go to train.log alone. Elsewhere the plain lines are all there is:
    the first ten steps, every `train_log_every`-th, the last, and every validation.
    """

    def __init__(
        self,
        iterations: int,
        train_seconds: float | None = None,
        train_log_every: int = 100,
        live: bool | None = None,
    ) -> None:
        """`iterations` is the planned maximum of steps; `train_seconds` the budget, None when steps bound the run;
        `live` None means: on a terminal."""
        self._iterations = iterations
        self._train_seconds = train_seconds
        self._every = max(1, train_log_every)
        self._live = interactive() if live is None else live
        self._seen: dict[str, Any] = {}
        self._display: Any = None
        self._task: Any = None
        self._drawn = 0.0

    def log(self, metrics: Mapping[str, Any], step: int, last: bool = False) -> None:
        """Show a row of metrics after `step` updates, of training (`train_loss`) or of validation (`val_bpb`)."""
        self._seen.update(metrics)
        if "val_bpb" in metrics or last or step <= _FIRST_STEPS or step % self._every == 0:
            self._say(self.line(metrics, step))
        if self._live:
            self._redraw(step, force=last)

    def line(self, metrics: Mapping[str, Any], step: int) -> str:
        """One plain line, for example `step 20/300  train_loss 3.4121  312,400 tokens/s  41.0 ms  left 12 s`."""
        parts = [f"step {step}/{self._iterations}"]
        parts += [
            f"{name} {float(metrics[name]):.4f}"
            for name in ("train_loss", "val_loss", "val_bpb")
            if _has(metrics, name)
        ]
        if _has(metrics, "tokens_per_s"):
            parts.append(f"{float(metrics['tokens_per_s']):,.0f} tokens/s")
        if _has(metrics, "step_ms"):
            parts.append(f"{float(metrics['step_ms']):.1f} ms")
        if _has(metrics, "mfu"):
            parts.append(f"mfu {float(metrics['mfu']):.1%}")
        if _has(metrics, "train_time_s"):
            parts.append(f"train_time {float(metrics['train_time_s']):.1f} s")
        left = self.seconds_left(step)
        if left is not None:
            parts.append(f"left {duration(left)}")
        return "  ".join(parts)

    def seconds_left(self, step: int) -> float | None:
        """Seconds of training to come: what the budget leaves, or the steps at the mean pace so far; the shorter."""
        spent = self._seen.get("train_time_s")
        if spent is None:
            return None
        ends = []
        if self._train_seconds is not None:
            ends.append(self._train_seconds - spent)
        if step > 0:
            ends.append((self._iterations - step) * spent / step)
        return max(0.0, min(ends)) if ends else None

    def phase(self, name: str) -> None:
        """Say what the run does now (`compiling`, `quantizing`, …)."""
        self._say(name)
        if self._live:
            self._open()
            self._display.update(self._task, description=name)
            self._display.refresh()

    def close(self) -> None:
        """Take the live line away; safe to call twice."""
        if self._display is not None:
            self._display.stop()
            self._display = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _say(self, text: str) -> None:
        logger.info(text, extra=FILE_ONLY if self._live else None)

    def _open(self) -> None:
        if self._display is not None:
            return
        from rich import get_console, progress

        columns = ("[bold]{task.description}", progress.BarColumn(bar_width=20), "{task.fields[line]}")
        self._display = progress.Progress(*columns, console=get_console(), auto_refresh=False, transient=True)
        self._task = self._display.add_task("training", total=1.0, line="")
        self._display.start()

    def _redraw(self, step: int, force: bool) -> None:
        now = time.monotonic()
        if not force and now - self._drawn < _REDRAW_S:
            return
        self._drawn = now
        self._open()
        done = [step / max(1, self._iterations)]
        if self._train_seconds:
            done.append(self._seen.get("train_time_s", 0.0) / self._train_seconds)
        line = self.line(self._seen, step)
        self._display.update(self._task, description="training", completed=min(1.0, max(done)), line=line)
        self._display.refresh()


def final_table(result: Result, run_dir: Path | str, published: Mapping[str, Any] | None = None) -> str:
    """The closing table of a run as plain text; its very last line is the run folder's path, and nothing else.

    `published` maps dotted names of result.json (`val_bpb.sliding`, `bytes.model`, `steps`) to the figures that
    a record's author printed; they stand in a column of their own beside `here`. Its `dataset` and `seed` say of what.
    """
    figures = dict(published or {})
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
    return "\n".join([rule, *lines, rule, *notes, str(run_dir)])


def duration(seconds: float) -> str:
    """Seconds as people say them: `8 s`, `3 min 05 s`, `2 h 07 min`."""
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
        rows.append(("bytes.code", "  code", f"{ledger.code:,}"))
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
