"""Steps of grids by what rounding costs in loss."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from golf.common.errors import ConfigError
from golf.common.ranks import Ranks
from golf.data.random_tokens import random_prepared
from golf.launch.compose.build import build_model, make
from golf.launch.compose.configs import compose_job, composer, resolved
from golf.quant.calibration import Trained
from golf.quant.entry import dequantize
from golf.quant.gptq import GPTQ
from golf.quant.spread import FARTHEST, Cost, frequency_multipliers, multipliers

SIZES = ("recipe=quickstart", "tokenizer=byte260", "model.model_dim=32", "model.num_heads=4", "model.num_kv_heads=2",
         "model.num_layers=2", "train_seq_len=16", "logger=jsonl", "keep_below=0", "quant=int6_gptq")  # fmt: skip


def test_equal_costs_a_value_leave_everything_as_it_is() -> None:
    found = multipliers([Cost(("a",), 100, 0.1), Cost(("b",), 900, 0.9)])
    assert found == pytest.approx({"a": 1.0, "b": 1.0}, rel=1e-6)


def test_steps_are_the_inverse_root_of_what_a_value_costs() -> None:
    costs = [Cost(("a",), 100, 0.4), Cost(("b",), 100, 0.1), Cost(("c", "d"), 200, 0.05)]
    found = multipliers(costs)
    assert found["c"] == found["d"]
    for one, other in (("a", "b"), ("b", "c")):
        mine, its = (next(c for c in costs if name in c.names) for name in (one, other))
        assert found[one] / found[other] == pytest.approx(math.sqrt(its.loss / its.values * mine.values / mine.loss))


def test_the_bits_stay_the_same_also_where_some_stand_at_the_limits() -> None:
    costs = [Cost(("a",), 500, 1.0), Cost(("b",), 400, 1e-3), Cost(("c",), 100, 0.0)]
    found = multipliers(costs)
    assert sum(c.values * math.log2(found[c.names[0]]) for c in costs) == pytest.approx(0, abs=1e-3)
    assert max(found.values()) <= FARTHEST
    assert min(found.values()) >= 1 / FARTHEST


def test_nothing_is_spread_where_nothing_costs() -> None:
    assert multipliers([Cost(("a",), 100, 0.0)]) == {}


def test_a_grid_without_k_cannot_be_spread() -> None:
    with pytest.raises(ConfigError, match=r"quant\.spread=place: needs quant\.k"):
        GPTQ(spread="place")


@pytest.mark.parametrize("by", ["place", "tensor"])
@pytest.mark.parametrize("border_id", [None, 7])
def test_predictions_move_less_for_the_same_bits(by: str, border_id: int | None, tmp_path: Path) -> None:
    with composer():
        config: dict[str, Any] = resolved(compose_job([*SIZES, f"quant.spread={by}", "quant.spread_windows=16"]))
    model = build_model(config, "float32")
    model.initialize(1)
    with torch.no_grad():
        for number, (name, parameter) in enumerate(model.named_parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
            if name.endswith("weight"):  # attention hardly matters, and the last layer less than the first
                parameter.mul_((0.1 if "attn" in name else 1.0) * (0.3 if "blocks.1" in name else 1.0))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    data = random_prepared(260, 20_000, tmp_path).train
    trained = Trained(model, data, Ranks(), seed=3, seq_len=16, border_id=border_id)
    ids = next(iter(trained.batches(64, seed=99)))
    exact = trained.log_probabilities(ids)
    quantizer = make(config["quant"], "quant")
    quantizer.calibrate(trained)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    spread = quantizer.facts()["times_by_name"]
    assert {"embedding", "blocks.1.mlp.down.weight"} <= spread.keys()
    moved, bits = [], []
    for by_name in (spread, {}):
        quantizer.times_by_name = by_name
        entries = quantizer.draft(before, model.specs())
        bits.append(sum(log2_spread(entry.parts["q"]) for entry in entries.values() if entry.scheme == "per_row"))
        model.load_state_dict({name: dequantize(entry) for name, entry in entries.items()})
        moved.append(float((exact.exp() * (exact - trained.log_probabilities(ids))).sum()))
    assert bits[0] == pytest.approx(bits[1], rel=0.03)
    assert moved[0] < 0.9 * moved[1], moved


def log2_spread(q: torch.Tensor) -> float:
    """Bits of integers as if they were Gaussian."""
    return q.numel() * 0.5 * math.log2(2 * math.pi * math.e * (float(q.float().var()) + 1 / 12))


def test_rare_tokens_have_wider_steps_for_as_many_bits() -> None:
    counts = torch.tensor([0, 1, 10, 100, 1_000, 10_000, 10_000_000])
    times = frequency_multipliers(counts, 0.25)
    assert bool((times[1:] <= times[:-1]).all())
    assert float(times[0]) > 2 > 0.5 > float(times[-1])
    assert float(times.log2().mean()) == pytest.approx(0, abs=1e-6)
    assert float(times[2] / times[3]) == pytest.approx((101 / 11) ** 0.25, rel=1e-4)


def test_rows_of_the_vocabulary_go_by_frequency(tmp_path: Path) -> None:
    with composer():
        config: dict[str, Any] = resolved(compose_job([*SIZES, "quant.by_frequency=0.25", "quant.windows=0"]))
    model = build_model(config, "float32")
    model.initialize(1)
    trained = Trained(model, random_prepared(260, 20_000, tmp_path).train, Ranks(), seed=3, seq_len=16)
    quantizer = make(config["quant"], "quant")
    quantizer.calibrate(trained)
    assert list(quantizer.times_by_name) == ["embedding"]
    assert list(quantizer.facts()["times_by_name"]) == ["embedding"]
    state = dict(model.state_dict())
    common = int(trained.counts().argmax())
    scales = [quantizer.draft(state, model.specs())["embedding"].parts["scale"][common]]
    quantizer.times_by_name = {}
    scales.append(quantizer.draft(state, model.specs())["embedding"].parts["scale"][common])
    assert scales[0] < scales[1]
