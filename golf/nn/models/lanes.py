"""Residual slot of two lanes: from some layer on attention and MLP each read a stream of their own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import nn

from golf.nn.context import Visit
from golf.nn.models.residual import NormScale, Residual, Stream
from golf.nn.params import declare
from golf.nn.shape import Shape
from golf.nn.slots import Norm
from golf.nn.techniques.base import Layers, chosen_layers


@dataclass(frozen=True)
class Lanes:
    """State of two lanes: u, which attention reads, w, which the MLP reads, and x0 [B, T, D]; the encoder outputs.

    a: the attention's output, which waits for the MLP's.
    """

    u: torch.Tensor
    w: torch.Tensor
    x0: torch.Tensor
    skips: tuple[torch.Tensor, ...] = ()
    a: torch.Tensor | None = None


class TwoLane(Residual):
    """A Residual whose stream is two lanes in some layers, with learned routes of outputs to lanes.

    They start as copies of the stream, u and w. In such a layer a = α ⊙ Attn(n(m₀ u + m₁ x0)) and b = β ⊙ MLP(n(w)):
    the MLP does not see the attention's output of its own layer. Then u ← r_u u + p_au a + p_bu b and
    w ← r_w w + p_aw a + p_bw b, scalars of each layer, r from 1.1 and p from 1. Skips enter u alone; what leaves the
    lanes (the final norm, a layer with one stream, an encoder output) is their mean.

    lanes: those layers, physical ones, as techniques name theirs. The other arguments are Residual's.
    Source: Parameter Golf PR 1529. Raises ConfigError for layers that do not exist, and as Residual.
    """

    def __init__(
        self,
        shape: Shape,
        visits: list[Visit],
        x0_mix: bool = True,
        scales: bool = True,
        skips: bool = True,
        skip_gates: bool = False,
        norm_scale: NormScale = "none",
        lanes: Layers = "last:3",
    ) -> None:
        super().__init__(shape, visits, x0_mix, scales, skips, skip_gates, norm_scale)
        self.two_lane = frozenset(chosen_layers(lanes, shape.num_layers, "model.residual.lanes"))
        for layer in sorted(self.two_lane):
            routes = torch.tensor([[1.1, 1.0, 1.0], [1.1, 1.0, 1.0]])  # of u, of w: itself, attention, MLP
            declare(self.vectors[layer], "routes", routes, role="scalar", place="resid.routes", layer=layer)

    def skip_pop(self, s: Any, visit: Visit) -> Any:
        """As many lanes as the layer has, and in the second half of the visits the encoder output pushed last."""
        if visit.layer not in self.two_lane:
            return super().skip_pop(self.merged(s) if isinstance(s, Lanes) else s, visit)
        if isinstance(s, Stream):
            s = Lanes(s.x, s.x, s.x0, s.skips)
        vectors = self.skip_vectors(visit)
        if vectors is None or not s.skips:
            return s
        return replace(s, u=self._with_skip(s.u, s.skips[-1], vectors), skips=s.skips[:-1])

    def skip_push(self, s: Any, visit: Visit) -> Any:
        """In the first half of the visits: remember the layer's output."""
        if isinstance(s, Stream):
            return super().skip_push(s, visit)
        return replace(s, skips=(*s.skips, self.finish(s))) if self.pushes(visit) else s

    def attn_in(self, s: Any, visit: Visit, norm: Norm) -> tuple[Any, torch.Tensor]:
        """The state, and what the attention reads: the normed mix of its lane with x0."""
        if isinstance(s, Stream):
            return super().attn_in(s, visit, norm)
        return s, super().attn_in(Stream(s.u, s.x0), visit, norm)[1]

    def attn_add(self, s: Any, a: torch.Tensor, visit: Visit) -> Any:
        """The attention's output [B, T, D], to be added with the MLP's."""
        if isinstance(s, Stream):
            return super().attn_add(s, a, visit)
        return replace(s, a=self._scaled(a, self._vectors(visit).output_scale("attn_scale")))

    def mlp_in(self, s: Any, visit: Visit, norm: Norm) -> tuple[Any, torch.Tensor]:
        """The state, and what the MLP reads: its normed lane."""
        if isinstance(s, Stream):
            return super().mlp_in(s, visit, norm)
        return s, self._normed(s.w, visit, norm)

    def mlp_add(self, s: Any, m: torch.Tensor, visit: Visit) -> Any:
        """Both outputs [B, T, D] to both lanes."""
        if isinstance(s, Stream):
            return super().mlp_add(s, m, visit)
        b = self._scaled(m, self._vectors(visit).output_scale("mlp_scale"))
        to_u, to_w = self.routes(visit).to(s.u.dtype)
        u = to_u[0] * s.u + to_u[1] * s.a + to_u[2] * b
        w = to_w[0] * s.w + to_w[1] * s.a + to_w[2] * b
        return replace(s, u=u, w=w, a=None)

    def replace(self, s: Any, x: torch.Tensor) -> Any:
        """The state with another mean of the lanes, x [B, T, D]: both move by as much."""
        if isinstance(s, Stream):
            return super().replace(s, x)
        moved = x - self.finish(s)
        return replace(s, u=s.u + moved, w=s.w + moved)

    def prune(self, s: Any, score_from: int) -> Any:
        """Drop positions before `score_from`; only pointwise operations follow."""
        if isinstance(s, Stream):
            return super().prune(s, score_from)
        return Lanes(s.u[:, score_from:], s.w[:, score_from:], s.x0[:, score_from:])

    def finish(self, s: Any) -> torch.Tensor:
        """Close the stream: [B, T, D] for the final norm."""
        return super().finish(s) if isinstance(s, Stream) else 0.5 * (s.u + s.w)

    def merged(self, s: Lanes) -> Stream:
        """One stream again, for a layer that has one."""
        return Stream(self.finish(s), s.x0, s.skips)

    def routes(self, visit: Visit) -> nn.Parameter:
        """[2, 3]: how much of itself, of attention's and of the MLP's output goes to u, and to w."""
        return cast(nn.Parameter, self._vectors(visit).routes)

    @staticmethod
    def _scaled(value: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
        return value if scale is None else scale.to(value.dtype) * value
