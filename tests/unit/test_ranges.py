"""What a search draws from: Hydra's grammar and golf's shorthand, types, mistakes."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from golf.common.errors import ConfigError
from golf.launch.compose.ranges import Range, split, words_of
from golf.launch.compose.words import parse_override, spelled

BASE = OmegaConf.create({"model": {"num_layers": 6}, "optimizer": {"matrix_lr": 0.02}, "tokenizer": {"vocab": 8}})


def one(word: str) -> Range:
    fixed, (found,) = split([spelled(word)], BASE)
    assert fixed == []
    return found


LR, LAYERS = "optimizer.matrix_lr", "model.num_layers"
GRAMMAR = {
    f"{LR}=interval(0.01,0.1)": Range(LR, low=0.01, high=0.1),
    f"{LR}=tag(log,interval(0.01,0.1))": Range(LR, low=0.01, high=0.1, log=True),
    f"{LR}=log(1e-3,0.1)": Range(LR, low=0.001, high=0.1, log=True),
    f"{LR}=int(0,1)": Range(LR, low=0, high=1),  # the config's value is no whole number, so its range is none
    f"{LAYERS}=interval(4,8)": Range(LAYERS, low=4, high=8, integer=True),
    f"{LAYERS}=int(4,8)": Range(LAYERS, low=4, high=8, integer=True),
    f"{LAYERS}=log(1,64)": Range(LAYERS, low=1, high=64, log=True, integer=True),
    f"{LAYERS}=range(4,9,2)": Range(LAYERS, low=4, high=8, step=2, integer=True),
    f"{LR}=range(0.5,2,0.5)": Range(LR, low=0.5, high=1.5, step=0.5),
    "tokenizer=sp1024,sp2048": Range("tokenizer", choices=("sp1024", "sp2048")),
    "tokenizer=choice(sp1024,sp2048,sp1024)": Range("tokenizer", choices=("sp1024", "sp2048")),
    f"{LAYERS}=range(4,5)": Range(LAYERS, choices=("4",)),
    f"{LR}=range(0.01,0.05,0.01)": Range(LR, low=0.01, high=0.04, step=0.01),
    f"{LR}=choice(null,0.1)": Range(LR, choices=("null", "0.1")),
    f"{LAYERS}=choice(2,choice(4,6))": Range(LAYERS, choices=("2", "4", "6")),
}


@pytest.mark.parametrize("word", GRAMMAR)
def test_a_word_is_read_as_a_range(word: str) -> None:
    assert one(word) == GRAMMAR[word]


MISTAKES = {
    f"{LR}=log(0.1,0.01)": "low end is above the high",
    f"{LR}=log(0,0.1)": "must begin above 0",
    f"{LAYERS}=interval(4.5,8)": "whole number",
    f"{LAYERS}=range(8,4)": "nothing to sweep",
    f"{LR}=interval(0.1,inf)": "two finite ends",
}


@pytest.mark.parametrize("word", MISTAKES)
def test_a_mistaken_range_names_its_key(word: str) -> None:
    with pytest.raises(ConfigError, match=MISTAKES[word]) as caught:
        one(word)
    assert word.split("=")[0] in str(caught.value)


def test_the_last_word_of_a_key_counts() -> None:
    assert split([f"{LR}=interval(0.01,0.1)", f"{LR}=0.3", "seed=1", "seed=1,2"], BASE) == (
        [f"{LR}=0.3"], [Range("seed", choices=("1", "2"))],
    )  # fmt: skip


def test_a_range_of_a_key_that_follows_from_one_still_to_be_given() -> None:
    base = OmegaConf.create({"first": "???", "second": "${first}"})
    assert split(["second=int(interval(1,2))"], base)[1] == [Range("second", low=1, high=2, integer=True)]


def test_params_of_a_file_are_words() -> None:
    params = {"optimizer.matrix_lr": "log(0.01,0.1)", "model": {"num_layers": [4, 6]}, "qat": None, "seed": 3}
    assert words_of(params) == [
        f"{LR}=tag(log,interval(0.01,0.1))", f"{LAYERS}=choice(4,6)", "qat=null", "seed=3",
    ]  # fmt: skip
    assert words_of(["seed=int(1,9)"]) == ["seed=int(interval(1,9))"]


@pytest.mark.parametrize(
    "values",
    [
        [["a.txt"], ["b c.txt"]], [[0, 1], [2, 3]], [[[0, 1], [2]], [None, True]], [{"a": [1]}, None], [["log(1,2)"]],
    ],
)  # fmt: skip
def test_a_list_among_the_values_of_a_file_is_one_value(values: list[object]) -> None:
    _, (found,) = split(words_of({"x.y": values}), BASE)
    assert [parse_override(f"x={choice}").value() for choice in found.choices] == values


def test_params_on_the_line_need_no_plus() -> None:
    assert spelled("sweep.params.seed=int(1,9)") == spelled("+sweep.params.seed=int(1,9)") == "seed=int(interval(1,9))"


@pytest.mark.parametrize("word", ["run_name='log(1,2)'", "a=[log,int]", "sweep.params=[seed=1]", "~qat"])
def test_other_words_stay_as_they_are(word: str) -> None:
    assert spelled(word) == word


@pytest.mark.parametrize("word", GRAMMAR)
def test_optuna_knows_the_same_range(word: str) -> None:
    found = one(word)
    distribution = found.distribution()
    if found.choices:
        assert distribution.choices == found.choices
    else:
        assert (distribution.low, distribution.high, distribution.log) == (found.low, found.high, found.log)


def test_values_are_listed_where_there_is_an_end_of_them() -> None:
    assert one(f"{LAYERS}=range(4,9,2)").values == ("4", "6", "8")
    assert one(f"{LR}=range(0.5,2,0.5)").values == ("0.5", "1.0", "1.5")
    assert one(f"{LAYERS}=int(2,4)").values == ("2", "3", "4")
    assert one(f"{LR}=interval(0.1,0.4)").values is None
    assert one(f"{LR}=range(0.01,0.05,0.01)").values == ("0.01", "0.02", "0.03", "0.04")
    assert one(f"{LR}=range(0.9,0.99,0.03)").values == ("0.9", "0.93", "0.96")


@pytest.mark.parametrize("drawn", [0.03, 0.030000000000000002, 0.0299999])
def test_a_drawn_step_is_spelled_as_a_grid_spells_it(drawn: float) -> None:
    assert one(f"{LR}=range(0.01,0.05,0.01)").spell(drawn) == "0.03"


@settings(deadline=None)
@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), st.booleans(), st.booleans(), st.integers(0, 99))
def test_a_draw_is_within_its_range(a: float, b: float, log: bool, integer: bool, seed: int) -> None:
    low, high = sorted((math.ceil(a), math.ceil(b)) if integer else (a, b))
    drawn = Range("x", low=low, high=high, log=log, integer=integer).draw(random.Random(seed))
    assert low <= float(drawn) <= high
    assert not integer or drawn.isdigit()
