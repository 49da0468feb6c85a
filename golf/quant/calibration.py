"""What was trained, as a quantizer is handed it: the model, and calibration batches through its one forward."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from golf.common.log import logger
from golf.common.ranks import Ranks
from golf.data.shards import Shards
from golf.nn.attend import preferred_sdpa_kernels
from golf.nn.linear import EffectiveWeights
from golf.nn.models.gpt import GPT, Losses
from golf.nn.params import ParamSpec
from golf.nn.taps import See, watched, watching


@dataclass(frozen=True)
class Trained:
    """A model as training left it, averaged where it was to be, on its device; the same on every rank.

    data: the training tokens. seed: the run's. seq_len: tokens of a window, those of training's end. border_id: the
    token that begins a document, where training kept documents apart (None: windows are read whole).
    """

    model: GPT
    data: Shards
    ranks: Ranks
    seed: int
    seq_len: int
    border_id: int | None = None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.embedding.device

    @property
    def specs(self) -> dict[str, ParamSpec]:
        """Every parameter that the artifact stores, by its state_dict name."""
        return {name: spec for name, spec in self.model.specs().items() if spec.stored}

    def batches(
        self, windows: int = 128, *, seed: int | None = None, seq_len: int | None = None,
        batch_tokens: int | None = None,
    ) -> Iterator[Tensor]:  # fmt: skip
        """Windows of training text, drawn by `seed` (None: the run's): this rank's share, ids int64 [B, seq_len].

        All ranks' shares are the same windows whatever their number. batch_tokens: of one forward (None: 65,536 on
        cuda, 8,192 on the CPU).
        """
        length = seq_len or self.seq_len
        drawn = np.random.default_rng(self.seed if seed is None else seed)
        starts = drawn.integers(0, max(1, len(self.data) - length + 1), windows)[self.ranks.rank :: self.ranks.world]
        tokens = batch_tokens or (65_536 if self.device.type == "cuda" else 8_192)
        rows = max(1, tokens // length)
        for low in range(0, len(starts), rows):
            ids = np.stack([self.data.read(int(start), length) for start in starts[low : low + rows]])
            yield torch.from_numpy(ids.astype(np.int64)).to(self.device)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Within the block the model evaluates with the weights that are now in it, uncompiled."""
        training = self.model.training
        # what is imported later than this cannot have compiled anything yet
        eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
        try:
            self.model.eval()
            EffectiveWeights(self.model).refresh()
            with eager, preferred_sdpa_kernels(self.device):
                yield
        finally:
            self.model.train(training)

    @torch.no_grad()
    def run(self, batches: Iterable[Tensor], see: See) -> None:
        """Send ids int64 [B, T] through the model; `see(name, x)` is told what each matrix multiplies: x [tokens, in]
        in the compute dtype, under the matrix's name in `specs`, once a batch and visit.

        The forward is training's own, uncompiled, in evaluation mode, with weights as they are now in the model, never
        fake-quantized; fused kernels step aside (golf.nn.taps).
        """
        with self._evaluating(), watching(self.model, see):
            for ids in batches:
                self._forward(ids)

    @torch.no_grad()
    def log_probabilities(self, ids: Tensor) -> Tensor:
        """What the weights that are now in the model predict at each of ids int64 [B, T]: float32 [B · T, V], by the
        same forward as `run`."""
        with self._evaluating():
            logits = self._forward(ids)
        assert isinstance(logits, Tensor)
        return torch.log_softmax(logits.flatten(0, 1).float(), -1)

    def _forward(self, ids: Tensor) -> Tensor | Losses:
        if self.border_id is None:
            return self.model(ids)  # type: ignore[no-any-return]
        return self.model(ids.reshape(1, -1), borders=borders_of(ids, self.border_id))  # type: ignore[no-any-return]

    def counts(self, pieces: int = 64, tokens: int = 65_536) -> Tensor:
        """How often each token occurs, int64 [V], in pieces of the training text that lie evenly over it."""
        vocab, size = self.model.shape.vocab_size, min(tokens, len(self.data))
        starts = np.unique(np.linspace(0, len(self.data) - size, pieces).astype(np.int64))
        return torch.from_numpy(sum(np.bincount(self.data.read(int(at), size), minlength=vocab) for at in starts))

    def hessians(self, batches: Iterable[Tensor]) -> dict[str, Tensor]:
        """By a matrix's name XᵀX over all ranks' batches, X [tokens, in] what it multiplies: float32 [in, in] on the
        device. (W − Ŵ) XᵀX (W − Ŵ)ᵀ then has the rounding's squared errors in its diagonal, row by row.

        A layer's visits are summed. A matrix that multiplied nothing is left out, and a line says so. The sums are the
        caller's: nothing here keeps them.
        """
        sizes = {name: size for name, (_, size) in watched(self.model).items()}
        sums = {name: torch.zeros(size, size, device=self.device) for name, size in sizes.items()}
        seen = dict.fromkeys(sums, 0)

        def add(name: str, x: Tensor) -> None:
            wide = x.float()
            sums[name].addmm_(wide.T, wide)
            seen[name] += len(x)

        self.run(batches, add)
        everywhere = self.ranks.sum(torch.tensor(list(seen.values()), device=self.device)).tolist()
        for total in sums.values():
            self.ranks.sum(total)
        unseen = [name for name, tokens in zip(sums, everywhere, strict=True) if not tokens]
        if unseen and self.ranks.is_main:
            logger.warning("no inputs were seen of %s: not calibrated", ", ".join(unseen[:4]))
        return {name: total for name, total in sums.items() if name not in unseen}


def borders_of(ids: Tensor, border_id: int) -> Tensor:
    """Where documents begin, and the last one ends, in windows [B, T] that lie in one row: int32 [S + 1]. Each window
    begins one, and each `border_id`."""
    begins = ids == border_id
    begins[:, 0] = True
    ends = torch.tensor([ids.numel()], device=ids.device)
    return torch.cat((begins.flatten().nonzero()[:, 0], ends)).int()
