"""The counted form of an exported file: minified, compressed, in a text that unpacks itself in memory."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import zlib
from functools import cache

import python_minifier

from golf.export import mixing
from golf.export.lean import imports, lean

_OF_MIXING = "import math\nfrom array import array\nfrom collections import defaultdict\nfrom operator import mul"
_ESCAPES = {b"\0": rb"\0", b"\r": rb"\r", b"\\": rb"\\", b"'": rb"\'"}


class _Plain(ast.NodeTransformer):
    """`vars(x)` as `x.__dict__`: where `vars` stands, names may be looked up, and the minifier keeps all of them."""

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        match node:
            case ast.Call(func=ast.Name(id="vars"), args=[ast.expr() as thing], keywords=[]):
                return ast.Attribute(thing, "__dict__", ast.Load())
        return node


def minified(text: str) -> str:
    """The source without comments and docstrings, in short names; annotations stay, for what reads them at work.

    Names of built-ins and imports stay too: they would cost more where they are renamed than they do where they stand.
    """
    tree = lean(_Plain().visit(ast.parse(text)))
    arguments, named = _read_as_source(tree)
    plain = [*named, *dir(builtins), *imports(tree)]
    return python_minifier.minify(
        ast.unparse(tree), remove_annotations=False, remove_literal_statements=True, hoist_literals=False,
        rename_globals=True, remove_asserts=True, preserve_locals=arguments, preserve_globals=plain,
    )  # fmt: skip


def _read_as_source(tree: ast.AST) -> tuple[list[str], list[str]]:
    """The arguments of functions that a compiler of kernels reads as source (`@triton.jit`), and the names in them: an
    argument that is given another name there would be no constant any more, and it has rules of its own for globals."""
    kernels = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and any("jit" in ast.unparse(one) for one in node.decorator_list)
    ]
    inside = [one for node in kernels for one in ast.walk(node)]
    arguments = {one.arg for one in inside if isinstance(one, ast.arg)}
    return sorted(arguments), sorted({one.id for one in inside if isinstance(one, ast.Name)})


def packed(text: str) -> bytes:
    """A file that does what the source does. `linecache` knows its lines: Triton reads its kernels' source.

    The compressed bytes stand in it as they are, as Latin-1: base85 would take a fourth more. They are on other lines
    than what runs them, which a traceback shows.
    """
    source = minified(text).encode()
    return (
        b"#coding:latin-1\nimport linecache,zlib;d={};exec(zlib.decompress('''%b'''.encode('latin-1'),-15),d);"
        b"s=d['unmixed']('''%b'''.encode('latin-1'),%d).decode();"
        b"linecache.cache['s']=len(s),None,s.splitlines(1),'s'\nexec(compile(s,'s','exec'))\n"
    ) % (_quoted(_reader()), _quoted(mixing.mixed(source)), len(source))


def source_of(tree: ast.Module, most: int) -> bytes | None:
    """The source that a packed file runs, of at most so many bytes; None for one that unpacks itself otherwise, as
    another release's may. Nothing of it is run."""
    texts, sizes = list[bytes](), list[int]()
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) if max(text, default="") <= "\xff":
                texts.append(text.encode("latin-1"))
            case ast.Call(func=ast.Subscript(slice=ast.Constant("unmixed")), args=[_, ast.Constant(value=int(n))]):
                sizes.append(n)
    if len(sizes) != 1 or not 0 < sizes[0] <= most:
        return None
    held = [text for text in texts if not _is_reader(text)]
    return mixing.unmixed(max(held, key=len), sizes[0]) if 0 < len(held) < len(texts) else None


def _is_reader(text: bytes) -> bool:
    try:
        return zlib.decompressobj(-15).decompress(text, 1 << 16) == zlib.decompress(_reader(), -15)
    except zlib.error:
        return False


@cache
def _reader() -> bytes:
    """The source of what unpacks, deflated."""
    parts = inspect.getsource(mixing.tables), inspect.getsource(mixing.unmixed)
    source = "\n".join([_OF_MIXING, *parts])
    short = python_minifier.minify(
        source, remove_annotations=True, remove_literal_statements=True, rename_globals=True,
        preserve_globals=["unmixed"],
    )  # fmt: skip
    squeezing = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
    return squeezing.compress(short.encode()) + squeezing.flush()


def _quoted(data: bytes) -> bytes:
    """Bytes as they stand within quotes in a source of one byte a character, which may hold no NUL and no CR."""

    def escaped(found: re.Match[bytes]) -> bytes:
        digit = data[found.end() : found.end() + 1] in (b"0", b"1", b"2", b"3", b"4", b"5", b"6", b"7")
        return rb"\x00" if found.group() == b"\0" and digit else _ESCAPES[found.group()]

    return re.sub(rb"[\0\r\\]|'(?='')|'\Z", escaped, data)
