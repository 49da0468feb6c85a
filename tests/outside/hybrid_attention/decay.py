"""An attention of another kind: values averaged with weights that decay with distance; no queries, no keys."""

import torch
from torch import nn

from golf.nn.linear import Linear
from golf.nn.params import declare


class Decay(nn.Module):
    attend = None
    prunes = frozenset()

    def __init__(self, shape, numerics, layer, position, techniques):
        super().__init__()
        dim = shape.model_dim
        self.v = Linear(dim, dim, numerics, place="attn.v", layer=layer)
        self.proj = Linear(dim, dim, numerics, place="attn.proj", layer=layer, writes_stream=True)
        declare(self, "rate", torch.zeros(()), role="scalar", place="decay.rate", layer=layer)

    def forward(self, n, ctx, score_from=0):
        time = torch.arange(n.shape[1], device=n.device)
        distance = (time[:, None] - time[None, :]).clamp_min(0).float()
        seen = time[:, None] >= time[None, :]
        weights = seen * torch.exp(-distance * torch.exp(self.rate))
        if ctx.documents is not None:
            weights = weights * (ctx.documents.number[:, None] == ctx.documents.number[None, :])
        weights = (weights / weights.sum(-1, keepdim=True)).to(n.dtype)
        return self.proj(weights @ self.v(n))
