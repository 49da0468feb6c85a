"""A sweep's jobs and their folders: one each, and a row shows its own job's figures alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from golf.common.errors import ConfigError
from golf.launch.compose.ranges import Range
from golf.launch.sweep.board import Board, closing_table
from golf.launch.sweep.folders import check_apart, check_space
from golf.launch.sweep.job import SweepJob, free_folder, seal_of, settle
from golf.launch.sweep.kinds import Space


def jobs(sweep: Path, *folders: str) -> list[SweepJob]:
    return [SweepJob(number, [f"seed={number}"], {}, sweep / folder) for number, folder in enumerate(folders)]


@pytest.mark.parametrize("folders", [("0", "1", "10"), ("a", "ab", "a.b"), ("x/a", "x/b"), ("../elsewhere", "here")])
def test_folders_apart(tmp_path: Path, folders: tuple[str, ...]) -> None:
    check_apart(jobs(tmp_path / "sweep", *folders), tmp_path / "sweep")


@pytest.mark.parametrize(
    ("folders", "pair"),
    [
        (("lr", "lr"), ("0 (seed=0)", "1 (seed=1)")),
        (("a", "b", "./a"), ("0 (seed=0)", "2 (seed=2)")),
        (("a", "b/../a"), ("0 (seed=0)", "1 (seed=1)")),
        (("a", "A"), ("0 (seed=0)", "1 (seed=1)")),
        (("\u00e9", "e\u0301"), ("0 (seed=0)", "1 (seed=1)")),
        (("a/evals", "b", "a"), ("0 (seed=0)", "2 (seed=2)")),
        (("a", "a-b", "a/b"), ("0 (seed=0)", "2 (seed=2)")),
        (("../sweep/a", "a"), ("0 (seed=0)", "1 (seed=1)")),
    ],
)
def test_two_jobs_in_one_folder_are_named(tmp_path: Path, folders: tuple[str, ...], pair: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"hydra.sweep.subdir") as caught:
        check_apart(jobs(tmp_path / "sweep", *folders), tmp_path / "sweep")
    assert all(one in str(caught.value) for one in pair)
    assert len(str(caught.value).splitlines()) <= 3


def test_a_link_to_a_jobs_folder_is_that_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(ConfigError, match="share the folder"):
        check_apart(jobs(tmp_path, "a", "b"), tmp_path)


@pytest.mark.parametrize("folder", ["", ".", "..", "../sweep"])
def test_the_sweeps_own_folder_is_no_jobs(tmp_path: Path, folder: str) -> None:
    with pytest.raises(ConfigError, match="the sweep's own folder"):
        check_apart(jobs(tmp_path / "sweep", folder), tmp_path / "sweep")


@pytest.mark.parametrize(
    ("subdir", "fit"), [("{n}", True), ("{x}_{y}", True), ("{x}", False), ("same", False), ("{n}/../same", False)]
)
def test_a_guided_sweep_whose_jobs_would_share_a_folder(tmp_path: Path, subdir: str, fit: bool) -> None:
    def job(words: Sequence[str], number: int) -> SweepJob:
        values = dict(word.split("=") for word in words)
        return SweepJob(number, list(words), {}, tmp_path / subdir.format(n=number, **values))

    space = Space([], [Range("x", low=0.0, high=1.0), Range("y", ("a", "b"))], job, tmp_path)
    space.probe()
    if fit:
        check_space(space)
        return
    with pytest.raises(ConfigError, match=r"hydra.sweep.subdir"):
        check_space(space)


def test_a_folder_that_was_given_away_is_not_free(tmp_path: Path) -> None:
    assert free_folder(tmp_path / "3", {tmp_path / "3"}) == tmp_path / "3.2"


CONFIG = {"schedule": {"iterations": 10, "clock": "steps"}, "budget": {}, "runtime": {"nproc": 1}}


def left(directory: Path, config: str = "seed: 1") -> Path:
    """What a run leaves in a folder."""
    directory.mkdir(exist_ok=True)
    (directory / "config.yaml").write_text(config)
    (directory / "result.json").write_text(json.dumps({"val_bpb": {"post_quant": 1.5}, "status": "completed"}))
    (directory / "metrics.jsonl").write_text(json.dumps({"step": 9, "train_loss": 3.0, "val_bpb": 1.6}))
    return directory


def shown(job: SweepJob) -> list[str]:
    """All that the live table and the closing one tell of it."""
    table = closing_table([job], "val_bpb.post_quant")
    cells = [cell for column in table.columns if column.name not in ("job", "state") for cell in column.cells]
    return [text for text in (*Board(live=False).figures(job)[1:], *cells, *table.notes) if text]


@pytest.mark.parametrize("state", ["failed", "interrupted"])
def test_a_job_that_never_wrote_its_folder_shows_nothing_of_what_lies_there(tmp_path: Path, state: str) -> None:
    assert shown(SweepJob(0, [], CONFIG, left(tmp_path / "0"), state, seal="")) == []  # type: ignore[arg-type]


def test_a_job_whose_folder_was_taken_shows_nothing_and_says_so(tmp_path: Path) -> None:
    job = SweepJob(0, [], CONFIG, left(tmp_path / "0"), "completed", seal=seal_of(left(tmp_path / "0")))
    assert "1.5000" in shown(job)
    assert job.lost == ""
    left(tmp_path / "0", "seed: 2")
    job.state = "failed"
    assert shown(job) == []
    assert "another run" in job.lost


def test_a_pruned_job_leaves_the_record_of_a_run_that_took_its_folder(tmp_path: Path) -> None:
    job = SweepJob(0, [], CONFIG, left(tmp_path / "0"), "running", seal=seal_of(left(tmp_path / "0")), pruned="no use")
    result = left(tmp_path / "0", "seed: 2") / "result.json"
    before = result.read_bytes()
    settle(job, ("interrupted", ""))
    assert (job.state, result.read_bytes()) == ("failed", before)
    assert "another run" in job.error


def test_a_pruned_job_says_so_in_its_record(tmp_path: Path) -> None:
    job = SweepJob(0, [], CONFIG, left(tmp_path / "0"), "running", seal=seal_of(left(tmp_path / "0")), pruned="no use")
    settle(job, ("interrupted", ""))
    assert (job.state, job.error) == ("pruned", "no use")
    assert "no use" in json.loads((tmp_path / "0" / "result.json").read_text())["error"]


def test_a_skipped_job_shows_the_run_that_it_was_pointed_at(tmp_path: Path) -> None:
    assert "1.5000" in shown(SweepJob(0, [], CONFIG, left(tmp_path / "0"), "skipped", seal=""))
