"""What a parameter is for: its role picks the optimizer group, its place the quantization policy.

Every parameter of a model is made by `declare`, so that no code has to guess from names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

Role = Literal["matrix", "embed", "head", "scalar", "gate"]


@dataclass(frozen=True)
class ParamSpec:
    """A parameter's declared facts: `role`, `place` (`attn.q`, `mlp.up`, …) and physical `layer` (None: global).

    stored: whether it is part of the artifact; what serves training alone is not, and is zero wherever it is read back.
    """

    role: Role
    place: str
    layer: int | None = None
    stored: bool = True


def declare(
    owner: nn.Module, name: str, value: torch.Tensor, *, role: Role, place: str, layer: int | None = None,
    stored: bool = True,
) -> nn.Parameter:  # fmt: skip
    """Register `value` as `owner.name`, a trainable parameter with its role, place and layer.

    Raises ValueError for an unknown role.
    """
    if role not in get_args(Role):
        raise ValueError(f"role {role!r} of {place} is none of {get_args(Role)}")
    parameter = nn.Parameter(value)
    owner.__dict__.pop(name, None)  # an attribute set to None says "left out unless declared"
    owner.register_parameter(name, parameter)
    owner.__dict__.setdefault("_param_specs", {})[name] = ParamSpec(role, place, layer, stored)
    return parameter


def param_specs(model: nn.Module) -> dict[str, ParamSpec]:
    """Every parameter's spec by its state_dict name, in state_dict order.

    Raises ValueError for a parameter that was not made by `declare`.
    """
    specs: dict[str, ParamSpec] = {}
    for prefix, module in model.named_modules():
        declared = module.__dict__.get("_param_specs", {})
        for name in module._parameters:
            full = f"{prefix}.{name}" if prefix else name
            if name not in declared:
                raise ValueError(f"parameter {full} has no role and place: make it with golf.nn.params.declare")
            specs[full] = declared[name]
    return specs
