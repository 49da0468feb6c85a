"""A tokenizer from its file, whatever its kind."""

from __future__ import annotations

from pathlib import Path

from golf.tokenizers import byte_level
from golf.tokenizers.base import Tokenizer
from golf.tokenizers.sentencepiece import SentencePieceTokenizer


def load(path: str | Path, name: str | None = None) -> Tokenizer:
    """The tokenizer of a .model file (SentencePiece) or a tokenizer.json (Hugging Face).

    Raises DataError for a file that is missing or neither, ConfigError when what reads it is not installed.
    """
    path = Path(path).expanduser()
    if path.suffix == ".json":
        return byte_level.load(path, name)
    return SentencePieceTokenizer.load(path, name)
