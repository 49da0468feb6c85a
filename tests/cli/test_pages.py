from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from golf.cli.main import COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_a_short_page_with_examples(golf_command: Any, command: str) -> None:
    done = golf_command(command, "--help")
    assert done.code == 0
    assert done.out.startswith(f"golf {command}")
    assert done.out.count(f"golf {command}") >= 3  # usage and two examples
    assert max(map(len, done.out.splitlines())) <= 120


@pytest.mark.parametrize("command", COMMANDS)
def test_a_page_has_many_ways_to_it(golf_command: Any, command: str) -> None:
    page = golf_command(command, "--help")
    assert golf_command(command, "-h") == golf_command("help", command) == page
    assert golf_command(command, "--version") == golf_command("--version")


def test_help_on_what_there_is_not(golf_command: Any) -> None:
    done = golf_command("help", "trian")
    assert (done.code, done.out) == (2, "")
    assert "did you mean 'train'" in done.err
    assert golf_command("help") == golf_command() == golf_command("-h")


@pytest.mark.parametrize("words", [("--help",), ("help", "train"), ("runs",), ("import-env", "SEED=1"), ("trian",)])
def test_a_reader_that_has_gone_is_met_in_silence(words: tuple[str, ...], workplace: Any) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    program = f"import sys; sys.argv[1:] = {words}; from golf.cli.main import entry; entry()"
    done = subprocess.run([sys.executable, "-c", program], stdout=writing, stderr=subprocess.PIPE, cwd=str(workplace))
    os.close(writing)
    assert (done.returncode, len(done.stderr.splitlines())) == ((2, 1) if words == ("trian",) else (0, 0))


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("train", "budget=smoke"), 2),
        (("train", "--prepare"), 2),
        (("train", "-m", "seed=1,2"), 2),
        (("bench", "budget=smoke"), 2),
        (("bench", "kernels", "runtime.device=cpu"), 2),
        (("report", "{trained}", "--out", "outputs/mine"), 1),
        (("dashboard", "{trained}", "--project", "x", "--out", "outputs/mine"), 1),
    ],
)
def test_a_folder_that_cannot_be_written_is_one_matter(
    golf_command: Any, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], code: int
) -> None:
    for name in ("outputs", "multirun"):
        (tmp_path / name).write_text("a file stands where a folder is wanted")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    done = golf_command(*(word.format(trained=trained) for word in words))
    assert done.code == code
    assert done.err.startswith(("golf: cannot write ", "golf: cannot use "))
    assert len(done.err.splitlines()) <= 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["multirun", "outputs"]


def test_pages_and_lists_need_no_torch(workplace: Any) -> None:
    program = (
        "import sys\n"
        "from golf.cli.main import COMMANDS, main\n"
        "codes = [main([name, '--help']) for name in COMMANDS] + [main(['runs']), main(['eval', 'run=nowhere'])]\n"
        "print(codes, sorted({'torch', 'wandb', 'pyarrow', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=str(workplace)
    )
    assert done.stdout.splitlines()[-1] == f"{[0] * (len(COMMANDS) + 1) + [2]} []"


def test_doctor_tells_what_is_here_and_what_was_never_run(golf_command: Any) -> None:
    done = golf_command("doctor")
    assert done.code == 0
    lines = done.out.splitlines()
    rows = [
        [cell.strip() for cell in line.split("│")]
        for line in lines
        if "flash_attn_" in line or "sdpa" in line or "cudnn" in line
    ]
    tried = {row[1]: row[3] for row in rows if len(row) > 3}
    assert tried.pop("sdpa") == "yes"
    assert tried.pop("flash_attn_4").startswith("yes")
    assert tried.pop("cudnn").startswith("yes")
    assert tried.pop("flash_attn_2").startswith("yes")
    assert tried.pop("cudnn_flash_attn_4").startswith("yes")
    assert [text[:7] for text in tried.values()] == ["not yet"]
    for name in ("golf", "torch", "conf", "memory", "cache", "disk of the cache", "key"):
        assert any(f" {name} " in line for line in lines), name
    assert "pip install 'golf[flash-attn-2]'" in done.out


def test_doctor_takes_no_arguments(golf_command: Any) -> None:
    assert golf_command("doctor", "now").code == 2
