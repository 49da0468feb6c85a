"""The warmdown on both clocks, momentum, the adaptive cap, and scaling to a budget's fraction."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Literal

import pytest

from golf.common.errors import ConfigError
from golf.learn.averaging import EMA, SWA, NoAveraging
from golf.learn.budget import SCALED_BY, Budget, rescale_components, scale_by_fraction, scale_decay, scale_steps
from golf.learn.optimizer import Optimizer
from golf.learn.schedule import Warmdown, momentum_at


@pytest.mark.parametrize(
    ("warmdown_iters", "step_ms", "step", "multiplier"),
    [
        (1200, 43.54, 12580, 1.0),
        (1200, 43.54, 12581, 0.99953),
        (1200, 43.54, 13000, 0.65036),
        (1200, 43.54, 13779, 0.00119),
        (3000, 53.91, 8131, 0.99955),
        (3000, 53.91, 9631, 0.49955),
        (3000, 53.91, 11129, 0.00022),
        (3000, 108.9, 2510, 0.99988),
        (3000, 108.9, 4000, 0.50321),
        (3000, 108.9, 5346, 0.05455),
    ],
)
def test_wall_clock_table(warmdown_iters: int, step_ms: float, step: int, multiplier: float) -> None:
    schedule = Warmdown(warmdown_iters=warmdown_iters)
    assert schedule.multiplier(step, step * step_ms / 1000, 600.0) == pytest.approx(multiplier, abs=1e-5)


@pytest.mark.parametrize(
    ("step_ms", "limit"),
    [(50, 6600), (108.5, 3040), (109.2, 3021), (112, 2946), (150, 2200), (200, 1650), (400, 825)],
)
def test_adaptive_cap_table(step_ms: float, limit: int) -> None:
    schedule = Warmdown(warmdown_iters=10_000, adaptive_cap=0.55)
    line = schedule.adapt(100, step_ms / 10, 600.0)
    assert schedule.warmdown_iters == limit
    assert line is not None
    assert str(limit) in line
    assert "10000" in line


def test_adaptive_cap_only_shortens_and_speaks_once() -> None:
    schedule = Warmdown(warmdown_iters=3000, adaptive_cap=0.55)
    assert schedule.adapt(100, 10.85, 600.0) is None
    assert schedule.warmdown_iters == 3000
    lines = [schedule.adapt(step, 0.2 * step, 600.0) for step in range(1, 300)]
    assert [line is not None for line in lines] == [step == 100 for step in range(1, 300)]
    resumed = Warmdown(warmdown_iters=3000, adaptive_cap=0.55)
    resumed.load_state_dict(schedule.state_dict())
    assert resumed.warmdown_iters == schedule.warmdown_iters == 1650


def test_adaptive_cap_is_off_without_a_clock_or_setting() -> None:
    assert Warmdown(warmdown_iters=9000).adapt(100, 40.0, 600.0) is None
    assert Warmdown(warmdown_iters=9000, adaptive_cap=0.5).adapt(100, 40.0, None) is None
    assert Warmdown(warmdown_iters=9000, adaptive_cap=0.5, clock="steps").adapt(100, 40.0, 600.0) is None


SCHEDULES = [
    Warmdown(iterations=1000, warmdown_iters=300, clock="steps"),
    Warmdown(iterations=1000, warmdown_frac=0.4, clock="steps", floor=0.1),
    Warmdown(iterations=1000, warmdown_iters=2000, clock="steps"),
    Warmdown(warmdown_iters=300),
    Warmdown(warmdown_iters=3000, floor=0.05),
    Warmdown(warmdown_frac=0.85, floor=0.1),
]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_at_an_even_pace_it_only_falls_and_stays_in_range(schedule: Warmdown) -> None:
    values = [schedule.multiplier(step, 0.1 * step, 100.0) for step in range(1, 1001)]
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(values))
    assert all(schedule.floor <= value <= 1.0 for value in values)
    assert values[-1] == pytest.approx(schedule.floor, abs=1e-9)


def test_steps_clock_is_linear_and_ignores_time() -> None:
    schedule = Warmdown(iterations=100, warmdown_iters=50, clock="steps")
    assert [schedule.multiplier(step, 1e9, 1.0) for step in (0, 49, 50, 75, 99)] == [1.0, 1.0, 1.0, 0.5, 0.02]


def test_steps_clock_with_fewer_steps_than_warmdown_starts_below_one() -> None:
    assert Warmdown(iterations=30, warmdown_iters=60, clock="steps").multiplier(0, 0.0, None) == 0.5


def test_wall_clock_without_a_limit_is_bound_by_steps() -> None:
    wall, steps = (Warmdown(iterations=100, warmdown_iters=50, clock=clock) for clock in ("wall", "steps"))  # type: ignore[arg-type]
    assert all(wall.multiplier(s, 3.0 * s, None) == steps.multiplier(s, 0.0, None) for s in range(100))


def test_wall_clock_starts_at_one_and_ends_at_zero() -> None:
    schedule = Warmdown(warmdown_iters=1200)
    assert schedule.multiplier(0, 0.0, 600.0) == 1.0
    assert schedule.multiplier(500, 600.0, 600.0) == 0.0
    assert schedule.multiplier(500, 700.0, 600.0) == 0.0


@pytest.mark.parametrize("clock", ["wall", "steps"])
def test_no_warmdown_is_constant(clock: str) -> None:
    schedule = Warmdown(iterations=10, warmdown_iters=0, clock=clock)  # type: ignore[arg-type]
    assert [schedule.multiplier(step, step, 9.5) for step in range(10)] == [1.0] * 10


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"iterations": 0}, "schedule.iterations"),
        ({"warmup_steps": -1}, "schedule.warmup_steps"),
        ({"warmdown_iters": -1}, "schedule.warmdown_iters"),
        ({"warmdown_frac": 1.5}, "schedule.warmdown_frac"),
        ({"floor": -0.1}, "schedule.floor"),
        ({"clock": "sun"}, "schedule.clock"),
        ({"adaptive_cap": 0.0}, "schedule.adaptive_cap"),
        ({"adaptive_cap": 0.5, "warmdown_frac": 0.5}, "schedule.adaptive_cap"),
        ({"adaptive_cap_step": 0}, "schedule.adaptive_cap_step"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        Warmdown(**settings)  # type: ignore[arg-type]


def test_momentum_rises_linearly_then_stays() -> None:
    values = [momentum_at(step, 0.85, 0.95, 500) for step in (0, 250, 500, 5000)]
    assert values == pytest.approx([0.85, 0.90, 0.95, 0.95])
    assert momentum_at(0, 0.85, 0.95, 0) == 0.95


def test_scaling_gives_the_published_proxy_settings() -> None:
    record = {"warmdown_iters": 3000, "momentum_warmup_steps": 1500, "swa_every": 200, "ema_decay": 0.997}
    result = scale_by_fraction(record, Budget(fraction=0.125), nproc=8)
    assert result.scaled == pytest.approx(
        {
            "train_seconds": 75.0,
            "warmdown_iters": 375,
            "momentum_warmup_steps": 188,
            "swa_every": 25,
            "ema_decay": 0.976,
        },
        abs=3e-4,
    )
    assert result.record == {"train_seconds": 600.0, **record}
    baseline = scale_by_fraction({"warmdown_iters": 1200, "momentum_warmup_steps": 500}, Budget(fraction=0.125), 8)
    assert (baseline.scaled["warmdown_iters"], baseline.scaled["momentum_warmup_steps"]) == (150, 62)


def test_a_whole_record_scales_to_itself() -> None:
    record = {"warmdown_iters": 1200, "ema_decay": 0.997}
    assert scale_by_fraction(record, Budget(), nproc=8).scaled == {"train_seconds": 600.0, **record}


def test_fewer_gpus_get_more_seconds_but_the_same_steps() -> None:
    result = scale_by_fraction({"warmdown_iters": 800}, Budget(fraction=0.5), nproc=2)
    assert result.scaled == {"train_seconds": 1200.0, "warmdown_iters": 400}


def test_scaled_steps_are_at_least_one_and_zero_stays_off() -> None:
    assert scale_steps(200, 1e-6) == 1
    assert scale_steps(0, 0.5) == 0
    assert scale_decay(0.99, 0.5) == pytest.approx(0.9801)


def test_without_a_clock_there_is_none_to_scale() -> None:
    assert scale_by_fraction({}, Budget(train_seconds=None, fraction=0.1), 1).scaled == {"train_seconds": None}


def test_components_take_their_scaled_settings() -> None:
    optimizer, schedule = Optimizer(momentum_warmup_steps=500), Warmdown(warmdown_iters=1200)
    swa, ema = SWA(every=200), EMA(decay=0.997)
    for averaging in (swa, ema, NoAveraging()):
        optimizer.momentum_warmup_steps, schedule.warmdown_iters = 500, 1200
        result = rescale_components([optimizer, schedule, averaging], Budget(fraction=0.1), nproc=1)
        assert (optimizer.momentum_warmup_steps, schedule.warmdown_iters) == (50, 120)
        assert result.record["warmdown_iters"] == 1200
        assert result.scaled["train_seconds"] == pytest.approx(480.0)
    assert swa.every == 20
    assert ema.decay == pytest.approx(0.997**10)


def test_an_unknown_setting_cannot_be_scaled() -> None:
    with pytest.raises(ValueError, match="patience"):
        scale_by_fraction({"patience": 3}, Budget(), 1)


@pytest.mark.parametrize(
    "settings",
    [{"train_seconds": 0.0}, {"eval_seconds": -1.0}, {"artifact_bytes": 0}, {"fraction": 0.0}, {"reference_nproc": 0}],
)
def test_budgets_must_be_positive(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"budget.{next(iter(settings))}"):
        Budget(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("clock", "seconds", "used"),
    [("steps", None, 200), ("steps", 600.0, 200), ("wall", None, 200), ("wall", 600.0, 1200)],
)
def test_a_warmdown_longer_than_a_run_bound_by_steps_is_shortened(
    clock: Literal["wall", "steps"], seconds: float | None, used: int, caplog: pytest.LogCaptureFixture
) -> None:
    schedule = Warmdown(iterations=200, warmdown_iters=1200, clock=clock)
    with caplog.at_level("WARNING"):
        result = rescale_components([schedule], Budget(train_seconds=seconds), nproc=8)
    assert (result.record["warmdown_iters"], result.scaled["warmdown_iters"]) == (1200, used)
    assert schedule.multiplier(0, 0.0, result.scaled["train_seconds"]) == 1.0
    assert ("1200 steps are more than the run's 200" in caplog.text) == (used == 200)


def test_a_warmdown_that_fits_once_scaled_is_left_alone() -> None:
    schedule = Warmdown(iterations=200, warmdown_iters=1200, clock="steps")
    assert rescale_components([schedule], Budget(fraction=0.1), nproc=1).scaled["warmdown_iters"] == 120


def test_a_part_of_the_run_is_left_alone() -> None:
    schedule = Warmdown(iterations=200, warmdown_iters=1200, warmdown_frac=0.5, clock="steps")
    rescale_components([schedule], Budget(), nproc=1)
    assert [schedule.multiplier(step, 0.0, None) for step in (0, 99, 150)] == [1.0, 1.0, 0.5]


def test_the_cap_looks_at_the_same_part_of_a_run_of_any_fraction() -> None:
    schedule = Warmdown(warmdown_iters=10_000, adaptive_cap=0.5)
    scaled = rescale_components([schedule], Budget(fraction=0.125), nproc=8)
    assert (scaled.record["adaptive_cap_step"], scaled.scaled["adaptive_cap_step"]) == (100, 12)
    assert schedule.adapt(12, 12.0, 75.0) is not None
    kept = Warmdown(warmdown_iters=10_000, adaptive_cap=0.5, adaptive_cap_scaled=False)
    rescale_components([kept], Budget(fraction=0.125), nproc=8)
    assert kept.adaptive_cap_step == 100
    assert Warmdown().horizons()["adaptive_cap_step"] is None


def test_the_documented_list_of_scaled_settings_is_the_code_s() -> None:
    page = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")
    groups = {"momentum_warmup_steps": "optimizer"} | dict.fromkeys(
        ("swa_every", "ema_decay", "ema_update_every"), "averaging"
    )
    keys = {"swa_every": "every", "ema_decay": "decay", "ema_update_every": "update_every"}
    told = {scale_steps: "× `fraction`, at least 1; 0 stays 0", scale_decay: "decay^(1 / fraction)"}
    for rule, words in told.items():
        (row,) = [line for line in page.splitlines() if line.endswith(f"| {words} |")]
        of_rule = [name for name, scale in SCALED_BY.items() if scale is rule]
        documented = set(re.findall(r"`([a-z_]+\.[a-z_]+)`", row.split("|")[1]))
        assert documented == {f"{groups.get(name, 'schedule')}.{keys.get(name, name)}" for name in of_rule}
    assert {*SCALED_BY.values()} == {*told}


@pytest.mark.parametrize("reserve", [0.0, 4.0])
def test_a_part_of_the_run_is_the_same_part_by_clock_and_by_steps(reserve: float) -> None:
    by_clock, by_steps = (Warmdown(iterations=1000, warmdown_frac=0.85, floor=0.1, clock=c) for c in ("wall", "steps"))  # type: ignore[arg-type]
    seconds = 100.0 - reserve  # what calibration is to have, no step can take
    fractions = {0.0: 1.0, 0.15: 1.0, 0.575: 0.5, 0.915: 0.1, 0.99: 0.1, 1.0: 0.1}
    for fraction, multiplier in fractions.items():
        assert by_clock.multiplier(7, fraction * seconds, seconds) == pytest.approx(multiplier)
        assert by_steps.multiplier(round(1000 * fraction), 1e9, seconds) == pytest.approx(multiplier)
