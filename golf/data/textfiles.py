"""Reading text files of several kinds as documents."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, Any

from golf.common.errors import DataError
from golf.data.blocks import LONGEST, gunzip, pieces, raw, split, unzstd
from golf.data.encodings import Decoder, Document, mend, unmarked

SUFFIXES = (".txt", ".md", ".jsonl", ".jsonl.zst", ".jsonl.gz", ".parquet")
END_OF_TEXT = "<|endoftext|>"  # between documents in many published .txt files
_ROWS = 64  # of parquet that are held at once: a dictionary's one long value may stand in all of them
_FEW_UNREADABLE = 10  # lines that are passed over even where most are; one that is read is needed all the same
_MOST_RATIO, _MODEST = 100, 1 << 23  # a parquet column is not to expand further, beyond so many bytes
_LONG_LINE, _CROWDED = 1 << 25, 8  # of JSON: a longer one has fewer values than one in so many bytes


def read_bytes(path: Path) -> bytes:
    """A file's bytes. Raises DataError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None


def expand(paths: str | Iterable[str], suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """Files, folders (readable files below, sorted) and globs (sorted) as a list of files, in the given order.

    Raises DataError for a path that gives no file, or a file of an unknown kind.
    """
    files: list[Path] = []
    for given in [paths] if isinstance(paths, str) else paths:
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

    field: what holds the text in .jsonl and .parquet, `meta.text` within another. encodings: see `encoding_names`.
    separator: what stands between the documents of a .txt or .md file, with the ends of its line; None: such a file is
    one document. longest: bytes of a line or text that are held in memory: a longer text of a .txt or .md is cut into
    documents at the end of a paragraph, a line or a word, a longer line of .jsonl is passed over.
    What holds no text (a line that is not JSON, or lacks the field) comes as a document that is `skipped`.
    `first_replaced` is the place of the first document in which characters were replaced, `first_skipped` place and
    reason of the first that was, `first_cut` and `first_separated` are the first files that were too long, and that
    have END_OF_TEXT in a document.
    """

    def __init__(
        self,
        field: str,
        encodings: tuple[str, ...] = (),
        separator: str | None = None,
        longest: int = LONGEST,
    ) -> None:
        self.field, self.encodings, self.separator, self.longest = field, encodings, separator, longest
        self.fraction = 0.0
        self.first_replaced: str | None = None
        self.first_skipped: str | None = None
        self.first_cut: str | None = None
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
            yield from self._jsonl(path, unzstd(path, file), decoder)
        elif name.endswith(".gz"):
            yield from self._jsonl(path, gunzip(path, file), decoder)
        else:
            yield from self._jsonl(path, raw(file), decoder)

    def _text_file(self, path: Path, file: IO[bytes], decoder: Decoder) -> Iterator[Document]:
        if self.separator is None and path.stat().st_size <= self.longest:
            document = self._noted(decoder.whole(file.read(), path), str(path))
            if self.first_separated is None and document.text.count(END_OF_TEXT) > 1:
                self.first_separated = str(path)
            yield document
            return
        blocks, read, codec = decoder.open(raw(file), path)
        separator = None if self.separator is None else self.separator.encode(codec)
        for number, (part, whole) in enumerate(pieces(blocks, separator, self.longest), start=1):
            place = f"document {number}"
            document = self._noted(read(part, place), f"{path}, {place}")
            if not whole and self.first_cut is None:
                self.first_cut = str(path)
            yield document._replace(text=document.text.strip("\r\n")) if separator is not None else document

    def _jsonl(self, path: Path, blocks: Iterator[bytes], decoder: Decoder) -> Iterator[Document]:
        blocks, read, _ = decoder.open(blocks, path)
        tally = _Readable()
        for number, line in enumerate(split(blocks, b"\n", self.longest), start=1):
            place = f"line {number}"
            try:
                if line is None:
                    raise _NoTextError(f"longer than data.longest_document={self.longest} bytes")
                if len(line) > _LONG_LINE and sum(map(line.count, (b",", b"[", b"{"))) > len(line) // _CROWDED:
                    raise _NoTextError("too many values for a document")  # each takes thirty times its bytes
                read_line = read(line, place)
                if not read_line.text.strip():
                    continue
                text, surrogates = mend(unmarked(self._text(_json(read_line.text))))
            except _NoTextError as error:
                yield self._passed_over(f"{path}, {place}: {error}", tally)
                continue
            tally.good += 1
            document = read_line._replace(text=text, replaced=read_line.replaced + surrogates)
            yield self._noted(document, f"{path}, {place}")
        if tally.bad and not tally.good:
            raise DataError(tally.first)

    def _passed_over(self, why: str, tally: _Readable) -> Document:
        """A document in place of one that cannot be had. Raises DataError where most of a file's cannot."""
        tally.bad += 1
        tally.first = tally.first or why
        self.first_skipped = self.first_skipped or why
        if tally.bad > max(tally.good, _FEW_UNREADABLE):
            told = f"and {tally.bad - 1:,} more, where {tally.good:,} lines are as they should be"
            raise DataError(f"{tally.first}\n({told})" if tally.good else tally.first)
        return Document("", skipped=True)

    def _text(self, row: Any) -> str:
        """The field's text; null is an empty one. Raises _NoTextError."""
        if not isinstance(row, dict):
            raise _NoTextError(f"no field '{self.field}' (the line is {_JSON_KINDS[type(row)]}, not an object)")
        found = row
        for name in (self.field,) if self.field in row else self.field.split("."):
            if found is None:
                break
            if not isinstance(found, dict) or name not in found:
                raise _NoTextError(f"no field '{self.field}' (it has: {_listed(row) or 'none'}); set data.field")
            found = found[name]
        if found is not None and not isinstance(found, str):
            raise _NoTextError(f"field '{self.field}' is {type(found).__name__}, not text")
        return found or ""

    def _parquet(self, path: Path, file: IO[bytes], decoder: Decoder) -> Iterator[Document]:
        try:
            import pyarrow
            import pyarrow.compute
            import pyarrow.parquet
        except ImportError:
            raise DataError(f"{path}: reading .parquet needs pyarrow (pip install pyarrow)") from None
        try:
            table = pyarrow.parquet.ParquetFile(file, pre_buffer=False)  # or all of the file would be in memory
            kind, inner = self._column(table.schema_arrow, path)
            self._refuse_bomb(path, table)
            # As bytes, since a writer may have put into a string column what is not UTF-8.
            as_bytes = pyarrow.large_binary()
            try:
                _unpacked(pyarrow.nulls(0, kind)).cast(as_bytes)
            except pyarrow.ArrowNotImplementedError:
                raise DataError(f"{path}, row 1: column '{self.field}' is not text but {kind}") from None
            row, tally = 0, _Readable()
            batches = (
                table.iter_batches(batch_size=_ROWS, row_groups=[group], columns=[self.field])
                for group in range(table.num_row_groups)
            )
            for batch in chain.from_iterable(batches):
                column = batch.column(0)
                for name in inner:
                    column = pyarrow.compute.struct_field(column, name)
                for value in _unpacked(column).cast(as_bytes):
                    row += 1
                    place = f"row {row}"
                    data = value.as_py() or b""
                    if len(data) > self.longest:
                        why = f"{path}, {place}: longer than data.longest_document={self.longest} bytes"
                        yield self._passed_over(why, tally)
                        continue
                    tally.good += 1
                    yield self._noted(decoder.whole(data, path, place), f"{path}, {place}")
        except MemoryError:
            raise DataError(f"{path}: too little memory for its row groups") from None
        except (pyarrow.ArrowException, OSError, ValueError) as error:  # a column's name may be no UTF-8
            raise DataError(
                f"{path} is not a readable parquet file ({str(error).partition(chr(10))[0][:120]})"
            ) from None

    def _column(self, schema: Any, path: Path) -> tuple[Any, list[str]]:
        """The type of the field's values, and the names that lead from its column to it. Raises DataError."""
        names = schema.names
        outer, *inner = (self.field,) if self.field in names else self.field.split(".")
        if names.count(outer) != 1:
            count = "two columns" if outer in names else "no column"
            raise DataError(f"{path}: {count} '{self.field}' (it has: {_listed(names)}); set data.field")
        kind = schema.field(outer).type
        for name in inner:
            at = kind.get_field_index(name) if hasattr(kind, "get_field_index") else -1
            if at < 0:
                raise DataError(
                    f"{path}: no column '{self.field}' (its part before '{name}' is {kind}); set data.field"
                )
            kind = kind.field(at).type
        return kind, inner

    def _refuse_bomb(self, path: Path, table: Any) -> None:
        """Raises DataError for a column that expands far more than text does."""
        size = path.stat().st_size
        for number in range(table.num_row_groups):
            group = table.metadata.row_group(number)
            for column in (group.column(index) for index in range(table.metadata.num_columns)):
                if not f"{column.path_in_schema}.".startswith(f"{self.field}."):
                    continue
                large, stored = column.total_uncompressed_size, max(column.total_compressed_size, 1)
                if large > _MODEST and large > _MOST_RATIO * min(stored, size):
                    raise DataError(f"{path}: row group {number + 1} of {stored:,} bytes expands to {large:,}: refused")

    def _noted(self, document: Document, place: str) -> Document:
        if document.replaced and self.first_replaced is None:
            self.first_replaced = place
        return document


class _NoTextError(Exception):
    """Why a line has no text; the place is the reader's to tell."""


@dataclass
class _Readable:
    """Lines or rows of one file that had a text and that had none, and why the first had none."""

    good: int = 0
    bad: int = 0
    first: str = ""


def _unpacked(column: Any) -> Any:
    """A column of the values themselves, where it was one of places in a dictionary."""
    return column.dictionary_decode() if hasattr(column, "dictionary_decode") else column


def _json(text: str) -> Any:
    """Raises _NoTextError for what is not JSON."""
    try:
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            raise
        except ValueError:  # a whole number of thousands of digits, which int refuses; only its kind matters here
            return json.loads(text, parse_int=lambda digits: int(digits[:20]))
    except json.JSONDecodeError as error:
        raise _NoTextError(f"not JSON ({error})") from None
    except RecursionError:
        raise _NoTextError("not JSON that golf can read (nested too deeply)") from None


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
