"""Hydra's ways of naming several values, as `golf train -m`, `bench -m` and `eval -m` make jobs of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from golf.cli.eval import COMMAND
from golf.launch.compose.rerun import read_line
from golf.launch.work.bench import compose_jobs

SMALL = ("budget=smoke", "tokenizer=byte260", "logger=jsonl", "hydra.sweep.dir=sweep", "--prepare")
RECIPE = "# @package _global_\ndefaults: [quickstart]\n"

SWEEPS = {
    "all options": ("model/mlp=glob(*)", ["leaky_relu2", "relu2", "swiglu"]),
    "all options but one": ("model/mlp=glob(*,exclude=relu2)", ["leaky_relu2", "swiglu"]),
    "options in lists": ("model/mlp=glob([*relu2,swi*],exclude=[relu*])", ["leaky_relu2", "swiglu"]),
    "options of a technique": ("technique/xsa=glob(*)", ["all", "last4", "none"]),
    "options in the sweep's own words": ("sweep.params=['model/mlp=glob(*relu2)']", ["leaky_relu2", "relu2"]),
    "null among choices": ("optimizer.grad_clip=choice(null,1.0)", ["null", "1.0"]),
    "decimals": ("optimizer.matrix_lr=range(0.01,0.05,0.01)", ["0.01", "0.02", "0.03", "0.04"]),
    "Hydra's own params": ("hydra.sweeper.params={seed: '1,2'}", ["1", "2"]),
    "one of Hydra's params": ("hydra.sweeper.params.seed=1,2", ["1", "2"]),
    "one of Hydra's params, added": ("+hydra.sweeper.params.seed=range(1,3)", ["1", "2"]),
}


def prepared(folder: Path) -> list[str]:
    """The last word of each prepared job."""
    jobs = sorted(folder.glob("*/overrides.yaml"), key=lambda path: int(path.parent.name))
    return [yaml.safe_load(path.read_text(encoding="utf-8"))[-1].partition("=")[2] for path in jobs]


@pytest.mark.parametrize("sweep", SWEEPS)
def test_a_sweep_has_the_jobs_it_names(sweep: str, golf_command, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    word, values = SWEEPS[sweep]
    outcome = golf_command("train", "-m", *SMALL, word)
    assert (outcome.code, outcome.err) == (0, "")
    found = {value for path in (tmp_path / "sweep").glob("*/overrides.yaml")
             for value in (word.partition("=")[2] for word in yaml.safe_load(path.read_text()))}  # fmt: skip
    assert len(list((tmp_path / "sweep").glob("*/overrides.yaml"))) == len(values)
    assert set(values) <= found


def test_the_config_has_the_numbers_of_the_sweep(golf_command, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    golf_command("train", "-m", *SMALL, "optimizer.momentum=range(0.9,0.99,0.03)")
    configs = [yaml.safe_load((tmp_path / "sweep" / job / "config.yaml").read_text()) for job in "012"]
    assert [config["optimizer"]["momentum"] for config in configs] == [0.9, 0.93, 0.96]
    assert prepared(tmp_path / "sweep") == ["0.9", "0.93", "0.96"]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the user's with two recipes, and one that holds a sweep in Hydra's words."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "recipe").mkdir(parents=True)
    (tmp_path / "mine" / "recipe" / "my first.yaml").write_text(RECIPE)
    (tmp_path / "mine" / "recipe" / "my second.yaml").write_text(RECIPE)
    (tmp_path / "mine" / "recipe" / "a sweep.yaml").write_text(RECIPE + "hydra: {sweeper: {params: {seed: '1,2'}}}\n")
    return tmp_path / "mine"


def test_a_glob_finds_ones_own_options(own: Path, golf_command, tmp_path: Path) -> None:
    assert golf_command("train", "-m", "--config-dir", own, *SMALL, "recipe=glob(my*)").code == 0
    choices = [yaml.safe_load(path.read_text())["choices"]["recipe"] for path in tmp_path.glob("sweep/*/config.yaml")]
    assert set(choices) == {"my first", "my second"}


def test_a_recipe_may_sweep_in_hydras_words(own: Path, golf_command, tmp_path: Path) -> None:
    outcome = golf_command("train", "-m", "--config-dir", own, *SMALL, "recipe=a sweep")
    assert outcome.code == 0, outcome.err
    seeds = [yaml.safe_load(path.read_text())["seed"] for path in tmp_path.glob("sweep/*/config.yaml")]
    assert sorted(seeds) == [1, 2]


def test_a_sweep_of_ones_own_may_be_a_mapping(own: Path, golf_command, tmp_path: Path) -> None:
    (own / "sweep").mkdir()
    (own / "sweep" / "mine.yaml").write_text(
        "defaults: [grid, _self_]\nparams: {optimizer.grad_clip: [null, 1.0], model/mlp: 'glob(*relu2)'}\n"
    )
    assert golf_command("train", "-m", "--config-dir", own, *SMALL, "sweep=mine").code == 0
    configs = [yaml.safe_load(path.read_text()) for path in tmp_path.glob("sweep/*/config.yaml")]
    found = [(str(config["optimizer"]["grad_clip"]), config["choices"]["model/mlp"]) for config in configs]
    assert sorted(found) == [(clip, mlp) for clip in ("1.0", "None") for mlp in ("leaky_relu2", "relu2")]


def test_a_recipe_that_sweeps_is_no_single_run(own: Path, golf_command) -> None:
    words = [word for word in SMALL if not word.startswith("hydra")]
    outcome = golf_command("train", "--config-dir", own, *words, "recipe=a sweep")
    assert outcome.code == 2
    assert "hydra.sweeper.params: is for sweeps" in outcome.err


def test_hydras_mode_is_the_flag(golf_command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert golf_command("train", *SMALL, "hydra.mode=MULTIRUN", "seed=1,2").code == 0
    assert len(list(tmp_path.glob("sweep/*/config.yaml"))) == 2


def test_bench_takes_the_same_sweeps() -> None:
    jobs = compose_jobs(["budget=smoke", "model/mlp=glob(*,exclude=swiglu)", "seed=choice(1,choice(2,3))"], [], True)
    assert [job.swept for job in jobs] == [
        {"model/mlp": mlp, "seed": seed} for mlp in ("leaky_relu2", "relu2") for seed in "123"
    ]


def test_eval_takes_the_same_sweeps(trained: Path) -> None:
    jobs = read_line(COMMAND, [f"run={trained}", "-m", "eval=glob(*,exclude=document)"]).jobs
    assert [job.swept["eval"] for job in jobs] == ["contiguous", "sliding"]


def test_no_grid_is_cut_short() -> None:
    from golf.common.errors import ConfigError

    with pytest.raises(ConfigError, match="1,500 combinations"):
        compose_jobs(["budget=smoke", "seed=range(0,1500)"], [], True)
