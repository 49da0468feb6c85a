"""The jobs of a large grid: some are composed before any starts, the others while those run, and each once."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from golf.common.errors import ConfigError
from golf.launch.sweep.board import Board
from golf.launch.sweep.coming import Coming, shown
from golf.launch.sweep.job import SweepJob
from golf.launch.sweep.kinds import SweepSettings
from golf.launch.sweep.watch import End, Seen, Watch

AXES = [[["a=1"], ["a=2"]], [[f"seed={seed}"] for seed in range(20)]]
LISTS = [list(itertools.chain(*words)) for words in itertools.product(*AXES)]


class Composer:
    """Composes jobs, and keeps which and in what order; those in `wrong` cannot be."""

    def __init__(self, folder: Path, wrong: Sequence[int] = (), subdir: Callable[[int], str] = str) -> None:
        self.folder, self.wrong, self.subdir = folder, wrong, subdir
        self.made: list[int] = []

    def __call__(self, words: Sequence[str], number: int) -> SweepJob:
        self.made.append(number)
        if number in self.wrong:
            raise ConfigError(f"{' '.join(words)}: no\nand why")
        config = {"seed": number, "schedule": {"iterations": 1}, "runtime": {"nproc": 1 + (number == 39)}}
        return SweepJob(number, list(words), config, self.folder / self.subdir(number), seal="")

    def coming(self, plan: SweepSettings | None = None) -> Coming:
        return Coming(AXES, LISTS, self, self.folder, plan or SweepSettings())


def fits(jobs: Sequence[SweepJob]) -> None:
    if jobs[0].config["runtime"]["nproc"] > 1:
        raise ConfigError("runtime.nproc=2: one GPU")


@pytest.mark.parametrize(
    ("lengths", "numbers"),
    [
        ([2, 3], [0, 1, 2, 3]),
        ([1, 5000], [round(i * 4999 / 15) for i in range(16)]),
        ([2] * 20, [0, *(2**i for i in range(20))]),
    ],
)
def test_each_value_is_shown_beside_the_first_of_the_others(lengths: list[int], numbers: list[int]) -> None:
    assert shown(lengths) == numbers


def test_a_mistake_in_a_value_is_told_before_any_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a=2 seed=0: no"):
        Composer(tmp_path, wrong=[20]).coming()


def test_each_is_composed_once_in_order_and_one_that_cannot_be_fails_alone(tmp_path: Path) -> None:
    composer, lines = Composer(tmp_path, wrong=[25]), list[str]()
    coming = composer.coming()
    first = list(composer.made)
    assert len(first) <= 16
    jobs = list(coming.jobs(fits, lines.append))
    assert [job.number for job in jobs] == list(range(40))
    assert sorted(composer.made) == list(range(40))
    assert composer.made[len(first) :] == [number for number in range(40) if number not in first]
    assert {job.number: job.error for job in jobs if job.state == "failed"} == {
        25: "a=2 seed=5: no", 39: "runtime.nproc=2: one GPU"
    }  # fmt: skip
    assert jobs[25].varied == ["a=2", "seed=5"]
    assert lines[-1] == "all 40 jobs are composed and checked"


def test_jobs_that_would_share_a_folder_fail_but_the_first(tmp_path: Path) -> None:
    coming = Composer(tmp_path, subdir=lambda number: str(30 if number == 31 else number)).coming()
    failed = [job for job in coming.jobs(fits, print) if job.state == "failed"]
    assert [job.number for job in failed] == [31, 39]
    assert "jobs 30 (a=2 seed=10) and 31 (a=2 seed=11) would share the folder" in failed[0].error


def test_what_is_done_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "3").mkdir()
    config: dict[str, Any] = {"seed": 3, "schedule": {"iterations": 1}, "runtime": {"nproc": 1}}
    (tmp_path / "3" / "config.yaml").write_text(json.dumps(config))
    (tmp_path / "3" / "result.json").write_text(json.dumps({"status": "completed", "valid": True}))
    jobs = list(Composer(tmp_path).coming(SweepSettings(skip_done=True)).jobs(fits, print))
    assert [job.number for job in jobs if job.state == "skipped"] == [3]


class AtOnce:
    """A backend whose jobs end at the next look, completed; each start is put down."""

    look_every_s, outlives_terminal, most = 0.0, False, 1

    def __init__(self, told: Callable[[int], None]) -> None:
        self.told, self.running = told, set[int]()

    def fitting(self, jobs: Sequence[SweepJob]) -> list[SweepJob]:
        return list(jobs[: 1 - len(self.running)])

    def threads(self, job: SweepJob) -> int | None:
        return 1

    def start(self, jobs: Sequence[SweepJob]) -> list[SweepJob]:
        for job in jobs:
            self.told(job.number)
        self.running |= {job.number for job in jobs}
        return list(jobs)

    def look(self, jobs: Sequence[SweepJob]) -> Mapping[int, Seen]:
        ended, self.running = self.running, set()
        return {number: End(in_order=True) for number in ended}

    def stop(self, jobs: Sequence[SweepJob], at_once: bool) -> None:
        return


def write(job: SweepJob) -> None:
    """A run that is complete as soon as it starts."""
    job.directory.mkdir()
    (job.directory / "result.json").write_text(json.dumps({"status": "completed", "valid": True}))
    job.seal = None


def test_jobs_run_while_others_are_composed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    composer, made_by_then = Composer(tmp_path, wrong=[25]), list[int]()
    coming, jobs = composer.coming(), list[SweepJob]()
    board = Board(live=False, planned=40)
    backend: Any = AtOnce(lambda number: made_by_then.append(len(composer.made)))
    Watch(backend, board, write, coming=coming.jobs(fits, board.say)).run(jobs)
    assert made_by_then[0] <= 16
    assert [job.state for job in jobs].count("completed") == 38
    assert "job 25 failed  (26 of 40)  a=2 seed=5" in capsys.readouterr().out
