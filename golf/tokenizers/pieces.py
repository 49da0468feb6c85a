"""What the ids of a SentencePiece model stand for, read from the model itself, whatever options it was trained with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from golf.common.errors import DataError
from golf.tokenizers.byte_table import ByteTable

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

META_SPACE = "\u2581"  # how SentencePiece writes a space, unless its escape_whitespaces is off
_CHUNK = 1 << 20  # ids decoded at once: bounds the temporary lists


@dataclass(frozen=True)
class SpaceRules:
    """The options of a model that decide what its spaces stand for; the defaults are SentencePiece's."""

    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True
    treat_whitespace_as_suffix: bool = False

    @property
    def space(self) -> str:
        """How pieces write a space."""
        return META_SPACE if self.escape_whitespaces else " "

    @property
    def drops_first(self) -> bool:
        """Whether a space at the start of a document stands for no text.

        It is the dummy prefix; or, where extra whitespace is removed, what SentencePiece's decoder removes too.
        """
        return not self.treat_whitespace_as_suffix and (self.add_dummy_prefix or self.remove_extra_whitespaces)

    @property
    def drops_last(self) -> bool:
        """Whether a space at the end of a document stands for no text: the dummy prefix of models that put it there."""
        return self.treat_whitespace_as_suffix and self.add_dummy_prefix

    @classmethod
    def of(cls, model: bytes) -> SpaceRules:
        """Read them from a .model file's bytes (a protocol buffer; sentencepiece_model.proto numbers the fields).

        The sentencepiece package's own reader of that format fails beside an older protobuf, so it is not relied on.
        """
        specs: dict[int, dict[int, Any]] = {2: {}, 3: {}}  # trainer_spec, normalizer_spec
        for number, value in _fields(model):
            if number in specs and isinstance(value, bytes):
                specs[number].update(_fields(value))
        trainer, normalizer = specs[2], specs[3]
        dummy, extra, escape = (bool(normalizer.get(number, True)) for number in (3, 4, 5))
        return cls(dummy, extra, escape, treat_whitespace_as_suffix=bool(trainer.get(24, False)))


class Pieces:
    """The text of every id, and what follows from it: decoding, and the bytes that an id is charged with."""

    def __init__(self, processor: SentencePieceProcessor, model: bytes) -> None:
        self.rules = rules = SpaceRules.of(model)
        size, self._bos = processor.vocab_size(), processor.bos_id()
        names = [processor.id_to_piece(i) for i in range(size)]
        self._silent = _flags(
            processor.is_control(i) or processor.is_unknown(i) or processor.is_unused(i) for i in range(size)
        )
        self._silent[self._bos] = True  # also where the model's user declared "<s>" a symbol of the text
        self.is_byte = _flags(processor.is_byte(i) for i in range(size))
        self._first = _flags(name.startswith(rules.space) for name in names) & ~self._silent & ~self.is_byte
        self._last = _flags(name.endswith(rules.space) for name in names) & ~self._silent & ~self.is_byte
        self._text: list[bytes] = []
        for i, name in enumerate(names):
            if processor.is_control(i):
                self._text.append(b"")
            elif processor.is_unknown(i):
                self._text.append((processor.decode([i]) or "\u2047").encode("utf-8"))  # never unseen
            elif processor.is_byte(i):
                self._text.append(bytes([int(name[3:5], 16)]))  # <0x41>
            else:
                self._text.append(self._spaced(name).encode("utf-8"))
        self._speaks = _flags(bool(text) for text in self._text)
        self._unknown = processor.unk_id()
        self._characters = frozenset(
            text.decode("utf-8") for i, text in enumerate(self._text) if not (self._silent[i] or self.is_byte[i])
        )  # of which only single ones are asked for

    @property
    def falls_back(self) -> bool:
        """Whether there are byte pieces, so that every character has some."""
        return bool(self.is_byte.any())

    def text(self, normalized: str) -> str:
        """What SentencePiece's normaliser made of a document, as text: with plain spaces, without a dummy prefix."""
        if self.rules.drops_first:
            normalized = normalized.removeprefix(self.rules.space)
        if self.rules.drops_last:
            normalized = normalized.removesuffix(self.rules.space)
        return self._spaced(normalized)

    def decode(self, ids: np.ndarray | Sequence[int]) -> str:
        """The text of a document's ids; control ids give none, incomplete UTF-8 gives U+FFFD.

        SentencePiece's own decoder is not asked: it may drop more than the dummy prefix before the first word, keeps
        the dummy prefix of models that put it at the end, and turns every true U+2581 into a space.
        """
        values = np.asarray(ids, np.int64)
        values = values[self._speaks[values]]
        parts = (values[at : at + _CHUNK].tolist() for at in range(0, values.size, _CHUNK))
        text = b"".join([b"".join([self._text[i] for i in part]) for part in parts])
        if values.size:
            first = self.rules.drops_first and bool(self._first[values[0]])
            last = self.rules.drops_last and bool(self._last[values[-1]])
            text = text[int(first) : len(text) - int(last)]
        return text.decode("utf-8", errors="replace")

    def spans(self, ids: np.ndarray, text: str) -> np.ndarray:
        """Bytes of each id of a document, int32 [n], unknown ones too; `text` is the document's, normalised.

        An unknown id stands for all characters in a row that have no piece. Raises DataError for another text's ids.
        """
        sizes, at = np.zeros(len(ids), np.int32), 0
        for number, i in enumerate(ids.tolist()):
            if i == self._unknown:
                end = at
                while end < len(text) and text[end] not in self._characters:
                    end += 1
            else:
                piece = self._text[i].decode("utf-8")
                if number == 0 and self.rules.drops_first:
                    piece = piece.removeprefix(" ")
                if number == len(ids) - 1 and self.rules.drops_last:
                    piece = piece.removesuffix(" ")
                end = at + len(piece)
                if text[at:end] != piece:
                    break
            sizes[number] = len(text[at:end].encode("utf-8"))
            at = end
        if at < len(text):
            where = f"from character {at} on, {text[at : at + 20]!r}"
            raise DataError(f"bpb refused: the ids of a document are not those of its text, {where}")
        return sizes

    def byte_table(self) -> ByteTable:
        """Bytes of each id: those of its text, but for a space that stands for no text at a document's start or end.

        Byte pieces are 1. Control, unknown and unused ids are boundaries with 0 bytes; user-defined symbols count as
        their own text. For models of the record systems' kind this is the rule of the naive baseline record.
        """
        never = np.zeros(len(self._text), bool)
        first = self._first if self.rules.drops_first else never
        last = self._last if self.rules.drops_last else never
        base = np.array([len(text) for text in self._text], np.int64) - first - last
        base[self._silent] = 0
        return ByteTable(base, first, self._silent, last)

    def _spaced(self, text: str) -> str:
        return text.replace(META_SPACE, " ") if self.rules.escape_whitespaces else text


def _flags(values: Iterator[bool]) -> np.ndarray:
    return np.fromiter(values, bool)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of every field of a protocol buffer's message; fixed-width values come as their bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while at < len(message):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            yield number, varint()
            continue
        size = {1: 8, 5: 4}.get(kind) or varint()
        yield number, message[at : at + size]
        at += size
