"""What every tokenizer offers, and what a config option of the group `tokenizer` must be able to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, cast

import numpy as np

from golf.tokenizers.byte_table import ByteTable

OnProgress = Callable[[str, float], None]  # (what is being done, fraction done in [0, 1])
Documents = Callable[[], Iterator[str]]  # each call starts anew at the first document


class Tokenizer(Protocol):
    """Text to ids and back. Ids are uint16 and below `vocab_size`; `hash` identifies the content (hex)."""

    name: str
    vocab_size: int
    bos_id: int
    hash: str

    def encode_batch(self, texts: Sequence[str], num_threads: int | None = None) -> list[np.ndarray]:
        """Ids of each text, uint16, without BOS; `num_threads` None uses every core."""
        ...

    def decode(self, ids: np.ndarray | Sequence[int]) -> str:
        """The text that the ids stand for; control ids stand for none."""
        ...

    def normalize(self, text: str) -> str:
        """The text that encoding keeps of `text`: the text whose bytes are counted."""
        ...

    def byte_table(self) -> ByteTable:
        """Bytes per token, [vocab_size]."""
        ...


class Loads(Protocol):
    """What a tokenizer's spec has whose runs can be exported: the tokenizer of a file that lies beside shards."""

    @property
    def name(self) -> str:
        """What shards and files are named after."""
        ...

    def load(self, path: Path) -> Tokenizer:
        """The tokenizer of a file; one that has none reads none. Raises ConfigError or DataError."""
        ...


class CountsApart(Tokenizer, Protocol):
    """A tokenizer whose bytes no table of ids can count, while `counts_apart` is true: its validation shards have a
    side-car, the bytes of every token, which evaluation counts by. Its table comes as near as a table can."""

    counts_apart: bool

    def charges(self, ids: np.ndarray, text: Callable[[], str] | None = None) -> np.ndarray:
        """Bytes of each id of a document (without BOS), int32 [n]; they sum to those of its normalised text.

        `text` gives that text, where it is known: it is asked only where the ids do not tell. Raises DataError where
        it is needed and not there, or is not the ids' own.
        """
        ...


def counts_apart(tokenizer: Tokenizer) -> CountsApart | None:
    """The tokenizer itself, if its bytes are counted document by document; None: its table counts them."""
    return cast(CountsApart, tokenizer) if getattr(tokenizer, "counts_apart", False) else None


class TokenizerSpec(Protocol):
    """A tokenizer still to be trained or loaded: what the config instantiates."""

    vocab_size: int

    @property
    def name(self) -> str:
        """What shards and files are named after."""
        ...

    @property
    def needs_text(self) -> bool:
        """Whether `prepare` will read the training documents."""
        ...

    def prepare(
        self, train_documents: Documents, source_hash: str, cache: Path, progress: OnProgress | None = None
    ) -> Tokenizer:
        """Load the tokenizer, or train it on the training documents and keep it in `cache` by content hash."""
        ...
