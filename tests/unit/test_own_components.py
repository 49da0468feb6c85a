"""A user's own classes and their yaml files: mistakes are told in at most three lines that name the user's file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from golf.common.errors import ConfigError
from golf.launch.compose import build
from golf.launch.compose.configs import Checker, compose_job, composer, resolved, told_where
from golf.launch.compose.line import CommandLine
from golf.launch.compose.own_modules import use_code

CODE = """from __future__ import annotations
from typing import TYPE_CHECKING
from golf.evals.evaluators import Evaluator
from golf.learn.schedule import Warmdown
from golf.nn.models.mlp import SquaredMLP
from golf.nn.techniques.base import Technique
from golf.train.hooks import Hook
if TYPE_CHECKING:
    from nowhere import Thing


class Gate(Technique):
    site = "heads_out"

    def forward(self, y, ctx):
        return y


class Odd(Gate):
    def __init__(self, shape: Thing, layer: int | None = None, width: int = 3) -> None:
        super().__init__(shape, layer)


class Flat(Warmdown):
    def __init__(self, iterations: int = 5, warmup_steps: int = 0) -> None:
        super().__init__(iterations=iterations, warmup_steps=warmup_steps)


class MLP(SquaredMLP):
    pass


class Mute:
    def start(self, run, config):
        pass


class Dotted(Evaluator):
    method = "a.b"


class Idle(Hook):
    def __init__(self, every: int = 1) -> None:
        self.every = every
"""
FILES = {
    "own_parts.py": CODE,
    "random.py": CODE,
    "technique/early/v1.yaml": "_target_: own_parts.Gate\nlayers: all\n",
    "technique/odd/v1.yaml": "_target_: own_parts.Odd\n_partial_: true\nlayers: all\nwidth: 4\n",
    "technique/taken/v1.yaml": "_target_: random.Gate\n_partial_: true\nlayers: all\n",
    "model/mlp/early.yaml": "_target_: own_parts.MLP\n",
    "model/mlp/mixed.yaml": (
        "_target_: golf.nn.slots.by_layer\n_partial_: true\nkinds: []\nrest: {_target_: own_parts.MLP}\n"
    ),
    "callbacks/late/v1.yaml": "_target_: own_parts.Idle\n_partial_: true\nevery: 1\n",
    "logger/mute.yaml": "_target_: own_parts.Mute\n",
    "eval/dotted.yaml": "_target_: own_parts.Dotted\nseq_len: 8\n",
    "schedule/flat.yaml": "defaults: [warmdown, _self_]\n_target_: own_parts.Flat\n",
    "schedule/flatter.yaml": (
        "defaults: [flat, _self_]\n"
        "_drop_: [warmdown_iters, warmdown_frac, clock, floor, adaptive_cap, adaptive_cap_step, adaptive_cap_scaled]\n"
    ),
    "schedule/broken.yaml": "defaults: [flat, _self_]\n_drop_: clock\n",
    "recipe/flat.yaml": "# @package _global_\ndefaults: [quickstart]\nschedule: {warmdown_iters: 7}\n",
}  # fmt: skip


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("place") / "mine"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    yield folder
    use_code([])


def checked(mine: Path, *words: str) -> dict[str, Any]:
    """The config of a line, checked as before a run."""
    line = CommandLine.parse(["--config-dir", str(mine), "recipe=quickstart", *words])
    with told_where(line), composer(line.config_dirs):
        line = Checker(line).complete()
        config = resolved(compose_job(line.overrides, line.config_dirs))
        config["code_paths"] = [str(mine)]
        build.check(config)
    return config


MISTAKES = {
    "technique/early=v1": ("technique.early: _partial_: true is missing", "mine/technique/early/v1.yaml"),
    "model/mlp=early": ("model.mlp: _partial_: true is missing", "mine/model/mlp/early.yaml"),
    "model/mlp=mixed": ("model.mlp.rest: _partial_: true is missing", "mine/model/mlp/mixed.yaml"),
    "callbacks/late=v1": ("callbacks.late: _partial_: true must go", "mine/callbacks/late/v1.yaml"),
    "technique/odd=v1": ("name 'Thing' is not defined", "mine/own_parts.py"),
    "technique/taken=v1": ("Python's own: rename it", "mine/random.py"),
    "logger=mute": ("logger: Mute has no log, table, image, text, finish", "mine/logger/mute.yaml"),
    "eval=dotted": ("eval: Dotted.method='a.b' is to name its figures", "mine/eval/dotted.yaml"),
    "schedule=flat": ("takes no such setting", "mine/schedule/flat.yaml does not take it can leave out: _drop_: ["),
    "schedule=broken": ("schedule._drop_=clock: a list", "mine/schedule/broken.yaml"),
}


@pytest.mark.parametrize("word", MISTAKES)
def test_a_mistake_names_the_users_file(word: str, mine: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        checked(mine, word)
    assert len(str(caught.value).splitlines()) <= 3
    for part in MISTAKES[word]:
        assert part in str(caught.value)


def test_what_golfs_recipe_sets_and_a_class_does_not_take_is_told_with_both_files(mine: Path) -> None:
    with pytest.raises(ConfigError, match=r"golf's (recipe|schedule)/\w+\.yaml\n.*mine/schedule/flat\.yaml"):
        checked(mine, "schedule=flat")


def test_an_option_leaves_out_what_its_class_does_not_take_whoever_sets_it(mine: Path) -> None:
    config = checked(mine, "schedule=flatter", "recipe=flat")
    assert set(config["schedule"]) == {"_target_", "iterations", "warmup_steps"}
    with pytest.raises(ConfigError, match=r"there is no key 'schedule\.warmdown_iters'"):
        checked(mine, "schedule=flatter", "schedule.warmdown_iters=3")
