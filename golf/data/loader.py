"""The training stream: which rank trains on which tokens at which step, and its prefetch; the validation stream."""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from golf.common.errors import ConfigError, DataError
from golf.data.shards import Shards

_AHEAD = 2  # steps prepared in advance


class TrainLoader:
    """Consecutive cuts of one token stream, without shuffling, the same for every number of ranks.

    A step consumes `spans` spans of local + 1 tokens, local = train_batch_tokens / spans, that do not overlap: a
    span's last token is only ever a target, its first only ever an input. With micro_steps = spans / world, rank r
    takes span m·world + r at micro-step m; fewer micro_steps concatenate a rank's consecutive spans along the batch,
    so a step's set of spans never depends on world or micro_steps.

    A background thread reads ahead (into pinned memory for cuda); the consuming stream copies without blocking.
    Raises ConfigError when the numbers do not divide.
    Source: the naive baseline record's distributed token loader.
    """

    def __init__(
        self,
        shards: Shards,
        *,
        train_batch_tokens: int,
        train_seq_len: int,
        rank: int = 0,
        world: int = 1,
        spans: int = 8,
        micro_steps: int,
        device: torch.device | str = "cpu",
    ) -> None:
        check_batch(train_batch_tokens, train_seq_len, world, spans, micro_steps)
        if not 0 <= rank < world:
            raise ConfigError(f"rank {rank} is not below the world size {world} (runtime.nproc)")
        self.shards, self.device = shards, torch.device(device)
        if self.device.type == "cuda" and self.device.index is None:
            self.device = torch.device("cuda", torch.cuda.current_device())
        self.train_seq_len, self.micro_steps, self.spans = train_seq_len, micro_steps, spans
        self.local, self.rank, self.world = train_batch_tokens // spans, rank, world
        self._mine = [index * (self.local + 1) for index in range(rank, spans, world)]  # offsets in a step
        self._position = 0
        self._waited_ms = self._waited_ms_total = 0.0
        self._thread = ThreadPoolExecutor(1, "golf-loader", initializer=self._enter_thread)
        self._pending: deque[Future[Tensor]] = deque()
        self._fill()

    def next_step(self) -> list[tuple[Tensor, Tensor]]:
        """(x, y) of each micro-step: int64 [B, train_seq_len] on the device; y is x one token later.

        Raises the reading thread's error (DataError: an id out of the vocabulary) at the step that it concerns.
        """
        began = time.perf_counter()
        batch = self._pending[0].result()
        self._waited_ms = (time.perf_counter() - began) * 1000
        self._waited_ms_total += self._waited_ms
        # Only now, so that an error or an interrupt above leaves the position where it was.
        self._pending.popleft()
        self._position += self.step_span
        self._fill()
        xs, ys = batch.to(self.device, non_blocking=True)
        return list(zip(xs, ys, strict=True))

    @property
    def step_span(self) -> int:
        """Tokens of the stream that one step consumes, over all ranks: spans · (local + 1)."""
        return self.spans * (self.local + 1)

    @property
    def position(self) -> int:
        """Tokens of the stream consumed so far, over all ranks; beyond len(shards) the stream has wrapped."""
        return self._position

    @property
    def passes(self) -> float:
        """How often the training data has been gone through."""
        return self._position / len(self.shards)

    @property
    def data_wait_ms(self) -> float:
        """Milliseconds that the last next_step waited for data."""
        return self._waited_ms

    @property
    def data_wait_ms_total(self) -> float:
        """Milliseconds that all next_step calls of this loader waited for data."""
        return self._waited_ms_total

    def state_dict(self) -> dict[str, int]:
        """Where the next step begins; what was read ahead does not count."""
        return {"position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue at a saved position. Raises DataError when it is no position."""
        position = state.get("position")
        if not isinstance(position, int) or position < 0:
            raise DataError(f"the loader's saved position is {position!r}: expected an integer of at least 0")
        self._drop()
        self._position = position
        self._fill()

    def reshape(self, train_batch_tokens: int, train_seq_len: int, micro_steps: int) -> None:
        """Steps of this shape from the next one on; the stream goes on where it is."""
        local = train_batch_tokens // self.spans
        if (local, train_seq_len, micro_steps) == (self.local, self.train_seq_len, self.micro_steps):
            return
        check_batch(train_batch_tokens, train_seq_len, self.world, self.spans, micro_steps)
        self._drop()
        self.local, self.train_seq_len, self.micro_steps = local, train_seq_len, micro_steps
        self._mine = [index * (local + 1) for index in range(self.rank, self.spans, self.world)]
        self._fill()

    def reset(self) -> None:
        """Back to the first token, as after the compile warm-up."""
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
            self._pending.pop().cancel()

    def _read_step(self, position: int) -> Tensor:
        """int64 [2, micro_steps, B, T], x then y, of the step that begins at `position`; pure, so order is free."""
        spans = np.stack([self.shards.read(position + offset, self.local + 1) for offset in self._mine])
        sequences = len(self._mine) * self.local // (self.micro_steps * self.train_seq_len)
        shape = (self.micro_steps, sequences, self.train_seq_len)
        batch = torch.empty((2, *shape), dtype=torch.int64, pin_memory=self.device.type == "cuda")
        out = batch.numpy()
        out[0], out[1] = spans[:, :-1].reshape(shape), spans[:, 1:].reshape(shape)
        return batch


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
