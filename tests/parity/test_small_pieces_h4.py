"""Rotary tables, the smear gate, starting values and parameter counts of the original systems."""

from __future__ import annotations

import math

import pytest
import torch

from golf.launch.compose.build import build_model
from golf.nn.context import Context
from golf.nn.models.position import Rope
from golf.nn.numerics import Numerics
from golf.nn.shape import Shape
from golf.nn.techniques.smear_gate import SmearGate

WATCHED = (0, 1, 2, 15, 31)  # of the 32 frequencies of a head of 64
BF16 = Numerics(compute="bfloat16")


def shape(dim: int, heads: int = 1, max_seq_len: int = 4096) -> Shape:
    return Shape(16, dim, 1, heads, heads, 2, max_seq_len)


def rope(numerics: Numerics = BF16, **settings: object) -> Rope:
    return Rope(shape(64), numerics, **settings)  # type: ignore[arg-type]


def frequencies(table: Rope) -> list[float]:
    """What turns position 1, from tables in float32."""
    angles = torch.atan2(table.sin[1], table.cos[1])
    return [float(angles[i]) for i in WATCHED]


def test_rotation_of_one_vector():
    x = torch.zeros(1, 6, 1, 8)
    x[0, 5, 0] = torch.arange(1.0, 9.0)
    turned = Rope(shape(8, max_seq_len=6), Numerics(), round_frequencies=False)(x)
    expected = [-4.51096, 4.63172, 3.34611, 4.03995, 2.37724, 4.30664, 6.84131, 7.97990]
    assert turned[0, 5, 0].tolist() == pytest.approx(expected, abs=1e-5)


def test_frequencies_in_float32():
    found = frequencies(rope(Numerics(), round_frequencies=False))
    assert found == pytest.approx([1, 0.7498942, 0.56234133, 0.01333521, 0.00013335], rel=4e-5)


def test_ntk_base_and_frequencies():
    table = rope(Numerics(), ntk_seq_len=2048, round_frequencies=False)
    assert table.base == pytest.approx(20452.2287, abs=5e-5)
    assert frequencies(table) == pytest.approx([1, 0.73331296, 0.53774792, 0.00953543, 6.668e-5], rel=1e-6, abs=5e-9)


def test_ntk_leaves_short_sequences_alone():
    assert rope(ntk_seq_len=1024).base == 10000.0


@pytest.mark.parametrize(("index", "frequency"), zip(WATCHED, (1, 0.75, 0.5625, 0.01330566, 0.00013351), strict=True))
def test_tables_of_bf16_frequencies_with_float32_positions(index, frequency):
    exact = torch.tensor(frequency).bfloat16().float()  # the figure is printed to eight digits
    assert float(exact) == pytest.approx(frequency, rel=4e-5)
    angles = torch.arange(4096, dtype=torch.float32) * exact
    assert torch.equal(rope().cos[:, index], angles.cos().bfloat16())
    assert torch.equal(rope().sin[:, index], angles.sin().bfloat16())


@pytest.mark.parametrize(("position", "value"), [(257, -0.44140625), (1023, 0.765625), (4095, 0.3359375)])
def test_table_entries_in_bf16(position, value):
    assert float(rope().cos[position, 1]) == value


def test_tables_of_exact_ntk_frequencies_in_bf16():
    exact = rope(Numerics(), ntk_seq_len=2048, round_frequencies=False)
    rounded = rope(ntk_seq_len=2048, round_frequencies=False)
    assert rounded.cos.dtype == torch.bfloat16
    assert torch.equal(rounded.cos, exact.cos.bfloat16())
    assert torch.equal(rounded.sin, exact.sin.bfloat16())


def test_smear_gate():
    gate = SmearGate(shape(8))
    with torch.no_grad():
        gate.gate.copy_(torch.linspace(-1, 1, 8))
    rows = torch.arange(1.0, 17.0).view(1, 2, 8)
    first, second = gate(rows, Context(torch.zeros(1, 2, dtype=torch.long)))[0].tolist()
    assert second == pytest.approx([6.84847, 7.37078, 7.84426, 8.28523, 8.71477, 9.15574, 9.62922, 10.15153], abs=1e-5)
    assert first == pytest.approx([0.73106, 1.34269, 1.81660, 2.14261, 2.32173, 2.36681, 2.30057, 2.15153], abs=1e-5)


# ------------------------------------------------------------------------------- starting values of seed 1337, L = 4


@pytest.fixture(scope="module")
def started(originals):
    """State dicts after initialization, by recipe."""
    result = {}
    for recipe in originals.recipes:
        model = build_model(originals.small_config(recipe, 4), "float32")
        model.initialize(1337)
        result[recipe] = model.state_dict()
    return result


def head(tensor: torch.Tensor) -> list[float]:
    return tensor.flatten()[:3].tolist()


@pytest.mark.parametrize("recipe", ["naive_baseline", "seq4096"])
def test_uniform_start(started, recipe):
    q = started[recipe]["blocks.0.attn.q.weight"]
    assert head(q) == pytest.approx([-0.066813, 0.047377, -0.006476], abs=6e-7)
    assert float(q.std()) == pytest.approx(0.050913, abs=6e-7)


@pytest.mark.parametrize(
    ("recipe", "values"),
    [("naive_baseline", [-0.004758, 0.001146, 0.014698]), ("seq4096", [-0.004758, 0.001146, 0.014698]),
     ("sp2048_normuon_int6", [5e-06, -0.001963, -0.001889]), ("gradquant_11l", [5e-06, -0.001963, -0.001889])],
)  # fmt: skip
def test_embedding_start(started, recipe, values):
    assert head(started[recipe]["embedding"]) == pytest.approx(values, abs=6e-7)


@pytest.mark.parametrize("recipe", ["naive_baseline", "seq4096", "sp2048_normuon_int6"])
def test_projections_start_at_zero(started, recipe):
    for name, value in started[recipe].items():
        assert name.endswith(("proj.weight", "down.weight")) == (value.count_nonzero() == 0 and value.ndim == 2), name


def test_orthogonal_start(started):
    state = started["gradquant_11l"]
    q = state["blocks.0.attn.q.weight"]
    assert head(q) == pytest.approx([-0.062477, -0.004478, 0.061189], abs=6e-7)
    assert float(q.norm()) == pytest.approx(11.31371, abs=1e-5)
    assert float(state["blocks.3.attn.k.weight"].norm()) == pytest.approx(8.0, abs=1e-5)
    assert torch.allclose(q @ q.T, torch.eye(128), atol=1e-5)


@pytest.mark.parametrize("leaf", ["attn.proj", "mlp.down"])
def test_orthogonal_projections_are_scaled(started, leaf):
    weight = started["gradquant_11l"][f"blocks.2.{leaf}.weight"]
    assert float(weight.norm()) == pytest.approx(math.sqrt(128 / 8), abs=1e-5)


def test_vectors_start_neutral(started):
    state = started["gradquant_11l"]
    assert state["at_post_embed.smear_gate.gate"].count_nonzero() == 0
    assert torch.equal(state["blocks.0.attn.gain"], torch.full((4,), 1.5))
    assert torch.equal(state["residual.layers.1.mix"], torch.tensor([[1.0], [0.0]]).expand(2, 128))
    assert torch.equal(state["residual.skip_weights"], torch.ones(2, 128))
    assert torch.equal(state["residual.layers.0.attn_scale"], torch.ones(128))


# ----------------------------------------------------------------------------------------------- the records' sizes


@pytest.mark.parametrize(
    ("recipe", "matrices", "vectors", "skips", "smear", "embedding", "entries"),
    [("naive_baseline", 16_515_072, 18_504, 2_048, 0, 524_288, 92),
     ("seq4096", 16_515_072, 18_504, 2_048, 0, 524_288, 92),
     ("sp2048_normuon_int6", 18_874_368, 16_448, 2_048, 0, 1_048_576, 82),
     ("gradquant_11l", 25_952_256, 22_616, 2_560, 512, 524_288, 113)],
)  # fmt: skip
def test_record_size(originals, recipe, matrices, vectors, skips, smear, embedding, entries):
    with torch.device("meta"):
        model = build_model(originals.config(recipe), "bfloat16")
    specs, sizes = model.specs(), dict[str, int]()
    for name, parameter in model.named_parameters():
        role = specs[name].role
        key = "skips" if name == "residual.skip_weights" else role
        sizes[key] = sizes.get(key, 0) + parameter.numel()
    found = [sizes.get(key, 0) for key in ("matrix", "scalar", "skips", "gate", "embed")]
    assert found == [matrices, vectors, skips, smear, embedding]
    assert len(model.state_dict()) == entries
    totals = {"sp2048_normuon_int6": 19_941_440, "gradquant_11l": 26_502_232}
    assert sum(found) == totals.get(recipe, 17_059_912)


def test_record_dtypes(originals):
    """Under bf16 compute the embedding alone is stored in bf16; matrices are fp32 at bf16 values."""
    model = build_model(originals.small_config("naive_baseline", 4), "bfloat16")
    model.initialize(1337)
    for name, value in model.state_dict().items():
        assert value.dtype == (torch.bfloat16 if name == "embedding" else torch.float32), name
    q = model.state_dict()["blocks.0.attn.q.weight"]
    assert torch.equal(q, q.bfloat16().float())
