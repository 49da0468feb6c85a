"""The only worker of a run: started without torch's agent, and answered for like several."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from golf.common.errors import STOPPED, GolfInterrupted, WorkerFailed
from golf.common.process import NotStarted
from golf.launch.work.early_end import record_death, record_early
from golf.launch.work.workers import STARTED_BY, cause, launch
from golf.runs.folder import RunFolder
from golf.runs.store import Run

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
        launch(tmp_path, 1, "stand_in", on_failed=lambda directory, told: killed.append((directory, told)))
    assert (killed, caught.value.exit_code) == ([(tmp_path, "worker 0 was killed by SIGKILL")], 137)


@pytest.mark.parametrize(
    ("failures", "rank"),
    [
        ([(0, 1, 5), (1, -signal.SIGABRT, 5)], 1),  # the agent looked when both were gone
        ([(0, 1, 5), (1, -signal.SIGKILL, 6)], 1),
        ([(0, 1, 5), (1, -signal.SIGTERM, 5)], 0),
        ([(1, 1, 5), (0, -signal.SIGKILL, 35)], 1),  # it did not heed SIGTERM
        ([(1, 1, 5), (0, 1, 6)], 1),
    ],
)
def test_the_worker_is_named_of_which_the_others_died(failures: list[tuple[int, int, int]], rank: int) -> None:
    told = [SimpleNamespace(local_rank=one, exitcode=code, timestamp=at) for one, code, at in failures]
    assert cause(told).local_rank == rank


@pytest.mark.parametrize("nproc", [1, 2])
def test_a_worker_that_cannot_be_started_is_told_as_that(
    nproc: int, worker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (python := tmp_path / "python").write_text("no program")
    monkeypatch.setattr(sys, "executable", str(python))
    told: list[object] = []
    with pytest.raises(NotStarted, match=f"cannot start {python}, the Python that golf runs in: Permission denied"):
        launch(tmp_path, nproc, "stand_in", on_failed=lambda directory, error: told.append(error))
    assert [type(one) for one in told] == [NotStarted]


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


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
def test_a_worker_whose_parent_died_before_it_could_ask_ends_with_a_record(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    dead = 2**22 + 1  # above any that Linux gives
    RunFolder(tmp_path).mark(dead)
    command = [sys.executable, "-m", "golf.launch.work.worker", f"run={tmp_path}"]
    done = subprocess.run(command, env={**os.environ, STARTED_BY: str(dead)})
    assert done.returncode == STOPPED
    assert "what started it is gone" in json.loads((tmp_path / "result.json").read_text())["error"]
    assert RunFolder(tmp_path).liveness() == "finished"
    assert not (tmp_path / ".running").exists()


def test_nothing_tells_later_processes_that_they_are_a_worker_of_this_one(worker: Path, tmp_path: Path) -> None:
    worker.write_text(f"import os\nraise SystemExit(os.environ['{STARTED_BY}'] != str(os.getppid()))")
    launch(tmp_path, 2, "stand_in")
    assert STARTED_BY not in os.environ


def test_a_record_says_that_a_worker_was_killed_where_the_others_were_stopped_for_it(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    record_death(tmp_path, GolfInterrupted(3, signal.SIGTERM))
    assert Run(tmp_path).status == "interrupted"
    record_death(tmp_path, WorkerFailed("worker 0 ended with exit code 75"))
    assert Run(tmp_path).status == "interrupted"
    record_death(tmp_path, "worker 1 was killed by SIGKILL")
    assert (Run(tmp_path).status, Run(tmp_path).record["error"]) == ("failed", "worker 1 was killed by SIGKILL")
    assert Run(tmp_path).disagreements() == []


def test_an_error_without_words_is_told_by_its_type(tmp_path: Path) -> None:
    record_early(RunFolder(tmp_path), MemoryError(), {})
    assert Run(tmp_path).record["error"] == "MemoryError"
