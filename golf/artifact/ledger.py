"""Where an artifact's bytes go: one row a place, summing exactly to the file's size."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from golf.artifact.codecs import Codec
from golf.artifact.container import ArtifactInfo, parts_of
from golf.common.process import usable_cores
from golf.quant.entry import Entry

CONTAINER = "(container)"


@dataclass(frozen=True)
class LedgerRow:
    """One place: tensors and parameters there, their stored bytes, and their share of the file."""

    tensors: int
    params: int
    raw_bytes: int
    bytes: int


def ledger(info: ArtifactInfo, entries: Mapping[str, Entry], codec: Codec) -> dict[str, LedgerRow]:
    """Rows by place, in order of first appearance, then `(container)` for preamble and header.

    Each place is compressed alone and the file's payload shared out in those proportions (largest remainders take the
    odd bytes), so `bytes` sum to `info.bytes`. Takes about the time of one more compression, on all cores.
    """
    places: dict[str, list[Entry]] = {}
    for entry in entries.values():
        places.setdefault(entry.place, []).append(entry)
    with ThreadPoolExecutor(min(8, usable_cores())) as pool:
        alone = list(pool.map(lambda group: len(codec.store(parts_of(group))), places.values()))
    shares = _apportion(info.payload_bytes, alone)
    rows = {
        place: LedgerRow(len(group), sum(e.numel for e in group), sum(e.nbytes for e in group), share)
        for (place, group), share in zip(places.items(), shares, strict=True)
    }
    rest = info.bytes - sum(shares)
    rows[CONTAINER] = LedgerRow(0, 0, rest, rest)
    return rows


def _apportion(total: int, weights: list[int]) -> list[int]:
    """`total` split in proportion to `weights` into whole numbers that sum to it (largest remainders round up)."""
    whole = sum(weights)
    if whole == 0:
        return [0] * len(weights)
    shares = [total * weight // whole for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda i: (-(total * weights[i] % whole), i))
    for i in by_remainder[: total - sum(shares)]:
        shares[i] += 1
    return shares
