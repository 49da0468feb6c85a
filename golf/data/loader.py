"""What a training step reads: the loader's promise, and the engine of golf's own, which reads ahead in a thread.

An order (golf.data.orders) says which stretches of the stream a step's spans are; the engine shares them out among
ranks and passes, so that no order can make a step depend on either.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from golf.common.errors import ConfigError, DataError
from golf.common.runtime import SPANS
from golf.data.shards import Shards

_AHEAD = 2  # steps prepared in advance
_SAMPLED = 32  # spans in which documents are counted
Ids = npt.NDArray[np.uint16]


class Batch(NamedTuple):
    """What one forward and backward reads: x and y int64 [B, T], y one token later.

    borders int32 [S], of packed rows alone (B = 1): where documents begin and the last one ends, rising from 0 to T;
    none is longer than train_seq_len, and the last border is repeated until S is one of a few numbers. None: rows are
    windows.
    """

    x: Tensor
    y: Tensor
    borders: Tensor | None = None


@dataclass(frozen=True)
class Feed:
    """What a loader is built with: the training tokens, the sizes of a step, and which worker reads.

    A step has `spans` spans of train_batch_tokens / spans tokens, which the `world` workers share; each takes its own
    in `micro_steps` passes. seed: the run's. border_id: the token that begins a document. longest: the longest
    train_seq_len of the run's phases (None: there is one). Raises ConfigError when the numbers do not divide.
    """

    shards: Shards
    train_batch_tokens: int
    train_seq_len: int
    micro_steps: int = 1
    rank: int = 0
    world: int = 1
    spans: int = SPANS
    device: torch.device | str = "cpu"
    seed: int = 0
    border_id: int | None = None
    longest: int | None = None

    def __post_init__(self) -> None:
        check_batch(self.train_batch_tokens, self.train_seq_len, self.world, self.spans, self.micro_steps)
        if not 0 <= self.rank < self.world:
            raise ConfigError(f"rank {self.rank} is not below the world size {self.world} (runtime.nproc)")

    @property
    def local(self) -> int:
        """Tokens of one span."""
        return self.train_batch_tokens // self.spans


class Loader(Protocol):
    """`loader=…`, built with `feed`, a Feed, besides the settings of its yaml; golf.data.orders has golf's own.

    Which tokens a step holds follows from the seed and from what earlier steps held: the same for every number of
    workers and passes. Whether it reads ahead is its own business. One that wants to know how far the run is has
    `at_step` (golf.common.progress.ActsOverTime). One that packs says in `reach` how many tokens a token reads on
    average; without it utilisation is that of whole windows.
    """

    @property
    def packed(self) -> bool:
        """Whether batches come with borders."""
        ...

    @property
    def micro_steps(self) -> int:
        """Passes of a step on this worker."""
        ...

    @property
    def local(self) -> int:
        """Tokens of one span, an eighth of a step."""
        ...

    @property
    def data_wait_ms(self) -> float:
        """Milliseconds that the last next_step waited for data."""
        ...

    def next_step(self) -> list[Batch]:
        """This worker's part of the next step: a batch a pass, on the device, all of one shape."""
        ...

    def reshape(self, train_batch_tokens: int, train_seq_len: int, micro_steps: int) -> None:
        """Give steps other sizes from the next one on: it begins where the last one ended."""
        ...

    def reset(self) -> None:
        """Back to the first step, in the present sizes."""
        ...

    def close(self) -> None:
        """End threads, close files; may be called twice."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where the next step begins, for any sizes and any number of workers."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken. Raises DataError when it is none of this loader's."""
        ...


class _Ready(NamedTuple):
    """A step that has been read: tokens int64 [2, micro_steps, B, T], borders int32 [micro_steps, S]."""

    tokens: Tensor
    borders: Tensor | None


class TrainLoader(ABC):
    """The engine of a loader of golf's or one's own: a subclass says which stretches a step is made of.

    Rank r takes span m·world + r at micro-step m; fewer micro_steps join a rank's consecutive spans, so a step's set of
    spans never depends on world or micro_steps. packed: documents are kept apart. A pass is then one row of its spans,
    with borders where documents begin, where stretches do, and after every train_seq_len tokens of one document.

    A background thread reads ahead (into pinned memory for cuda); the consuming stream copies without blocking.
    Raises ConfigError when documents are to be told apart and nothing marks where they begin.
    """

    def __init__(self, feed: Feed, packed: bool = False) -> None:
        if packed and feed.border_id is None:
            raise ConfigError("loader.packed=true: the tokenizer marks no beginning of documents")
        self.feed, self.packed, self.shards, self.device = feed, packed, feed.shards, torch.device(feed.device)
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())
        self._position = 0
        self._waited_ms = self._waited_ms_total = 0.0
        self._samples: dict[tuple[int, int], tuple[int, float]] = {}
        self._thread = ThreadPoolExecutor(1, "golf-loader", initializer=self._enter_thread)
        self._pending: deque[Future[_Ready]] = deque()

    @abstractmethod
    def stretches(self, position: int, index: int) -> list[tuple[int, int]]:
        """Span `index` (0 … spans − 1) of the step that begins at `position`: (start, count) for each stretch.

        Its inputs are the `count` tokens of the shards from `start` on, its targets those one later; the counts sum to
        `local`. A pure function, which the thread calls ahead of time.
        """

    @property
    def step_span(self) -> int:
        """By how much a step moves the position on."""
        return self.feed.train_batch_tokens

    @property
    def pass_span(self) -> int:
        """By how much going once through the data moves the position on."""
        return len(self.shards)

    @property
    def micro_steps(self) -> int:
        """Passes of a step on this worker."""
        return self.feed.micro_steps

    @property
    def local(self) -> int:
        """Tokens of one span."""
        return self.feed.local

    def next_step(self) -> list[Batch]:
        """The batch of each micro-step: [B, train_seq_len], or packed [1, tokens], on the device.

        Raises the reading thread's error (DataError: an id out of the vocabulary) at the step that it concerns.
        """
        self._fill()
        began = time.perf_counter()
        ready = self._pending[0].result()
        self._waited_ms = (time.perf_counter() - began) * 1000
        self._waited_ms_total += self._waited_ms
        # Only now, so that an error or an interrupt above leaves the position where it was.
        self._pending.popleft()
        self._position += self.step_span
        self._fill()
        xs, ys = ready.tokens.to(self.device, non_blocking=True)
        if ready.borders is None:
            return [Batch(x, y) for x, y in zip(xs, ys, strict=True)]
        borders = ready.borders.to(self.device, non_blocking=True)
        return [Batch(*one) for one in zip(xs, ys, borders, strict=True)]

    def reshape(self, train_batch_tokens: int, train_seq_len: int, micro_steps: int) -> None:
        """Give steps other sizes from the next one on. Raises ConfigError when they do not divide."""
        feed = replace(
            self.feed, train_batch_tokens=train_batch_tokens, train_seq_len=train_seq_len, micro_steps=micro_steps
        )
        if feed != self.feed:
            self._drop()
            self.feed = feed
        self._fill()

    @property
    def position(self) -> int:
        """Where the next step begins, in the order's own count: for `spans`, tokens of the stream consumed so far."""
        return self._position

    @property
    def passes(self) -> float:
        """How often the training data has been gone through."""
        return self._position / self.pass_span

    @property
    def data_wait_ms(self) -> float:
        """Milliseconds that the last next_step waited for data."""
        return self._waited_ms

    @property
    def data_wait_ms_total(self) -> float:
        """Milliseconds that all next_step calls of this loader waited for data."""
        return self._waited_ms_total

    @property
    def reach(self) -> float:
        """Tokens that a token's attention reads on average: half a window, or of its document in some spans."""
        return self._sampled()[1] if self.packed else self.feed.train_seq_len / 2

    def state_dict(self) -> dict[str, int]:
        """Where the next step begins; what was read ahead does not count."""
        return {"position": self._position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at a saved position. Raises DataError when it is no position."""
        position = state.get("position")
        if not isinstance(position, int) or position < 0:
            raise DataError(f"the loader's saved position is {position!r}: expected an integer of at least 0")
        self._drop()
        self._position = position
        self._fill()

    def reset(self) -> None:
        """Back to the first step, as after the compile warm-up."""
        self.load_state_dict({"position": 0})

    def close(self) -> None:
        """End the thread; may be called twice."""
        self._drop()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _enter_thread(self) -> None:
        if self.device.type == "cuda":  # pinning in a thread would otherwise open a context on GPU 0 from every rank
            torch.cuda.set_device(self.device)

    def _fill(self) -> None:
        while len(self._pending) < _AHEAD:
            position = self._position + len(self._pending) * self.step_span
            self._pending.append(self._thread.submit(self._read_step, position))

    def _drop(self) -> None:
        while self._pending:
            if not (future := self._pending.pop()).cancel():
                wait([future])  # it reads in the present sizes

    def _read_step(self, position: int) -> _Ready:
        """This worker's part of the step that begins at `position`."""
        feed = self.feed
        spans = [self._read_span(position, index) for index in range(feed.rank, feed.spans, feed.world)]
        tokens = len(spans) // feed.micro_steps * feed.local  # of a pass
        shape = (1, tokens) if self.packed else (tokens // feed.train_seq_len, feed.train_seq_len)
        batch = self._empty((2, feed.micro_steps, *shape), torch.int64)
        for out, ids in zip(batch.numpy(), zip(*((x, y) for x, y, _ in spans), strict=True), strict=True):
            out[:] = np.stack(ids).reshape(out.shape)
        return _Ready(batch, self._borders([starts for _, _, starts in spans], tokens) if self.packed else None)

    def _borders(self, starts: list[npt.NDArray[np.int64]], tokens: int) -> Tensor:
        """The borders of each pass's row of `tokens` tokens, from where documents begin in its spans."""
        each = len(starts) // self.feed.micro_steps
        moved = [one + number % each * self.local for number, one in enumerate(starts)]
        rows = [np.concatenate(moved[low : low + each]) for low in range(0, len(moved), each)]
        width = max(bucket(1 + max(map(len, rows))), self._fewest_borders())
        borders = self._empty((len(rows), width), torch.int32).fill_(tokens)
        for out, row in zip(borders.numpy(), rows, strict=True):
            out[: len(row)] = row
        return borders

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=self.device.type == "cuda")

    def _read_span(self, position: int, index: int) -> tuple[Ids, Ids, npt.NDArray[np.int64]]:
        """One span's x and y [local], and where its documents begin (packed: else nowhere)."""
        stretches = self.stretches(position, index)
        parts = [self.shards.read(start, count + 1) for start, count in stretches]
        x, y = (np.concatenate([part[which] for part in parts]) for which in (slice(None, -1), slice(1, None)))
        if len(x) != self.local:
            raise ConfigError(f"{type(self).__name__}: its stretches hold {len(x)} tokens, and a span {self.local}")
        if not self.packed:
            return x, y, np.empty(0, np.int64)
        assert self.feed.border_id is not None
        starts = np.cumsum([0, *(count for _, count in stretches[:-1])])
        return x, y, document_starts(x, starts, self.feed.border_id, self.feed.train_seq_len)

    def _fewest_borders(self) -> int:
        """How many borders every row has at least, so that nearly all have the same number: for each a forward is
        compiled."""
        feed = self.feed
        return bucket(1 + feed.spans // feed.world // feed.micro_steps * self._sampled()[0])

    def _sampled(self) -> tuple[int, float]:
        """What the documents in some spans, spread over the data, come to: how many nearly every span has at most, and
        half the mean length of a token's."""
        feed = self.feed
        key = feed.train_batch_tokens, feed.train_seq_len
        if key not in self._samples:
            steps = max(1, self.pass_span // self.step_span)
            positions = sorted({number * steps // _SAMPLED * self.step_span for number in range(_SAMPLED)})
            lengths = [np.diff(self._read_span(position, 0)[2], append=self.local) for position in positions]
            counts, every = [len(one) for one in lengths], np.concatenate(lengths).astype(np.float64)
            reach = float((every**2).sum() / every.sum() / 2)
            self._samples[key] = math.ceil(np.mean(counts) + 4 * np.std(counts)), reach
        return self._samples[key]


def bucket(count: int) -> int:
    """The power of two, at least 4, to which so many borders are filled up."""
    return max(4, 1 << (count - 1).bit_length())


def document_starts(
    x: npt.NDArray[np.integer[Any]], starts: npt.NDArray[np.int64], border_id: int, longest: int
) -> npt.NDArray[np.int64]:
    """Where documents begin in x [n]: at every border_id, at `starts` (0 among them), and again after `longest` tokens.

    Rising, without n.
    """
    firsts = np.union1d(np.flatnonzero(x == border_id), starts)
    pieces = -(-np.diff(firsts, append=len(x)) // longest)
    number = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    return np.repeat(firsts, pieces) + longest * number


def check_batch(train_batch_tokens: int, train_seq_len: int, world: int, spans: int, micro_steps: int) -> None:
    """Raise ConfigError, naming the keys, when a step cannot be cut into whole sequences for every rank."""
    if min(train_batch_tokens, train_seq_len, world, spans, micro_steps) < 1:
        raise ConfigError(
            f"train_batch_tokens={train_batch_tokens}, train_seq_len={train_seq_len}, runtime.nproc={world}, "
            f"spans={spans}, micro_steps={micro_steps}: each must be at least 1"
        )
    if train_batch_tokens % (spans * train_seq_len):
        unit = spans * train_seq_len
        near = max(unit, round(train_batch_tokens / unit) * unit)
        raise ConfigError(
            f"train_batch_tokens={train_batch_tokens} is not a multiple of spans · train_seq_len = "
            f"{spans} · {train_seq_len} = {unit} (nearest: {near})"
        )
    if spans % world:
        raise ConfigError(f"runtime.nproc={world} does not divide spans={spans} (choices: {_divisors(spans)})")
    if (spans // world) % micro_steps:
        raise ConfigError(
            f"micro_steps={micro_steps} does not divide spans / runtime.nproc = {spans} / {world} = {spans // world} "
            f"(choices: {_divisors(spans // world)})"
        )


def validation_tokens(shards: Shards, seq_len: int, max_tokens: int | None = None) -> np.ndarray:
    """The validation stream from its first token on, uint16 [N]: N − 1 targets, at most `max_tokens` when given.

    Which tail is scored is the evaluator's business. Raises DataError when there is not one sequence of `seq_len`
    inputs with its targets, and when an id is out of the vocabulary.
    """
    wanted = len(shards) if max_tokens is None else min(len(shards), max_tokens + 1)
    if wanted < seq_len + 1:
        raise DataError(
            f"the validation set has {len(shards)} tokens"
            + (f" (the first {max_tokens} targets asked for)" if max_tokens is not None else "")
            + f": one sequence of {seq_len} needs {seq_len + 1}"
        )
    return shards.read(0, wanted)


def _divisors(n: int) -> str:
    return ", ".join(str(d) for d in range(1, n + 1) if n % d == 0)
