"""Files as blocks of bytes, unpacked as they come, and what stands between separators in them; memory is bounded."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from golf.common.errors import DataError

LONGEST = 1 << 27
"""Bytes of a line or a text that are read as one document, unless data.longest_document says otherwise."""
_BLOCK = 1 << 20
_COMPRESSED_BLOCK = 1 << 17
_PIECE = 1 << 11  # what it unpacks to is held whole: of zstd 2^17 bytes for every four, at worst
_ZSTD_WINDOW = 1 << 31  # as zstd --long=31 writes; zstd's own limit is 2^27
_ZSTD_HEADER = 18
_PART = 1 << 22  # bytes of a part of a text that has to be cut


def split(blocks: Iterable[bytes], separator: bytes, longest: int = LONGEST) -> Iterator[bytes | None]:
    """What stands between separators in the joined blocks, and behind the last; None for what is longer than `longest`.

    No more than about twice `longest` is held.
    """
    pending, too_long = bytearray(), False
    for block in blocks:
        straddling = max(0, len(pending) - len(separator) + 1)
        pending += block
        if pending.find(separator, straddling) >= 0:
            *whole, rest = bytes(pending).split(separator)
            pending = bytearray(rest)
            for part in whole:
                yield None if too_long or len(part) > longest else part
                too_long = False
            whole.clear()
        if len(pending) > longest:
            too_long, pending = True, pending[len(pending) - len(separator) + 1 :]
    yield None if too_long else bytes(pending)


def pieces(blocks: Iterable[bytes], separator: bytes | None, longest: int) -> Iterator[tuple[bytes, bool]]:
    """What stands between separators (None: all of it), or parts of what is longer than `longest`; and whether whole.

    Parts have at most `_PART` bytes and end with a paragraph, a line or a word in their last half, or else between two
    characters in UTF-8.
    """
    most = longest
    pending, whole = bytearray(), True
    for block in blocks:
        straddling = max(0, len(pending) - len(separator or b"") + 1)
        pending += block
        found = separator is not None and pending.find(separator, straddling) >= 0
        if not found and len(pending) <= most:
            continue
        parts = bytes(pending).split(separator) if found else [bytes(pending)]
        for number, part in enumerate(parts, start=1):
            at = 0
            while len(part) - at > most:
                most = min(longest, _PART)
                end = _border(part, at, most)
                yield part[at:end], False
                at, whole = end, False
            if number < len(parts):
                yield part[at:], whole
                whole, most = True, longest
        pending = bytearray(parts[-1][at:])
    yield bytes(pending), whole


def _border(part: bytes, at: int, longest: int) -> int:
    for border in (b"\n\n", b"\n", b" "):
        found = part.rfind(border, at + longest // 2, at + longest)
        if found >= 0:
            return found + len(border)
    end = at + longest
    while end > at + longest // 2 and part[end] & 0xC0 == 0x80:
        end -= 1
    return end


def raw(file: IO[bytes]) -> Iterator[bytes]:
    """A file's bytes."""
    return iter(lambda: file.read(_BLOCK), b"")


def unzstd(path: Path, file: IO[bytes]) -> Iterator[bytes]:
    """What a .zst file unpacks to; see `_decompressed`."""
    import zstandard

    def fresh() -> Any:
        return zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()

    def window(head: bytes) -> str:
        try:
            return f", whose window is {zstandard.get_frame_parameters(head).window_size >> 20:,} MiB"
        except zstandard.ZstdError:
            return ""

    return _decompressed(path, file, fresh, zstandard.ZstdError, "zstd", window)


def gunzip(path: Path, file: IO[bytes]) -> Iterator[bytes]:
    """What a .gz file unpacks to; see `_decompressed`."""
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
