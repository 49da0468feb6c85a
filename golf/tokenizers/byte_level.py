"""Byte-level BPE of Hugging Face's tokenizers: a tokenizer.json, or one trained on the training documents.

Each of its pieces is a string of bytes, written in 256 printable characters (GPT-2's), so no text is unknown to it and
its byte table is read off the pieces. The library is the extra `tokenizers`.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from golf.common.errors import ConfigError, DataError
from golf.common.files import sha256_json
from golf.tokenizers.base import Documents, OnProgress
from golf.tokenizers.byte_table import ByteTable
from golf.tokenizers.sample import TrainingSample, train_once

_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")  # ids 0 to 3, as in the challenge's tokenizers
_BEGINNINGS = ("<s>", "<bos>", "[BOS]", "<|begin_of_text|>", "<|startoftext|>", "<|endoftext|>")
_PART = 1 << 18  # characters of a document encoded at once
_CUT = re.compile(r"[A-Za-z] [A-Za-z]")  # GPT-2's words begin with their space, and never reach across it


def _letters() -> dict[str, int]:
    """The character that stands for each byte in pieces: itself where it is printable, else the next from U+0100 on.

    Source: bytes_to_unicode of GPT-2.
    """
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    found = {chr(byte): byte for byte in plain}
    others = (byte for byte in range(256) if byte not in set(plain))
    return found | {chr(256 + number): byte for number, byte in enumerate(others)}


class ByteLevelTokenizer:
    """A byte-level BPE of a tokenizer.json. `hash` is the SHA-256 of its text; `file` is a name and its bytes.

    bos: the special token that begins documents (None: the first that it has of <s>, <bos>, [BOS], <|begin_of_text|>,
    <|startoftext|>, <|endoftext|>). Special tokens that stand in a text are encoded as text.
    Raises DataError for what is no such tokenizer, ConfigError when the library is not installed.
    """

    def __init__(self, content: str, name: str, bos: str | None = None) -> None:
        self.name, self._content, self._bos = name, content, bos
        self.file = ("tokenizer.json", content.encode("utf-8"))
        self.hash = hashlib.sha256(self.file[1]).hexdigest()
        self.trained_on: str | None = None
        try:
            self._library = library().Tokenizer.from_str(content)
        except Exception as error:  # the library raises Exception itself
            if isinstance(error, ConfigError):
                raise
            raise DataError(f"{name} is no tokenizer.json ({str(error).splitlines()[0][:120]})") from None
        self._library.no_padding()
        self._library.no_truncation()
        self._library.encode_special_tokens = True
        self.vocab_size: int = 1 + max(self._library.get_vocab(with_added_tokens=True).values(), default=-1)
        if not 0 < self.vocab_size <= 1 << 16:
            raise DataError(f"{name} has {self.vocab_size} ids; shards hold 16-bit ids (1 to 65536)")
        told = json.loads(content)
        levels = [one for one in _parts(told.get("pre_tokenizer"), "pretokenizers") if one.get("type") == "ByteLevel"]
        if not levels or not any(one.get("type") == "ByteLevel" for one in _parts(told.get("decoder"), "decoders")):
            raise DataError(
                f"{name} is not byte-level (its pre_tokenizer and decoder are not both ByteLevel): its bytes cannot be "
                "counted\n(of a SentencePiece model give the .model file)"
            )
        self._prefixes = bool(levels[0].get("add_prefix_space", True))
        self._cuttable = told.get("normalizer") is None and levels[0] == told["pre_tokenizer"] and (
            bool(levels[0].get("use_regex", True)) and not self._prefixes
        )  # fmt: skip
        self.bos_id = self._beginning(bos, {one["id"] for one in told.get("added_tokens", []) if one.get("special")})
        self._read_pieces({one["id"]: one for one in told.get("added_tokens", [])})

    def _beginning(self, bos: str | None, special: set[int]) -> int:
        names = (bos,) if bos is not None else _BEGINNINGS
        for name in names:
            found = self._library.token_to_id(name)
            if found is not None and found in special:
                return int(found)
        raise DataError(
            f"{self.name} has no special token {' or '.join(names)} to tell documents apart by\n"
            "(tokenizer.bos names the one that begins a document)"
        )

    def _read_pieces(self, added: dict[int, dict[str, Any]]) -> None:
        letters, size = _letters(), self.vocab_size
        self._text, self._silent = [b""] * size, np.ones(size, bool)
        for piece, number in self._library.get_vocab(with_added_tokens=True).items():
            if number in added:
                self._silent[number] = bool(added[number].get("special"))
                self._text[number] = b"" if self._silent[number] else piece.encode("utf-8")
                continue
            try:
                self._text[number] = bytes([letters[letter] for letter in piece])
            except KeyError:
                raise DataError(
                    f"{self.name}: the piece {piece!r} is not written in bytes: golf cannot count it"
                ) from None
            self._silent[number] = False

    @property
    def fragments(self) -> np.ndarray:
        """Which ids are one byte of a character of several, bool [vocab_size]: what stands where no piece fits."""
        return np.array([len(text) == 1 and text[0] >= 0x80 for text in self._text])

    def encode_batch(self, texts: Sequence[str], num_threads: int | None = None) -> list[np.ndarray]:
        """Ids of each text, uint16, without BOS; the library chooses threads by RAYON_NUM_THREADS alone."""
        cuts = [self._cuts(text) for text in texts]
        parts = [part for cut in cuts for part in cut]
        encoded = self._library.encode_batch_fast(parts, add_special_tokens=False) if parts else []
        ids = iter([np.array(one.ids, np.uint16) for one in encoded])
        return [np.concatenate([next(ids) for _ in cut]) for cut in cuts]

    def _cuts(self, text: str) -> list[str]:
        """Parts of a long document that encode as the whole does."""
        parts, start = [], 0
        while self._cuttable and len(text) - start > _PART and (cut := _CUT.search(text, start + _PART)):
            parts.append(text[start : cut.start() + 1])
            start = cut.start() + 1
        return [*parts, text[start:]]

    def decode(self, ids: np.ndarray | Sequence[int]) -> str:
        """The text of the ids; special ids give none, incomplete UTF-8 gives U+FFFD."""
        parts = [self._text[i] for i in np.asarray(ids, np.int64).tolist()]
        text = b"".join(parts)
        first = next((part for part in parts if part), b"")
        if self._prefixes and first.startswith(b" "):
            text = text[1:]
        return text.decode("utf-8", errors="replace")

    def normalize(self, text: str) -> str:
        """The library's own normalisation of `text`; where it puts a space before every text, without one."""
        normalizer = self._library.normalizer
        text = text if normalizer is None else normalizer.normalize_str(text)
        return text.removeprefix(" ") if self._prefixes else text

    def byte_table(self) -> ByteTable:
        """Bytes of each id; special ids and those that have no piece are boundaries with 0."""
        leading = np.array([self._prefixes and text.startswith(b" ") for text in self._text]) & ~self._silent
        return ByteTable(np.array([len(text) for text in self._text]) - leading, leading, self._silent)

    def __getstate__(self) -> dict[str, Any]:
        return {"made": (self._content, self.name, self._bos), "trained_on": self.trained_on}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(*state["made"])  # type: ignore[misc]
        self.trained_on = state["trained_on"]


@dataclass(frozen=True)
class ByteLevelSpec:
    """The option `tokenizer=bytelevel`: a tokenizer.json to load, or one to train on the training documents.

    vocab_size: ids in all, the 4 special and 256 byte pieces included. model_path: the tokenizer.json. bos: its special
    token that begins documents, where it is not one of the usual. train_bytes: UTF-8 bytes of text to train on (None:
    all). Raises ConfigError on values that cannot be.
    """

    name: str
    vocab_size: int
    model_path: str | None = None
    bos: str | None = None
    train_bytes: int | None = 25_000_000

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name:
            raise ConfigError(f"tokenizer.name={self.name!r}: a non-empty name without '/'")
        least = 261 if self.model_path is None else 1
        if not least <= self.vocab_size <= 1 << 16:
            raise ConfigError(f"tokenizer.vocab_size={self.vocab_size}: from {least} to 65536 (16-bit ids)")
        if self.train_bytes is not None and self.train_bytes < 1:
            raise ConfigError(f"tokenizer.train_bytes={self.train_bytes}: at least 1, or null for all the text")
        if self.model_path is not None and self.model_path.endswith(".model"):
            raise ConfigError(f"tokenizer.model_path={self.model_path}: tokenizer=sp1024 reads a SentencePiece model")
        if self.bos is not None and self.model_path is None:
            raise ConfigError("tokenizer.bos is for tokenizer.model_path: what golf trains begins documents with <s>")

    @property
    def needs_text(self) -> bool:
        """Whether there is a tokenizer to train."""
        return self.model_path is None

    def prepare(
        self, train_documents: Documents, source_hash: str, cache: Path, progress: OnProgress | None = None
    ) -> ByteLevelTokenizer:
        """Load `model_path`, or what was trained before on this text with these options, or train it now.

        Raises ConfigError when the vocabulary is not `vocab_size`, DataError when the text is too little for it.
        """
        if self.model_path is not None:
            loaded = load(self.model_path, bos=self.bos)
            if loaded.vocab_size != self.vocab_size:
                raise ConfigError(
                    f"tokenizer.vocab_size={self.vocab_size}, but tokenizer.model_path={self.model_path} "
                    f"has {loaded.vocab_size} ids"
                )
            return loaded
        key = sha256_json([source_hash, "byte level", 1, self.vocab_size, self.train_bytes])
        path = cache / "tokenizers" / f"{self.name}-{key[:16]}.json"

        def make() -> tuple[bytes, TrainingSample]:
            sample = TrainingSample(train_documents(), self.train_bytes, self.name, progress)
            return self._train(sample), sample

        told = train_once(path, make)
        tokenizer = load(path, self.name)
        tokenizer.trained_on = told
        return tokenizer

    def _train(self, sample: TrainingSample) -> bytes:
        parts = library()
        tokenizer = parts.Tokenizer(parts.models.BPE())
        tokenizer.pre_tokenizer = parts.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = parts.decoders.ByteLevel()
        trainer = parts.trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            special_tokens=list(_SPECIAL),
            initial_alphabet=sorted(parts.pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        try:
            tokenizer.train_from_iterator(sample, trainer=trainer)
        except Exception as error:
            if sample.failure is not None:
                raise sample.failure from None
            raise DataError(f"cannot train a tokenizer of tokenizer.vocab_size={self.vocab_size} ({error})") from None
        if not sample.documents:
            raise DataError("there is no training text to train a tokenizer on")
        if (reached := tokenizer.get_vocab_size()) != self.vocab_size:
            raise DataError(
                f"the training text is too little for tokenizer.vocab_size={self.vocab_size}: "
                f"it gives {reached} ids; give more text or ask for at most {reached}"
            )
        return str(tokenizer.to_str()).encode("utf-8")


def library() -> Any:
    """Hugging Face's tokenizers. Raises ConfigError when it cannot be imported."""
    try:
        return importlib.import_module("tokenizers")
    except ImportError as error:
        raise ConfigError(
            f"a tokenizer.json needs tokenizers, which cannot be imported ({error})\npip install 'golf[tokenizers]'"
        ) from error


def load(path: str | Path, name: str | None = None, bos: str | None = None) -> ByteLevelTokenizer:
    """Read a tokenizer.json. Raises DataError when it is missing or no byte-level BPE."""
    path = Path(path).expanduser()
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise DataError(f"cannot read the tokenizer {path}: {reason}") from None
    return ByteLevelTokenizer(content, name or (path.parent.name if path.stem == "tokenizer" else path.stem), bos)


def _parts(node: Any, within: str) -> list[dict[str, Any]]:
    """A part of a tokenizer.json, or, of a sequence, its parts."""
    if not isinstance(node, dict):
        return []
    return [one for part in node.get(within, []) for one in _parts(part, within)] if within in node else [node]
