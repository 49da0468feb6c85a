"""Which window scores which target: the plan behind every evaluator.

A window reads tokens [start, start + T) and predicts [start + 1, start + T]; it scores the positions from `first` on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from golf.common.errors import ConfigError, DataError

Coverage = Literal["full", "seed_s2", "seed_s3"]
SHORTEST = 64
"""Windows are not cut shorter than about this: fewer shapes to compile."""


@dataclass(frozen=True)
class Windows:
    """`start`, `first` and `stop` int64 [N]; window i scores targets start_i + first_i + 1 … start_i + stop_i.

    `stop` is below `seq_len` where a document ends inside the window.
    """

    start: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]
    stop: npt.NDArray[np.int64]
    seq_len: int

    def __len__(self) -> int:
        return len(self.start)

    @property
    def targets(self) -> int:
        """How many targets are scored in all."""
        return int((self.stop - self.first).sum())

    def share(self, rank: int, world: int) -> Windows:
        """The contiguous share of one rank."""
        return self.slice(len(self) * rank // world, len(self) * (rank + 1) // world)

    def slice(self, low: int, high: int) -> Windows:
        """The windows low … high − 1; those that exist."""
        part = slice(low, high)
        return Windows(self.start[part], self.first[part], self.stop[part], self.seq_len)

    def spans(self, device: torch.device) -> torch.Tensor:
        """start, first and stop, int64 [3, N], on a device."""
        return torch.from_numpy(np.stack((self.start, self.first, self.stop))).to(device)

    def select(self, mask: npt.NDArray[np.bool_]) -> Windows:
        """The windows where `mask` is true."""
        return Windows(self.start[mask], self.first[mask], self.stop[mask], self.seq_len)

    def late(self, stride: int) -> npt.NDArray[np.bool_]:
        """Which windows score no more than their last `stride` positions."""
        return (self.first >= self.seq_len - stride) & (stride < self.seq_len)

    def parts(self, stride: int) -> list[tuple[Windows, int, int]]:
        """Windows that can share one shape: (windows, length, score_from), the shortest first.

        `length` is the least of seq_len, seq_len / 2, seq_len / 4, … that holds what the windows score: cutting a
        causal model's window behind the last scored position changes nothing. `score_from` is seq_len − stride, or 0
        for the windows that score more than their last `stride` positions.
        """
        common, late = self.seq_len - stride, self.late(stride)
        lengths = [self.seq_len]
        while lengths[-1] > SHORTEST:
            lengths.append((lengths[-1] + 1) // 2)
        lengths.reverse()
        fits = np.searchsorted(lengths, self.stop)
        parts = []
        for number, length in enumerate(lengths):
            for mask, score_from in (((fits == number) & ~late, 0), ((fits == number) & late, common)):
                if mask.any():
                    parts.append((self.select(mask), length, score_from))
        return parts

    def packs(self, tokens: int) -> list[Windows]:
        """Neighbours that can share a row of `tokens` tokens, as many in each as fit."""
        ends, packs, low = np.cumsum(self.stop), [], 0
        while low < len(self):
            high = int(np.searchsorted(ends, tokens + (ends[low - 1] if low else 0), side="right"))
            packs.append(self.slice(low, high))
            low = high
        return packs

    def contexts(self, tokens: int) -> npt.NDArray[np.int32]:
        """How many tokens each token of the stream was predicted from, int32 [tokens]; 0: it was not scored."""
        found = np.zeros(tokens, np.int32)
        for start, first, stop in zip(self.start.tolist(), self.first.tolist(), self.stop.tolist(), strict=True):
            found[start + first + 1 : start + stop + 1] = np.arange(first + 1, stop + 1)
        return found


def plan_windows(tokens: int, seq_len: int, stride: int, coverage: Coverage = "full") -> Windows:
    """Windows of `seq_len` every `stride` over a stream of `tokens` tokens; stride = seq_len is contiguous evaluation.

    full: every target 1 … tokens − 1 exactly once: the first window scores all its positions, the later ones their last
    `stride`, and a window flush with the end scores what is left. seed_s2 and seed_s3 are the rules of two record
    scripts: the stream is cut to a multiple of seq_len, the first seq_len − stride targets are never scored, and in
    seed_s3 neither are the last `stride`.
    Raises ConfigError for an impossible stride, DataError for a stream shorter than one window.
    """
    if coverage not in get_args(Coverage):
        raise ConfigError(f"eval.coverage={coverage}: choices are {', '.join(get_args(Coverage))}")
    if not 1 <= stride <= seq_len:
        raise ConfigError(f"eval.stride={stride}: must lie between 1 and the window, eval.seq_len={seq_len}")
    targets = tokens - 1
    if targets < seq_len:
        raise DataError(
            f"the validation stream has {tokens} tokens, fewer than one window needs "
            f"(eval.seq_len + 1 = {seq_len + 1}): give more validation text or a shorter eval.seq_len"
        )
    if coverage == "full":
        start = np.arange(0, targets - seq_len + 1, stride, dtype=np.int64)
        first = np.full(len(start), seq_len - stride, dtype=np.int64)
        first[0] = 0
        left = targets - (int(start[-1]) + seq_len)
        if left:
            start = np.append(start, targets - seq_len)
            first = np.append(first, seq_len - left)
        return Windows(start, first, np.full(len(start), seq_len, np.int64), seq_len)
    usable = targets // seq_len * seq_len
    end = usable - seq_len + (1 if coverage == "seed_s2" or stride == seq_len else 0)
    start = np.arange(0, end, stride, dtype=np.int64)
    if not len(start):
        raise DataError(f"eval.coverage={coverage} scores nothing in a validation stream of {tokens} tokens")
    first, stop = (np.full(len(start), value, np.int64) for value in (seq_len - stride, seq_len))
    return Windows(start, first, stop, seq_len)


def document_starts(ids: npt.NDArray[np.integer[Any]], bos_id: int) -> npt.NDArray[np.int64]:
    """Where documents begin in a stream: at 0 and at every `bos_id` that predicts something; int64 [documents]."""
    marks = np.flatnonzero(np.asarray(ids[:-1]) == bos_id).astype(np.int64)
    return marks if len(marks) and marks[0] == 0 else np.append(np.zeros(1, np.int64), marks)


def plan_documents(starts: npt.NDArray[np.int64], tokens: int, seq_len: int, stride: int) -> Windows:
    """Windows that never cross a document's border, strided within documents longer than a window.

    `starts` are the documents' first tokens, increasing from 0. A document is charged with its own tokens but the
    first and with the next document's first, which tells that it ended: so every target 1 … tokens − 1 is scored
    exactly once, the same as by full coverage of the stream. A document that fits is one window; a longer one is
    planned as a stream of its own. Raises ConfigError for an impossible stride, DataError for an empty stream.
    """
    if not 1 <= stride <= seq_len:
        raise ConfigError(f"eval.stride={stride}: must lie between 1 and the window, eval.seq_len={seq_len}")
    if tokens < 2:
        raise DataError(f"the validation stream has {tokens} tokens: nothing to score")
    sizes = np.append(starts[1:], tokens - 1) - starts
    fits = sizes <= seq_len
    zero = np.zeros(int(fits.sum()), np.int64)
    parts = [Windows(starts[fits], zero, sizes[fits], seq_len)]
    for start, size in zip(starts[~fits].tolist(), sizes[~fits].tolist(), strict=True):
        local = plan_windows(size + 1, seq_len, stride)
        parts.append(Windows(local.start + start, local.first, local.stop, seq_len))
    columns = [np.concatenate([getattr(part, name) for part in parts]) for name in ("start", "first", "stop")]
    order = np.argsort(columns[0], kind="stable")
    return Windows(columns[0][order], columns[1][order], columns[2][order], seq_len)
