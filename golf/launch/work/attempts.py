"""Runs that ended early: which of them can go on, and what an attempt leaves that begins anew."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from golf.common.errors import ConfigError, GolfError
from golf.runs.folder import RunFolder
from golf.runs.seal import identity
from golf.runs.states import PRUNED
from golf.runs.store import Run, load_run

NEVER, AUTO, MUST = "never", "auto", "must"
"""Whether a worker goes on from a checkpoint: if there is one, or only so."""
KEPT = ("config.yaml", "overrides.yaml", "code", "code.json", "attempts", ".running", ".room",
        ".starting.lock", "retried.json")  # fmt: skip


def can_go_on(run: Run) -> bool:
    """Whether a run ended early and has a checkpoint; what a search gave up does not go on."""
    if not run.config or run.status in ("prepared", "running", "completed"):
        return False
    return not str(run.record.get("error") or "").startswith(PRUNED) and has_checkpoint(run.folder)


def has_checkpoint(folder: RunFolder) -> bool:
    """Whether a run has one that was written whole."""
    return any(folder.checkpoints.glob("step-*/state.json"))


def named(value: str) -> Run:
    """The run that `resume=DIR` names. Raises ConfigError for one that cannot go on."""
    try:
        run = load_run(value)
    except GolfError as error:
        raise ConfigError(f"resume={error}") from error
    if not run.config:
        raise ConfigError(f"resume={value}: its {run.folder.config.name} is missing or broken: it cannot go on")
    if run.status == "running":
        raise ConfigError(f"resume={value}: this run has not ended: another process is writing there")
    if run.status == "completed":
        raise ConfigError(f"resume={value}: this run is complete: golf train run={value} trains one like it")
    if not has_checkpoint(run.folder):
        raise ConfigError(f"resume={value}: it has no checkpoint to go on from: golf train run={value} begins anew\n"
                          "checkpoint.every=… says how often one is written")  # fmt: skip
    return run


def resume(run: Run, nproc: int | None = None) -> None:
    """Let a run go on, on as many workers as it had, or as are given. Raises WorkerFailed."""
    from golf.launch.work.jobs import run_workers

    run_workers(run.dir.absolute(), nproc or int(run.config["runtime"]["nproc"]), MUST)


def take_up(directory: Path, config: Mapping[str, Any]) -> bool:
    """`resume=auto` in a run's folder: let the run of this config go on there that ended early, or begin anew where it
    has no checkpoint. False where there is none yet; nothing is done for one that is complete. Raises GolfError."""
    run = Run(directory)
    if not run.folder.config.exists() or run.status == "prepared":
        return False
    if identity(run.config) != identity(config):
        raise ConfigError(f"resume=auto: the run in {directory} is of another config: name another folder")
    if run.status == "running":
        raise ConfigError(f"resume=auto: another process is writing a run into {directory}")
    if run.status != "completed":
        from golf.launch.work.jobs import run_workers

        run_workers(directory, int(config["runtime"]["nproc"]), AUTO)
    return True


def set_aside(folder: RunFolder) -> None:
    """Move what an earlier attempt left into attempts/<number>/, the next that is free, so that the run may begin
    anew; of the console, to which this process may write already, what it holds so far."""
    live = ("console.", ".beat.")  # workers write there already
    left = [path for path in folder.path.iterdir() if path.name not in KEPT and not path.name.startswith(live)]
    if not left:
        return
    attempts = folder.path / "attempts"
    kept = attempts / str(1 + sum(1 for _ in attempts.iterdir()) if attempts.is_dir() else 1)
    kept.mkdir(parents=True)
    for path in left:
        shutil.move(path, kept / path.name)
    if (console := folder.path / "console.log").exists():
        shutil.copyfile(console, kept / console.name)
        os.truncate(console, 0)
