"""What of a config the training loop itself reads: its top-level keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from golf.common.errors import ConfigError
from golf.common.runtime import SPANS


@dataclass(frozen=True)
class Settings:
    """Top-level keys of the config that the loop itself reads.

    `log_every` and `val_every` count steps; log_every None leaves it to the run's length (`Parts.rows_every`),
    val_every 0 validates only at the end; val_tokens None uses them all.
    `eval_all_stages` scores the weights at stop and the averaged ones by the eval group's method too.
    `frozen`: places (`embed`, `attn.*`) whose parameters updates leave as they are.
    Raises ConfigError for values out of range.
    """

    changes: ClassVar[tuple[str, ...]] = ("train_batch_tokens", "train_seq_len", "frozen")

    seed: int = 1337
    train_batch_tokens: int = 524_288
    train_seq_len: int = 1024
    log_every: int | None = None
    val_every: int = 0
    val_tokens: int | None = None
    eval_all_stages: bool = False
    frozen: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed={self.seed}: must lie between 0 and 2^32 − 1")
        for key in ("train_batch_tokens", "train_seq_len", "log_every"):
            if (value := getattr(self, key)) is not None and value < 1:
                raise ConfigError(f"{key}={value}: must be at least 1")
        if self.val_tokens is not None and self.val_tokens < 1:
            raise ConfigError(f"val_tokens={self.val_tokens}: must be at least 1, or null for all")
        if self.val_every < 0:
            raise ConfigError(f"val_every={self.val_every}: must not be negative")
        if self.train_batch_tokens % (SPANS * self.train_seq_len):
            raise ConfigError(
                f"train_batch_tokens={self.train_batch_tokens}: must be a multiple of "
                f"{SPANS} spans x train_seq_len={self.train_seq_len} = {SPANS * self.train_seq_len}"
            )
