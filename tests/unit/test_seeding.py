"""Seeds reach every generator; determinism can be asked for and given up."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from golf.common.errors import ConfigError
from golf.common.seeding import deterministic, seed_all


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


def test_one_seed_repeats_every_generator() -> None:
    seed_all(7)
    first = draw()
    seed_all(7)
    assert draw() == first


def test_another_seed_changes_every_generator() -> None:
    seed_all(7)
    first = draw()
    seed_all(8)
    assert all(a != b for a, b in zip(first, draw(), strict=True))


@pytest.mark.parametrize("seed", [-1, 2**32, True])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(ConfigError, match="seed="):
        seed_all(seed)


def test_deterministic_is_a_switch() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    try:
        deterministic(True)
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        deterministic(False)
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        deterministic(before)
