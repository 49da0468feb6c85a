"""What bytes say as text: byte order marks, UTF-8, encodings by name; what is neither is refused, not guessed."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from golf.common.errors import ConfigError, DataError

_REPLACEMENT = "\ufffd"
_MARK = "\ufeff"
_MARKS = (  # UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_HEAD = 1 << 16  # bytes that decide whether a file is UTF-16 or UTF-32 without a mark
_LEAST_HEAD = 16  # fewer decide nothing
_BELOW_SPACE = bytes(range(32))
_USUAL = re.compile(r"[\n -~\u3000-\u30ff\u4e00-\u9fff\uac00-\ud7a3\uff00-\uffef]")  # in UTF-16 that is not UTF-8 too
_ASCII = '09 azAZ{}[]":,\\\n\r\t'  # what JSON and lines are made of
_FEW, _RARE = 3, 10_000  # so many invalid characters never mean another encoding, nor does one in so many


class Document(NamedTuple):
    """A text, how many of its characters are U+FFFD in place of what could not be read, and what it was encoded in.

    doubtful: it was read by the name of another encoding, but is valid UTF-8. skipped: it stands in the place of one
    that could not be had, and has no text.
    """

    text: str
    replaced: int = 0
    encoding: str = "utf-8"
    doubtful: bool = False
    skipped: bool = False


class Opened(NamedTuple):
    """A file's bytes in an encoding that has ASCII's bytes (`codec`), and what reads a part of them, told its place."""

    blocks: Iterator[bytes]
    read: Callable[[bytes, str | None], Document]
    codec: str


def decode(data: bytes, encoding: str = "utf-8") -> tuple[str, int]:
    """Bytes as text, and how many U+FFFD stand for bytes that are not of the encoding."""
    try:
        return data.decode(encoding), 0
    except UnicodeError:
        text = data.decode(encoding, errors="replace")
        honest = _REPLACEMENT.encode(encoding, errors="ignore")
        return text, text.count(_REPLACEMENT) - (data.count(honest) if honest else 0)


def mend(text: str) -> tuple[str, int]:
    """`text` without lone surrogates (JSON can escape them, UTF-8 cannot hold them), and how many were replaced."""
    try:
        text.encode("utf-8")
        return text, 0
    except UnicodeEncodeError:
        mended = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return mended, mended.count(_REPLACEMENT) - text.count(_REPLACEMENT)


def unmarked(text: str) -> str:
    """`text` without the byte order mark that it may begin with."""
    return text.removeprefix(_MARK)


def is_blank(text: str) -> bool:
    """Whether there is nothing but whitespace, or NULs as a crash leaves them, in a text."""
    return not text.strip().strip("\0")


def encoding_names(encoding: str | list[str]) -> tuple[str, ...]:
    """The codecs that `data.encoding` names, in order; none for `auto`. Raises ConfigError for what is no encoding."""
    given = [encoding] if isinstance(encoding, str) else encoding
    if given == ["auto"]:
        return ()
    names = tuple(_codec(name) for name in given)
    if not names:
        raise ConfigError("data.encoding is empty: auto, a name such as cp1252, or several, as [utf-8,cp1252]")
    wide = [name for name in names if not _has_ascii(name)]
    if wide and len(names) > 1 and names != ("utf-8", wide[0]):
        raise ConfigError(
            f"data.encoding=[{','.join(given)}]: {wide[0]} cannot be told from others by trying: give it alone, "
            f"or [utf-8,{wide[0]}]"
        )
    return names


class Decoder:
    """Reads the documents of one pass by `names` (as `encoding_names` gives them).

    A file or value that begins with a byte order mark is what the mark says, and a document never keeps the mark.
    Without names the rest is UTF-8: a few invalid bytes are replaced and counted, but text in another encoding is
    refused with a DataError. With names a document is read by the first that can; what the last cannot is replaced.
    UTF-16 and UTF-32 are chosen by file.
    """

    def __init__(self, names: tuple[str, ...] = ()) -> None:
        self._judges, self._names = not names, names or ("utf-8",)
        self._characters = self._suspect = 0  # of the pass: all, and invalid ones where few are valid beyond ASCII

    def open(self, blocks: Iterable[bytes], path: Path) -> Opened:
        """A file's or value's blocks, without their mark. Raises DataError for UTF-16 or UTF-32 without a mark."""
        head, blocks = b"", iter(blocks)
        for block in blocks:
            head += block
            if len(head) >= _LEAST_HEAD:
                break
        mark, name = next(((mark, name) for mark, name in _MARKS if head.startswith(mark)), (b"", self._names[0]))
        rest = chain((head[len(mark) :],), blocks)
        if not mark:
            name = self._by_head(head[:_HEAD], path)
        if not _has_ascii(name):
            return Opened(_transcoded(rest, name, path), lambda data, place: _transcoded_document(data, name), "utf-8")
        if mark:
            return Opened(rest, lambda data, place: _document(data, name), name)
        return Opened(rest, lambda data, place: self._read(data, path, place), name)

    def _by_head(self, head: bytes, path: Path) -> str:
        """The encoding of a file without a mark, or the first of those to be tried by document."""
        first, last = self._names[0], self._names[-1]
        if self._judges and (wide := _by_zeros(head)):
            raise DataError(
                f"{path} is {wide.upper()} without a byte order mark:\n"
                f"set data.encoding={wide}, or [utf-8,{wide}] where files differ\n"
                "(or data.encoding=utf-8 if its control characters are meant)"
            )
        if last.startswith(("utf-16", "utf-32")) and _is_plain_utf8(head):
            if first == last:
                raise DataError(f"{path} is not {last.upper()} but UTF-8\n(data.encoding=[utf-8,{last}] reads both)")
            return first
        return first if _has_ascii(last) else last

    def whole(self, data: bytes, path: Path, place: str | None = None) -> Document:
        """A file or value that is one document. Raises DataError for another encoding."""
        blocks, read, _ = self.open((data,), path)
        return read(b"".join(blocks), place)

    def _read(self, data: bytes, path: Path, place: str | None) -> Document:
        for name in self._names:
            try:
                text = data.decode(name)
            except UnicodeError:
                continue
            self._characters += len(text)
            doubtful = self._names == (name,) != ("utf-8",) and not data.isascii() and _is_plain_utf8(data)
            text, replaced = mend(text)
            return Document(unmarked(text), replaced, name, doubtful)
        document = _document(data, self._names[-1])
        if self._judges:
            self._judge(document, data, path, place)
        return document

    def _judge(self, document: Document, data: bytes, path: Path, place: str | None) -> None:
        """Raise DataError when a document, or the pass up to it, is of another encoding rather than damaged."""
        text, invalid = document.text, document.replaced
        beyond = len(text) - len(text.encode("ascii", "ignore")) - invalid
        self._characters += len(text)
        if invalid <= beyond:
            return
        self._suspect += invalid
        if _many(invalid, len(text)) or _many(self._suspect, self._characters):
            raise DataError(_not_utf8(data, path, place))


def _document(data: bytes, name: str) -> Document:
    text, replaced = decode(data, name)
    text, lone = mend(text)
    return Document(unmarked(text), replaced + lone, name)


def _transcoded(blocks: Iterable[bytes], name: str, path: Path) -> Iterator[bytes]:
    """The blocks in UTF-8; lone surrogates stay, to be replaced and counted by document."""
    decoder = codecs.getincrementaldecoder(name)("surrogatepass")
    try:
        for block in blocks:
            yield decoder.decode(block).encode("utf-8", "surrogatepass")
        yield decoder.decode(b"", final=True).encode("utf-8", "surrogatepass")
    except UnicodeError as error:
        reason = error.reason if isinstance(error, UnicodeDecodeError) else error
        raise DataError(f"{path} is damaged, or not {name.upper()}: {reason}") from None


def _transcoded_document(data: bytes, name: str) -> Document:
    text, replaced = mend(data.decode("utf-8", "surrogatepass"))
    return Document(unmarked(text), replaced, name)


def _by_zeros(head: bytes) -> str | None:
    """Which of UTF-16 and UTF-32 a text without a mark is: the high bytes of most scripts' units are below a space."""
    if len(head) < _LEAST_HEAD or 0 not in head:
        return None
    for name in ("utf-32-le", "utf-32-be"):
        try:
            if head[: len(head) // 4 * 4].decode(name).strip("\0"):
                return name
        except UnicodeDecodeError:
            pass
    even, odd = (len(half) - len(half.translate(None, _BELOW_SPACE)) for half in (head[::2], head[1::2]))
    if 4 * max(even, odd) < len(head) or 4 * min(even, odd) > max(even, odd):
        return None
    return "utf-16-le" if odd > even else "utf-16-be"


def _is_plain_utf8(head: bytes) -> bool:
    """Whether bytes that may end within a character are text in UTF-8, and so in no wider encoding."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return len(head) >= _LEAST_HEAD and 0 not in head


def _many(invalid: int, characters: int) -> bool:
    return invalid > _FEW and invalid * _RARE > characters


def _not_utf8(data: bytes, path: Path, place: str | None) -> str:
    """What to say of a document that is not UTF-8: where, how it would read in a likely encoding, and the ways out."""
    try:
        data.decode("utf-8")
        at = 0
    except UnicodeDecodeError as error:
        at = error.start
    guess = "cp1252"
    if 0 in data:
        guess = max("utf-16-le", "utf-16-be", key=lambda name: _usual(data, name))
    seen = data[max(0, at - 16) // 2 * 2 : (at + 16) // 2 * 2].decode(guess, "replace").strip()
    reading = f"in {guess} it reads {seen!r}" if guess == "cp1252" or _usual(data, guess) > 0.5 else "is it text?"
    return (
        f"{path}, {place or f'line {data.count(10, 0, at) + 1}'}: not UTF-8 (byte 0x{data[at]:02x}; {reading})\n"
        f"set data.encoding={guess}, or another, or [utf-8,{guess}] where they differ;\n"
        "data.encoding=utf-8 has such bytes replaced and counted"
    )


def _usual(data: bytes, name: str) -> float:
    text = data[:_HEAD].decode(name, "replace")
    return len(_USUAL.findall(text)) / max(len(text), 1)


def _codec(name: str) -> str:
    try:
        found = codecs.lookup(name)
        _has_ascii(name)
        if found.incrementaldecoder is None:
            raise LookupError
    except (LookupError, UnicodeError, ValueError):
        raise ConfigError(
            f"data.encoding={name}: no text encoding that Python knows (as utf-8, cp1252, latin-1, utf-16-le, gb18030)"
        ) from None
    return "utf-8" if found.name == "utf-8-sig" else found.name


@cache
def _has_ascii(name: str) -> bool:
    return _ASCII.encode(name, "replace") == _ASCII.encode("ascii")
