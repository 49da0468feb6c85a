"""Token shards in the challenge's binary format: written whole, validated on opening, read as one endless stream."""

from __future__ import annotations

import glob
import itertools
import os
import resource
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, ClassVar, NamedTuple

import numpy as np

from golf.common.errors import DataError
from golf.common.files import atomic_writer

MAGIC, VERSION = 20240520, 1
_FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
MOST_OPEN = 128 if _FILES == resource.RLIM_INFINITY else max(1, min(128, _FILES // 4))
"""Files of shards that are open at a time."""
_HEADER_BYTES = 1024  # 256 little-endian int32: magic, version, token count, zeros


class Written(NamedTuple):
    """A shard that is on disk, its tokens, and those that were taken from the stream and belong to the next one."""

    path: Path
    tokens: int
    pending: np.ndarray


def write_shards(
    folder: Path, split: str, arrays: Iterable[np.ndarray], shard_tokens: int = 10**8, prefix: str = "golf"
) -> list[Path]:
    """Write a stream of ids (arrays of any length, values in 0..65535) as `{prefix}_{split}_000000.bin`, ….

    Every shard but the last holds exactly `shard_tokens` tokens; documents straddle the borders, so one may be
    longer than a shard. Each file appears whole or not at all. Returns the paths in order: none for no tokens.
    Raises DataError for an id that 16 bits cannot hold or for shard_tokens below 1, GolfError on a full disk.
    """
    return [one.path for one in each_shard(folder, split, arrays, shard_tokens, prefix)]


def each_shard(
    folder: Path,
    split: str,
    arrays: Iterable[np.ndarray],
    shard_tokens: int = 10**8,
    prefix: str = "golf",
    first: int = 0,
) -> Iterator[Written]:
    """Write shards as `write_shards` does, from number `first` on, and tell of each as soon as it is on disk."""
    if shard_tokens < 1:
        raise DataError(f"data.shard_tokens={shard_tokens}: at least 1")
    stream, pending = iter(arrays), np.empty(0, "<u2")
    for number in itertools.count(first):
        while not pending.size:
            following = next(stream, None)
            if following is None:
                return
            pending = _as_ids(following)
        path = Path(folder) / f"{prefix}_{split}_{number:06d}.bin"
        with atomic_writer(path) as file:
            file.write(_header(0))
            count = 0
            while count < shard_tokens:
                taken = pending[: shard_tokens - count]
                file.write(taken.tobytes())
                count, pending = count + taken.size, pending[taken.size :]
                if count < shard_tokens:
                    following = next(stream, None)
                    if following is None:
                        break
                    pending = _as_ids(following)
            file.seek(0)
            file.write(_header(count))
        yield Written(path, count, pending)


class OnDisk:
    """The tokens of one shard, uint16 [size], of which a slice is read when it is asked for."""

    _open: ClassVar[deque[OnDisk]] = deque()
    """Those whose files are, the last used last or nearly so: a process has few descriptors."""

    def __init__(self, path: Path, size: int) -> None:
        self.path, self.size = path, size
        self._file: IO[bytes] | None = None

    def __getitem__(self, span: slice) -> np.ndarray:
        """Raises DataError as `into` does."""
        start, stop, _ = span.indices(self.size)
        out = np.empty(max(0, stop - start), np.uint16)
        self.into(out, start)
        return out

    def into(self, out: np.ndarray, offset: int) -> None:
        """Fill `out`, uint16 [n], with the tokens from `offset` on. Raises DataError where the file has gone, or is
        shorter than it was."""
        view, at = out.view("u1"), _HEADER_BYTES + 2 * offset
        try:
            file = self._handle()  # held here: another thread may let go of it
            while len(view):
                if not (count := os.preadv(file.fileno(), [view.data], at)):
                    raise DataError(f"{self.path} was cut while it was in use: token {offset} and more are gone")
                view, at = view[count:], at + count
        except OSError as error:
            raise DataError(f"cannot read the shard {self.path}: {error.strerror}") from None
        if sys.byteorder == "big":
            out.byteswap(inplace=True)

    def let_go(self) -> None:
        """Close the file until it is read again."""
        if self._file is not None:
            self._file = None
            with suppress(ValueError):  # another thread has let go of it
                self._open.remove(self)

    def _handle(self) -> IO[bytes]:
        if (file := self._file) is None:
            file = self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115 (for the next slice)
            self._open.append(self)
            if len(self._open) > MOST_OPEN:
                self._open.popleft()._file = None
        return file


class Shards:
    """Shards of one split as one stream of `len(self)` tokens, read as they are asked for; reading wraps to the start
    at the end.

    Magic, version and exact length are checked on opening. Ids are checked against `vocab_size` whenever they are
    read, so no id out of the vocabulary reaches a model, and opening 16 GB of shards costs nothing.
    """

    def __init__(self, paths: Sequence[Path], parts: Sequence[np.ndarray | OnDisk], vocab_size: int) -> None:
        self.paths = list(paths)
        self.vocab_size = vocab_size
        self._parts = list(parts)
        self._ends = np.cumsum([part.size for part in parts])

    @classmethod
    def open(cls, paths: Sequence[str | Path] | str | Path, vocab_size: int) -> Shards:
        """Open the files in the given order; a str or Path is a glob, taken in sorted order.

        Raises DataError when there is no file, a file is no shard of this format, was cut, or all are empty.
        """
        if isinstance(paths, str | Path):
            found = sorted(glob.glob(str(Path(paths).expanduser()), recursive=True))
            if not found:
                raise DataError(f"no shards match {paths}")
            paths = found
        files = [Path(path) for path in paths]
        if not files:
            raise DataError("there are no shards to open")
        parts = [_on_disk(path) for path in files]
        if not any(part.size for part in parts):
            raise DataError(f"the shards hold no tokens: {files[0]}{' …' if len(files) > 1 else ''}")
        return cls(files, parts, vocab_size)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def size(self, index: int) -> int:
        """Tokens of one shard."""
        return int(self._parts[index].size)

    def index_of(self, position: int) -> int:
        """The shard that holds the token at `position` of the stream."""
        return int(np.searchsorted(self._ends, max(position, 0), side="right"))

    def let_go(self) -> None:
        """Close the files; the next reading opens them again."""
        for part in self._parts:
            if isinstance(part, OnDisk):
                part.let_go()

    def part(self, index: int, offset: int, n: int) -> np.ndarray:
        """At most `n` tokens of one shard from `offset` on. Raises DataError as `read` does."""
        ids = np.asarray(self._parts[index][offset : offset + n])
        self._check(ids, index, offset)
        return ids

    def read(self, position: int, n: int) -> np.ndarray:
        """The `n` tokens from `position` on, uint16 [n], across shard ends; both wrap around the stream's end.

        Raises DataError, naming the shard, when one of them is not below `vocab_size`, and when the file is not what it
        was when it was opened: a mapped one would end the process.
        """
        out = np.empty(n, np.uint16)
        filled, position = 0, position % len(self)
        index = int(np.searchsorted(self._ends, position, side="right"))
        offset = position - (int(self._ends[index - 1]) if index else 0)
        while filled < n:
            part = self._parts[index]
            taken = out[filled : filled + max(0, part.size - offset)]
            if isinstance(part, OnDisk):
                part.into(taken, offset)
            else:
                taken[:] = part[offset : offset + taken.size]
            self._check(taken, index, offset)
            filled += taken.size
            index, offset = (index + 1) % len(self._parts), 0
        return out

    def _check(self, ids: np.ndarray, index: int, offset: int) -> None:
        if ids.size and int(ids.max()) >= self.vocab_size:
            at = int(np.argmax(ids >= self.vocab_size))
            raise DataError(
                f"{self.paths[index]}: token {offset + at} is id {int(ids[at])}, out of a vocabulary of "
                f"{self.vocab_size}\n(were these shards written with another tokenizer?)"
            )


def _header(count: int) -> bytes:
    header = np.zeros(_HEADER_BYTES // 4, "<i4")
    header[:3] = MAGIC, VERSION, count
    return header.tobytes()


def _on_disk(path: Path) -> OnDisk:
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(_HEADER_BYTES)
    except OSError as error:
        raise DataError(f"cannot read the shard {path}: {error.strerror}") from None
    if len(head) < _HEADER_BYTES:
        raise DataError(f"{path} is no shard: {size} bytes, shorter than the header of {_HEADER_BYTES}")
    magic, version, count = (int(word) for word in np.frombuffer(head, "<i4", 3))
    if magic != MAGIC:
        raise DataError(f"{path} is no shard: its magic number is {magic}, not {MAGIC}")
    if version != VERSION:
        raise DataError(f"{path} has version {version} of the shard format; golf reads version {VERSION}")
    if count < 0 or size != _HEADER_BYTES + 2 * count:
        expected = _HEADER_BYTES + 2 * count
        raise DataError(f"{path} is cut or altered: its header says {count} tokens, so {expected} bytes; it has {size}")
    return OnDisk(path, count)


def _as_ids(array: np.ndarray) -> np.ndarray:
    array = np.asarray(array)
    if array.dtype != np.uint16:
        if array.size and (array.dtype.kind not in "iu" or array.min() < 0 or array.max() > 0xFFFF):
            raise DataError("ids to be written must be integers from 0 to 65535 (shards hold 16 bits a token)")
        array = array.astype(np.uint16)
    return array.astype("<u2", copy=False)
