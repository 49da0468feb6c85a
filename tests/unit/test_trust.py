"""What a config that golf reads may name, and whose code a run's folder may bring."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from golf.common.errors import ConfigError
from golf.common.secret import config_home, secret_key
from golf.launch.compose import trust
from golf.launch.compose.own_code import keep_code

CODEC = {"_target_": "golf.artifact.codecs.Zlib", "level": 6}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config folder of the test's own."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "golf"


@pytest.fixture
def mine(tmp_path: Path, home: Path) -> tuple[Path, dict[str, Any]]:
    """A run that this user's golf has made with a technique of the user's own, and its config."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "trusted_ideas.py").write_text("raise SystemExit('imported')\n")
    config = {"codec": CODEC, "technique": {"mine": {"_target_": "trusted_ideas.Mine"}}}
    run = tmp_path / "run"
    keep_code([tmp_path / "mine"], run / "code")
    trust.sign(run, config)
    return run, config


@pytest.mark.parametrize(
    "config",
    [
        {"technique": {"x": {"_target_": "shutil.copyfile", "src": "a", "dst": "b"}}},
        {"codec": {"_target_": "os.makedirs", "name": "made"}},
        {"optimizer": {"_target_": "numpy.savetxt"}},
        {"logger": [{"_target_": "logging.FileHandler", "filename": "x"}]},
        {"quant": {"_target_": "golf.launch.sweep.slurm.ask"}},
        {"codec": {"_target_": "golf.runs.loggers.WandbLogger"}},
        {"codec": {**CODEC, "inner": {"_target_": "os.system"}}},
        {"model": {"_target_": ["golf", "nn"]}},
        {"phases": [{"values": {"qat": {"_target_": "builtins.eval"}}}]},
    ],
    ids=lambda config: next(iter(config)),
)
def test_a_folder_names_components_of_golfs_alone_and_in_their_group(
    config: dict[str, Any], tmp_path: Path, home: Path
) -> None:
    with pytest.raises(ConfigError, match="_target_"):
        trust.admit(tmp_path, config, "run=x")
    assert list(trust.strangers({**config, "codec": CODEC} if "codec" not in config else config))


def test_golfs_own_components_need_no_word_nor_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/proc/nowhere")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "idle.py").touch()
    assert trust.admit(tmp_path, {"codec": CODEC}, "run=x") == []


def test_a_folder_reads_nothing_of_this_machine(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.paths of its config\.yaml holds \$\{oc\.env:HF_TOKEN\}"):
        trust.admit(tmp_path, {"data": {"paths": ["${oc.env:HF_TOKEN}"]}}, "run=x")


def test_a_run_of_ones_own_brings_its_code_wherever_it_lies(mine: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    run, config = mine
    assert trust.admit(run, config, "run=x") == [str(run / "code")]
    moved = run.rename(tmp_path / "moved")
    (moved / "code" / "__pycache__").mkdir()
    (moved / "code" / "__pycache__" / "trusted_ideas.cpython-312.pyc").touch()
    assert trust.admit(moved, {**config, "seed": 2}, "run=x") == [str(moved / "code")]


def _edited(run: Path, config: dict[str, Any]) -> None:
    (run / "code" / "trusted_ideas.py").write_text("import os\n")


def _added(run: Path, config: dict[str, Any]) -> None:
    (run / "code" / "einops.py").touch()


def _hidden(run: Path, config: dict[str, Any]) -> None:
    (run / "code" / "outputs").mkdir()
    (run / "code" / "outputs" / "evil.py").touch()


def _linked(run: Path, config: dict[str, Any]) -> None:
    (run / "code" / "einops").symlink_to("/tmp")


def _renamed(run: Path, config: dict[str, Any]) -> None:
    config["technique"]["mine"]["_target_"] = "trusted_ideas.os.remove"


def _packaged(run: Path, config: dict[str, Any]) -> None:
    told = json.loads((run / "code.json").read_text())
    (run / "code.json").write_text(json.dumps({**told, "packages": ["torch"]}))


def _unsigned(run: Path, config: dict[str, Any]) -> None:
    (run / "code.json").unlink()


def _others(run: Path, config: dict[str, Any]) -> None:
    (config_home() / "trust.key").unlink()
    secret_key(make=True)


@pytest.mark.parametrize(
    "change", [_edited, _added, _hidden, _linked, _renamed, _packaged, _unsigned, _others], ids=lambda one: one.__name__
)
def test_anothers_code_is_told_and_not_run_until_the_line_says_so(
    change: Any, mine: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    run, config = mine
    change(run, config)
    with pytest.raises(ConfigError, match=r"technique\.mine=trusted_ideas") as error:
        trust.admit(run, config, f"run={run}")
    assert "trusted_ideas.py" in str(error.value)
    assert "--trust" in str(error.value)
    assert len(str(error.value).splitlines()) <= 3
    assert trust.admit(run, config, f"run={run}", trust=True) == [str(run / "code")]
    assert "trusted_ideas.py" in capsys.readouterr().err
    found = trust.trusted()
    trust.keep_trusted({**found, "folders": [str(run.parent)]})
    assert trust.admit(run, config, f"run={run}") == [str(run / "code")]


def test_the_key_is_for_its_owner_alone(home: Path) -> None:
    secret = secret_key(make=True)
    assert (home / "trust.key").stat().st_mode & 0o777 == 0o600
    assert secret_key(make=True) == secret
    assert [path.name for path in home.iterdir()] == ["trust.key"]
    os.chmod(home / "trust.key", 0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        secret_key()


def test_without_a_place_for_the_key_a_line_says_what_to_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="set XDG_CONFIG_HOME"):
        secret_key(make=True)


def test_an_allowed_package_serves_and_pythons_own_modules_never_do(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from golf.cli.trust import run

    config = {"optimizer": {"_target_": "yaml.Loader"}}
    assert trust.strangers(config)
    assert run(["yaml"]) == 0
    assert not trust.strangers(config)
    assert capsys.readouterr().out == "package yaml\n"
    assert run(["--remove", "yaml"]) == 0
    assert trust.strangers(config)
    for word in ("os", "golf", "/", "no_such_thing"):
        with pytest.raises(ConfigError):
            run([word])


def test_a_file_for_workers_serves_the_user_who_wrote_it(home: Path) -> None:
    config = {"codec": CODEC, "code_paths": ["/tmp/mine"], "technique": {"a": {"_target_": "ideas.A"}}}
    word = trust.vouch(config)
    trust.check_vouched(config, word, "bench.yaml")
    trust.check_vouched({"codec": CODEC}, None, "bench.yaml")
    for other in ({**config, "code_paths": ["/tmp/other"]}, {**config, "technique": {"a": {"_target_": "os.system"}}}):
        with pytest.raises(ConfigError, match="another user"):
            trust.check_vouched(other, word, "bench.yaml")
