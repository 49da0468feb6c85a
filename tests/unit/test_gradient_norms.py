"""The callback that reports norms of gradients by role."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from golf.common.errors import ConfigError
from golf.common.progress import Progress
from golf.train.gradient_norms import GradientNorms

GRADIENTS = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([12.0]), "e": torch.full((2, 2), 0.5)}
ROLES = {"a": "matrix", "b": "matrix", "e": "embed"}


def rows(every: int, steps: int, is_main: bool = True) -> list[tuple[dict[str, Any], int]]:
    found: list[tuple[dict[str, Any], int]] = []
    specs = {name: SimpleNamespace(role=role) for name, role in ROLES.items()}
    parts = SimpleNamespace(model=SimpleNamespace(specs=lambda: specs), ranks=SimpleNamespace(is_main=is_main))
    hook = GradientNorms(every)
    hook.attach(SimpleNamespace(parts=parts, report=lambda row, step: found.append((row, step))))  # type: ignore[arg-type]
    for step in range(steps):
        hook.on_gradients(Progress(step=step), GRADIENTS.items())
    return found


def test_norms_are_those_of_a_roles_gradients_laid_end_to_end() -> None:
    [(row, step)] = rows(every=100, steps=1)
    assert (row, step) == ({"step": 1, "grad_norm_matrix": 13.0, "grad_norm_embed": 1.0}, 1)


def test_they_are_looked_at_now_and_then_and_told_by_one_rank() -> None:
    assert [step for _, step in rows(every=3, steps=7)] == [1, 3, 6]
    assert rows(every=3, steps=7, is_main=False) == []


def test_every_step_is_the_most_often() -> None:
    with pytest.raises(ConfigError, match=r"callbacks\.gradient_norms\.every=0"):
        GradientNorms(0)
