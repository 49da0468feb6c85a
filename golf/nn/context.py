"""What techniques may read besides the value at their site."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Visit(NamedTuple):
    """One execution of a physical layer: `virtual` counts executions from 0, `pass_` those of this layer."""

    layer: int
    virtual: int
    pass_: int = 0


class Documents(NamedTuple):
    """Documents packed one after another into a row of T tokens: none sees another, and positions begin anew in each.

    borders int32 [S + 1]: document i is [borders_i, borders_i+1), from 0 to T, empty ones included; number and place
    int64 [T]: which document a token belongs to, and where it stands there; longest: no document has more tokens.
    """

    borders: torch.Tensor
    number: torch.Tensor
    place: torch.Tensor
    longest: int

    @classmethod
    def of(cls, borders: torch.Tensor, tokens: int, longest: int) -> Documents:
        """Number and place of every token, from the borders."""
        positions = torch.arange(tokens, device=borders.device)
        number = torch.bucketize(positions, borders, right=True) - 1
        return cls(borders, number, positions - borders[number], longest)


class Context(NamedTuple):
    """Frozen facts of one forward. A technique names the fields it needs in its `reads`.

    ids [B, T] int64; x0 [B, T, D] the normed embedding; n [B, T, D] the attention's or MLP's normed input;
    v [B, T, Hkv, hd] the values; visit: the running layer (None outside blocks); score_from: first scored position;
    documents: the borders that nothing may look across (None: each row is one window).
    """

    ids: torch.Tensor
    score_from: int = 0
    x0: torch.Tensor | None = None
    n: torch.Tensor | None = None
    v: torch.Tensor | None = None
    visit: Visit | None = None
    documents: Documents | None = None

    def since(self, position: int) -> Context:
        """The same facts of the positions from `position` on."""
        if not position:
            return self
        x0, n, v = (None if value is None else value[:, position:] for value in (self.x0, self.n, self.v))
        return self._replace(ids=self.ids[:, position:], x0=x0, n=n, v=v)
