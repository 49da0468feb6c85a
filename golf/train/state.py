"""A run's state in memory: copies of named tensors, and where the generators of random numbers stand."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping, MutableMapping
from typing import Any

import numpy as np
import torch

from golf.nn.live import alike


class Saved:
    """A copy of named tensors that can be refreshed and written back, on their device.

    `tensors` are asked by name each time: one may have been replaced, have come or gone since.
    """

    def __init__(self, tensors: MutableMapping[str, torch.Tensor]) -> None:
        self.tensors = tensors
        self.copy: dict[str, torch.Tensor] = {}
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the live tensors again."""
        live = dict(self.tensors)
        self.copy = {
            name: self.copy[name] if name in self.copy and alike(self.copy[name], tensor) else torch.empty_like(tensor)
            for name, tensor in live.items()
        }
        if live:
            torch._foreach_copy_(list(self.copy.values()), list(live.values()))

    @torch.no_grad()
    def restore(self, into: MutableMapping[str, torch.Tensor] | None = None) -> None:
        """Overwrite the live tensors (or others of the same names) with the copy; those that are gone or of another
        kind now come back, those that were not there yet go."""
        overwrite(self.tensors if into is None else into, self.copy)


@torch.no_grad()
def overwrite(live: MutableMapping[str, torch.Tensor], kept: Mapping[str, torch.Tensor]) -> None:
    """Let live tensors be what was kept of them, in place where they are of one kind; what is kept stays usable."""
    now = dict(live)
    fit = [name for name, tensor in kept.items() if name in now and alike(now[name], tensor)]
    if fit:
        torch._foreach_copy_([now[name] for name in fit], [kept[name] for name in fit])
    for name in kept.keys() - set(fit):
        live[name] = kept[name].clone()
    for name in now.keys() - kept.keys():
        del live[name]


def randomness(device: torch.device) -> dict[str, Any]:
    """Where the generators of random, numpy and torch (the CPU's, and a GPU's) stand."""
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "python": random.getstate(), "numpy": (kind, np.asarray(keys).tolist(), *rest), "cpu": torch.get_rng_state(),
        "gpu": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }  # fmt: skip


def set_randomness(state: Mapping[str, Any], device: torch.device) -> None:
    """Let them go on from where `randomness` found them; a GPU's stays as it is where the state is of none."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["cpu"])
    if state["gpu"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["gpu"], device)


def cloned(state: Any) -> Any:
    """A component's state with its tensors copied, on their devices."""
    if isinstance(state, torch.Tensor):
        return state.detach().clone()
    if isinstance(state, Mapping):
        return {key: cloned(value) for key, value in state.items()}
    if isinstance(state, tuple) and hasattr(state, "_fields"):
        return type(state)(*map(cloned, state))
    if isinstance(state, list | tuple):
        return type(state)(map(cloned, state))
    return copy.copy(state)
