"""LQER: what rounding lost, given back as a product of two thin matrices."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from golf.artifact.ans import Ans
from golf.artifact.codecs import Codec, Zlib
from golf.artifact.container import artifact_size, load_artifact, save_artifact
from golf.artifact.ledger import ledger
from golf.common.errors import ArtifactError, ConfigError
from golf.nn.params import ParamSpec
from golf.quant.entry import LOW_RANK, dequantize
from golf.quant.fit import FULL, fitted
from golf.quant.gptq import GPTQ
from golf.quant.lqer import LowRank
from golf.quant.rowwise import RowQuantizer

SPECS = {name: ParamSpec("matrix", f"mlp.{name}", 0) for name in ("tall", "wide", "small", "kept")}
SHAPES = {"tall": (70, 40), "wide": (30, 50), "small": (20, 40), "kept": (4, 4)}


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def state() -> dict[str, torch.Tensor]:
    return {name: drawn(*shape, seed=number) for number, (name, shape) in enumerate(SHAPES.items())}


def rows(lqer: LowRank | None, **settings: object) -> RowQuantizer:
    more = {"bits": 3, "scale_floor": False, "passthrough_numel": 16, **settings}
    return RowQuantizer(lqer=lqer, **more)  # type: ignore[arg-type]


def watched(lqer: LowRank | None, seed: int = 0) -> GPTQ:
    """A GPTQ that has seen correlated inputs."""
    quantizer = GPTQ(bits=3, passthrough_numel=16, lqer=lqer)
    for name, (_, size) in SHAPES.items():
        x = drawn(400, size, seed=seed) @ (drawn(size, size, seed=seed + 1) * torch.logspace(0, -1, size))
        quantizer.hessians[name] = x.T @ x
    return quantizer


@pytest.mark.parametrize(("name", "group"), [("tall", 20), ("wide", 10)])
@pytest.mark.parametrize("bits", [(2, 4), (5, 3)])
def test_what_is_added_is_that_of_plain_float64_code(name: str, group: int, bits: tuple[int, int]) -> None:
    """Pull request 1797's: A = U S by one scale, B = Vᵀ by groups, each |max| / (2^(bits−1) − ½) a step."""
    weights = {name: state()[name]}
    lqer = LowRank(1, rank=3, group=group, a_bits=bits[0], b_bits=bits[1])
    [before], [after] = (list(rows(one).quantize(weights, SPECS).values()) for one in (None, lqer))
    error = weights[name].double() - dequantize(before).double()
    u, s, vt = np.linalg.svd(error.numpy(), full_matrices=False)
    columns = u[:, :3] * s[:3]
    sign = -np.sign(columns[np.abs(columns).argmax(0), range(3)])  # which way is golf's own choice
    parts = {key: part.double().numpy() for key, part in after.parts.items()}
    unit = np.abs(vt[:3]).max() / (2 ** (bits[1] - 1) - 0.5)
    b_scale = np.abs(vt[:3]).reshape(3, -1, group).max(2) / (2 ** (bits[1] - 1) - 0.5)
    np.testing.assert_allclose(parts["b_scale"], b_scale / unit, rtol=1e-3)
    a_scale = np.abs(columns).max() / (2 ** (bits[0] - 1) - 0.5)
    assert parts["a_scale"] == pytest.approx(a_scale * unit, rel=1e-5)
    for found, exact, width in (
        (parts["a"], columns * sign / a_scale, bits[0]),
        (parts["b"], vt[:3] * sign[:, None] / b_scale.repeat(group, 1), bits[1]),
    ):
        assert -(2 ** (width - 1)) <= found.min() <= found.max() < 2 ** (width - 1)
        assert np.abs(found - exact).max() < 0.51  # to the nearest; the largest is half a step from either side
    added = (parts["a"] * parts["a_scale"]) @ (parts["b"] * parts["b_scale"].repeat(group, 1))
    np.testing.assert_allclose((dequantize(after) - dequantize(before)).numpy(), added, atol=1e-5)


@pytest.mark.parametrize("by", ["values", "inputs"])
def test_the_rank_gives_back_what_the_largest_singular_values_hold(by: str) -> None:
    fine = LowRank(1, rank=4, group=1, a_bits=8, b_bits=8, by=by)  # type: ignore[arg-type]
    weights = {"wide": state()["wide"]}
    quantizer, plain = (watched(fine), watched(None)) if by == "inputs" else (rows(fine), rows(None))
    for one in (quantizer, plain):
        one.damping = 1e-6  # type: ignore[attr-defined]
    error = (weights["wide"] - dequantize(plain.quantize(weights, SPECS)["wide"])).double()
    h = quantizer.moments("wide")
    energies = torch.linalg.svdvals(error if h is None else error @ torch.linalg.cholesky(h.double())).square()
    quantizer.quantize(weights, SPECS)
    assert quantizer.facts()["lqer"]["wide"] == pytest.approx(float(energies[4:].sum() / energies.sum()), rel=0.01)


@pytest.mark.parametrize("by", ["values", "inputs"])
def test_outputs_are_nearer_than_by_gptq_alone(by: str) -> None:
    weights, count = state(), 0
    for seed in range(4):
        plain, quantizer = watched(None, seed), watched(LowRank(3, by=by), seed)  # type: ignore[arg-type]
        before, after = plain.quantize(weights, SPECS), quantizer.quantize(weights, SPECS)
        for name, left in quantizer.facts().get("lqer", {}).items():
            h = torch.linalg.cholesky(quantizer.hessians[name].double())
            errors = [((weights[name] - dequantize(one[name])).double() @ h).square().sum() for one in (before, after)]
            assert left == pytest.approx(float(errors[1] / errors[0]), rel=1e-3)
            assert left < 1  # else, as where values alone count and X does not, it stays as it was
            count += 1
        same = [name for name in weights if torch.equal(dequantize(before[name]), dequantize(after[name]))]
        assert sorted([*same, *quantizer.facts().get("lqer", {})]) == sorted(weights)
    assert count >= (2 if by == "values" else 8)


def test_it_is_for_those_that_lost_most() -> None:
    weights = state()
    before = rows(None).quantize(weights, SPECS)
    after = (quantizer := rows(LowRank(1))).quantize(weights, SPECS)
    lost = {name: float((weights[name] - dequantize(entry)).norm()) for name, entry in before.items()}
    assert [name for name, entry in after.items() if entry.scheme == LOW_RANK] == [max(lost, key=lambda n: lost[n])]
    assert all(0 < share < 1 for share in quantizer.facts()["lqer"].values())
    exact = {"tall": torch.zeros(70, 40)}  # nothing is lost, and nothing given back
    assert rows(LowRank(1)).quantize(exact, SPECS)["tall"].scheme == "per_row"


@pytest.mark.parametrize(("pack", "codec"), [(False, Ans()), (False, Zlib()), (True, Zlib())])
def test_an_artifact_holds_it_and_counts_it(pack: bool, codec: Codec, tmp_path: Path) -> None:
    plain = rows(None, pack=pack).quantize(state(), SPECS)
    entries, again = (rows(LowRank(3), pack=pack).quantize(state(), SPECS) for _ in range(2))
    info = save_artifact(tmp_path / "a.golf", entries, codec)
    assert info.sha256 == save_artifact(tmp_path / "b.golf", again, codec).sha256
    assert artifact_size(plain, codec) < info.bytes
    found = ledger(info, entries, codec)
    assert sum(row.bytes for row in found.values()) == info.bytes
    extra = 70 * 4 + 4 + 4 * 40 + 2 * 4  # A, its scale, B, its scales
    assert found["mlp.tall"].raw_bytes == ledger(info, plain, codec)["mlp.tall"].raw_bytes + extra
    for name, entry in load_artifact(tmp_path / "a.golf").entries.items():
        assert torch.equal(dequantize(entry), dequantize(entries[name]))


def test_a_fit_counts_it() -> None:
    quantizer = RowQuantizer(bits=6, k=12.0, scale_floor=False, passthrough_numel=16, fit=1, lqer=LowRank(2))
    weights = {"tall": drawn(300, 200), "wide": drawn(200, 300, seed=1)}
    entries = fitted(quantizer, weights, SPECS, 60_000, lambda found: artifact_size(found, Ans()))
    assert {entry.scheme for entry in entries.values()} == {LOW_RANK}
    assert FULL * 60_000 <= artifact_size(entries, Ans()) <= 60_000


def test_parts_that_do_not_fit_are_refused() -> None:
    entry = rows(LowRank(1)).quantize({"tall": state()["tall"]}, SPECS)["tall"]
    for part, wrong in (("a", torch.zeros(69, 4)), ("b", torch.zeros(5, 40)), ("b_scale", torch.zeros(4, 41))):
        odd = {**entry.parts, part: wrong.to(entry.parts[part].dtype)}
        with pytest.raises(ArtifactError, match="do not fit"):
            dequantize(replace(entry, parts=odd))
    with pytest.raises(ArtifactError, match="bad part 'a_scale'"):
        dequantize(replace(entry, parts={k: v for k, v in entry.parts.items() if k != "a_scale"}))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rank": 0}, r"quant\.lqer\.rank=0: must be a whole number of at least 1"),
        ({"tensors": -1}, r"quant\.lqer\.tensors=-1"),
        ({"a_bits": 1}, r"quant\.lqer\.a_bits=1: bits a value"),
        ({"by": "rows"}, r"quant\.lqer\.by=rows \(choices: values, inputs\)"),
    ],
)
def test_a_setting_out_of_range_is_told(settings: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        LowRank(**settings)  # type: ignore[arg-type]


def test_inputs_have_to_be_watched() -> None:
    with pytest.raises(ConfigError, match=r"quant\.lqer\.by=inputs: needs a quantizer that watches inputs"):
        rows(LowRank(1, by="inputs"))
    with pytest.raises(ConfigError, match=r"needs inputs that were seen, quant\.windows=128"):
        GPTQ(windows=0, lqer=LowRank(1, by="inputs"))
