"""The counted form of an exported file: minified, compressed, in two lines that unpack themselves in memory."""

from __future__ import annotations

import base64
import lzma

import python_minifier

_FILTERS = [{"id": lzma.FILTER_LZMA1, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "pb": 0}]
"""What suits source: the byte before says much of the next, a place in the file nothing."""


def minified(text: str) -> str:
    """The source without comments and docstrings, in short names; annotations stay, for what reads them at work."""
    return python_minifier.minify(
        text, remove_annotations=False, remove_literal_statements=True, hoist_literals=False, rename_globals=True,
        remove_asserts=True,
    )  # fmt: skip


def packed(text: str) -> bytes:
    """A file that does what the source does. `linecache` knows its lines: Triton reads its kernels' source."""
    squeezed = lzma.compress(minified(text).encode(), format=lzma.FORMAT_ALONE, filters=_FILTERS)
    return (
        b"import base64,linecache,lzma\ns=lzma.decompress(base64.b85decode('" + base64.b85encode(squeezed) + b"'))"
        b".decode();linecache.cache['s']=len(s),None,s.splitlines(1),'s';exec(compile(s,'s','exec'))\n"
    )
