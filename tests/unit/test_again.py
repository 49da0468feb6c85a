"""A run's config becomes a command line that composes it again, and what else stands on the line wins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from golf.common.errors import ConfigError
from golf.launch.compose.again import again
from golf.launch.compose.configs import Checker, compose_job, composer, resolved
from golf.launch.compose.line import CommandLine
from golf.launch.compose.options import options

RECIPES = options("recipe")
CHANGED = [
    ["seed=7", "model.num_layers=3", "optimizer.matrix_lr=0.0123", "schedule.iterations=5"],
    ["optimizer=normuon", "model/mlp=swiglu", "technique/xsa=all", "quant=int6", "eval=document", "eval.coverage=full"],
    ["budget=smoke", "schedule.iterations=5", "model.model_dim=32", "val_tokens=null"],
    ["quant.bits={default: 6, embed: 8, mlp.*: 5}", "name=it's mine", "tags=[a b,c]", "logger=jsonl"],
    ["data=text", "data.paths=[/a folder/ünï.txt]", "tokenizer=sp1024", "tokenizer.vocab_size=600"],
    ["budget=proxy", "budget.fraction=0.01", "averaging=ema", "qat=int6", "schedule.warmdown_frac=0.3"],
]


def config_of(words: list[str], config_dirs: list[Path] | None = None) -> dict[str, Any]:
    line = CommandLine.parse([*(f"--config-dir={folder}" for folder in config_dirs or []), *words])
    with composer(line.config_dirs):
        line = Checker(line).complete()
        config = resolved(compose_job(line.overrides, line.config_dirs))
        from hydra import compose

        from golf.launch.compose.line import searched

        whole = compose("train", overrides=[*line.overrides, *searched(line.config_dirs)], return_hydra_config=True)
        chosen = {k: v for k, v in whole.hydra.runtime.choices.items() if not k.startswith(("hydra/", "sweep"))}
    return {**{k: v for k, v in config.items() if k != "sweep"}, "choices": chosen}


def run_of(config: dict[str, Any], folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")
    (folder / "overrides.yaml").write_text("[]")
    return folder


def composed(line: CommandLine) -> dict[str, Any]:
    with composer(line.config_dirs):
        return resolved(compose_job(Checker(line).complete().overrides, line.config_dirs))


def without_own(config: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in config.items() if k not in ("choices", "name", "tags", "sweep", "code_paths")}


@pytest.mark.parametrize("words", [*([f"recipe={name}"] for name in RECIPES), *CHANGED], ids=" ".join)
def test_a_runs_config_comes_again(words: list[str], tmp_path: Path) -> None:
    config = config_of(words)
    line = again(CommandLine.parse([f"run={run_of(config, tmp_path / 'run')}"]))
    assert without_own(composed(line)) == without_own(config)


def test_any_text_is_spelled_so_that_it_comes_back(tmp_path: Path) -> None:
    texts = ["it's", 'a "b"', "a\\b\\", "1e3", "true", "a,b", "x=[y]", " blank ", "né", "plain"]
    config = config_of(["data=text", "data.paths=[x]"])
    config["data"]["paths"] = texts
    line = again(CommandLine.parse([f"run={run_of(config, tmp_path / 'run')}"]))
    assert composed(line)["data"]["paths"] == texts


def test_only_what_the_options_do_not_say_is_spelled(tmp_path: Path) -> None:
    folder = run_of(config_of(["recipe=gradquant_11l", "seed=3", "name=mine"]), tmp_path / "run")
    assert again(CommandLine.parse([f"run={folder}"])).overrides == [
        "recipe=gradquant_11l", "budget=record_10min", "seed=3",
    ]  # fmt: skip


def test_the_line_wins_and_what_follows_from_it_follows(tmp_path: Path) -> None:
    folder = run_of(config_of(["recipe=naive_baseline", "seed=3", "optimizer.matrix_lr=0.07"]), tmp_path / "run")
    line = again(CommandLine.parse([f"run={folder}", "seed=4", "tokenizer=sp2048", "train_seq_len=512"]))
    config = composed(line)
    assert (config["seed"], config["optimizer"]["matrix_lr"]) == (4, 0.07)
    assert config["model"]["vocab_size"] == config["tokenizer"]["vocab_size"] == 2048
    assert config["eval"]["seq_len"] == 512


def test_what_followed_from_a_changed_value_still_follows(tmp_path: Path) -> None:
    folder = run_of(config_of(["recipe=quickstart", "schedule.iterations=60"]), tmp_path / "run")
    line = again(CommandLine.parse([f"run={folder}", "schedule.iterations=120"]))
    assert line.overrides == ["recipe=quickstart", "budget=record_10min", "schedule.iterations=120"]
    assert composed(line)["schedule"]["warmdown_iters"] == 80


def test_an_option_on_the_line_takes_none_of_the_runs_settings_of_its_group(tmp_path: Path) -> None:
    folder = run_of(config_of(["optimizer.matrix_lr=0.07", "optimizer.matrix.ns_steps=3"]), tmp_path / "run")
    config = composed(again(CommandLine.parse([f"run={folder}", "optimizer=normuon"])))
    assert config["optimizer"]["matrix_lr"] != 0.07


def test_a_sweep_goes_on_from_a_run(tmp_path: Path) -> None:
    folder = run_of(config_of(["recipe=quickstart", "model.num_layers=3"]), tmp_path / "run")
    line = again(CommandLine.parse(["-m", f"run={folder}", "seed=1,2"]))
    with composer():
        checker = Checker(line)
        jobs = checker.jobs(checker.complete())
    assert [job[-1] for job in jobs] == ["seed=1", "seed=2"]
    assert all("model.num_layers=3" in job for job in jobs)


MINE = """
from golf.nn.techniques.base import Technique
class Mine(Technique):
    site = "mlp_out"
    def __init__(self, shape, layer=None, width=3):
        super().__init__(shape, layer)
    def forward(self, v, ctx):
        return v
"""


def test_a_technique_of_ones_own_comes_from_the_copy_in_the_run(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    (mine / "technique" / "mine").mkdir(parents=True)
    (mine / "mine.py").write_text(MINE)
    (mine / "technique" / "mine" / "v1.yaml").write_text("_target_: mine.Mine\n_partial_: true\nwidth: 3\n")
    config = config_of(["technique/mine=v1", "technique.mine.width=5"], [mine])
    folder = run_of(config, tmp_path / "run")
    (folder / "code").mkdir()
    (folder / "code" / "mine.py").write_text(MINE)
    with pytest.raises(ConfigError, match=r"would run technique\.mine=mine\.Mine, from .*: mine\.py"):
        again(CommandLine.parse([f"run={folder}"]))  # nobody's golf has said that it made it
    line = again(CommandLine.parse([f"run={folder}", "--trust"]))
    assert line.config_dirs == [folder / "code"]
    assert not line.trust
    assert composed(line)["technique"]["mine"] == config["technique"]["mine"]


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run=.*nowhere"):
        again(CommandLine.parse([f"run={tmp_path / 'nowhere'}"]))


def test_what_no_option_has_any_more_is_refused_by_name(tmp_path: Path) -> None:
    config = config_of(["recipe=quickstart"])
    config["model"]["num_layerz"] = 3
    folder = run_of(config, tmp_path / "run")
    config_line = again(CommandLine.parse([f"run={folder}"]))
    assert "+model.num_layerz=3" in config_line.overrides  # and the check of types names it, as on any line


def test_a_job_of_a_sweep_leaves_its_share_of_the_cores_and_its_names_behind(tmp_path: Path) -> None:
    config = config_of(["recipe=quickstart", "logger=wandb", "logger.name=best"])
    config["runtime"]["threads"] = 1  # the sweep's doing
    line = again(CommandLine.parse([f"run={run_of(config, tmp_path / 'run')}"]))
    assert line.overrides == ["recipe=quickstart", "budget=record_10min"]


def test_where_a_run_was_logged_is_for_whoever_trains_it_again_to_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = ["logger.project=theirs", "logger.entity=them", "logger.mode=online"]
    folder = run_of(config_of(["recipe=quickstart", "logger=wandb", "logger.x_axis=tokens", *theirs]), tmp_path / "run")
    line = again(CommandLine.parse([f"run={folder}", "logger.project=mine"]))
    assert [word for word in line.overrides if "logger" in word] == ['logger.x_axis="tokens"', "logger.project=mine"]
    told = 'where it was logged is not taken over: logger.entity="them" logger.mode="online"'
    assert capsys.readouterr().err == f"run={folder}: {told}\n"


def test_a_run_from_before_draws_by_name_draws_in_order_again(tmp_path: Path) -> None:
    config = config_of(["recipe=quickstart"])
    del config["model"]["init"]["draws"]
    folder = run_of(config, tmp_path / "run")
    assert composed(again(CommandLine.parse([f"run={folder}"])))["model"]["init"]["draws"] == "in_order"


def test_settings_that_a_run_did_not_know_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of(["recipe=quickstart"])
    del config["codec"]["level"]
    again(CommandLine.parse([f"run={run_of(config, tmp_path / 'run')}"]))
    assert "it had no such setting, which is now codec.level=" in capsys.readouterr().err


def test_a_run_from_before_a_discovered_group_had_it_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of(["recipe=quickstart"])
    del config["callbacks"], config["choices"]["callbacks"], config["technique"]["xsa"]
    line = again(CommandLine.parse([f"run={run_of(config, tmp_path / 'run')}"]))
    assert not any(composed(line)["callbacks"].values())
    assert not capsys.readouterr().err


def test_a_recipe_that_has_broken_meanwhile_is_told_in_words(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    (mine / "recipe").mkdir(parents=True)
    (mine / "recipe" / "own.yaml").write_text("# @package _global_\nseed: 3\n")
    folder = run_of(config_of(["recipe=own"], [mine]), tmp_path / "run")
    (mine / "recipe" / "own.yaml").write_text("# @package _global_\ndefaults:\n  - override /optimizer: nowhere\n")
    with pytest.raises(ConfigError, match="nowhere"):
        again(CommandLine.parse([f"run={folder}", f"--config-dir={mine}"]))
