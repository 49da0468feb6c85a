"""Starting values: the same seed gives the same model, and each option what it says."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch

from golf.common.errors import ConfigError
from golf.nn.context import Context
from golf.nn.linear import Linear
from golf.nn.models.attention import CausalAttention
from golf.nn.models.gpt import GPT
from golf.nn.models.head import Head
from golf.nn.models.init import Init
from golf.nn.models.mlp import SquaredMLP
from golf.nn.models.position import Rope
from golf.nn.models.residual import Residual, Straight
from golf.nn.numerics import Numerics
from golf.nn.shape import Shape
from golf.nn.techniques.base import Technique

LAYERS = 3


def started(
    init: Init, seed: int = 1, dim: int = 64, compute: str = "float32", techniques: Any = None, **numerics: Any
) -> dict[str, torch.Tensor]:
    model = GPT(
        vocab_size=50, model_dim=dim, num_layers=LAYERS, num_heads=4, num_kv_heads=2, mlp_mult=2, max_seq_len=8,
        attention=CausalAttention, mlp=SquaredMLP, position=Rope, residual=Residual, plan=Straight, head=Head,
        init=init, numerics=Numerics(**numerics), compute=compute, techniques=techniques,  # type: ignore[arg-type]
    )  # fmt: skip
    model.initialize(seed)
    return model.state_dict()


def matrices(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if name.startswith("blocks") and value.ndim == 2}


def writes(name: str) -> bool:
    return name.endswith(("attn.proj.weight", "mlp.down.weight"))


@pytest.mark.parametrize("kind", ["uniform", "orthogonal"])
def test_a_seed_gives_one_model(kind):
    one, same, other = (started(Init(matrices=kind, projections="plain"), seed) for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in matrices(one))


def test_another_matrix_leaves_the_others_as_they_were():
    """An ablation of a technique with a matrix of its own starts from the same values everywhere else."""

    class Extra(Technique):
        site = "attn_in"

        def __init__(self, shape: Shape, layer: int | None = None) -> None:
            super().__init__(shape, layer)
            self.extra = Linear(shape.model_dim, 4, Numerics(), place="mine", layer=layer)

        def forward(self, value: Any, ctx: Context) -> Any:
            return value

    for kind in ("uniform", "orthogonal"):
        bare = started(Init(matrices=kind, projections="plain"))
        more = started(Init(matrices=kind, projections="plain"), techniques={"mine": functools.partial(Extra)})
        assert len(more) == len(bare) + LAYERS
        assert all(torch.equal(value, more[name]) for name, value in bare.items())


def test_draws_in_order_are_those_of_one_generator():
    first = started(Init(projections="plain", draws="in_order"))["blocks.0.attn.q.weight"]
    generator = torch.Generator().manual_seed(1)
    torch.empty(50, 64).normal_(generator=generator)
    assert torch.equal(first, torch.empty(64, 64).uniform_(-1 / 8, 1 / 8, generator=generator))


def test_the_global_generator_is_neither_read_nor_moved():
    torch.manual_seed(5)
    one = started(Init(matrices="orthogonal"))
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    torch.manual_seed(6)
    assert all(torch.equal(value, one[name]) for name, value in started(Init(matrices="orthogonal")).items())


def test_uniform_matrices_stay_within_their_bound():
    for name, value in matrices(started(Init(projections="plain"))).items():
        bound = 1 / math.sqrt(value.shape[1])
        assert value.abs().max() <= bound, name
        assert float(value.std()) == pytest.approx(bound / math.sqrt(3), rel=0.1), name


@pytest.mark.parametrize("std", [0.005, 0.1])
def test_embedding_std(std):
    assert float(started(Init(embed_std=std))["embedding"].std()) == pytest.approx(std, rel=0.1)


def test_projections_into_the_stream_start_at_zero():
    for kind in ("uniform", "orthogonal"):
        for name, value in matrices(started(Init(matrices=kind))).items():
            assert (value.count_nonzero() == 0) == writes(name), name


@pytest.mark.parametrize(("projections", "scale"), [("plain", 1.0), ("scaled", 1 / math.sqrt(2 * LAYERS))])
def test_orthogonal_matrices(projections, scale):
    for name, value in matrices(started(Init(matrices="orthogonal", projections=projections))).items():
        if min(value.shape) < 64:
            continue
        gram = value @ value.T if value.shape[0] <= value.shape[1] else value.T @ value
        expected = scale**2 if writes(name) else 1.0
        assert torch.allclose(gram, expected * torch.eye(len(gram)), atol=1e-5), name


def test_small_matrices_are_not_orthogonalized():
    """Keys and values of 32 rows keep their uniform draw; what writes into the stream starts at zero unless plain."""
    uniform = started(Init(projections="plain"))
    state = started(Init(matrices="orthogonal", projections="scaled"))
    assert torch.equal(state["blocks.0.attn.k.weight"], uniform["blocks.0.attn.k.weight"])
    tiny = started(Init(matrices="orthogonal", projections="scaled"), dim=32)
    assert tiny["blocks.0.attn.proj.weight"].count_nonzero() == 0


def test_bf16_values_under_bf16_compute():
    rounded, free = (
        started(Init(), compute="bfloat16", round_init=on)["blocks.0.attn.q.weight"] for on in (True, False)
    )
    assert rounded.dtype == free.dtype == torch.float32
    assert torch.equal(rounded, free.bfloat16().float())
    assert not torch.equal(rounded, free)


@pytest.mark.parametrize("std", [0.0, -1.0])
def test_a_std_out_of_range_is_refused(std):
    with pytest.raises(ConfigError, match=r"model\.init\.embed_std="):
        Init(embed_std=std)


def test_uniform_projections_may_be_scaled_too():
    plain, scaled = (started(Init(projections=kind))["blocks.0.mlp.down.weight"] for kind in ("plain", "scaled"))
    assert torch.allclose(scaled, plain / math.sqrt(2 * LAYERS))
