"""XSA, exclusive self-attention: an attention head may not return what its own position already knows."""

from __future__ import annotations

import torch

from golf.nn.context import Context
from golf.nn.techniques.base import Technique


class XSA(Technique):
    """Remove from each head's output its component along the same position's own value vector.

    y ← y − (y·v̂) v̂ with v̂ = v / max(‖v‖, 1e-12), in float32, on heads_out [B, T, H, hd]; query head h uses the value of
    kv head h // (H / Hkv). Source: PR 287 and GradQuant record (PR 422).
    """

    site = "heads_out"
    reads = ("v",)
    order = -10  # before gates on the head outputs

    def forward(self, y: torch.Tensor, ctx: Context) -> torch.Tensor:
        """[B, T, H, hd] → same shape, float32."""
        assert ctx.v is not None
        batch, time, heads, dim = y.shape
        v = ctx.v.float()
        unit = v / v.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        grouped = y.float().view(batch, time, v.shape[2], heads // v.shape[2], dim)
        own = (grouped * unit.unsqueeze(3)).sum(-1, keepdim=True)
        return (grouped - own * unit.unsqueeze(3)).view(batch, time, heads, dim)
