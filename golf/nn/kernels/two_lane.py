"""A TwoLane whose additions wait for the next layer, where `lanes` makes one pass of them all.

Its vector c is made up here of routes, gates and scales: autograd goes on from c's gradient to theirs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from golf.nn.context import Visit
from golf.nn.kernels.lanes import lanes
from golf.nn.kernels.stream import FusedResidual, Waiting
from golf.nn.models.lanes import Lanes, TwoLane
from golf.nn.slots import Norm


@dataclass(frozen=True)
class WaitingLanes:
    """Two lanes u, w [B, T, D] whose last outputs wait for the next layer, with x0 and the encoder outputs.

    w: None where the lanes begin, as copies of u. kept: what remains of each lane (None: all of it); added: (output,
    how much of it goes to u, to w), None: all; popped: (skip, its factor) for u alone. These factors are float32, [D]
    or scalars. Of the layer that runs: a, the attention's output, n, what the MLP reads, and first, features of what
    the attention reads, where a technique asks for them.
    """

    u: Tensor
    w: Tensor | None
    x0: Tensor
    skips: tuple[Tensor, ...] = ()
    kept: tuple[Tensor | None, Tensor | None] = (None, None)
    added: tuple[tuple[Tensor, Tensor | None, Tensor | None], ...] = ()
    popped: tuple[Tensor, Tensor] | None = None
    a: Tensor | None = None
    n: Tensor | None = None
    first: Tensor | None = None


class FusedTwoLane(FusedResidual):
    """Stands for a TwoLane; its vectors stay that module's. After pruning the module itself goes on."""

    module: TwoLane

    def skip_pop(self, s: Any, visit: Visit) -> Any:
        """As many lanes as the layer has; let the encoder output that was pushed last be added."""
        if visit.layer not in self.module.two_lane:
            return super().skip_pop(self._merged(s) if isinstance(s, WaitingLanes) else s, visit)
        if isinstance(s, Waiting):
            if s.keep or len(s.added) > 1 or s.gain is not None:
                s = self._settled(s)
            s = WaitingLanes(s.x, None, s.x0, s.skips, added=tuple((v, scale, scale) for v, scale in s.added))
        vectors = self.module.skip_vectors(visit)
        if vectors is None or not s.skips:
            return s
        share, factor = vectors
        kept, added = s.kept, s.added
        if share is not None:
            kept = (_times(share, kept[0]), kept[1])
            added = tuple((value, _times(share, to_u), to_w) for value, to_u, to_w in added)
        return replace(s, kept=kept, added=added, popped=(s.skips[-1], factor), skips=s.skips[:-1])

    def skip_push(self, s: Any, visit: Visit) -> Any:
        """In the first half of the visits: the layer's output is kept."""
        if not isinstance(s, WaitingLanes):
            return super().skip_push(s, visit)
        if not self.module.pushes(visit):
            return s
        s = _together(s)
        return WaitingLanes(s.u, s.w, s.x0, (*s.skips, self.module.finish(s)))

    def attn_in(self, s: Any, visit: Visit, norm: Norm) -> tuple[Any, Tensor]:
        """Both lanes after what waits, and the norm of attention's after the x0 mix: one kernel, the MLP's norm too."""
        if isinstance(s, Waiting):
            return super().attn_in(s, visit, norm)
        mix: Tensor | None = self.module._vectors(visit).mix
        (a, a_u, a_w), (b, b_u, b_w) = (*s.added, (None, None, None), (None, None, None))[:2]
        skip, popped = s.popped or (None, None)
        mixed = (None, None) if mix is None else (mix[0], mix[1])
        one = torch.ones(s.u.shape[-1], device=s.u.device)
        c = torch.stack([one if v is None else v * one for v in (*s.kept, a_u, a_w, b_u, b_w, popped, *mixed)])
        factor, width = self.module.norm_scales[visit.layer], self.widths[visit.layer]
        u, w, n, mlp_n, first = lanes(
            s.u, s.w, a, b, skip, None if mix is None else s.x0, c, self.eps, factor, width
        )  # fmt: skip
        return WaitingLanes(u, w, s.x0, s.skips, n=mlp_n, first=first if width else None), n

    def attn_add(self, s: Any, a: Tensor, visit: Visit) -> Any:
        """The attention's output [B, T, D], to be added with the MLP's."""
        return replace(s, a=a) if isinstance(s, WaitingLanes) else super().attn_add(s, a, visit)

    def mlp_in(self, s: Any, visit: Visit, norm: Norm) -> tuple[Any, Tensor]:
        """The state, and the norm of the MLP's lane, which is there already."""
        if not isinstance(s, WaitingLanes):
            return super().mlp_in(s, visit, norm)
        assert s.n is not None
        return s, s.n

    def mlp_add(self, s: Any, m: Tensor, visit: Visit) -> Any:
        """Let both outputs [B, T, D] be added to both lanes."""
        if not isinstance(s, WaitingLanes):
            return super().mlp_add(s, m, visit)
        assert s.a is not None
        vectors, (to_u, to_w) = self.module._vectors(visit), self.module.routes(visit).unbind()
        scales = vectors.output_scale("attn_scale"), vectors.output_scale("mlp_scale")
        added = tuple(
            (value, _times(scale, to_u[i]), _times(scale, to_w[i]))
            for i, (value, scale) in enumerate(zip((s.a, m), scales, strict=True), 1)
        )
        return replace(s, kept=(to_u[0], to_w[0]), added=added, a=None, n=None, first=None)

    def prune(self, s: Any, score_from: int) -> Any:
        """Drop positions before `score_from`, and leave the rest to the module."""
        if isinstance(s, WaitingLanes):
            return self.module.prune(_together(s), score_from)
        return super().prune(s, score_from)

    def replace(self, s: Any, x: Tensor) -> Any:
        """The state with another mean of the lanes, x [B, T, D]."""
        if not isinstance(s, WaitingLanes):
            return super().replace(s, x)
        moved = self.module.replace(_together(s), x)
        return WaitingLanes(moved.u, moved.w, moved.x0, moved.skips)

    def finish(self, s: Any) -> Tensor:
        """Close the stream: [B, T, D] for the final norm."""
        return super().finish(_together(s) if isinstance(s, WaitingLanes) else s)

    def _merged(self, s: WaitingLanes) -> Waiting:
        one = self.module.merged(_together(s))
        return Waiting(one.x, one.x0, (), one.skips)


def _together(s: WaitingLanes) -> Lanes:
    """The lanes with all that waits added."""
    u, w = _part(s.kept[0], s.u), _part(s.kept[1], s.u if s.w is None else s.w)
    for value, to_u, to_w in s.added:
        u, w = u + _part(to_u, value), w + _part(to_w, value)
    if s.popped is not None:
        u = u + _part(s.popped[1], s.popped[0])
    return Lanes(u, w, s.x0, s.skips)


def _part(factor: Tensor | None, value: Tensor) -> Tensor:
    return value if factor is None else factor.to(value.dtype) * value


def _times(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """The product of two factors, of which None is 1."""
    return other if one is None else one if other is None else one * other
