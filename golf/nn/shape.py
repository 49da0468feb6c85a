"""The sizes of a model, checked once and handed to every part of it."""

from __future__ import annotations

from dataclasses import dataclass

from golf.common.errors import ConfigError


@dataclass(frozen=True)
class Shape:
    """Model sizes: V vocab_size, D model_dim, H num_heads, Hkv num_kv_heads, hd head_dim.

    Raises ConfigError for sizes that cannot be built.
    """

    vocab_size: int
    model_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    mlp_mult: float
    max_seq_len: int

    def __post_init__(self) -> None:
        for key in ("vocab_size", "model_dim", "num_layers", "num_heads", "num_kv_heads", "mlp_mult", "max_seq_len"):
            if getattr(self, key) <= 0:
                raise ConfigError(f"model.{key}={getattr(self, key)}: must be positive")
        if self.model_dim % self.num_heads:
            raise ConfigError(
                f"model.model_dim={self.model_dim} does not divide into model.num_heads={self.num_heads} heads"
            )
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"model.num_heads={self.num_heads} is not a multiple of model.num_kv_heads={self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ConfigError(
                f"model.model_dim={self.model_dim} over model.num_heads={self.num_heads} "
                f"gives heads of {self.head_dim}: rotary positions need an even size"
            )

    @property
    def head_dim(self) -> int:
        """hd, features of one head."""
        return self.model_dim // self.num_heads

    @property
    def kv_dim(self) -> int:
        """Hkv · hd, features of all key heads."""
        return self.num_kv_heads * self.head_dim

    @property
    def mlp_dim(self) -> int:
        """Features of the MLP's hidden layer."""
        return int(self.model_dim * self.mlp_mult)
