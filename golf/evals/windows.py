"""Which window scores which target: the plan behind every evaluator.

A window reads tokens [start, start + T) and predicts [start + 1, start + T]; it scores the positions from `first` on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from golf.common.errors import ConfigError, DataError

Coverage = Literal["full", "seed_s2", "seed_s3"]


@dataclass(frozen=True)
class Windows:
    """`start` and `first` int64 [N]; window i scores targets start_i + first_i + 1 … start_i + seq_len."""

    start: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]
    seq_len: int

    def __len__(self) -> int:
        return len(self.start)

    @property
    def targets(self) -> int:
        """How many targets are scored in all."""
        return int((self.seq_len - self.first).sum())

    def share(self, rank: int, world: int) -> Windows:
        """The contiguous share of one rank."""
        part = slice(len(self) * rank // world, len(self) * (rank + 1) // world)
        return Windows(self.start[part], self.first[part], self.seq_len)

    def select(self, mask: npt.NDArray[np.bool_]) -> Windows:
        """The windows where `mask` is true."""
        return Windows(self.start[mask], self.first[mask], self.seq_len)


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
        return Windows(start, first, seq_len)
    usable = targets // seq_len * seq_len
    end = usable - seq_len + (1 if coverage == "seed_s2" or stride == seq_len else 0)
    start = np.arange(0, end, stride, dtype=np.int64)
    if not len(start):
        raise DataError(f"eval.coverage={coverage} scores nothing in a validation stream of {tokens} tokens")
    return Windows(start, np.full(len(start), seq_len - stride, dtype=np.int64), seq_len)
