"""The short form of benchmarks/faults.py: runs that are killed go on, and come to what undisturbed ones come to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "faults.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
def test_nothing_is_lost_of_runs_that_are_killed(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "4"], cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("as undisturbed") == 4
