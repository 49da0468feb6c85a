"""The transformer as a whole: sizes that are refused, what a forward returns, plans, skips, and its declared facts."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from golf.common.errors import ConfigError
from golf.nn.attend import backend, sdpa
from golf.nn.models.attention import CausalAttention
from golf.nn.models.gpt import GPT
from golf.nn.models.head import Head
from golf.nn.models.init import Init
from golf.nn.models.mlp import GatedMLP, SquaredMLP
from golf.nn.models.position import NoPosition, Rope
from golf.nn.models.residual import Loop, Residual, Straight
from golf.nn.numerics import Numerics
from golf.nn.params import declare, param_specs
from golf.nn.shape import Shape

SIZES = {
    "vocab_size": 40, "model_dim": 16, "num_layers": 5, "num_heads": 4, "num_kv_heads": 2, "mlp_mult": 2,
    "max_seq_len": 12,
}  # fmt: skip
SHAPE = Shape(**SIZES)
IDS = torch.randint(0, 40, (3, 12), generator=torch.Generator().manual_seed(0))
TARGETS = IDS.roll(-1, 1)


def built(compute: str = "float32", numerics: Numerics | None = None, **parts: Any) -> GPT:
    """A tiny GPT of golf's default slots with random weights; `parts` replaces slots and sizes."""
    slots = {
        "attention": CausalAttention, "mlp": SquaredMLP, "position": Rope, "residual": Residual, "plan": Straight,
        "head": Head, "init": Init(), "numerics": numerics or Numerics(),
    }  # fmt: skip
    model = GPT(**{**SIZES, **slots, **parts}, compute=compute)  # type: ignore[arg-type]
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3)
    return model


# ------------------------------------------------------------------------------------------------ sizes


@pytest.mark.parametrize("key", SIZES)
def test_sizes_must_be_positive(key):
    with pytest.raises(ConfigError, match=rf"model\.{key}=0: must be positive"):
        Shape(**{**SIZES, key: 0})


@pytest.mark.parametrize(
    ("sizes", "message"),
    [({"num_heads": 3, "num_kv_heads": 3}, r"model\.model_dim=16 does not divide into model\.num_heads=3"),
     ({"num_kv_heads": 3}, r"model\.num_heads=4 is not a multiple of model\.num_kv_heads=3"),
     ({"model_dim": 12}, r"model\.model_dim=12 over model\.num_heads=4 gives heads of 3")],
)  # fmt: skip
def test_sizes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(ConfigError, match=message):
        Shape(**{**SIZES, **sizes})


def test_derived_sizes():
    assert (SHAPE.head_dim, SHAPE.kv_dim, SHAPE.mlp_dim) == (4, 8, 32)
    assert Shape(**{**SIZES, "mlp_mult": 2.5}).mlp_dim == 40


@pytest.mark.parametrize(
    ("part", "message"),
    [(lambda: Head(SHAPE, Numerics(), softcap=0.0), r"model\.head\.softcap=0\.0"),
     (lambda: Rope(SHAPE, Numerics(), base=1.0), r"model\.position\.base=1\.0"),
     (lambda: Rope(SHAPE, Numerics(), dims=3), r"model\.position\.dims=3"),
     (lambda: Rope(SHAPE, Numerics(), dims=6), r"model\.position\.dims=6.*head size 4"),
     (lambda: built(mlp=functools.partial(SquaredMLP, negative_slope=1.0)), r"model\.mlp\.negative_slope=1\.0"),
     (lambda: Loop(5, first=3, last=5), r"model\.plan\.first=3, model\.plan\.last=5"),
     (lambda: Loop(5, first=1, last=2, passes=0), r"model\.plan\.passes=0"),
     (lambda: backend("sdpaa"), r"model\.attention\.backend=sdpaa: choices are")],
)  # fmt: skip
def test_settings_out_of_range_are_refused(part, message):
    with pytest.raises(ConfigError, match=message):
        part()


def test_a_window_longer_than_the_position_tables_is_refused():
    with pytest.raises(ConfigError, match=r"window of 13 tokens is longer than the position tables \(12\)"):
        built()(torch.zeros(1, 13, dtype=torch.long))


def test_windows_may_be_shorter():
    model = built()
    assert torch.allclose(model(IDS[:, :5]), model(IDS)[:, :5], atol=1e-5)


# ------------------------------------------------------------------------------------------------ one forward


def test_loss_is_the_cross_entropy_of_the_logits():
    model = built()
    logits = model(IDS).detach()
    nll = F.cross_entropy(logits.flatten(0, 1), TARGETS.flatten(), reduction="none").view(3, 12)
    assert logits.dtype == torch.float32
    assert torch.equal(model(IDS, TARGETS, reduction="none").detach(), nll)
    assert float(model(IDS, TARGETS).detach()) == pytest.approx(float(nll.mean()), rel=1e-6)
    assert float(model(IDS, TARGETS, reduction="sum").detach()) == pytest.approx(float(nll.sum()), rel=1e-6)


def test_targets_of_the_scored_positions_alone_say_where_to_begin():
    model = built()
    whole = model(IDS, TARGETS, reduction="none", score_from=8)
    assert torch.equal(model(IDS, TARGETS[:, 8:], reduction="none"), whole)
    assert torch.equal(model(IDS, TARGETS[:, 8:]), whole.mean())


def test_softcap_bounds_the_logits():
    model = built(head=functools.partial(Head, softcap=2.0))
    free = built(head=functools.partial(Head, softcap=None))
    assert model(IDS).abs().max() <= 2.0
    assert torch.allclose(model(IDS), 2.0 * torch.tanh(free(IDS) / 2.0), atol=1e-6)


def test_an_untied_head_has_a_matrix_of_its_own_that_starts_at_zero():
    model = GPT(
        **SIZES, attention=CausalAttention, mlp=SquaredMLP, position=Rope, residual=Residual, plan=Straight,
        head=functools.partial(Head, tied=False), init=Init(), numerics=Numerics(),
    )  # fmt: skip
    model.initialize(3)
    assert not model.tied
    assert model.specs()["head.weight"].role == "head"
    assert model(IDS).count_nonzero() == 0


def test_grouped_heads_equal_repeated_ones():
    """Query head h attends with kv head h // (H / Hkv)."""
    grouped = built()
    full = built(num_kv_heads=4)
    state = grouped.state_dict()
    for name in [n for n in state if n.endswith(("attn.k.weight", "attn.v.weight"))]:
        state[name] = state[name].view(2, 4, 16).repeat_interleave(2, dim=0).reshape(16, 16)
    full.load_state_dict(state)
    assert torch.allclose(full(IDS), grouped(IDS), atol=1e-5)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_fewer_queries_than_keys_stand_at_the_last_positions(kv_heads):
    q, k, v = (
        torch.randn(2, 12, heads, 8, generator=torch.Generator().manual_seed(heads))
        for heads in (4, kv_heads, kv_heads)
    )
    whole = sdpa(q, k, v)
    for first in (0, 1, 7, 11):
        assert torch.allclose(sdpa(q[:, first:], k, v), whole[:, first:], atol=1e-6)


def test_a_pruned_forward_is_one_graph():
    model = built().eval()
    run = torch.compile(model, backend="eager", fullgraph=True, dynamic=False)
    with torch.no_grad():
        assert torch.allclose(run(IDS, score_from=8), model(IDS)[:, 8:], atol=1e-6)


def test_positions_matter_only_with_rotation():
    """Without positions a prefix's order does not reach the last prediction of a one-layer model."""
    swapped = IDS.clone()
    swapped[:, [2, 5]] = swapped[:, [5, 2]]
    for position, same in ((NoPosition, True), (Rope, False)):
        model = built(position=position, num_layers=1, residual=functools.partial(Residual, skips=False))
        assert torch.allclose(model(IDS)[:, -1], model(swapped)[:, -1], atol=1e-5) == same


def test_rotation_keeps_norms_and_relative_angles():
    rope = Rope(SHAPE, Numerics())
    x = torch.randn(1, 12, 2, 4)
    assert torch.allclose(rope(x).norm(dim=-1), x.norm(dim=-1), atol=1e-5)
    q, k = rope(torch.ones(1, 12, 1, 4)), rope(torch.ones(1, 12, 1, 4))
    products = q[0, :, 0] @ k[0, :, 0].T
    assert torch.allclose(products[3, 1], products[9, 7], atol=1e-5)


def test_partial_rotation_leaves_the_rest_alone():
    x = torch.randn(1, 12, 2, 4)
    turned = Rope(SHAPE, Numerics(), dims=2)(x)
    assert torch.equal(turned[..., 2:], x[..., 2:])
    assert not torch.equal(turned[..., :2], x[..., :2])


# ------------------------------------------------------------------------------------------------ plan and residual


def visits(plan: Any) -> list[tuple[int, int, int]]:
    return [(v.layer, v.virtual, v.pass_) for v in plan.visits]


def test_straight_plan():
    assert visits(Straight(3)) == [(0, 0, 0), (1, 1, 0), (2, 2, 0)]


def test_loop_plan():
    expected = [(0, 0, 0), (1, 1, 0), (2, 2, 0), (1, 3, 1), (2, 4, 1), (3, 5, 0)]
    assert visits(Loop(4, first=1, last=2, passes=2)) == expected


def test_a_loop_of_one_pass_is_straight():
    assert visits(Loop(4, first=1, last=2, passes=1)) == visits(Straight(4))


def test_a_looped_layer_equals_its_copies():
    plain = functools.partial(Residual, x0_mix=False, scales=False, skips=False)
    looped = built(plan=functools.partial(Loop, first=1, last=1, passes=3), num_layers=3, residual=plain)
    unrolled = built(num_layers=5, residual=plain)
    state, source = unrolled.state_dict(), looped.state_dict()
    for name in state:
        parts = name.split(".")
        if parts[0] == "blocks":
            parts[1] = {"0": "0", "4": "2"}.get(parts[1], "1")
        state[name] = source[".".join(parts)]
    unrolled.load_state_dict(state)
    assert torch.allclose(looped(IDS), unrolled(IDS), atol=1e-5)
    assert looped.flops_per_token(6) == unrolled.flops_per_token(6)


@pytest.mark.parametrize(("num_layers", "skips"), [(4, 2), (5, 2), (1, 0)])
def test_skips_are_half_the_visits(num_layers, skips):
    state = built(num_layers=num_layers).state_dict()
    assert state["residual.skip_weights"].shape == (skips, 16) if skips else "residual.skip_weights" not in state


def test_skips_pair_first_with_last():
    """Of six layers 3, 4, 5 take the outputs of 2, 1, 0."""
    model = built(num_layers=6)
    pushed: list[torch.Tensor] = []
    popped: list[torch.Tensor] = []
    residual: Any = model.residual
    push, pop = residual.skip_push, residual.skip_pop

    def watch_push(s: Any, visit: Any) -> Any:
        after = push(s, visit)
        pushed.extend(after.skips[len(s.skips) :])
        return after

    def watch_pop(s: Any, visit: Any) -> Any:
        after = pop(s, visit)
        if len(after.skips) < len(s.skips):
            popped.append(s.skips[-1])
            assert torch.allclose(after.x, s.x + model.residual.skip_weights[visit.virtual - 3] * s.skips[-1])
        return after

    residual.skip_push, residual.skip_pop = watch_push, watch_pop
    model(IDS)
    assert [id(t) for t in popped] == [id(t) for t in reversed(pushed)]
    assert len(popped) == 3


def test_neutral_vectors_change_nothing():
    """Mix (1, 0), scales 1 and skip weights 0 give the plain residual."""
    fancy = built()
    plain = built(residual=functools.partial(Residual, x0_mix=False, scales=False, skips=False))
    with torch.no_grad():
        for name, parameter in fancy.named_parameters():
            if name.endswith("scale"):
                parameter.fill_(1.0)
            if name.endswith("mix"):
                parameter.copy_(torch.tensor([[1.0], [0.0]]).expand_as(parameter))
            if name.endswith("skip_weights"):
                parameter.zero_()
    plain.load_state_dict({name: value for name, value in fancy.state_dict().items() if "residual" not in name})
    assert torch.allclose(fancy(IDS), plain(IDS), atol=1e-6)


# ------------------------------------------------------------------------------------------------ numerics


@pytest.mark.parametrize(("stream", "dtype"), [("compute", torch.bfloat16), ("float32", torch.float32)])
def test_dtype_of_the_residual_stream(stream, dtype):
    model = built("bfloat16", Numerics(stream=stream, norm_eps_low=2.0**-7))
    seen: list[torch.dtype] = []
    residual: Any = model.residual
    finish = residual.finish
    residual.finish = lambda s: seen.append(s.x.dtype) or finish(s)
    assert model(IDS).dtype == torch.float32
    assert seen == [dtype]
    assert model.embedding.dtype == torch.bfloat16


def test_epsilon_follows_the_input_dtype():
    numerics = Numerics(norm_eps=0.0, norm_eps_low=1.0, stream="float32")
    x = torch.full((4,), 2.0)
    assert numerics.norm(x).tolist() == pytest.approx([1.0] * 4)
    assert numerics.norm(x.bfloat16()).tolist() == pytest.approx([2 / 5**0.5] * 4)


@pytest.mark.parametrize("stream", ["compute", "float32"])
def test_embedding_may_be_kept_in_float32(stream):
    """A stream of the compute dtype begins with its rounded values, one of float32 with what is stored."""
    model = built("bfloat16", Numerics(embed="float32", stream=stream))
    begun: list[torch.Tensor] = []
    residual: Any = model.residual
    start = residual.start
    residual.start = lambda x: begun.append(x) or start(x)
    model(IDS)
    rows = model.embedding[IDS]
    assert rows.dtype == torch.float32
    assert torch.equal(begun[0], model.numerics.norm(rows.bfloat16() if stream == "compute" else rows))


def test_bf16_stays_near_float32():
    wide, narrow = built(), built("bfloat16")
    narrow.load_state_dict(wide.state_dict())
    assert float(narrow(IDS, TARGETS).detach()) == pytest.approx(float(wide(IDS, TARGETS).detach()), rel=0.03)


# ------------------------------------------------------------------------------------------------ declared facts


def test_every_parameter_has_role_place_and_layer():
    model = built(mlp=GatedMLP)
    specs = model.specs()
    assert specs.keys() == dict(model.named_parameters()).keys()
    assert {s.role for s in specs.values()} == {"matrix", "embed", "scalar"}
    assert specs["blocks.3.mlp.gate.weight"].place == "mlp.gate"
    assert all((s.layer is None) == (n in ("embedding", "residual.skip_weights")) for n, s in specs.items())
    assert specs["residual.layers.4.mix"].layer == 4


def test_an_unknown_role_is_refused():
    with pytest.raises(ValueError, match=r"role 'weights' of mlp\.up is none of"):
        declare(torch.nn.Module(), "w", torch.zeros(2), role="weights", place="mlp.up")  # type: ignore[arg-type]


def test_an_undeclared_parameter_is_refused():
    with pytest.raises(ValueError, match=r"parameter weight has no role and place"):
        param_specs(torch.nn.Linear(2, 2, bias=False))


def test_gated_mlp_has_the_size_of_a_plain_one():
    plain, gated = built(model_dim=96), built(model_dim=96, mlp=GatedMLP)
    sizes = [sum(p.numel() for p in m.blocks[0].mlp.parameters()) for m in (plain, gated)]
    assert sizes[0] == sizes[1] == 2 * 96 * 192


def test_flops_count_matrices_head_and_attention():
    matrices = 5 * (16 * 16 * 2 + 2 * 8 * 16 + 2 * 16 * 32)
    assert built().flops_per_token(6) == 6 * matrices + 6 * 40 * 16 + 3 * 4 * 6 * 16 * 5


def forward_flops(model: GPT, score_from: int) -> int:
    """Multiplications and additions of matrix products that torch counts in one forward of one window."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(IDS[:1], score_from=score_from)
    return counter.get_total_flops()


@pytest.mark.parametrize("score_from", [0, 1, 7, 11])
def test_window_flops_are_those_of_the_forward(score_from):
    """Torch counts the masked half of the attention as well."""
    model = built(num_kv_heads=4)
    asked = 4 * [12] + [12 - score_from]
    pairs = [12 * 13 // 2] * 4 + [12 * 13 // 2 - score_from * (score_from + 1) // 2]
    masked = 4 * 16 * sum(queries * 12 - seen for queries, seen in zip(asked, pairs, strict=True))
    assert model.window_flops(12, score_from) + masked == forward_flops(model, score_from)


def test_the_model_is_built_on_the_meta_device_too():
    with torch.device("meta"):
        model = GPT(
            **SIZES, attention=CausalAttention, mlp=SquaredMLP, position=Rope, residual=Residual, plan=Straight,
            head=Head, init=Init(), numerics=Numerics(),
        )  # fmt: skip
    assert all(p.is_meta for p in model.parameters())
