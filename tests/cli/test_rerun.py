from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml


def change(run: Path, **fields: Any) -> None:
    file = run / "result.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def test_a_run_by_recorded_passes_is_scored_where_none_can_be(golf_command: Any, run_copy: Path) -> None:
    config = yaml.safe_load((run_copy / "config.yaml").read_text())
    config["runtime"] |= {"nproc": 8, "cuda_graphs": True}
    (run_copy / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    done = golf_command("eval", f"run={run_copy}")
    assert done.code == 0, done.err


@pytest.mark.parametrize("command", ["eval", "quantize", "sample"])
def test_a_run_must_be_named(golf_command: Any, command: str) -> None:
    done = golf_command(command)
    assert done.code == 2
    assert f"golf {command} run=DIR" in done.err


def test_a_folder_that_holds_no_run(golf_command: Any, tmp_path: Path) -> None:
    done = golf_command("eval", f"run={tmp_path}")
    assert done.code == 2
    assert "holds no run" in done.err


def test_a_folder_that_is_not_there(golf_command: Any, tmp_path: Path) -> None:
    done = golf_command("eval", f"run={tmp_path / 'gone'}")
    assert done.code == 2
    assert "is not a folder" in done.err


def without_weights(run: Path) -> None:
    for name in ("artifact.golf", "weights.safetensors"):
        (run / name).unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        (
            {"status": "failed", "trained": False, "error": "train_loss is nan at step 3"},
            "this run failed after step 5: train_loss is nan",
        ),
        ({"status": "interrupted", "trained": False, "steps": 4}, "interrupted after step 4"),
    ],
)
def test_an_unfinished_run_says_what_became_of_it(
    golf_command: Any, run_copy: Path, fields: dict[str, Any], part: str
) -> None:
    change(run_copy, **fields)
    without_weights(run_copy)
    done = golf_command("eval", f"run={run_copy}")
    assert done.code == 2
    assert part in done.err


def test_a_run_that_died_without_a_record(golf_command: Any, run_copy: Path) -> None:
    (run_copy / "result.json").unlink()
    without_weights(run_copy)
    done = golf_command("sample", f"run={run_copy}")
    assert done.code == 2
    assert "died without a record" in done.err


def test_a_broken_config(golf_command: Any, run_copy: Path) -> None:
    (run_copy / "config.yaml").write_text("model: [")
    done = golf_command("eval", f"run={run_copy}")
    assert done.code == 2
    assert "config.yaml is missing or broken" in done.err
    assert len(done.err.splitlines()) == 1


def test_data_that_is_gone(golf_command: Any, run_copy: Path) -> None:
    config = run_copy / "config.yaml"
    config.write_text(config.read_text().replace("corpus.jsonl", "gone.jsonl"))
    done = golf_command("eval", f"run={run_copy}")
    assert done.code in (1, 2)
    assert "gone.jsonl" in done.err
    assert "Traceback" not in done.err
