"""Output whose reader has gone, or that cannot be written."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator

import pytest

from golf.common.errors import GolfError
from golf.common.pipes import outlive_readers


@pytest.fixture
def stdout(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], io.TextIOWrapper]]:
    """Makes a descriptor the standard output of this process's Python."""
    opened: list[int] = []

    def use(descriptor: int) -> io.TextIOWrapper:
        opened.append(descriptor)
        stream = io.TextIOWrapper(io.FileIO(descriptor, "w", closefd=False), encoding="utf-8")
        monkeypatch.setattr("sys.stdout", stream)
        return stream

    yield use
    for descriptor in opened:
        os.close(descriptor)


def test_work_goes_on_when_the_reader_has_gone(stdout: Callable[[int], io.TextIOWrapper]) -> None:
    reading, writing = os.pipe()
    stdout(writing)
    outlive_readers()
    print("one", flush=True)
    assert os.read(reading, 100) == b"one\n"
    os.close(reading)
    for _ in range(3):
        print("two", flush=True)
    os.write(writing, b"what a process that is started later says")


def test_what_was_printed_before_comes_first(stdout: Callable[[int], io.TextIOWrapper]) -> None:
    reading, writing = os.pipe()
    stdout(writing).write("über ")
    outlive_readers()
    print("alles", flush=True)
    assert os.read(reading, 100).decode() == "über alles\n"
    os.close(reading)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_said_once(stdout: Callable[[int], io.TextIOWrapper]) -> None:
    stdout(os.open("/dev/full", os.O_WRONLY))
    outlive_readers()
    with pytest.raises(GolfError, match="cannot write the output: No space left"):
        print("one", flush=True)
    print("two", flush=True)


def test_without_an_output_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    outlive_readers()
