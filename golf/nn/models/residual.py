"""Plan and residual slots: in which order layers run, and how their outputs meet the stream."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import nn

from golf.common.errors import ConfigError
from golf.nn.context import Visit
from golf.nn.linear import Linear
from golf.nn.params import declare
from golf.nn.shape import Shape
from golf.nn.slots import Norm

OutputScale = Literal["attn_scale", "mlp_scale"]


class Straight:
    """Plan: every layer once, in order."""

    def __init__(self, num_layers: int) -> None:
        self.visits = [Visit(layer=i, virtual=i) for i in range(num_layers)]


class Loop:
    """Plan: layers first..last run `passes` times in a row with shared weights (depth recurrence).

    Source: Parameter Golf PR 1204 and later. Raises ConfigError for layers that do not exist.
    """

    def __init__(self, num_layers: int, first: int = 3, last: int = 5, passes: int = 2) -> None:
        if not 0 <= first <= last < num_layers:
            raise ConfigError(
                f"model.plan.first={first}, model.plan.last={last}: need 0 <= first <= last < "
                f"model.num_layers={num_layers}"
            )
        if passes < 1:
            raise ConfigError(f"model.plan.passes={passes}: must be at least 1")
        order = [(i, 0) for i in range(first)]
        order += [(i, p) for p in range(passes) for i in range(first, last + 1)]
        order += [(i, 0) for i in range(last + 1, num_layers)]
        self.visits = [Visit(layer=i, virtual=n, pass_=p) for n, (i, p) in enumerate(order)]


@dataclass(frozen=True)
class Stream:
    """State of the residual stream: x and x0 [B, T, D], and the stack of encoder outputs.

    No named tuple: torch 2.11 brings one made by `_replace` out of a block compiled by itself empty.
    """

    x: torch.Tensor
    x0: torch.Tensor
    skips: tuple[torch.Tensor, ...] = ()


class LayerVectors(nn.Module):
    """Per-channel vectors of one layer: scales of both outputs [D], and the mix with x0 [2, D].

    `in_weights` names the scales that a projection's weight holds.
    """

    attn_scale: nn.Parameter | None
    mlp_scale: nn.Parameter | None
    mix: nn.Parameter | None

    def __init__(self, dim: int, layer: int, x0_mix: bool, scales: bool) -> None:
        super().__init__()
        self.attn_scale = self.mlp_scale = self.mix = None
        self.in_weights: set[OutputScale] = set()
        if scales:
            declare(self, "attn_scale", torch.ones(dim), role="scalar", place="resid.attn_scale", layer=layer)
            declare(self, "mlp_scale", torch.ones(dim), role="scalar", place="resid.mlp_scale", layer=layer)
        if x0_mix:
            # on the meta device, where every run is checked, most ops (stack, eye, repeat) import torch's compiler
            mix = torch.tensor([[1.0] * dim, [0.0] * dim])
            declare(self, "mix", mix, role="scalar", place="resid.mix", layer=layer)

    def output_scale(self, name: OutputScale) -> nn.Parameter | None:
        """The scale that the stream applies to an output: None where there is none, or a weight holds it."""
        return None if name in self.in_weights else getattr(self, name)

    def into_weight(self, name: OutputScale, projection: Linear) -> None:
        """Let the weight of the projection that makes the output hold its scale."""
        scale: nn.Parameter | None = getattr(self, name)
        if scale is not None:
            projection.hold_scale(scale)
            self.in_weights.add(name)


class Residual(nn.Module):
    """One stream with optional x0 mix, per-channel output scales and U-Net skips.

    Before a layer: x ← mix₀ x + mix₁ x0. After attention and MLP: x ← x + scale ⊙ output. With skips, the first half
    of the visits pushes its outputs, the second half pops them, last in first out: x ← x + w ⊙ skip, before the mix.

    visits: the longest plan of the run. Under a shorter one the pairs are fewer, and the last rows of w rest.
    """

    skip_weights: nn.Parameter | None

    def __init__(
        self, shape: Shape, visits: list[Visit], x0_mix: bool = True, scales: bool = True, skips: bool = True
    ) -> None:
        super().__init__()
        dim = shape.model_dim
        self.layers = nn.ModuleList(LayerVectors(dim, i, x0_mix, scales) for i in range(shape.num_layers))
        self.skip_weights = None
        if skips and len(visits) > 1:
            declare(self, "skip_weights", torch.ones(len(visits) // 2, dim), role="scalar", place="resid.skip")

    @property
    def vectors(self) -> list[LayerVectors]:
        """The vectors of every physical layer."""
        return [cast(LayerVectors, layer) for layer in self.layers]

    def start(self, x: torch.Tensor) -> Stream:
        """Open the stream with the normed embedding [B, T, D]."""
        return Stream(x, x)

    def skip_pop(self, s: Stream, visit: Visit) -> Stream:
        """In the second half of the visits: add the encoder output that was pushed last."""
        weight = self.skip_weight(visit)
        if weight is None or not s.skips:
            return s
        return replace(s, x=s.x + weight.to(s.x.dtype) * s.skips[-1], skips=s.skips[:-1])

    def skip_push(self, s: Stream, visit: Visit) -> Stream:
        """In the first half of the visits: remember the layer's output."""
        return replace(s, skips=(*s.skips, s.x)) if self.pushes(visit) else s

    def pushes(self, visit: Visit) -> bool:
        """Whether a visit's output is kept for a later one."""
        return self.skip_weights is not None and visit.virtual < visit.of // 2

    def skip_weight(self, visit: Visit) -> torch.Tensor | None:
        """The weight [D] of what is added before a visit; the first of the second half has the first row."""
        pairs = visit.of // 2
        number = visit.virtual - pairs
        return self.skip_weights[number] if self.skip_weights is not None and 0 <= number < pairs else None

    def attn_in(self, s: Stream, visit: Visit, norm: Norm) -> tuple[Stream, torch.Tensor]:
        """The stream after the x0 mix, and the normed stream that the attention reads."""
        mix = self._vectors(visit).mix
        if mix is not None:
            m = mix.to(s.x.dtype)
            s = replace(s, x=m[0] * s.x + m[1] * s.x0)
        return s, norm(s.x)

    def attn_add(self, s: Stream, a: torch.Tensor, visit: Visit) -> Stream:
        """Add the attention's output [B, T, D]."""
        return replace(s, x=self._add(s.x, a, self._vectors(visit).output_scale("attn_scale")))

    def mlp_in(self, s: Stream, visit: Visit, norm: Norm) -> tuple[Stream, torch.Tensor]:
        """The stream, and the normed stream that the MLP reads."""
        return s, norm(s.x)

    def mlp_add(self, s: Stream, m: torch.Tensor, visit: Visit) -> Stream:
        """Add the MLP's output [B, T, D]."""
        return replace(s, x=self._add(s.x, m, self._vectors(visit).output_scale("mlp_scale")))

    def replace(self, s: Stream, x: torch.Tensor) -> Stream:
        """The stream with another x [B, T, D]."""
        return replace(s, x=x)

    def prune(self, s: Stream, score_from: int) -> Stream:
        """Drop positions before `score_from`; only pointwise operations follow."""
        return replace(s, x=s.x[:, score_from:], x0=s.x0[:, score_from:], skips=())

    def finish(self, s: Stream) -> torch.Tensor:
        """Close the stream: [B, T, D] for the final norm."""
        return s.x

    def _vectors(self, visit: Visit) -> LayerVectors:
        return cast(LayerVectors, self.layers[visit.layer])

    @staticmethod
    def _add(x: torch.Tensor, value: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
        return x + value if scale is None else x + scale.to(x.dtype) * value
