"""Rounding, packing, policy and bit allocation."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from golf.common.errors import ArtifactError, ConfigError
from golf.nn.params import ParamSpec
from golf.quant.allocation import GradientGuidedBits, bits_by_rank
from golf.quant.entry import Entry, dequantize, pack_bits, packed_size, unpack_bits
from golf.quant.rounding import (
    CLIP_PERCENTILE,
    FakeQuantizer,
    _two_largest,
    clip_values,
    fake_quantize,
    fake_quantize_ste,
)
from golf.quant.rowwise import RowQuantizer, match_place

MATRIX = ParamSpec("matrix", "mlp.up", 0)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def one(quantizer: RowQuantizer, tensor: torch.Tensor, spec: ParamSpec = MATRIX) -> Entry:
    return quantizer.quantize({"w": tensor}, {"w": spec})["w"]


# --------------------------------------------------------------------------------------------------------- clip


@pytest.mark.parametrize("percentile", [CLIP_PERCENTILE, 0.9995, 0.5, 1.0, 1e-6])
@pytest.mark.parametrize("columns", [1, 2, 3, 96, 512, 1536, 40_000])
def test_clip_is_torch_quantile_bit_for_bit(columns, percentile):
    magnitudes = normal(9, columns).abs()
    expected = torch.quantile(magnitudes, percentile, dim=1)
    assert torch.equal(clip_values(magnitudes, percentile), expected)


def test_clip_of_one_large_vector_is_torch_quantile_bit_for_bit():
    magnitudes = normal(3_000_001).abs()  # the percentile lies under the five largest here
    assert torch.equal(clip_values(magnitudes, CLIP_PERCENTILE), torch.quantile(magnitudes, CLIP_PERCENTILE))


@pytest.mark.parametrize("columns", [2, 5, 512])
def test_the_two_largest_are_those_of_a_sort(columns):
    magnitudes = torch.cat([normal(9, columns).abs(), torch.zeros(1, columns), normal(3, columns).abs().round()])
    assert torch.equal(_two_largest(magnitudes), magnitudes.topk(2).values)


# ------------------------------------------------------------------------------------------------------ packing


@given(st.integers(2, 8), st.data())
def test_packing_gives_the_integers_back_in_the_fewest_bytes(bits, data):
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    values = torch.tensor(data.draw(st.lists(st.integers(low, high), max_size=70)), dtype=torch.int8)
    stream = pack_bits(values, bits)
    assert stream.numel() == packed_size(values.numel(), bits)
    assert torch.equal(unpack_bits(stream, bits, values.numel()), values)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7])
def test_packed_and_byte_storage_hold_the_same_values(bits):
    weight = normal(5, 37)
    packed = one(RowQuantizer(bits=bits, pack=True, passthrough_numel=0), weight)
    plain = one(RowQuantizer(bits=bits, pack=False, passthrough_numel=0), weight)
    assert (packed.packed, packed.parts["q"].numel()) == (True, -(-5 * 37 * bits // 8))
    assert torch.equal(dequantize(packed), dequantize(plain))


def test_eight_bits_are_never_packed():
    assert not one(RowQuantizer(bits=8, pack=True, passthrough_numel=0), normal(4, 4)).packed


# ------------------------------------------------------------------------------------------------- row rounding


@given(st.integers(2, 8), st.booleans(), st.floats(1e-3, 1e3), st.integers(0, 99))
def test_error_is_at_most_half_a_step_and_the_scale_rounding(bits, floor, size, seed):
    weight = normal(6, 50, seed=seed) * size
    entry = one(RowQuantizer(bits=bits, scale_floor=floor, passthrough_numel=0, clip_percentile=1.0), weight)
    step = entry.parts["scale"].float()[:, None]
    subnormal = (2 ** (bits - 1) - 1) * 2**-25  # below 2^-14 a float16 scale is off by up to half of 2^-24
    allowed = step * 0.501 + weight.abs() * 2**-10 + subnormal + 2**-23
    assert ((dequantize(entry) - weight).abs() <= allowed).all()


def test_scale_floor_gives_small_rows_one_common_grid():
    entry = one(RowQuantizer(bits=6, passthrough_numel=0), normal(8, 64) * 0.01)
    assert entry.parts["scale"].unique().tolist() == [torch.tensor(1 / 31).half().item()]


def test_without_the_floor_small_rows_use_every_level():
    weight = normal(8, 64) * 0.01
    fine = one(RowQuantizer(bits=6, scale_floor=False, passthrough_numel=0), weight)
    assert fine.parts["q"].abs().amax(1).tolist() == [31] * 8


@pytest.mark.parametrize("floor", [True, False])
def test_rows_of_zeros_stay_zero(floor):
    assert not dequantize(one(RowQuantizer(scale_floor=floor, passthrough_numel=0), torch.zeros(3, 5))).any()


@pytest.mark.parametrize("shape", [(24,), (2, 3, 4), ()])
def test_other_shapes_get_one_scale(shape):
    weight = normal(24)[: torch.Size(shape).numel()].reshape(shape) + 3
    entry = one(RowQuantizer(passthrough_numel=0), weight)
    assert (entry.scheme, entry.parts["scale"].dtype, entry.parts["scale"].shape) == ("per_tensor", torch.float32, ())
    assert torch.allclose(dequantize(entry), weight, atol=float(entry.parts["scale"]) * 0.51)


def test_a_tensor_of_zeros_has_scale_one():
    assert one(RowQuantizer(passthrough_numel=0), torch.zeros(70)).parts["scale"].item() == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_original_dtype_comes_back(dtype):
    assert dequantize(one(RowQuantizer(passthrough_numel=0), normal(4, 4).to(dtype))).dtype == dtype


def test_quantizing_does_not_touch_or_share_the_weights():
    weight = normal(4, 4)
    before = weight.clone()
    entry = one(RowQuantizer(keep={"mlp.*": "float32"}), weight)
    weight.zero_()
    assert torch.equal(dequantize(entry), before)


# ------------------------------------------------------------------------------------------------------- policy


@pytest.mark.parametrize(
    ("role", "dtype"), [("scalar", torch.float32), ("gate", torch.float16), ("matrix", torch.float16)]
)
def test_small_tensors_are_kept_by_role(role, dtype):
    entry = one(RowQuantizer(), normal(256, 256), ParamSpec(role, "x"))
    assert (entry.scheme, entry.parts["data"].dtype) == ("raw", dtype)


def test_one_value_more_than_the_threshold_is_quantized():
    assert one(RowQuantizer(passthrough_numel=15), normal(4, 4)).scheme == "per_row"
    assert one(RowQuantizer(passthrough_numel=16), normal(4, 4)).scheme == "raw"


def test_kept_place_is_whole_whatever_its_size():
    entry = one(RowQuantizer(keep={"embed": "float16"}, passthrough_numel=0), normal(9, 9), ParamSpec("embed", "embed"))
    assert (entry.scheme, entry.parts["data"].dtype) == ("raw", torch.float16)


def test_bits_by_place_prefer_exact_then_longest_pattern():
    policy = {"default": 6, "attn.*": 5, "attn.q*": 4, "attn.k": 7}
    assert [match_place(policy, place) for place in ("attn.k", "attn.q_low", "attn.v", "mlp.up")] == [7, 4, 5, None]


def test_bits_by_place_reach_the_entries():
    quantizer = RowQuantizer(bits={"default": 6, "embed": 8}, passthrough_numel=0)
    assert one(quantizer, normal(4, 4)).bits == 6
    assert one(quantizer, normal(4, 4), ParamSpec("embed", "embed")).bits == 8


def test_integers_and_buffers_are_stored_as_they_are():
    state = {"count": torch.arange(5), "table": normal(3).double()}
    entries = RowQuantizer(passthrough_numel=0).quantize(state, {})
    assert all(torch.equal(dequantize(entries[name]), tensor) for name, tensor in state.items())


# ---------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("bits", [1, 9, 0, -4, 6.5, True, {"default": 6, "embed": 16}])
def test_bits_outside_two_to_eight_are_refused(bits):
    with pytest.raises(ConfigError, match="from 2 to 8"):
        RowQuantizer(bits=bits)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"bits": {"embed": 8}}, "default"), ({"clip_percentile": 0.0}, "clip_percentile=0.0"),
     ({"clip_percentile": 1.5}, "clip_percentile=1.5"), ({"passthrough_numel": -1}, "passthrough_numel=-1"),
     ({"keep": {"embed": "int8"}}, "keep.embed=int8"), ({"small": {"vector": "float32"}}, "small.vector")],
)  # fmt: skip
def test_wrong_settings_are_named(arguments, named):
    with pytest.raises(ConfigError, match=named):
        RowQuantizer(**arguments)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("numel", [0, 100])
def test_values_that_are_not_finite_are_refused_by_name(value, numel):
    weight = normal(4, 4)
    weight[1, 2] = value
    with pytest.raises(ArtifactError, match="tensor w holds values that are not finite"):
        one(RowQuantizer(passthrough_numel=numel), weight)


def test_values_beyond_float16_are_refused():
    with pytest.raises(ArtifactError, match="float16"):
        one(RowQuantizer(), torch.full((2,), 1e6), ParamSpec("gate", "gate"))
    with pytest.raises(ArtifactError, match="scale is beyond float16"):
        one(RowQuantizer(passthrough_numel=0), torch.full((2, 2), 1e8))


@pytest.mark.parametrize(
    ("scheme", "parts"),
    [("raw", {}), ("raw", {"data": torch.zeros(3)}), ("per_row", {"q": torch.zeros(2, 2, dtype=torch.int8)}),
     ("per_row", {"q": torch.zeros(2, 3, dtype=torch.int8), "scale": torch.ones(2).half()}),
     ("per_tensor", {"q": torch.zeros(2, 2), "scale": torch.ones(())}), ("ternary", {})],
)  # fmt: skip
def test_entry_whose_parts_do_not_fit_is_refused(scheme, parts):
    with pytest.raises(ArtifactError, match="tensor w"):
        dequantize(Entry("w", "p", "matrix", (2, 2), torch.float32, scheme, 8, False, parts))


@pytest.mark.parametrize(("bits", "length"), [(6, 2), (6, 4), (9, 5), (1, 1)])
def test_bit_stream_of_a_wrong_size_is_refused(bits, length):
    parts = {"q": torch.zeros(length, dtype=torch.uint8), "scale": torch.ones(2).half()}
    with pytest.raises(ArtifactError, match="bits"):
        dequantize(Entry("w", "p", "matrix", (2, 2), torch.float32, "per_row", bits, True, parts))


# ---------------------------------------------------------------------------------- quantization-aware training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fake_quantization_keeps_dtype_and_grid(dtype):
    weight = normal(4, 200).to(dtype)
    rounded = fake_quantize(weight, 4)
    clip = torch.quantile(weight.float().abs(), CLIP_PERCENTILE, dim=1, keepdim=True)
    expected = torch.round(weight.float().clamp(-clip, clip) / (clip / 7)) * (clip / 7)
    assert torch.equal(rounded, expected.to(dtype))


def test_fake_quantization_of_zeros_is_zero():
    assert not fake_quantize(torch.zeros(2, 8), 6).any()


def test_gradient_passes_straight_through():
    weight = normal(4, 9).requires_grad_()
    upstream = normal(4, 9, seed=1)
    rounded = fake_quantize_ste(weight, 3)
    (rounded * upstream).sum().backward()
    assert torch.equal(rounded, fake_quantize(weight, 3))
    assert torch.equal(weight.grad, upstream)


def test_straight_through_is_one_graph():
    compiled = torch.compile(lambda w: fake_quantize_ste(w, 6).square().sum(), fullgraph=True, backend="aot_eager")
    weight = normal(4, 9).requires_grad_()
    assert torch.equal(compiled(weight), fake_quantize(weight, 6).square().sum())


def test_fake_quantizer_covers_matrices_only():
    quantizer = FakeQuantizer(bits=5)
    covered = [
        quantizer.covers(ParamSpec(role, "p"), torch.zeros(shape))
        for role, shape in (("matrix", (2, 2)), ("matrix", (2,)), ("embed", (2, 2)), ("scalar", (2, 2)))
    ]
    assert covered == [True, False, False, False]


# --------------------------------------------------------------------------------------------------- allocation


def layered(layers: int) -> dict[str, ParamSpec]:
    table = {f"blocks.{i}.w": ParamSpec("matrix", "mlp.up", i) for i in range(layers)}
    return table | {"emb": ParamSpec("embed", "embed")}


def test_ties_are_broken_alphabetically():
    bits = bits_by_rank({"b": 1.0, "c": 1.0, "a": 1.0}, low_fraction=0.15, mid_fraction=0.55, bits=(5, 6, 7))
    assert bits == {"a": 5, "b": 6, "c": 7}


def test_fractions_of_parameters_follow_sizes():
    table = {"big": 1.0, "mid": 2.0, "small": 3.0}
    sizes = {"big": 80.0, "mid": 15.0, "small": 5.0}
    bits = bits_by_rank(table, low_fraction=0.5, mid_fraction=0.9, bits=(5, 6, 7), weights=sizes)
    assert bits == {"big": 5, "mid": 6, "small": 7}


def test_sensitivity_is_the_sum_of_mean_gradients_in_the_warmdown():
    allocation = GradientGuidedBits()
    first, second = normal(4, 6), normal(4, 6, seed=1).bfloat16()
    for grad, multiplier in ((normal(4, 6, seed=2), 1.0), (first, 0.9), (second, 0.1)):
        allocation.observe([("w", grad), ("vector", torch.ones(3))], multiplier)
    expected = first.abs().mean() + second.float().abs().mean()
    assert allocation.mean_gradients() == pytest.approx({"w": float(expected)}, rel=1e-6)


def test_settings_of_an_allocation_that_is_left_out_are_refused():
    with pytest.raises(ConfigError, match=r"quant\.allocation=.*quant=gradguided has one"):
        RowQuantizer(allocation={"middle": 5})


@pytest.mark.parametrize("fraction_of", ["params", "tensors"])
def test_what_a_run_recorded_gives_its_bits_again(fraction_of):
    state = {f"blocks.{n}.w": normal(8 + n, 16, seed=n) for n in range(5)}
    state["emb"] = normal(40, 16, seed=9)
    specs = layered(5)

    def fresh():
        allocation = GradientGuidedBits(fraction_of=fraction_of, warmdown_only=False)
        return RowQuantizer(bits=6, passthrough_numel=0, allocation=allocation)

    trained, again = fresh(), fresh()
    for step in range(3):
        trained.observe(
            [(name, normal(*w.shape, seed=step) * (1 + n)) for n, (name, w) in enumerate(state.items())], 1.0
        )
    assert again.recall(json.loads(json.dumps(trained.facts())), state)
    assert again.facts() == trained.facts()
    bits = [{name: entry.bits for name, entry in q.quantize(state, specs).items()} for q in (trained, again)]
    assert bits[0] == bits[1]
    assert len(set(bits[0].values())) == 3


@pytest.mark.parametrize("facts", [{}, {"mean_gradient": {}}, {"mean_gradient": {"another.model": 1.0}}])
def test_a_record_without_this_models_gradients_is_not_recalled(facts):
    quantizer = RowQuantizer(bits=6, allocation=GradientGuidedBits())
    assert not quantizer.recall(facts, {"w": normal(4, 4)})


def test_every_step_counts_when_asked():
    allocation = GradientGuidedBits(warmdown_only=False)
    allocation.observe([("w", torch.ones(2, 2))], 1.0)
    assert allocation.mean_gradients() == {"w": 1.0}


def test_nothing_observed_falls_back_to_wide_edges():
    bits = GradientGuidedBits().allocate(layered(4), dict.fromkeys(layered(4), 1.0))
    assert bits == {"blocks.0.w": 8, "blocks.1.w": 6, "blocks.2.w": 6, "blocks.3.w": 8, "emb": 8}


def test_default_ranks_only_quantized_tensors_by_their_rounding_cost():
    allocation = GradientGuidedBits(low_fraction=0.3, mid_fraction=0.6)
    grads = {"blocks.0.w": 1.0, "blocks.1.w": 2.0, "blocks.2.w": 3.0, "emb": 9.0}
    allocation.observe([(name, torch.full((2, 2), value)) for name, value in grads.items()], 0.5)
    errors = {"blocks.0.w": 9.0, "blocks.1.w": 1.0, "blocks.2.w": 1.0}  # emb is kept whole
    assert allocation.allocate(layered(3), errors) == {"blocks.1.w": 5, "blocks.2.w": 6, "blocks.0.w": 7}


def test_records_rule_ranks_raw_gradients_of_every_tensor():
    allocation = GradientGuidedBits(sensitivity="raw_gradient", fraction_of="tensors", rank_passthrough=True)
    grads = {"blocks.0.w": 1.0, "blocks.1.w": 2.0, "emb": 9.0}
    allocation.observe([(name, torch.full((2, 2), value)) for name, value in grads.items()], 0.5)
    assert allocation.allocate(layered(2), {"blocks.1.w": 1.0, "blocks.0.w": 99.0}) == {
        "blocks.1.w": 6,
        "blocks.0.w": 5,
    }


def test_quantizer_uses_its_allocation_and_explicit_bits_win():
    quantizer = RowQuantizer(passthrough_numel=0, allocation=GradientGuidedBits(fraction_of="tensors"))
    specs = layered(3)
    state = {name: normal(4, 4, seed=i) for i, name in enumerate(specs)}
    quantizer.observe([(name, torch.full((4, 4), float(i + 1))) for i, name in enumerate(specs)], 0.5)
    assert sorted(entry.bits for entry in quantizer.quantize(state, specs).values()) == [5, 6, 7, 7]
    assert {entry.bits for entry in quantizer.quantize(state, specs, dict.fromkeys(specs, 4)).values()} == {4}


def test_observations_survive_a_checkpoint():
    before = RowQuantizer(allocation=GradientGuidedBits())
    before.observe([("w", torch.ones(2, 2))], 0.5)
    after = RowQuantizer(allocation=GradientGuidedBits())
    after.load_state_dict(before.state_dict())
    for quantizer in (before, after):
        quantizer.observe([("w", torch.ones(2, 2))], 0.5)
    assert after.allocation.mean_gradients() == before.allocation.mean_gradients() == {"w": 2.0}


def test_observing_other_tensors_midway_is_an_error():
    allocation = GradientGuidedBits()
    allocation.observe([("a", torch.ones(2, 2))], 0.5)
    with pytest.raises(ValueError, match="other names"):
        allocation.observe([("b", torch.ones(2, 2))], 0.5)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"low_fraction": 0.7}, "low_fraction=0.7"), ({"mid_fraction": 1.2}, "mid_fraction=1.2"),
     ({"middle": 9}, "middle=9"), ({"middle": 3}, "middle=3"), ({"fallback_edge_bits": 16}, "fallback_edge_bits=16"),
     ({"sensitivity": "hessian"}, "sensitivity=hessian"), ({"fraction_of": "bytes"}, "fraction_of=bytes")],
)  # fmt: skip
def test_wrong_allocation_settings_are_named(arguments, named):
    with pytest.raises(ConfigError, match=named):
        GradientGuidedBits(**arguments)
