"""What was packed before, in the user's cache folder: to pack takes seconds, and a config is run and exported again."""

from __future__ import annotations

import hashlib
import sys
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from golf.common.bounded import read_bytes
from golf.common.errors import GolfError
from golf.common.files import atomic_writer, cache_dir

KEPT = 500
"""Files of 40 kB or so that stay; then the oldest go."""
_MOST = 1 << 23
_DIGEST = hashlib.sha256().digest_size


def remembered(text: str, pack: Callable[[str], bytes]) -> bytes:
    """`pack(text)`, made once for a text and all that makes it; what is damaged or not to be had is made anew."""
    path = cache_dir() / "packed" / key(text)
    with suppress(OSError, ValueError):
        found = read_bytes(path, _MOST)
        if hashlib.sha256(found[_DIGEST:]).digest() == found[:_DIGEST]:
            return found[_DIGEST:]
    made = pack(text)
    with suppress(OSError, GolfError):  # nothing fails where nothing can be kept
        with atomic_writer(path) as file:
            file.write(hashlib.sha256(made).digest() + made)
        for old in sorted(path.parent.iterdir(), key=lambda one: one.stat().st_mtime)[:-KEPT]:
            old.unlink()
    return made


def key(text: str, packer: Iterable[Path] | None = None) -> str:
    """Hex SHA-256 of a text, of the sources that pack it (None: this package's), and of what else these go by: Python,
    zlib, and which packages of which versions there are, a base class of which may call a method by its name."""
    sources = Path(__file__).parent.glob("*.py") if packer is None else packer
    parts = [text.encode(), *(one.read_bytes() for one in sorted(sources))]
    packages = sorted({one.name for place in sys.path for one in Path(place).glob("*-info")})
    parts += [repr((sys.version, zlib.ZLIB_RUNTIME_VERSION, packages)).encode()]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
