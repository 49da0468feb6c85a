"""Which worker hangs: silent and idle, and seen to live before."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from golf.launch.work.heartbeat import Heartbeat

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="without /proc nothing is known of a process")


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def beat(directory: Path, pid: int, stamp: int) -> None:
    file = directory / ".beat.rank1"
    file.write_text(json.dumps({"host": socket.gethostname(), "pid": pid}))
    os.utime(file, (stamp, stamp))


def test_a_stopped_worker_hangs_when_it_was_silent_for_long_enough(
    other: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    mine = Heartbeat(tmp_path, 0, 2, limit_s=10.0)
    for stamp in (1, 2):
        beat(tmp_path, other.pid, stamp)
        assert mine.look(6.0) is None
    other.send_signal(signal.SIGSTOP)
    os.waitpid(other.pid, os.WUNTRACED)
    assert mine.look(6.0) is None
    found = mine.look(6.0)
    assert found is not None
    assert (found[0], f"process {other.pid}" in found[1], "was stopped" in found[1]) == (1, True, True)


def test_what_an_earlier_attempt_left_tells_nothing(tmp_path: Path) -> None:
    beat(tmp_path, 2**22 + 1, 7)
    mine = Heartbeat(tmp_path, 0, 2, limit_s=10.0)
    assert [mine.look(60.0) for _ in range(3)] == [None] * 3


def test_a_worker_that_is_silent_but_at_work_does_not_hang(tmp_path: Path) -> None:
    mine = Heartbeat(tmp_path, 0, 2, limit_s=10.0)
    for stamp in (1, 2):
        beat(tmp_path, os.getpid(), stamp)
        assert mine.look(6.0) is None
    for _ in range(3):
        until = os.times().user + 0.05
        while os.times().user < until:
            sum(range(1000))
        assert mine.look(60.0) is None


def test_who_cannot_beat_itself_judges_nobody(tmp_path: Path) -> None:
    assert not Heartbeat(tmp_path / "gone", 0, 2, limit_s=10.0).beat()


def test_a_fatal_error_leaves_the_stacks_in_the_log(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys; from golf.launch.work.heartbeat import fatal_errors_to\n"
        "with fatal_errors_to(pathlib.Path(sys.argv[1])): os.abort()"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "train.log")])
    assert done.returncode == -signal.SIGABRT
    assert "most recent call first" in (tmp_path / "train.log").read_text()
