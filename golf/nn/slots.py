"""What the parts of a model promise each other: one protocol a slot, and a slot whose part is chosen by layer.

A slot's yaml names a callable that builds its part. What it is called with is said at each protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from golf.common import protocols
from golf.nn.attend import Attend
from golf.nn.context import Context, Visit
from golf.nn.techniques.base import Layers, chosen_layers

Build = Callable[..., Any]
Norm = Callable[[torch.Tensor], torch.Tensor]


@runtime_checkable
class Attention(Protocol):
    """`model/attention`, built with shape, numerics, layer, position, techniques; hosts qk, v, heads_out.

    attend: the backend that computes it, None where it has arithmetic of its own. prunes: places whose matrices
    `forward` applies to the scored positions alone.
    """

    attend: Attend | None
    prunes: frozenset[str]

    def __call__(self, n: torch.Tensor, ctx: Context, score_from: int = 0) -> torch.Tensor:
        """n [B, T, D], the normed stream → [B, T', D], T' = T or T − score_from."""
        ...


@runtime_checkable
class MLP(Protocol):
    """`model/mlp`, built with shape, numerics, layer, techniques; hosts mlp_hidden."""

    def __call__(self, n: torch.Tensor, ctx: Context) -> torch.Tensor:
        """n [B, T, D], the normed stream → [B, T, D]."""
        ...


@runtime_checkable
class Position(Protocol):
    """`model/position`, built with shape, numerics; one for all layers."""

    def __call__(self, x: torch.Tensor, start: int = 0, places: torch.Tensor | None = None) -> torch.Tensor:
        """Queries or keys x [B, T, heads, hd] at positions start, start + 1, …, or `places` [T] → the same shape."""
        ...

    def stretched(self, seq_len: int, ntk_from: int | None = None) -> AbstractContextManager[None]:
        """Within the block windows may have `seq_len` tokens; see golf.nn.models.position.Rope."""
        ...


@runtime_checkable
class Residual(Protocol):
    """`model/residual`, built with shape, visits: it owns the stream's state, which is nobody else's to look into.

    visits: of the longest plan that the run has. The plan in force may be a shorter one: `visit.of` says how long.
    """

    def start(self, x: torch.Tensor) -> Any:
        """Open the stream with the normed embedding [B, T, D]."""
        ...

    def skip_pop(self, s: Any, visit: Visit) -> Any:
        """Before a visit: add what an earlier one kept."""
        ...

    def skip_push(self, s: Any, visit: Visit) -> Any:
        """After a visit: keep what a later one adds."""
        ...

    def attn_in(self, s: Any, visit: Visit, norm: Norm) -> tuple[Any, torch.Tensor]:
        """The stream, and what the attention reads of it [B, T, D]."""
        ...

    def attn_add(self, s: Any, a: torch.Tensor, visit: Visit) -> Any:
        """Add the attention's output [B, T, D]."""
        ...

    def mlp_in(self, s: Any, visit: Visit, norm: Norm) -> tuple[Any, torch.Tensor]:
        """The stream, and what the MLP reads of it [B, T, D]."""
        ...

    def mlp_add(self, s: Any, m: torch.Tensor, visit: Visit) -> Any:
        """Add the MLP's output [B, T, D]."""
        ...

    def replace(self, s: Any, x: torch.Tensor) -> Any:
        """The stream with `x` [B, T, D] for what `finish` reads, after a technique at block_out."""
        ...

    def prune(self, s: Any, score_from: int) -> Any:
        """Leave out the positions before `score_from`; only pointwise operations follow."""
        ...

    def finish(self, s: Any) -> torch.Tensor:
        """What the next norm, or the final one, reads: [B, T, D]."""
        ...


@runtime_checkable
class Plan(Protocol):
    """`model/plan`, built with num_layers: the order in which layers run; the model fills in its visits' `of`."""

    visits: list[Visit]


@runtime_checkable
class Head(Protocol):
    """`model/head`, built with shape, numerics; `tied`: it multiplies by the token embedding."""

    tied: bool

    def __call__(self, h: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """h [B, T, D], embedding [V, D] → logits [B, T, V], float32."""
        ...


class Initial(Protocol):
    """`model/init`, an object."""

    def __call__(self, embedding: nn.Parameter, model: nn.Module, num_layers: int, seed: int) -> None:
        """Fill the embedding and every Linear of `model` in place."""
        ...


SLOTS: Mapping[str, type] = {
    "attention": Attention, "mlp": MLP, "position": Position, "residual": Residual, "plan": Plan, "head": Head,
}  # fmt: skip


def fitted(slot: str, part: Any) -> Any:
    """The part, as one that serves in this slot. Raises ConfigError naming what it lacks."""
    return protocols.fitted(part, SLOTS[slot], f"model.{slot}")


def by_layer(kinds: Sequence[Mapping[str, Any]], rest: Build, *, shape: Any, layer: int, **more: Any) -> Any:
    """An attention or MLP of another kind in some layers: the first of `kinds` whose `layers` hold this one, or `rest`.

    kinds: `{layers: first:4, of: a part's builder}` each, `layers` as techniques have them. Raises ConfigError for
    layers that the model does not have.
    """
    for number, kind in enumerate(kinds):
        layers: Layers = kind["layers"]
        if layer in chosen_layers(layers, shape.num_layers, f"kinds[{number}].layers"):
            return kind["of"](shape=shape, layer=layer, **more)
    return rest(shape=shape, layer=layer, **more)
