"""Successive halving: who goes on, what is left out on a second call, and mistakes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from golf.common.errors import ConfigError
from golf.launch.compose.ranges import Range
from golf.launch.sweep.halving import Halving, Rungs
from golf.launch.sweep.job import SweepJob
from golf.launch.sweep.kinds import Space

X = Range("x", choices=tuple(map(str, range(8))))
FLOATS = Range("lr", low=0.01, high=1.0, log=True)


def space(folder: Path, *ranges: Range, clock: str = "wall", **budget: Any) -> Space:
    def job(words: Sequence[str], number: int) -> SweepJob:
        config = {"words": list(words), "runtime": {"nproc": 1}, "schedule": {"clock": clock},
                  "budget": {"train_seconds": 60.0, **budget}}  # fmt: skip
        return SweepJob(number, list(words), config, folder / str(number))

    made = Space([], list(ranges or (X,)), job, folder)
    made.probe()
    return made


def drive(
    rungs: Rungs, broken: Sequence[str] = (), too_large: Sequence[str] = (), easier: Sequence[str] = ()
) -> list[list[str]]:
    """Run what comes, a smaller x being better; what ran at each call, as x@fraction. `easier`: scored on less text."""
    jobs: list[SweepJob] = []
    told = []
    while begun := rungs.more(jobs):
        jobs += begun
        told.append([])
        for job in begun:
            if job.state != "waiting":
                continue
            words = dict(word.split("=") for word in job.varied)
            told[-1].append(f"{words['x']}@{float(words['budget.fraction']):g}")
            job.directory.mkdir(parents=True)
            valid = words["x"] not in too_large
            record = {"status": "completed", "valid": valid, "val_bpb": {"post_quant": float(words["x"])}}
            scored = {"stage": "quantized", "method": "contiguous", "seq_len": 8, "targets": 9, "bytes": 20}
            record["evals"] = [scored | {"bytes": 2} if words["x"] in easier else scored]
            (job.directory / "config.yaml").write_text(yaml.safe_dump(job.config))
            (job.directory / "result.json").write_text(json.dumps(record))
            job.state = "failed" if words["x"] in broken else "completed" if valid else "invalid"
            rungs.ended(job)
    return told


def halving(**settings: Any) -> Halving:
    return Halving(**{"fractions": ["1/4", "1/2", 1], "eta": 2, "skip_done": True, **settings})


def test_the_best_half_goes_on(tmp_path: Path) -> None:
    told = drive(halving().guide(space(tmp_path)))
    assert [len(rung) for rung in told] == [8, 4, 2]
    assert told[1:] == [["0@0.5", "1@0.5", "2@0.5", "3@0.5"], ["0@1", "1@1"]]


def test_a_run_scored_on_other_text_does_not_go_on_and_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rungs = halving().guide(space(tmp_path))
    told = drive(rungs, easier=["0", "2"])
    assert told[1:] == [["1@0.5", "3@0.5", "4@0.5", "5@0.5"], ["1@1", "3@1"]]
    rungs.finish([])
    left_out = yaml.safe_load((tmp_path / "best.yaml").read_text())["left_out"]
    assert left_out == [line for line in capsys.readouterr().out.splitlines() if line.startswith("not compared")]
    assert "2 contiguous, 8 tokens, 2 bytes of text" in left_out[0]


def test_a_failed_run_does_not_go_on_and_an_invalid_one_stands_behind(tmp_path: Path) -> None:
    told = drive(halving().guide(space(tmp_path)), broken=["0"], too_large=["1", "2"])
    assert told[1:] == [["3@0.5", "4@0.5", "5@0.5", "6@0.5"], ["3@1", "4@1"]]


def test_invalid_runs_go_on_where_there_are_no_others(tmp_path: Path) -> None:
    told = drive(halving().guide(space(tmp_path)), broken=["0", "1", "2", "3", "4"], too_large=["5", "6"])
    assert told[1] == ["7@0.5", "5@0.5", "6@0.5"]


def test_nothing_goes_on_from_a_rung_that_failed(tmp_path: Path) -> None:
    assert len(drive(halving().guide(space(tmp_path)), broken=X.choices)) == 1


def test_the_same_again_runs_nothing(tmp_path: Path) -> None:
    drive(halving().guide(space(tmp_path)))
    assert drive(halving().guide(space(tmp_path))) == [[], [], []]


def test_a_sweep_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    drive(halving(fractions=["1/4"]).guide(space(tmp_path)))
    assert [len(rung) for rung in drive(halving().guide(space(tmp_path)))] == [0, 4, 2]


def test_all_rungs_are_planned(tmp_path: Path) -> None:
    assert halving().guide(space(tmp_path)).planned == 14


def test_configurations_are_drawn_once_each_and_the_same_again(tmp_path: Path) -> None:
    first, second = (halving(configs=6).choose(space(tmp_path, X, FLOATS)) for _ in range(2))
    assert first == second
    assert len({tuple(values.values()) for values in first}) == 6


def test_fewer_combinations_than_wished_are_all_taken(tmp_path: Path) -> None:
    assert len(halving(configs=99).choose(space(tmp_path))) == 8


def test_the_best_of_the_largest_fraction_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rungs = halving().guide(space(tmp_path))
    drive(rungs)
    rungs.finish([])
    kept = yaml.safe_load((tmp_path / "best.yaml").read_text())["best"]
    assert (kept[0]["fraction"], kept[0]["values"]) == (1.0, {"x": "0"})
    assert capsys.readouterr().out.splitlines()[-1] == "golf train x=0 budget.fraction=1.0"


def test_ranges_without_a_number_of_draws_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lr=log\(0.01,1\): there is no end of values; sweep.configs"):
        halving().guide(space(tmp_path, FLOATS))


def test_too_many_jobs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sweep of 14 jobs.*max_jobs=14"):
        halving(max_jobs=13).guide(space(tmp_path))


@pytest.mark.parametrize("change", [{"clock": "steps"}, {"train_seconds": None}])
def test_a_run_without_a_clock_has_no_fractions(change: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a fraction shortens the clock"):
        halving().guide(space(tmp_path, **change))


def test_a_fraction_of_the_line_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"budget.fraction: sweep.fractions says which"):
        halving().guide(space(tmp_path, Range("budget.fraction", choices=("0.1", "0.2"))))


@pytest.mark.parametrize("fractions", [[], [1, 0.5], ["1/0"], ["some"], [0, 1], [0.5, 0.5]])
def test_mistaken_fractions(fractions: list[Any]) -> None:
    with pytest.raises(ConfigError, match=r"sweep\.fractions="):
        Halving(fractions=fractions)
