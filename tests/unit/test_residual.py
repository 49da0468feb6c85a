"""Residual slots against their formulas in plain float64: gated skips, norms scaled by depth, two lanes; in loops."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from golf.common.errors import ConfigError
from golf.nn.context import Visit
from golf.nn.models.gpt import numbered
from golf.nn.models.lanes import TwoLane
from golf.nn.models.residual import Loop, Residual, Straight
from golf.nn.shape import Shape

DIM, LAYERS = 8, 5
SHAPE = Shape(
    vocab_size=16, model_dim=DIM, num_layers=LAYERS, num_heads=2, num_kv_heads=1, mlp_mult=2, max_seq_len=8
)  # fmt: skip
PLANS = {"straight": Straight(LAYERS), "loop": Loop(LAYERS, first=1, last=2, passes=3)}
DRAWN = torch.Generator().manual_seed(3)
X = torch.randn(2, 6, DIM, dtype=torch.float64, generator=DRAWN)
MATRICES = torch.randn(2, LAYERS, DIM, DIM, dtype=torch.float64, generator=DRAWN)


def norm(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def attention(n: Tensor, layer: int) -> Tensor:
    return torch.tanh(n @ MATRICES[0, layer])


def mlp(n: Tensor, layer: int) -> Tensor:
    return torch.sin(n @ MATRICES[1, layer])


def made(kind: type[Residual], plan: str, **settings: Any) -> Residual:
    """In float64, with random vectors."""
    residual = kind(SHAPE, numbered(PLANS[plan].visits), **settings).double()
    with torch.no_grad():
        for parameter in residual.parameters():
            parameter.normal_(0.5, 0.5, generator=torch.Generator().manual_seed(parameter.numel()))
    return residual


def run(residual: Residual, visits: list[Visit], prune: int = 0, at_block_out: Any = None) -> Tensor:
    """What a model's forward does with its residual; the last visit prunes."""
    s: Any = residual.start(X)
    for visit in visits:
        s = residual.skip_pop(s, visit)
        s, n = residual.attn_in(s, visit, norm)
        a = attention(n, visit.layer)
        if prune and visit is visits[-1]:
            s, a = residual.prune(s, prune), a[:, prune:]
        s = residual.attn_add(s, a, visit)
        s, n = residual.mlp_in(s, visit, norm)
        s = residual.mlp_add(s, mlp(n, visit.layer), visit)
        if at_block_out:
            s = residual.replace(s, at_block_out(residual.finish(s)))
        s = residual.skip_push(s, visit)
    return residual.finish(s)


def plainly(residual: Residual, order: list[int], gated: bool, by_depth: bool, lanes: set[int]) -> Tensor:
    """The same, written out for one model: encoder and decoder, lanes in some layers."""
    half, u, w = len(order) // 2, X, X
    kept: list[Tensor] = []
    for number, i in enumerate(order):
        if i not in lanes:
            u = w = (u + w) / 2
        if half <= number < 2 * half:
            row = number - half
            weight, skip = residual.skip_weights[row], kept.pop()
            if gated:
                g = 1 / (1 + torch.exp(-residual.skip_gates[row]))
                u = g * u + (1 - g) * (weight * skip)
            else:
                u = u + weight * skip
        s = (i + 1) ** -0.5 if by_depth else 1.0
        vectors = residual.vectors[i]
        mixed = vectors.mix[0] * u + vectors.mix[1] * X
        a = vectors.attn_scale * attention(norm(mixed) * s, i)
        if i in lanes:
            (r_u, a_u, b_u), (r_w, a_w, b_w) = vectors.routes
            b = vectors.mlp_scale * mlp(norm(w) * s, i)
            u, w = r_u * u + a_u * a + b_u * b, r_w * w + a_w * a + b_w * b
        else:
            u = mixed + a
            u = w = u + vectors.mlp_scale * mlp(norm(u) * s, i)
        if number < half:
            kept.append((u + w) / 2)
    return (u + w) / 2


KINDS = {
    "unet": (Residual, {}),
    "gated": (Residual, {"skip_gates": True}),
    "by depth": (Residual, {"norm_scale": "depth"}),
    "two lanes": (TwoLane, {"lanes": "last:2"}),
    "two lanes, gated, by depth": (TwoLane, {"lanes": "last:2", "skip_gates": True, "norm_scale": "depth"}),
    "two lanes everywhere": (TwoLane, {"lanes": "all", "skip_gates": True}),
    "lanes that meet again": (TwoLane, {"lanes": [0, 2, 4], "skip_gates": True}),
}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", KINDS)
def test_a_residual_is_its_formula(name: str, plan: str) -> None:
    kind, settings = KINDS[name]
    residual, visits = made(kind, plan, **settings), numbered(PLANS[plan].visits)
    lanes = set(getattr(residual, "two_lane", ()))
    want = plainly(
        residual, [v.layer for v in visits], "skip_gates" in settings, "norm_scale" in settings, lanes
    )  # fmt: skip
    torch.testing.assert_close(run(residual, visits), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", KINDS)
def test_what_is_pruned_is_left_out_and_no_more(name: str) -> None:
    kind, settings = KINDS[name]
    residual, visits = made(kind, "loop", **settings), numbered(PLANS["loop"].visits)
    torch.testing.assert_close(run(residual, visits, prune=4), run(residual, visits)[:, 4:], rtol=1e-12, atol=1e-12)


def test_a_technique_behind_a_layer_moves_the_mean_of_its_lanes() -> None:
    residual, visit = made(TwoLane, "straight", lanes="all"), Visit(0, 0, of=LAYERS)
    s: Any = residual.skip_pop(residual.start(X), visit)
    s = residual.mlp_add(residual.attn_add(s, attention(X, 0), visit), mlp(X, 0), visit)
    moved = residual.replace(s, 2 * residual.finish(s))
    torch.testing.assert_close(residual.finish(moved), 2 * residual.finish(s))
    torch.testing.assert_close(moved.u - moved.w, s.u - s.w)


def test_new_vectors_begin_where_they_are_said_to() -> None:
    residual = TwoLane(SHAPE, numbered(PLANS["loop"].visits), skip_gates=True, lanes=[-1])
    assert residual.skip_gates is not None
    assert residual.skip_gates.shape == (4, DIM)
    assert not residual.skip_gates.any()
    assert [hasattr(vectors, "routes") for vectors in residual.vectors] == [False] * 4 + [True]
    torch.testing.assert_close(residual.vectors[4].routes.data, torch.tensor([[1.1, 1.0, 1.0]] * 2))


def test_three_passes_of_layers_3_to_5_pair_eight_skips() -> None:
    """Eleven layers: the encoder is 0 1 2 3 4 5 3 4, the decoder 5 3 4 5 6 7 8 9 10."""
    visits = numbered(Loop(11, first=3, last=5, passes=3).visits)
    residual = Residual(SHAPE, visits, skip_gates=True)
    pushing = [visit.layer for visit in visits if residual.pushes(visit)]
    popping = [visit.layer for visit in visits if residual.skip_vectors(visit) is not None]
    assert pushing == [0, 1, 2, 3, 4, 5, 3, 4]
    assert popping == [5, 3, 4, 5, 6, 7, 8, 9]
    assert [visit.layer for visit in visits[8:]] == [5, 3, 4, 5, 6, 7, 8, 9, 10]
    straight = numbered(Straight(11).visits)
    assert [v.layer for v in straight if residual.pushes(v)] == [0, 1, 2, 3, 4]
    assert [v.layer for v in straight if residual.skip_vectors(v) is not None] == [5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("make", "told"),
    [(functools.partial(Residual, skips=False, skip_gates=True), r"model\.residual\.skip_gates=true: .*skips=true"),
     (functools.partial(Residual, norm_scale="depths"), r"model\.residual\.norm_scale=depths: choices are none, depth"),
     (functools.partial(TwoLane, lanes="last:6"), r"model\.residual\.lanes='last:6': the model has 5 layers")],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused(make: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        make(SHAPE, PLANS["straight"].visits)
