"""The training stream: the same spans for every world and number of micro-steps, exact positions, clear errors."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from golf.common.errors import ConfigError, DataError
from golf.data.loader import Feed, TrainLoader, validation_tokens
from golf.data.orders import Spans
from golf.data.shards import Shards, write_shards

SPLITS = [(world, steps) for world in (1, 2, 4, 8) for steps in (1, 2, 4, 8) if steps <= 8 // world]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Two shards: tokens 0..99 and 100..156."""
    folder = tmp_path_factory.mktemp("toy")
    return Shards.open(write_shards(folder, "train", [np.arange(157)], 100), 157)


def loader(shards: Shards, rank: int = 0, world: int = 1, micro_steps: int = 8, **changes: int) -> TrainLoader:
    sizes = {"train_batch_tokens": 64, "train_seq_len": 4, **changes}
    return Spans(Feed(shards, rank=rank, world=world, micro_steps=micro_steps, **sizes))


def spans_of_step(shards: Shards, world: int, micro_steps: int, step: int) -> list[list[int]]:
    """The step's spans in stream order, put together again from every rank's (x, y)."""
    found = {}
    for rank in range(world):
        each = loader(shards, rank, world, micro_steps)
        for _ in range(step):
            each.next_step()
        rows = 8 // world // micro_steps
        for m, (x, y, _) in enumerate(each.next_step()):
            spans = torch.cat([x.reshape(rows, -1), y.reshape(rows, -1)[:, -1:]], 1).tolist()
            for k, span in enumerate(spans):
                found[(m * rows + k) * world + rank] = span
        each.close()
    return [found[i] for i in range(8)]


@pytest.mark.parametrize(("world", "micro_steps"), SPLITS)
def test_a_steps_spans_are_the_streams_consecutive_cuts(toy: Shards, world: int, micro_steps: int) -> None:
    for step in (0, 1, 2):
        stream = np.arange(72 * step, 72 * step + 72) % 157
        assert spans_of_step(toy, world, micro_steps, step) == stream.reshape(8, 9).tolist()


def test_the_third_step_wraps_inside_a_span(toy: Shards) -> None:
    spans = spans_of_step(toy, 1, 8, 2)
    assert spans[0] == list(range(144, 153))
    assert spans[1] == [153, 154, 155, 156, 0, 1, 2, 3, 4]
    assert spans[2][0] == 5


@settings(max_examples=30, deadline=None)
@given(
    total=st.integers(2, 400),
    sequences=st.integers(1, 3),
    seq_len=st.integers(1, 5),
    split=st.sampled_from(SPLITS),
    steps=st.integers(1, 3),
)
def test_every_split_sees_the_same_tokens(
    total: int,
    sequences: int,
    seq_len: int,
    split: tuple[int, int],
    steps: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    shards = Shards.open(write_shards(tmp_path_factory.mktemp("s"), "train", [np.arange(total)], 61), total)
    sizes = {"train_batch_tokens": 8 * sequences * seq_len, "train_seq_len": seq_len}

    def pairs(world: int, micro_steps: int) -> list[list[tuple[list[int], list[int]]]]:
        loaders = [loader(shards, r, world, micro_steps, **sizes) for r in range(world)]
        seen = []
        for _ in range(steps):
            batches = [batch for each in loaders for batch in each.next_step()]
            assert all(x.shape == y.shape == (8 * sequences // world // micro_steps, seq_len) for x, y, _ in batches)
            seen.append(sorted((a, b) for x, y, _ in batches for a, b in zip(x.tolist(), y.tolist(), strict=True)))
        for each in loaders:
            each.close()
        return seen

    assert pairs(*split) == pairs(8, 1)


def test_batches_are_int64_with_targets_one_token_later(toy: Shards) -> None:
    [(x, y, borders)] = loader(toy, micro_steps=1).next_step()
    assert borders is None
    assert x.dtype == y.dtype == torch.int64
    assert x.shape == (16, 4)
    assert torch.equal(y, x + 1)


def test_state_does_not_count_what_was_read_ahead(toy: Shards) -> None:
    one = loader(toy)
    one.next_step()
    state = one.state_dict()
    expected = [one.next_step()[0][0].tolist() for _ in range(3)]
    other = loader(toy)
    other.next_step()
    other.load_state_dict(state)
    assert [other.next_step()[0][0].tolist() for _ in range(3)] == expected
    assert state == {"position": 72}


def test_reset_goes_back_to_the_first_token(toy: Shards) -> None:
    each = loader(toy)
    first = [each.next_step()[0][0].tolist() for _ in range(3)]
    each.reset()
    assert each.position == 0
    assert [each.next_step()[0][0].tolist() for _ in range(3)] == first


def test_progress_through_the_data_is_told(toy: Shards) -> None:
    each = loader(toy)
    for _ in range(3):
        each.next_step()
    assert (each.position, each.step_span) == (216, 72)
    assert each.passes == pytest.approx(216 / 157)
    assert 0 <= each.data_wait_ms <= each.data_wait_ms_total


def test_a_disk_that_is_late_shows_as_waiting(tmp_path: Path) -> None:
    came = threading.Event()

    class Late(Shards):
        def read(self, position: int, n: int) -> np.ndarray:
            came.wait()
            return super().read(position, n)

    paths = write_shards(tmp_path, "train", [np.arange(157)])
    each = loader(Late.open(paths, 157))
    timer = threading.Timer(0.05, came.set)
    timer.start()
    each.next_step()
    waited = each.data_wait_ms
    each.close()
    assert waited > 25  # what the timer takes at least, but for rounding


@pytest.mark.parametrize("state", [{}, {"position": -1}, {"position": "1"}])
def test_a_malformed_state_is_refused(toy: Shards, state: dict[str, int]) -> None:
    with pytest.raises(DataError, match="position"):
        loader(toy).load_state_dict(state)


def test_the_threads_error_surfaces_at_its_step_and_stays(tmp_path: Path) -> None:
    tokens = np.zeros(300, np.int64)
    tokens[100] = 9
    each = loader(Shards.open(write_shards(tmp_path, "train", [tokens]), 9))
    each.next_step()
    for _ in range(2):
        with pytest.raises(DataError, match="token 100 is id 9"):
            each.next_step()
    assert each.position == 72


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_copied_without_blocking_are_the_same_on_a_gpu(toy: Shards) -> None:
    on_gpu = Spans(Feed(toy, train_batch_tokens=64, train_seq_len=4, micro_steps=2, device="cuda"))
    on_cpu = loader(toy, micro_steps=2)
    for _ in range(300):
        busy = torch.ones(2048, 2048, device="cuda")
        for (x, y, _), (x_cpu, y_cpu, _) in zip(on_gpu.next_step(), on_cpu.next_step(), strict=True):
            busy @= busy  # keeps the stream behind the host, so that a reused buffer would show
            assert x.device.type == "cuda"
            assert torch.equal(x.cpu(), x_cpu)
            assert torch.equal(y.cpu(), y_cpu)
    on_gpu.close()
    on_cpu.close()


def test_close_may_be_called_twice(toy: Shards) -> None:
    each = loader(toy)
    each.close()
    each.close()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"train_batch_tokens": 60}, "train_batch_tokens=60.*train_seq_len.*nearest: 64"),
        ({"train_seq_len": 3}, "train_seq_len"),
        ({"train_seq_len": 0}, "train_seq_len=0"),
        ({"world": 3}, r"runtime\.nproc=3.*1, 2, 4, 8"),
        ({"world": 2, "micro_steps": 8}, "micro_steps=8.*1, 2, 4"),
        ({"micro_steps": 3}, "micro_steps=3"),
        ({"world": 2, "micro_steps": 4, "rank": 2}, "rank 2"),
    ],
)
def test_numbers_that_do_not_divide_are_named(toy: Shards, changes: dict[str, int], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        loader(toy, **changes)


def test_the_validation_stream_is_whole(toy: Shards) -> None:
    np.testing.assert_array_equal(validation_tokens(toy, 4), np.arange(157))


def test_the_validation_stream_can_be_shortened(toy: Shards) -> None:
    assert len(validation_tokens(toy, 4, max_tokens=32)) == 33
    assert len(validation_tokens(toy, 4, max_tokens=10**6)) == 157


def test_a_validation_set_shorter_than_one_sequence_is_refused(toy: Shards) -> None:
    assert len(validation_tokens(toy, 156)) == 157
    with pytest.raises(DataError, match=r"157 tokens.*one sequence of 157 needs 158"):
        validation_tokens(toy, 157)
    with pytest.raises(DataError, match="first 3 targets"):
        validation_tokens(toy, 4, max_tokens=3)
