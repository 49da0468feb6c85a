"""Checkpoints in the course of a run: when one is due, and how it is written while training goes on."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from golf.common.errors import ConfigError, DataError, reason
from golf.common.log import logger
from golf.common.progress import Progress
from golf.train import checkpoint
from golf.train.hooks import Hook
from golf.train.state import randomness

if TYPE_CHECKING:
    from golf.common.ranks import Ranks
    from golf.train.parts import Parts
    from golf.train.trainer import Trainer

LONG_S, AUTO_S = 600.0, 300.0
"""`every: auto` writes one every AUTO_S training seconds in runs that take longer than LONG_S."""
_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?) ?(s|min|h)")


@dataclass(frozen=True)
class Checkpoints:
    """When a run's state is written, and how many of those are kept.

    every: steps, or training seconds as `90s`, `5min`, `1h`; `auto`: five minutes, in runs that take longer than ten;
    null: only when a signal ends the run. keep_last: so many of them; 0 writes none at all. Raises ConfigError.
    """

    every: int | str | None = "auto"
    keep_last: int = 2

    def __post_init__(self) -> None:
        if self.keep_last < 0:
            raise ConfigError(f"checkpoint.keep_last={self.keep_last}: must not be negative")
        every = self.every
        if isinstance(every, str):
            known = every == "auto" or _DURATION.fullmatch(every) is not None
        else:
            known = every is None or every >= 1
        if not known:
            raise ConfigError(f"checkpoint.every={every}: expected steps (500), training time (90s, 5min, 1h), auto "
                              "or null")  # fmt: skip

    @property
    def seconds(self) -> float | None:
        """Training seconds between two; None where steps are counted, or nothing is."""
        if self.every == "auto":
            return AUTO_S
        match = _DURATION.fullmatch(self.every) if isinstance(self.every, str) else None
        return None if match is None else float(match[1]) * _UNITS[match[2]]

    def taken(self, step: int, seconds: float, since_s: float) -> bool:
        """Whether one is due after so many steps and training seconds, when the last was made at `since_s`."""
        if (interval := self.seconds) is not None:
            return seconds - since_s >= interval
        return isinstance(self.every, int) and step % self.every == 0

    def regular(self, whole_s: float | None) -> bool:
        """Whether a run that takes `whole_s` training seconds in all (None: unknown yet) has any but at a signal."""
        if self.every == "auto":
            return whole_s is not None and whole_s > LONG_S
        return self.every is not None


class Saving(Hook):
    """Writes checkpoints of a run into its folder: in a thread, from a copy in the host's memory.

    It is the last of the hooks, so that a state is what all others have made of a step. `beside()` adds what else a run
    that goes on must know, as JSON types. A checkpoint that cannot be written costs the run nothing but that.
    """

    def __init__(self, settings: Checkpoints, folder: Path, beside: Callable[[], dict[str, Any]] = dict) -> None:
        self.settings, self.folder, self.beside = settings, folder, beside
        self.since_s = 0.0
        self.step: int | None = None
        """After which step the last was written."""
        self.waited_s = 0.0
        """What training has waited for checkpoints in all."""
        self._left_out: list[str] = []
        self._thread: threading.Thread | None = None

    def attach(self, trainer: Trainer) -> None:
        """Find out beforehand what of this run no file can hold."""
        self.trainer, self.since_s = trainer, 0.0
        if not self.settings.keep_last:
            return
        model, live = trainer.parts.model, trainer.live_state()
        beside, why = live.pop("beside"), dict[str, str]()
        for name, value in beside.items():
            try:
                checkpoint.pack({"beside": {name: value}}, model, copy=False)
            except checkpoint.Unsavable as error:
                why[name] = str(error)
        self._left_out = list(why)
        if why:
            logger.warning("checkpoints leave out what is built anew: %s", "; ".join(why.values()))
        try:
            checkpoint.pack(live, model, copy=False)
        except checkpoint.Unsavable as error:
            logger.warning("no checkpoints: %s", error)
            self.settings = Checkpoints(None, 0)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The time to the next one begins with the run that goes on."""
        self.since_s = self.trainer.control.elapsed_s(self.trainer.step)

    def after_step(self, progress: Progress, stop: bool) -> None:
        """Write one if it is time to, and before the end."""
        control, settings = self.trainer.control, self.settings
        if not settings.keep_last:
            return
        elapsed = control.elapsed_s(progress.step)
        left = self.trainer.timeline.length.seconds_left(progress.step, elapsed)
        regular = settings.regular(None if left is None else elapsed + left)
        if control.interrupted or (regular and (stop or settings.taken(progress.step, elapsed, self.since_s))):
            self.since_s = elapsed
            with self.trainer.clock.paused() if stop else nullcontext():
                self.save(progress.step, wait=control.interrupted)

    def save(self, step: int, wait: bool = False) -> None:
        """Copy the present state and have it written; on every rank. wait: until it lies on the disk."""
        if not self.settings.keep_last:
            return
        trainer, began = self.trainer, time.perf_counter()
        own = self._own(trainer)
        if wait:
            trainer.interrupt.heeded()  # no other rank is waited for from here on
            self.close()
        if not trainer.parts.ranks.is_main:
            return
        if self._thread is not None and self._thread.is_alive():
            logger.warning("no checkpoint after step %d: the last one is still being written", step)
            return
        live = {**trainer.live_state(), "own": own}
        live["beside"] = {name: value for name, value in live["beside"].items() if name not in self._left_out}
        try:
            packed = checkpoint.pack(live, trainer.parts.model)
            beside = self.beside()
        except (checkpoint.Unsavable, OSError, RuntimeError) as error:  # torch's own for memory that is not to be had
            logger.warning("no checkpoint after step %d: %s", step, reason(error))
            return
        about = {
            "tokens": trainer.tokens, "train_time_s": trainer.clock.elapsed_s, "world": trainer.parts.ranks.world,
            "written": datetime.now(UTC).isoformat(timespec="seconds"), "left_out": self._left_out, "beside": beside,
        }  # fmt: skip
        waited = time.perf_counter() - began
        self.waited_s += waited
        self._thread = threading.Thread(target=self._write, args=(step, packed, about, waited), name="golf-checkpoint")
        self._thread.start()
        if wait:
            self.close()

    @staticmethod
    def _own(trainer: Trainer) -> list[dict[str, Any]]:
        """What each rank has of its own, by rank, on the CPU."""
        random, rows = randomness(trainer.parts.device), trainer.rows.own_state()
        if trainer.parts.ranks.world > 1:
            shown = {name: [one.cpu() for one in values] for name, values in rows["shown"].items()}
            rows = {"summed": rows["summed"].cpu(), "shown": shown}
        return trainer.parts.ranks.gather_objects({"random": random, "rows": rows})

    def _write(self, step: int, packed: checkpoint.Packed, about: dict[str, Any], waited: float) -> None:
        began = time.perf_counter()
        try:
            size = checkpoint.write(self.folder, step, packed, about)
            checkpoint.prune(self.folder, self.settings.keep_last, step)
        except Exception as error:  # of the disk, or of safetensors, whose error has a type of its own
            logger.warning("no checkpoint after step %d: %s; training goes on, and earlier ones stay", step,
                           reason(error))  # fmt: skip
            return
        self.step = step
        logger.info("checkpoint after step %d: %.1f MB, written in %.2f s, training waited %.0f ms", step, size / 1e6,
                    time.perf_counter() - began, 1000 * waited)  # fmt: skip

    def close(self) -> None:
        """Wait for what is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None


@dataclass(frozen=True)
class Found:
    """A checkpoint to go on from."""

    path: Path
    told: dict[str, Any]

    @property
    def step(self) -> int:
        """After which it was made."""
        return int(self.told["step"])

    @property
    def reached(self) -> tuple[int, float]:
        """Steps and training seconds by then."""
        return self.step, float(self.told["train_time_s"])

    @property
    def beside(self) -> dict[str, Any]:
        """What `Saving.beside` had told."""
        return dict(self.told["beside"])

    def state(self, parts: Parts) -> dict[str, Any]:
        """The state for these parts, on this rank. Raises DataError."""
        from golf.nn.live import attributes

        state = checkpoint.read(self.path, self.told, parts.model, parts.device)
        try:
            state["own"] = checkpoint.by_rank(state["own"], parts.ranks.rank, parts.ranks.world)
            own = attributes(parts.model)
            state["beside"] |= {name: own[name] for name in self.told["left_out"] if name in own}
            share = self.told["world"] / parts.ranks.world  # the budget's clock is longer where there are fewer
            state["clock"]["elapsed_s"] *= share
            for name in ("seen_s", "recent_s", "last_step_s"):
                state["control"][name] *= share
        except (KeyError, TypeError, RuntimeError) as error:
            raise DataError(f"{self.path}: its state is not a run's: {error}") from error
        return state


def find(folder: Path, ranks: Ranks) -> tuple[Found | None, list[str]]:
    """The newest checkpoint of a run that is whole, on every rank, and on the first a word on each that is damaged."""
    chosen: Found | None = None
    damaged = []
    if ranks.is_main:
        for path, told in checkpoint.newest(folder):
            if not isinstance(told, DataError):
                chosen = Found(path, told)
                break
            damaged.append(f"{told}; the one before serves instead")
    found: Found | None = ranks.broadcast_object(chosen)
    return found, damaged
