"""Uniform random tokens in place of data that is not there: enough to measure speed, worth nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from golf.common.errors import DataError
from golf.data.prepare import Prepared
from golf.data.shards import Shards, write_shards
from golf.tokenizers.byte_table import ByteTable


class NoTokenizer:
    """Ids without text: every token counts one byte, id 0 begins a document."""

    name, hash, bos_id = "random", "", 0

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def byte_table(self) -> ByteTable:
        """One byte a token, none for BOS."""
        ids = np.arange(self.vocab_size)
        return ByteTable((ids > 0).astype(np.int16), np.zeros_like(ids, bool), ids == 0)

    def encode_batch(self, texts: Sequence[str], num_threads: int | None = None) -> list[np.ndarray]:
        """Raises DataError: there is no text behind random ids."""
        raise DataError("random tokens stand for no text")

    def decode(self, ids: np.ndarray | Sequence[int]) -> str:
        """Raises DataError: there is no text behind random ids."""
        raise DataError("random tokens stand for no text")

    def normalize(self, text: str) -> str:
        """Raises DataError: there is no text behind random ids."""
        raise DataError("random tokens stand for no text")


def random_prepared(vocab_size: int, tokens: int, folder: Path, seed: int = 0) -> Prepared:
    """A shard of uniform random ids in `folder`, as training and as validation data; written where it isn't yet."""
    path = folder / "random_train_000000.bin"
    if not path.exists():
        ids = np.random.default_rng(seed).integers(0, vocab_size, tokens, dtype=np.uint16)
        write_shards(folder, "train", [ids], shard_tokens=tokens, prefix="random")
    tokenizer = NoTokenizer(vocab_size)
    facts = {"source": "random", "source_hash": "", "tokenizer": "random", "tokenizer_hash": "", "tokens": tokens}
    return Prepared(tokenizer, Shards.open([path], vocab_size), Shards.open([path], vocab_size), facts)
