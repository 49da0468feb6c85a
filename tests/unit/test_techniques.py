"""What a technique may declare, what is refused, and what its forward is handed at every site."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from golf.common.errors import ConfigError
from golf.launch.compose.build import build_model, make
from golf.launch.compose.configs import compose_job, composer, resolved
from golf.nn.context import Context
from golf.nn.models.gpt import GPT
from golf.nn.numerics import Numerics
from golf.nn.params import declare
from golf.nn.shape import Shape
from golf.nn.techniques.base import BLOCK_SITES, SITES, Technique, Techniques, chosen_layers
from golf.nn.techniques.smear_gate import SmearGate
from golf.nn.techniques.xsa import XSA

SHAPE = Shape(vocab_size=32, model_dim=16, num_layers=4, num_heads=4, num_kv_heads=2, mlp_mult=2, max_seq_len=12)
IDS = torch.randint(0, 32, (2, 12), generator=torch.Generator().manual_seed(0))


@functools.cache
def config() -> dict[str, Any]:
    sizes = [
        "model.num_layers=4", "model.model_dim=16", "model.num_heads=4", "model.num_kv_heads=2", "train_seq_len=12",
    ]  # fmt: skip
    with composer():
        words = ["recipe=none", "runtime=cpu", "logger=jsonl", *sizes, "tokenizer.vocab_size=32"]
        return resolved(compose_job(words))


def built(**techniques: functools.partial[Technique]) -> GPT:
    """A tiny model with these techniques and random weights."""
    model: GPT = make(config()["model"], "model")(techniques=techniques, compute="float32")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3)
    return model


def technique(at: str, mixing: bool = False, clashes: tuple[str, ...] = (), rank: int = 0) -> type[Technique]:
    """A technique class at a site that notes what it sees and changes nothing, unless it mixes in the token before."""

    class Probe(Technique):
        site = at  # type: ignore[assignment]
        mixes_time = mixing
        conflicts = clashes
        order = rank

        def __init__(self, shape: Shape, layer: int | None = None, weight: float = 0.5) -> None:
            super().__init__(shape, layer)
            self.weight, self.seen = weight, []  # type: ignore[var-annotated]

        def forward(self, value: Any, ctx: Context) -> Any:
            self.seen.append((value, ctx))
            if not mixing:
                return value
            return value + self.weight * torch.cat((torch.zeros_like(value[:, :1]), value[:, :-1]), 1)

    return Probe


def probes(model: GPT) -> list[Any]:
    return [m for m in model.modules() if type(m).__name__ == "Probe"]


# ------------------------------------------------------------------------------------------------ which layers


@pytest.mark.parametrize(
    ("layers", "expected"),
    [("all", [0, 1, 2, 3]), ("last:2", [2, 3]), ("first:1", [0]), ("last:4", [0, 1, 2, 3]), ([2, 0], [0, 2]),
     ([-1], [3]), ([1, 1], [1])],
)  # fmt: skip
def test_chosen_layers(layers, expected):
    assert chosen_layers(layers, 4, "technique.xsa.layers") == expected


@pytest.mark.parametrize("layers", ["last:5", "first:0", "last:x", "middle:2", "some", [4], [0, -5]])
def test_layers_that_do_not_exist_are_refused(layers):
    with pytest.raises(ConfigError, match=r"technique\.xsa\.layers="):
        chosen_layers(layers, 4, "technique.xsa.layers")


def test_xsa_on_more_layers_than_there_are_is_refused():
    words = ["recipe=none", "technique/xsa=last4", "model.num_layers=3", "runtime=cpu", "logger=jsonl"]
    with composer():
        composed = resolved(compose_job(words))
    with pytest.raises(ConfigError, match=r"technique\.xsa\.layers='last:4': the model has 3 layers"):
        build_model(composed, "float32")


def test_a_technique_is_built_for_its_layers_only():
    model = built(xsa=functools.partial(XSA, layers="last:2"))
    assert [len(block.attn.at_heads_out) for block in model.blocks] == [0, 0, 1, 1]
    assert [block.attn.at_heads_out["xsa"].layer for block in model.blocks[2:]] == [2, 3]


# ------------------------------------------------------------------------------------------------ what is refused


def test_layers_for_a_technique_outside_the_layers_are_refused():
    with pytest.raises(ConfigError, match=r"technique\.smear\.layers=last:1: its site post_embed lies outside"):
        Techniques({"smear": functools.partial(SmearGate, layers="last:1")}, SHAPE, Numerics())


def test_conflicting_techniques_are_refused():
    configured = {
        "one": functools.partial(technique("mlp_in", clashes=("two",))),
        "two": functools.partial(technique("mlp_in")),
    }
    with pytest.raises(ConfigError, match="technique/one and technique/two cannot be composed: set one to none"):
        Techniques(configured, SHAPE, Numerics())
    Techniques({**configured, "two": None}, SHAPE, Numerics())


def test_an_unknown_site_is_refused_with_a_near_one():
    with pytest.raises(ConfigError, match=r"technique\.mine: unknown site 'mlp_inn' .*mlp_in"):
        Techniques({"mine": functools.partial(technique("mlp_inn"))}, SHAPE, Numerics())


@pytest.mark.parametrize("wrong", [functools.partial(dict), functools.partial(torch.nn.Linear), XSA(SHAPE, 0)])
def test_what_is_no_technique_is_refused(wrong):
    with pytest.raises(ConfigError, match=r"technique\.mine: its yaml must name a Technique class"):
        Techniques({"mine": wrong}, SHAPE, Numerics())


def test_mixing_time_at_the_logits_is_refused():
    with pytest.raises(ConfigError, match="site logits may not mix time"):
        built(mine=functools.partial(technique("logits", mixing=True)))


def test_a_technique_without_forward_says_so():
    class Empty(Technique):
        site = "mlp_in"

    with pytest.raises(TypeError, match="Empty defines no forward"):
        built(mine=functools.partial(Empty))(IDS)


def test_a_parameter_without_a_role_is_refused():
    class Silent(Technique):
        site = "mlp_in"

        def __init__(self, shape: Shape, layer: int | None = None) -> None:
            super().__init__(shape, layer)
            self.free = torch.nn.Parameter(torch.zeros(3))

    with pytest.raises(ValueError, match=r"at_mlp_in\.mine\.free has no role and place"):
        built(mine=functools.partial(Silent)).specs()


# ------------------------------------------------------------------------------------------------ what forward gets


def test_order_at_a_site_is_rank_then_name():
    configured = {
        "a": functools.partial(technique("mlp_in", rank=5)),
        "c": functools.partial(technique("mlp_in")),
        "b": functools.partial(technique("mlp_in")),
    }
    assert list(Techniques(configured, SHAPE, Numerics()).at("mlp_in", 0)) == ["b", "c", "a"]


VALUES = {
    "qk": ((2, 12, 4, 4), (2, 12, 2, 4)), "v": (2, 12, 2, 4), "heads_out": (2, 12, 4, 4),
    "mlp_hidden": (2, 12, 32), "logits": (2, 12, 32),
}  # fmt: skip


@pytest.mark.parametrize("site", SITES)
def test_every_site_is_visited_with_its_shape(site):
    model = built(mine=functools.partial(technique(site)))
    model(IDS)
    found = probes(model)
    assert len(found) == (4 if site in BLOCK_SITES else 1)
    for probe in found:
        ((value, ctx),) = probe.seen
        shapes = tuple(tuple(v.shape) for v in value) if isinstance(value, tuple) else tuple(value.shape)
        assert shapes == VALUES.get(site, (2, 12, 16))
        assert torch.equal(ctx.ids, IDS)
        assert (ctx.visit is not None and ctx.visit.layer == probe.layer) == (site in BLOCK_SITES)


@pytest.mark.parametrize("site", SITES)
def test_a_technique_that_changes_nothing_changes_nothing(site):
    with_probe = built(mine=functools.partial(technique(site)))
    assert torch.equal(with_probe(IDS), built()(IDS))


@pytest.mark.parametrize("site", [s for s in SITES if s != "post_embed"])
def test_pruning_gives_a_technique_matching_facts(site):
    """Behind the last attention positions may be gone: value, ids and x0 stand at the same ones."""
    model = built(mine=functools.partial(technique(site)))
    model(IDS, score_from=9)
    value, ctx = probes(model)[-1].seen[-1]
    value = value[0] if isinstance(value, tuple) else value
    time = value.shape[1]
    assert time == (12 if site in ("attn_in", "qk", "v") else 3)
    assert torch.equal(ctx.ids, IDS[:, 12 - time :])
    for fact in (ctx.x0, ctx.n, ctx.v):
        assert fact is None or fact.shape[1] == time


@pytest.mark.parametrize(
    "site", ["attn_in", "v", "heads_out", "attn_out", "mlp_in", "mlp_hidden", "mlp_out", "block_out", "pre_head"]
)
def test_what_mixes_time_is_never_pruned_too_early(site):
    model = built(mine=functools.partial(technique(site, mixing=True)))
    assert torch.allclose(model(IDS, score_from=9), model(IDS)[:, 9:], atol=1e-5)


def test_a_technique_on_queries_and_keys_sees_both_whole():
    model = built(mine=functools.partial(technique("qk")))
    assert torch.allclose(model(IDS, score_from=9), model(IDS)[:, 9:], atol=1e-6)
    ((q, k), ctx), _ = probes(model)[-1].seen
    assert q.shape[1] == k.shape[1] == ctx.n.shape[1] == 12
    assert model.blocks[-1].attn.prunes == {"attn.proj"}


def test_what_mixes_time_and_reads_no_borders_cannot_share_a_row():
    assert built(mine=functools.partial(technique("mlp_in"))).cannot_pack is None
    model = built(mine=functools.partial(technique("mlp_in", mixing=True)))
    assert "technique/mine mixes time" in model.cannot_pack


def test_logits_see_the_scored_ids_when_pruning_waits_for_the_head():
    model = built(
        late=functools.partial(technique("pre_head", mixing=True)), mine=functools.partial(technique("logits"))
    )
    model(IDS, score_from=9)
    value, ctx = model.at_logits["mine"].seen[-1]
    assert value.shape[1] == ctx.ids.shape[1] == ctx.x0.shape[1] == 3


# ------------------------------------------------------------------------------------------------ the two of golf's own


def test_xsa_output_is_orthogonal_to_the_own_value():
    y, v = torch.randn(2, 5, 4, 8), torch.randn(2, 5, 2, 8)
    out = XSA(SHAPE, 0)(y, Context(IDS, v=v))
    own = v.repeat_interleave(2, dim=2)  # query head h reads kv head h // 2
    assert (out * own).sum(-1).abs().max() < 1e-5
    assert torch.allclose(
        out, y - (y * own).sum(-1, keepdim=True) / own.square().sum(-1, keepdim=True) * own, atol=1e-5
    )


def test_xsa_survives_a_zero_value():
    y = torch.randn(1, 3, 4, 8)
    assert torch.equal(XSA(SHAPE, 0)(y, Context(IDS, v=torch.zeros(1, 3, 2, 8))), y)


def test_smear_gate_ends():
    """θ → −∞ leaves the embedding as it is, θ → ∞ shifts it by one."""
    e = torch.randn(2, 6, 16)
    assert torch.allclose(SmearGate(SHAPE, gate_init=-200.0)(e, Context(IDS)), e)
    shifted = SmearGate(SHAPE, gate_init=200.0)(e, Context(IDS))
    assert torch.allclose(shifted[:, 1:], e[:, :-1])
    assert shifted[:, 0].count_nonzero() == 0


def test_a_technique_declares_role_and_place():
    class Gate(Technique):
        site = "attn_out"

        def __init__(self, shape: Shape, layer: int | None = None) -> None:
            super().__init__(shape, layer)
            declare(self, "gate", torch.ones(shape.model_dim), role="gate", place="attn.out_gate", layer=layer)

        def forward(self, value: torch.Tensor, ctx: Context) -> torch.Tensor:
            return value * self.gate

    specs = built(mine=functools.partial(Gate, layers=[1])).specs()
    found = {name: spec for name, spec in specs.items() if spec.role == "gate"}
    assert [(name, spec.place, spec.layer) for name, spec in found.items()] == [
        ("blocks.1.at_attn_out.mine.gate", "attn.out_gate", 1)
    ]


def test_numerics_negative_epsilon_is_refused():
    with pytest.raises(ConfigError, match="norm_eps"):
        Numerics(norm_eps=-1.0)
