"""Clocks: one that counts training against the budget, and a stopwatch for every other phase of a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

Now = Callable[[], float]


class TrainClock:
    """Seconds of training so far, as the budget counts them: it stands still during validation and warm-up.

    `stop` calls `synchronize` first (for example `torch.cuda.synchronize`), so that work still queued on the
    device is charged to training; `start` synchronizes too, so that what came before is not. Reading
    `elapsed_s` while it runs never synchronizes: a step is host time, as in the record scripts.
    """

    def __init__(self, synchronize: Callable[[], None] | None = None, now: Now = time.perf_counter) -> None:
        self._synchronize = synchronize or (lambda: None)
        self._now = now
        self._counted = 0.0
        self._since: float | None = None

    @property
    def running(self) -> bool:
        """Whether the clock is counting."""
        return self._since is not None

    @property
    def elapsed_s(self) -> float:
        """Seconds counted so far, the present stretch included; may be read from another thread."""
        since = self._since
        return self._counted + (0.0 if since is None else self._now() - since)

    def start(self) -> None:
        """Begin or go on counting; does nothing when already running."""
        if self._since is None:
            self._synchronize()
            self._since = self._now()

    def stop(self) -> float:
        """Wait for the device, stop counting and return `elapsed_s`."""
        if self._since is not None:
            self._synchronize()
            self._counted, self._since = self.elapsed_s, None
        return self._counted

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the block's time out; the clock goes on afterwards only if it ran before."""
        was_running = self.running
        self.stop()
        try:
            yield
        finally:
            if was_running:
                self.start()

    def state_dict(self) -> dict[str, float]:
        """The seconds counted, for a checkpoint."""
        return {"elapsed_s": self.elapsed_s}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Stop, and go on from a checkpoint's seconds at the next `start`."""
        self._counted, self._since = float(state["elapsed_s"]), None


class Clocks:
    """Seconds by phase (`data`, `compile`, `warmup`, `eval`, `quantize`, …) for the run record.

    A phase entered inside another takes its time out of the outer one, so the seconds never count twice
    and sum to the time spent in phases.
    """

    def __init__(self, now: Now = time.perf_counter) -> None:
        self._now = now
        self._seconds: dict[str, float] = {}
        self._stack: list[tuple[str, float]] = []
        self._since = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Charge the block's time to `name`, which may be entered any number of times."""
        self._charge()
        self._seconds.setdefault(name, 0.0)
        self._stack.append((name, self._now()))
        try:
            yield
        finally:
            self._charge()
            self._stack.pop()

    @property
    def current(self) -> tuple[str, float] | None:
        """The innermost phase that goes on, and for how many seconds; may be asked from another thread."""
        return next(((name, self._now() - since) for name, since in self._stack[-1:]), None)

    def set(self, name: str, seconds: float) -> None:
        """Record a phase that another clock measured, such as `train`."""
        self._seconds[name] = float(seconds)

    def add(self, seconds: Mapping[str, float]) -> None:
        """Add what earlier processes of the run have spent."""
        for name, spent in seconds.items():
            self._seconds[name] = self._seconds.get(name, 0.0) + float(spent)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase so far, in the order in which the phases were first met."""
        self._charge()
        return dict(self._seconds)

    def _charge(self) -> None:
        now = self._now()
        if self._stack:
            self._seconds[self._stack[-1][0]] += now - self._since
        self._since = now
