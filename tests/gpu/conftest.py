"""What GPU tests share: compiled code, by one cache for all of them; not graphs in memory, which each makes anew."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_compile_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What one test, worker or process of golf's has compiled another loads; a folder that you named stays yours.

    A test of compiling with an empty cache asks for one (torch._inductor.utils.fresh_cache, as `golf bench` does).
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all workers
    with pytest.MonkeyPatch.context() as patch:
        if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
            patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder / "compiled" / "inductor"))
            patch.setenv("TRITON_CACHE_DIR", str(folder / "compiled" / "triton"))
        yield


@pytest.fixture(autouse=True)
def no_graphs_of_other_tests() -> Iterator[None]:
    """Graphs of other tests' models count against the compiler's limit for one function."""
    yield
    torch._dynamo.reset()
