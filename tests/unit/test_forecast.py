"""An artifact's bytes before it is trained: against formulas, against whole files, and what a sweep makes of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from golf.artifact.codecs import Brotli, Codec, Zlib, Zstd
from golf.artifact.container import artifact_size
from golf.common.ranks import Ranks
from golf.launch.sweep.job import SweepJob
from golf.launch.sweep.room import too_large
from golf.launch.work import growth
from golf.launch.work.bench import compose_jobs
from golf.launch.work.forecast import Measure, drawn, file_bytes, forecast
from golf.learn.muon import Muon
from golf.learn.optimizer import Optimizer
from golf.learn.schedule import Warmdown
from golf.nn.params import ParamSpec
from golf.quant.lqer import LowRank
from golf.quant.rowwise import RowQuantizer

SMALL = ("recipe=quickstart", "model.num_layers=3", "model.model_dim=128", "runtime.device=cpu")
K_GRIDS = ("quant=int6_gptq", "codec=ans")


def config(*words: str) -> dict[str, Any]:
    return compose_jobs([*SMALL, *words], [], multirun=False, here=False)[0].config


def test_grids_by_spread_take_what_the_formula_says() -> None:
    found = forecast(config(*K_GRIDS, "quant.k=12.85", "quant.bits=6", "model.num_layers=1", "model.model_dim=512"))
    matrices = [one for one in found.tensors if one.k is not None]
    levels = 2**5 - 1
    bits = math.log2(math.sqrt(2 * math.pi * math.e * ((levels / 12.85) ** 2 + 1 / 12)))
    assert sum(one.bytes for one in matrices) == pytest.approx(sum(one.values for one in matrices) * bits / 8, rel=0.02)


def test_all_bytes_are_in_the_ledger() -> None:
    found = forecast(config(*K_GRIDS))
    by_place = found.by(lambda one: one.place)
    assert sum(one.bytes for group in by_place.values() for one in group) + found.container == pytest.approx(
        found.model, abs=1
    )
    assert found.left == found.limit - found.model - found.code
    assert found.least < found.model < found.most


def test_corrections_are_counted() -> None:
    plain, more = (forecast(config(*K_GRIDS, "quant.lqer.by=inputs", f"quant.lqer.tensors={n}")) for n in (0, 3))
    assert plain.model + 1_000 < more.model < plain.model + 10_000


def test_a_fit_reaches_what_a_run_would() -> None:
    limit = forecast(config(*K_GRIDS)).code + 250_000
    found = forecast(config(*K_GRIDS, f"budget.artifact_bytes={limit}", f"quant.fit={limit}"))
    assert 0.997 * 250_000 <= found.model <= 250_000
    assert found.times not in (None, 1.0)


@pytest.mark.parametrize("codec", [Zlib(), Zstd(), Brotli(quality=5, byte_planes=True)])
@pytest.mark.parametrize("quantizer", [RowQuantizer(), RowQuantizer(bits=6, pack=True, lqer=LowRank(3))])
def test_a_sample_stands_for_the_whole(codec: Codec, quantizer: RowQuantizer) -> None:
    specs = {
        **{f"up{n}": ParamSpec(role="matrix", place="mlp.up", layer=n) for n in range(6)},
        **{f"q{n}": ParamSpec(role="matrix", place="attn.q", layer=n) for n in range(2)},
    }
    state = drawn({name: torch.empty(512, 512) for name in specs}, dict.fromkeys(specs, 0.1))
    entries = quantizer.quantize(state, specs)
    assert file_bytes(entries, Measure(codec, repr(vars(codec)))) == pytest.approx(
        artifact_size(entries, codec), rel=0.005
    )


@pytest.mark.parametrize(("steps", "momentum", "decay"), [(20, 0.95, 0.0), (80, 0.5, 0.0), (80, 0.9, 1.0)])
def test_a_matrix_goes_as_far_as_is_foretold(steps: int, momentum: float, decay: float) -> None:
    specs = {"up": ParamSpec(role="matrix", place="mlp.up", layer=0)}
    optimizer = Optimizer(
        matrix=Muon, matrix_lr=0.02, momentum=momentum, momentum_start=0.8, momentum_warmup_steps=10,
        matrix_weight_decay=decay,
    )  # fmt: skip
    schedule = Warmdown(iterations=steps, warmdown_iters=steps // 4, clock="steps")
    random = torch.Generator().manual_seed(1)
    weight = torch.nn.Parameter(0.05 * torch.randn(96, 64, generator=random))
    foretold = growth.spreads(optimizer, schedule, steps, specs, {"up": weight.detach().clone()}, tied=True)["up"]
    optimizer.attach({"up": weight}, specs, Ranks(), tied=True)
    for step in range(steps):
        weight.grad = torch.randn(96, 64, generator=random)
        optimizer.step(step, schedule.multiplier(step, float(step), float(steps)))
    assert foretold.likely == pytest.approx(float(weight.detach().std()), rel=0.25)


def test_longer_training_takes_more_bytes_where_steps_are_fixed() -> None:
    short, long = (forecast(config("quant=int8", f"schedule.iterations={steps}")) for steps in (50, 400))
    assert short.model < 0.95 * long.model
    assert short.least < 0.98 * short.model  # its range says so


def test_a_clock_s_end_is_where_the_record_met_it() -> None:
    words = [
        "recipe=naive_baseline", "model.num_layers=1", "model.model_dim=64", "model.num_heads=4", "budget.fraction=0.1",
    ]  # fmt: skip
    one, other = (
        compose_jobs([*words, *more], [], multirun=False, here=False)[0].config
        for more in ([], ["schedule.iterations=200"])
    )
    assert forecast(one).steps == 1378
    assert forecast(other).steps == 200


def job(*words: str) -> SweepJob:
    return SweepJob(7, [], config(*words), Path("nowhere"))


def test_a_job_that_will_be_too_large_is_told_with_its_bytes() -> None:
    one = job(*K_GRIDS, "budget.artifact_bytes=200000")
    told = too_large(one)
    assert f"{forecast(one.config).artifact:,} bytes" in told
    assert one.over > 0


@pytest.mark.parametrize("words", [(), ("budget.artifact_bytes=200000", "quant.fit=200000")])
def test_a_job_that_fits_or_is_fitted_is_started(words: tuple[str, ...]) -> None:
    assert too_large(job(*K_GRIDS, *words)) == ""
