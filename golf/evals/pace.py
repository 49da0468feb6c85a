"""While an evaluation runs: how long it will take, whether that is too long, and what to keep if it is cut short."""

from __future__ import annotations

import io
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from golf.common.bounded import read_bytes
from golf.common.errors import ConfigError, EvaluationTooLong, reason
from golf.common.files import atomic_writer
from golf.common.log import logger
from golf.common.ranks import Ranks
from golf.common.secret import is_keyed, keyed, secret_key

T = TypeVar("T")
LOOKS = 50
"""Looks at the clock in one evaluation: the first after 2 %."""
WORTH_TELLING_S = 5.0
"""Shorter evaluations are not announced."""
SURE_FROM, SURE_BY = 0.1, 1.1
"""From a tenth on, a projection a tenth over the limit is believed; otherwise only the limit itself stops the work."""
SAVE_EVERY_S = 10.0
_WORD, _SLACK = 64, 1 << 16
"""Bytes of the digest in a file, and of all of it but the losses."""


@dataclass(frozen=True)
class Tally:
    """What an evaluation has come to after `done` batches: sums [nll, targets, bytes] in float64, and seconds.

    `nll` float32 [tokens], when every token's loss is kept: NaN where nothing was scored yet.
    """

    sums: torch.Tensor
    nll: torch.Tensor | None = None
    done: int = 0
    seconds: float = 0.0


class Partial:
    """An unfinished evaluation's file, for one request on one process; removed when the evaluation is whole.

    It ends in the user's keyed digest: a figure is believed only where this user's golf has written it.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.of = 0
        self._saved = time.perf_counter()

    def load(self, tally: Tally, of: int) -> Tally:
        """Where to go on in `of` batches: what the file holds, or `tally` as it is without a file that fits."""
        self.of = of
        try:
            most = _SLACK + (0 if tally.nll is None else tally.nll.numel() * tally.nll.element_size())
            whole = read_bytes(self.path, most)
            data, word = whole[:-_WORD], whole[-_WORD:].decode("ascii")
            if not is_keyed(word, secret_key(), self.path.name.encode(), data):
                raise ValueError("another user or machine wrote it")
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                if int(file["of"]) != of:
                    raise ValueError("cut into other batches")
                if tally.nll is not None:
                    tally.nll.copy_(torch.from_numpy(file["nll"]))
                sums = torch.from_numpy(file["sums"]).to(tally.sums)
                done, seconds = int(file["done"]), float(file["seconds"])
        except FileNotFoundError:
            return tally
        except Exception as error:  # whatever a cut or foreign file makes numpy raise
            logger.warning("%s is no unfinished evaluation of yours (%s): starting anew", self.path, reason(error))
            return tally
        logger.info("resuming the evaluation that was interrupted after %.1f s", seconds)
        return Tally(sums, tally.nll, done, seconds)

    def save(self, tally: Tally, now: bool = True) -> None:
        """Write the file, whole or not at all; unless `now`, only when the last one is old."""
        if not now and time.perf_counter() - self._saved < SAVE_EVERY_S:
            return
        nll = np.zeros(0, np.float32) if tally.nll is None else tally.nll.cpu().numpy()
        held = io.BytesIO()
        np.savez(
            held, sums=tally.sums.cpu().numpy(), nll=nll, done=np.array(tally.done), of=np.array(self.of),
            seconds=np.array(tally.seconds),
        )  # fmt: skip
        try:
            word = keyed(secret_key(make=True), self.path.name.encode(), held.getvalue())
        except ConfigError as error:
            logger.warning("what was evaluated is not kept: %s", reason(error))
            return
        with atomic_writer(self.path) as file:
            file.write(held.getvalue() + word.encode())
        self._saved = time.perf_counter()

    def remove(self) -> None:
        """The evaluation is whole."""
        self.path.unlink(missing_ok=True)


class Pace:
    """Looks at the clock after fixed batches; rank 0 decides, so that all ranks stop at the same one.

    `work` is each batch's cost in any unit. Raises EvaluationTooLong on every rank.
    """

    def __init__(
        self, what: str, work: Sequence[float], ranks: Ranks, limit_s: float | None, synchronize: Callable[[], None]
    ) -> None:
        self.what, self.ranks, self.limit_s, self.synchronize = what, ranks, limit_s, synchronize
        done = np.cumsum(np.asarray(work, np.float64))
        self.fraction = done / done[-1]
        passed = np.floor(LOOKS * self.fraction + 1e-6)  # the batch that completes each fiftieth of the work
        passed[-1] = LOOKS + 1
        self.looks = (1 + np.flatnonzero(np.diff(passed, prepend=0.0))).tolist()
        self.told = False

    def due(self, done: int) -> bool:
        """Whether to look after `done` batches; the last needs no look."""
        return done in self.looks[:-1]

    def look(self, done: int, seconds: Callable[[], float]) -> None:
        """Tell the projected time once; raise when the limit would be overrun."""
        self.synchronize()
        elapsed = seconds()
        fraction = float(self.fraction[done - 1])
        projected = elapsed / fraction
        until_next = float(self.fraction[self.looks[bisect_right(self.looks, done)] - 1]) * projected
        if not self.told and self.ranks.is_main and projected >= WORTH_TELLING_S:
            limit = "" if self.limit_s is None else f", of {self.limit_s:g} s allowed"
            logger.info("%s: %.0f %% after %.1f s, about %.0f s in all%s",
                        self.what, 100 * fraction, elapsed, projected, limit)  # fmt: skip
        self.told = True
        if self.limit_s is None:
            return
        sure = fraction >= SURE_FROM and projected > SURE_BY * self.limit_s
        last = until_next > self.limit_s
        if self.ranks.broadcast_object(projected if sure or last else None) is not None:
            raise EvaluationTooLong(self.what, projected, self.limit_s, elapsed)


class Attempt:
    """An evaluation under way: what its batches have come to, its clock, and its file, if it may be cut short.

    Within the block: what is left is gone through, and each batch's sums are added. An error in the block leaves the
    file for the next attempt; without one the file is removed.
    """

    def __init__(self, tally: Tally, pace: Pace, partial: Partial | None, batches: int) -> None:
        self.tally = tally if partial is None else partial.load(tally, batches)
        self.pace, self.partial = pace, partial
        self._earlier, self._began = self.tally.seconds, time.perf_counter()

    def __enter__(self) -> Attempt:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self.partial is None:
            return
        if kind is None:
            self.partial.remove()
        elif self.tally.done:
            self.partial.save(self._settled())

    def seconds(self) -> float:
        """How long it has taken, in earlier attempts too."""
        return self._earlier + time.perf_counter() - self._began

    def left(self, batches: Sequence[T]) -> Sequence[T]:
        """The batches that no attempt has done."""
        return batches[self.tally.done :]

    def add(self, sums: torch.Tensor) -> None:
        """Count one more batch. Raises EvaluationTooLong when the limit will be overrun."""
        done = self.tally.done + 1
        self.tally = Tally(self.tally.sums + sums, self.tally.nll, done, self.seconds())
        if self.pace.due(done):
            self.pace.look(done, self.seconds)
            if self.partial is not None:
                self.partial.save(self._settled(), now=False)

    def _settled(self) -> Tally:
        """The tally with the time that its batches have taken, once the device has done them."""
        self.pace.synchronize()
        return replace(self.tally, seconds=self.seconds())
