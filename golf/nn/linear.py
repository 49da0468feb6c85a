"""Linear layers and their effective weights: what a product really multiplies by.

The master weight is fp32. The effective weight is the master cast to the compute dtype, or fake-quantized, times the
scale that it may hold, and it is made once per optimizer step instead of once per forward. Gradients reach it in the
compute dtype and are added to the master's fp32 gradient (and a held scale's) after each micro-step, so accumulation
never loses bits. A tied embedding with an fp32 master has one for the head's product, and embedding and head have one
where training rounds them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import nn

from golf.common.errors import GolfError
from golf.nn.numerics import Numerics
from golf.nn.params import ParamSpec, declare, param_specs
from golf.nn.table import Table


class FakeQuantizer(Protocol):
    """Rounds weights as training is to see them.

    Where forwards are compiled on a GPU, so are the calls of one with an attribute `compiles` that is true: calls that
    are alike at every step, for what changes between them is compiled anew.
    """

    def covers(self, spec: ParamSpec, weight: torch.Tensor) -> bool:
        """Whether this parameter is rounded."""

    def __call__(self, weights: torch.Tensor) -> torch.Tensor:
        """A stack of equal shapes [n, out, in], each matrix rounded by itself; the same shape and dtype."""


@runtime_checkable
class RoundsByPlace(Protocol):
    """Rounds weights as training is to see them, other places otherwise, from their masters.

    Compiled as a FakeQuantizer is.
    """

    def covers(self, spec: ParamSpec, weight: torch.Tensor) -> bool:
        """Whether this parameter is rounded."""

    def rounding_of(self, spec: ParamSpec, weight: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """What rounds a stack of masters [n, out, in] of this place and shape, float32 to float32. Equal, and hashable
        alike, for parameters that may be stacked."""


Rounds = FakeQuantizer | RoundsByPlace


class Linear(nn.Module):
    """y = x Wᵀ without bias, [..., in] → [..., out], in the contract's compute dtype; see `hold_scale`.

    `writes_stream` marks projections whose output is added to the residual stream (inits scale or zero them); `stored`:
    see golf.nn.params.ParamSpec. `effective` and what lies behind it is made by EffectiveWeights alone.
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

    def hold_scale(self, scale: nn.Parameter) -> None:
        """From now on y = scale ⊙ (x Wᵀ), scale [out]: what the product multiplies by holds it."""
        self.held = (scale,)
        self.effective = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in], any float dtype → [..., out] in the compute dtype."""
        return F.linear(x.to(self.compute_dtype), self.multiplier())

    def multiplier(self) -> torch.Tensor:
        """What the product multiplies by, [out, in] in the compute dtype.

        Raises GolfError in training for a member of one product with effective weights: its gradient would be lost.
        """
        if self.effective is not None:
            if self.joined is not None and self.training and torch.is_grad_enabled():
                raise GolfError(self.joined.refusal(self))
            return self.effective
        weight = self.weight.to(self.compute_dtype)
        for scale in self.held:
            weight = (scale[:, None] * weight).to(self.compute_dtype)
        return weight


class Joined:
    """Linears of one input whose effective weights lie one below the other, so that one product serves them all.

    Parameters stay with the members. In training with effective weights gradients reach the whole alone: a member that
    is called by itself raises GolfError.
    """

    def __init__(self, *members: Linear) -> None:
        self.members = members
        self.effective: torch.Tensor | None = None
        for member in members:
            member.joined, member.effective = self, None

    def split(self, stacked: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The members' rows of [Σ out, in]."""
        return stacked.split([m.weight.shape[0] for m in self.members])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in] → [..., Σ out] in the compute dtype."""
        weight = self.effective
        if weight is None:
            weight = torch.cat([m.multiplier() for m in self.members])
        return F.linear(x.to(weight.dtype), weight)

    def refusal(self, member: Linear) -> str:
        """Why a member can't be called by itself in training."""
        others = ", ".join(other.spec.place for other in self.members if other is not member)
        layer = "" if member.spec.layer is None else f" of layer {member.spec.layer}"
        return (
            f"{member.spec.place}{layer} was called by itself in training, where one product serves it and {others}: "
            "its gradient would be lost\nrun with runtime.kernels=reference, which joins no products"
        )


class EffectiveWeights:
    """Makes, refreshes and collects gradients of every Linear's and Table's effective weight; nothing else writes them.

    With float32 compute and no transform the master itself is used and nothing is copied. A weight that holds a scale
    is made in two steps, so that the scale can have its gradient. Equal shapes are worked on together, in few launches.
    compiled: the rounding is, by a quantizer that allows it; a GPU's quotients may then be off in the last place, and
    one value in many thousands a level away.
    """

    def __init__(self, model: nn.Module, compiled: bool = False) -> None:
        self.model, self.compiled = model, compiled
        self._rounding: dict[object, Callable[[torch.Tensor], torch.Tensor]] = {}
        self.tables = [one for m in model.modules() for one in vars(m).values() if isinstance(one, Table)]
        self._own: list[Linear | Table] = [m for m in model.modules() if isinstance(m, Linear)]
        self._look_after([one for one in self.tables if one.needed or one.rounded])
        self._unscaled: dict[int, torch.Tensor] = {}
        """Weights without the scales that they hold, by a Linear's id."""
        self._arrange()

    @torch.no_grad()
    def refresh(self, qat: Rounds | None = None) -> None:
        """Recompute the effective weights from the masters, rounded where `qat` covers them."""
        self._serve(qat)
        if qat is None and all(m.compute_dtype == m.weight.dtype for m in self.linears):
            self.detach()
            return
        self._allocate()
        made = [self._unscaled.get(id(linear), linear.effective) for linear in self.linears]
        weights = [weight for weight in made if weight is not None]
        torch._foreach_copy_(weights, [m.weight.detach() for m in self.linears])
        if qat is not None:
            self._round(weights, qat)
        for linears in self.holding:
            scaled = self._without_scales(linears) * _scales(linears)
            torch._foreach_copy_([m.effective for m in linears if m.effective is not None], list(scaled.unbind()))

    def rounded(self, qat: Rounds) -> tuple[list[str], list[str]]:
        """The places that `qat` rounds, and those that an artifact rounds as well, but whose parameters are read by
        other code than a Linear's or a Table's."""
        reached = [one for one in (*self._own, *self.tables) if qat.covers(one.spec, one.weight)]
        seen, places = {id(one.weight) for one in reached}, dict.fromkeys(one.spec.place for one in reached)
        specs = param_specs(self.model) if isinstance(qat, RoundsByPlace) else {}
        others = {
            specs[name].place: None
            for name, parameter in self.model.named_parameters()
            if name in specs and id(parameter) not in seen and qat.covers(specs[name], parameter)
        }
        return list(places), list(others)

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
        grads = self._taken()
        reached = [linear for linear in self.by_shape if id(linear) in grads]
        if not reached:
            return
        masters = [linear.weight for linear in reached]
        flat = masters[0].new_empty(sum(weight.numel() for weight in masters))
        pieces = torch.split(flat, [weight.numel() for weight in masters])
        wide = [piece.view_as(weight) for piece, weight in zip(pieces, masters, strict=True)]
        torch._foreach_copy_(wide, [grads[id(linear)] for linear in reached])  # few launches, not one a matrix
        fresh = {id(linear): grad for linear, grad in zip(reached, wide, strict=True)}
        for linears in self.holding:
            self._share_with_scales([linear for linear in linears if id(linear) in fresh], fresh)
        # an embedding may be held in the compute dtype
        _add_gradients(masters, [grad.to(master.dtype) for master, grad in zip(masters, wide, strict=True)])

    def detach(self) -> None:
        """Forget the effective weights: every Linear casts its master again."""
        for linear in self.linears:
            linear.effective = None
            if linear.joined is not None:
                linear.joined.effective = None
        for table in self.tables:
            table.spare = None
        self._unscaled = {}

    def _serve(self, qat: Rounds | None) -> None:
        """Give each table an effective weight, or none: graphs were made for one way or the other."""
        tables = [one for one in self.tables if one.serve(qat is not None and qat.covers(one.spec, one.weight))]
        if tables != self.linears[len(self._own) :]:
            self._look_after(tables)

    def _look_after(self, tables: Sequence[Table]) -> None:
        self.linears: list[Linear | Table] = [*self._own, *tables]
        self.by_shape = [linear for linears in _of_one_shape(self.linears) for linear in linears]

    def _arrange(self) -> None:
        self.joined = list(dict.fromkeys(m.joined for m in self.linears if m.joined is not None))
        self.holding = _of_one_shape(linear for linear in self.linears if linear.held)
        """Those whose weights hold scales."""

    def _allocate(self) -> None:
        """Make the tensors that are missing; those that are there keep their addresses, which graphs have recorded."""
        holding = [linear for linear in self.linears if linear.held]
        missing = [linear for linear in self.linears if linear.effective is None]
        if not missing and self._unscaled.keys() == {id(linear) for linear in holding}:
            return
        self._arrange()
        for linear in missing:
            if linear.joined is None:
                linear.effective = torch.empty_like(linear.weight, dtype=linear.compute_dtype, requires_grad=True)
        for joined in self.joined:
            if any(member.effective is None for member in joined.members):
                first, rows = joined.members[0], sum(m.weight.shape[0] for m in joined.members)
                stack = first.weight.new_empty(rows, first.weight.shape[1], dtype=first.compute_dtype)
                joined.effective = stack.requires_grad_()
                for member, view in zip(joined.members, joined.split(stack.detach()), strict=True):
                    member.effective = view
        self._unscaled = {id(m): torch.empty_like(m.weight, dtype=m.compute_dtype) for m in holding}

    def _taken(self) -> dict[int, torch.Tensor]:
        """The gradients that have come since the last call, by a Linear's id."""
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
        return grads

    def _share_with_scales(self, linears: list[Linear | Table], grads: dict[int, torch.Tensor]) -> None:
        """Turn float32 gradients of effective weights into the masters', and add the scales' that these hold."""
        if not linears:
            return
        stacked = torch.stack([grads[id(m)] for m in linears])
        _add_gradients([m.held[0] for m in linears], (stacked * self._without_scales(linears)).sum(-1).unbind())
        torch._foreach_copy_([grads[id(m)] for m in linears], list((stacked * _scales(linears)).unbind()))

    def _without_scales(self, linears: list[Linear | Table]) -> torch.Tensor:
        return torch.stack([self._unscaled[id(m)] for m in linears])

    def _round(self, weights: list[torch.Tensor], qat: Rounds) -> None:
        stacks: dict[object, tuple[Callable[[torch.Tensor], torch.Tensor], list[torch.Tensor], list[torch.Tensor]]] = {}
        for linear, weight in zip(self.linears, weights, strict=True):
            if not (linear.rounded if isinstance(linear, Table) else qat.covers(linear.spec, weight)):
                continue
            if isinstance(qat, RoundsByPlace):  # as the artifact is: from float32
                one, source = qat.rounding_of(linear.spec, linear.weight), linear.weight.detach().float()
            else:
                one, source = qat, weight
            _, sources, results = stacks.setdefault((weight.shape, weight.dtype, one), (one, [], []))
            sources.append(source)
            results.append(weight)
        compiles = self.compiled and getattr(qat, "compiles", False)
        for one, sources, results in stacks.values():  # a dozen launches, be it for one matrix or for many
            rounded = (self._compiled(one) if compiles else one)(torch.stack(sources))
            torch._foreach_copy_(results, list(rounded.unbind()))

    def _compiled(self, one: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
        if one not in self._rounding:
            self._rounding[one] = torch.compile(one.__call__, dynamic=False)  # type: ignore[operator]
        return self._rounding[one]


def _of_one_shape(linears: Iterable[Linear | Table]) -> list[list[Linear | Table]]:
    by_shape: dict[torch.Size, list[Linear | Table]] = {}
    for linear in linears:
        by_shape.setdefault(linear.weight.shape, []).append(linear)
    return list(by_shape.values())


def _scales(linears: Iterable[Linear | Table]) -> torch.Tensor:
    """The scales that weights of one shape hold, [n, out, 1]."""
    return torch.stack([m.held[0] for m in linears])[:, :, None]


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
