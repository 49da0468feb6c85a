"""Position slot: how queries and keys learn where they stand."""

from __future__ import annotations

import torch
from torch import nn

from golf.common.errors import ConfigError
from golf.nn.numerics import Numerics
from golf.nn.shape import Shape


class Rope(nn.Module):
    """Rotary positions in half-split form: (a, b) → (a cos + b sin, b cos − a sin), pairs (i, i + rotated/2).

    Frequencies are base^(−2i/rotated). `dims` rotates only the first features of a head (None: all). When
    `ntk_seq_len` is above
    `ntk_from`, base grows by (ntk_seq_len / ntk_from)^(rotated / (rotated − 2)) (NTK-aware scaling, in training too).
    `round_frequencies`: frequencies take the compute dtype's precision first, as in scripts whose buffers were cast
    wholesale. Tables [max_seq_len, rotated/2] hold the compute dtype's precision. Source: RoFormer; NTK-aware scaling.
    """

    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(
        self,
        shape: Shape,
        numerics: Numerics,
        base: float = 10000.0,
        dims: int | None = None,
        ntk_seq_len: int | None = None,
        ntk_from: int = 1024,
        round_frequencies: bool = True,
    ) -> None:
        super().__init__()
        self.rotated = shape.head_dim if dims is None else dims
        if base <= 1:
            raise ConfigError(f"model.position.base={base}: must be above 1")
        if self.rotated % 2 or not 0 < self.rotated <= shape.head_dim:
            raise ConfigError(
                f"model.position.dims={dims}: must be even and at most the head size {shape.head_dim} "
                "(model.model_dim / model.num_heads)"
            )
        if ntk_seq_len is not None and ntk_seq_len > ntk_from and self.rotated > 2:
            base = base * (ntk_seq_len / ntk_from) ** (self.rotated / (self.rotated - 2))
        self.base = base
        frequencies = 1.0 / base ** (torch.arange(0, self.rotated, 2, dtype=torch.float32, device="cpu") / self.rotated)
        if round_frequencies:
            frequencies = frequencies.to(numerics.dtype).float()
        angles = torch.outer(torch.arange(shape.max_seq_len, dtype=torch.float32, device="cpu"), frequencies)
        self.register_buffer("cos", angles.cos().to(numerics.dtype), persistent=False)
        self.register_buffer("sin", angles.sin().to(numerics.dtype), persistent=False)

    def forward(self, x: torch.Tensor, start: int = 0) -> torch.Tensor:
        """Rotate x [B, T, heads, hd], whose first position is `start`, start + T ≤ max_seq_len; the dtype stays."""
        stop = start + x.shape[1]
        cos = self.cos[start:stop].to(x.dtype)[None, :, None, :]
        sin = self.sin[start:stop].to(x.dtype)[None, :, None, :]
        half = self.rotated // 2
        a, b = x[..., :half], x[..., half : self.rotated]
        turned = (a * cos + b * sin, b * cos - a * sin)
        if self.rotated < x.shape[-1]:
            return torch.cat((*turned, x[..., self.rotated :]), dim=-1)
        return torch.cat(turned, dim=-1)


class NoPosition(nn.Module):
    """Queries and keys as they are: order is known from the causal mask alone."""

    def __init__(self, shape: Shape, numerics: Numerics) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor, start: int = 0) -> torch.Tensor:
        """x [B, T, heads, hd], unchanged."""
        return x
