"""What a person sees in a terminal: golf's own processes on a pseudo-terminal of 80, 100 and 120 columns."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from rich.cells import cell_len

from golf.runs.seal import write_sealed

Terminal = Callable[..., str]


@pytest.fixture
def terminal(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Run golf on a terminal of so many columns; what it wrote there, escape sequences and all."""
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("COLUMNS", "LINES", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)

    def call(columns: int, *words: object) -> str:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        command = [sys.executable, "-m", "golf.cli.main", *map(str, words)]
        process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
        os.close(theirs)
        written = b""
        try:
            while part := os.read(ours, 65536):
                written += part
        except OSError:  # how Linux tells that the other end is closed
            pass
        finally:
            os.close(ours)
        assert process.wait() == 0, written.decode(errors="replace")
        return written.decode()

    return call


def drawn(written: str) -> list[str]:
    """The lines as they were drawn, a redrawn one every time."""
    return re.split(r"\r\n|\r|\n", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written))


@pytest.mark.parametrize("columns", [80, 100, 120])
def test_tables_of_a_sweep_fit_a_terminal(trained: Path, tmp_path: Path, terminal: Terminal, columns: int) -> None:
    for number in range(2):
        folder = Path(shutil.copytree(trained, tmp_path / "19-11-18_quickstart_56ca" / f"训练{number}"))
        text = (folder / "config.yaml").read_text().replace("seed: 1337", f"seed: 4242{number}")
        (folder / "config.yaml").write_text(text.replace("matrix_lr: 0.02", f"matrix_lr: 0.0123{number}"))
        record = json.loads((folder / "result.json").read_text())
        scores = {"contiguous": 1.2344 + number, "sliding": 1.1234 + number}
        for one in record["evals"]:
            if one["stage"] == "quantized":
                one["val_bpb"] = scores[one["method"]]
        figures = {"post_quant": scores["contiguous"], "sliding": scores["sliding"], "final": scores["sliding"]}
        record["val_bpb"] |= {**figures, "by_method": scores}
        write_sealed(folder / "result.json", record)
    lines = drawn(terminal(columns, "runs", tmp_path))
    assert max(map(cell_len, lines)) <= columns
    assert any(all(word in one for word in ("42421", "0.01231", "2.1234", "completed")) for one in lines)


def test_a_run_on_a_terminal_keeps_bar_and_time_left_and_cuts_no_path(
    trained: Path, tmp_path: Path, terminal: Terminal
) -> None:
    words = yaml.safe_load((trained / "overrides.yaml").read_text())
    folder = tmp_path / ("a_long_folder_name_" * 5) / "run"
    lines = drawn(terminal(80, "train", *words, f"hydra.run.dir={folder}"))
    bars = [one for one in lines if "━" in one and "step " in one]
    assert bars, "the last state is drawn however quick a run is"
    assert max(map(cell_len, bars)) <= 80
    assert bars[-1].rstrip().endswith("left 0 s")
    assert any(one.endswith(f"run {folder}") for one in lines)
    assert lines[-2:] == [str(folder), ""]
