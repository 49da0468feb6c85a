"""When to stop: the budget's clock, the planned steps, Ctrl-C. Rank 0 decides, every rank obeys at the same step."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from golf.common.clock import TrainClock
from golf.common.ranks import Ranks

GRACE_S = 4.0
"""How long a worker that was told to stop may be stuck, waiting for another that is gone."""


class Interrupt:
    """Ctrl-C and SIGTERM: a KeyboardInterrupt at once, or within `deferred` a flag that the loop reads between steps.

    A second one acts at once everywhere. A worker that waits for another one on the device hears no signal: with
    `on_stuck`, a SIGTERM that has not been `heeded` after `patience_s` calls it and ends the process. (That is how
    torch's agent ends the workers whose neighbour died.)
    """

    def __init__(self, on_stuck: Callable[[], None] | None = None) -> None:
        self.raised = False
        self.on_stuck = on_stuck
        self.patience_s = GRACE_S
        self._deferred = self._ending = False
        self._heeded = threading.Event()
        self._before: dict[int, Any] = {}
        self._wakeup: tuple[socket.socket, socket.socket] | None = None

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
            if self.on_stuck is not None:
                self._wakeup = socket.socketpair()
                self._wakeup[1].setblocking(False)
                signal.set_wakeup_fd(self._wakeup[1].fileno(), warn_on_full_buffer=False)
                threading.Thread(target=self._watch, args=self._wakeup[:1], name="golf-signals", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._heeded.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        if self._wakeup is not None:
            signal.set_wakeup_fd(-1)
            self._wakeup[1].close()  # ends the thread
            self._wakeup = None

    def heeded(self) -> None:
        """The worker is stopping: it is not stuck."""
        self._heeded.set()

    def ending(self) -> None:
        """The worker ends by itself and writes its record: another SIGTERM is of no use."""
        self._ending = True
        self._heeded.set()

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within the block the first signal only raises the flag."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._ending and number == signal.SIGTERM:
            return
        again, self.raised = self.raised, True
        if again or not self._deferred:
            raise KeyboardInterrupt

    def _watch(self, wakeup: socket.socket) -> None:
        with wakeup:
            while byte := wakeup.recv(1):
                if byte[0] == signal.SIGTERM and not self._heeded.wait(self.patience_s):
                    assert self.on_stuck is not None
                    try:
                        self.on_stuck()
                    finally:
                        os._exit(128 + signal.SIGTERM)


class Control:
    """Elapsed training seconds and the decision to stop, looked at every `interval` steps.

    Between looks the elapsed time is extrapolated at the mean pace, equally on every rank. Close to the end of the
    clock every step is looked at, so that the budget is overrun by one step at most.
    """

    def __init__(
        self, clock: TrainClock, ranks: Ranks, interrupt: Interrupt, interval: int, train_seconds: float | None,
        bound_by_clock: bool,
    ) -> None:  # fmt: skip
        self.clock, self.ranks, self.interrupt, self.interval = clock, ranks, interrupt, interval
        self.limit = train_seconds if bound_by_clock else None
        self.seen_step, self.seen_s = 0, 0.0
        self.interrupted = False

    @property
    def pace_s(self) -> float:
        """Mean seconds per step so far."""
        return self.seen_s / max(self.seen_step, 1)

    def elapsed_s(self, step: int) -> float:
        """Training seconds when `step` steps are done: looked at, or extrapolated."""
        return self.seen_s + (step - self.seen_step) * self.pace_s

    def due(self, step: int) -> bool:
        """Whether to look after `step` steps."""
        near_end = self.limit is not None and self.elapsed_s(step) + 2 * self.interval * self.pace_s >= self.limit
        return near_end or step <= 2 or step % self.interval == 0

    def look(self, step: int) -> bool:
        """Read the clock and Ctrl-C on rank 0 and tell all ranks; true means stop."""
        state = (self.clock.elapsed_s, self.interrupt.raised)
        self.seen_s, self.interrupted = self.ranks.broadcast_object(state)
        self.seen_step = step
        return self.interrupted or (self.limit is not None and self.seen_s >= self.limit)
