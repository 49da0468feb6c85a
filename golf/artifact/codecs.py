"""General-purpose compressors as components: one class each, found by name so that a file is read without a config.

Streams are bare (no magic, no checksum, no length): the container holds those once for all codecs.
"""

from __future__ import annotations

import lzma
import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from golf.common.bounded import raw_inflate
from golf.common.errors import ArtifactError, ConfigError, did_you_mean

CODECS: dict[str, type[Codec]] = {}
_READ = 1 << 20
_PIECE = 1 << 10
"""Bytes given to zstd at once, four of which may stand for 2^17."""


class Part(NamedTuple):
    """What a tensor of the payload is known to be before it is read."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its bytes once expanded."""
        return math.prod(self.shape) * self.dtype.itemsize


def joined(parts: Iterable[Tensor], byte_planes: bool) -> bytes:
    """The parts' bytes one after another, as they go into a general compressor."""
    return b"".join(_tensor_bytes(part, byte_planes) for part in parts)


def parted(raw: bytes, plans: Sequence[Part], byte_planes: bool) -> list[Tensor]:
    """The parts of what `joined` gave. Raises ArtifactError for truth values that are none."""
    view, found, at = memoryview(raw), [], 0
    for plan in plans:
        found.append(_tensor(plan, view[at : at + plan.nbytes], byte_planes))
        at += plan.nbytes
    return found


class Codec(ABC):
    """Compresses a payload, and expands it again with no knowledge but its length.

    A subclass names itself (`name`, at most 16 characters, written into each artifact) and is in `CODECS` once its
    file is imported; built without arguments it must read whatever any other instance of it wrote.
    byte_planes: the container first regroups floats of 2 and 4 bytes by byte position, which puts the predictable
    exponents together: some 7 % of a float16 tensor, nothing of int8.
    """

    name: ClassVar[str]
    reads_values: ClassVar[bool] = False
    """Whether it goes by the values of int8 parts rather than by bytes."""

    def __init__(self, byte_planes: bool = False) -> None:
        self.byte_planes = byte_planes

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        known = CODECS.get(cls.name, cls)
        if not 0 < len(cls.name) <= 16 or (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"codec name {cls.name!r} of {cls.__name__} is taken, empty or over 16 characters")
        CODECS[cls.name] = cls

    @abstractmethod
    def compress(self, data: bytes) -> bytes:
        """The same bytes for the same data, settings and library version."""

    @abstractmethod
    def _expand(self, data: bytes, limit: int) -> bytes:
        """At most `limit` bytes of the expanded data, never allocating much more. May raise anything on bad data."""

    def expand(self, data: bytes, size: int) -> bytes:
        """Expand to exactly `size` bytes. Raises ArtifactError for a bad stream, or one longer or shorter than that."""
        try:
            result = self._expand(data, size + 1)
        except ArtifactError:
            raise
        except Exception as error:  # each library has its own error classes, and all of them mean the same
            raise ArtifactError(f"payload is not a valid {self.name} stream: {error}") from error
        if len(result) != size:
            relation = "more" if len(result) > size else f"{len(result)}, fewer"
            raise ArtifactError(f"payload expands to {relation} than the {size} bytes that its header declares")
        return result

    def store(self, parts: Sequence[Tensor]) -> bytes:
        """All parts of a payload, in their order: as one run of bytes, unless a codec knows better."""
        return self.compress(joined(parts, self.byte_planes))

    def restore(self, data: bytes, plans: Sequence[Part], byte_planes: bool) -> list[Tensor]:
        """What `store` was given. byte_planes: as it was stored. Raises ArtifactError for anything else than that."""
        return parted(self.expand(data, sum(plan.nbytes for plan in plans)), plans, byte_planes)


def codec_named(name: str) -> Codec:
    """A codec by its name, able to read. Raises ArtifactError for an unknown name."""
    if name == "ans":  # it has a file of its own, whose code counts where it is used
        from golf.artifact.ans import Ans

        return Ans()
    if name not in CODECS:
        raise ArtifactError(f"unknown codec {name[:16]!r} {did_you_mean(name[:16], CODECS)}")
    return CODECS[name]()


def _library(codec: str, module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ConfigError(f"codec={codec} needs the package {module}: pip install {module}") from error


def _check_level(key: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise ConfigError(f"{key}={value}: must be from {low} to {high}")
    return value


class Store(Codec):
    """No compression: the payload as it is."""

    name = "store"

    def compress(self, data: bytes) -> bytes:
        return bytes(data)

    def _expand(self, data: bytes, limit: int) -> bytes:
        return data[:limit]


class Zlib(Codec):
    """Deflate, the naive baseline's codec (there in zlib's frame of 6 bytes). level: 0–9."""

    name = "zlib"

    def __init__(self, level: int = 9, byte_planes: bool = False) -> None:
        super().__init__(byte_planes)
        self.level = _check_level("level", level, 0, 9)

    def compress(self, data: bytes) -> bytes:
        stream = zlib.compressobj(self.level, zlib.DEFLATED, -15)
        return stream.compress(data) + stream.flush()

    def _expand(self, data: bytes, limit: int) -> bytes:
        return raw_inflate(data, limit)


class Zstd(Codec):
    """Zstandard, the codec of pull requests 122 and 422, here without magic and length. level: 1–22."""

    name = "zstd"

    def __init__(self, level: int = 22, byte_planes: bool = False) -> None:
        super().__init__(byte_planes)
        self.level = _check_level("level", level, 1, 22)
        self._zstd = _library(self.name, "zstandard")

    def compress(self, data: bytes) -> bytes:
        parameters = self._zstd.ZstdCompressionParameters.from_level(
            self.level,
            source_size=len(data),
            format=self._zstd.FORMAT_ZSTD1_MAGICLESS,
            write_content_size=False,
            write_checksum=False,
            write_dict_id=False,
        )
        compressed: bytes = self._zstd.ZstdCompressor(compression_params=parameters).compress(data)
        return compressed

    def _expand(self, data: bytes, limit: int) -> bytes:
        stream = self._zstd.ZstdDecompressor(format=self._zstd.FORMAT_ZSTD1_MAGICLESS).decompressobj()
        result = bytearray()
        for at in range(0, len(data), _PIECE):
            result += stream.decompress(data[at : at + _PIECE])
            if stream.eof and len(result) < limit and (stream.unused_data or at + _PIECE < len(data)):
                raise ValueError("bytes follow its end")
            if stream.eof or len(result) >= limit:
                break
        return bytes(result[:limit])


class Lzma(Codec):
    """LZMA as a raw stream. preset: 0–9; extreme: search longer for the same format."""

    name = "lzma"
    _DICTIONARY = 1 << 26  # of preset 9; the reader's must not be smaller, and a raw stream does not tell it

    def __init__(self, preset: int = 9, extreme: bool = True, byte_planes: bool = False) -> None:
        super().__init__(byte_planes)
        self.preset = _check_level("preset", preset, 0, 9) | (lzma.PRESET_EXTREME if extreme else 0)

    def _filters(self, preset: int) -> list[dict[str, Any]]:
        return [{"id": lzma.FILTER_LZMA1, "preset": preset, "dict_size": self._DICTIONARY}]

    def compress(self, data: bytes) -> bytes:
        return lzma.compress(data, format=lzma.FORMAT_RAW, filters=self._filters(self.preset))

    def _expand(self, data: bytes, limit: int) -> bytes:
        stream = lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=self._filters(9))
        found = stream.decompress(data, max_length=limit)
        if len(found) < limit and (not stream.eof or stream.unused_data):
            raise ValueError("bytes follow its end" if stream.eof else "it has no end")
        return found


class Brotli(Codec):
    """Brotli, the codec of the later records. quality: 0–11; window_bits: 10–24, base-2 logarithm of the window."""

    name = "brotli"

    def __init__(self, quality: int = 11, window_bits: int = 24, byte_planes: bool = False) -> None:
        super().__init__(byte_planes)
        self.quality = _check_level("quality", quality, 0, 11)
        self.window_bits = _check_level("window_bits", window_bits, 10, 24)
        self._brotli = _library(self.name, "brotli")
        if not hasattr(self._brotli.Decompressor, "can_accept_more_data"):
            raise ConfigError(
                "codec=brotli needs brotli 1.2 or newer, which can bound what it expands: pip install -U brotli"
            )

    def compress(self, data: bytes) -> bytes:
        compressed: bytes = self._brotli.compress(data, quality=self.quality, lgwin=self.window_bits)
        return compressed

    def _expand(self, data: bytes, limit: int) -> bytes:
        stream = self._brotli.Decompressor()
        result = bytearray(stream.process(data, output_buffer_limit=min(_READ, limit)))
        while len(result) < limit and not stream.is_finished():
            chunk = stream.process(b"", output_buffer_limit=min(_READ, limit - len(result)))
            if not chunk:
                raise ArtifactError("payload is a truncated brotli stream")
            result += chunk
        return bytes(result[:limit])


def _tensor_bytes(part: Tensor, byte_planes: bool) -> bytes:
    width = part.element_size()
    data = part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return (data.reshape(-1, width).T if byte_planes else data).tobytes()


def _tensor(part: Part, data: memoryview, byte_planes: bool) -> Tensor:
    values = np.frombuffer(data, dtype=np.uint8)
    if byte_planes:
        values = values.reshape(part.dtype.itemsize, -1).T
    flat = torch.from_numpy(np.array(values, order="C").reshape(-1))
    if part.dtype == torch.bool and (flat > 1).any():
        raise ArtifactError(f"part '{part.name}' holds truth values other than 0 and 1")
    return flat.view(part.dtype).reshape(part.shape)
