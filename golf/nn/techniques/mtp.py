"""MultiToken: in training, further heads predict the tokens behind the next one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from golf.common.errors import ConfigError
from golf.nn.context import Context, begins
from golf.nn.linear import Linear
from golf.nn.numerics import Numerics
from golf.nn.shape import Shape
from golf.nn.techniques.base import Technique

NO_TARGET = -100


class MultiToken(Technique):
    """Adds weight · Σ_k mean(nll of token t + 1 + k) / heads to the training loss, k = 1 … heads, logged as `mtp`.

    Head k reads norm(h + W_k h), h [B, T, D] being the normed stream, and multiplies by the model's own head. W_k
    serves training alone and is not stored. Where a document begins between t + 1 and t + k there is no such target:
    it counts as 0 in the mean, which is over all positions. A phase may change `weight`; at 0 nothing is computed.
    Raises ConfigError for settings out of range. Source: Gloeckle et al. 2024 (arXiv 2404.19737), whose trunk and
    unembedding are shared too; matrices for its layers.
    """

    site = "pre_head"
    reads = ("ids", "documents", "border_id", "targets", "to_logits")
    changes = ("weight",)

    def __init__(
        self, shape: Shape, numerics: Numerics, layer: int | None = None, heads: int = 1, weight: float = 0.2
    ) -> None:
        super().__init__(shape, layer)
        if heads < 1:
            raise ConfigError(f"technique.mtp.heads={heads}: must be at least 1")
        if weight < 0:
            raise ConfigError(f"technique.mtp.weight={weight}: must not be negative")
        self.numerics, self.weight = numerics, weight
        self.heads = nn.ModuleList(
            Linear(shape.model_dim, shape.model_dim, numerics, place="mtp", writes_stream=True, stored=False)
            for _ in range(heads)
        )

    def forward(self, h: torch.Tensor, ctx: Context) -> torch.Tensor:
        """[B, T, D] → the same."""
        if ctx.targets is None or ctx.to_logits is None or not self.weight:
            return h
        border, targets = begins(ctx), ctx.targets
        across = torch.zeros_like(border)
        for head in self.heads:
            targets = F.pad(targets[:, 1:], (0, 1), value=NO_TARGET)
            border = F.pad(border[:, 1:], (0, 1), value=True)
            across = across | border  # once a document has begun on the way, it stays so
            logits = ctx.to_logits(self.numerics.norm(h + head(h)))
            wanted = targets.masked_fill(across, NO_TARGET).flatten()
            nll = F.cross_entropy(logits.flatten(0, 1), wanted, ignore_index=NO_TARGET, reduction="sum")
            ctx.add_loss("mtp", self.weight / len(self.heads) * nll / targets.numel())
        return h
