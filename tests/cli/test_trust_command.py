"""Folders from strangers: no command runs what they name or bring, unless the line says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from golf.launch.work import worker

IDEA = """from pathlib import Path
from golf.artifact.codecs import Zlib

Path(__file__).with_name("ran").touch()


class Mine(Zlib):
    name = "mine"
"""
COMMANDS = (["eval"], ["check"], ["quantize"], ["sample"], ["bench"], ["train"], ["train", "-m", "seed=1,2"])


@pytest.fixture
def change(run_copy: Path) -> Any:
    """Change a part of the run's config.yaml."""

    def changed(group: str, **values: Any) -> Path:
        config = yaml.safe_load((run_copy / "config.yaml").read_text())
        config[group] = values or config[group]
        (run_copy / "config.yaml").write_text(yaml.safe_dump(config))
        return run_copy

    return changed


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("group", ["codec", "optimizer", "logger", "runtime", "eval", "made_up"])
def test_no_command_calls_what_a_folder_names(
    words: list[str], group: str, change: Any, golf_command: Any, tmp_path: Path
) -> None:
    run = change(group, _target_="os.makedirs", name=str(tmp_path / "made"))
    done = golf_command(*words, f"run={run}")
    assert done.code == 2, done.err
    assert f"{group}._target_=os.makedirs" in done.err
    assert len(done.err.splitlines()) <= 3
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("words", COMMANDS[:5], ids=" ".join)
def test_no_command_imports_what_a_folder_brings(words: list[str], change: Any, golf_command: Any) -> None:
    run = change("codec", _target_="idea_x.Mine")
    (run / "code").mkdir()
    (run / "code" / "idea_x.py").write_text(IDEA)
    (run / "code.json").write_text(json.dumps({"copied_from": "/", "packages": ["torch"], "made_by": "0" * 64}))
    done = golf_command(*words, f"run={run}")
    assert done.code == 2, done.err
    assert f"would run codec=idea_x.Mine, from {run}/code: idea_x.py" in done.err
    assert len(done.err.splitlines()) <= 3
    assert not (run / "code" / "ran").exists()


def test_a_line_may_trust_a_folder_once_or_for_good(change: Any, golf_command: Any, tmp_path: Path) -> None:
    run = change("codec", _target_="idea_y.Mine")
    (run / "code").mkdir()
    (run / "code" / "idea_y.py").write_text(IDEA.replace('"mine"', '"mine_y"'))
    words = ("sample", f"run={run}", "tokens=1")
    done = golf_command(*words, "--trust")
    assert done.code == 0, done.err
    assert f"trusted, and may run codec=idea_y.Mine, from {run}/code: idea_y.py" in done.err
    assert (run / "code" / "ran").exists()
    assert golf_command(*words).code == 2
    assert golf_command("trust", run).out == f"folder {run}\n"
    assert golf_command(*words).code == 0
    assert golf_command("trust", "--remove", run).out == ""
    assert golf_command(*words).code == 2
    assert golf_command("runs", run, "--trust").code == 2


def test_code_that_nothing_asks_for_is_not_loaded(run_copy: Path, golf_command: Any) -> None:
    (run_copy / "code").mkdir()
    (run_copy / "code" / "idea_z.py").write_text(IDEA)
    assert golf_command("sample", f"run={run_copy}", "tokens=1").code == 0
    assert not (run_copy / "code" / "ran").exists()


def test_a_prepared_folder_of_anothers_is_not_run(
    change: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = change("optimizer", _target_="os.makedirs", name=str(tmp_path / "made"))
    assert worker.main([f"run={run}"]) == 2
    assert "optimizer._target_=os.makedirs" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


def test_a_line_names_components_of_options_folders_and_allowed_packages_alone(
    golf_command: Any, tmp_path: Path
) -> None:
    done = golf_command("train", "codec._target_=os.makedirs", "budget=smoke")
    assert done.code == 2
    assert "codec._target_=os.makedirs: no option and no folder of the line names it" in done.err


def test_a_record_steers_no_terminal(run_copy: Path, golf_command: Any) -> None:
    (run_copy / "overrides.yaml").write_text(yaml.safe_dump(["recipe=\x1b[2J", "seed=\x9b"]))
    record = json.loads((run_copy / "result.json").read_text())
    record |= {"error": "\x1b]52;c;aGk=\x07", "violations": ["\x1b[2J"], "status": "failed"}
    (run_copy / "result.json").write_text(json.dumps(record))
    for words in (["runs", run_copy], ["runs", "show", run_copy], ["eval", f"run={run_copy}"]):
        done = golf_command(*words)
        assert "\x1b" not in done.out + done.err
