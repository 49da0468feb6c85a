"""The callback that reports norms of gradients by role."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from golf.common.errors import ConfigError
from golf.common.progress import Progress
from golf.train.gradient_norms import GradientNorms

GRADIENTS = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([12.0]), "e": torch.full((2, 2), 0.5)}
ROLES = {"a": "matrix", "b": "matrix", "e": "embed"}


def shown(every: int, steps: int) -> list[dict[str, float]]:
    """What is shown in each of so many steps."""
    specs = {name: SimpleNamespace(role=role) for name, role in ROLES.items()}
    found: list[dict[str, float]] = [{} for _ in range(steps)]
    parts = SimpleNamespace(model=SimpleNamespace(specs=lambda: specs))
    hook = GradientNorms(every)
    for step, now in enumerate(found):
        show: Any = partial(lambda now, name, value: now.update({name: float(value)}), now)
        hook.attach(SimpleNamespace(parts=parts, show=show))  # type: ignore[arg-type]
        hook.on_gradients(Progress(step=step), GRADIENTS.items())
    return found


def test_norms_are_those_of_a_roles_gradients_laid_end_to_end() -> None:
    assert shown(every=100, steps=1) == [{"grad_norm_matrix": 13.0, "grad_norm_embed": 1.0}]


def test_they_are_looked_at_now_and_then() -> None:
    assert [step for step, now in enumerate(shown(every=3, steps=7), 1) if now] == [1, 3, 6]


def test_every_step_is_the_most_often() -> None:
    with pytest.raises(ConfigError, match=r"callbacks\.gradient_norms\.every=0"):
        GradientNorms(0)
