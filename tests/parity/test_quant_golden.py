"""Quantization against the original systems: values, errors, bytes and bit maps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from golf.artifact.codecs import Zlib, Zstd
from golf.artifact.container import load_artifact, save_artifact
from golf.nn.params import ParamSpec
from golf.quant.allocation import bits_by_rank
from golf.quant.entry import dequantize, pack_bits, payload_bytes, unpack_bits
from golf.quant.rounding import fake_quantize
from golf.quant.rowwise import RowQuantizer

SYSTEMS = ("naive_baseline", "sp2048_normuon_int6", "gradquant_11l")
LEAVES = {
    "c_q": ("matrix", "attn.q"), "c_k": ("matrix", "attn.k"), "c_v": ("matrix", "attn.v"),
    "attn.proj": ("matrix", "attn.out"), "fc": ("matrix", "mlp.up"), "mlp.proj": ("matrix", "mlp.down"),
    "tok_emb": ("embed", "embed"), "smear_gate_param": ("gate", "smear_gate"),
}  # fmt: skip


def spec(name: str) -> ParamSpec:
    """Role and place of a parameter by its name in the original systems."""
    parts = name.removesuffix(".weight").split(".")
    layer = int(parts[1]) if parts[0] == "blocks" else None
    role, place = LEAVES.get(parts[-1]) or LEAVES.get(".".join(parts[-2:])) or ("scalar", parts[-1])
    return ParamSpec(role, place, layer)


def specs(names: object) -> dict[str, ParamSpec]:
    return {name: spec(name) for name in names}


def quantizer(system: str, passthrough_numel: int = 65_536) -> RowQuantizer:
    if system == "sp2048_normuon_int6":
        return RowQuantizer(bits=6, pack=True, keep={"embed": "float16"}, passthrough_numel=passthrough_numel)
    return RowQuantizer(bits=8, passthrough_numel=passthrough_numel)


@pytest.fixture(scope="module", params=SYSTEMS)
def golden(request: pytest.FixtureRequest, golden_dir: Path) -> dict[str, object]:
    inputs = load_file(golden_dir / "quant_inputs.safetensors")
    facts = json.loads((golden_dir / f"{request.param}.json").read_text())
    entries = quantizer(request.param).quantize(inputs, specs(inputs), facts.get("bit_map"))
    tensors = load_file(golden_dir / f"{request.param}.safetensors")
    rows = {k.removeprefix("quant/out8/"): v for k, v in tensors.items() if k.startswith("quant/out8/")}
    return {"system": request.param, "inputs": inputs, "facts": facts, "entries": entries, "rows": rows}


def test_dequantized_values_are_the_originals_exactly(golden):
    assert golden["rows"].keys() == golden["inputs"].keys()
    for name, expected in golden["rows"].items():
        assert torch.equal(dequantize(golden["entries"][name])[: len(expected)], expected), name


def test_mean_square_error_of_the_whole_tensor(golden):
    for name, expected in golden["facts"]["quant_mse"].items():
        error = (dequantize(golden["entries"][name]) - golden["inputs"][name]).double().square().mean().item()
        assert error == pytest.approx(expected, rel=1e-6, abs=0), name


def test_payload_bytes(golden):
    assert payload_bytes(golden["entries"]) == golden["facts"]["quant_payload_bytes"]


def test_values_survive_the_file(golden, tmp_path):
    save_artifact(tmp_path / "a.golf", golden["entries"], Zstd(level=3))
    loaded = load_artifact(tmp_path / "a.golf").entries
    for name, expected in golden["rows"].items():
        assert torch.equal(dequantize(loaded[name])[: len(expected)], expected), name


def test_bit_map_is_stored_with_each_tensor(golden_dir):
    inputs = load_file(golden_dir / "quant_inputs.safetensors")
    bit_map = json.loads((golden_dir / "gradquant_11l.json").read_text())["bit_map"]
    entries = RowQuantizer(bits=8).quantize(inputs, specs(inputs), bit_map)
    assert {name: entries[name].bits for name in bit_map} == bit_map


def test_sensitivity_bits(golden_dir):
    facts = json.loads((golden_dir / "gradquant_11l.json").read_text())
    bits = bits_by_rank(facts["sensitivity"], low_fraction=0.15, mid_fraction=0.55, bits=(5, 6, 7))
    assert bits == facts["sensitivity_bits"]


@pytest.mark.parametrize(
    ("count", "expected"),
    [(3, (1, 1, 1)), (5, (1, 2, 2)), (7, (1, 3, 3)), (10, (2, 3, 5)), (20, (3, 8, 9)), (41, (6, 16, 19)),
     (79, (12, 31, 36))],
)  # fmt: skip
def test_counts_of_bits_by_rank(count, expected):
    table = {f"t{i}": float(i) for i in range(count)}
    bits = list(bits_by_rank(table, low_fraction=0.15, mid_fraction=0.55, bits=(5, 6, 7)).values())
    assert tuple(bits.count(width) for width in (5, 6, 7)) == expected


# ----------------------------------------------------------------------------------- the published small numbers


def fill(tensor_id: int, shape: tuple[int, ...]) -> torch.Tensor:
    """The deterministic fill 2·frac(sin(12.9898 i + 78.233 t) · 43758.5453) − 1, i = 1…n, in float64, then float32."""
    z = np.sin(12.9898 * np.arange(1, int(np.prod(shape)) + 1) + 78.233 * tensor_id) * 43758.5453
    return torch.from_numpy((2 * (z - np.floor(z)) - 1).astype(np.float32)).reshape(shape)


@pytest.fixture(scope="module")
def rows_of_four_sizes() -> torch.Tensor:
    return fill(200, (4, 512)) * torch.tensor([0.1, 0.5, 1.0, 4.0])[:, None]


@pytest.mark.parametrize(
    ("bits", "largest", "sums", "column"),
    [(8, [13, 63, 127, 127], [3179, 15174, 33992, 32031], [-4, -48, 44, 119]),
     (7, [6, 31, 63, 63], [1585, 7519, 16847, 15882], None),
     (6, [3, 15, 31, 31], [778, 3700, 8294, 7812], [-1, -12, 11, 29]),
     (5, [1, 7, 15, 15], [333, 1776, 4002, 3773], None)],
)  # fmt: skip
def test_integers_of_four_rows(rows_of_four_sizes, bits, largest, sums, column):
    quantizer = RowQuantizer(bits=bits, passthrough_numel=0)
    q = quantizer.quantize({"w": rows_of_four_sizes}, {"w": ParamSpec("matrix", "mlp.up")})["w"].parts["q"].long()
    assert q.abs().amax(1).tolist() == largest
    assert q.abs().sum(1).tolist() == sums
    assert column is None or q[:, 0].tolist() == column


@pytest.mark.parametrize(
    ("bits", "scales"), [(8, [0.00787354] * 3 + [0.03149414]), (6, [0.03225708] * 3 + [0.12902832])]
)
def test_scales_of_four_rows(rows_of_four_sizes, bits, scales):
    quantizer = RowQuantizer(bits=bits, passthrough_numel=0)
    entry = quantizer.quantize({"w": rows_of_four_sizes}, {"w": ParamSpec("matrix", "mlp.up")})["w"]
    assert entry.parts["scale"].dtype == torch.float16
    assert entry.parts["scale"].tolist() == pytest.approx(scales, abs=5e-9)


def test_fake_quantized_weight(rows_of_four_sizes):
    rounded = fake_quantize(rows_of_four_sizes, 6)
    assert rounded[:, 0].tolist() == pytest.approx([-0.029021, -0.370925, 0.353943, 3.741555], abs=6e-7)
    assert [row.unique().numel() for row in rounded] == [63] * 4


@pytest.mark.parametrize(
    ("bits", "stream"),
    [(6, [225, 7, 4, 127, 161, 11, 30]), (7, [225, 15, 32, 240, 47, 232, 5, 30]), (5, [241, 129, 240, 139, 22, 15])],
)
def test_bit_stream(bits, stream):
    top = 2 ** (bits - 1) - 1
    values = torch.tensor([-31, 31, 0, 1, -1, 5, -6, 2, 30]).clamp(-top, top)
    assert pack_bits(values, bits).tolist() == stream
    assert unpack_bits(torch.tensor(stream, dtype=torch.uint8), bits, 9).tolist() == values.tolist()


# ---------------------------------------------------------------------------------------- payloads at real sizes


def record_state(
    layers: int, vocab: int, mlp: int, smear: bool, dim: int, heads: int, kv: int
) -> dict[str, torch.Tensor]:
    """Tensors of a record's shapes; the values do not matter for their bytes."""
    side = dim // heads * kv
    block = {
        "attn_scale": (dim,), "mlp_scale": (dim,), "resid_mix": (2, dim), "attn.q_gain": (heads,),
        "attn.c_q.weight": (dim, dim), "attn.c_k.weight": (side, dim), "attn.c_v.weight": (side, dim),
        "attn.proj.weight": (dim, dim), "mlp.fc.weight": (mlp * dim, dim), "mlp.proj.weight": (dim, mlp * dim),
    }  # fmt: skip
    shapes = {"smear_gate_param": (dim,)} if smear else {}
    shapes |= {"skip_weights": (layers // 2, dim), "tok_emb.weight": (vocab, dim)}
    shapes |= {f"blocks.{i}.{name}": shape for i in range(layers) for name, shape in block.items()}
    state = {name: torch.zeros(shape) for name, shape in shapes.items()}
    state["tok_emb.weight"] = state["tok_emb.weight"].bfloat16()
    return state


@pytest.mark.parametrize(
    ("system", "layers", "vocab", "mlp", "expected"),
    [("naive_baseline", 9, 1024, 2, 17_178_912), ("sp2048_normuon_int6", 8, 2048, 3, 16_384_256),
     ("gradquant_11l", 11, 1024, 3, 26_659_168)],
)  # fmt: skip
def test_payload_of_the_record_size(system, layers, vocab, mlp, expected):
    state = record_state(layers, vocab, mlp, system == "gradquant_11l", dim=512, heads=8, kv=4)
    entries = quantizer(system).quantize(state, specs(state))
    assert payload_bytes(entries) == expected
    restored = dequantize(entries["tok_emb.weight"])
    assert (restored.dtype, restored.shape) == (torch.bfloat16, (vocab, 512))


@pytest.mark.parametrize(
    ("system", "mlp", "expected"),
    [("naive_baseline", 2, 725_584), ("sp2048_normuon_int6", 3, 835_408), ("gradquant_11l", 3, 890_960)],
)
def test_payload_of_the_ten_step_run(system, mlp, expected):
    state = record_state(5, 1024, mlp, system == "gradquant_11l", dim=128, heads=4, kv=2)
    assert payload_bytes(quantizer(system, passthrough_numel=1000).quantize(state, specs(state))) == expected


def test_container_costs_less_than_a_zipped_pickle_would(tmp_path):
    """The naive baseline's torch.save spent 45,113 bytes on top of its payload, before compression."""
    state = record_state(9, 1024, 2, False, dim=512, heads=8, kv=4)
    info = save_artifact(tmp_path / "a.golf", quantizer("naive_baseline").quantize(state, specs(state)), Zlib(level=1))
    assert info.overhead_bytes < 1200
