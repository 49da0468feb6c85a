"""`artifact.golf`: a model as data. A preamble, a JSON header, and the tensors' bytes squeezed by a codec.

    offset  0   4 bytes   magic "GOLF"
            4   u8        version
            5   u32       header bytes, as stored (raw deflate)
            9   u32       header bytes, expanded
           13   u64       payload bytes, as stored
           21   8 bytes   BLAKE2b-64 of everything else in the file
           29   header, then payload, then the end of the file

Integers are little-endian, and so are the tensors. The header is JSON: the codec's name, the tokenizer's hash, free
`meta`, and a column for each fact of the entries. Where a part lies in the expanded payload follows from the sizes of
those before it, so no offset is stored and none can be wrong. Nothing in the file is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from golf.artifact.codecs import Codec, Part, codec_named
from golf.common.bounded import parse_json, raw_inflate, read_bytes
from golf.common.errors import ArtifactError
from golf.common.files import atomic_writer
from golf.quant.entry import Entry

MAGIC = b"GOLF"
VERSION = 1
_PREAMBLE = struct.Struct("<4sBIIQ8s")
_DIGEST_AT = _PREAMBLE.size - 8
_MAX_HEADER = 1 << 22
_MAX_META = 1 << 16
_MAX_FILE = 1 << 30
_DTYPES: dict[str, torch.dtype] = {
    "f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "i64": torch.int64,
    "i32": torch.int32, "i16": torch.int16, "i8": torch.int8, "u8": torch.uint8, "bool": torch.bool,
}  # fmt: skip
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_COLUMNS = ("name", "place", "role", "shape", "dtype", "scheme", "bits", "packed", "parts")


@dataclass(frozen=True)
class ArtifactInfo:
    """A written or read file: its size, SHA-256, and how its bytes divide (`bytes` = overhead + payload)."""

    path: Path
    bytes: int
    sha256: str
    overhead_bytes: int
    payload_bytes: int
    raw_bytes: int


@dataclass(frozen=True)
class Header:
    """What an artifact says beside its tensors."""

    version: int
    codec: str
    byte_planes: bool
    tokenizer_hash: str | None
    meta: dict[str, Any]
    info: ArtifactInfo


class Artifact(NamedTuple):
    """A file that was read: `entries` by name in their stored order, and its header."""

    entries: dict[str, Entry]
    header: Header


def save_artifact(
    path: Path,
    entries: Mapping[str, Entry],
    codec: Codec,
    meta: Mapping[str, Any] | None = None,
    tokenizer_hash: str | None = None,
) -> ArtifactInfo:
    """Write `entries` in their order to `path`, atomically; equal input gives equal bytes.

    meta: a small JSON-able mapping (64 KiB at most). Raises ArtifactError for what JSON or the container cannot hold,
    and GolfError when the disk is full.
    """
    path = Path(path)
    front, squeezed, stored = _pieces(entries, codec, dict(meta or {}), tokenizer_hash)
    blob = b"".join((front, _digest(front, squeezed + stored), squeezed, stored))
    with atomic_writer(path) as file:
        file.write(blob)
    raw = sum(part.numel() * part.element_size() for part in parts_of(entries.values()))
    return _info(path, blob, len(stored), raw)


def artifact_size(
    entries: Mapping[str, Entry], codec: Codec, meta: Mapping[str, Any] | None = None, tokenizer_hash: str | None = None
) -> int:
    """The bytes of the file that `save_artifact` would write."""
    _, squeezed, stored = _pieces(entries, codec, dict(meta or {}), tokenizer_hash)
    return _PREAMBLE.size + len(squeezed) + len(stored)


def _pieces(
    entries: Mapping[str, Entry], codec: Codec, meta: dict[str, Any], tokenizer_hash: str | None
) -> tuple[bytes, bytes, bytes]:
    """The preamble without its digest, the header and the payload as they are stored."""
    header = _header_bytes(entries, codec, meta, tokenizer_hash)
    stored, squeezed = codec.store(parts_of(entries.values())), _deflate(header)
    front = _PREAMBLE.pack(MAGIC, VERSION, len(squeezed), len(header), len(stored), b"")[:_DIGEST_AT]
    return front, squeezed, stored


def load_artifact(path: Path, max_raw_bytes: int = 1 << 31) -> Artifact:
    """Read a file that `save_artifact` wrote; every byte of it is under the checksum.

    max_raw_bytes: a file that expands to more is refused before anything is expanded.
    Raises ArtifactError that says what is wrong: missing, foreign, of another version, truncated, extended, altered,
    of an unknown codec, or with a header that does not describe its payload.
    """
    path = Path(path)
    try:
        blob = read_bytes(path, _MAX_FILE)
    except OSError as error:
        raise ArtifactError(f"cannot read artifact {path}: {error.strerror}") from error
    except ValueError as error:
        raise ArtifactError(f"artifact {path}: {error}") from error
    try:
        return _parse(path, blob, max_raw_bytes)
    except ArtifactError as error:
        raise ArtifactError(f"artifact {path}: {error}") from error


def parts_of(entries: Iterable[Entry]) -> list[Tensor]:
    """The entries' parts one after another, as they go into a codec."""
    return [part for entry in entries for part in entry.parts.values()]


def _parse(path: Path, blob: bytes, max_raw_bytes: int) -> Artifact:
    if blob[:4] != MAGIC[: len(blob)] or not blob:
        raise ArtifactError("not a golf artifact (its first bytes are not 'GOLF')")
    if len(blob) < _PREAMBLE.size:
        raise ArtifactError(f"truncated: {len(blob)} bytes, and the preamble alone has {_PREAMBLE.size}")
    _, version, header_stored, header_size, payload_stored, digest = _PREAMBLE.unpack_from(blob)
    if version != VERSION:
        raise ArtifactError(f"version {version}, and this golf reads version {VERSION}")
    expected = _PREAMBLE.size + header_stored + payload_stored
    if len(blob) != expected:
        what = "truncated" if len(blob) < expected else "bytes were added"
        raise ArtifactError(f"{what}: {len(blob)} bytes, and its preamble declares {expected}")
    body = memoryview(blob)[_PREAMBLE.size :]
    if _digest(blob[:_DIGEST_AT], body) != digest:
        raise ArtifactError("checksum mismatch: the file was altered or damaged")
    columns = _read_header(bytes(body[:header_stored]), header_size)
    codec = codec_named(columns["codec"])
    plans = _plans(columns, max_raw_bytes)
    parts = [part for plan in plans for part in plan.parts]
    tensors = codec.restore(bytes(body[header_stored:]), parts, columns["planes"])
    raw_size = sum(part.nbytes for part in parts)
    header = Header(
        version, codec.name, columns["planes"], columns["tokenizer"], columns["meta"],
        _info(path, blob, payload_stored, raw_size),
    )  # fmt: skip
    return Artifact(_entries(plans, tensors), header)


def _info(path: Path, blob: bytes, stored: int, raw: int) -> ArtifactInfo:
    return ArtifactInfo(path, len(blob), hashlib.sha256(blob).hexdigest(), len(blob) - stored, stored, raw)


def _digest(front: bytes, body: bytes | memoryview) -> bytes:
    hasher = hashlib.blake2b(front, digest_size=8)
    hasher.update(body)
    return hasher.digest()


def _deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
    return stream.compress(data) + stream.flush()


# ---------------------------------------------------------------------------------------------------------- header


@dataclass(frozen=True)
class _EntryPlan:
    name: str
    place: str
    role: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    scheme: str
    bits: int
    packed: bool
    parts: tuple[Part, ...]


def _header_bytes(entries: Mapping[str, Entry], codec: Codec, meta: dict[str, Any], tokenizer: str | None) -> bytes:
    columns: dict[str, list[Any]] = {column: [] for column in _COLUMNS}
    for name, entry in entries.items():
        if name != entry.name:
            raise ArtifactError(f"entry {entry.name} is filed under the name {name}")
        for column, values in columns.items():
            values.append(_fact(entry, column))
    table = {"codec": codec.name, "planes": codec.byte_planes, "tokenizer": tokenizer, "meta": None, **columns}
    try:
        small = json.dumps(meta, allow_nan=False, sort_keys=True)
        text = json.dumps(table | {"meta": json.loads(small)}, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"meta cannot be written as JSON: {error}") from error
    if len(small) > _MAX_META or len(text) > _MAX_HEADER:
        raise ArtifactError(
            f"header of {len(text)} bytes (meta {len(small)}) is over the limits {_MAX_HEADER}, {_MAX_META}"
        )
    return text.encode()


def _fact(entry: Entry, column: str) -> Any:
    if column == "dtype":
        return _code(entry.name, entry.dtype)
    if column == "parts":
        return {key: [_code(entry.name, part.dtype), list(part.shape)] for key, part in entry.parts.items()}
    return getattr(entry, column)


def _code(name: str, dtype: torch.dtype) -> str:
    if dtype not in _CODES:
        raise ArtifactError(f"tensor {name}: an artifact cannot hold {dtype} (choices: {', '.join(_DTYPES)})")
    return _CODES[dtype]


def _read_header(stored: bytes, size: int) -> dict[str, Any]:
    if size > _MAX_HEADER:
        raise ArtifactError(f"its header declares {size} bytes, over the limit of {_MAX_HEADER}")
    try:
        text = raw_inflate(stored, size + 1)
        table = parse_json(text) if len(text) == size else None
    except (zlib.error, ValueError) as error:
        raise ArtifactError(f"its header is unreadable: {error}") from error
    kinds: dict[str, Any] = {
        "codec": str,
        "planes": bool,
        "tokenizer": (str, type(None)),
        "meta": dict,
    } | dict.fromkeys(_COLUMNS, list)
    if not isinstance(table, dict) or table.keys() != kinds.keys():
        raise ArtifactError("its header is not the table that it should be")
    for key, kind in kinds.items():
        if not isinstance(table[key], kind) or (key in _COLUMNS and len(table[key]) != len(table["name"])):
            raise ArtifactError(f"its header has a malformed '{key}'")
    if len(json.dumps(table["meta"])) > _MAX_META:
        raise ArtifactError(f"its meta is over {_MAX_META} bytes")
    return table


def _plans(table: dict[str, Any], max_raw_bytes: int) -> list[_EntryPlan]:
    plans, total = [], 0
    for row in zip(*(table[column] for column in _COLUMNS), strict=True):
        plan = _plan(dict(zip(_COLUMNS, row, strict=True)))
        plans.append(plan)
        total += sum(part.nbytes for part in plan.parts)
        if total > max_raw_bytes or math.prod(plan.shape) > max_raw_bytes * 8:
            raise ArtifactError(f"it declares {total} bytes or more once expanded, over the limit of {max_raw_bytes}")
    if len({plan.name for plan in plans}) != len(plans):
        raise ArtifactError("its header names a tensor twice")
    return plans


def _plan(row: dict[str, Any]) -> _EntryPlan:
    try:
        if not all(isinstance(row[key], str) for key in ("name", "place", "role", "scheme")):
            raise TypeError("a name, place, role or scheme is not text")
        if type(row["bits"]) is not int or type(row["packed"]) is not bool:
            raise TypeError("bits or packed")
        parts = tuple(Part(key, _DTYPES[code], _shape(dims)) for key, (code, dims) in row["parts"].items())
        return _EntryPlan(**{**row, "shape": _shape(row["shape"]), "dtype": _DTYPES[row["dtype"]], "parts": parts})
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        told = str(error)[:120]
        raise ArtifactError(f"its header describes tensor {str(row['name'])[:80]!r} badly: {told}") from error


def _shape(dims: Any) -> tuple[int, ...]:
    if not isinstance(dims, list) or len(dims) > 8 or not all(type(n) is int and 0 <= n < 2**40 for n in dims):
        raise ValueError(f"shape {str(dims)[:80]}")
    return tuple(dims)


def _entries(plans: Sequence[_EntryPlan], tensors: Sequence[Tensor]) -> dict[str, Entry]:
    entries, rest = {}, iter(tensors)
    for plan in plans:
        facts = {field.name: getattr(plan, field.name) for field in fields(plan) if field.name != "parts"}
        entries[plan.name] = Entry(parts={part.name: next(rest) for part in plan.parts}, **facts)
    return entries
