"""The numeric contract: which dtype every value has, and how the norm rounds.

Records differ here without saying so: the same script gives a bf16 or an fp32 residual stream, and an epsilon 65,536
times larger, depending on the torch that ran it. golf therefore spells both out and never relies on autocast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from golf.common.errors import ConfigError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Numerics:
    """One contract. `compute` is the dtype of matrix products and attention: bfloat16 on a GPU, float32 on a CPU.

    `stream`: a norm's output dtype, hence the residual stream's: that of its input ("compute", what torch 2.7–2.11 give
    under autocast) or float32 (torch 2.4). `norm_eps_low` serves bfloat16 inputs, `norm_eps` float32 ones.
    `embed`: storage dtype of the token embedding, its gradient and its Adam moments ("compute" or float32). A tied head
    multiplies by its values in the compute dtype all the same, and so a stream of `compute` begins with them; one of
    float32 begins with what is stored.
    `round_init`: matrices start at bfloat16 values when `compute` is bfloat16, as in the scripts' wholesale cast.
    """

    norm_eps: float = 2.0**-23
    norm_eps_low: float = 2.0**-23
    stream: Literal["compute", "float32"] = "compute"
    embed: Literal["compute", "float32"] = "compute"
    round_init: bool = True
    compute: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if self.norm_eps < 0 or self.norm_eps_low < 0:
            raise ConfigError(
                f"model.numerics.norm_eps={self.norm_eps}, norm_eps_low={self.norm_eps_low}: must not be negative"
            )

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of matrix products."""
        return DTYPES[self.compute]

    @property
    def embed_dtype(self) -> torch.dtype:
        """The dtype in which the token embedding is stored and updated."""
        return torch.float32 if self.embed == "float32" else self.dtype

    def norm(self, x: torch.Tensor) -> torch.Tensor:
        """RMS norm over the last axis without weights: float32 inside, the contract's dtype out (same shape)."""
        eps = self.norm_eps if x.dtype == torch.float32 else self.norm_eps_low
        wide = x.float()
        out = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        return out if self.stream == "float32" else out.to(x.dtype)
