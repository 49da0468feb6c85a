"""Bytes as tokens: 4 special ids, then the 256 byte values."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from golf.common.errors import ConfigError
from golf.tokenizers.base import Documents, OnProgress
from golf.tokenizers.byte_table import ByteTable

_OFFSET = 4  # pad 0, bos 1, eos 2, unk 3


class Byte260:
    """Byte b of the UTF-8 text ↔ id 4 + b; pad 0, bos 1, eos 2, unk 3. Lossless: the text is not normalised.

    Source: the `byte260` variant of the challenge's data export.
    """

    name = "byte260"
    vocab_size = 256 + _OFFSET
    bos_id = 1
    hash = hashlib.sha256(b"byte260: pad 0, bos 1, eos 2, unk 3, byte b -> 4 + b").hexdigest()

    @property
    def fragments(self) -> np.ndarray:
        """Which ids are one byte of a character of several, bool [260]."""
        return np.arange(self.vocab_size) >= _OFFSET + 0x80

    def encode_batch(self, texts: Sequence[str], num_threads: int | None = None) -> list[np.ndarray]:
        """Ids of each text, uint16, without BOS (one thread: it is a copy)."""
        return [np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.uint16) + np.uint16(_OFFSET) for text in texts]

    def decode(self, ids: np.ndarray | Sequence[int]) -> str:
        """The text of the ids; special ids give none, incomplete UTF-8 gives U+FFFD."""
        values = np.asarray(ids, np.int64)
        return (values[values >= _OFFSET] - _OFFSET).astype(np.uint8).tobytes().decode("utf-8", errors="replace")

    def normalize(self, text: str) -> str:
        """The text itself."""
        return text

    def byte_table(self) -> ByteTable:
        """One byte an id, none for the special ids."""
        special = np.arange(self.vocab_size) < _OFFSET
        return ByteTable((~special).astype(np.int16), np.zeros_like(special), special)


@dataclass(frozen=True)
class Byte260Spec:
    """The option `tokenizer=byte260`. Raises ConfigError for any vocab_size but 260."""

    vocab_size: int = 260

    def __post_init__(self) -> None:
        if self.vocab_size != Byte260.vocab_size:
            raise ConfigError(f"tokenizer.vocab_size={self.vocab_size}: byte260 has exactly {Byte260.vocab_size} ids")

    @property
    def name(self) -> str:
        """byte260."""
        return Byte260.name

    @property
    def needs_text(self) -> bool:
        """Never."""
        return False

    def load(self, path: Path) -> Byte260:
        """The tokenizer; no file is read."""
        return Byte260()

    def prepare(
        self, train_documents: Documents, source_hash: str, cache: Path, progress: OnProgress | None = None
    ) -> Byte260:
        """The tokenizer; nothing is trained or cached."""
        return Byte260()
