"""The only worker of a run: started without torch's agent, and answered for like several."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from golf.common.errors import WorkerFailed
from golf.launch.work.workers import launch

Killed = list[tuple[Path, str]]


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the program of a worker is written; its folder is on the path of the processes that are started."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path / "stand_in.py"


def test_a_worker_that_ends_well_is_told_of_its_run_and_of_no_group(
    worker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    worker.write_text("import os, sys\nassert 'WORLD_SIZE' not in os.environ\nopen(sys.argv[1][4:] + '/ran', 'w')")
    launch(tmp_path, 1, "stand_in")
    assert (tmp_path / "ran").exists()


def test_a_worker_that_fails_hands_on_its_exit_code(worker: Path, tmp_path: Path) -> None:
    worker.write_text("raise SystemExit(7)")
    with pytest.raises(WorkerFailed, match="worker 0 ended with 7") as caught:
        launch(tmp_path, 1, "stand_in")
    assert caught.value.exit_code == 7


def test_a_killed_worker_is_answered_for(worker: Path, tmp_path: Path) -> None:
    worker.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    killed: Killed = []
    with pytest.raises(WorkerFailed) as caught:
        launch(tmp_path, 1, "stand_in", on_killed=lambda directory, told: killed.append((directory, told)))
    assert (killed, caught.value.exit_code) == ([(tmp_path, "worker 0 was killed by SIGKILL")], 137)


def test_what_stops_the_command_stops_the_worker_first(worker: Path, tmp_path: Path) -> None:
    worker.write_text(
        "import os, signal, sys\n"
        "def stop(number, frame):\n    open(sys.argv[1][4:] + '/told', 'w')\n    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, stop)\nos.kill(os.getppid(), signal.SIGTERM)\nsignal.pause()"
    )
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(WorkerFailed, match="stopped by SIGTERM") as caught:
        launch(tmp_path, 1, "stand_in")
    assert caught.value.exit_code == 143
    assert (tmp_path / "told").exists()
    assert signal.getsignal(signal.SIGTERM) is before
    assert os.environ["OMP_NUM_THREADS"] == "1"
