"""The orders in which golf reads the training tokens: as they come, or windows of them shuffled."""

from __future__ import annotations

import functools
import hashlib

from golf.common.errors import ConfigError, DataError
from golf.common.seeding import seed_of
from golf.data.loader import Feed, TrainLoader

_ROUNDS = 6
_WORD = (1 << 64) - 1


class Spans(TrainLoader):
    """Consecutive cuts of the token stream, which begins anew at its end.

    The spans of a step, local + 1 tokens each, do not overlap: a span's last token is only ever a target, its first
    only ever an input. Source: the naive baseline record's distributed token loader.
    """

    @property
    def step_span(self) -> int:
        """Tokens of the stream that one step consumes, over all ranks: spans · (local + 1)."""
        return self.feed.spans * (self.local + 1)

    def stretches(self, position: int, index: int) -> list[tuple[int, int]]:
        """One, `index` spans behind the position."""
        return [(position + index * (self.local + 1), self.local)]


class Shuffled(TrainLoader):
    """Windows of consecutive tokens in a random order, each once a pass; every pass has another order and other cuts.

    `window`: targets of a window (None: the longest train_seq_len). The order is drawn from the seed and computed as it
    is needed, so that 10^10 tokens take no memory. A step goes on in the window in which the last one ended; what
    sequences it has begin where windows do, but for the last, which joins what is left at both ends.
    Raises ConfigError for a window below 1, DataError for one that is longer than the data.
    Source: Parameter Golf's shuffled sequence loader (April 2026); passes by a Feistel network are golf's.
    """

    def __init__(self, feed: Feed, packed: bool = False, window: int | None = None) -> None:
        super().__init__(feed, packed)
        self.window = (feed.longest or feed.train_seq_len) if window is None else window
        if self.window < 1:
            raise ConfigError(f"loader.window={window}: must be at least 1, or null for the longest sequence")
        self.windows = (len(self.shards) - 1) // self.window
        if self.windows < 1:
            raise DataError(f"loader.window={self.window}: the training data has {len(self.shards)} tokens; one window "
                            f"and its last target need {self.window + 1}")  # fmt: skip
        self._order_of = functools.lru_cache(2)(self._drawn)

    @property
    def pass_span(self) -> int:
        """Targets of all windows: what one pass reads."""
        return self.windows * self.window

    def stretches(self, position: int, index: int) -> list[tuple[int, int]]:
        """The windows, whole and cut, that make up the span.

        The step's targets lie in a ring that is cut up from the first window on which begins in it.
        """
        at, left, found = -position % self.window + index * self.local, self.local, []
        while left:
            offset = at % self.step_span
            window, inside = divmod(position + offset, self.window)
            count = min(left, self.window - inside, self.step_span - offset)
            found.append((self._start(window) + inside, count))
            at, left = at + count, left - count
        return found

    def _start(self, window: int) -> int:
        """Where in the stream the window begins that the run reads as its number `window`, over all passes."""
        pass_, number = divmod(window, self.windows)
        first, order = self._order_of(pass_)
        return (first + order(number) * self.window) % len(self.shards)

    def _drawn(self, pass_: int) -> tuple[int, Permutation]:
        """Where the first window of a pass begins, and the order of its windows."""
        seed = seed_of(self.feed.seed, f"loader.pass.{pass_}")
        return seed % len(self.shards), Permutation(self.windows, seed)


class Permutation:
    """A pseudo-random order of 0 … size − 1 that is computed, never stored: `order(i)` is what stands at place i.

    A Feistel network over the next power of four; what falls outside goes through again until it is inside.
    Source: Luby and Rackoff 1988; cycle walking: Black and Rogaway 2002.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.half = max(1, ((size - 1).bit_length() + 1) // 2)
        drawn = hashlib.blake2b(seed.to_bytes(8, "little"), digest_size=8 * _ROUNDS).digest()
        self.keys = [int.from_bytes(drawn[i : i + 8], "little") for i in range(0, len(drawn), 8)]

    def __call__(self, index: int) -> int:
        """What stands at place `index` of 0 … size − 1."""
        mask = (1 << self.half) - 1
        while True:
            left, right = index >> self.half, index & mask
            for key in self.keys:
                left, right = right, left ^ (_mixed(right ^ key) & mask)
            index = left << self.half | right
            if index < self.size:
                return index


def _mixed(word: int) -> int:
    """64 bits of which each depends on all of `word`'s (splitmix64's finalizer)."""
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & _WORD
    word = (word ^ word >> 27) * 0x94D049BB133111EB & _WORD
    return word ^ word >> 31
