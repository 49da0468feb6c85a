"""The training clock and the stopwatch, on a hand-driven time."""

from __future__ import annotations

from contextlib import suppress

import pytest

from golf.common.clock import Clocks, TrainClock


class Hand:
    """A clock that moves only when told to."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def hand() -> Hand:
    return Hand()


def test_train_clock_counts_only_while_running(hand: Hand) -> None:
    clock = TrainClock(now=hand)
    hand.time += 5
    clock.start()
    hand.time += 2
    assert clock.elapsed_s == 2
    assert clock.stop() == 2
    hand.time += 7
    assert clock.elapsed_s == 2
    clock.start()
    hand.time += 1
    assert clock.stop() == 3


def test_starting_or_stopping_twice_changes_nothing(hand: Hand) -> None:
    clock = TrainClock(now=hand)
    clock.start()
    hand.time += 1
    clock.start()
    hand.time += 1
    assert (clock.stop(), clock.stop()) == (2, 2)


def test_stop_charges_the_work_still_queued_on_the_device(hand: Hand) -> None:
    def finish_queue() -> None:
        hand.time += 4

    clock = TrainClock(finish_queue, now=hand)
    clock.start()
    hand.time += 1
    assert clock.elapsed_s == 1, "reading never waits for the device"
    assert clock.stop() == 5


def test_start_leaves_out_what_was_queued_before(hand: Hand) -> None:
    def finish_queue() -> None:
        hand.time += 4

    clock = TrainClock(finish_queue, now=hand)
    clock.start()
    assert clock.elapsed_s == 0


def test_paused_leaves_validation_out_and_goes_on(hand: Hand) -> None:
    clock = TrainClock(now=hand)
    clock.start()
    with suppress(KeyError), clock.paused():
        hand.time += 9
        raise KeyError
    assert clock.running
    assert clock.elapsed_s == 0


def test_a_stopped_clock_stays_stopped_after_a_pause(hand: Hand) -> None:
    clock = TrainClock(now=hand)
    with clock.paused():
        hand.time += 1
    assert not clock.running


def test_train_clock_goes_on_from_a_checkpoint(hand: Hand) -> None:
    first = TrainClock(now=hand)
    first.start()
    hand.time += 3
    second = TrainClock(now=hand)
    second.load_state_dict(first.state_dict())
    hand.time += 50
    second.start()
    hand.time += 1
    assert second.stop() == 4


def test_nested_phases_never_count_twice(hand: Hand) -> None:
    clocks = Clocks(now=hand)
    with clocks.phase("data"):
        hand.time += 1
        with clocks.phase("compile"):
            hand.time += 10
        hand.time += 2
    hand.time += 100
    assert clocks.seconds == {"data": 3, "compile": 10}


def test_a_phase_adds_up_and_survives_an_error(hand: Hand) -> None:
    clocks = Clocks(now=hand)
    for _ in range(2):
        with suppress(KeyError), clocks.phase("eval"):
            hand.time += 1
            raise KeyError
    clocks.set("train", 12)
    assert clocks.seconds == {"eval": 2, "train": 12}


def test_a_phase_still_open_is_counted_so_far(hand: Hand) -> None:
    clocks = Clocks(now=hand)
    with clocks.phase("eval"):
        hand.time += 2
        assert clocks.seconds == {"eval": 2}


def test_the_innermost_phase_that_goes_on_is_told_with_its_age(hand: Hand) -> None:
    clocks = Clocks(now=hand)
    assert clocks.current is None
    with clocks.phase("warmup"):
        hand.time += 1
        with clocks.phase("compile"):
            hand.time += 10
            assert clocks.current == ("compile", 10)
        assert clocks.current == ("warmup", 11)
    assert clocks.current is None
