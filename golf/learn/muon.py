"""Matrix rules: momentum, orthogonalized by Newton–Schulz (Muon), and its row-normalized form (NorMuon).

Equal shapes are worked on as one stack. Every rank holds all momentum, since all gradients are reduced to every rank
anyway: a checkpoint is one rank's state and may be resumed on any number of ranks. What is divided is the cost,
Newton–Schulz: each rank orthogonalizes its part of every stack and the parts are all-gathered, so that all ranks
apply the same bits.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from golf.common.errors import ArtifactError
from golf.common.ranks import Ranks
from golf.learn.checks import require

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients (a, b, c) of x ← ax + bx³ + cx⁵, tuned for a steep rise at 0 (Jordan 2024)."""


def newton_schulz(
    G: Tensor, steps: int = 5, coefficients: Sequence[Sequence[float]] = (QUINTIC,), *, fused: bool = False
) -> Tensor:
    """Approximate the nearest orthogonal matrix of each matrix in G [n, r, c]; bf16 [n, r, c].

    coefficients: one (a, b, c) for all steps, or one for each step. Singular values end near 1, not at it.
    fused: one baddbmm for each product and sum. It rounds once where the plain order rounds twice, which changes an
    update by 2–3 %: harmless, but no bitwise match. A stack gives what its matrices give one by one (the plain order,
    on a CPU, to the bit). Source: Jordan 2024, naive baseline record.
    """
    X = G.to(torch.bfloat16)
    X = X / (torch.linalg.vector_norm(X, dim=(-2, -1), keepdim=True) + 1e-7)
    tall = X.size(-2) > X.size(-1)
    if tall:  # the smaller Gram matrix, and the same singular values
        X = X.mT
    for step in range(steps):
        a, b, c = coefficients[step if len(coefficients) > 1 else 0]
        A = X @ X.mT
        if fused:
            B = torch.baddbmm(A, A, A, beta=b, alpha=c)
            X = torch.baddbmm(X, B, X, beta=a)
        else:
            B = b * A + c * A @ A
            X = a * X + B @ X
    return X.mT if tall else X


def shape_scale(rows: int, cols: int) -> float:
    """√max(1, rows/cols): an update of a tall matrix is enlarged, so that its rows move as far as a square one's."""
    return math.sqrt(max(1.0, rows / cols))


# torch 2.13 warns of the older name; versions before it know no other.
all_gather_single: Callable[..., Any] = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)


class MatrixRule(Protocol):
    """What the optimizer asks of a rule for parameters of role `matrix`; it is constructed with its settings only."""

    def attach(self, params: Mapping[str, nn.Parameter], ranks: Ranks) -> None:
        """Take charge of the 2-D parameters, with fresh state."""

    def step(self, lr: float, momentum: float, weight_decay: float) -> None:
        """Update every parameter from its gradient, which is equal on all ranks; no host synchronization."""

    def state_dict(self) -> dict[str, Tensor]:
        """The live state as flat named tensors, equal on every rank."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy a state in. Raises ArtifactError if it does not fit."""


@dataclass
class ShapeGroup:
    """The parameters of one shape, and their state as stacks [n, r, c] and [n, r, 1]; `per_rank` is a rank's share."""

    names: list[str]
    params: list[Tensor]
    per_rank: int
    momentum: Tensor
    second: Tensor | None = None

    def own(self, ranks: Ranks) -> slice:
        """This rank's part of the stack; ranks past the end of a short stack have none."""
        return slice(ranks.rank * self.per_rank, min((ranks.rank + 1) * self.per_rank, len(self.params)))


class _Orthogonalized(ABC):
    """What Muon and NorMuon share: stacks of equal shape, Newton–Schulz divided among ranks, the state."""

    def __init__(
        self, ns_steps: int, nesterov: bool, coefficients: Sequence[Sequence[float]] | None, fused: bool
    ) -> None:
        require(ns_steps >= 1, "optimizer.matrix.ns_steps", ns_steps, "at least 1")
        chosen = [QUINTIC] if coefficients is None else [tuple(triple) for triple in coefficients]
        require(
            len(chosen) in (1, ns_steps) and all(len(triple) == 3 for triple in chosen),
            "optimizer.matrix.coefficients",
            coefficients,
            f"one [a, b, c], or {ns_steps} of them (one for each of ns_steps)",
        )
        self.ns_steps = ns_steps
        self.nesterov = nesterov
        self.coefficients = chosen
        self.fused = fused
        self.ranks = Ranks()
        self.groups: list[ShapeGroup] = []

    def attach(self, params: Mapping[str, nn.Parameter], ranks: Ranks) -> None:
        """Stack `params` by shape and device, with momentum 0. Raises ValueError for one that is not 2-D."""
        stacks: dict[tuple[torch.Size, torch.device], list[str]] = {}
        for name, parameter in params.items():
            if parameter.ndim != 2:
                raise ValueError(
                    f"parameter {name} has role 'matrix' but shape {list(parameter.shape)}: it must be 2-D"
                )
            stacks.setdefault((parameter.shape, parameter.device), []).append(name)
        self.ranks = ranks
        self.groups = [
            ShapeGroup(
                names=names,
                params=[params[name] for name in names],
                per_rank=math.ceil(len(names) / ranks.world),
                momentum=torch.zeros(len(names), *shape, device=device),
            )
            for (shape, device), names in stacks.items()
        ]

    @torch.no_grad()
    def step(self, lr: float, momentum: float, weight_decay: float) -> None:
        """Update every parameter from its gradient, which is equal on all ranks.

        Momentum is fp32, the orthogonalized direction bf16. The all-gather of one stack runs under the next one's
        Newton–Schulz.
        """
        waiting: list[tuple[ShapeGroup, Tensor, dist.Work | None]] = []
        for group in self.groups:
            direction = self._direction(group, momentum)
            if self.ranks.world == 1:
                waiting.append((group, direction, None))
                continue
            gathered = direction.new_empty(self.ranks.world * group.per_rank, *direction.shape[1:])
            waiting.append((group, gathered, all_gather_single(gathered, direction, async_op=True)))
        for group, direction, work in waiting:
            if work is not None:
                work.wait()
            self._apply(group, direction[: len(group.params)], lr, weight_decay)

    def _direction(self, group: ShapeGroup, momentum: float) -> Tensor:
        """Advance the momentum of the whole stack; this rank's orthogonalized part, bf16, padded to `per_rank`."""
        grads = [parameter.grad for parameter in group.params]
        self._accumulate(group, grads, momentum)
        own = group.own(self.ranks)
        buffer = group.momentum[own]
        if self.nesterov and buffer.size(0):
            stack = [
                torch.zeros_like(m) if g is None else g.to(m.dtype) for g, m in zip(grads[own], buffer, strict=True)
            ]
            buffer = self._lookahead(torch.stack(stack), buffer, momentum)
        direction = self._scaled(
            newton_schulz(buffer, self.ns_steps, self.coefficients, fused=self.fused and buffer.is_cuda)
        )
        missing = group.per_rank - direction.size(0) if self.ranks.world > 1 else 0
        if missing:
            direction = torch.cat([direction, direction.new_zeros(missing, *direction.shape[1:])])
        return direction.contiguous()

    @abstractmethod
    def _accumulate(self, group: ShapeGroup, grads: list[Tensor | None], momentum: float) -> None:
        """Advance the whole stack's momentum by the gradients."""

    @abstractmethod
    def _lookahead(self, grads: Tensor, buffer: Tensor, momentum: float) -> Tensor:
        """What is orthogonalized under Nesterov momentum."""

    def _scaled(self, direction: Tensor) -> Tensor:
        return direction

    @abstractmethod
    def _apply(self, group: ShapeGroup, direction: Tensor, lr: float, weight_decay: float) -> None:
        """Update the stack's parameters along the orthogonalized directions."""

    def state_dict(self) -> dict[str, Tensor]:
        """The live state, equal on every rank: `momentum/NAME` [r, c] fp32 (and NorMuon's `second/NAME` [r, 1])."""
        state: dict[str, Tensor] = {}
        for group in self.groups:
            for index, name in enumerate(group.names):
                state[f"momentum/{name}"] = group.momentum[index]
                if group.second is not None:
                    state[f"second/{name}"] = group.second[index]
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy a state in. Raises ArtifactError if its names or shapes are not this rule's."""
        live = self.state_dict()
        if live.keys() != state.keys():
            odd = sorted(live.keys() ^ state.keys())
            raise ArtifactError(f"optimizer state does not fit the matrices: {len(odd)} entries differ, first {odd[0]}")
        for name, tensor in live.items():
            if tensor.shape != state[name].shape:
                raise ArtifactError(
                    f"optimizer state {name} has shape {list(state[name].shape)}, needs {list(tensor.shape)}"
                )
            tensor.copy_(state[name])


class Muon(_Orthogonalized):
    """Momentum m ← μm + g, direction NS(g + μm)·√max(1, r/c), then p ← p(1 − lr·wd) − lr·direction.

    nesterov: look ahead by one momentum step (otherwise NS(m)). coefficients: see `newton_schulz`. fused: baddbmm on
    CUDA; a CPU keeps the plain order. A parameter without a gradient keeps its value and its momentum.
    Raises ConfigError for settings out of range. Source: Jordan 2024, naive baseline record.
    """

    def __init__(
        self,
        ns_steps: int = 5,
        nesterov: bool = True,
        coefficients: list[list[float]] | None = None,
        fused: bool = True,
    ) -> None:
        super().__init__(ns_steps, nesterov, coefficients, fused)

    def _accumulate(self, group: ShapeGroup, grads: list[Tensor | None], momentum: float) -> None:
        present = [(m, g) for m, g in zip(group.momentum.unbind(0), grads, strict=True) if g is not None]
        if present:
            buffers = [m for m, _ in present]
            torch._foreach_mul_(buffers, momentum)
            torch._foreach_add_(buffers, [g for _, g in present])

    def _lookahead(self, grads: Tensor, buffer: Tensor, momentum: float) -> Tensor:
        return grads.add_(buffer, alpha=momentum)

    def _scaled(self, direction: Tensor) -> Tensor:
        return direction * shape_scale(*direction.shape[1:])  # in bf16, before it is sent: as the record has it

    def _apply(self, group: ShapeGroup, direction: Tensor, lr: float, weight_decay: float) -> None:
        present = [(p, d) for p, d in zip(group.params, direction.float().unbind(0), strict=True) if p.grad is not None]
        if present:
            params = [p for p, _ in present]
            if weight_decay:
                torch._foreach_mul_(params, 1.0 - lr * weight_decay)
            torch._foreach_add_(params, [d for _, d in present], alpha=-lr)


class NorMuon(_Orthogonalized):
    """Muon with averaged momentum and rows normalized by their running mean square, the update's norm kept.

    m ← βm + (1−β)g; u = NS((1−β)g + βm); v ← β₂v + (1−β₂)·rowmean(u²); u ← u/(√v + 1e-10), rescaled to its norm
    before; p ← p(1 − lr·wd) − lr·√max(1, r/c)·u. A parameter without a gradient moves on its momentum, undecayed.
    Raises ConfigError for settings out of range. Source: Li et al. 2025 (NorMuon), sp2048 NorMuon int6 record.
    """

    def __init__(
        self,
        ns_steps: int = 5,
        nesterov: bool = True,
        beta2: float = 0.95,
        coefficients: list[list[float]] | None = None,
        fused: bool = True,
    ) -> None:
        super().__init__(ns_steps, nesterov, coefficients, fused)
        require(0.0 <= beta2 < 1.0, "optimizer.matrix.beta2", beta2, "from 0 to below 1")
        self.beta2 = beta2

    def attach(self, params: Mapping[str, nn.Parameter], ranks: Ranks) -> None:
        """As Muon's, and one running mean square for each row, 0."""
        super().attach(params, ranks)
        for group in self.groups:
            group.second = torch.zeros_like(group.momentum[..., :1])

    def _accumulate(self, group: ShapeGroup, grads: list[Tensor | None], momentum: float) -> None:
        buffers = group.momentum.unbind(0)
        dense = [torch.zeros_like(m) if g is None else g.to(m.dtype) for m, g in zip(buffers, grads, strict=True)]
        torch._foreach_lerp_(buffers, dense, 1.0 - momentum)

    def _lookahead(self, grads: Tensor, buffer: Tensor, momentum: float) -> Tensor:
        return grads.lerp_(buffer, momentum)

    def _apply(self, group: ShapeGroup, direction: Tensor, lr: float, weight_decay: float) -> None:
        assert group.second is not None
        update = direction.float()
        before = torch.linalg.vector_norm(update, dim=(-2, -1), keepdim=True)
        group.second.lerp_((update * update).mean(dim=-1, keepdim=True), 1.0 - self.beta2)
        update = update / (group.second.sqrt() + 1e-10)
        after = torch.linalg.vector_norm(update, dim=(-2, -1), keepdim=True)
        update *= before / (after + 1e-10)
        update *= shape_scale(*update.shape[1:])
        decayed = [p for p in group.params if p.grad is not None]
        if weight_decay and decayed:
            torch._foreach_mul_(decayed, 1.0 - lr * weight_decay)
        torch._foreach_add_(group.params, update.unbind(0), alpha=-lr)
