"""Embeddings and heads: what products multiply by, and rows are looked up in, where that is not the master itself."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from golf.nn.params import ParamSpec


class Table:
    """A master that is no Linear's, yet multiplied by or looked up in: `name` of `owner`, an embedding or a head.

    What multiplies by it takes `effective`, which is made once a step where products want another dtype than the
    master's (`cast`), or where training rounds it. What looks rows up reads the master, see `looked_up`.
    """

    joined: None = None
    held: tuple[nn.Parameter, ...] = ()

    def __init__(self, owner: nn.Module, name: str, compute_dtype: torch.dtype, cast: bool = True) -> None:
        self.owner, self.name, self.compute_dtype, self.cast = owner, name, compute_dtype, cast
        self.effective: torch.Tensor | None = None
        self.spare: torch.Tensor | None = None
        """What was `effective` while it was asked for: it comes again at its address, which graphs have recorded."""
        self.rounded = False
        """Whether `effective` is rounded now."""

    @property
    def weight(self) -> nn.Parameter:
        """The master."""
        return self.owner.get_parameter(self.name)

    @property
    def spec(self) -> ParamSpec:
        """The master's."""
        spec: ParamSpec = self.owner.__dict__["_param_specs"][self.name]
        return spec

    @property
    def needed(self) -> bool:
        """Whether products need another dtype than the master's."""
        return self.cast and self.weight.dtype != self.compute_dtype

    def serve(self, rounded: bool) -> bool:
        """Have an `effective` from now on, or none; whether it has."""
        self.rounded = rounded
        if self.needed or rounded:
            self.effective = self.spare if self.effective is None else self.effective
            return True
        self.spare, self.effective = self.spare if self.effective is None else self.effective, None
        return False

    def looked_up(self, ids: torch.Tensor, master: torch.Tensor) -> torch.Tensor:
        """Rows of the master, in its dtype; where training rounds it, of the rounded one, and the gradient is the
        master's all the same."""
        rows = F.embedding(ids, master)
        if not self.rounded or self.effective is None:
            return rows
        return rows + (F.embedding(ids, self.effective.detach()).to(rows.dtype) - rows).detach()
