"""One stored tensor: small integer or float parts, and the facts that give its values back.

An `Entry` is all that `dequantize` needs, so an artifact is read without the config that wrote it. A scheme is a name
in `SCHEMES` and the function that turns an entry's parts into float values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from golf.common.errors import ArtifactError


@dataclass(frozen=True, eq=False)
class Entry:
    """A tensor as it is stored.

    `shape` and `dtype` are the original tensor's. `scheme` names how `parts` (contiguous CPU tensors) become values:

    - `per_row`: `q` integers, `scale` float16 of shape [rows]; value = q · scale of its row (the first dimension); with
      `trellis`, int16 [], the states of a code, half a step is added where its path says so (golf.quant.trellis)
    - `per_row_low_rank`: as `per_row`, and added to it A B: `a` int8 [rows, r] times `a_scale` float32 [], `b` int8
      [r, n] times `b_scale` float16 [r, g], each for ⌈n/g⌉ values
    - `per_tensor`: `q` integers, `scale` float32 of shape []; value = q · scale
    - `raw`: `data`, the values themselves in the dtype they are kept in

    `q` is int8 in the original shape, or, when `packed`, a uint8 bit stream of `bits` bits a value. `bits` counts what
    a value may use; unpacked bytes hold fewer levels than they could, which a codec turns into a smaller file.
    """

    name: str
    place: str
    role: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    scheme: str
    bits: int
    packed: bool
    parts: Mapping[str, Tensor]

    @property
    def numel(self) -> int:
        """Values of the original tensor."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all parts, before compression."""
        return sum(part.numel() * part.element_size() for part in self.parts.values())


def payload_bytes(entries: Mapping[str, Entry]) -> int:
    """Bytes of all entries' parts, before compression and without a container."""
    return sum(entry.nbytes for entry in entries.values())


def pack_bits(values: Tensor, bits: int) -> Tensor:
    """Pack integers into a little-endian bit stream: value j in two's complement at bits j·bits … j·bits + bits − 1.

    values: integers of any shape in [−2^(bits−1), 2^(bits−1) − 1], 2 ≤ bits ≤ 8. Returns uint8 [⌈n·bits/8⌉] on the CPU.
    """
    flat = values.reshape(-1).cpu().numpy().astype(np.int64)
    groups = np.zeros((-(-flat.size // 8), 8), dtype=np.uint64)  # eight values fill `bits` whole bytes
    groups.reshape(-1)[: flat.size] = flat & ((1 << bits) - 1)
    words = np.bitwise_or.reduce(groups << np.arange(0, 8 * bits, bits, dtype=np.uint64), axis=1)
    stream = words.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :bits].reshape(-1)
    return torch.from_numpy(stream[: packed_size(flat.size, bits)].copy())


def unpack_bits(stream: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` integers of a `pack_bits` stream, int8 [count].

    Raises ArtifactError when the stream has not exactly ⌈count·bits/8⌉ bytes.
    """
    if stream.numel() != packed_size(count, bits):
        raise ArtifactError(
            f"{count} values of {bits} bits need {packed_size(count, bits)} bytes, not {stream.numel()}"
        )
    padded = np.zeros((-(-count // 8), bits), dtype=np.uint8)
    padded.reshape(-1)[: stream.numel()] = stream.numpy()
    words = np.zeros((padded.shape[0], 8), dtype=np.uint8)
    words[:, :bits] = padded
    fields = words.view("<u8") >> np.arange(0, 8 * bits, bits, dtype=np.uint64)
    values = (fields & np.uint64((1 << bits) - 1)).astype(np.int64).reshape(-1)[:count]
    sign = 1 << (bits - 1)
    return torch.from_numpy(((values ^ sign) - sign).astype(np.int8))


def packed_size(count: int, bits: int) -> int:
    """Bytes of `count` packed values: ⌈count·bits/8⌉."""
    return (count * bits + 7) // 8


def _part(entry: Entry, name: str, shape: tuple[int, ...] | None, dtype: torch.dtype | None) -> Tensor:
    part = entry.parts.get(name)
    if part is None or dtype not in (None, part.dtype) or shape not in (None, tuple(part.shape)):
        found = "nothing" if part is None else f"{part.dtype} {list(part.shape)}"
        raise ArtifactError(
            f"tensor {entry.name} ({entry.scheme}, shape {list(entry.shape)}): bad part '{name}': {found}"
        )
    return part


def _integers(entry: Entry) -> Tensor:
    if not entry.packed:
        return _part(entry, "q", entry.shape, torch.int8)
    if not 2 <= entry.bits <= 8:
        raise ArtifactError(f"tensor {entry.name}: {entry.bits} bits a value is outside 2–8")
    stream = _part(entry, "q", None, torch.uint8)
    return unpack_bits(stream.reshape(-1), entry.bits, entry.numel).reshape(entry.shape)


def _per_row(entry: Entry) -> Tensor:
    rows = entry.shape[:1]
    scale = _part(entry, "scale", rows, torch.float16).float()
    q = _integers(entry)
    values = q.float()
    if TRELLIS in entry.parts:
        from golf.quant.trellis import halves  # its code counts where it is used

        if q.ndim != 2:
            raise ArtifactError(
                f"tensor {entry.name}: a trellis goes down columns, and its shape is {list(entry.shape)}"
            )
        values += halves(q, int(_part(entry, TRELLIS, (), torch.int16))) / 2
    return values * scale.reshape(rows + (1,) * (len(entry.shape) - 1))


def _per_row_low_rank(entry: Entry) -> Tensor:
    values = _per_row(entry)
    a, b = _part(entry, "a", None, torch.int8), _part(entry, "b", None, torch.int8)
    scales = _part(entry, "b_scale", None, torch.float16)
    rank = a.shape[-1] if a.ndim == 2 else 0
    fits = values.ndim == 2 and rank and a.shape == (len(values), rank) and b.shape == (rank, values.shape[1])
    if not fits or scales.ndim != 2 or len(scales) != rank or not 1 <= scales.shape[1] <= max(1, values.shape[1]):
        raise ArtifactError(
            f"tensor {entry.name} ({entry.scheme}, shape {list(entry.shape)}): a {list(a.shape)}, b {list(b.shape)} "
            f"and b_scale {list(scales.shape)} do not fit"
        )
    width = -(-values.shape[1] // scales.shape[1])
    wide = b.float() * scales.float().repeat_interleave(width, 1)[:, : values.shape[1]]
    tall = a.float() * _part(entry, "a_scale", (), torch.float32)
    for column, row in zip(tall.T, wide, strict=True):  # in this order on every machine, as no product has it
        values = values + column[:, None] * row
    return values


def _per_tensor(entry: Entry) -> Tensor:
    return _integers(entry).float() * _part(entry, "scale", (), torch.float32)


def _raw(entry: Entry) -> Tensor:
    return _part(entry, "data", entry.shape, None).clone()


LOW_RANK, TRELLIS = "per_row_low_rank", "trellis"
SCHEMES: dict[str, Callable[[Entry], Tensor]] = {
    "per_row": _per_row, LOW_RANK: _per_row_low_rank, "per_tensor": _per_tensor, "raw": _raw,
}  # fmt: skip


def dequantize(entry: Entry) -> Tensor:
    """The tensor that `entry` stands for: its original shape and dtype, on the CPU.

    Integers times scales are computed in float32 and then cast. Raises ArtifactError when the parts do not fit
    the declared scheme, shape or bits.
    """
    if entry.scheme not in SCHEMES:
        raise ArtifactError(f"tensor {entry.name}: unknown scheme '{entry.scheme}' (choices: {', '.join(SCHEMES)})")
    return SCHEMES[entry.scheme](entry).to(entry.dtype)
