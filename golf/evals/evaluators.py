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
from golf.evals.pace import Pace, Partial, Progress
from golf.evals.windows import Coverage, Windows, document_starts, plan_documents, plan_windows
from golf.tokenizers.byte_table import ByteTable

Method = Literal["contiguous", "sliding", "document", "ttt"]
Scorer = Callable[..., torch.Tensor]
Flops = Callable[[int, int], float]
"""FLOPs of one window, from its length and score_from."""


@dataclass(frozen=True)
class Score:
    """One evaluation: val_loss in nats per token, val_bpb in bits per byte, over `targets` tokens and `bytes` bytes.

    `flops` is the work actually done, by all ranks.
    """

    method: Method
    stride: int
    seq_len: int
    coverage: str
    val_loss: float
    val_bpb: float
    targets: int
    bytes: int
    seconds: float
    flops: float | None = None

    @property
    def speed(self) -> str:
        """Targets per second, with the TFLOP/s of the work actually done where it is known."""
        rate = f"{self.targets / max(self.seconds, 1e-9):,.0f} targets/s"
        if self.flops is None:
            return rate
        return f"{rate}, {self.flops / max(self.seconds, 1e-9) / 1e12:,.3g} TFLOP/s"

    def as_dict(self) -> dict[str, Any]:
        """Plain fields, as in result.json."""
        return asdict(self)


@dataclass(frozen=True)
class Validation:
    """What every evaluator reads: the token stream (int64, on the model's device) and the byte table.

    `bos_id` begins every document; evaluation by documents needs it.
    """

    tokens: torch.Tensor
    table: ByteTable
    bos_id: int | None = None


@dataclass(frozen=True)
class Batch:
    """This rank's windows of one forward of `size` rows; `flops` counts all ranks' work."""

    windows: Windows
    length: int
    score_from: int
    size: int
    flops: float


class Evaluator:
    """Score windows of `seq_len` tokens every `stride` (None: seq_len, contiguous).

    `documents` isolates documents: no context crosses a border, and strides begin anew in each document. Windows are
    padded on the right, where a causal model doesn't look. `batch_tokens` is the size of one forward (null: 131,072 on
    cuda, 8,192 on the CPU). Sums are float64. Every rank scores an equal share of every shape.
    Raises ConfigError for a stride outside 1 … seq_len.
    """

    def __init__(
        self, seq_len: int, stride: int | None = None, coverage: Coverage = "full", batch_tokens: int | None = None,
        documents: bool = False,
    ) -> None:  # fmt: skip
        self.seq_len, self.stride, self.coverage = seq_len, seq_len if stride is None else stride, coverage
        self.documents = documents
        if seq_len < 1:
            raise ConfigError(f"eval.seq_len={seq_len}: must be at least 1")
        if stride is not None and not 1 <= stride <= seq_len:
            raise ConfigError(f"eval.stride={stride}: must lie between 1 and the window, eval.seq_len={seq_len}")
        if batch_tokens is not None and batch_tokens < 1:
            raise ConfigError(f"eval.batch_tokens={batch_tokens}: must be positive or null")
        if documents and coverage != "full":
            raise ConfigError(f"eval.coverage={coverage}: evaluation by documents covers every target (full)")
        self.batch_tokens = batch_tokens

    @property
    def method(self) -> Method:
        """document, sliding when windows overlap, or contiguous."""
        if self.documents:
            return "document"
        return "contiguous" if self.stride == self.seq_len else "sliding"

    def contiguous(self) -> Evaluator:
        """The same evaluator of the whole stream without overlap."""
        return Evaluator(self.seq_len, None, self.coverage, self.batch_tokens)

    def plan(self, validation: Validation) -> Windows:
        """Which window scores which target. Raises ConfigError or DataError for a stream that doesn't fit."""
        tokens = len(validation.tokens)
        if not self.documents:
            return plan_windows(tokens, self.seq_len, self.stride, self.coverage)
        if validation.bos_id is None:
            raise ConfigError("eval.documents=true: the tokenizer marks no beginning of documents")
        starts = document_starts(validation.tokens.cpu().numpy(), validation.bos_id)
        return plan_documents(starts, tokens, self.seq_len, self.stride)

    @torch.no_grad()
    def evaluate(
        self, model: Scorer, validation: Validation, ranks: Ranks, fixed_shapes: bool = False, *,
        flops: Flops | None = None, limit_s: float | None = None, partial: Partial | None = None,
        nll: torch.Tensor | None = None,
    ) -> Score:  # fmt: skip
        """Score the whole stream with `model(ids, targets, reduction="none")`, the same on every rank.

        The model is given ids [B, T] and targets [B, T'] of the last T' positions; it returns their nll, [B, T'].
        `fixed_shapes` pads batches and marks T' as varying, so that a compiled model sees few shapes. `flops` tells one
        window's work. `limit_s` is how long it may take. `partial` (one process only) is loaded from and saved to.
        `nll` float32 [tokens] receives every scored token's loss.
        Raises ConfigError or DataError for a stream that cannot be scored, EvaluationTooLong for one that takes longer
        than `limit_s`.
        """
        device = validation.tokens.device
        batches = self._batches(self.plan(validation), ranks, device, flops or (lambda length, score_from: length))
        if fixed_shapes:  # compile each shape before the clock starts
            shapes = {(b.length, b.score_from, b.size): b for b in reversed(batches)}
            for batch in shapes.values():
                self._score(model, validation, batch, fixed_shapes, None)
        synchronize = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
        synchronize()
        progress = Progress(torch.zeros(3, dtype=torch.float64, device=device), nll)
        if partial is not None:
            progress = partial.load(progress)
        pace = Pace(self.method, [b.flops for b in batches], ranks, limit_s, synchronize)
        earlier, began = progress.seconds, time.perf_counter()

        def seconds() -> float:
            return earlier + time.perf_counter() - began

        try:
            for batch in batches[progress.done :]:
                added = self._score(model, validation, batch, fixed_shapes, nll)
                progress = Progress(progress.sums + added, nll, progress.done + 1, seconds())
                if pace.due(progress.done):
                    pace.look(progress.done, seconds)
                    if partial is not None:
                        partial.save(progress, now=False)
        except BaseException:
            if partial is not None and progress.done:
                partial.save(progress)
            raise
        total_nll, targets, total_bytes = (float(v) for v in ranks.sum(progress.sums).cpu())
        if total_bytes <= 0:
            raise ConfigError("the scored targets stand for no bytes: bits per byte are not defined")
        loss = total_nll / targets
        score = Score(
            self.method, self.stride, self.seq_len, self.coverage, loss, loss / math.log(2) * targets / total_bytes,
            int(targets), int(total_bytes), seconds(),
            None if flops is None else float(sum(b.flops for b in batches)),
        )  # fmt: skip
        if partial is not None:
            partial.remove()
        return score

    def _batches(self, plan: Windows, ranks: Ranks, device: torch.device, flops: Flops) -> list[Batch]:
        """This rank's batches: as many on every rank (some may be empty), in the same order."""
        tokens = self.batch_tokens or (131_072 if device.type == "cuda" else 8_192)
        batches = []
        for part, length, score_from in plan.parts(self.stride):
            size, mine = max(1, tokens // length), part.share(ranks.rank, ranks.world)
            each = flops(length, score_from)
            most = -(-len(part) // ranks.world)
            batches += [
                Batch(mine.slice(low, low + size), length, score_from, size, each * min(size, most - low) * ranks.world)
                for low in range(0, most, size)
            ]
        return batches

    def _score(
        self, model: Scorer, validation: Validation, batch: Batch, fixed_shapes: bool, nll_of: torch.Tensor | None
    ) -> torch.Tensor:
        """Sums [nll, targets, bytes] in float64 over one batch."""
        tokens, windows, score_from = validation.tokens, batch.windows, batch.score_from
        device = tokens.device
        sums = torch.zeros(3, dtype=torch.float64, device=device)
        if not len(windows):
            return sums
        start, first, stop = (torch.from_numpy(v).to(device) for v in (windows.start, windows.first, windows.stop))
        if fixed_shapes and (missing := batch.size - len(windows)):
            start = torch.cat((start, start[:1].expand(missing)))
            first, stop = (torch.cat((v, v.new_zeros(missing))) for v in (first, stop))
        offsets = torch.arange(batch.length + 1, device=device)
        indices = start[:, None] + offsets
        # A document's window may reach past the stream; a causal model scores nothing from what lies there.
        window = tokens[indices.clamp_max(len(tokens) - 1)]
        x, y = window[:, :-1], window[:, 1:]
        charged = validation.table.charge(x[:, score_from:], y[:, score_from:])
        asked = y[:, score_from:].contiguous()
        if fixed_shapes and 1 < asked.shape[1] < batch.length:
            torch._dynamo.mark_dynamic(asked, 1)  # one graph serves every stride
        nll = model(x, asked, reduction="none")
        positions = offsets[score_from:-1]
        counted = (positions >= first[:, None]) & (positions < stop[:, None])
        sums[0] = torch.where(counted, nll.double(), 0.0).sum()
        sums[1] = counted.sum()
        sums[2] = (charged * counted).sum()
        if nll_of is not None:
            nll_of[indices[:, score_from + 1 :][counted]] = nll[counted].float()
        return sums
