"""What is written where there is no room: the record, then the artifact, then the weights."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from golf.common.errors import GolfError
from golf.common.files import is_full
from golf.common.log import logger, setup
from golf.runs.folder import ROOM_BYTES, MetricsWriter, RunFolder

FULL = Path("/dev/full")  # every write there finds the disk full
pytestmark = pytest.mark.skipif(not FULL.exists(), reason="no device here that is always full")


def test_a_claimed_folder_keeps_room_for_its_record(tmp_path: Path) -> None:
    folder = RunFolder.claim(tmp_path)
    assert (tmp_path / ".room").stat().st_size == ROOM_BYTES
    assert (folder.give_room(), folder.give_room()) == (True, False)
    folder.release()
    assert list(tmp_path.iterdir()) == []


def test_no_room_is_known_through_the_error_that_tells_of_it() -> None:
    told = GolfError("cannot write")
    assert not is_full(told)
    told.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert is_full(told)
    assert not is_full(OSError(errno.EACCES, "Permission denied"))


def test_metrics_that_cannot_be_written_are_a_clear_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to(FULL)
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    with pytest.raises(GolfError, match="No space left"):
        writer.write({"step": 1})
    writer.close()


def test_a_log_that_cannot_be_written_is_told_of_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train.log").symlink_to(FULL)
    with setup(0, tmp_path / "train.log", console=False):
        for _ in range(3):
            logger.info("a line")
    assert (
        capsys.readouterr().err == f"golf: cannot write {tmp_path}/train.log: No space left on device; lines are lost\n"
    )
