"""Copies of named tensors in memory: to undo the warm-up, to fall back on after a non-finite loss, to freeze."""

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
        target = self.tensors if into is None else into
        live = dict(target)
        fit = [name for name, copy in self.copy.items() if name in live and alike(live[name], copy)]
        if fit:
            torch._foreach_copy_([live[name] for name in fit], [self.copy[name] for name in fit])
        for name in self.copy.keys() - set(fit):
            target[name] = self.copy[name].clone()
        for name in live.keys() - self.copy.keys():
            del target[name]


class Randomness:
    """Where the generators of random, numpy and torch (the CPU's, and a GPU's) stood when it was made."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.python, self.numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
        self.cpu = torch.get_rng_state()
        self.gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def restore(self) -> None:
        """Let them go on from there."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)  # noqa: NPY002
        torch.set_rng_state(self.cpu)
        if self.gpu is not None:
            torch.cuda.set_rng_state(self.gpu, self.device)


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
