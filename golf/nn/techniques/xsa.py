"""XSA, exclusive self-attention: an attention head may not return what its own position already knows."""

from __future__ import annotations

from collections.abc import Callable

import torch

from golf.nn.context import Context
from golf.nn.shape import Shape
from golf.nn.techniques.base import Technique


class XSA(Technique):
    """Remove from each head's output its component along the same position's own value vector.

    y ← y − (y·v̂) v̂ with v̂ = v / max(‖v‖, 1e-12), in float32, on heads_out [B, T, H, hd]; query head h uses the value of
    kv head h // (H / Hkv). `whole` computes it: `unfused`, or a fused kernel that stands for it.
    Source: PR 287 and GradQuant record (PR 422).
    """

    site = "heads_out"
    reads = ("v",)
    order = -10  # before gates on the head outputs

    def __init__(self, shape: Shape, layer: int | None = None) -> None:
        super().__init__(shape, layer)
        self.whole: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = self.unfused

    def forward(self, y: torch.Tensor, ctx: Context) -> torch.Tensor:
        """[B, T, H, hd] → same shape, float32; of a kernel in y's dtype."""
        assert ctx.v is not None
        return self.whole(y, ctx.v)

    @staticmethod
    def unfused(y: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """y [B, T, H, hd] and v [B, T, Hkv, hd] → [B, T, H, hd] in float32, by torch's own ops."""
        batch, time, heads, dim = y.shape
        v = v.float()
        unit = v / v.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        grouped = y.float().view(batch, time, v.shape[2], heads // v.shape[2], dim)
        own = (grouped * unit.unsqueeze(3)).sum(-1, keepdim=True)
        return (grouped - own * unit.unsqueeze(3)).view(batch, time, heads, dim)
