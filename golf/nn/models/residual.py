"""Plan and residual slots: in which order layers run, and how their outputs meet the stream."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

import torch
from torch import nn

from golf.common.errors import ConfigError
from golf.nn.context import Visit
from golf.nn.linear import Linear
from golf.nn.params import declare
from golf.nn.shape import Shape
from golf.nn.slots import Norm

OutputScale = Literal["attn_scale", "mlp_scale"]
NormScale = Literal["none", "depth"]


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

    visits: the longest plan of the run. Under a shorter one the pairs are fewer, and the last rows of w and g rest.
    skip_gates: x ← σ(g) ⊙ x + (1 − σ(g)) ⊙ w ⊙ skip, g from zero (Parameter Golf PR 1089). norm_scale: `depth`
    multiplies what attention and MLP read, the normed stream, by 1/√(i + 1) in physical layer i (PR 315).
    Raises ConfigError for gates without skips, and for another norm_scale.
    """

    skip_weights: nn.Parameter | None
    skip_gates: nn.Parameter | None

    def __init__(
        self,
        shape: Shape,
        visits: list[Visit],
        x0_mix: bool = True,
        scales: bool = True,
        skips: bool = True,
        skip_gates: bool = False,
        norm_scale: NormScale = "none",
    ) -> None:
        super().__init__()
        if skip_gates and not skips:
            raise ConfigError("model.residual.skip_gates=true: model.residual.skips=true is needed")
        if norm_scale not in get_args(NormScale):
            raise ConfigError(f"model.residual.norm_scale={norm_scale}: choices are {', '.join(get_args(NormScale))}")
        dim, by_depth = shape.model_dim, norm_scale == "depth"
        self.layers = nn.ModuleList(LayerVectors(dim, i, x0_mix, scales) for i in range(shape.num_layers))
        self.norm_scales = [1 / math.sqrt(i + 1) if by_depth else 1.0 for i in range(shape.num_layers)]
        self.skip_weights = self.skip_gates = None
        pairs = len(visits) // 2
        if skips and pairs:
            declare(self, "skip_weights", torch.ones(pairs, dim), role="scalar", place="resid.skip")
            if skip_gates:
                declare(self, "skip_gates", torch.zeros(pairs, dim), role="gate", place="resid.skip_gate")

    @property
    def vectors(self) -> list[LayerVectors]:
        """The vectors of every physical layer."""
        return [cast(LayerVectors, layer) for layer in self.layers]

    def start(self, x: torch.Tensor) -> Stream:
        """Open the stream with the normed embedding [B, T, D]."""
        return Stream(x, x)

    def skip_pop(self, s: Stream, visit: Visit) -> Stream:
        """In the second half of the visits: add the encoder output that was pushed last."""
        vectors = self.skip_vectors(visit)
        if vectors is None or not s.skips:
            return s
        return replace(s, x=self._with_skip(s.x, s.skips[-1], vectors), skips=s.skips[:-1])

    def skip_push(self, s: Stream, visit: Visit) -> Stream:
        """In the first half of the visits: remember the layer's output."""
        return replace(s, skips=(*s.skips, s.x)) if self.pushes(visit) else s

    def pushes(self, visit: Visit) -> bool:
        """Whether a visit's output is kept for a later one."""
        return self.skip_weights is not None and visit.virtual < visit.of // 2

    def skip_vectors(self, visit: Visit) -> tuple[torch.Tensor | None, torch.Tensor] | None:
        """What of the stream and of the output that a visit pops is summed before it, float32 [D]; None: it pops none.

        A share of None is all of the stream. The first visit of the second half has the first row.
        """
        pairs = visit.of // 2
        number = visit.virtual - pairs
        if self.skip_weights is None or not 0 <= number < pairs:
            return None
        if self.skip_gates is None:
            return None, self.skip_weights[number]
        share = torch.sigmoid(self.skip_gates[number])
        return share, (1 - share) * self.skip_weights[number]

    def attn_in(self, s: Stream, visit: Visit, norm: Norm) -> tuple[Stream, torch.Tensor]:
        """The stream after the x0 mix, and the normed stream that the attention reads."""
        mix = self._vectors(visit).mix
        if mix is not None:
            m = mix.to(s.x.dtype)
            s = replace(s, x=m[0] * s.x + m[1] * s.x0)
        return s, self._normed(s.x, visit, norm)

    def attn_add(self, s: Stream, a: torch.Tensor, visit: Visit) -> Stream:
        """Add the attention's output [B, T, D]."""
        return replace(s, x=self._add(s.x, a, self._vectors(visit).output_scale("attn_scale")))

    def mlp_in(self, s: Stream, visit: Visit, norm: Norm) -> tuple[Stream, torch.Tensor]:
        """The stream, and the normed stream that the MLP reads."""
        return s, self._normed(s.x, visit, norm)

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

    def _normed(self, x: torch.Tensor, visit: Visit, norm: Norm) -> torch.Tensor:
        scale = self.norm_scales[visit.layer]
        return norm(x) if scale == 1.0 else norm(x) * scale

    @staticmethod
    def _with_skip(
        x: torch.Tensor, skip: torch.Tensor, vectors: tuple[torch.Tensor | None, torch.Tensor]
    ) -> torch.Tensor:
        share, factor = vectors
        return (x if share is None else share.to(x.dtype) * x) + factor.to(x.dtype) * skip

    @staticmethod
    def _add(x: torch.Tensor, value: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
        return x + value if scale is None else x + scale.to(x.dtype) * value
