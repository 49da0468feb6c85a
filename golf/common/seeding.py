"""Seeds, generators and determinism for one process."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from golf.common.errors import ConfigError


def seed_all(seed: int) -> None:
    """Seed random, numpy and torch (the CPU and every GPU) with the same number, on every rank alike.

    Raises ConfigError unless 0 <= seed < 2**32, the range that numpy takes.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ConfigError(f"seed={seed!r}: a whole number from 0 to 4294967295 is needed")
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (the global state is what other libraries draw from)
    torch.manual_seed(seed)


def generator_of(seed: int, name: str) -> torch.Generator:
    """A CPU generator of its own for what is called `name`, the same for one seed on every machine."""
    return torch.Generator(device="cpu").manual_seed(seed_of(seed, name))


def seed_of(seed: int, name: str) -> int:
    """The seed, 63 bits, of what is called `name` in a run of this seed."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@contextmanager
def undisturbed() -> Iterator[None]:
    """Within the block random, numpy and torch's CPU may be seeded and drawn from; afterwards they go on as before."""
    before, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(before)
        np.random.set_state(of_numpy)  # noqa: NPY002


def deterministic(on: bool) -> None:
    """Ask torch for the deterministic kernel of each op where there is one, or (`on=False`) for the fastest.

    Ops that have none warn and run. cuBLAS reads its setting when the first handle is made: call this before
    any work on a GPU.
    """
    torch.use_deterministic_algorithms(on, warn_only=True)
    torch.backends.cudnn.deterministic = on
    torch.backends.cudnn.benchmark = False  # trying kernels out picks by timing, hence not always the same one
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
