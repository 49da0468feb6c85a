"""Where the golden tensors of the original systems are: $GOLF_GOLDEN_DIR, or the folder beside this file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The folder of golden files; other sizes and seeds of the same checks may stand in another one."""
    return Path(os.environ.get("GOLF_GOLDEN_DIR") or Path(__file__).parent / "golden")
