"""Matrix rules: momentum, orthogonalized by Newton–Schulz (Muon), and its row-normalized form (NorMuon).

Equal shapes are worked on as one stack. Every rank holds all momentum, since all gradients are reduced to every rank
anyway: a checkpoint is one rank's state and may be resumed on any number of ranks. What is divided is the cost,
Newton–Schulz: each rank orthogonalizes its part of every stack and the parts are all-gathered, so that all ranks
apply the same bits.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from golf.common.ranks import Ranks
from golf.learn.checks import require
from golf.learn.rule import (
    Arrive,
    all_gather_single,
    copy_state,
    filled_up,
    of_one_shape,
    own_share,
    share_size,
    stacked_gradients,
)

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients (a, b, c) of x ← ax + bx³ + cx⁵, tuned for a steep rise at 0 (Jordan 2024)."""

POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
"""Of five steps, each the best that can follow the one before; they bring small singular values nearer to 1 than five
times `QUINTIC`. Source: Amsel et al. 2025 (Polar Express, arXiv 2505.16932), values with a margin of 2 % as in
modded-nanogpt; in the challenge PR 1787."""

Coefficients = list[list[float]] | Literal["polar_express"] | None
"""What a rule may be given: None for `QUINTIC`, the name of a set, or triples of one's own."""


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


def newton_schulz_together(
    stacks: Sequence[Tensor], steps: int, coefficients: Sequence[Sequence[float]], *, fused: bool
) -> list[Tensor]:
    """`newton_schulz` of stacks of one shape and its transpose, in one go: each alone would leave a GPU mostly idle."""
    if len(stacks) == 1:
        return [newton_schulz(stacks[0], steps, coefficients, fused=fused)]
    tall = [stack.size(-2) > stack.size(-1) for stack in stacks]
    low = [stack.to(torch.bfloat16) for stack in stacks]
    wide = torch.cat([stack.mT if is_tall else stack for stack, is_tall in zip(low, tall)])
    done = newton_schulz(wide, steps, coefficients, fused=fused).split([stack.size(0) for stack in stacks])
    return [part.mT if is_tall else part for part, is_tall in zip(done, tall)]


def shape_scale(rows: int, cols: int) -> float:
    """√max(1, rows/cols): an update of a tall matrix is enlarged, so that its rows move as far as a square one's."""
    return math.sqrt(max(1.0, rows / cols))


def rows_of_length_one(stack: Tensor) -> Tensor:
    """Each row [n, r, c] divided by its L2 norm, but by no less than 1e-7: a row of zeros stays one.

    Source: MuonEq-R; in the challenge PR 1285.
    """
    return stack / torch.linalg.vector_norm(stack, dim=-1, keepdim=True).clamp_min(1e-7)


@dataclass
class ShapeGroup:
    """The parameters of one shape, and their state as stacks [n, r, c] and [n, r, 1]; `per_rank` is a rank's share."""

    names: list[str]
    params: list[Tensor]
    per_rank: int
    momentum: Tensor
    second: Tensor | None = None

    def gradients(self) -> Tensor:
        """The gradients as a stack like `momentum`, which may be the gradients themselves; zeros for missing ones."""
        return stacked_gradients(self.params, self.momentum.dtype)


class _Orthogonalized(ABC):
    """What Muon and NorMuon share: stacks of equal shape, Newton–Schulz divided among ranks, the state."""

    as_they_arrive = True
    row_norm = False

    def __init__(self, ns_steps: int, nesterov: bool, coefficients: Coefficients, fused: bool) -> None:
        require(ns_steps >= 1, "optimizer.matrix.ns_steps", ns_steps, "at least 1")
        self.ns_steps = ns_steps
        self.nesterov = nesterov
        self.coefficients = coefficients
        require(
            len(self._triples()) in (1, ns_steps) and all(len(triple) == 3 for triple in self._triples()),
            "optimizer.matrix.coefficients",
            coefficients,
            f"one [a, b, c], or {ns_steps} of them (one for each of ns_steps)"
            + f"; polar_express has {len(POLAR_EXPRESS)}" * (coefficients == "polar_express"),
        )
        self.fused = fused
        self.ranks = Ranks()
        self.groups: list[ShapeGroup] = []
        self.alike: list[list[ShapeGroup]] = []
        """The same, those together that differ by transposition only."""

    def _triples(self) -> Sequence[Sequence[float]]:
        """The coefficients in force; looked up at each step, since a phase may set others."""
        if self.coefficients is None:
            return [QUINTIC]
        return POLAR_EXPRESS if self.coefficients == "polar_express" else self.coefficients

    def attach(self, params: Mapping[str, nn.Parameter], ranks: Ranks) -> None:
        """Stack `params` by shape and device, with momentum 0. Raises ValueError for one that is not 2-D."""
        self.ranks = ranks
        self.groups = [
            ShapeGroup(
                names=list(stack),
                params=list(stack.values()),
                per_rank=share_size(len(stack), ranks),
                momentum=torch.zeros(len(stack), *first.shape, device=first.device),
            )
            for stack in of_one_shape(params)
            for first in [next(iter(stack.values()))]
        ]
        alike: dict[tuple[torch.device, tuple[int, ...]], list[ShapeGroup]] = {}
        for group in self.groups:
            alike.setdefault((group.momentum.device, tuple(sorted(group.momentum.shape[1:]))), []).append(group)
        self.alike = list(alike.values())

    @torch.no_grad()
    def step(self, lr: float, momentum: float, weight_decay: float, arrive: Arrive | None = None) -> None:
        """Update every parameter from its gradient, which is equal on all ranks; without `arrive` all are there.

        Momentum is fp32, the orthogonalized direction bf16. While one stack is worked on, the gradients of the next are
        still on their way, and so are the directions of the one before.
        """
        waiting: list[tuple[ShapeGroup, Tensor, dist.Work | None]] = []
        for groups in self.alike:
            for group, direction in zip(groups, self._directions(groups, momentum, arrive), strict=True):
                if self.ranks.world == 1:
                    waiting.append((group, direction, None))
                    continue
                gathered = direction.new_empty(self.ranks.world * group.per_rank, *direction.shape[1:])
                waiting.append((group, gathered, all_gather_single(gathered, direction, async_op=True)))
        for group, direction, work in waiting:
            if work is not None:
                work.wait()
            self._apply(group, direction[: len(group.params)], lr, weight_decay)

    def _directions(self, groups: Sequence[ShapeGroup], momentum: float, arrive: Arrive | None) -> list[Tensor]:
        """Advance the momentum of whole stacks; this rank's orthogonalized parts, bf16, padded to `per_rank`."""
        stacks = []
        for group in groups:
            if arrive is not None:
                arrive(group.params)
            grads, own = group.gradients(), own_share(len(group.params), self.ranks)
            self._accumulate(group, grads, momentum)
            buffer = group.momentum[own]
            ahead = self._lookahead(grads[own], buffer, momentum) if self.nesterov else buffer
            stacks.append(rows_of_length_one(ahead) if self.row_norm else ahead)
        fused = self.fused and all(stack.is_cuda for stack in stacks)
        directions = []
        orthogonal = newton_schulz_together(stacks, self.ns_steps, self._triples(), fused=fused)
        for group, found in zip(groups, orthogonal, strict=True):
            direction = self._scaled(found)
            directions.append(filled_up(direction, group.per_rank))
        return directions

    @abstractmethod
    def _accumulate(self, group: ShapeGroup, grads: Tensor, momentum: float) -> None:
        """Advance the whole stack's momentum by the gradients."""

    @abstractmethod
    def _lookahead(self, grads: Tensor, buffer: Tensor, momentum: float) -> Tensor:
        """What is orthogonalized under Nesterov momentum, a tensor of its own."""

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
        copy_state(self.state_dict(), state)


class Muon(_Orthogonalized):
    """Momentum m ← μm + g, direction NS(g + μm)·√max(1, r/c), then p ← p(1 − lr·wd) − lr·direction.

    nesterov: look ahead by one momentum step (otherwise NS(m)). row_norm: rows are brought to length 1 before NS, so
    those of small gradients count too (MuonEq-R). coefficients: of NS, see `newton_schulz`; `polar_express` is a set of
    five. fused: baddbmm on CUDA; a CPU keeps the plain order. A parameter without a gradient keeps its value and its
    momentum. Raises ConfigError for settings out of range. Source: Jordan 2024, naive baseline record.
    """

    def __init__(
        self,
        ns_steps: int = 5,
        nesterov: bool = True,
        row_norm: bool = False,
        coefficients: Coefficients = None,
        fused: bool = True,
    ) -> None:
        super().__init__(ns_steps, nesterov, coefficients, fused)
        self.row_norm = row_norm

    def _accumulate(self, group: ShapeGroup, grads: Tensor, momentum: float) -> None:
        present = [index for index, p in enumerate(group.params) if p.grad is not None]
        if len(present) == len(group.params):
            group.momentum.mul_(momentum).add_(grads)  # rounds twice, as the records do
        elif present:
            buffers = [group.momentum[index] for index in present]
            torch._foreach_mul_(buffers, momentum)
            torch._foreach_add_(buffers, [grads[index] for index in present])

    def _lookahead(self, grads: Tensor, buffer: Tensor, momentum: float) -> Tensor:
        return torch.add(grads, buffer, alpha=momentum)

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
        coefficients: Coefficients = None,
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

    def _accumulate(self, group: ShapeGroup, grads: Tensor, momentum: float) -> None:
        group.momentum.lerp_(grads, 1.0 - momentum)

    def _lookahead(self, grads: Tensor, buffer: Tensor, momentum: float) -> Tensor:
        return torch.lerp(grads, buffer, momentum)

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
