"""Evaluators: bits per byte of a model over a fixed token stream."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch

from golf.common.errors import ConfigError, DataError
from golf.common.log import logger
from golf.common.ranks import Ranks
from golf.common.runtime import synchronize
from golf.data.loader import validation_tokens
from golf.evals.pace import Attempt, Pace, Partial, Tally
from golf.evals.windows import Coverage, Windows, document_starts, plan_documents, plan_windows
from golf.nn.attend import preferred_sdpa_kernels
from golf.nn.models.gpt import GPT
from golf.tokenizers.byte_table import ByteTable

if TYPE_CHECKING:
    from golf.data.prepare import Prepared

Rope = Literal["trained", "extend", "ntk"]
Scorer = Callable[..., torch.Tensor]
Flops = Callable[[int, int], float]
"""FLOPs of one window, from its length and score_from."""
_compiled: WeakKeyDictionary[Scorer, set[tuple[Any, ...]]] = WeakKeyDictionary()
"""The shapes that each scorer was compiled for: compiling is told of once."""


@dataclass(frozen=True)
class Score:
    """One evaluation: val_loss in nats per token, val_bpb in bits per byte, over `targets` tokens and `bytes` bytes.

    `flops` is the work actually done, by all ranks.
    """

    method: str
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
    """What every evaluator reads: the token stream (int64, on the model's device), and what its bytes are counted by.

    `bos_id` begins every document; evaluation by documents needs it. `counted` int32, as long as the stream: the bytes
    of each token as a target where a side-car tells them; None: the byte table does. Evaluators ask `charge`.
    Raises DataError for a side-car of another length.
    """

    tokens: torch.Tensor
    table: ByteTable
    bos_id: int | None = None
    counted: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.counted is not None and len(self.counted) != len(self.tokens):
            raise DataError(f"a side-car of {len(self.counted)} counts beside {len(self.tokens)} tokens")

    @classmethod
    def of(cls, prepared: Prepared, seq_len: int, max_tokens: int | None, device: torch.device) -> Validation:
        """The stream of prepared data, as `validation_tokens` cuts it, on a device. Raises DataError as that does."""
        ids = torch.from_numpy(validation_tokens(prepared.val, seq_len, max_tokens).astype("int64"))
        counted = None
        if prepared.val_bytes is not None:
            counted = torch.from_numpy(prepared.val_bytes.read(0, len(ids)).astype("int32")).to(device)
        return cls(ids.to(device), prepared.tokenizer.byte_table(), prepared.tokenizer.bos_id, counted)

    def charge(self, at: torch.Tensor, previous: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Bytes of the targets that stand at `at` in the stream, each after `previous`: int32 of their shape."""
        return self.table.charge(previous, targets) if self.counted is None else self.counted[at]

    def charges(self) -> npt.NDArray[np.int32]:
        """Bytes of every token of the stream as a target, int32 [N]; the first is context only: 0."""
        if self.counted is None:
            return self.table.charges(self.tokens.cpu().numpy())
        counted: npt.NDArray[np.int32] = self.counted.cpu().numpy().copy()
        counted[:1] = 0
        return counted

    def part(self, start: int, length: int) -> Validation:
        """A stretch of the stream, with its bytes."""
        span = slice(start, start + length)
        return replace(self, tokens=self.tokens[span], counted=None if self.counted is None else self.counted[span])


@dataclass(frozen=True)
class Batch:
    """This rank's windows of one forward: `size` rows of `length` tokens, scored from `score_from` on.

    `packed`: one row of `length` tokens, holding at most `size` documents. `flops` counts all ranks' work. `spans`
    int64 [3, N]: the windows' start, first and stop on the device; a copy for every batch would make the GPU wait.
    """

    windows: Windows
    length: int
    score_from: int
    size: int
    flops: float
    spans: torch.Tensor
    packed: bool = False

    def rows(self, fixed: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Where in the stream every input stands, int64 [B, T], and which scored positions count, bool [B, T'].

        `fixed`: as many rows as the batch is meant for. Rows may reach past the stream: nothing counts there, and a
        causal model scores nothing from it.
        """
        start, first, stop = self.spans
        if fixed and (missing := self.size - len(self.windows)):
            start = torch.cat((start, start[:1].expand(missing)))
            first, stop = (torch.cat((v, v.new_zeros(missing))) for v in (first, stop))
        positions = torch.arange(self.length, device=self.spans.device)
        asked = positions[self.score_from :]
        return start[:, None] + positions, (asked >= first[:, None]) & (asked < stop[:, None])

    def row(self, fixed: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The same of a packed row, [1, T] both, and the documents' borders, int32.

        `fixed`: T = `length`, filled up by documents that don't count, and as many borders as the batch is meant for.
        """
        start, first, stop, device = self.windows.start, self.windows.first, self.windows.stop, self.spans.device
        borders = np.append(np.zeros(1, np.int64), np.cumsum(stop))
        total = int(borders[-1])
        if fixed:
            fill = np.append(np.arange(total, self.length, self.windows.seq_len)[1:], self.length)
            borders = np.append(borders, fill)
            borders = np.pad(borders, (0, self.size + 1 - len(borders)), constant_values=self.length)
            missing = (0, self.size - len(start))
            start, first = np.pad(start, missing), np.pad(first, missing, constant_values=self.length)
            total = self.length
        on_device = (torch.from_numpy(v).to(device) for v in (borders, start - borders[:-1], borders[:-1] + first))
        edges, shift, counts_from = on_device
        positions = torch.arange(total, device=device)
        number = torch.bucketize(positions, edges, right=True) - 1
        return (positions + shift[number])[None], (positions >= counts_from[number])[None], edges.int()


class Evaluator:
    """Score windows of `seq_len` tokens every `stride` (None: seq_len, contiguous).

    `documents` isolates documents: no context crosses a border, and strides begin anew in each document. Windows are
    padded on the right, where a causal model doesn't look; or `packed`: those that are scored whole share rows, each
    attending to itself (None: where the GPU has a kernel for it). `batch_tokens` is the size of one forward (None:
    131,072 on cuda, 8,192 on the CPU). Sums are float64. Every rank scores an equal share of every shape.
    `rope` says how a model reads windows longer than it was trained on: `extend` continues its position tables, `ntk`
    scales their base from `trained_seq_len` to `seq_len`. Raises ConfigError for settings that don't fit.
    """

    adapts: ClassVar[bool] = False
    """Whether the model's state may change while it scores; see Evaluates."""

    def __init__(
        self, seq_len: int, stride: int | None = None, coverage: Coverage = "full", batch_tokens: int | None = None,
        documents: bool = False, packed: bool | None = None, rope: Rope = "trained",
        trained_seq_len: int | None = None,
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
            raise ConfigError(
                f"eval.coverage={coverage}: evaluation by documents covers every target (eval.coverage=full)"
            )
        if packed and not documents:
            raise ConfigError("eval.packed=true: only evaluation by documents packs them (eval=document)")
        if rope == "ntk" and trained_seq_len is None:
            raise ConfigError("eval.rope=ntk: eval.trained_seq_len must say how long windows were in training")
        if trained_seq_len is not None and trained_seq_len < 1:
            raise ConfigError(f"eval.trained_seq_len={trained_seq_len}: must be at least 1")
        self.batch_tokens, self.packed, self.rope, self.trained_seq_len = batch_tokens, packed, rope, trained_seq_len

    @property
    def method(self) -> str:
        """document, sliding when windows overlap, or contiguous."""
        if self.documents:
            return "document"
        return "contiguous" if self.stride == self.seq_len else "sliding"

    def contiguous(self) -> Evaluator:
        """The same evaluator of the whole stream without overlap."""
        return Evaluator(
            self.seq_len, None, self.coverage, self.batch_tokens, rope=self.rope, trained_seq_len=self.trained_seq_len
        )

    def plan(self, validation: Validation) -> Windows:
        """Which window scores which target. Raises ConfigError or DataError for a stream that doesn't fit."""
        tokens = len(validation.tokens)
        if not self.documents:
            return plan_windows(tokens, self.seq_len, self.stride, self.coverage)
        if validation.bos_id is None:
            raise ConfigError("eval.documents=true: the tokenizer marks no beginning of documents")
        starts = document_starts(validation.tokens.cpu().numpy(), validation.bos_id)
        return plan_documents(starts, tokens, self.seq_len, self.stride)

    def score(
        self, model: GPT, forward: Scorer, validation: Validation, ranks: Ranks, fixed_shapes: bool = False, *,
        limit_s: float | None = None, partial: Partial | None = None, nll: torch.Tensor | None = None,
    ) -> Score:  # fmt: skip
        """`evaluate` a model by its `forward`, compiled or not, with the positions and kernels that the settings want;
        on a GPU, whose kernels too are built and chosen by shape, shapes are fixed either way.

        Raises what `evaluate` does, and ConfigError where positions cannot be scaled.
        """
        reach = 0 if self.rope == "trained" else self.seq_len
        scaled_from = self.trained_seq_len if self.rope == "ntk" else None
        with preferred_sdpa_kernels(validation.tokens.device), model.stretched(reach, scaled_from):
            return self.evaluate(
                forward, validation, ranks, fixed_shapes or validation.tokens.is_cuda, compiles=fixed_shapes,
                flops=model.window_flops, limit_s=limit_s, partial=partial, nll=nll, cannot_pack=model.cannot_pack,
            )  # fmt: skip

    @torch.no_grad()
    def evaluate(
        self, model: Scorer, validation: Validation, ranks: Ranks, fixed_shapes: bool = False, *,
        compiles: bool = False, flops: Flops | None = None, limit_s: float | None = None,
        partial: Partial | None = None, nll: torch.Tensor | None = None,
        cannot_pack: str | None = "the scorer takes no borders",
    ) -> Score:  # fmt: skip
        """Score the whole stream with `model(ids, targets, reduction="none")`, the same on every rank.

        Three sums are taken over all scored targets, each exactly once, in float64: their nll in nats, how many they
        are, and the bytes of text that they stand for, by the one byte table or the side-car in its place. Then
        val_loss = nll / targets, and val_bpb = nll / ln 2 / bytes: bits a byte of text, in which the tokenizer cancels
        out, since what fewer tokens save each of them costs in nats. What is scored, and with how much context, is
        `plan`'s business alone.

        The model is given ids [B, T] and targets [B, T'] of the last T' positions; it returns their nll, [B, T'].
        `fixed_shapes` pads batches, so that the model sees few shapes, and each before the clock starts; one that
        `compiles` is told that T' varies. `flops` tells one window's work. `limit_s` is how long it may take. `partial`
        (one process only) is loaded from and saved to. `nll` float32 [tokens] receives every scored token's loss.
        `cannot_pack` says why documents have to be padded; None: the model takes `borders` as well (see GPT.forward).
        Raises ConfigError or DataError for a stream that cannot be scored, EvaluationTooLong for one that takes longer
        than `limit_s`.
        """
        device = validation.tokens.device
        work = functools.cache(flops or (lambda length, score_from: length))
        batches = self._batches(
            self.plan(validation), ranks, device, work, self._packs_here(device, cannot_pack, ranks)
        )
        if fixed_shapes:
            self._rehearse(model, validation, batches, compiles)
        synchronize(device)
        pace = Pace(self.method, [b.flops for b in batches], ranks, limit_s, functools.partial(synchronize, device))
        sums = torch.zeros(3, dtype=torch.float64, device=device)
        with Attempt(Tally(sums, nll), pace, partial, len(batches)) as attempt:
            for batch in attempt.left(batches):
                attempt.add(self._sums(model, validation, batch, fixed_shapes, compiles, nll))
            total_nll, targets, total_bytes = (float(v) for v in ranks.sum(attempt.tally.sums).cpu())
        if total_bytes <= 0:
            raise ConfigError("the scored targets stand for no bytes: bits per byte are not defined")
        return Score(
            self.method, self.stride, self.seq_len, self.coverage, total_nll / targets,
            total_nll / math.log(2) / total_bytes, int(targets), int(total_bytes), attempt.seconds(),
            None if flops is None else float(sum(b.flops for b in batches)),
        )  # fmt: skip

    def _packs_here(self, device: torch.device, cannot_pack: str | None, ranks: Ranks) -> bool:
        """Whether documents share rows; a warning where they were to and cannot."""
        packed = self.documents and (device.type == "cuda" if self.packed is None else self.packed)
        if packed and cannot_pack is not None and ranks.is_main:
            logger.warning("documents are padded, not packed: %s", cannot_pack)
        return packed and cannot_pack is None

    def _rehearse(self, model: Scorer, validation: Validation, batches: list[Batch], compiles: bool) -> None:
        """Score one batch of each shape, so that nothing is compiled or built while the clock runs; compiling may take
        minutes."""
        shapes = {(b.length, b.score_from, b.size, b.packed): b for b in reversed(batches)}
        if compiles:
            known = _compiled.setdefault(model, set())
            if shapes.keys() - known:
                logger.info("%s: compiling the forward for what it scores", self.method)
            known.update(shapes)
        for batch in shapes.values():
            self._sums(model, validation, batch, True, compiles, None)

    def _batches(self, plan: Windows, ranks: Ranks, device: torch.device, flops: Flops, packed: bool) -> list[Batch]:
        """This rank's batches: as many on every rank (some may be empty), in the same order."""
        tokens = self.batch_tokens or (131_072 if device.type == "cuda" else 8_192)
        batches: list[Batch] = []
        if packed:
            late = plan.late(self.stride)
            batches = self._packs(plan.select(~late), max(tokens, self.seq_len), ranks, device, flops)
            plan = plan.select(late)
        for part, length, score_from in plan.parts(self.stride):
            size, mine = max(1, tokens // length), part.share(ranks.rank, ranks.world)
            spans = mine.spans(device)
            each = flops(length, score_from)
            most = -(-len(part) // ranks.world)
            batches += [
                Batch(
                    mine.slice(low, low + size),
                    length,
                    score_from,
                    size,
                    each * min(size, most - low) * ranks.world,
                    spans[:, low : low + size],
                )
                for low in range(0, most, size)
            ]
        return batches

    def _packs(self, plan: Windows, tokens: int, ranks: Ranks, device: torch.device, flops: Flops) -> list[Batch]:
        """Batches of windows that share rows of `tokens` tokens."""
        packs = plan.packs(tokens)
        most = max((len(pack) for pack in packs), default=0) + -(-tokens // self.seq_len)
        size = 1 << most.bit_length()  # a power of two: sweeps meet few
        batches = []
        for low in range(0, len(packs), ranks.world):
            together = packs[low : low + ranks.world]
            mine = together[ranks.rank] if ranks.rank < len(together) else plan.slice(0, 0)
            work = sum(flops(stop, 0) for pack in together for stop in pack.stop.tolist())
            batches.append(Batch(mine, tokens, 0, size, work, mine.spans(device), packed=True))
        return batches

    def _sums(
        self, model: Scorer, validation: Validation, batch: Batch, fixed_shapes: bool, compiles: bool,
        nll_of: torch.Tensor | None,
    ) -> torch.Tensor:  # fmt: skip
        """Sums [nll, targets, bytes] in float64 over one batch."""
        tokens = validation.tokens
        sums = torch.zeros(3, dtype=torch.float64, device=tokens.device)
        if not len(batch.windows):
            return sums
        if batch.packed:
            indices, counted, borders = batch.row(fixed_shapes)
        else:
            indices, counted = batch.rows(fixed_shapes)
        asked = indices[:, batch.score_from :] + 1
        at = asked.clamp(0, len(tokens) - 1)
        x, y = tokens[indices.clamp(0, len(tokens) - 1)], tokens[at]
        charged = validation.charge(at, x[:, batch.score_from :], y)
        if compiles and 1 < y.shape[1] < x.shape[1]:
            torch._dynamo.mark_dynamic(y, 1)  # one graph serves every stride
        nll = model(x, y, reduction="none", borders=borders) if batch.packed else model(x, y, reduction="none")
        sums[0] = torch.where(counted, nll.double(), 0.0).sum()
        sums[1] = counted.sum()
        sums[2] = (charged * counted).sum()
        if nll_of is not None:
            nll_of[asked[counted]] = nll[counted].float()
        return sums
