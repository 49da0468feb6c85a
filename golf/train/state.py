"""Copies of a run's state in memory: to undo the warm-up, and to fall back on after a non-finite loss."""

from __future__ import annotations

from collections.abc import Mapping

import torch


class Saved:
    """A copy of named tensors that can be refreshed and written back, on their device."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.live = [t.detach() for t in tensors.values()]
        self.copy = [t.clone() for t in self.live]

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the live tensors again."""
        torch._foreach_copy_(self.copy, self.live)

    @torch.no_grad()
    def restore(self) -> None:
        """Overwrite the live tensors with the copy."""
        torch._foreach_copy_(self.live, self.copy)
