"""Range coding of integers: back to the bit, near the entropy, and nothing else than that from a damaged stream."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from golf.artifact import ans, rans
from golf.artifact.ans import Ans
from golf.artifact.codecs import Brotli, Lzma, Part
from golf.common.errors import ArtifactError
from golf.quant.rounding import coded_bits


def gaussian(rows: int, columns: int, spread: float, seed: int = 0) -> torch.Tensor:
    """Integers as rows clipped at some standard deviations give them."""
    drawn = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * spread
    return drawn.round().clamp(-127, 127).to(torch.int8)


def plans(parts: list[torch.Tensor]) -> list[Part]:
    return [Part(str(number), part.dtype, tuple(part.shape)) for number, part in enumerate(parts)]


def again(parts: list[torch.Tensor], codec: Ans | None = None) -> list[torch.Tensor]:
    stored = (codec or Ans()).store(parts)
    return Ans().restore(stored, plans(parts), True)


@given(
    counts=st.lists(st.lists(st.integers(0, 10**9), min_size=5, max_size=5), min_size=1, max_size=4),
)
def test_frequencies_sum_to_the_whole_and_leave_out_nothing_that_occurs(counts: list[list[int]]) -> None:
    given = np.array(counts)
    found = rans.frequencies(given)
    assert (found.sum(1) == rans.WHOLE).all()
    assert (found[given > 0] >= 1).all()
    assert (found[(given == 0) & (given.sum(1, keepdims=True) > 0)] == 0).all()


@settings(deadline=None, max_examples=40)
@given(size=st.integers(0, 5000), symbols=st.integers(1, 256), contexts=st.integers(1, 5), seed=st.integers(0, 99))
def test_symbols_come_back(size: int, symbols: int, contexts: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, symbols, size).astype(np.uint8)
    context = rng.integers(0, contexts, size).astype(np.uint16)
    counts = np.zeros((contexts, symbols), np.int64)
    np.add.at(counts, (context, drawn), 1)
    table = rans.frequencies(counts)
    assert np.array_equal(rans.decode(rans.encode(drawn, context, table), context, table), drawn)


def test_parts_of_every_kind_come_back() -> None:
    parts = [
        gaussian(40, 60, 3.0), torch.randn(40).half(), torch.zeros(3, 0, dtype=torch.int8), torch.tensor(True),
        torch.full((300,), -128, dtype=torch.int8), torch.arange(-128, 128, dtype=torch.int8).repeat(3),
        torch.arange(7, dtype=torch.int64), gaussian(5, 5, 1.0), gaussian(8, 6, 9.0).reshape(4, 2, 6).repeat(3, 2, 1),
        torch.randn(4, 5).bfloat16(), torch.randint(0, 256, (999,), dtype=torch.uint8),
    ]  # fmt: skip
    for part, back in zip(parts, again(parts), strict=True):
        assert back.dtype == part.dtype
        assert torch.equal(back, part)


def test_nothing_at_all_comes_back() -> None:
    assert again([]) == []


def test_equal_parts_give_equal_bytes() -> None:
    parts = [gaussian(30, 50, 2.5), torch.ones(3)]
    assert Ans().store(parts) == Ans().store([part.clone() for part in parts])


@pytest.mark.slow
def test_bytes_are_those_of_the_entropy() -> None:
    part = gaussian(2048, 2048, 31 / 12)
    size = len(Ans().store([part]))
    assert size <= 1.004 * coded_bits(6, 12) * part.numel() / 8  # of which 0.2 % are the lanes'
    assert size < 0.995 * len(Brotli().store([part]))


@pytest.mark.parametrize("axis", [0, 1, None])
def test_rows_and_columns_of_another_spread_are_told_apart(axis: int | None) -> None:
    spread = torch.logspace(0, 1.5 if axis is not None else 0.75, 512)
    rows, columns = (spread[:, None] if axis != 1 else torch.ones(512, 1)), (spread if axis != 0 else torch.ones(512))
    drawn = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    part = (drawn * rows * columns).round().clamp(-127, 127).to(torch.int8)
    counts = torch.unique(part, return_counts=True)[1].double() / part.numel()
    as_one = -float((counts * counts.log2()).sum()) * part.numel() / 8
    assert len(Ans().store([part])) < 0.96 * as_one
    assert torch.equal(again([part])[0], part)


def test_a_stream_of_a_newer_version_is_named() -> None:
    parts = [gaussian(30, 50, 2.5)]
    stored = Ans().store(parts)
    with pytest.raises(ArtifactError, match="version 2, and this golf reads 1"):
        Ans().restore(b"\x02" + stored[1:], plans(parts), True)


@pytest.mark.parametrize("size", [0, 5, 9, 40, -1, -2, -200])
def test_a_stream_cut_short_is_refused(size: int) -> None:
    parts = [gaussian(60, 90, 4.0), torch.randn(60)]
    with pytest.raises(ArtifactError):
        Ans().restore(Ans().store(parts)[:size], plans(parts), True)


@settings(deadline=None, max_examples=60)
@given(place=st.integers(0, 10**6), by=st.integers(1, 255))
def test_a_damaged_stream_is_refused_or_gives_tensors_of_the_same_shapes(place: int, by: int) -> None:
    parts = [gaussian(60, 90, 4.0), torch.randn(60)]
    stored = bytearray(Ans().store(parts))
    stored[place % len(stored)] ^= by
    try:
        found = Ans().restore(bytes(stored), plans(parts), True)
    except ArtifactError:
        return
    assert [one.shape for one in found] == [one.shape for one in parts]


def crafted(told: bytes, count: int) -> bytes:
    """A stream of `count` values whose tensors are told like this, and that ends where it should."""
    aside = Lzma().compress(told)
    return ans._FRONT.pack(ans.VERSION, len(told), len(aside)) + aside + struct.pack("<I", 1 << 16) * rans._lanes(count)


def test_levels_of_rows_that_a_tensor_has_not_are_refused() -> None:
    told = struct.pack("<bBBBB", 0, 0, 1, 1, 0) + bytes(300) + struct.pack("<H", rans.WHOLE)
    with pytest.raises(ArtifactError):
        Ans().restore(crafted(told, 300), [Part("q", torch.int8, (300,))], True)


def test_tables_that_no_tensor_has_so_many_of_are_refused_before_they_take_memory() -> None:
    told = 100 * (struct.pack("<bBBBB", 0, 0, 255, 0, 0) + 255 * struct.pack("<H", rans.WHOLE))
    with pytest.raises(ArtifactError, match="do not go with its frequencies"):
        Ans().restore(crafted(told, 25_600), 100 * [Part("q", torch.int8, (16, 16))], True)


def test_bytes_after_the_stream_are_refused() -> None:
    parts = [gaussian(60, 90, 4.0)]
    with pytest.raises(ArtifactError, match="does not end"):
        Ans().restore(Ans().store(parts) + b"ab", plans(parts), True)
