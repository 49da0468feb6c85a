"""What techniques may read besides the value at their site, and what they may hand out besides it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch


class Visit(NamedTuple):
    """One execution of a physical layer: `virtual` counts executions from 0, `pass_` those of this layer.

    of: how many executions the plan in force has; the model fills it in.
    """

    layer: int
    virtual: int
    pass_: int = 0
    of: int = 0


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


Note = tuple[Literal["loss", "report"], str, torch.Tensor]
"""A term of the training loss or a number to report, with its name and its value, a scalar."""


class Context(NamedTuple):
    """Frozen facts of one forward. A technique names the fields it needs in its `reads`.

    ids [B, T] int64; x0 [B, T, D] the normed embedding; n [B, T, D] the attention's or MLP's normed input;
    v [B, T, Hkv, hd] the values; visit: the running layer (None outside blocks); score_from: first scored position;
    documents: the borders that nothing may look across (None: each row is one window); border_id: the token that
    begins a document; carried: what earlier sites left (`carry`, `fetch`). In training alone, else None: targets
    [B, T] int64, and to_logits, the head: [B, T, D] → [B, T, V].

    first: how many positions have been left out before these. narrow: a normed input, and its first features as a
    tensor of their own; see `first_of_n`.
    """

    ids: torch.Tensor
    score_from: int = 0
    x0: torch.Tensor | None = None
    n: torch.Tensor | None = None
    v: torch.Tensor | None = None
    visit: Visit | None = None
    documents: Documents | None = None
    border_id: int | None = None
    carried: dict[str, tuple[int, torch.Tensor]] = {}  # noqa: RUF012 (each forward brings its own)
    targets: torch.Tensor | None = None
    to_logits: Callable[[torch.Tensor], torch.Tensor] | None = None
    notes: list[Note] | None = None
    first: int = 0
    narrow: tuple[torch.Tensor, torch.Tensor] | None = None

    def since(self, position: int) -> Context:
        """The same facts of the positions from `position` on."""
        if not position:
            return self
        x0, n, v = (None if value is None else value[:, position:] for value in (self.x0, self.n, self.v))
        narrow = None
        if self.narrow is not None and self.narrow[0] is self.n and n is not None:
            narrow = n, self.narrow[1][:, position:]
        return self._replace(ids=self.ids[:, position:], x0=x0, n=n, v=v, first=self.first + position, narrow=narrow)

    def first_of_n(self, width: int) -> torch.Tensor:
        """The first features of n: `width` of them or, where a kernel hands them out apart, maybe a few more.

        Then their gradient is added to that of n within the kernel, and no tensor of n's size is made for it.
        A technique that asks says so by its `asks_first`.
        """
        assert self.n is not None
        if self.narrow is not None and self.narrow[0] is self.n and self.narrow[1].shape[-1] >= width:
            return self.narrow[1]
        return self.n[..., :width].contiguous()

    def carry(self, key: str, value: torch.Tensor) -> None:
        """Leave a value [B, T, …] for a later site, which gets it by `fetch`."""
        self.carried[key] = (self.first, value)

    def fetch(self, key: str) -> torch.Tensor:
        """What was carried as `key`, of the positions that are still there. Raises KeyError when nothing was."""
        first, value = self.carried[key]
        return value[:, self.first - first :]

    def add_loss(self, name: str, value: torch.Tensor) -> None:
        """Add a term, a scalar that is a mean over this pass's tokens, to the training loss; evaluations know none.

        Terms of one name are summed. `train_loss` stays the nll; the term is logged by its name.
        """
        if self.notes is not None:
            self.notes.append(("loss", name, value))

    def report(self, name: str, value: torch.Tensor) -> None:
        """Show a scalar in metrics.jsonl and wandb: its mean over passes, layers and ranks since the last row."""
        if self.notes is not None:
            self.notes.append(("report", name, value.detach().float()))


def begins(ctx: Context) -> torch.Tensor:
    """Whether a token has no predecessor in its own document, bool [B, T]: the first of a row or packed document, and
    every `border_id`. For rows that are still whole; a technique that asks reads ids, documents and border_id.
    """
    first = torch.arange(ctx.ids.shape[1], device=ctx.ids.device) if ctx.documents is None else ctx.documents.place
    found = (first == 0).expand_as(ctx.ids)
    return found if ctx.border_id is None else found | (ctx.ids == ctx.border_id)


READABLE = tuple(name for name in Context._fields if name not in ("notes", "first", "narrow"))
"""What a technique may name in its `reads`."""
