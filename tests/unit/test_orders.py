"""What steps read in each order: the same for every split, resumable, reshaped in mid-run; documents in one row."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from golf.common.errors import ConfigError, DataError
from golf.data.loader import Batch, Feed, TrainLoader, bucket, document_starts
from golf.data.orders import Coprime, Permutation, Shuffled, Spans, Stride
from golf.data.shards import Shards

BORDER = 0
ORDERS: dict[str, Callable[[Feed], TrainLoader]] = {
    "spans": Spans,
    "shuffled": Shuffled,
    "coprime": Coprime,
    "packed": lambda feed: Spans(feed, packed=True),
    "shuffled windows, packed": lambda feed: Shuffled(feed, packed=True, window=24),
}
SPLITS = [(world, steps) for world in (1, 2, 4, 8) for steps in (1, 2, 4, 8) if steps <= 8 // world]
Pair = tuple[int, int]


def stream(tokens: int = 4001, most: int = 20, seed: int = 0) -> Shards:
    """Tokens 1, 2, 3, … that tell where they stand, in two shards; every 2 … `most` a border takes one's place."""
    ids = np.arange(1, tokens + 1).astype(np.uint16)
    starts = np.cumsum(np.random.default_rng(seed).integers(2, most + 1, tokens))
    ids[[0, *starts[starts < tokens - 1]]] = BORDER
    return Shards([Path("a"), Path("b")], np.split(ids, [tokens // 3]), tokens + 1)


TEXT = stream()


def feed(shards: Shards = TEXT, batch: int = 128, length: int = 8, **more: Any) -> Feed:
    return Feed(shards, batch, length, border_id=BORDER, **{"seed": 3, **more})


def steps_of(loader: TrainLoader, count: int) -> list[list[Batch]]:
    found = [loader.next_step() for _ in range(count)]
    loader.close()
    return found


def pairs(batches: list[Batch]) -> list[Pair]:
    """Every input with its target: no two of a stream are alike."""
    return [pair for x, y, _ in batches for pair in zip(x.flatten().tolist(), y.flatten().tolist(), strict=True)]


def documents(batches: list[Batch]) -> list[tuple[Pair, ...]]:
    """What attends to itself alone: documents of packed rows, else whole rows."""
    found = []
    for x, y, borders in batches:
        sizes = [x.shape[1]] * len(x) if borders is None else [size for size in borders.diff().tolist() if size]
        at = 0
        every = pairs([Batch(x, y)])
        for size in sizes:
            found.append(tuple(every[at : at + size]))
            at += size
        assert at == x.numel()
    return found


def plain(steps: list[list[Batch]]) -> list[Any]:
    """The same as lists, which compare."""
    return [[[None if part is None else part.tolist() for part in batch] for batch in step] for step in steps]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("world", "micro_steps"), SPLITS)
def test_a_step_is_the_same_documents_for_every_split(order: str, world: int, micro_steps: int) -> None:
    def read(world: int, micro_steps: int) -> list[list[tuple[Pair, ...]]]:
        ranks = [
            steps_of(ORDERS[order](feed(rank=rank, world=world, micro_steps=micro_steps)), 3) for rank in range(world)
        ]
        return [sorted(documents([batch for rank in ranks for batch in rank[step]])) for step in range(3)]

    assert read(world, micro_steps) == read(8, 1)


@pytest.mark.parametrize("order", ORDERS)
def test_what_is_resumed_goes_on_as_if_nothing_had_happened(order: str) -> None:
    whole = plain(steps_of(ORDERS[order](feed()), 35))  # beyond a pass
    for done in (0, 1, 30, 32):
        one = ORDERS[order](feed())
        for _ in range(done):
            one.next_step()
        state = one.state_dict()
        one.close()
        other = ORDERS[order](feed())
        other.next_step()
        other.load_state_dict(state)
        assert plain(steps_of(other, 35 - done)) == whole[done:]


@pytest.mark.parametrize("order", ORDERS)
def test_sizes_change_in_mid_run_and_nothing_is_read_twice_or_left_out(order: str) -> None:
    loader = ORDERS[order](feed(longest=24))
    seen: list[Pair] = []
    for batch, length, micro_steps in [(128, 8, 1), (64, 4, 2), (256, 16, 1), (384, 24, 4), (128, 8, 1)]:
        before = loader.position
        loader.reshape(train_batch_tokens=batch, train_seq_len=length, micro_steps=micro_steps)
        assert loader.state_dict() == {"position": before}
        for _ in range(2):
            batches = loader.next_step()
            shape = (1, batch // micro_steps) if loader.packed else (batch // length // micro_steps, length)
            assert [x.shape for x, _, _ in batches] == [y.shape for _, y, _ in batches] == [shape] * micro_steps
            assert max(map(len, documents(batches))) <= length
            seen += pairs(batches)
    loader.close()
    assert len(set(seen)) == len(seen) == 2 * (128 + 64 + 256 + 384 + 128)
    places = {x or y - 1 for x, y in seen}
    if isinstance(loader, Shuffled):
        assert loader.position == len(seen)
        assert len({(place - 1 - loader._order_of(0)[0]) % 4001 // 24 for place in places}) == len(seen) / 24
    else:
        assert {part for pair in seen for part in pair} - {BORDER} == set(TEXT.read(0, loader.position)) - {BORDER}


@pytest.mark.parametrize("order", [Shuffled, Coprime])
@pytest.mark.parametrize(("batch", "length"), [(128, 8), (256, 16), (64, 4)])
def test_a_shuffled_pass_reads_every_window_once_and_the_next_has_another_order(
    order: type[Shuffled], batch: int, length: int
) -> None:
    loader = order(feed(stream(16 * batch + 1), batch, length))
    passes = [[row for step in range(16) for row in documents(loader.next_step())] for _ in range(2)]
    assert loader.passes == 2
    loader.close()
    for rows in passes:
        assert len({pair for row in rows for pair in row}) == 16 * batch
        starts = [row[0][0] or row[0][1] - 1 for row in rows]
        assert len({start % length for start in starts if start > length}) <= 2  # but for the one at the stream's end
        assert starts != sorted(starts)
    assert sorted(passes[0]) != passes[0] != passes[1]


def test_after_a_change_of_sizes_shuffled_sequences_are_whole_windows_again() -> None:
    loader = Shuffled(feed(stream(4001, most=3000), length=8, longest=24))
    loader.next_step()
    loader.reshape(train_batch_tokens=384, train_seq_len=24, micro_steps=1)
    rows = [documents(loader.next_step()) for _ in range(3)]
    loader.close()
    torn = [sum(any(b[0] not in (a[0] + 1, BORDER) and a[0] for a, b in pairwise(row))
                for row in step) for step in rows]  # fmt: skip
    assert max(torn) <= 1


@pytest.mark.parametrize("order", [Shuffled, Coprime])
def test_shuffling_takes_the_seed(order: type[Shuffled]) -> None:
    first, again, other = (plain(steps_of(order(feed(seed=seed)), 2)) for seed in (1, 1, 2))
    assert first == again != other


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 3000), seed=st.integers(0, 2**64 - 1))
def test_a_permutation_has_every_number_once(size: int, seed: int) -> None:
    order, other = (Permutation(size, one).many(np.arange(size)).tolist() for one in (seed, seed ^ 1))
    assert sorted(order) == list(range(size))
    assert size <= 30 or order != other


def test_a_permutation_of_as_many_windows_as_there_will_ever_be_costs_nothing() -> None:
    order = Permutation(10**13, 5)
    drawn = [order(i) for i in range(2000)]
    assert len(set(drawn)) == 2000
    assert 0.45 < np.mean(drawn) / 10**13 < 0.55  # 5 standard errors are 0.03
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.12


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (10, 3), (2**20 + 7, 648_057), (2**39 + 1, 2**39 - 10**6)])
def test_a_stride_is_plain_arithmetic_at_any_size(size: int, stride: int) -> None:
    places = [*range(min(size, 1000)), *range(max(0, size - 1000), size)]
    assert Stride(size, stride).many(np.array(places)).tolist() == [place * stride % size for place in places]


def test_few_windows_at_a_stride_lie_evenly_over_the_data() -> None:
    loader = Coprime(feed(stream(30_001), length=8))
    first = sorted(loader._starts(np.arange(32, dtype=np.uint64)).tolist())
    loader.close()
    gaps = [b - a for a, b in pairwise([*first, first[0] + len(loader.shards)])]
    assert max(gaps) < 2 * len(loader.shards) / 32


@settings(max_examples=60, deadline=None)
@given(data=st.data(), size=st.integers(1, 60), longest=st.integers(1, 20))
def test_documents_begin_at_borders_and_where_the_text_jumps_and_are_no_longer_than_a_sequence(
    data: st.DataObject, size: int, longest: int
) -> None:
    x = np.array(data.draw(st.lists(st.integers(0, 3), min_size=size, max_size=size)))
    jumps = sorted({0, *data.draw(st.lists(st.integers(0, size - 1), max_size=4))})
    found = document_starts(x, np.array(jumps), BORDER, longest).tolist()
    expected, run = [], 0
    for place, token in enumerate(x.tolist()):
        run = 0 if token == BORDER or place in jumps or run == longest else run
        expected += [place] * (run == 0)
        run += 1
    assert found == expected


def test_rows_of_few_and_of_many_documents_have_borders_of_few_shapes() -> None:
    assert {bucket(count) for count in range(1, 5000)} == {4 << n for n in range(12)}
    widths = set()
    for most in (2, 3, 20, 500):
        for _, _, borders in (
            batch for step in steps_of(Spans(feed(stream(most=most)), packed=True), 30) for batch in step
        ):
            assert borders is not None
            assert borders.dtype == torch.int32
            assert (int(borders[0]), int(borders[-1])) == (0, 128)
            assert (borders.diff() >= 0).all()
            widths.add(len(borders))
    assert widths <= {32, 64, 128}


def test_nearly_all_steps_of_a_run_have_borders_of_one_shape() -> None:
    steps = steps_of(Spans(feed(stream(40_001, most=120), 2048, 64), packed=True), 60)
    widths = [len(borders) for step in steps for *_, borders in step if borders is not None]
    assert len(widths) == 60
    assert len(set(widths)) == 1


def test_how_far_a_token_reads_on_average_follows_from_the_documents() -> None:
    assert Spans(feed()).reach == 4
    loader = Spans(feed(stream(40_001, most=120), 2048, 64), packed=True)
    lengths = np.array([len(one) for step in steps_of(loader, 19) for one in documents(step)])
    assert loader.reach == pytest.approx((lengths**2).sum() / lengths.sum() / 2, rel=0.05)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(DataError, match=r"loader\.window=5000: the training data has 4001 tokens"):
        Shuffled(feed(), window=5000)
    with pytest.raises(ConfigError, match=r"loader\.window=0"):
        Shuffled(feed(), window=0)
    with pytest.raises(ConfigError, match=r"loader\.stride=1: between 0 and 1"):
        Coprime(feed(), stride=1)
    with pytest.raises(ConfigError, match=r"loader\.packed=true: the tokenizer marks no beginning"):
        Spans(Feed(TEXT, 128, 8), packed=True)
    loader = Spans(feed())
    with pytest.raises(ConfigError, match="train_batch_tokens=100"):
        loader.reshape(train_batch_tokens=100, train_seq_len=8, micro_steps=1)
    assert loader.next_step()[0].x.shape == (16, 8)
    loader.close()
