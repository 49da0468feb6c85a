"""Loaders tried before a run: what one lacks is named, and settings that do not fit end before any data is read."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from golf.common import protocols
from golf.common.errors import ConfigError
from golf.data import trial
from golf.data.loader import Batch, Feed, Loader, TrainLoader
from golf.data.orders import Shuffled, Spans
from golf.launch.compose import build
from golf.launch.compose.configs import compose_job, composer, resolved


class Constant:
    """A whole loader that is not of the engine's kind: one token over and over."""

    packed, data_wait_ms = False, 0.0

    def __init__(self, feed: Feed, token: int = 5) -> None:
        self.feed, self.token, self.step = feed, token, 0
        self.micro_steps, self.local = feed.micro_steps, feed.local

    def next_step(self) -> list[Batch]:
        self.step += 1
        shape = (
            self.local * 8 // self.feed.world // self.micro_steps // self.feed.train_seq_len,
            self.feed.train_seq_len,
        )
        return [Batch(*torch.full((2, *shape), self.token)) for _ in range(self.micro_steps)]

    def reshape(self, train_batch_tokens: int, train_seq_len: int, micro_steps: int) -> None: ...
    def reset(self) -> None:
        self.step = 0

    def close(self) -> None: ...
    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.step = state["step"]


class Forgetful:
    """Lacks most of it."""

    def __init__(self, feed: Feed) -> None: ...
    def next_step(self) -> list[Batch]:
        return []


class Short(TrainLoader):
    """Its spans are too short."""

    def stretches(self, position: int, index: int) -> list[tuple[int, int]]:
        return [(position, self.local - 1)]


FEED = Feed(trial.blank(260), 512, 16, border_id=1)


def composed(*words: str) -> dict[str, Any]:
    with composer():
        return resolved(compose_job(["budget=smoke", "tokenizer=byte260", "runtime=cpu", "logger=jsonl", *words]))


def test_what_hands_out_borders_is_known_before_there_is_data() -> None:
    assert not trial.packs(functools.partial(Spans), FEED)
    assert trial.packs(functools.partial(Spans, packed=True), FEED)
    assert trial.packs(functools.partial(Shuffled, packed=True, window=10**9), FEED)


def test_a_loader_of_another_kind_serves() -> None:
    assert not trial.packs(functools.partial(Constant), FEED)
    assert protocols.fitted(Constant(FEED), Loader, "loader").next_step()[0].x.shape == (32, 16)


def test_what_a_loader_lacks_is_named() -> None:
    with pytest.raises(
        ConfigError, match=r"loader: Forgetful has no reshape, reset, close, state_dict, load_state_dict"
    ):
        trial.packs(functools.partial(Forgetful), FEED)
    with pytest.raises(
        ConfigError, match=r"loader: Forgetful has no .*data_wait_ms, .*golf\.data\.loader\.Loader says"
    ):
        protocols.fitted(Forgetful(FEED), Loader, "loader")


def test_spans_of_another_size_are_named() -> None:
    with pytest.raises(ConfigError, match="Short: its stretches hold 63 tokens, and a span 64"):
        trial.packs(functools.partial(Short), FEED)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["loader=shuffled", "loader.window=0"], r"loader\.window=0"),
        (["loader=shuffled", "loader.window=long"], r"loader\.window=long: expected"),
        (["loader=packed", "+loader.windows=3"], r"loader\.windows: Spans takes no such setting"),
        (["loader=packed", "runtime.dtype=bfloat16"], None),
    ],
)
def test_a_setting_that_does_not_fit_is_refused_before_the_start(words: list[str], named: str | None) -> None:
    if named is None:
        return build.check(composed(*words))
    with pytest.raises(ConfigError, match=named):
        build.check(composed(*words))


def test_a_run_that_says_nothing_of_its_loader_reads_spans() -> None:
    config = composed()
    del config["loader"]
    build.check(config)
    assert isinstance(build.components(config)["loader"](feed=FEED), Spans)


def test_the_users_own_class_is_checked_with_the_line(tmp_path: Path) -> None:
    config = composed()
    config["loader"] = {"_target_": f"{__name__}.Forgetful", "_partial_": True}
    with pytest.raises(ConfigError, match="Forgetful has no"):
        build.check(config)
    config["loader"] = {"_target_": f"{__name__}.Constant", "_partial_": True, "token": 7}
    build.check(config)
    config["loader"] = {"_target_": f"{__name__}.Constant"}
    with pytest.raises(ConfigError, match="loader: _partial_: true is missing"):
        build.check(config)
