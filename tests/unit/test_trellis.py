"""Trellis-coded rounding: what is read back is what was chosen, the path is the nearest, and what it gains."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from golf.artifact.ans import Ans
from golf.artifact.container import load_artifact, save_artifact
from golf.common.errors import ArtifactError, ConfigError
from golf.nn.params import ParamSpec
from golf.quant.entry import Entry, dequantize
from golf.quant.gptq import GPTQ
from golf.quant.rowwise import RowQuantizer
from golf.quant.trellis import CODES, SEGMENT, halves, nearest_path

SPECS = {"up": ParamSpec("matrix", "mlp.up", 0)}


def noise(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def entropy(q: torch.Tensor) -> float:
    share = torch.unique(q, return_counts=True)[1] / q.numel()
    return float(-(share * share.log2()).sum())


@given(st.integers(1, 2 * SEGMENT + 3), st.integers(1, 3), st.sampled_from(list(CODES)), st.sampled_from([1, 3, 31]))
def test_values_follow_from_the_integers(rows: int, columns: int, states: int, top: int) -> None:
    q, values = nearest_path(2.4 * noise(rows, columns), top, states)
    assert q.dtype == torch.int8
    assert int(q.abs().max()) <= top
    assert torch.equal(q + halves(q, states) / 2, values)


def test_of_all_paths_the_nearest_is_taken() -> None:
    """Every sequence of integers beside the values is tried."""
    for states, seed in itertools.product((4, 8), range(5)):
        x = 3 * noise(7, 1, seed)
        tries = torch.tensor(list(itertools.product((-1, 0, 1), repeat=7)), dtype=torch.float32).T
        q = (x.round() + tries).to(torch.int8)
        least = (q + halves(q, states) / 2 - x).square().sum(0).min()
        found = (nearest_path(x, 31, states)[1] - x).square().sum()
        assert found == pytest.approx(float(least), rel=1e-5)


@pytest.mark.parametrize(("states", "decibels"), [(4, 0.85), (8, 0.92), (16, 1.0), (32, 1.03), (64, 1.05)])
def test_errors_are_smaller_for_as_many_bits(states: int, decibels: float) -> None:
    x = 2.4 * noise(SEGMENT, 256)
    q, values = nearest_path(x, 127, states)
    plain = (x.round() - x).square().mean()
    assert 10 * float(torch.log10(plain / (values - x).square().mean())) > decibels
    assert entropy(q) < entropy(x.round()) + 0.01


def test_a_segment_begins_anew() -> None:
    q = torch.ones(2 * SEGMENT, 3, dtype=torch.int8)
    q[5] = 2
    assert torch.equal(halves(q, 8)[SEGMENT:], halves(q[SEGMENT:], 8))


@pytest.mark.parametrize("pack", [False, True])
def test_an_artifact_gives_the_values_back(tmp_path: Path, pack: bool) -> None:
    w = noise(150, 40)
    entries = RowQuantizer(6, pack=pack, k=12.0, passthrough_numel=16, trellis=8).quantize({"up": w}, SPECS)
    save_artifact(tmp_path / "one.golf", entries, Ans(), {}, "0" * 64)
    read = load_artifact(tmp_path / "one.golf", 10**7).entries["up"]
    assert torch.equal(dequantize(read), dequantize(entries["up"]))
    plain = RowQuantizer(6, pack=pack, k=12.0, passthrough_numel=16).quantize({"up": w}, SPECS)
    assert (dequantize(read) - w).square().sum() < 0.83 * (dequantize(plain["up"]) - w).square().sum()


def test_calibrated_errors_are_smaller_too() -> None:
    x, w = noise(400, 48, 1) * torch.logspace(0, -1, 48), noise(SEGMENT, 48)
    lost = []
    for trellis in (0, 8):
        quantizer = GPTQ(k=12.0, passthrough_numel=16, trellis=trellis)
        quantizer.hessians = {"up": x.T @ x}
        found = dequantize(quantizer.quantize({"up": w}, SPECS)["up"])
        lost.append(float(((found - w) @ x.T).square().sum()))
    assert lost[1] < 0.85 * lost[0]


def test_a_draft_is_rounded_to_the_nearest() -> None:
    quantizer = RowQuantizer(6, k=12.0, passthrough_numel=16, trellis=8)
    w = noise(150, 40)
    assert torch.equal(
        quantizer.draft({"up": w}, SPECS)["up"].parts["q"],
        RowQuantizer(6, k=12.0, passthrough_numel=16).quantize({"up": w}, SPECS)["up"].parts["q"],
    )


def test_states_without_a_code_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"quant\.trellis=7: .*choices: 0, 4, 8"):
        RowQuantizer(6, trellis=7)
    parts = {
        "q": torch.zeros(3, 4, dtype=torch.int8), "scale": torch.ones(3).half(),
        "trellis": torch.tensor(7, dtype=torch.int16),
    }  # fmt: skip
    with pytest.raises(ArtifactError, match="7 states"):
        dequantize(Entry("up", "mlp.up", "matrix", (3, 4), torch.float32, "per_row", 6, False, parts))
