"""Linear layers and their effective weights: what a product really multiplies by.

The master weight is fp32. The effective weight is the master cast to the compute dtype, or fake-quantized, times the
scale that it may hold, and it is made once per optimizer step instead of once per forward. Gradients reach it in the
compute dtype and are added to the master's fp32 gradient (and a held scale's) after each micro-step, so accumulation
never loses bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from golf.nn.numerics import Numerics
from golf.nn.params import ParamSpec, declare


class FakeQuantizer(Protocol):
    """Rounds weights as training is to see them.

    Where forwards are compiled on a GPU, so are the calls of a class that says `compiles = True` of itself (a subclass
    says it again): one whose calls are alike at every step, for what changes between them is compiled anew.
    """

    def covers(self, spec: ParamSpec, weight: torch.Tensor) -> bool:
        """Whether this parameter is rounded."""

    def __call__(self, weights: torch.Tensor) -> torch.Tensor:
        """A stack of equal shapes [n, out, in], each matrix rounded by itself; the same shape and dtype."""


class Linear(nn.Module):
    """y = x Wᵀ without bias, [..., in] → [..., out], in the contract's compute dtype; see `hold_scale`.

    `writes_stream` marks projections whose output is added to the residual stream (inits scale or zero them); `stored`:
    see golf.nn.params.ParamSpec.
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
        stored: bool = True,
    ) -> None:
        super().__init__()
        self.compute_dtype = numerics.dtype
        self.writes_stream = writes_stream
        self.weight: nn.Parameter
        declare(
            self, "weight", torch.empty(out_features, in_features), role="matrix", place=place, layer=layer,
            stored=stored,
        )  # fmt: skip
        self.spec: ParamSpec = self.__dict__["_param_specs"]["weight"]
        self.effective: torch.Tensor | None = None
        self.joined: Joined | None = None
        self.held: tuple[nn.Parameter, ...] = ()  # in a tuple: the scale stays another module's parameter
        self.unscaled: torch.Tensor | None = None  # the effective weight without the scale that it holds

    def hold_scale(self, scale: nn.Parameter) -> None:
        """From now on y = scale ⊙ (x Wᵀ), scale [out]: what the product multiplies by holds it."""
        self.held = (scale,)
        self.effective = self.unscaled = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in], any float dtype → [..., out] in the compute dtype."""
        return F.linear(x.to(self.compute_dtype), self.multiplier())

    def multiplier(self) -> torch.Tensor:
        """What the product multiplies by, [out, in] in the compute dtype."""
        if self.effective is not None:
            return self.effective
        weight = self.weight.to(self.compute_dtype)
        for scale in self.held:
            weight = (scale[:, None] * weight).to(self.compute_dtype)
        return weight


class Joined:
    """Linears of one input whose effective weights lie one below the other, so that one product serves them all.

    Parameters stay with the members. While training with effective weights, a member may not be called by itself: its
    gradient would be lost.
    """

    def __init__(self, *members: Linear) -> None:
        self.members = members
        self.effective: torch.Tensor | None = None
        for member in members:
            member.joined = self

    def split(self, stacked: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The members' rows of [Σ out, in]."""
        return stacked.split([m.weight.shape[0] for m in self.members])

    def allocate(self) -> None:
        """Make the stack, of which the members' effective weights become views."""
        first = self.members[0]
        rows = sum(m.weight.shape[0] for m in self.members)
        stack = torch.empty(rows, first.weight.shape[1], dtype=first.compute_dtype, device=first.weight.device)
        self.effective = stack.requires_grad_()
        for member, view in zip(self.members, self.split(stack.detach()), strict=True):
            member.effective = view

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in] → [..., Σ out] in the compute dtype."""
        weight = self.effective
        if weight is None:
            weight = torch.cat([m.multiplier() for m in self.members])
        return F.linear(x.to(weight.dtype), weight)


class Scaled:
    """Linears of one shape whose weights hold scales of their outputs, worked on in few launches, not some a matrix."""

    def __init__(self, linears: list[Linear]) -> None:
        self.linears = linears

    def refresh(self) -> None:
        """Make the effective weights of those without their scales."""
        scaled = _stack(m.unscaled for m in self.linears) * _stack(m.held[0] for m in self.linears)[:, :, None]
        torch._foreach_copy_([m.effective for m in self.linears if m.effective is not None], list(scaled.unbind()))

    def share(self, gradients: dict[int, torch.Tensor]) -> None:
        """Turn gradients of the effective weights, float32 by a linear's id, into the masters', and add the scales'."""
        linears = [linear for linear in self.linears if id(linear) in gradients]
        if not linears:
            return
        grads, scales = [gradients[id(m)] for m in linears], [m.held[0] for m in linears]
        stacked = torch.stack(grads)
        _add_gradients(scales, (stacked * _stack(m.unscaled for m in linears)).sum(-1).unbind())
        torch._foreach_copy_(grads, list((stacked * _stack(scales)[:, :, None]).unbind()))


def _stack(tensors: Iterable[torch.Tensor | None]) -> torch.Tensor:
    return torch.stack(list(tensors))  # type: ignore[arg-type]  # none is None where weights have been made


def _add_gradients(parameters: Sequence[nn.Parameter], gradients: Sequence[torch.Tensor]) -> None:
    """The first gradient of a parameter becomes its own."""
    added: list[tuple[torch.Tensor, torch.Tensor]] = []
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if parameter.grad is None:
            parameter.grad = gradient
        else:
            added.append((parameter.grad, gradient))
    if added:
        torch._foreach_add_([total for total, _ in added], [gradient for _, gradient in added])


class EffectiveWeights:
    """Makes, refreshes and collects gradients of every Linear's effective weight.

    With float32 compute and no transform the master itself is used and nothing is copied. compiled: the rounding is, by
    a quantizer that allows it; a GPU's quotients may then be off in the last place, and one value in many thousands a
    level away.
    """

    def __init__(self, model: nn.Module, compiled: bool = False) -> None:
        self.compiled = compiled
        self._rounding: tuple[FakeQuantizer, Callable[[torch.Tensor], torch.Tensor]] | None = None
        self.linears = [m for m in model.modules() if isinstance(m, Linear)]
        self.joined = list(dict.fromkeys(m.joined for m in self.linears if m.joined is not None))
        by_shape: dict[torch.Size, list[Linear]] = {}
        for linear in self.linears:
            by_shape.setdefault(linear.weight.shape, []).append(linear)
        self.by_shape = [linear for linears in by_shape.values() for linear in linears]
        held = [[linear for linear in linears if linear.held] for linears in by_shape.values()]
        self.scaled = [Scaled(linears) for linears in held if linears]

    @torch.no_grad()
    def refresh(self, qat: FakeQuantizer | None = None) -> None:
        """Recompute the effective weights from the masters, rounded where `qat` covers them."""
        if qat is None and all(m.compute_dtype == m.weight.dtype for m in self.linears):
            self.detach()
            return
        for linear in self.linears:
            if linear.effective is not None:
                continue
            if linear.joined is not None:
                linear.joined.allocate()
            else:
                linear.effective = torch.empty_like(linear.weight, dtype=linear.compute_dtype, requires_grad=True)
                linear.unscaled = torch.empty_like(linear.effective) if linear.held else None
        made = [linear.effective if linear.unscaled is None else linear.unscaled for linear in self.linears]
        weights = [weight for weight in made if weight is not None]
        torch._foreach_copy_(weights, [m.weight.detach() for m in self.linears])
        if qat is not None:
            self._round(weights, qat)
        for scaled in self.scaled:
            scaled.refresh()

    @property
    def leaves(self) -> list[torch.Tensor]:
        """The effective weights that receive gradients; refreshing writes to them in place."""
        own = [m.effective for m in self.linears if m.joined is None and m.effective is not None]
        return own + [joined.effective for joined in self.joined if joined.effective is not None]

    @torch.no_grad()
    def collect_gradients(self) -> None:
        """Add the effective weights' gradients to the masters' fp32 ones and clear them.

        New ones lie end to end in memory, equal shapes together: who sums or stacks them need not copy them.
        """
        grads: dict[int, torch.Tensor] = {}
        for linear in self.linears:
            if linear.joined is None and linear.effective is not None and linear.effective.grad is not None:
                grads[id(linear)] = linear.effective.grad
                linear.effective.grad = None
        for joined in self.joined:
            if joined.effective is not None and joined.effective.grad is not None:
                for member, part in zip(joined.members, joined.split(joined.effective.grad), strict=True):
                    grads[id(member)] = part
                joined.effective.grad = None
        reached = [linear for linear in self.by_shape if id(linear) in grads]
        if not reached:
            return
        found = [linear.weight for linear in reached]
        flat = found[0].new_empty(sum(weight.numel() for weight in found))
        pieces = torch.split(flat, [weight.numel() for weight in found])
        wide = [piece.view_as(weight) for piece, weight in zip(pieces, found, strict=True)]
        torch._foreach_copy_(wide, [grads[id(linear)] for linear in reached])  # few launches, not one a matrix
        fresh = {id(linear): grad for linear, grad in zip(reached, wide, strict=True)}
        for scaled in self.scaled:
            scaled.share(fresh)
        _add_gradients(found, wide)

    def _round(self, weights: list[torch.Tensor], qat: FakeQuantizer) -> None:
        stacks: dict[torch.Size, list[torch.Tensor]] = {}
        for linear, weight in zip(self.linears, weights, strict=True):
            if qat.covers(linear.spec, weight):
                stacks.setdefault(weight.shape, []).append(weight)
        rounded = self._compiled(qat) if self.compiled and vars(type(qat)).get("compiles") else qat
        for alike in stacks.values():  # a quantizer is a dozen launches, be it for one matrix or for many
            torch._foreach_copy_(alike, list(rounded(torch.stack(alike)).unbind()))

    def _compiled(self, qat: FakeQuantizer) -> Callable[[torch.Tensor], torch.Tensor]:
        if self._rounding is None or self._rounding[0] is not qat:
            self._rounding = qat, torch.compile(qat.__call__, dynamic=False)
        return self._rounding[1]

    def detach(self) -> None:
        """Forget the effective weights: every Linear casts its master again."""
        for linear in self.linears:
            linear.effective = linear.unscaled = None
        for joined in self.joined:
            joined.effective = None
