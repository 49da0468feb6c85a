"""What a model's matrices read: their inputs, handed to whoever watches a forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from golf.nn import kernels
from golf.nn.linear import Linear
from golf.nn.models.gpt import GPT

See = Callable[[str, torch.Tensor], None]
"""Takes a matrix's name, as state_dict has it, and what it is about to multiply: [tokens, in], the compute dtype."""


def watched(model: GPT) -> dict[str, tuple[nn.Module, int]]:
    """By a matrix's name the module that multiplies by it, and how many features it reads: every Linear that the
    artifact stores, and the head's matrix, which is the embedding where they are tied."""
    specs = model.specs()
    found: dict[str, tuple[nn.Module, int]] = {
        f"{name}.weight": (module, module.weight.shape[1])
        for name, module in model.named_modules()
        if isinstance(module, Linear) and module.spec.stored
    }
    of_head = ["embedding"] if model.tied else [name for name, spec in specs.items() if spec.role == "head"]
    if isinstance(model.head, nn.Module) and len(of_head) == 1:
        found[of_head[0]] = (model.head, model.shape.model_dim)
    return found


@contextmanager
def watching(model: GPT, see: See) -> Iterator[None]:
    """Within the block `see` is told what each of the `watched` matrices multiplies, at every visit of a layer.

    Only forwards that are neither compiled nor recorded tell. Fused kernels, which keep what is between their ops to
    themselves, step aside meanwhile.
    """
    handles = [
        module.register_forward_pre_hook(partial(_tell, see, name, model.numerics.dtype))
        for name, (module, _) in watched(model).items()
    ]
    try:
        with kernels.aside(model):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _tell(see: See, name: str, dtype: torch.dtype, module: nn.Module, inputs: tuple[Any, ...]) -> None:
    see(name, inputs[0].detach().to(dtype).flatten(0, -2))
