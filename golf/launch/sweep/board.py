"""How a sweep is shown: a live table on a terminal, a line for every event in a pipe, and a closing table."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from golf.common.log import interactive
from golf.launch.sweep.job import SweepJob, length_of
from golf.runs.dotted import last_parts
from golf.runs.figures import FINAL, POST_QUANT, SCORED_BY, SLIDING, says_more
from golf.runs.screen import duration
from golf.runs.states import ENDED, SCORED
from golf.runs.store import sorting
from golf.runs.tables import Column, Table

REDRAW_S = 0.5
PLAIN_EVERY_S = 30.0


class Tail:
    """The newest figures of a growing metrics.jsonl; each line is read once.

    A job that was put back in the queue begins another file in its place, which is read from the start.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.offset, self.file = path, 0, 0
        self.seen: dict[str, Any] = {}

    def read(self) -> dict[str, Any]:
        """Every figure's newest value so far."""
        for row in self.rows():
            self.seen |= {name: value for name, value in row.items() if value is not None}
        return self.seen

    def rows(self) -> list[dict[str, Any]]:
        """The rows that have come since the last call; a line still being written is left for the next time."""
        try:
            with self.path.open("rb") as file:
                told = os.fstat(file.fileno())
                if told.st_ino != self.file or told.st_size < self.offset:
                    self.file, self.offset, self.seen = told.st_ino, 0, {}
                file.seek(self.offset)
                text = file.read()
        except OSError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self.offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()]


class Board:
    """Shows the jobs of a sweep as they run; used as a context manager around the pool's run."""

    def __init__(self, live: bool | None = None, planned: int = 0) -> None:
        """`planned` jobs will come, where they come one by one."""
        self.live = interactive() if live is None else live
        self.planned = planned
        self.tails: dict[Path, Tail] = {}
        self.scores: dict[Path, float] = {}
        self.told: dict[int, str] = {}
        self.drawn = time.monotonic()
        self.display: Any = None

    def __enter__(self) -> Board:
        if self.live:
            from rich.live import Live

            self.display = Live(auto_refresh=False, transient=True)
            self.display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.display is not None:
            self.display.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        if self.display is not None:
            self.display.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, flush=True)

    def update(self, jobs: Sequence[SweepJob]) -> None:
        """Tell what has changed; redraw, or every half minute say how far the running jobs are."""
        changed = [job for job in jobs if self.told.get(job.number) != job.state]
        for job in changed:
            self.told[job.number] = job.state
            if not self.live and job.state not in ("waiting", "skipped"):
                self.say(self.event(job, jobs))
        now = time.monotonic()
        if now - self.drawn < (REDRAW_S if self.live else PLAIN_EVERY_S) and not (self.live and changed):
            return
        self.drawn = now
        if self.live:
            console = self.display.console
            self.display.update(self.table(jobs, console.height, console.width), refresh=True)
            return
        for job in jobs:
            if job.state == "running":
                self.say(f"job {job.number}  " + "  ".join(part for part in self.figures(job)[1:] if part))

    def event(self, job: SweepJob, jobs: Sequence[SweepJob]) -> str:
        """A plain line: `job 3 completed in 41 s  bpb 1.2345  (4 of 8)  seed=1 …`."""
        words = " ".join(differing(job, jobs))
        if job.state == "running":
            return f"job {job.number} started  {words}"
        ended = sum(other.state in ENDED for other in jobs)
        bpb = self.figures(job)[3]
        parts = [f"job {job.number} {job.state}" + (f" in {duration(job.seconds)}" if job.seconds else ""), bpb]
        return "  ".join(
            part for part in (*parts, f"({ended} of {max(self.planned, len(jobs))})", words, job.error) if part
        )

    def figures(self, job: SweepJob) -> list[str]:
        """State, step, loss, bpb and time left of a job, as texts."""
        folder = job.run.dir
        tail = self.tails.setdefault(folder, Tail(folder / "metrics.jsonl"))
        seen = tail.read() if job.state not in ("waiting", "skipped") else {}
        if job.state in SCORED:  # the last validation may be long ago
            if job.directory not in self.scores:  # a table drawn twice a second reads each result once
                self.scores[job.directory] = job.get(POST_QUANT) or float("nan")
            seen = {**seen, "val_bpb": self.scores[job.directory]}
        planned, step = (job.config.get("schedule") or {}).get("iterations"), seen.get("step")
        left = "starting" if job.state == "running" else ""  # data, model, compiling
        if left and step and (spent := seen.get("train_time_s")):
            seconds = length_of(job.config).seconds_left(step, spent)
            left = f"left {duration(seconds)}" if seconds else "finishing"
        return [
            job.state,
            "" if step is None else f"step {step}/{planned}",
            f"loss {seen['train_loss']:.4f}" if "train_loss" in seen else "",
            f"bpb {seen['val_bpb']:.4f}" if "val_bpb" in seen else "",
            left,
        ]

    def table(self, jobs: Sequence[SweepJob], height: int, width: int) -> Table:
        """The live table. Of many jobs those that run and the last that ended are shown, so that it fits a screen."""
        rank = {"running": 0, "failed": 1, "waiting": 3}
        chosen = sorted(jobs, key=lambda job: rank.get(job.state, 2))
        room = max(4, height - 8)
        table = self.rows(chosen[:room], jobs)
        blocks = len(table.layout(width).blocks)  # more than one below the other, where much is swept
        return table if blocks == 1 else self.rows(chosen[: max(1, room // blocks - 3)], jobs)

    def rows(self, shown: Sequence[SweepJob], jobs: Sequence[SweepJob]) -> Table:
        """A table of some of the jobs, by number."""
        told = Settings(jobs)
        table = Table(
            Column("job"), *told.columns(), Column("state", right=False), Column("step", drop=2),
            Column("loss", drop=3), Column("bpb"), Column("left", drop=1),
            title=", ".join(f"{n} {state}" for state, n in Counter(job.state for job in jobs).items()),
            elsewhere="a wider terminal shows them",
        )  # fmt: skip
        for job in sorted(shown, key=lambda job: job.number):
            figures = [text.split(" ", 1)[-1] for text in self.figures(job)]
            table.add_row(str(job.number), *told.of(job), *figures)
        return table


class Settings:
    """What tells the jobs of a sweep apart: a column a key, in the order of the command line, and no column goes."""

    def __init__(self, jobs: Sequence[SweepJob]) -> None:
        counts = Counter(word for job in jobs for word in set(job.overrides))
        self.words = {
            job.number: job.varied or [word for word in job.overrides if counts[word] < len(jobs)] for job in jobs
        }
        self.keys = list(dict.fromkeys(_key(word) for words in self.words.values() for word in words))

    def columns(self) -> list[Column]:
        """Headed by the last part of each key where that is unambiguous."""
        return [Column(head, name=key, shorten=True) for key, head in zip(self.keys, last_parts(self.keys))]

    def of(self, job: SweepJob) -> list[str]:
        """The job's values, a text a column; a key that was taken away is `~`."""
        words = {_key(word): "~" if word.startswith("~") else word.partition("=")[2] for word in self.words[job.number]}
        return [words.get(key, "") for key in self.keys]


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]


def differing(job: SweepJob, jobs: Sequence[SweepJob]) -> list[str]:
    """The overrides that not all jobs share."""
    return Settings(jobs).words[job.number]


def closing_table(jobs: Sequence[SweepJob], metric: str) -> Table:
    """Every job, the best by `metric` first, invalid ones behind the valid, those without it last, and apart those that
    are scored on other text or by other rules than most.

    The sliding figure stands beside the metric where there is one, and the own method's where that is another; what
    went wrong stands in notes.
    """
    runs = {job.number: job.run for job in jobs}  # each result is read once
    found = {name: [run.get(name) for run in runs.values()] for name in (SLIDING, POST_QUANT, FINAL)}
    others = [SLIDING] * any(found[SLIDING]) + [FINAL] * says_more(found)
    scores = list(dict.fromkeys([metric, *others]))
    numbers = {**dict.fromkeys(scores, ".4f"), "bytes.artifact": ",", "steps": ",", "train_time_s": ".1f"}
    first_to_go = ["steps", "train_time_s", "bytes.artifact", SLIDING, FINAL]
    drops = {
        name: 0 if name == metric or name not in first_to_go else len(first_to_go) - first_to_go.index(name)
        for name in numbers
    }
    told = Settings(jobs)
    having = [job for job in jobs if isinstance(runs[job.number].get(metric), int | float)]
    kinds = sorting([runs[job.number] for job in having], metric)
    number_of = {job.number: number for job, number in zip(having, kinds.numbers)}
    label_of = {job.number: label for job, label in zip(having, kinds.labels)} if kinds.differ else {}
    table = Table(
        Column("job"), *told.columns(), Column("state", right=False),
        *([Column(SCORED_BY, right=False, shorten=True)] if label_of else []),
        *(Column(name, drop=drops[name]) for name in numbers),
        elsewhere="golf runs DIR --columns all",
    )  # fmt: skip

    def order(job: SweepJob) -> tuple[bool, bool, int, float, int]:
        value, kind = runs[job.number].get(metric), number_of.get(job.number)
        return kind is None, not runs[job.number].valid, kind or 0, 0.0 if kind is None else float(value), job.number

    for job in sorted(jobs, key=order):
        values = [(runs[job.number].get(name), form) for name, form in numbers.items()]
        texts = [format(value, form) if isinstance(value, int | float) else "" for value, form in values]
        apart = [label_of.get(job.number, "")] if label_of else []
        table.add_row(str(job.number), *told.of(job), job.state, *apart, *texts)
    table.notes += [f"job {job.number} {job.state}: {job.error}" for job in jobs if job.error]
    return table
