"""Position slot: how queries and keys learn where they stand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
        self.base, self.dtype, self.round_frequencies = base, numerics.dtype, round_frequencies
        if ntk_seq_len is not None:
            self.base = self.ntk_base(ntk_seq_len, ntk_from)
        cos, sin = self.tables(shape.max_seq_len, self.base)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def ntk_base(self, seq_len: int, ntk_from: int) -> float:
        """The base for windows of `seq_len` in a model whose base suits windows of `ntk_from`."""
        if seq_len <= ntk_from or self.rotated <= 2:
            return self.base
        return float(self.base * (seq_len / ntk_from) ** (self.rotated / (self.rotated - 2)))

    def tables(self, seq_len: int, base: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of positions 0 … seq_len − 1, [seq_len, rotated/2] each, on the CPU."""
        steps = torch.arange(0, self.rotated, 2, dtype=torch.float32, device="cpu")
        frequencies = 1.0 / base ** (steps / self.rotated)
        if self.round_frequencies:
            frequencies = frequencies.to(self.dtype).float()
        angles = torch.outer(torch.arange(seq_len, dtype=torch.float32, device="cpu"), frequencies)
        return angles.cos().to(self.dtype), angles.sin().to(self.dtype)

    @contextmanager
    def stretched(self, seq_len: int, ntk_from: int | None = None) -> Iterator[None]:
        """Within the block the tables reach `seq_len`, with frequencies as trained, or NTK-scaled from `ntk_from`."""
        own = self.cos, self.sin
        base = self.base if ntk_from is None else self.ntk_base(seq_len, ntk_from)
        if base != self.base or seq_len > len(self.cos):
            self.cos, self.sin = (t.to(self.cos.device) for t in self.tables(max(seq_len, len(self.cos)), base))
        try:
            yield
        finally:
            self.cos, self.sin = own

    def forward(self, x: torch.Tensor, start: int = 0, places: torch.Tensor | None = None) -> torch.Tensor:
        """Rotate x [B, T, heads, hd]; the dtype stays.

        Its positions are `start`, start + 1, …, or `places` [T], all within the tables.
        """
        at = slice(start, start + x.shape[1]) if places is None else places
        cos = self.cos[at].to(x.dtype)[None, :, None, :]
        sin = self.sin[at].to(x.dtype)[None, :, None, :]
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

    @contextmanager
    def stretched(self, seq_len: int, ntk_from: int | None = None) -> Iterator[None]:
        """Raises ConfigError for NTK scaling, which has nothing to scale here."""
        if ntk_from is not None:
            raise ConfigError("eval.rope=ntk: the model has no rotary positions (model/position=nope)")
        yield

    def forward(self, x: torch.Tensor, start: int = 0, places: torch.Tensor | None = None) -> torch.Tensor:
        """x [B, T, heads, hd], unchanged."""
        return x
