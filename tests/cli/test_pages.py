from __future__ import annotations

import subprocess
import sys
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
    rows = [[cell.strip() for cell in line.split("│")] for line in lines if "flash_attn_" in line or "sdpa" in line]
    tried = {row[1]: row[3] for row in rows}
    assert tried.pop("sdpa") == "yes"
    assert tried.pop("flash_attn_4").startswith("yes")
    assert len(tried) == 2
    assert all(text.startswith("not yet") for text in tried.values())
    for name in ("golf", "torch", "conf", "memory", "cache", "disk of the cache", "key"):
        assert any(f" {name} " in line for line in lines), name
    assert "pip install 'golf[flash-attn-2]'" in done.out


def test_doctor_takes_no_arguments(golf_command: Any) -> None:
    assert golf_command("doctor", "now").code == 2
