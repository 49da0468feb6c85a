"""`sweep=halving`: many configurations at a small fraction of the budget, the best of them at the next, … up to all."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

from golf.common.errors import ConfigError
from golf.launch.sweep.job import SweepJob
from golf.launch.sweep.kinds import Space, SweepSettings, assign_folder, figure, write_best
from golf.runs.figures import Sorting
from golf.runs.states import SCORED
from golf.runs.store import sorting
from golf.runs.tables import Column, Table

FRACTION = "budget.fraction"
TRIES = 1000


@dataclass(frozen=True)
class Halving(SweepSettings):
    """Successive halving over `budget.fraction`.

    fractions: of the budget, one a rung, growing; numbers or texts such as 1/64. eta: of so many configurations one
    goes on to the next rung. configs: how many to draw at random (null: every combination); draw_seed: of the draw.
    max_jobs: more in all rungs together are refused.
    """

    fractions: list[str | int | float] = field(default_factory=lambda: ["1/64", "1/16", "1/4", 1])
    eta: int = 4
    configs: int | None = None
    draw_seed: int = 1
    max_jobs: int = 256
    forecast: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("eta", 2), ("max_jobs", 1), ("configs", 1)):
            if (value := getattr(self, name)) is not None and value < least:
                raise ConfigError(f"sweep.{name}={value}: must be at least {least}")
        rungs = self.rungs
        if not rungs or any(low >= high for low, high in pairwise(rungs)) or rungs[0] <= 0:
            raise ConfigError(f"sweep.fractions={self.fractions}: name growing parts of the budget, [1/16,1/4,1]")

    @property
    def rungs(self) -> list[float]:
        """The fractions as numbers. Raises ConfigError for a word that is none."""
        try:
            return [float(Fraction(str(one))) for one in self.fractions]
        except (ValueError, ZeroDivisionError):
            raise ConfigError(f"sweep.fractions={self.fractions}: numbers, or parts such as 1/64") from None

    def sizes(self, first: int) -> list[int]:
        """Configurations at each rung when all end well."""
        return [max(1, first // self.eta**rung) for rung in range(len(self.rungs))]

    def guide(self, space: Space) -> Rungs:
        """Draw the configurations, and compose them all at the first fraction. Raises ConfigError."""
        for job in space.probes:
            clock, seconds = job.config["schedule"]["clock"], job.config["budget"].get("train_seconds")
            if clock != "wall" or not seconds:
                raise ConfigError(
                    f"sweep=halving: a fraction shortens the clock, and schedule.clock={clock} with "
                    f"budget.train_seconds={seconds} has none\n"
                    "give it one: schedule.clock=wall budget.train_seconds=60 budget.reference_nproc=1"
                )
        if any(one.key == FRACTION for one in space.ranges):
            raise ConfigError(f"{FRACTION}: sweep.fractions says which")
        chosen = self.choose(space)
        if (count := sum(self.sizes(len(chosen)))) > self.max_jobs:
            raise ConfigError(f"a sweep of {count:,} jobs: if you mean it, sweep.max_jobs={count}")
        known = self.results(space.folder, invalid=True)
        return Rungs(self, space, chosen, known)

    def choose(self, space: Space) -> list[dict[str, str]]:
        """The configurations, as values by key. Raises ConfigError for too many to list."""
        total: float = math.prod(math.inf if one.values is None else len(one.values) for one in space.ranges)
        if self.configs is None or total <= self.configs:
            for one in space.ranges:
                if one.values is None:
                    raise ConfigError(
                        f"{one.key}={one}: there is no end of values; sweep.configs=16 draws 16 at random"
                    )
            if total > self.max_jobs:
                raise ConfigError(f"{int(total):,} configurations: sweep.configs draws some, or raise sweep.max_jobs")
            found: list[dict[str, str]] = [{}]
            for one in space.ranges:
                found = [values | {one.key: value} for values in found for value in one.values or ()]
            return found
        rng = random.Random(self.draw_seed)
        drawn: dict[tuple[str, ...], dict[str, str]] = {}
        for _ in range(TRIES * self.configs):
            values = {one.key: one.draw(rng) for one in space.ranges}
            drawn.setdefault(tuple(values.values()), values)
            if len(drawn) == self.configs:
                break
        return list(drawn.values())


class Rungs:
    """Hands the pool one rung after the other; a rung begins when the one before it has ended."""

    def __init__(self, plan: Halving, space: Space, chosen: Sequence[dict[str, str]], known: dict[str, Path]) -> None:
        self.plan, self.space, self.known = plan, space, known
        self.planned = sum(plan.sizes(len(chosen)))
        self.values: dict[int, dict[str, str]] = {}
        self.rungs: list[list[SweepJob]] = []
        self.begun = 0
        self._compose(chosen)

    def _compose(self, chosen: Sequence[dict[str, str]]) -> None:
        """The next rung's jobs. Raises ConfigError for one that cannot run."""
        fraction = {FRACTION: repr(self.plan.rungs[len(self.rungs)])}
        rung = []
        for values in chosen:
            job = self.space.compose(values | fraction, len(self.values))
            assign_folder(job, self.known, self.space.given)
            self.values[job.number] = values
            rung.append(job)
        self.rungs.append(rung)

    def more(self, jobs: Sequence[SweepJob]) -> list[SweepJob]:
        """The first rung; each later one once nothing of the one before is left to run."""
        if self.begun and any(job.state in ("waiting", "running") for job in self.rungs[-1]):
            return []
        if self.begun == len(self.rungs):
            best = self.ranked(len(self.rungs) - 1)[: self.size]
            if not best or len(self.rungs) == len(self.plan.rungs):
                return []
            self._compose([self.values[job.number] for job in best])
        self.begun += 1
        return self.rungs[-1]

    @property
    def size(self) -> int:
        """How many configurations go on from the last rung, as planned from the first."""
        return self.plan.sizes(len(self.rungs[0]))[min(len(self.rungs), len(self.plan.rungs) - 1)]

    def ranked(self, rung: int) -> list[SweepJob]:
        """A rung's jobs that have a result, the best first; those over a limit stand behind the others. Those that are
        scored on other text or by other rules than most are none of them."""
        scored, kinds = self.scored(rung)
        order = [
            (not job.run.valid, self.score(job) or 0.0, job.number, job)
            for job, kind in zip(scored, kinds.numbers) if kind == 0
        ]  # fmt: skip
        return [job for *_, job in sorted(order, key=lambda one: one[:3])]

    def scored(self, rung: int) -> tuple[list[SweepJob], Sorting]:
        """A rung's jobs that have a result, and which of them compare."""
        ended = [job for job in self.rungs[rung] if job.state in (*SCORED, "skipped")]
        having = [job for job in ended if self.score(job) is not None]
        return having, sorting([job.run for job in having], self.plan.metric)

    def score(self, job: SweepJob) -> float | None:
        """The number that is minimised."""
        return figure(job, self.plan.metric)

    def ended(self, job: SweepJob) -> None:
        """Nothing to do: a rung is looked at when all of it has ended."""

    def prune(self, job: SweepJob) -> str:
        """A job runs to the end of its fraction."""
        return ""

    def finish(self, jobs: Sequence[SweepJob]) -> None:
        """Print each rung's best, leave the ranking in best.yaml, and say how to run the best again."""
        from golf.cli.tables import print_table

        rungs = [(fraction, self.ranked(n)) for n, fraction in enumerate(self.plan.rungs[: len(self.rungs)])]
        reached = next((n for n in reversed(range(len(rungs))) if rungs[n][1]), None)
        if reached is None:
            print("no run was completed: there is no best one")
            return
        entries = [self.entry(fraction, job) for fraction, ranked in reversed(rungs) for job in ranked]
        apart = [told for n in range(len(rungs)) if (told := self.scored(n)[1].left_out(self.plan.metric))]
        content = {"minimised": [self.plan.metric], **({"left_out": apart} if apart else {}), "best": entries}
        write_best(self.space.folder / "best.yaml", content)
        print_table(self.table(rungs))
        print("\n".join(dict.fromkeys(apart)), end="\n" * bool(apart))
        print(f"{self.space.folder / 'best.yaml'}\nthe best at fraction {rungs[reached][0]:g} again:")
        print(entries[0]["command"])

    def entry(self, fraction: float, job: SweepJob) -> dict[str, Any]:
        """A run for best.yaml."""
        values = self.values[job.number]
        return {
            "fraction": fraction,
            "folder": str(job.directory),
            "figures": {self.plan.metric: self.score(job)},
            "values": dict(values),
            "command": self.space.command(self.space.words(values | {FRACTION: repr(fraction)})),
        }

    def table(self, rungs: Sequence[tuple[float, Sequence[SweepJob]]]) -> Table:
        """One row a rung: how many ran, how many go on, and its best."""
        table = Table(
            Column("fraction"), Column("runs", drop=1), Column("with a result", drop=2),
            Column(f"best {self.plan.metric}"), Column("by", right=False, prose=True),
            title="rungs", elsewhere="best.yaml has more of them",
        )  # fmt: skip
        for number, (fraction, ranked) in enumerate(rungs):
            best = ranked[0] if ranked else None
            value = None if best is None else self.score(best)
            table.add_row(
                f"{Fraction(fraction).limit_denominator(10_000)}", str(len(self.rungs[number])), str(len(ranked)),
                "" if value is None else f"{value:.4f}",
                "" if best is None else _told(self.values[best.number]),
            )  # fmt: skip
        return table


def _told(values: Mapping[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in values.items())
