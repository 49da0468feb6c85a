"""What a process leaves that is killed at once (scratch folders, locks, parts of files) is in nobody's way."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from golf.common.errors import GolfError
from golf.common.files import atomic_writer, hold, scratch_folder
from golf.launch.work.early_end import STARTING, clear, record_death
from golf.runs.folder import RunFolder
from golf.runs.store import Run

LEAVES = """
import sys, time
from pathlib import Path
from golf.common.files import atomic_writer, hold, scratch_folder
from golf.launch.work.early_end import STARTING
from golf.runs.folder import RunFolder
place = Path(sys.argv[1])
with scratch_folder(place, "golf-workers-") as logs, scratch_folder(place / "evals", ".quantize-") as scratch:
    (logs / "log").write_text("x")
    lock = hold(place / STARTING)
    folder = RunFolder.claim(place)
    with atomic_writer(place / "artifact.golf") as file:
        file.write(b"half")
        print("there", flush=True)
        time.sleep(600)
"""
SCRATCH = ("golf-workers-*", "evals/.quantize-*")


@contextmanager
def started(place: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has made all of it, and lives until the block ends."""
    (place / "evals").mkdir(exist_ok=True)
    (place / "config.yaml").write_text("seed: 1\n")
    with subprocess.Popen([sys.executable, "-c", LEAVES, str(place)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        yield process
        process.send_signal(signal.SIGKILL)


def scratches(place: Path) -> list[Path]:
    return [one for pattern in SCRATCH for one in place.glob(pattern)]


def test_what_a_killed_process_left_is_taken_away_and_what_a_living_one_has_stays(tmp_path: Path) -> None:
    with started(tmp_path):
        with scratch_folder(tmp_path, "golf-workers-"), scratch_folder(tmp_path / "evals", ".quantize-"):
            assert len(scratches(tmp_path)) == 4
        assert hold(tmp_path / STARTING) is None
        assert Run(tmp_path).status == "running"
        clear(tmp_path)
        assert (tmp_path / STARTING).exists()
    assert len(scratches(tmp_path)) == 2
    with scratch_folder(tmp_path, "golf-workers-") as one, scratch_folder(tmp_path / "evals", ".quantize-") as other:
        assert scratches(tmp_path) == [one, other]
    assert scratches(tmp_path) == []


def test_a_killed_starter_s_lock_and_mark_hold_nobody_up(tmp_path: Path) -> None:
    with started(tmp_path):
        pass
    assert Run(tmp_path).status == "failed"
    assert not (tmp_path / "artifact.golf").exists()
    lock = hold(tmp_path / STARTING)
    assert lock is not None
    lock.release()
    record_death(tmp_path, "killed")
    assert Run(tmp_path).record["error"] == "killed"
    assert not any((tmp_path / name).exists() for name in (STARTING, ".running", ".room"))
    with atomic_writer(tmp_path / "artifact.golf") as file:
        file.write(b"whole")
    assert (tmp_path / "artifact.golf").read_bytes() == b"whole"
    with pytest.raises(GolfError, match="already holds a run"):
        RunFolder.claim(tmp_path)
