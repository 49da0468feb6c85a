"""Evaluators: bits per byte of a model over a fixed token stream."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from golf.common.errors import ConfigError
from golf.common.ranks import Ranks
from golf.evals.windows import Coverage, Windows, plan_windows
from golf.tokenizers.byte_table import ByteTable

Method = Literal["contiguous", "sliding", "document", "ttt"]
Scorer = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Score:
    """One evaluation: val_loss in nats per token, val_bpb in bits per byte, over `targets` tokens and `bytes` bytes."""

    method: Method
    stride: int
    seq_len: int
    coverage: str
    val_loss: float
    val_bpb: float
    targets: int
    bytes: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Plain fields, as in result.json."""
        return asdict(self)


@dataclass(frozen=True)
class Validation:
    """What every evaluator reads: the token stream (int64, on the model's device) and the byte table."""

    tokens: torch.Tensor
    table: ByteTable


class Evaluator:
    """Score windows of `seq_len` tokens every `stride` (None: seq_len, contiguous).

    `batch_tokens` is the size of one forward (null: 131,072 on cuda, 8,192 on the CPU). Sums are float64. Every rank
    scores a contiguous share.
    Raises ConfigError for a stride outside 1 … seq_len.
    """

    def __init__(
        self, seq_len: int, stride: int | None = None, coverage: Coverage = "full", batch_tokens: int | None = None
    ) -> None:
        self.seq_len, self.stride, self.coverage = seq_len, stride or seq_len, coverage
        if seq_len < 1:
            raise ConfigError(f"eval.seq_len={seq_len}: must be at least 1")
        if stride is not None and not 1 <= stride <= seq_len:
            raise ConfigError(f"eval.stride={stride}: must lie between 1 and the window, eval.seq_len={seq_len}")
        if batch_tokens is not None and batch_tokens < 1:
            raise ConfigError(f"eval.batch_tokens={batch_tokens}: must be positive or null")
        self.batch_tokens = batch_tokens

    @property
    def method(self) -> Method:
        """contiguous, or sliding when windows overlap."""
        return "contiguous" if self.stride == self.seq_len else "sliding"

    def contiguous(self) -> Evaluator:
        """The same evaluator without overlap."""
        return Evaluator(self.seq_len, None, self.coverage, self.batch_tokens)

    @torch.no_grad()
    def evaluate(self, model: Scorer, validation: Validation, ranks: Ranks, fixed_shapes: bool = False) -> Score:
        """Score the whole stream with `model(ids, targets, reduction="none", score_from=…)`, the same on every rank.

        `fixed_shapes` pads the last batch, so that a compiled model sees one shape.
        """
        plan = plan_windows(len(validation.tokens), self.seq_len, self.stride, self.coverage)
        mine = plan.share(ranks.rank, ranks.world)
        common = self.seq_len - self.stride
        sums = torch.zeros(3, dtype=torch.float64, device=validation.tokens.device)
        # Windows that score more than their last `stride` positions (the first one) get a forward of their own.
        parts = [(mine.select(mine.first < common), 0), (mine.select(mine.first >= common), common)]
        if fixed_shapes:  # compile each shape before the clock starts
            for part, score_from in parts:
                self._score(model, validation, part.share(0, max(len(part), 1)), score_from, fixed_shapes)
            if sums.is_cuda:
                torch.cuda.synchronize()
        began = time.perf_counter()
        for part, score_from in parts:
            sums += self._score(model, validation, part, score_from, fixed_shapes)
        total_nll, targets, total_bytes = (float(v) for v in ranks.sum(sums).cpu())
        if total_bytes <= 0:
            raise ConfigError("the scored targets stand for no bytes: bits per byte are not defined")
        loss = total_nll / targets
        return Score(
            self.method, self.stride, self.seq_len, self.coverage, loss, loss / math.log(2) * targets / total_bytes,
            int(targets), int(total_bytes), time.perf_counter() - began,
        )  # fmt: skip

    def _score(
        self, model: Scorer, validation: Validation, windows: Windows, score_from: int, fixed_shapes: bool
    ) -> torch.Tensor:
        """Sums [nll, targets, bytes] in float64 over `windows`, all scored from a common position on."""
        tokens = validation.tokens
        device = tokens.device
        size = max(1, (self.batch_tokens or (131_072 if device.type == "cuda" else 8_192)) // self.seq_len)
        offsets = torch.arange(self.seq_len + 1, device=device)
        positions = torch.arange(score_from, self.seq_len, device=device)
        start, first = torch.from_numpy(windows.start).to(device), torch.from_numpy(windows.first).to(device)
        sums = torch.zeros(3, dtype=torch.float64, device=device)
        for low in range(0, len(windows), size):
            begin, scored = start[low : low + size], first[low : low + size]
            missing = size - len(begin) if fixed_shapes else 0
            if missing:
                begin = torch.cat((begin, begin[:1].expand(missing)))
                scored = torch.cat((scored, scored.new_full((missing,), self.seq_len)))
            window = tokens[begin[:, None] + offsets]
            x, y = window[:, :-1], window[:, 1:]
            nll = model(x, y, reduction="none", score_from=score_from)
            counted = positions >= scored[:, None]
            charged = validation.table.charge(x[:, score_from:], y[:, score_from:])
            sums[0] += (nll.double() * counted).sum()
            sums[1] += counted.sum()
            sums[2] += (charged * counted).sum()
        return sums
