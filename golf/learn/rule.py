"""What a rule for matrices is, and what golf's share: stacks of equal shapes, ranks' shares of them, named state."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from golf.common.errors import ArtifactError
from golf.common.ranks import Ranks
from golf.learn.gradients import end_to_end

# torch 2.13 warns of the older name; versions before it know no other.
all_gather_single: Callable[..., Any] = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)


Arrive = Callable[[Iterable[Tensor]], None]
"""Waits until the gradients of these parameters have come from the other ranks."""


class MatrixRule(Protocol):
    """What the optimizer asks of a rule for parameters of role `matrix`; it is constructed with its settings only.

    A rule with an attribute `as_they_arrive` that is true works on some gradients while others are still on their way:
    its `step` is handed a fourth argument, `arrive` (`Arrive`), and calls it with parameters before it touches their
    gradients. A subclass whose own `step` has no such argument says `as_they_arrive = False`.
    """

    def attach(self, params: Mapping[str, nn.Parameter], ranks: Ranks) -> None:
        """Take charge of the 2-D parameters, with fresh state."""

    def step(self, lr: float, momentum: float, weight_decay: float) -> None:
        """Update every parameter from its gradient, which is equal on all ranks; no host synchronization."""

    def state_dict(self) -> dict[str, Tensor]:
        """The live state as flat named tensors, equal on every rank."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy a state in. Raises ArtifactError if it does not fit."""


def of_one_shape(params: Mapping[str, nn.Parameter]) -> list[dict[str, nn.Parameter]]:
    """The parameters, those of one shape and device together. Raises ValueError for one that is not 2-D."""
    found: dict[tuple[torch.Size, torch.device], dict[str, nn.Parameter]] = {}
    for name, parameter in params.items():
        if parameter.ndim != 2:
            raise ValueError(f"parameter {name} has role 'matrix' but shape {list(parameter.shape)}: it must be 2-D")
        found.setdefault((parameter.shape, parameter.device), {})[name] = parameter
    return list(found.values())


def stacked_gradients(params: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """The gradients as a stack [n, r, c], which may be the gradients themselves; zeros for missing ones."""
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
    return end_to_end(grads).view(len(params), *params[0].shape).to(dtype)


def share_size(count: int, ranks: Ranks) -> int:
    """How many of so many matrices a rank works on."""
    return math.ceil(count / ranks.world)


def own_share(count: int, ranks: Ranks) -> slice:
    """Which of them this one does; ranks past the end of a short stack have none."""
    size = share_size(count, ranks)
    return slice(ranks.rank * size, min((ranks.rank + 1) * size, count))


def filled_up(share: Tensor, size: int) -> Tensor:
    """A share as long as all ranks' are, zeros behind it, contiguous: as `all_gather_single` wants it."""
    missing = size - share.size(0)
    if missing:
        share = torch.cat([share, share.new_zeros(missing, *share.shape[1:])])
    return share.contiguous()


def copy_state(live: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Copy a state into the live one. Raises ArtifactError if its names or shapes are others."""
    if live.keys() != state.keys():
        odd = sorted(live.keys() ^ state.keys())
        raise ArtifactError(f"optimizer state does not fit the matrices: {len(odd)} entries differ, first {odd[0]}")
    for name, tensor in live.items():
        if tensor.shape != state[name].shape:
            raise ArtifactError(
                f"optimizer state {name} has shape {list(state[name].shape)}, needs {list(tensor.shape)}"
            )
    for name, tensor in live.items():
        tensor.copy_(state[name])
