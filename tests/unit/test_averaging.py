"""SWA and EMA against the sums written out by hand, and their rules for having nothing to give."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from golf.common.errors import ArtifactError, ConfigError
from golf.common.progress import Progress
from golf.learn.averaging import EMA, SWA, Averaging, NoAveraging
from golf.train.state import cloned


def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "embed": torch.randn(5, 3).bfloat16(),
        "matrix": torch.nn.Parameter(torch.randn(4, 3)),
        "gain": torch.randn(3),
    }


def drive(
    averaging: Averaging, live: dict[str, Tensor], steps: range, multiplier: float = 0.4
) -> list[dict[str, Tensor]]:
    """Move the weights at every step as training does, in place; the weights after each step."""
    history = []
    for step in steps:
        with torch.no_grad():
            for tensor in live.values():
                tensor.add_(torch.full_like(tensor, 0.01 * step))
        averaging.update(step, multiplier)
        history.append({name: tensor.detach().clone() for name, tensor in live.items()})
    return history


def test_none_gives_nothing_and_says_nothing() -> None:
    averaging = NoAveraging()
    averaging.attach(weights())
    drive(averaging, weights(), range(1, 4))
    assert averaging.average() is None
    assert averaging.reason is None
    assert averaging.state_dict() == {}


@pytest.mark.parametrize("store", ["device", "cpu"])
def test_swa_is_the_mean_of_every_nth_in_native_dtypes(store: str) -> None:
    live, swa = weights(), SWA(every=3, store=store)  # type: ignore[arg-type]
    swa.attach(live)
    history = drive(swa, live, range(1, 11))
    average = swa.average()
    assert average is not None
    assert swa.count == 3
    for name, tensor in live.items():
        third, sixth, ninth = (history[step - 1][name] for step in (3, 6, 9))
        assert torch.equal(average[name], (third + sixth + ninth) / 3)  # in bf16 for the embedding
        assert average[name].dtype == tensor.dtype


def test_swa_may_sum_in_fp32() -> None:
    live, swa = weights(), SWA(every=1, native_dtypes=False)
    swa.attach(live)
    history = drive(swa, live, range(1, 31))
    exact = torch.stack([state["embed"].float() for state in history]).mean(0)
    average = swa.average()
    assert average is not None
    torch.testing.assert_close(average["embed"], exact.bfloat16(), rtol=2**-8, atol=0)


def test_swa_collects_only_strictly_below_its_multiplier() -> None:
    live, swa = weights(), SWA(every=1, start_multiplier=0.5)
    swa.attach(live)
    drive(swa, live, range(1, 5), multiplier=0.5)
    assert swa.count == 0
    drive(swa, live, range(5, 8), multiplier=0.49)
    assert swa.count == 3


@pytest.mark.parametrize("collected", [0, 1])
def test_swa_with_too_few_says_so(collected: int) -> None:
    live, swa = weights(), SWA(every=5)
    swa.attach(live)
    drive(swa, live, range(1, 5 * collected + 2))
    assert swa.average() is None
    assert swa.reason is not None
    assert f"collected {collected}" in swa.reason
    assert "raw weights" in swa.reason


def test_ema_follows_its_recurrence_in_fp32() -> None:
    live, ema = weights(), EMA(decay=0.9)
    shadow = {name: tensor.detach().float().clone() for name, tensor in live.items()}
    ema.attach(live)
    for state in drive(ema, live, range(1, 20), multiplier=1.0):
        shadow = {name: 0.9 * s + 0.1 * state[name].float() for name, s in shadow.items()}
    average = ema.average()
    assert average is not None
    for name, expected in shadow.items():
        assert average[name].dtype == live[name].dtype
        torch.testing.assert_close(ema.state_dict()[f"shadow/{name}"], expected, rtol=1e-6, atol=1e-6)
        assert torch.equal(average[name], ema.state_dict()[f"shadow/{name}"].to(live[name].dtype))


def test_ema_of_resting_weights_is_the_weights() -> None:
    live, ema = weights(), EMA()
    ema.attach(live)
    for step in range(1, 50):
        ema.update(step, 1.0)
    average = ema.average()
    assert average is not None
    for name, tensor in live.items():
        torch.testing.assert_close(average[name], tensor.detach(), rtol=1e-5, atol=0)


def test_late_ema_starts_at_the_weights_of_its_first_step() -> None:
    live, ema = weights(), EMA(decay=0.9, start_multiplier=0.6)
    ema.attach(live)
    drive(ema, live, range(1, 3), multiplier=0.6)
    assert ema.average() is None
    assert ema.reason is not None
    assert "never started" in ema.reason
    last = drive(ema, live, range(3, 4), multiplier=0.59)[-1]
    average = ema.average()
    assert average is not None
    assert ema.reason is None
    assert all(torch.equal(average[name], last[name]) for name in live)


def drive_to_the_end(averaging: Averaging, live: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Ten steps of a run, told how far it is before each."""
    history = []
    for step in range(1, 11):
        averaging.at_step(Progress(step - 1, fraction=(step - 1) / 10))  # type: ignore[attr-defined]
        history += drive(averaging, live, range(step, step + 1), multiplier=1.0)
    return history


def test_averages_may_begin_at_a_fraction_of_the_run() -> None:
    live, ema, swa = weights(), EMA(decay=0.9, start_frac=0.6), SWA(every=1, native_dtypes=False, start_frac=0.6)
    ema.attach(live)
    swa.attach(live)
    assert ema.average() is None
    assert "60 % of the run" in str(ema.reason)
    history = drive_to_the_end(ema, live)
    shadow = history[6]["matrix"]  # of the step that begins at six tenths
    for state in history[7:]:
        shadow = 0.9 * shadow + 0.1 * state["matrix"]
    average = ema.average()
    assert average is not None
    torch.testing.assert_close(average["matrix"], shadow, rtol=1e-6, atol=1e-6)
    history = drive_to_the_end(swa, live)
    mean = swa.average()
    assert mean is not None
    torch.testing.assert_close(mean["matrix"], torch.stack([one["matrix"] for one in history[6:]]).mean(0))


def test_ema_of_every_third_step_has_the_same_memory() -> None:
    live, ema = weights(), EMA(decay=0.9, update_every=3)
    shadow = live["matrix"].detach().clone()
    ema.attach(live)
    history = drive(ema, live, range(1, 12))
    for step in (3, 6, 9):
        shadow = 0.9**3 * shadow + (1 - 0.9**3) * history[step - 1]["matrix"]
    torch.testing.assert_close(ema.state_dict()["shadow/matrix"], shadow, rtol=1e-6, atol=1e-6)


def test_averages_are_copies() -> None:
    for averaging in (EMA(), SWA(every=1)):
        live = weights()
        averaging.attach(live)
        drive(averaging, live, range(1, 4))
        first, second = averaging.average(), averaging.average()
        assert first is not None
        assert second is not None
        first["gain"].zero_()
        assert not torch.equal(second["gain"], first["gain"])
        again = averaging.average()
        assert again is not None
        assert torch.equal(again["gain"], second["gain"])


def averages() -> list[Averaging]:
    return [
        EMA(decay=0.5, update_every=2),
        EMA(decay=0.5, start_multiplier=0.45),
        SWA(every=1),
        SWA(every=2, native_dtypes=False),
    ]


@pytest.mark.parametrize("number", range(4))
def test_a_tensor_that_is_replaced_is_averaged_as_one_that_is_written_to(number: int) -> None:
    kept, replaced = averages()[number], averages()[number]
    one, other = weights(), weights()
    kept.attach(one)
    replaced.attach(other)
    for step in range(1, 8):
        drive(kept, one, range(step, step + 1))
        other["gain"] = other["gain"].clone()
        other["matrix"].data = other["matrix"].data.clone()
        drive(replaced, other, range(step, step + 1))
    expected, found = kept.average(), replaced.average()
    assert expected is not None
    assert found is not None
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("number", range(4))
def test_counts_and_flags_are_the_present_ones(number: int) -> None:
    averaging = averages()[number]
    live = {"gain": torch.ones(3), "count": torch.tensor(0), "flag": torch.tensor([True, False])}
    averaging.attach(live)
    for step in range(1, 8):
        live["count"] = torch.tensor(step)
        live["flag"].logical_not_()
        averaging.update(step, 0.4)
    average = averaging.average()
    assert average is not None
    assert (average["count"].item(), average["count"].dtype) == (7, torch.int64)
    assert average["flag"].tolist() == live["flag"].tolist() == [False, True]


@pytest.mark.parametrize("number", range(4))
def test_what_comes_changes_its_shape_or_goes_is_taken_as_it_is(number: int) -> None:
    averaging = averages()[number]
    live = {"gain": torch.ones(3), "grows": torch.ones(1), "goes": torch.ones(1)}
    averaging.attach(live)
    for step in range(1, 5):
        live["gain"].fill_(step)
        averaging.update(step, 0.4)
    live["grows"], live["comes"] = torch.full((2,), 7.0), torch.full((1,), 8.0)
    del live["goes"]
    for step in range(5, 9):
        averaging.update(step, 0.4)
    average = averaging.average()
    assert average is not None
    assert set(average) == {"gain", "grows", "comes"}
    assert (average["grows"].tolist(), average["comes"].tolist()) == ([7.0, 7.0], [8.0])
    assert 1 < average["gain"][0] < 4.1


@pytest.mark.parametrize(
    "make",
    [lambda: SWA(every=2), lambda: EMA(0.9), lambda: EMA(0.9, update_every=3), lambda: EMA(0.9, start_multiplier=0.45)],
)
@pytest.mark.parametrize("stop", [1, 2, 7])
def test_resuming_changes_nothing(make: object, stop: int) -> None:
    straight, live = make(), weights()  # type: ignore[operator]
    straight.attach(live)
    drive(straight, live, range(1, 12))

    first, live = make(), weights()  # type: ignore[operator]
    first.attach(live)
    drive(first, live, range(1, stop + 1))
    saved, kept = cloned(first.state_dict()), cloned(live)
    drive(first, live, range(stop + 1, 15))
    with torch.no_grad():
        for name, tensor in live.items():
            tensor.copy_(kept[name])
    resumed = make()  # type: ignore[operator]
    resumed.attach(live)
    resumed.load_state_dict(saved)
    drive(resumed, live, range(stop + 1, 12))

    expected, actual = straight.average(), resumed.average()
    assert expected is not None
    assert actual is not None
    assert all(torch.equal(expected[name], actual[name]) for name in live)


@pytest.mark.parametrize("make", [lambda: SWA(every=2), lambda: EMA(0.9)])
def test_state_is_taken_back_beside_a_buffer_that_has_come_since(make: object) -> None:
    averaging, live = make(), weights()  # type: ignore[operator]
    averaging.attach(live)
    drive(averaging, live, range(1, 3))
    live["mean"] = torch.ones(2)
    drive(averaging, live, range(3, 7))
    state, before = cloned(averaging.state_dict()), averaging.average()
    averaging.load_state_dict(state)
    assert before is not None
    after = averaging.average()
    assert after is not None
    assert all(torch.equal(after[name], before[name]) for name in live)


@pytest.mark.parametrize("averaging", [SWA(), EMA(), NoAveraging()])
def test_state_of_another_model_is_refused(averaging: Averaging) -> None:
    averaging.attach(weights())
    with pytest.raises(ArtifactError, match="does not fit"):
        averaging.load_state_dict({"count": torch.tensor(2), "sum/other": torch.zeros(2)})


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1, 1.5])
def test_ema_decay_is_inside_zero_and_one(decay: float) -> None:
    with pytest.raises(ConfigError, match=r"averaging\.decay"):
        EMA(decay=decay)


@pytest.mark.parametrize(
    "settings", [{"every": 0}, {"min_collected": 0}, {"start_multiplier": 0.0}, {"start_frac": 1.0}, {"store": "disk"}]
)
def test_swa_settings_out_of_range_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"averaging.{next(iter(settings))}"):
        SWA(**settings)  # type: ignore[arg-type]
