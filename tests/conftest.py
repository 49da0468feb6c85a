"""For every test: a config folder that is not the user's own, and no time spent on packing code."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("GOLF_CODE", "bound")  # exporting each tiny run would take longer than the run


@pytest.fixture(scope="session", autouse=True)
def config_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keys and what is trusted are the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config_home")))
        yield
