"""Reading text files of several kinds as documents."""

from __future__ import annotations

import glob
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, count
from pathlib import Path
from typing import IO, Any

from golf.common.errors import DataError
from golf.data.encodings import Decoder, Document, mend, unmarked

SUFFIXES = (".txt", ".md", ".jsonl", ".jsonl.zst", ".jsonl.gz", ".parquet")
END_OF_TEXT = "<|endoftext|>"  # between documents in many published .txt files
_BLOCK = 1 << 20
_COMPRESSED_BLOCK = 1 << 17
_PIECE = 1 << 11  # what it unpacks to is held whole: of zstd 2^17 bytes for every four, at worst
_MOST_LINE = 1 << 25  # bytes of a line of JSON, which takes thirty times as many once it is read
_ROWS = 64  # of parquet at once: a dictionary's one long value may stand in all of them
_MOST_RATIO, _MODEST = 100, 1 << 23  # a parquet column is not to expand further, beyond so many bytes
_ZSTD_WINDOW = 1 << 31  # as zstd --long=31 writes; zstd's own limit is 2^27
_ZSTD_HEADER = 18


def read_bytes(path: Path) -> bytes:
    """A file's bytes. Raises DataError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None


def expand(paths: Iterable[str], suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """Files, folders (readable files below, sorted) and globs (sorted) as a list of files, in the given order.

    Raises DataError for a path that gives no file, or a file of an unknown kind.
    """
    files: list[Path] = []
    for given in paths:
        path = Path(given).expanduser()
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.is_file() and p.name.lower().endswith(suffixes))
            if not found:
                raise DataError(f"{path} holds no file that golf can read ({', '.join(suffixes)})")
        elif path.is_file():
            found = [path]
        else:
            matches = sorted(glob.glob(str(path), recursive=True))
            found = [Path(match) for match in matches if os.path.isfile(match)]
            if not found:
                raise DataError(f"{path} does not exist" if not glob.has_magic(given) else f"no files match {given}")
        for file in found:
            if not file.name.lower().endswith(suffixes):
                raise DataError(f"{file}: golf cannot read this kind of file (choices: {', '.join(suffixes)})")
        files += found
    return [file.absolute() for file in files]


def is_plain(path: Path) -> bool:
    """Whether a file is nothing but text."""
    return path.name.lower().endswith((".txt", ".md"))


class Reader:
    """Documents of text files; `fraction` says how far the present pass has come.

    field: what holds the text in .jsonl and .parquet. encodings: see `encoding_names`. separator: what stands between
    the documents of a .txt or .md file, with the ends of its line; None: such a file is one document.
    `first_replaced` is the place of the first document in which characters were replaced, `first_separated` the first
    file that has END_OF_TEXT in a document.
    """

    def __init__(self, field: str, encodings: tuple[str, ...] = (), separator: str | None = None) -> None:
        self.field, self.encodings, self.separator = field, encodings, separator
        self.fraction = 0.0
        self.first_replaced: str | None = None
        self.first_separated: str | None = None

    def documents(self, files: list[Path]) -> Iterator[Document]:
        """The documents of the files in order. Raises DataError with the file and line."""
        decoder = Decoder(self.encodings)
        try:
            total, done = sum(max(path.stat().st_size, 1) for path in files), 0
            for path in files:
                size = max(path.stat().st_size, 1)
                with open(path, "rb") as file:
                    for document in self._file(path, file, decoder):
                        self.fraction = (done + min(file.tell(), size)) / total
                        yield document
                done += size
        except OSError as error:
            raise DataError(f"cannot read {error.filename or 'a text file'}: {error.strerror}") from None

    def _file(self, path: Path, file: IO[bytes], decoder: Decoder) -> Iterator[Document]:
        name = path.name.lower()
        if name.endswith(".parquet"):
            yield from self._parquet(path, file, decoder)
        elif is_plain(path):
            yield from self._text_file(path, file, decoder)
        elif name.endswith(".zst"):
            yield from self._jsonl(path, _unzstd(path, file), decoder)
        elif name.endswith(".gz"):
            yield from self._jsonl(path, _gunzip(path, file), decoder)
        else:
            yield from self._jsonl(path, _blocks(file), decoder)

    def _text_file(self, path: Path, file: IO[bytes], decoder: Decoder) -> Iterator[Document]:
        if self.separator is None:
            document = self._noted(decoder.whole(file.read(), path), str(path))
            if self.first_separated is None and document.text.count(END_OF_TEXT) > 1:
                self.first_separated = str(path)
            yield document
            return
        blocks, read, codec = decoder.open(_blocks(file), path)
        for number, part in enumerate(split(blocks, self.separator.encode(codec)), start=1):
            place = f"document {number}"
            document = self._noted(read(part, place), f"{path}, {place}")
            yield document._replace(text=document.text.strip("\r\n"))

    def _jsonl(self, path: Path, blocks: Iterator[bytes], decoder: Decoder) -> Iterator[Document]:
        blocks, read, _ = decoder.open(blocks, path)
        lines = split(blocks, b"\n", _MOST_LINE)
        for number in count(1):
            place = f"line {number}"
            try:
                line = next(lines, None)
            except ValueError:
                raise DataError(
                    f"{path}, {place}: over {_MOST_LINE:,} bytes, and golf takes no such document"
                ) from None
            if line is None:
                return
            raw = read(line, place)
            if not raw.text.strip():
                continue
            try:
                row = _json(raw.text)
            except ValueError as error:
                raise DataError(f"{path}, {place}: not JSON ({error})") from None
            except RecursionError:
                raise DataError(f"{path}, {place}: not JSON that golf can read (nested too deeply)") from None
            text, surrogates = mend(unmarked(self._text(row, path, place)))
            document = raw._replace(text=text, replaced=raw.replaced + surrogates)
            yield self._noted(document, f"{path}, {place}")

    def _text(self, row: Any, path: Path, place: str) -> str:
        if not isinstance(row, dict):
            kind = _JSON_KINDS[type(row)]
            raise DataError(f"{path}, {place}: no field '{self.field}' (the line is {kind}, not an object)")
        if self.field not in row:
            raise DataError(
                f"{path}, {place}: no field '{self.field}' (it has: {_listed(row) or 'none'}); set data.field"
            )
        text = row[self.field]
        if text is None:
            return ""
        if not isinstance(text, str):
            raise DataError(f"{path}, {place}: field '{self.field}' is {type(text).__name__}, not text")
        return text

    def _parquet(self, path: Path, file: IO[bytes], decoder: Decoder) -> Iterator[Document]:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise DataError(f"{path}: reading .parquet needs pyarrow (pip install pyarrow)") from None
        try:
            table = pyarrow.parquet.ParquetFile(file, pre_buffer=False)  # or all of the file would be in memory
            names = table.schema_arrow.names
            if names.count(self.field) != 1:
                count = "two columns" if self.field in names else "no column"
                raise DataError(f"{path}: {count} '{self.field}' (it has: {_listed(names)}); set data.field")
            self._refuse_bomb(path, table)
            kind = table.schema_arrow.field(self.field).type
            # As bytes, since a writer may have put into a string column what is not UTF-8.
            as_bytes = pyarrow.large_binary()
            try:
                _unpacked(pyarrow.nulls(0, kind)).cast(as_bytes)
            except pyarrow.ArrowNotImplementedError:
                raise DataError(f"{path}, row 1: column '{self.field}' is not text but {kind}") from None
            row = 0
            batches = (
                table.iter_batches(batch_size=_ROWS, row_groups=[group], columns=[self.field])
                for group in range(table.num_row_groups)
            )
            for batch in chain.from_iterable(batches):
                for value in _unpacked(batch.column(0)).cast(as_bytes):
                    row += 1
                    place = f"row {row}"
                    yield self._noted(decoder.whole(value.as_py() or b"", path, place), f"{path}, {place}")
        except MemoryError:
            raise DataError(f"{path}: too little memory for its row groups") from None
        except (pyarrow.ArrowException, OSError, ValueError) as error:  # a column's name may be no UTF-8
            raise DataError(
                f"{path} is not a readable parquet file ({str(error).partition(chr(10))[0][:120]})"
            ) from None

    def _refuse_bomb(self, path: Path, table: Any) -> None:
        """Raises DataError for a column that expands far more than text does."""
        at = table.schema_arrow.names.index(self.field)
        for number in range(table.num_row_groups):
            column = table.metadata.row_group(number).column(min(at, table.metadata.num_columns - 1))
            large, stored = column.total_uncompressed_size, max(column.total_compressed_size, 1)
            if large > _MODEST and large > _MOST_RATIO * min(stored, path.stat().st_size):
                raise DataError(f"{path}: row group {number + 1} of {stored:,} bytes expands to {large:,}: refused")

    def _noted(self, document: Document, place: str) -> Document:
        if document.replaced and self.first_replaced is None:
            self.first_replaced = place
        return document


def _unpacked(column: Any) -> Any:
    """A column of the values themselves, where it was one of places in a dictionary."""
    return column.dictionary_decode() if hasattr(column, "dictionary_decode") else column


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:  # a whole number of thousands of digits, which int refuses; only its kind matters here
        return json.loads(text, parse_int=lambda digits: int(digits[:20]))


_JSON_KINDS = {
    list: "a list",
    str: "a text",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def _listed(names: Iterable[str], most: int = 12) -> str:
    """Names of fields for a message, whatever their characters and number."""
    names = list(names)
    shown = [name if name.isprintable() and len(name) <= 60 else ascii(name[:60]) for name in names[:most]]
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")


def split(blocks: Iterable[bytes], separator: bytes, most: int | None = None) -> Iterator[bytes]:
    """What stands between separators in the joined blocks, and behind the last. Raises ValueError for over `most`
    bytes of it."""
    pending = bytearray()
    for block in blocks:
        straddling = max(0, len(pending) - len(separator) + 1)
        pending += block
        if pending.find(separator, straddling) >= 0:
            *whole, rest = bytes(pending).split(separator)
            yield from whole
            pending = bytearray(rest)
        if most is not None and len(pending) > most:
            raise ValueError("over the limit")
    yield bytes(pending)


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    return iter(lambda: file.read(_BLOCK), b"")


def _unzstd(path: Path, file: IO[bytes]) -> Iterator[bytes]:
    import zstandard

    def fresh() -> Any:
        return zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()

    def window(head: bytes) -> str:
        try:
            return f", whose window is {zstandard.get_frame_parameters(head).window_size >> 20:,} MiB"
        except zstandard.ZstdError:
            return ""

    return _decompressed(path, file, fresh, zstandard.ZstdError, "zstd", window)


def _gunzip(path: Path, file: IO[bytes]) -> Iterator[bytes]:
    return _decompressed(path, file, lambda: zlib.decompressobj(wbits=31), zlib.error, "gzip")


def _decompressed(
    path: Path,
    file: IO[bytes],
    fresh: Callable[[], Any],
    error_kind: type[Exception],
    kind: str,
    window: Callable[[bytes], str] = lambda head: "",
) -> Iterator[bytes]:
    """Blocks of a file of concatenated compressed frames, and zeros behind them (as on tapes).

    Raises DataError when it is damaged or ends too early, or takes more memory than there is (`window` says what for).
    """
    stream: Any = None
    frames, head = 0, b""
    try:
        while data := file.read(_COMPRESSED_BLOCK):
            at = 0
            while at < len(data):
                if stream is None:
                    at += len(data) - at - len(data[at:].lstrip(b"\0")) if frames else 0
                    if at == len(data):
                        break
                    stream, head = fresh(), data[at : at + _ZSTD_HEADER]
                    frames += 1
                piece = data[at : at + _PIECE]
                yield stream.decompress(piece)
                at += len(piece) - len(stream.unused_data)
                if stream.eof:
                    stream = None
    except (error_kind, MemoryError) as error:
        if isinstance(error, MemoryError) or "memory" in str(error):
            raise DataError(f"{path}: too little memory for {kind}'s frame {frames}{window(head)}") from None
        if "ictionary" in str(error):
            raise DataError(f"{path} is compressed with a dictionary, which golf does not take ({error})") from None
        where = f", behind {frames - 1} whole frames" if frames > 1 else ""
        raise DataError(f"{path} is damaged: {kind} cannot read it{where} ({error})") from None
    if stream is not None:
        raise DataError(f"{path} is damaged or cut: its last {kind} frame has no end")
