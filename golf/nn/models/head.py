"""Head slot: from the final norm to logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from golf.common.errors import ConfigError
from golf.nn.numerics import Numerics
from golf.nn.params import declare
from golf.nn.shape import Shape
from golf.nn.table import Table


class Head(nn.Module):
    """logits = c·tanh(z/c), z = h Wᵀ, with W the token embedding (`tied`) or a matrix of its own that starts at zero.

    `softcap` None leaves z as it is. Logits are float32. Source: Gemma 2 (softcap).
    """

    def __init__(self, shape: Shape, numerics: Numerics, tied: bool = True, softcap: float | None = 30.0) -> None:
        super().__init__()
        if softcap is not None and softcap <= 0:
            raise ConfigError(f"model.head.softcap={softcap}: must be positive or null")
        self.tied, self.softcap, self.dtype = tied, softcap, numerics.dtype
        self.weight: nn.Parameter | None = None
        self.table: Table | None = None
        if not tied:
            declare(self, "weight", torch.zeros(shape.vocab_size, shape.model_dim), role="head", place="head")
            self.table = Table(self, "weight", numerics.dtype, cast=False)

    def forward(self, h: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """h [B, T, D], embedding [V, D] → logits [B, T, V], float32."""
        return self.capped(F.linear(h.to(self.dtype), self.matrix(embedding).to(self.dtype)).float())

    def matrix(self, embedding: torch.Tensor) -> torch.Tensor:
        """W [V, D]: as it is stored, or as training rounds it."""
        if self.weight is None:
            return embedding
        made = None if self.table is None else self.table.effective
        return self.weight if made is None else made

    def capped(self, z: torch.Tensor) -> torch.Tensor:
        """Float32 z, any shape → logits."""
        return z if self.softcap is None else self.softcap * torch.tanh(z / self.softcap)


class AsymmetricHead(Head):
    """A Head with another cap for negative z: logits = c₊·tanh(z/c₊) where z > 0, else c₋·tanh(z/c₋).

    c₊ starts at `softcap`, c₋ at `softcap_negative`. learned: each is c·exp(θ/c), whose θ starts at zero and is about
    what the cap has moved by; weight decay draws it back to where it started. Source: PR 1923.
    """

    shift: nn.Parameter | None

    def __init__(
        self, shape: Shape, numerics: Numerics, tied: bool = True, softcap: float = 30.0,
        softcap_negative: float = 30.0, learned: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(shape, numerics, tied, softcap)
        if softcap_negative <= 0:
            raise ConfigError(f"model.head.softcap_negative={softcap_negative}: must be positive")
        self.softcaps = (softcap, softcap_negative)
        self.shift = None
        if learned:
            declare(self, "shift", torch.zeros(2), role="scalar", place="head.softcap")

    def capped(self, z: torch.Tensor) -> torch.Tensor:
        """Float32 z, any shape → logits."""
        above, below = self.caps()
        cap = torch.where(z > 0, above, below)
        return cap * torch.tanh(z / cap)

    def caps(self) -> tuple[torch.Tensor, torch.Tensor] | tuple[float, float]:
        """c₊ and c₋."""
        above, below = self.softcaps
        if self.shift is None:
            return above, below
        return above * torch.exp(self.shift[0] / above), below * torch.exp(self.shift[1] / below)
