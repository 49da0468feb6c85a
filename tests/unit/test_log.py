"""One logger: who writes where, and that runs in one process do not mix."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from golf.common import log
from golf.common.errors import GolfError


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    log.setup(0, None, console=False).close()


def test_rank_0_writes_plain_lines_to_the_pipe_and_to_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log.setup(0, tmp_path / "train.log")
    log.logger.info("hello")
    assert capsys.readouterr().out == "hello\n"
    assert (tmp_path / "train.log").read_text().endswith("INFO hello\n")


def test_a_warning_says_that_it_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    log.setup(0, None)
    log.logger.warning("careful")
    assert capsys.readouterr().out == "warning: careful\n"


def test_other_ranks_are_silent_and_keep_a_file_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log.setup(1, tmp_path / "train.log")
    log.logger.info("from rank 1")
    assert capsys.readouterr().out == ""
    assert "from rank 1" in (tmp_path / "rank1.log").read_text()
    assert not (tmp_path / "train.log").exists()


def test_setting_up_twice_repeats_no_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        log.setup(0, tmp_path / "train.log")
    log.logger.info("once")
    assert capsys.readouterr().out == "once\n"
    assert (tmp_path / "train.log").read_text().count("once") == 1


def test_the_next_run_takes_over_even_if_the_last_was_not_closed(tmp_path: Path) -> None:
    first = log.setup(0, tmp_path / "1" / "train.log", console=False)
    log.setup(0, tmp_path / "2" / "train.log", console=False)
    log.logger.info("second run")
    first.close()
    log.logger.info("still the second run")
    assert (tmp_path / "1" / "train.log").read_text() == ""
    assert (tmp_path / "2" / "train.log").read_text().count("second run") == 2


def test_closing_removes_every_handler(tmp_path: Path) -> None:
    before = list(log.logger.handlers), log.logger.propagate
    with log.setup(0, tmp_path / "train.log"):
        assert not log.logger.propagate, "the root logger's handlers would repeat each line"
    assert (list(log.logger.handlers), log.logger.propagate) == before


def test_file_only_lines_stay_out_of_the_console(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log.setup(0, tmp_path / "train.log")
    log.logger.info("shown live already", extra=log.FILE_ONLY)
    assert capsys.readouterr().out == ""
    assert "shown live already" in (tmp_path / "train.log").read_text()


def test_a_log_that_cannot_be_opened_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GolfError, match="cannot write the log"):
        log.setup(0, tmp_path / "file" / "train.log")
    assert not [one for one in log.logger.handlers if isinstance(one, logging.FileHandler)]


def test_a_line_on_a_terminal_is_never_folded() -> None:
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    path = "/data/" + "a_folder/" * 20
    record = logging.LogRecord("golf", logging.INFO, "", 0, "to upload it: wandb sync %s [1/2]", (path,), None)
    log.ScreenHandler(console).emit(record)
    assert isinstance(console.file, io.StringIO)
    (line,) = console.file.getvalue().splitlines()
    assert line.endswith(f"wandb sync {path} [1/2]")
