"""What a submission's script is without running it: the source that a packed one unpacks, and what it imports."""

from __future__ import annotations

import ast
import base64
import bz2
import lzma
import sys
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SCRIPT, TOLD, NEEDS = "train_gpt.py", "submission.json", "requirements.txt"
"""Files of a submission's folder."""
MOST_SOURCE = 1 << 23
"""Bytes that are unpacked of a script."""
MOST_MIXED = 1 << 20
"""The same where it takes a second for each 100 kB."""
_DEPTH = 3
"""Packed within packed."""


class Unreadable(ValueError):
    """Source that Python does not take: the message says where."""


@dataclass(frozen=True)
class Scanned:
    """A script's source, `packed` or as it lies, and the names of what it imports: when it is run, and only in
    functions or where a failure is caught. hidden: it runs text that could not be unpacked."""

    source: str
    packed: bool
    needed: frozenset[str]
    optional: frozenset[str]
    hidden: bool = False


def is_submission(folder: Path) -> bool:
    """Whether this is a submission's folder, and no run's."""
    return (folder / SCRIPT).is_file() and (folder / TOLD).is_file() and not (folder / "config.yaml").exists()


def scan(script: bytes) -> Scanned:
    """Read a script, whoever wrote it; nothing of it is run. Raises Unreadable."""
    tree = parsed(script)
    packed = hidden = False
    for _ in range(_DEPTH):
        if not _runs_text(tree):
            break
        inner = _unpacked(tree)
        if inner is None:
            hidden = True
            break
        script, packed, tree = inner, True, parsed(inner)
    needed = {name for node in tree.body for name in _names(node)}
    every = {name for node in ast.walk(tree) for name in _names(node)} | called(tree)
    source = script.decode("utf-8", errors="replace")
    return Scanned(source, packed, frozenset(_roots(needed)), frozenset(_roots(every) - _roots(needed)), hidden)


def parsed(script: bytes) -> ast.Module:
    """The syntax tree. Raises Unreadable."""
    try:
        tree = ast.parse(script)
        compile(tree, "train_gpt.py", "exec", dont_inherit=True)  # what the grammar alone lets pass
    except SyntaxError as error:
        raise Unreadable(f"line {error.lineno}: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise Unreadable(str(error) or type(error).__name__) from None
    return tree


def called(tree: ast.AST) -> set[str]:
    """What a function of golf's imports by its name."""
    return {
        node.args[-1].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[-1], ast.Constant)
        and isinstance(node.args[-1].value, str) and getattr(node.func, "id", "") in ("import_module", "_library")
    }  # fmt: skip


def imported(tree: ast.AST) -> set[str]:
    """The packages that a script imports, wherever it does, without Python's own."""
    return _roots({name for node in ast.walk(tree) for name in _names(node)} | called(tree))


def _names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [one.name for one in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []


def _roots(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {""}


def _runs_text(tree: ast.Module) -> bool:
    """Whether a script is short and runs a text: one that unpacks itself."""
    calls = {getattr(node.func, "id", "") for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return "exec" in calls and len(tree.body) < 20


def _unpacked(tree: ast.Module) -> bytes | None:
    """The source in the longest constant of a script, unpacked."""
    from golf.export.packed import source_of  # what packs is loaded where there is something to unpack

    if (mixed := source_of(tree, MOST_MIXED)) is not None:
        return mixed
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    longest = max((one for one in texts if isinstance(one, str | bytes)), key=len, default=b"")
    with suppress(UnicodeEncodeError):
        data = longest if isinstance(longest, bytes) else longest.encode("latin-1")
        for decode in (bytes, base64.b85decode, base64.b64decode):
            for squeezed in _PACKERS:
                with suppress(ValueError, SyntaxError, OSError, EOFError, lzma.LZMAError, zlib.error, MemoryError):
                    found = squeezed(decode(data))
                    ast.parse(found)
                    return found
    return None


def _within(found: bytes) -> bytes:
    if len(found) > MOST_SOURCE or not found:
        raise ValueError("too large, or nothing")
    return found


_PACKERS: tuple[Callable[[bytes], bytes], ...] = (
    lambda data: _within(bz2.BZ2Decompressor().decompress(data, MOST_SOURCE + 1)),
    lambda data: _within(lzma.LZMADecompressor(memlimit=1 << 30).decompress(data, MOST_SOURCE + 1)),
    lambda data: _within(zlib.decompressobj().decompress(data, MOST_SOURCE + 1)),
)
