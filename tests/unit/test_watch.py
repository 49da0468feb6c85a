"""The one loop that watches a sweep's jobs, over a backend that follows a script."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from golf.common.errors import GolfError
from golf.launch.sweep.job import SweepJob
from golf.launch.sweep.watch import End, Seen, Watch

Scene = Mapping[int, Seen] | Callable[[], None]
DONE = End(in_order=True)


class Script:
    """A backend whose looks are told beforehand; what it was asked to do is kept."""

    look_every_s = 0.0
    outlives_terminal = False

    def __init__(self, *scenes: Scene, most: int = 2, queue: bool = False) -> None:
        self.scenes, self.most, self.queue = list(scenes), most, queue
        self.running = 0
        self.stopped: list[tuple[list[int], bool]] = []

    def has_room(self, jobs: Sequence[SweepJob]) -> bool:
        return sum(job.state in ("waiting", "running") for job in jobs) < self.most

    def fitting(self, jobs: Sequence[SweepJob]) -> list[SweepJob]:
        return list(jobs[: self.most - self.running])

    def threads(self, job: SweepJob) -> int | None:
        return 3

    def start(self, jobs: Sequence[SweepJob]) -> list[SweepJob]:
        self.running += len(jobs)
        return [] if self.queue else list(jobs)

    def look(self, jobs: Sequence[SweepJob]) -> Mapping[int, Seen]:
        scene = self.scenes.pop(0)
        if callable(scene):
            scene()
            return {}
        self.running -= sum(isinstance(seen, End) for seen in scene.values())
        return scene

    def stop(self, jobs: Sequence[SweepJob], at_once: bool) -> None:
        if jobs:
            self.stopped.append(([job.number for job in jobs], at_once))


class Told:
    """What a sweep's table would be told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def update(self, jobs: Sequence[SweepJob]) -> None:
        return

    def say(self, text: str) -> None:
        self.lines.append(text)


class Leader:
    """A guide with a few jobs, given one at a time, that gives up those in `useless`."""

    def __init__(self, jobs: Sequence[SweepJob], useless: Sequence[int] = ()) -> None:
        self.jobs, self.useless, self.planned = list(jobs), useless, len(jobs)
        self.heard: list[tuple[int, str]] = []

    def more(self, jobs: Sequence[SweepJob]) -> list[SweepJob]:
        return [self.jobs.pop(0)] if self.jobs else []

    def ended(self, job: SweepJob) -> None:
        self.heard.append((job.number, job.state))

    def prune(self, job: SweepJob) -> str:
        return "no use" if job.number in self.useless else ""

    def finish(self, jobs: Sequence[SweepJob]) -> None:
        return


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def jobs(tmp_path: Path) -> list[SweepJob]:
    """Three jobs with folders; those of 0 and 2 hold the record of a run that was completed."""
    made = [SweepJob(number, [], {"runtime": {"nproc": 1}}, tmp_path / str(number)) for number in range(3)]
    for job in made:
        job.directory.mkdir()
        record: dict[str, Any] = {"status": "completed", "valid": True}
        if job.number == 1:
            record = {"status": "interrupted"}
        (job.directory / "result.json").write_text(json.dumps(record))
    return made


def write(job: SweepJob) -> None:
    """Nothing: the folders are there."""


def states(jobs: Sequence[SweepJob]) -> list[str]:
    return [job.state for job in jobs]


def test_each_job_ends_as_its_record_says(jobs: list[SweepJob]) -> None:
    killed = End(in_order=False, how="killed by SIGKILL", last_words="step 3")
    Watch(Script({0: DONE, 1: DONE, 2: killed}, most=3), Told(), write).run(jobs)
    assert states(jobs) == ["completed", "interrupted", "failed"]
    assert jobs[2].error == "killed by SIGKILL after: step 3"


def test_a_job_that_is_refused_is_not_started(jobs: list[SweepJob]) -> None:
    guide = Leader(jobs)
    watch = Watch(Script({1: DONE}, {2: DONE}), Told(), write, guide, lambda job: "too large" if not job.number else "")
    watch.run(seen := [])
    assert states(seen) == ["pruned", "interrupted", "completed"]
    assert (jobs[0].error, jobs[0].began) == ("too large", 0.0)
    assert (0, "pruned") in guide.heard


def test_a_folder_that_cannot_be_written_fails_its_job_alone(jobs: list[SweepJob]) -> None:
    def refuse(job: SweepJob) -> None:
        if job.number == 0:
            raise GolfError("it is used\nname another")

    Watch(Script({2: DONE, 1: DONE}, most=3), Told(), refuse).run(jobs)
    assert states(jobs) == ["failed", "interrupted", "completed"]
    assert jobs[0].error == "it is used"


def test_a_job_has_its_share_of_the_cores_before_it_is_written(jobs: list[SweepJob]) -> None:
    written: list[int] = []
    job = jobs[0]
    Watch(Script({0: DONE}), Told(), lambda one: written.append(one.config["runtime"]["threads"])).run([job])
    assert written == [3]


def test_ctrl_c_once_lets_what_runs_finish_and_starts_nothing(jobs: list[SweepJob]) -> None:
    script, told = Script(interrupt, {0: DONE}, most=1), Told()
    Watch(script, told, write).run(jobs)
    assert states(jobs) == ["completed", "interrupted", "interrupted"]
    assert script.stopped == [([1, 2], True)], "what waits in a queue is taken out of it"
    assert [job.error for job in jobs[1:]] == ["not started"] * 2
    assert len(told.lines) == 1


def test_ctrl_c_again_stops_what_runs_and_a_third_time_at_once(jobs: list[SweepJob]) -> None:
    script = Script(interrupt, interrupt, interrupt, {0: End(in_order=False, last_words="killed")})
    Watch(script, Told(), write).run(jobs[:1])
    assert script.stopped == [([0], False), ([0], True)]
    assert states(jobs[:1]) == ["interrupted"]


def test_a_job_that_went_back_to_the_queue_waits_again(jobs: list[SweepJob]) -> None:
    told = Told()
    scenes: list[Scene] = [{0: "waiting"}, {0: "running"}, {0: "waiting"}, {0: "running"}, {0: DONE}]
    Watch(Script(*scenes, queue=True), told, write).run(jobs[:1])
    assert told.lines == ["job 0 was put back in the queue; its run has no checkpoint and begins anew there"]
    assert states(jobs[:1]) == ["completed"]


def test_an_end_that_is_not_certain_is_looked_at_again(jobs: list[SweepJob]) -> None:
    Watch(Script({0: End(in_order=False, certain=False)}, {0: "running"}, {0: DONE}), Told(), write).run(jobs[:1])
    assert states(jobs[:1]) == ["completed"]


def test_a_guide_hears_of_each_end_once_and_is_asked_until_it_has_no_more(jobs: list[SweepJob]) -> None:
    guide, ran = Leader(jobs, useless=[1]), list[SweepJob]()
    script = Script({0: DONE}, {}, {1: End(in_order=False)}, {2: DONE}, most=1)
    Watch(script, Told(), write, guide).run(ran)
    assert guide.heard == [(0, "completed"), (1, "pruned"), (2, "completed")]
    assert script.stopped == [([1], False)]


def test_a_guide_is_not_asked_after_ctrl_c(jobs: list[SweepJob]) -> None:
    guide, ran = Leader(jobs), list[SweepJob]()
    Watch(Script(interrupt, {0: DONE}, most=1), Told(), write, guide).run(ran)
    assert [job.number for job in ran] == [0]


def test_an_error_of_its_own_leaves_nothing_running(jobs: list[SweepJob]) -> None:
    def fail() -> None:
        raise RuntimeError("out of order")

    script = Script(fail)
    with pytest.raises(RuntimeError, match="out of order"):
        Watch(script, Told(), write).run(jobs[:2])
    assert script.stopped == [([0, 1], True)]
