"""The counted form of an exported file: minified, compressed, in a text that unpacks itself in memory."""

from __future__ import annotations

import bz2
import lzma
import re

import python_minifier

_FILTERS = [{"id": lzma.FILTER_LZMA1, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "pb": 0}]
"""What suits source: the byte before says much of the next, a place in the file nothing."""
_ESCAPES = {b"\0": rb"\0", b"\r": rb"\r", b"\\": rb"\\", b"'": rb"\'"}


def minified(text: str) -> str:
    """The source without comments and docstrings, in short names; annotations stay, for what reads them at work."""
    return python_minifier.minify(
        text, remove_annotations=False, remove_literal_statements=True, hoist_literals=False, rename_globals=True,
        remove_asserts=True,
    )  # fmt: skip


def packed(text: str) -> bytes:
    """A file that does what the source does. `linecache` knows its lines: Triton reads its kernels' source.

    The compressed bytes stand in it as they are, as Latin-1: base85 would take a fourth more.
    """
    source = minified(text).encode()
    squeezed = {"bz2": bz2.compress(source), "lzma": lzma.compress(source, format=lzma.FORMAT_ALONE, filters=_FILTERS)}
    name = min(squeezed, key=lambda one: len(squeezed[one]))
    return (
        b"#coding:latin-1\nimport linecache,%b;s=%b.decompress('''%b'''.encode('latin-1')).decode();"
        b"linecache.cache['s']=len(s),None,s.splitlines(1),'s';exec(compile(s,'s','exec'))\n"
    ) % (name.encode(), name.encode(), _quoted(squeezed[name]))


def _quoted(data: bytes) -> bytes:
    """Bytes as they stand within quotes in a source of one byte a character, which may hold no NUL and no CR."""

    def escaped(found: re.Match[bytes]) -> bytes:
        digit = data[found.end() : found.end() + 1] in (b"0", b"1", b"2", b"3", b"4", b"5", b"6", b"7")
        return rb"\x00" if found.group() == b"\0" and digit else _ESCAPES[found.group()]

    return re.sub(rb"[\0\r\\']", escaped, data)
