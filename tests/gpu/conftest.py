"""Every GPU test compiles afresh: graphs of other tests' models count against the compiler's limit for one function."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def no_graphs_of_other_tests() -> Iterator[None]:
    yield
    torch._dynamo.reset()
