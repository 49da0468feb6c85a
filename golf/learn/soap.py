"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner, a rule for matrices with state of its own kind.

Equal shapes are worked on as one stack, in float32, whose products a run on CUDA makes by TF32. Every rank holds all
state and makes all updates, so that a checkpoint is one rank's state for any number of ranks. What is divided is the
costly part, the orthogonal factors of new bases: each rank turns its share of every stack, and the shares are
all-gathered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
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

FIRST_TURNS = 10
"""How often the first bases are turned, which begin at the identity: later ones, at the ones before, are once."""


@dataclass
class Side:
    """The rows' or the columns' side of a stack: the mean of GGᵀ or GᵀG, and its approximate eigenvectors in columns,
    those of large eigenvalues first; both [n, d, d]."""

    mean: Tensor
    basis: Tensor


@dataclass
class Stack:
    """The matrices of one shape, their moments [n, r, c] (`second` in the bases), and the sides that have a basis."""

    params: dict[str, nn.Parameter]
    momentum: Tensor
    second: Tensor
    left: Side | None
    right: Side | None

    def turned(self, x: Tensor) -> Tensor:
        """[n, r, c] in the bases: Q_Lᵀ x Q_R."""
        if self.left is not None:
            x = self.left.basis.mT @ x
        return x if self.right is None else x @ self.right.basis

    def turned_back(self, x: Tensor) -> Tensor:
        """Q_L x Q_Rᵀ."""
        if self.left is not None:
            x = self.left.basis @ x
        return x if self.right is None else x @ self.right.basis.mT


class SOAP:
    """Adam on gradients that are turned into the eigenbases of E[GGᵀ] and E[GᵀG]; its update is turned back.

    G' = Q_LᵀGQ_R; m ← βm + (1−β)G; v ← β₂v + (1−β₂)G'²; p ← p(1 − lr·wd) − lr·Q_L[m̂'/(√v̂ + eps)]Q_Rᵀ, where m' is m
    turned as G is, and hats correct the bias as Adam does. β is the optimizer's momentum. The first gradient makes the
    bases alone.
    beta2: of v. mean_beta: of the means of GGᵀ and GᵀG. every: steps between new bases, each by one power iteration and
    a QR factorization of the one before; no host waits for it. max_dim: a side with more rows or columns has no basis,
    and its factor is left out. A parameter without a gradient moves on its momentum, undecayed.
    Raises ConfigError for settings out of range. Source: Vyas et al. 2024 (arXiv 2409.11321).
    """

    as_they_arrive = True

    def __init__(
        self,
        beta2: float = 0.95,
        mean_beta: float = 0.95,
        eps: float = 1e-8,
        every: int = 10,
        max_dim: int = 1024,
    ) -> None:
        for key, value in {"beta2": beta2, "mean_beta": mean_beta}.items():
            require(0.0 <= value < 1.0, f"optimizer.matrix.{key}", value, "from 0 to below 1")
        require(eps > 0.0, "optimizer.matrix.eps", eps, "more than 0")
        require(every >= 1, "optimizer.matrix.every", every, "at least 1")
        require(max_dim >= 0, "optimizer.matrix.max_dim", max_dim, "at least 0 (0: no side has a basis)")
        self.beta2, self.mean_beta, self.eps = beta2, mean_beta, eps
        self.every, self.max_dim = every, max_dim
        self.ranks = Ranks()
        self.stacks: list[Stack] = []
        self.steps = 0
        """Gradients seen, the first one included."""
        self.left_of_one = 1.0, 1.0
        """The weights that the moments' zero beginnings still have: the products of the β and β₂ in force."""

    def attach(self, params: Mapping[str, nn.Parameter], ranks: Ranks) -> None:
        """Stack `params` by shape and device, with moments 0. Raises ValueError for one that is not 2-D."""
        self.ranks, self.steps, self.left_of_one = ranks, 0, (1.0, 1.0)
        self.stacks = []
        for stack in of_one_shape(params):
            first = next(iter(stack.values()))
            zeros = torch.zeros(len(stack), *first.shape, device=first.device)
            sides = [self._side(len(stack), size, first.device) for size in first.shape]
            self.stacks.append(Stack(stack, zeros, zeros.clone(), *sides))

    def _side(self, count: int, size: int, device: torch.device) -> Side | None:
        if size > self.max_dim:
            return None
        basis = torch.eye(size, device=device).repeat(count, 1, 1)
        return Side(torch.zeros_like(basis), basis)

    @torch.no_grad()
    def step(self, lr: float, momentum: float, weight_decay: float, arrive: Arrive | None = None) -> None:
        """Update every parameter from its gradient, which is equal on all ranks; without `arrive` all are there."""
        due, first = self.steps % self.every == 0, self.steps == 0
        if not first:
            self.left_of_one = self.left_of_one[0] * momentum, self.left_of_one[1] * self.beta2
        for stack in self.stacks:
            if arrive is not None:
                arrive(stack.params.values())
            grads = stacked_gradients(list(stack.params.values()), torch.float32)
            if not first:
                self._move(stack, grads, lr, momentum, weight_decay)
            for side, outer in ((stack.left, (grads, grads.mT)), (stack.right, (grads.mT, grads))):
                if side is not None:
                    side.mean.baddbmm_(*outer, beta=self.mean_beta, alpha=1.0 - self.mean_beta)
            if due:
                for _ in range(FIRST_TURNS if first else 1):
                    self._turn(stack)
        self.steps += 1

    def _move(self, stack: Stack, grads: Tensor, lr: float, momentum: float, weight_decay: float) -> None:
        """Advance the moments, and the parameters along them."""
        stack.momentum.lerp_(grads, 1.0 - momentum)
        turned = stack.turned(grads)
        stack.second.mul_(self.beta2).addcmul_(turned, turned, value=1.0 - self.beta2)
        scale = (stack.second / (1.0 - self.left_of_one[1])).sqrt_().add_(self.eps)
        update = stack.turned_back(stack.turned(stack.momentum) / scale)
        decayed: list[Tensor] = [p for p in stack.params.values() if p.grad is not None]
        if weight_decay and decayed:
            torch._foreach_mul_(decayed, 1.0 - lr * weight_decay)
        moved: list[Tensor] = list(stack.params.values())
        torch._foreach_add_(moved, update.to(moved[0].dtype).unbind(), alpha=-lr / (1.0 - self.left_of_one[0]))

    def _turn(self, stack: Stack) -> None:
        """Bring both bases nearer to the eigenvectors; `second` follows their order."""
        for side, axis in ((stack.left, 1), (stack.right, 2)):
            if side is None:
                continue
            seen = side.mean @ side.basis
            order = (side.basis * seen).sum(1).argsort(dim=1, descending=True, stable=True)  # by diag(QᵀPQ)
            along = order[:, :, None] if axis == 1 else order[:, None, :]
            stack.second.copy_(torch.gather(stack.second, axis, along.expand_as(stack.second)))
            seen = torch.gather(seen, 2, order[:, None, :].expand_as(seen))
            side.basis.copy_(self._orthogonal(seen))

    def _orthogonal(self, matrices: Tensor) -> Tensor:
        """The orthogonal factors of QR of a stack [n, d, d], each rank's share by itself."""
        count = matrices.size(0)
        if self.ranks.world == 1:
            return torch.linalg.qr(matrices).Q
        size = share_size(count, self.ranks)
        share = matrices[own_share(count, self.ranks)]
        found = filled_up(torch.linalg.qr(share).Q if share.size(0) else share, size)
        gathered = found.new_empty(self.ranks.world * size, *found.shape[1:])
        all_gather_single(gathered, found)
        return gathered[:count]

    def state_dict(self) -> dict[str, Tensor]:
        """The state, equal on every rank, float32: `momentum/NAME` and `second/NAME` [r, c]; of sides that have a basis
        `left/NAME` and `left_basis/NAME` [r, r], `right/…` [c, c]; and `steps` int64, `left_of_one` float64 [2]."""
        state = {
            "steps": torch.tensor(self.steps),
            "left_of_one": torch.tensor(self.left_of_one, dtype=torch.float64),
        }
        for stack in self.stacks:
            kinds = {"momentum": stack.momentum, "second": stack.second}
            for name, side in (("left", stack.left), ("right", stack.right)):
                if side is not None:
                    kinds |= {name: side.mean, f"{name}_basis": side.basis}
            for kind, tensor in kinds.items():
                state |= {f"{kind}/{name}": tensor[index] for index, name in enumerate(stack.params)}
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy a state in. Raises ArtifactError if its names or shapes are not this rule's."""
        copy_state(self.state_dict(), state)
        self.steps = int(state["steps"])
        first, second = state["left_of_one"].tolist()
        self.left_of_one = first, second
