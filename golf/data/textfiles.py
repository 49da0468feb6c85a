"""Reading text files of several kinds as documents."""

from __future__ import annotations

import glob
import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from golf.common.errors import DataError

SUFFIXES = (".txt", ".md", ".jsonl", ".jsonl.zst", ".jsonl.gz", ".parquet")
_REPLACEMENT = "\ufffd"
_BLOCK = 1 << 20


def read_bytes(path: Path) -> bytes:
    """A file's bytes. Raises DataError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None


def decode(data: bytes) -> tuple[str, int]:
    """UTF-8 bytes as text, and how many U+FFFD stand for bytes that are not UTF-8."""
    try:
        return data.decode("utf-8"), 0
    except UnicodeDecodeError:
        text = data.decode("utf-8", errors="replace")
        return text, text.count(_REPLACEMENT) - data.count(_REPLACEMENT.encode())


def mend(text: str) -> tuple[str, int]:
    """`text` without lone surrogates (JSON can escape them, UTF-8 cannot hold them), and how many were replaced."""
    try:
        text.encode("utf-8")
        return text, 0
    except UnicodeEncodeError:
        mended = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return mended, mended.count(_REPLACEMENT) - text.count(_REPLACEMENT)


def expand(paths: Iterable[str], suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """Files, folders (readable files below, sorted) and globs (sorted) as a list of files, in the given order.

    Raises DataError for a path that gives no file, or a file of an unknown kind.
    """
    files: list[Path] = []
    for given in paths:
        path = Path(given).expanduser()
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.is_file() and p.name.endswith(suffixes))
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
            if not file.name.endswith(suffixes):
                raise DataError(f"{file}: golf cannot read this kind of file (choices: {', '.join(suffixes)})")
        files += found
    return [file.absolute() for file in files]


class Reader:
    """Documents of text files; `fraction` says how far the present pass has come."""

    def __init__(self, field: str) -> None:
        self.field = field
        self.fraction = 0.0

    def documents(self, files: list[Path]) -> Iterator[tuple[str, int]]:
        """(document, replaced characters) over the files in order. Raises DataError with the file and line."""
        try:
            total, done = sum(max(path.stat().st_size, 1) for path in files), 0
            for path in files:
                size = max(path.stat().st_size, 1)
                with open(path, "rb") as file:
                    for document in self._file(path, file):
                        self.fraction = (done + min(file.tell(), size)) / total
                        yield document
                done += size
        except OSError as error:
            raise DataError(f"cannot read {error.filename or 'a text file'}: {error.strerror}") from None

    def _file(self, path: Path, file: IO[bytes]) -> Iterator[tuple[str, int]]:
        if path.name.endswith((".txt", ".md")):
            yield decode(file.read())
        elif path.name.endswith(".parquet"):
            yield from self._parquet(path, file)
        elif path.name.endswith(".zst"):
            yield from self._jsonl(path, _lines(_unzstd(path, file)))
        elif path.name.endswith(".gz"):
            yield from self._jsonl(path, _lines(_gunzip(path, file)))
        else:
            yield from self._jsonl(path, file)

    def _jsonl(self, path: Path, lines: Iterable[bytes]) -> Iterator[tuple[str, int]]:
        for number, line in enumerate(lines, start=1):
            raw, replaced = decode(line)
            if not raw.strip():
                continue
            try:
                row = json.loads(raw)
            except ValueError as error:
                raise DataError(f"{path}, line {number}: not JSON ({error})") from None
            text, surrogates = mend(self._text(row, path, f"line {number}"))
            yield text, replaced + surrogates

    def _text(self, row: Any, path: Path, where: str) -> str:
        if not isinstance(row, dict) or self.field not in row:
            fields = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise DataError(f"{path}, {where}: no field '{self.field}' (it has: {fields}); set data.field")
        text = row[self.field]
        if text is None:
            return ""
        if not isinstance(text, str):
            raise DataError(f"{path}, {where}: field '{self.field}' is {type(text).__name__}, not text")
        return text

    def _parquet(self, path: Path, file: IO[bytes]) -> Iterator[tuple[str, int]]:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise DataError(f"{path}: reading .parquet needs pyarrow (pip install pyarrow)") from None
        try:
            table = pyarrow.parquet.ParquetFile(file)
            if self.field not in table.schema_arrow.names:
                fields = ", ".join(table.schema_arrow.names)
                raise DataError(f"{path}: no column '{self.field}' (it has: {fields}); set data.field")
            row = 0
            for batch in table.iter_batches(batch_size=1024, columns=[self.field]):
                # As bytes, since a writer may have put into a string column what is not UTF-8.
                column = batch.column(0)
                if pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type):
                    column = column.cast(pyarrow.large_binary())
                for value in column.to_pylist():
                    row += 1
                    if value is not None and not isinstance(value, bytes):
                        raise DataError(f"{path}, row {row}: column '{self.field}' is not text")
                    yield decode(value or b"")
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{path} is not a readable parquet file ({str(error).splitlines()[0][:120]})") from None


def _lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    rest: list[bytes] = []
    for block in blocks:
        head, *others = block.split(b"\n")
        rest.append(head)
        for following in others:
            yield b"".join(rest)
            rest = [following]
    yield b"".join(rest)


def _unzstd(path: Path, file: IO[bytes]) -> Iterator[bytes]:
    import zstandard

    def fresh() -> Any:
        return zstandard.ZstdDecompressor().decompressobj()

    return _decompressed(path, file, fresh, zstandard.ZstdError, "zstd")


def _gunzip(path: Path, file: IO[bytes]) -> Iterator[bytes]:
    return _decompressed(path, file, lambda: zlib.decompressobj(wbits=31), (zlib.error, gzip.BadGzipFile), "gzip")


def _decompressed(
    path: Path,
    file: IO[bytes],
    fresh: Callable[[], Any],
    errors: type[Exception] | tuple[type[Exception], ...],
    kind: str,
) -> Iterator[bytes]:
    """Blocks of a file of concatenated compressed frames. Raises DataError when it is damaged or ends too early."""
    stream: Any = None
    try:
        while data := file.read(_BLOCK):
            while data:
                stream = stream or fresh()
                yield stream.decompress(data)
                data = stream.unused_data
                if not stream.eof:
                    break
                stream = None
    except errors as error:
        raise DataError(f"{path} is damaged: {kind} cannot read it ({error})") from None
    if stream is not None:
        raise DataError(f"{path} is cut: its last {kind} frame has no end")
