"""Workers that cannot meet say so in one line."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from golf.common import ranks
from golf.common.errors import GolfError


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.socket() as server:
        server.bind(("", 0))
        server.listen()
        yield int(server.getsockname()[1])


@pytest.fixture(autouse=True)
def _first_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0"), ("MASTER_ADDR", "localhost")):
        monkeypatch.setenv(name, value)


def test_a_port_that_is_taken(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", str(taken))
    with pytest.raises(GolfError, match=f"port {taken} is taken"):
        ranks.join("cpu")


def test_a_port_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_PORT", raising=False)
    with pytest.raises(GolfError, match="MASTER_PORT"):
        ranks.join("cpu")
