"""A large grid's jobs, composed while others run: those that show each swept value before the first starts, the rest
in the grid's order between looks at what runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from golf.common.errors import ConfigError
from golf.launch.sweep.folders import Apart
from golf.launch.sweep.job import SweepJob
from golf.launch.sweep.kinds import SweepSettings, assign_folder

FIRST = 16
"""About so many jobs of a large grid are composed before any starts: seconds."""
TELL_S = 5.0
"""How long composing may go on in silence."""


class Progress:
    """Tells now and then how many jobs are composed."""

    def __init__(self, count: int, say: Callable[[str], None]) -> None:
        self.count, self.say, self._told = count, say, time.monotonic()

    def done(self, number: int) -> None:
        """So many are."""
        if time.monotonic() - self._told >= TELL_S:
            self._told = time.monotonic()
            self.say(f"{number:,} of {self.count:,} jobs are composed and checked")


class Coming:
    """The jobs of a grid, each composed once: `ready` before the sweep starts, the others by `jobs`, as they are asked
    for.

    `axes` are the grid's, alternatives of words each; `lists` its combinations; `job` composes and checks one. Raises
    ConfigError for a mistake in one of `ready`, and where two of them would share a folder.
    """

    def __init__(
        self, axes: Sequence[Sequence[Sequence[str]]], lists: Sequence[Sequence[str]],
        job: Callable[[Sequence[str], int], SweepJob], sweep_dir: Path, plan: SweepSettings,
    ) -> None:  # fmt: skip
        self.lists, self._job = lists, job
        of_axes = [(set[str]().union(*axis), set(axis[0]).intersection(*axis)) for axis in axes]
        self._varied = {word for words, shared in of_axes for word in words - shared}
        self._sweep_dir, self._plan = sweep_dir, plan
        progress, numbers = Progress(len(lists), partial(print, flush=True)), shown(list(map(len, axes)))
        self.ready = dict[int, SweepJob]()
        for count, number in enumerate(numbers, start=1):
            self.ready[number] = self._named(job(lists[number], number))
            progress.done(count)
        apart = Apart(sweep_dir)
        for one in self.ready.values():
            apart.add(one, list(self.ready.values()))

    def jobs(self, check: Callable[[Sequence[SweepJob]], None], say: Callable[[str], None]) -> Iterator[SweepJob]:
        """All, in the grid's order. One that cannot run, by its config or by what `check` raises, comes as failed: the
        others go on."""
        plan, given, apart = self._plan, set[Path](), Apart(self._sweep_dir)
        valid, unfinished = plan.results(self._sweep_dir), plan.unfinished(self._sweep_dir)
        progress = Progress(len(self.lists), say)
        for number, words in enumerate(self.lists):
            one = self._named(SweepJob(number, list(words), {}, self._sweep_dir / str(number), seal=""))
            try:
                one = self.ready.pop(number) if number in self.ready else self._named(self._job(words, number))
                check([one])
                apart.add(one)
                if plan.skip_done:
                    assign_folder(one, valid, given, unfinished)
            except ConfigError as error:
                one.state, one.error = "failed", str(error).splitlines()[0]
            yield one
            progress.done(number + 1)
        say(f"all {len(self.lists):,} jobs are composed and checked")

    def _named(self, job: SweepJob) -> SweepJob:
        job.varied = [word for word in job.overrides if word in self._varied]
        return job


def shown(lengths: Sequence[int], most: int = FIRST) -> list[int]:
    """The numbers of those jobs of a grid, its last axis varying fastest, that have each value once beside the first of
    all others; of long axes some values from the first to the last, so that they are about `most`."""
    share = max(2, most // max(1, sum(length > 1 for length in lengths)))
    numbers, stride = {0}, 1
    for length in reversed(lengths):
        count = min(length, share)
        numbers |= {stride * round(i * (length - 1) / max(1, count - 1)) for i in range(count)}
        stride *= length
    return sorted(numbers)
