"""Linear layers and their effective weights: what a product really multiplies by.

The master weight is fp32. The effective weight is the master cast to the compute dtype, or fake-quantized, and it is
made once per optimizer step instead of once per forward. Gradients reach it in the compute dtype and are added to the
master's fp32 gradient after each micro-step, so accumulation never loses bits.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from golf.nn.numerics import Numerics
from golf.nn.params import ParamSpec, declare


class FakeQuantizer(Protocol):
    """Rounds a weight as training is to see it; `covers` says which."""

    def covers(self, spec: ParamSpec, weight: torch.Tensor) -> bool: ...
    def __call__(self, weight: torch.Tensor) -> torch.Tensor: ...


class Linear(nn.Module):
    """y = x Wᵀ without bias, [..., in] → [..., out], in the contract's compute dtype.

    `writes_stream` marks projections whose output is added to the residual stream (inits scale or zero them).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        numerics: Numerics,
        *,
        place: str,
        layer: int | None = None,
        writes_stream: bool = False,
    ) -> None:
        super().__init__()
        self.compute_dtype = numerics.dtype
        self.writes_stream = writes_stream
        self.weight: nn.Parameter
        declare(self, "weight", torch.empty(out_features, in_features), role="matrix", place=place, layer=layer)
        self.spec: ParamSpec = self.__dict__["_param_specs"]["weight"]
        self.effective: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in], any float dtype → [..., out] in the compute dtype."""
        weight = self.effective
        if weight is None:
            weight = self.weight.to(self.compute_dtype)
        return F.linear(x.to(self.compute_dtype), weight)


class EffectiveWeights:
    """Makes, refreshes and collects gradients of every Linear's effective weight.

    With float32 compute and no transform the master itself is used and nothing is copied.
    """

    def __init__(self, model: nn.Module) -> None:
        self.linears = [m for m in model.modules() if isinstance(m, Linear)]

    @torch.no_grad()
    def refresh(self, qat: FakeQuantizer | None = None) -> None:
        """Recompute the effective weights from the masters, rounded where `qat` covers them."""
        if qat is None and all(m.compute_dtype == m.weight.dtype for m in self.linears):
            self.detach()
            return
        for linear in self.linears:
            if linear.effective is None:
                linear.effective = torch.empty_like(linear.weight, dtype=linear.compute_dtype, requires_grad=True)
        effective: list[torch.Tensor] = [m.effective for m in self.linears if m.effective is not None]
        torch._foreach_copy_(effective, [m.weight.detach() for m in self.linears])
        for linear, weight in zip(self.linears, effective, strict=True):
            if qat is not None and qat.covers(linear.spec, weight):
                weight.copy_(qat(weight))

    @torch.no_grad()
    def collect_gradients(self) -> None:
        """Add the effective weights' gradients to the masters' fp32 ones and clear them."""
        for linear in self.linears:
            if linear.effective is None or linear.effective.grad is None:
                continue
            if linear.weight.grad is None:
                linear.weight.grad = linear.effective.grad.to(linear.weight.dtype)
            else:
                linear.weight.grad.add_(linear.effective.grad)
            linear.effective.grad = None

    def detach(self) -> None:
        """Forget the effective weights: every Linear casts its master again."""
        for linear in self.linears:
            linear.effective = None
