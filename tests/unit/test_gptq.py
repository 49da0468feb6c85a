"""GPTQ against plain float64 code, and against rounding to the nearest on what the matrices read."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from golf.common.errors import ArtifactError, ConfigError
from golf.common.ranks import Ranks
from golf.data.random_tokens import random_prepared
from golf.launch.compose.build import build_model, make
from golf.launch.compose.configs import compose_job, composer, resolved
from golf.nn.models.gpt import GPT
from golf.nn.params import ParamSpec
from golf.quant.calibration import Trained
from golf.quant.entry import dequantize
from golf.quant.gptq import GPTQ, gptq, inverse_factor
from golf.quant.rounding import coded_bits, levels, round_to_grid
from golf.quant.rowwise import RowQuantizer

SPEC = ParamSpec(role="matrix", place="mlp.up", layer=0)
SIZES = ("recipe=quickstart", "tokenizer=byte260", "model.model_dim=32", "model.num_heads=4", "model.num_kv_heads=2",
         "model.num_layers=2", "train_seq_len=16", "logger=jsonl", "keep_below=0")  # fmt: skip


def inputs(tokens: int = 400, size: int = 24, seed: int = 0) -> torch.Tensor:
    """Correlated inputs, as a model's are."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(size, size, generator=generator) * torch.logspace(0, -1, size)
    return torch.randn(tokens, size, generator=generator) @ mix


def weights(rows: int = 10, size: int = 24) -> torch.Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(7))


def plainly(w: np.ndarray, scale: np.ndarray, top: int, h: np.ndarray, damping: float, order: np.ndarray) -> np.ndarray:
    """Column by column, each time with the inverse of what is left of H (Frantar et al. 2022, equations 2 and 3)."""
    h = h[np.ix_(order, order)] + damping * np.mean(np.diag(h)) * np.eye(len(h))
    w, q = w[:, order].copy(), np.zeros_like(w)
    for j in range(len(h)):
        inverse = np.linalg.inv(h[j:, j:])
        q[:, j] = np.clip(np.round(w[:, j] / scale), -top, top)
        lost = (w[:, j] - q[:, j] * scale) / inverse[0, 0]
        w[:, j:] -= lost[:, None] * inverse[0]
    result = np.zeros_like(q)
    result[:, order] = q
    return result


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("block", [1, 7, 128])
def test_integers_are_those_of_plain_float64_code(act_order: bool, block: int) -> None:
    x, w = inputs(), weights()
    h = x.T @ x
    clip = w.abs().amax(1, keepdim=True)
    scale = clip / levels(4)
    inverse, order = inverse_factor(h, 0.01, act_order)

    def nearest(column: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        q = round_to_grid(column, clip, scale, 4)
        return q, q * scale

    found = gptq(w, nearest, inverse, order, block)
    assert act_order or order.tolist() == list(range(24))
    expected = plainly(
        w.double().numpy(), scale[:, 0].double().numpy(), levels(4), h.double().numpy(), 0.01, order.numpy()
    )
    assert (found.numpy() != expected).mean() < 0.005  # float32 may fall on the other side of a half


@pytest.mark.parametrize("bits", [3, 6])
def test_what_comes_out_is_nearer_than_by_rounding(bits: int) -> None:
    x, w = inputs(), weights()
    quantizer = GPTQ(bits=bits, passthrough_numel=0)
    quantizer.hessians = {"w": x.T @ x}
    nearest = RowQuantizer(bits=bits, clip_percentile=1.0, scale_floor=False, passthrough_numel=0)
    errors = []
    for one in (quantizer, nearest):
        stored = dequantize(one.quantize({"w": w}, {"w": SPEC})["w"])
        errors.append(float(((stored - w) @ x.T).norm()))
    assert errors[0] < 0.8 * errors[1]


def test_a_matrix_that_was_not_watched_is_rounded_to_the_nearest() -> None:
    w = weights()
    how = {"bits": 6, "clip_percentile": 1.0, "scale_floor": False, "passthrough_numel": 0}
    one, other = (kind(**how).quantize({"w": w}, {"w": SPEC})["w"].parts["q"] for kind in (GPTQ, RowQuantizer))  # type: ignore[arg-type]
    assert torch.equal(one, other)


def test_inputs_that_were_never_seen_change_nothing_for_the_others() -> None:
    x, w = inputs(), weights()
    x[:, 3] = 0
    quantizer = GPTQ(bits=6, passthrough_numel=0)
    quantizer.hessians = {"w": x.T @ x}
    stored = dequantize(quantizer.quantize({"w": w}, {"w": SPEC})["w"])
    step = w.abs().amax(1) / levels(6)
    assert ((stored[:, 3] - w[:, 3]).abs() <= 0.51 * step).all()


@pytest.mark.parametrize("unseen", [slice(0, 12), slice(0, 24)])
def test_the_unit_of_inputs_does_not_matter(unseen: slice) -> None:
    x, found = inputs(), []
    x[:, unseen] = 0
    for unit in (1.0, 2.0**-20):
        quantizer = GPTQ(bits=3, passthrough_numel=0)
        quantizer.hessians = {"w": (unit * x).T @ (unit * x)}
        found.append(quantizer.quantize({"w": weights()}, {"w": SPEC})["w"].parts["q"])
    assert torch.equal(*found)


def test_inputs_that_say_too_little_are_damped_until_they_serve() -> None:
    x = inputs(3)  # fewer tokens than features
    inverse, _ = inverse_factor(x.T @ x, 1e-12, act_order=True)
    assert inverse.isfinite().all()


def test_second_moments_that_are_no_numbers_are_named() -> None:
    quantizer = GPTQ(passthrough_numel=0)
    quantizer.hessians = {"w": torch.full((24, 24), math.nan)}
    with pytest.raises(ArtifactError, match="tensor w: its inputs"):
        quantizer.quantize({"w": weights()}, {"w": SPEC})


@pytest.mark.parametrize("how", [{"windows": -1}, {"damping": 0.0}, {"block": 0}, {"reserve_s": -1.0}, {"k": 0.0}])
def test_settings_out_of_range_are_named(how: dict[str, float]) -> None:
    (key,) = how
    with pytest.raises(ConfigError, match=rf"quant\.{key}"):
        GPTQ(**how)  # type: ignore[arg-type]


@pytest.mark.parametrize("pack", [True, False])
def test_steps_are_of_k_standard_deviations_by_place_and_only_packed_bits_clip(pack: bool) -> None:
    quantizer = RowQuantizer(bits=6, pack=pack, scale_floor=False, passthrough_numel=0, k={"mlp.*": 2.5, "attn.*": 3.0})
    w = weights(40, 400)
    w[0, 0] = 3 * w.std()
    entry = quantizer.quantize({"w": w}, {"w": SPEC})["w"]
    assert entry.bits == (6 if pack else 7)
    expected = 2.5 * w.std(1, correction=0) / levels(6)
    torch.testing.assert_close(entry.parts["scale"].float(), expected, rtol=1e-3, atol=0)
    error = (dequantize(entry) - w).abs().amax(1) / expected
    assert bool((error > 1).any()) == pack


@pytest.mark.parametrize("k", [12.0, 2.0])
@pytest.mark.parametrize("pack", [True, False])
def test_rows_of_little_spread_about_a_mean_stay_what_they_are(pack: bool, k: float) -> None:
    w = torch.stack((torch.full((400,), 0.7), 1 + 1e-3 * weights(1, 400)[0], torch.zeros(400), weights(1, 400)[0]))
    quantizer = RowQuantizer(bits=6, pack=pack, scale_floor=False, passthrough_numel=0, k=k)
    error = (dequantize(quantizer.quantize({"w": w}, {"w": SPEC})["w"]) - w).abs().amax(1)
    assert (error[:3] <= torch.tensor([1e-3, 6e-3, 0.0])).all()


def test_a_row_that_a_byte_does_not_reach_takes_wider_steps_and_no_other_does() -> None:
    w = weights(2, 4000)
    w[0, 0] = 60 * w[0, 1:].std()
    entry = RowQuantizer(6, scale_floor=False, passthrough_numel=0, k=4.0).quantize({"w": w}, {"w": SPEC})["w"]
    assert entry.bits == 8
    steps = entry.parts["scale"].float()
    assert float(steps[1]) == pytest.approx(4 * float(w[1].std(correction=0)) / levels(6), rel=1e-3)
    assert ((dequantize(entry) - w).abs().amax(1) <= 0.51 * steps).all()


def test_k_settles_a_row_whose_scale_would_have_a_floor() -> None:
    w = 0.01 * weights(4, 400)
    parts = [RowQuantizer(6, scale_floor=floor, k=12.0, passthrough_numel=0).quantize({"w": w}, {"w": SPEC})["w"].parts
             for floor in (True, False)]  # fmt: skip
    assert torch.equal(parts[0]["scale"], parts[1]["scale"])


def test_a_perfect_codec_needs_what_the_formula_says() -> None:
    w = torch.randn(64, 4096, generator=torch.Generator().manual_seed(3)) * torch.logspace(-3, 1, 64)[:, None]
    quantizer = RowQuantizer(bits=6, scale_floor=False, passthrough_numel=0, k=12.0)
    q = quantizer.quantize({"w": w}, {"w": SPEC})["w"].parts["q"]
    share = torch.unique(q, return_counts=True)[1].double() / q.numel()
    assert float(-(share * share.log2()).sum()) == pytest.approx(coded_bits(6, 12.0), rel=1e-3)


@pytest.fixture(scope="module")
def model() -> GPT:
    with composer():
        built = build_model(resolved(compose_job(list(SIZES))), "float32")
    built.initialize(1)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(5)))
    return built


def test_without_windows_it_rounds_and_keeps_no_time(model: GPT, tmp_path: Path) -> None:
    data = random_prepared(260, 2_000, tmp_path).train
    quantizer = GPTQ(windows=0, bits=4, k=6.0, passthrough_numel=0)
    quantizer.calibrate(Trained(model, data, Ranks(), seed=3, seq_len=16))
    nearest = RowQuantizer(4, clip_percentile=1.0, scale_floor=False, passthrough_numel=0, k=6.0)
    assert quantizer.reserve_s == 0
    pair = [one.quantize(model.state_dict(), model.specs()) for one in (quantizer, nearest)]
    assert all(torch.equal(dequantize(entry), dequantize(pair[1][name])) for name, entry in pair[0].items())


@pytest.mark.parametrize("sequential", [False, True])
def test_every_matrix_of_a_model_gains(model: GPT, tmp_path: Path, sequential: bool) -> None:
    data = random_prepared(260, 20_000, tmp_path).train
    trained = Trained(model, data, Ranks(), seed=3, seq_len=16)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with composer():
        config = resolved(compose_job([*SIZES, "quant=int6_gptq", f"quant.sequential={sequential}", "quant.bits=4"]))
    quantizer = make(config["quant"], "quant")
    quantizer.calibrate(trained)
    model.load_state_dict(before)
    nearest = RowQuantizer(4, scale_floor=False, passthrough_numel=0, k=quantizer.k)
    state, specs = model.state_dict(), model.specs()
    kept = [one.quantize(state, specs) for one in (quantizer, nearest)]
    assert {"embedding", "blocks.1.mlp.down.weight"} <= quantizer.hessians.keys()
    for name, h in quantizer.hessians.items():
        losses = []
        for entries in kept:
            lost = dequantize(entries[name]).float() - state[name].float()
            losses.append(float(((lost @ h) * lost).sum()))
        assert losses[0] < losses[1], name
