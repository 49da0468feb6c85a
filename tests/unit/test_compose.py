"""Command lines taken apart, completed and composed; a user's own techniques discovered."""

from __future__ import annotations

from pathlib import Path

import pytest

from golf.common.errors import ConfigError
from golf.launch.compose.configs import Checker, CommandLine, compose_job, composer, discovered, options, resolved
from golf.launch.compose.options import DISCOVERED


def completed(*words: str) -> list[str]:
    line = CommandLine.parse(words)
    with composer(line.config_dirs):
        return Checker(line).complete().overrides


@pytest.mark.parametrize(
    "words", [["-m", "seed=1,2"], ["seed=1,2", "-m"], ["seed=1,2", "--multirun", "model.num_layers=2"]]
)
def test_the_multirun_flag_may_stand_anywhere(words: list[str]) -> None:
    line = CommandLine.parse(words)
    assert line.multirun
    assert "seed=1,2" in line.overrides


def test_hydra_gets_flags_before_overrides(tmp_path: Path) -> None:
    line = CommandLine.parse(["seed=1", "--cfg", "job", "--config-dir", str(tmp_path), "-m"])
    assert line.hydra_argv() == ["--config-dir", str(tmp_path), "--cfg", "job", "--multirun", "seed=1"]


def test_bare_names_are_completed() -> None:
    assert completed("num_layers=3", "matrix_lr=0.1", "seed=2") == [
        "model.num_layers=3", "optimizer.matrix_lr=0.1", "seed=2",
    ]  # fmt: skip


def test_a_bare_name_that_ends_several_keys_is_refused() -> None:
    with pytest.raises(ConfigError, match="several keys"):
        completed("_target_=x")


def test_a_grid_is_composed_in_advance() -> None:
    line = CommandLine.parse(["-m", "seed=1,2", "model.num_layers=2,3"])
    with composer():
        jobs = Checker(line).jobs(line)
    assert sorted(map(tuple, jobs)) == [
        (f"seed={s}", f"model.num_layers={n}") for s in (1, 2) for n in (2, 3)
    ]  # fmt: skip


def test_a_large_grid_is_checked_value_by_value() -> None:
    line = CommandLine.parse(["-m", "seed=range(0,100)", "model.num_layers=2,3"])
    with composer():
        jobs = Checker(line).jobs(line)
    assert len(jobs) == 102


@pytest.mark.parametrize(
    ("word", "listed"),
    [("model/mlp=glob(*)", "model/mlp=leaky_relu2,relu2,swiglu"),
     ("optimizer.matrix_lr=range(0.01,0.05,0.01)", "optimizer.matrix_lr=0.01,0.02,0.03,0.04"),
     ("optimizer.grad_clip=choice(null,1.0)", "optimizer.grad_clip=null,1.0")],
)  # fmt: skip
def test_hydras_own_sweeper_is_handed_plain_values(word: str, listed: str) -> None:
    assert completed("-m", "hydra/sweeper=basic", word) == ["hydra/sweeper=basic", listed]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    for folder in DISCOVERED:
        (tmp_path / folder / "mine").mkdir(parents=True)
        (tmp_path / folder / "mine" / "v1.yaml").write_text("_target_: mine.Mine\n")
    return tmp_path


@pytest.mark.parametrize("folder", DISCOVERED)
def test_a_folder_in_a_config_dir_is_discovered_with_its_none(folder: str, own: Path) -> None:
    assert "mine" in discovered(folder, [own])
    assert options(f"{folder}/mine", [own]) == ["none", "v1"]


def test_what_is_discovered_is_off_by_default_and_needs_no_plus(own: Path) -> None:
    with composer([own]):
        default = resolved(compose_job([], [own]))
        chosen = resolved(compose_job([f"{folder}/mine=v1" for folder in DISCOVERED], [own]))
    assert [default[folder]["mine"] for folder in DISCOVERED] == [{}] * len(DISCOVERED)
    assert [chosen[folder]["mine"]["_target_"] for folder in DISCOVERED] == ["mine.Mine"] * len(DISCOVERED)


def test_hydra_1_3_alone_is_given_a_version_base(monkeypatch: pytest.MonkeyPatch) -> None:
    import hydra

    from golf.launch.compose.configs import version_base

    monkeypatch.setattr(hydra, "__version__", "1.4.0")
    assert version_base() == {}
    monkeypatch.setattr(hydra, "__version__", "1.3.8")
    assert version_base() == {"version_base": "1.3"}


@pytest.mark.parametrize("text", ["log(1,2)", "int(a, b)"])
def test_a_command_s_own_words_are_no_ranges(text: str) -> None:
    line = CommandLine.parse([f"prompt={text}", "seed=int(1,2)"], own=("run", "prompt"))
    assert line.overrides == [f"prompt={text}", "seed=int(interval(1,2))"]
