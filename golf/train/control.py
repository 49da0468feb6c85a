"""When to stop: the budget's clock, the planned steps, Ctrl-C. Rank 0 decides, every rank obeys at the same step."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch

from golf.common.clock import TrainClock
from golf.common.errors import BY_SYSTEM, stopping
from golf.common.ranks import Ranks
from golf.common.runtime import Arriving, synchronize

NEAR_END, NEAR_END_LAGGING = 2, 6
"""So many intervals before the end of the clock every step begins to be looked at. Where answers lag, what is known is
up to two intervals old, and the pace may triple."""
GRACE_S = 4.0
"""How long a worker that was told to stop may be stuck, waiting for another that is gone."""

_SEEN = ("seen_step", "seen_s", "recent_s", "renewed", "last_step_s")


class Interrupt:
    """Ctrl-C and the system's signals: a KeyboardInterrupt at once, or within `deferred` a flag that the loop reads
    between steps.

    A second Ctrl-C acts at once everywhere. A worker that waits for another one on the device hears no signal: with
    `on_stuck`, a SIGTERM or a second Ctrl-C that has not been `heeded` after `patience_s` calls it with the signal and
    ends the process. (By SIGTERM torch's agent ends the workers whose neighbour died.)
    """

    def __init__(self, on_stuck: Callable[[int], None] | None = None) -> None:
        self.raised = False
        self.by: int | None = None
        """The first signal that came."""
        self.on_stuck = on_stuck
        self.patience_s = GRACE_S
        self._deferred = self._ending = False
        self._heeded = threading.Event()
        self._before: dict[int, Any] = {}
        self._wakeup: tuple[socket.socket, socket.socket] | None = None

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *stopping()):
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
        if self._ending and number in BY_SYSTEM:
            return
        again = self.raised and number == signal.SIGINT  # the system may tell it twice, in two ways
        self.raised, self.by = True, self.by or number
        if again or not self._deferred:
            raise KeyboardInterrupt

    def _watch(self, wakeup: socket.socket) -> None:
        presses = 0
        with wakeup:
            while byte := wakeup.recv(1):
                number = byte[0]
                presses += number == signal.SIGINT
                told = number == signal.SIGTERM or presses > 1
                if told and not self._heeded.wait(self.patience_s):
                    assert self.on_stuck is not None
                    try:
                        self.on_stuck(number)
                    finally:
                        os._exit(128 + number)


class Control:
    """Elapsed training seconds and the decision to stop, looked at every `interval` steps.

    Between looks the elapsed time is extrapolated at the mean pace, equally on every rank. Close to the end of the
    clock every step is looked at, so that the budget is overrun by one step at most; so are the first steps of a phase
    (`renew`), whose pace nobody knows. iterations: the planned steps, None without.

    On a GPU most looks don't wait: what rank 0 saw at one look reaches the others by the next, and no device runs dry
    while its host waits for another.
    """

    def __init__(
        self, clock: TrainClock, ranks: Ranks, interrupt: Interrupt, interval: int, train_seconds: float | None,
        bound_by_clock: bool, device: torch.device | None = None, iterations: int | None = None,
    ) -> None:  # fmt: skip
        self.clock, self.ranks, self.interrupt, self.interval = clock, ranks, interrupt, interval
        self.limit, self.iterations = train_seconds if bound_by_clock else None, iterations
        self.device = device or torch.device("cpu")
        self.lags = self.device.type == "cuda"
        """Whether the answer to a look may come with the next one."""
        self.seen_step, self.seen_s = 0, 0.0
        self.recent_s = 0.0
        """Mean seconds per step between the last two looks."""
        self.renewed = 0
        self.interrupted = False
        self.last_step_s = 0.0
        self.level = True
        """Whether the device has done what the host has queued."""
        self._began = 0.0
        self._coming: tuple[int, Arriving] | None = None

    @property
    def pace_s(self) -> float:
        """Mean seconds per step so far."""
        return self.seen_s / max(self.seen_step, 1)

    def elapsed_s(self, step: int) -> float:
        """Training seconds when `step` steps are done: looked at, or extrapolated."""
        return self.seen_s + (step - self.seen_step) * self.pace_s

    def state_dict(self) -> dict[str, float]:
        """What was seen so far."""
        return {name: getattr(self, name) for name in _SEEN}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from there: no answer is on its way."""
        for name in _SEEN:
            setattr(self, name, state[name])
        self._coming = None

    def renew(self, step: int) -> None:
        """After so many steps a phase begins: the pace may be another."""
        self.renewed = step

    def due(self, step: int) -> bool:
        """Whether to look after `step` steps."""
        return self._urgent(step) or step % self.interval == 0 or self.ends(step)

    def ends(self, step: int) -> bool:
        """Whether these are all the planned steps."""
        return self.iterations is not None and step >= self.iterations

    def waits(self, step: int) -> bool:
        """Whether what is looked at after `step` steps is answered at once."""
        return not self.lags or self._urgent(step)

    def begin(self) -> None:
        """A step begins."""
        self._began = self.clock.elapsed_s

    def end(self, step: int) -> bool:
        """`step` steps are done: look if it is time to; true means stop."""
        stop = False
        if self.due(step):
            stop = self.look(step, wait=self.ends(step)) or self.ends(step)
            self.interrupt.patience_s = GRACE_S + 4 * self.interval * self.pace_s
            self.last_step_s = self.clock.elapsed_s - self._began if self.level else self.pace_s
        self.level = self.waits(step)
        return stop

    def look(self, step: int, wait: bool = False) -> bool:
        """Read the clock and Ctrl-C on rank 0 and tell all ranks; true means stop. The last look must `wait`."""
        wait = wait or self.waits(step)
        if wait and self.limit is not None:
            synchronize(self.device)  # the clock counts what is done, not what is queued
        state = (self.clock.elapsed_s, float(self.interrupt.raised))
        if self.ranks.world == 1:
            self._take(step, state)
            return self._stop
        # filled on the device: a tensor of the host's values would be a copy that waits for the device
        parts = [torch.full((1,), value, dtype=torch.float64, device=self.device) for value in state]
        before, self._coming = self._coming, (step, Arriving(self.ranks.broadcast(torch.cat(parts))))
        if wait:
            before, self._coming = self._coming, None
        if before is not None:
            self._take(before[0], before[1].wait().tolist())
        return self._stop

    def _urgent(self, step: int) -> bool:
        """The pace is not known yet, or the end is near."""
        pace = max(self.pace_s, self.recent_s)
        ahead = step - self.seen_step + (NEAR_END_LAGGING if self.lags else NEAR_END) * self.interval
        return step - self.renewed <= 2 or (self.limit is not None and self.seen_s + ahead * pace >= self.limit)

    def _take(self, step: int, state: Sequence[float]) -> None:
        seen_s, raised = state
        if step > self.seen_step:
            self.recent_s = (seen_s - self.seen_s) / (step - self.seen_step)
        self.seen_step, self.seen_s = step, seen_s
        self.interrupted = bool(raised)

    @property
    def _stop(self) -> bool:
        return self.interrupted or (self.limit is not None and self.seen_s >= self.limit)
