"""Which runs go on, where a sweep finds them, and what is asked for in vain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from golf.common.errors import ConfigError
from golf.launch.sweep.job import SweepJob, settle
from golf.launch.sweep.kinds import SweepSettings, assign_folder
from golf.launch.sweep.pool import command
from golf.launch.work.attempts import can_go_on, named, set_aside, take_up
from golf.runs.folder import RunFolder
from golf.runs.store import Run

CONFIG: dict[str, Any] = {"seed": 1, "runtime": {"nproc": 1}}


def left(directory: Path, status: str | None = "interrupted", checkpoint: bool = True, **record: Any) -> Path:
    """A run's folder as an attempt left it; without a status it died without a record."""
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (directory / "metrics.jsonl").write_text('{"step": 1}\n')
    if status is not None:
        (directory / "result.json").write_text(json.dumps({"status": status, **record}))
    if checkpoint:
        (directory / "checkpoints" / "step-00000001").mkdir(parents=True)
        (directory / "checkpoints" / "step-00000001" / "state.json").write_text("{}")
    return directory


@pytest.mark.parametrize(
    ("arguments", "goes"),
    [
        ({}, True),
        ({"status": "failed"}, True),
        ({"status": None}, True),
        ({"checkpoint": False}, False),
        ({"status": "completed"}, False),
        ({"error": "pruned: worse than the others"}, False),
    ],
)
def test_what_ended_early_and_has_a_checkpoint_goes_on(arguments: dict[str, Any], goes: bool, tmp_path: Path) -> None:
    assert can_go_on(Run(left(tmp_path / "run", **arguments))) is goes


def test_a_sweep_points_a_job_at_its_unfinished_run_and_has_its_worker_go_on(tmp_path: Path) -> None:
    folder = left(tmp_path / "0")
    unfinished = SweepSettings(skip_done=True).unfinished(tmp_path)
    assert SweepSettings().unfinished(tmp_path) == {}
    given = set[Path]()
    one, other = (SweepJob(n, [], CONFIG, tmp_path / "0") for n in range(2))
    assign_folder(one, {}, given, unfinished)
    assert (one.state, one.directory, one.goes_on) == ("waiting", folder, True)
    assert command(one)[-1] == "resume=auto"
    assign_folder(other, {}, given, unfinished)  # the same config once more: a run goes on once
    assert (other.directory, other.goes_on) == (tmp_path / "0.2", False)
    assert not command(other)[-1].startswith("resume=")


def test_what_a_search_gave_up_keeps_no_state(tmp_path: Path) -> None:
    folder = left(tmp_path / "0")
    settle(SweepJob(0, [], CONFIG, folder, pruned="worse than the others"), ("interrupted", ""))
    assert not (folder / "checkpoints").exists()


def test_resume_auto_begins_goes_on_or_is_done(tmp_path: Path) -> None:
    assert not take_up(tmp_path / "none", CONFIG)
    assert take_up(left(tmp_path / "complete", "completed"), CONFIG)
    with pytest.raises(ConfigError, match="is of another config"):
        take_up(left(tmp_path / "other"), {**CONFIG, "seed": 2})
    running = left(tmp_path / "running", None)
    RunFolder.claim(running, resume=True)
    with pytest.raises(ConfigError, match="another process is writing"):
        take_up(running, CONFIG)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"status": "completed"}, "is complete"), ({"checkpoint": False}, "no checkpoint")],
)
def test_a_run_that_cannot_go_on_is_refused_with_what_helps(
    arguments: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=rf"resume=.*{words}.*golf train run="):
        named(str(left(tmp_path / "run", **arguments)))
    with pytest.raises(ConfigError, match="is not a folder"):
        named(str(tmp_path / "none"))


def test_each_attempt_is_set_aside_in_a_folder_of_its_own_with_its_console(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with (tmp_path / "console.log").open("a") as console:  # open, as it is for the attempt that begins
        for number in (1, 2):
            for name in ("config.yaml", "metrics.jsonl", ".running"):
                (tmp_path / name).write_text(str(number))
            console.write(f"of {number}")
            console.flush()
            set_aside(folder)
            kept = {path.name: path.read_text() for path in (tmp_path / "attempts" / str(number)).iterdir()}
            assert kept == {"metrics.jsonl": str(number), "console.log": f"of {number}"}
    set_aside(folder)  # nothing was left
    assert len(list((tmp_path / "attempts").iterdir())) == 2
