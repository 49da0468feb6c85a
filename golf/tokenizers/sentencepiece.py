"""SentencePiece tokenizers: loaded from a .model file, or trained with the field's options."""

from __future__ import annotations

import hashlib
import io
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from golf.common.bounded import read_bytes
from golf.common.errors import ConfigError, DataError, reason
from golf.common.files import sha256_json
from golf.common.process import usable_cores
from golf.common.protocols import fitted
from golf.tokenizers.base import Documents, OnProgress, Tokenizer
from golf.tokenizers.byte_table import ByteTable, lost_ids
from golf.tokenizers.pieces import META_SPACE, Pieces
from golf.tokenizers.sample import TrainingSample, train_once
from golf.tokenizers.transform import TextTransform, Transformed

_MOST_MODEL = 1 << 26
_PART = 1 << 18  # characters of a document encoded at once; see _cuts
_AT_ONCE = 1 << 23  # characters encoded before their ids are packed
_CUT = re.compile(r"[A-Za-z]\s[A-Za-z]")  # a place where no normalisation rule can reach across

# The options of the challenge's tokenizers; everything else stays at SentencePiece's defaults.
_OPTIONS: dict[str, Any] = {
    "byte_fallback": True,
    "split_digits": True,
    "normalization_rule_name": "nmt_nfkc",
    "add_dummy_prefix": False,
    "pad_id": 0,
    "bos_id": 1,
    "eos_id": 2,
    "unk_id": 3,
    "hard_vocab_limit": False,
}

_TYPES = ("bpe", "unigram")


class SentencePieceTokenizer:
    """A SentencePiece model. `hash` is the SHA-256 of its bytes; `file` is a name and them, to be kept with shards.

    One without byte pieces has a single id for whatever it has no piece for, so it counts apart, by the documents' own
    bytes. Raises DataError when the bytes are no SentencePiece model, lack BOS, or hold more ids than uint16 can.
    """

    def __init__(self, model: bytes, name: str) -> None:
        from sentencepiece import SentencePieceProcessor

        self.name = name
        self.file = ("tokenizer.model", model)
        self.trained_on: str | None = None
        self.hash = hashlib.sha256(model).hexdigest()
        try:
            if not model:
                raise RuntimeError("it is empty")
            self._processor = processor = SentencePieceProcessor(model_proto=model)
            self.vocab_size: int = processor.vocab_size()
            self._pieces = Pieces(processor, model)
        except (RuntimeError, OSError, ValueError, IndexError) as error:  # also from pieces that are no UTF-8
            raise DataError(f"{name} is not a SentencePiece model ({reason(error)[:120]})") from None
        self.bos_id: int = processor.bos_id()
        if self.bos_id < 0:
            raise DataError(f"{name} has no BOS piece, and documents are told apart by it")
        if self.vocab_size > 1 << 16:
            raise DataError(f"{name} has {self.vocab_size} ids; shards hold 16-bit ids (at most 65536)")
        self._table = self._pieces.byte_table()
        self._lost = lost_ids(self, self._table)
        self.counts_apart = not self._pieces.falls_back
        collapses_spaces = processor.normalize("a \n b") == f"a{META_SPACE}b"
        words = all(META_SPACE not in processor.id_to_piece(i)[1:] for i in range(self.vocab_size))
        self._cuttable = collapses_spaces and words and not self._pieces.rules.add_dummy_prefix

    @classmethod
    def load(cls, path: str | Path, name: str | None = None) -> SentencePieceTokenizer:
        """Read a .model file. Raises DataError when it is missing or not a SentencePiece model."""
        path = Path(path).expanduser()
        try:
            model = read_bytes(path, _MOST_MODEL)
        except OSError as error:
            raise DataError(f"cannot read the tokenizer model {path}: {error.strerror}") from None
        except ValueError as error:
            raise DataError(f"{path} is no tokenizer's model: {error}") from None
        return cls(model, name or path.stem)

    @property
    def fragments(self) -> np.ndarray:
        """Which ids are one byte of a character that no piece has, bool [vocab_size]."""
        return self._pieces.is_byte

    def encode_batch(self, texts: Sequence[str], num_threads: int | None = None) -> list[np.ndarray]:
        """Ids of each text, uint16, without BOS; `num_threads` None uses every core."""
        cuts = [self._cuts(text) for text in texts]
        encoded = self._encoded([part for cut in cuts for part in cut], num_threads or usable_cores())
        results = []
        for cut in cuts:
            first, *later = itertools.islice(encoded, len(cut))
            results.append(np.concatenate([first, *(ids[1:] for ids in later)]) if later else first)
        return results

    def _encoded(self, parts: list[str], num_threads: int) -> Iterator[np.ndarray]:
        """Ids of each part; few parts are lists of Python's numbers at a time, which take 36 bytes a token."""
        at = 0
        while at < len(parts):
            end, size = at, 0
            while end < len(parts) and size < _AT_ONCE:
                size += len(parts[end])
                end += 1
            for ids in self._processor.encode(parts[at:end], num_threads=num_threads):
                yield np.array(ids, np.uint16)
            at = end

    def _cuts(self, text: str) -> list[str]:
        """Parts of a long document that encode as the whole does, once the first id of each later part is dropped.

        BPE over one string of 100 MB would take tens of GB. No piece spans two words, so a document may be cut
        before a space between letters; the letter before the space, a piece of its own in front of that space,
        stands again at the head of the next part, or the normaliser would strip the space.
        """
        if len(text) <= _PART or not self._cuttable:
            return [text]
        parts, start = [], 0
        while len(text) - start > _PART:
            cut = _CUT.search(text, start + _PART)
            if cut is None or len(self._processor.encode(cut.group()[0])) != 1:
                break
            parts.append(text[start : cut.start() + 1])
            start = cut.start()
        return [*parts, text[start:]]

    def decode(self, ids: np.ndarray | Sequence[int]) -> str:
        """The text of the ids; control ids give none, incomplete UTF-8 gives U+FFFD."""
        return self._pieces.decode(ids)

    def normalize(self, text: str) -> str:
        """SentencePiece's own normalisation of `text`, with plain spaces and without a dummy prefix.

        Under nmt_nfkc runs of whitespace become one space, the ends are stripped, and U+FFFD and zero-width marks
        count as whitespace. A literal U+2581 is one byte, not three, where the model writes spaces so: it cannot tell
        the two apart.
        """
        first, *later = self._cuts(text)
        normalized = self._processor.normalize(first) + "".join(self._processor.normalize(part)[1:] for part in later)
        return self._pieces.text(normalized)

    def has_piece(self, symbol: str) -> bool:
        """Whether a symbol, written as SentencePiece writes it, is a piece."""
        return bool(self._processor.id_to_piece(self._processor.piece_to_id(symbol)) == symbol)

    def byte_table(self) -> ByteTable:
        """Bytes of each id; see Pieces."""
        return self._table

    def charges(self, ids: np.ndarray, text: Callable[[], str] | None = None) -> np.ndarray:
        """Bytes of each id of a document, int32 [n]; see CountsApart. Only an unknown id needs the text."""
        if not np.isin(ids, self._lost).any():
            return self._table.charges(np.concatenate([[self.bos_id], ids]).astype(np.int64))[1:]
        if text is None:
            raise DataError(
                f"bpb refused: {self.name} has one id for whatever it has no piece for, and the text is not there\n"
                "(data.docs=FILE counts by the documents that the shards were made of, as docs_selected.jsonl;\n"
                "or a byte side-car beside the validation shards does, or data=docs makes shards with one)"
            )
        return self._pieces.spans(ids, text())


@dataclass(frozen=True)
class SentencePieceSpec:
    """The options `tokenizer=sp1024 …`: a model to load, or one to train on the training documents.

    vocab_size: ids in all, the 4 special and 256 byte pieces included. model_path: a .model file to load instead of
    training; it may lack byte pieces. train_bytes: UTF-8 bytes of text to train on (None:
    all). longest_document: bytes beyond which a document is left out of that text; SentencePiece's own limit, 4192,
    which the published tokenizers were trained with, would drop most source files and web pages. model_type: bpe, or
    unigram. transform: what is done to the text first, in training too. Raises ConfigError on values that cannot be.
    """

    name: str
    vocab_size: int
    model_path: str | None = None
    train_bytes: int | None = 25_000_000
    character_coverage: float = 0.999
    longest_document: int = 1 << 28
    model_type: str = "bpe"
    transform: TextTransform | None = None

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name:
            raise ConfigError(f"tokenizer.name={self.name!r}: a non-empty name without '/'")
        if self.transform is not None:
            fitted(self.transform, TextTransform, "tokenizer.transform")
        marks = 0 if self.transform is None else len(self.transform.symbols)
        least, why = (261 + marks, " (special and byte pieces, marks)" if marks else " (260 special and byte pieces)")
        if self.model_path is not None:
            least, why = 1, ""
        if not least <= self.vocab_size <= 1 << 16:
            raise ConfigError(
                f"tokenizer.vocab_size={self.vocab_size}: from {least}{why} to 65536 (16-bit ids)"
                + ("; tokenizer.model_path loads a smaller model" if 0 < self.vocab_size < least else "")
            )
        if self.train_bytes is not None and self.train_bytes < 1:
            raise ConfigError(f"tokenizer.train_bytes={self.train_bytes}: at least 1, or null for all the text")
        if not 0.0 < self.character_coverage <= 1.0:
            raise ConfigError(f"tokenizer.character_coverage={self.character_coverage}: above 0, at most 1")
        if self.model_path is not None and self.model_path.endswith(".json"):
            raise ConfigError(f"tokenizer.model_path={self.model_path}: tokenizer=bytelevel reads a tokenizer.json")
        if self.model_type not in _TYPES:
            raise ConfigError(f"tokenizer.model_type={self.model_type}: one of {', '.join(_TYPES)}")
        if not 16 <= self.longest_document < 1 << 31:
            raise ConfigError(f"tokenizer.longest_document={self.longest_document}: from 16 to 2147483647 bytes")

    @property
    def _kind(self) -> dict[str, Any]:
        return {"model_type": self.model_type, **_OPTIONS}

    @property
    def needs_text(self) -> bool:
        """Whether there is a model to train."""
        return self.model_path is None

    def load(self, path: Path) -> Tokenizer:
        """The tokenizer of a .model file. Raises ConfigError when its vocabulary is not `vocab_size`, or it was not
        made for the transform."""
        loaded = SentencePieceTokenizer.load(path, self.name)
        if loaded.vocab_size != self.vocab_size:
            raise ConfigError(f"tokenizer.vocab_size={self.vocab_size}, but {path} has {loaded.vocab_size} ids")
        return self._changed(loaded)

    def prepare(
        self, train_documents: Documents, source_hash: str, cache: Path, progress: OnProgress | None = None
    ) -> Tokenizer:
        """Load `model_path`, or the model trained before on this text with these options, or train it now.

        Two processes that ask at once train it once. Raises ConfigError when the model's vocabulary is not
        `vocab_size`, or the model was not made for the transform, DataError when the text is too little for it.
        """
        return self._changed(self._model(train_documents, source_hash, cache, progress))

    def _changed(self, model: SentencePieceTokenizer) -> Tokenizer:
        """The model behind the transform. Raises ConfigError when it was not made for that."""
        if self.transform is None:
            return model
        if missing := [symbol for symbol in self.transform.symbols if not model.has_piece(symbol)]:
            raise ConfigError(
                f"tokenizer/transform={self.transform.name}: {self.model_path or model.name} has no piece "
                f"{missing[0]!a} for {len(missing)} of its marks\n"
                "(a model trained for it has: leave tokenizer.model_path out, or with data=fineweb name its export)"
            )
        return Transformed(model, self.transform)

    def _model(
        self, train_documents: Documents, source_hash: str, cache: Path, progress: OnProgress | None
    ) -> SentencePieceTokenizer:
        if self.model_path is not None:
            loaded = SentencePieceTokenizer.load(self.model_path)
            if loaded.vocab_size != self.vocab_size:
                raise ConfigError(
                    f"tokenizer.vocab_size={self.vocab_size}, but tokenizer.model_path={self.model_path} "
                    f"has {loaded.vocab_size} ids"
                )
            return loaded
        options: list[Any] = [
            self.vocab_size, self.train_bytes, self.character_coverage, self.longest_document, self._kind,
        ]  # fmt: skip
        options += [] if self.transform is None else [self.transform.version, self.transform.symbols]
        key = sha256_json([source_hash, *options])
        path = cache / "tokenizers" / f"{self.name}-{key[:16]}.model"

        def make() -> tuple[bytes, TrainingSample]:
            sample = TrainingSample(train_documents(), self.train_bytes, self.name, progress, self._change())
            return self._train(sample), sample

        told = train_once(path, make)
        tokenizer = SentencePieceTokenizer.load(path, self.name)
        tokenizer.trained_on = told
        return tokenizer

    def _train(self, sample: TrainingSample) -> bytes:
        from sentencepiece import SentencePieceTrainer

        model = io.BytesIO()
        try:
            # num_threads stays at its default: it is written into the model, so it would change the content hash.
            SentencePieceTrainer.train(
                sentence_iterator=sample,
                model_writer=model,
                vocab_size=self.vocab_size,
                character_coverage=self.character_coverage,
                max_sentence_length=self.longest_document,
                minloglevel=2,
                user_defined_symbols=[] if self.transform is None else list(self.transform.symbols),
                **self._kind,
            )
        except RuntimeError as error:
            if sample.failure is not None:
                raise sample.failure from None
            if not sample.documents:
                raise DataError("there is no training text to train a tokenizer on") from None
            raise DataError(
                f"cannot train a tokenizer of tokenizer.vocab_size={self.vocab_size} on this text\n"
                f"({str(error).splitlines()[-1].strip()[:160]})"
            ) from None
        reached = SentencePieceTokenizer(model.getvalue(), self.name).vocab_size
        if reached != self.vocab_size:
            raise DataError(
                f"the training text is too little for tokenizer.vocab_size={self.vocab_size}: "
                f"it gives {reached} ids; give more text or ask for at most {reached}"
            )
        return model.getvalue()

    def _change(self) -> Callable[[str], str] | None:
        """What is done to each text to train on, as `Transformed` does it: normalised, so that marks stand right."""
        from sentencepiece import SentencePieceNormalizer

        transform = self.transform
        if transform is None:
            return None
        normalizer = SentencePieceNormalizer(
            rule_name=_OPTIONS["normalization_rule_name"], remove_extra_whitespaces=True, add_dummy_prefix=False,
            escape_whitespaces=False,
        )  # fmt: skip
        return lambda text: transform.apply(normalizer.Normalize(text))
