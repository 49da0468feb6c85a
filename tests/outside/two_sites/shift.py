"""A technique at two sites: one learned gain for what attention and MLP read."""

from typing import ClassVar

import torch

from golf.nn.params import declare
from golf.nn.techniques.base import Technique


class Shift(Technique):
    sites: ClassVar = {"attn_in": "before_attention", "mlp_in": "before_mlp"}

    def __init__(self, shape, layer=None):
        super().__init__(shape, layer)
        declare(self, "gain", torch.ones(2, shape.model_dim), role="scalar", place="shift.gain", layer=layer)

    def before_attention(self, n, ctx):
        return n * self.gain[0].to(n.dtype)

    def before_mlp(self, n, ctx):
        return n * self.gain[1].to(n.dtype)
