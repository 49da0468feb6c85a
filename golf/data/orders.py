"""The orders in which golf reads the training tokens: as they come, or windows of them shuffled, or at a stride."""

from __future__ import annotations

import functools
import hashlib
import math
from typing import Protocol

import numpy as np

from golf.common.errors import ConfigError, DataError
from golf.common.seeding import seed_of
from golf.data.loader import Feed, TrainLoader

_ROUNDS = 6
_GOLDEN = 0.6180339887498949


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
        at, left = -position % self.window + index * self.local, self.local
        windows, cuts = [], []
        while left:
            offset = at % self.step_span
            window, inside = divmod(position + offset, self.window)
            count = min(left, self.window - inside, self.step_span - offset)
            windows.append(window)
            cuts.append((inside, count))
            at, left = at + count, left - count
        starts = self._starts(np.array(windows, np.uint64)).tolist()
        return [(start + inside, count) for start, (inside, count) in zip(starts, cuts, strict=True)]

    def _starts(self, windows: np.ndarray) -> np.ndarray:
        """Where in the stream the windows begin that the run reads as its numbers `windows`, over all passes."""
        passes, numbers = np.divmod(windows, np.uint64(self.windows))
        starts = np.empty_like(windows)
        for pass_ in np.unique(passes).tolist():
            first, order = self._order_of(pass_)
            of_pass = passes == pass_
            placed = order.many(numbers[of_pass]) * np.uint64(self.window) + np.uint64(first)
            starts[of_pass] = placed % np.uint64(len(self.shards))
        return starts

    def _drawn(self, pass_: int) -> tuple[int, Order]:
        """Where the first window of a pass begins, and the order of its windows."""
        seed = seed_of(self.feed.seed, f"loader.pass.{pass_}")
        return seed % len(self.shards), Permutation(self.windows, seed)


class Coprime(Shuffled):
    """Windows at a fixed stride, each once a pass, so that any few that follow each other lie evenly over the data.

    stride: the step from one window to the next, as a share of all windows; the next number without a divisor in common
    with theirs is taken. At the golden section, the default, no few windows come to lie close together. Every pass
    begins elsewhere and has other cuts, drawn from the seed. The rest is as with Shuffled. Raises ConfigError for a
    stride that is not between 0 and 1, and as Shuffled does.
    Source: Parameter Golf PR 726, which strides within shards that it draws; one stride over all of them is golf's.
    """

    def __init__(self, feed: Feed, packed: bool = False, window: int | None = None, stride: float = _GOLDEN) -> None:
        if not 0 < stride < 1:
            raise ConfigError(f"loader.stride={stride}: between 0 and 1, a share of the windows")
        super().__init__(feed, packed, window)
        self.stride = max(1, round(stride * self.windows))
        while math.gcd(self.stride, self.windows) > 1:
            self.stride += 1

    def _drawn(self, pass_: int) -> tuple[int, Order]:
        return super()._drawn(pass_)[0], Stride(self.windows, self.stride)


class Order(Protocol):
    """The numbers below some size, each once."""

    def many(self, indices: np.ndarray) -> np.ndarray:
        """What stands at each of the places, uint64."""
        ...


class Stride:
    """0, stride, 2 · stride … modulo `size`, below 2⁴⁰: each number once, as the two have no divisor in common."""

    def __init__(self, size: int, stride: int) -> None:
        self.size, self.stride = np.uint64(size), np.uint64(stride % size)

    def many(self, indices: np.ndarray) -> np.ndarray:
        """What stands at each of the places, uint64."""
        high, low = np.divmod(indices.astype(np.uint64), np.uint64(1 << 16))  # in two steps, which 64 bits hold
        wide = high * self.stride % self.size * np.uint64(1 << 16)
        return np.asarray((wide + low * self.stride) % self.size)


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
        return int(self.many(np.array([index], np.uint64))[0])

    def many(self, indices: np.ndarray) -> np.ndarray:
        """What stands at each of the places, uint64."""
        half, mask = np.uint64(self.half), np.uint64((1 << self.half) - 1)
        placed = indices.astype(np.uint64)
        outside = np.ones(len(placed), bool)
        while outside.any():
            left, right = placed[outside] >> half, placed[outside] & mask
            for key in self.keys:
                left, right = right, left ^ (_mixed(right ^ np.uint64(key)) & mask)
            placed[outside] = left << half | right
            outside = placed >= self.size
        return placed


def _mixed(words: np.ndarray) -> np.ndarray:
    """64 bits of which each depends on all of a word's (splitmix64's finalizer)."""
    words = (words ^ words >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ words >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return words ^ words >> np.uint64(31)
