"""BigramHash: a token's embedding gets a row that its pair with the token before is hashed to."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from golf.common.errors import ConfigError
from golf.nn.context import Context, begins
from golf.nn.linear import Linear
from golf.nn.numerics import Numerics
from golf.nn.params import declare
from golf.nn.shape import Shape
from golf.nn.table import Table
from golf.nn.techniques.base import Technique


class BigramHash(Technique):
    """y_t = e_t + s · P E[(36313 id_t xor 27191 id_{t−1}) mod (rows − 1)], on the raw embedding [B, T, D].

    A token without a predecessor in its document has the last row. E [rows, dim] starts at zero, so that y = e; P
    [D, dim] is drawn as any matrix, s starts at `scale_init`. Raises ConfigError for sizes that cannot be.
    Source: Parameter Golf's record SmearGate of 19 March 2026.
    """

    site = "post_embed"
    mixes_time = True
    reads = ("ids", "documents", "border_id")
    order = -10  # before the smear gate, which passes it on
    table: torch.Tensor
    scale: torch.Tensor

    def __init__(
        self,
        shape: Shape,
        numerics: Numerics,
        layer: int | None = None,
        rows: int = 10_240,
        dim: int = 128,
        scale_init: float = 0.05,
    ) -> None:
        super().__init__(shape, layer)
        if rows < 2 or dim < 1:
            raise ConfigError(f"technique.bigram_hash.rows={rows}, dim={dim}: at least 2 rows of 1")
        self.rows = rows
        table = torch.zeros(rows, dim, dtype=numerics.embed_dtype)
        declare(self, "table", table, role="embed", place="bigram.table")
        self.lookup = Table(self, "table", numerics.dtype, cast=False)
        self.proj = Linear(dim, shape.model_dim, numerics, place="bigram.proj")
        declare(self, "scale", torch.full((1,), float(scale_init)), role="scalar", place="bigram.scale")

    def forward(self, e: torch.Tensor, ctx: Context) -> torch.Tensor:
        """[B, T, D] → [B, T, D]."""
        before = F.pad(ctx.ids[:, :-1], (1, 0))
        row = ((36313 * ctx.ids) ^ (27191 * before)) % (self.rows - 1)
        found = self.proj(self.lookup.looked_up(row.masked_fill(begins(ctx), self.rows - 1), self.table))
        return e + (self.scale * found).to(e.dtype)
