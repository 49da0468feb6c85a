"""`golf bench` for real, on the CPU: its record, its profile, sweeps, finished runs, the compiler's cache, mistakes."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from golf.cli.bench import summary
from golf.train.bench import PHASES
from golf.train.doubts import doubts

TINY = ("budget=smoke", "recipe=quickstart", "model.num_layers=2", "runtime=cpu", "runtime.threads=1", "steps=4")


def printed(place: Path, *words: str) -> list[str]:
    """Run `golf bench` in a process of its own; the lines that it prints."""
    command = [sys.executable, "-m", "golf.cli.main", "bench", *words]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return [line.rstrip() for line in done.stdout.splitlines()]


def bench(place: Path, *words: str) -> Path:
    """The path in the last line of `golf bench`."""
    return Path(printed(place, *words)[-1])


def read(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


@pytest.fixture(scope="module")
def measured(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bench.json of one tiny model, profiled, with two workers and no data prepared."""
    return bench(tmp_path_factory.mktemp("bench"), *TINY, "profile=true", "runtime.nproc=2", "tokenizer=sp1024")


FIGURES = ("step_ms", "tokens_per_s", "step_ms_p10", "step_ms_p90", "peak_memory_bytes", "flops_per_token")


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_positive(measured: Path, name: str) -> None:
    assert read(measured)[name] > 0


NAMES = (
    "mfu",
    "kernels",
    "compile",
    "reference",
    "ranks",
    "phases_ms",
    "versions",
    "hardware",
    "git",
    "config",
    "data",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_in_the_record(measured: Path, name: str) -> None:
    assert name in read(measured)


def test_the_rate_is_the_steps_tokens_over_its_time(measured: Path) -> None:
    record = read(measured)
    assert record["tokens_per_s"] == pytest.approx(1000 * 4096 / record["step_ms"])
    assert record["measured_steps"] == 4


def test_a_checkpoint_says_what_it_costs_a_step_and_training(measured: Path) -> None:
    cost = read(measured)["checkpoint"]
    assert cost["bytes"] > 100_000
    assert cost["share"] == pytest.approx(cost["ms"] / 1000 / 300)
    assert not measured.with_name("checkpoints").exists()


def test_each_rank_tells_where_its_time_went(measured: Path) -> None:
    ranks = read(measured)["ranks"]
    assert [one["rank"] for one in ranks] == [0, 1]
    for one in ranks:
        assert set(one["phases_ms"]) == set(PHASES)
        assert sum(one["phases_ms"].values()) == pytest.approx(one["step_ms_mean"], rel=1e-3)


@pytest.mark.parametrize(
    ("host", "changes", "told"),
    [
        (5.0, {}, ""),
        (12.0, {}, "larger passes, or runtime.cuda_graphs=true"),
        (12.0, {"cuda_graphs": True}, "larger passes"),
        (12.0, {"micro_steps": 4}, "larger passes"),
    ],
    ids=["fast", "slow", "recorded already", "several passes"],
)
def test_a_host_as_slow_as_a_step_is_told(host: float, changes: Any, told: str, measured: Path) -> None:
    calm = {"step_ms_p10": 10.0, "step_ms_p90": 10.0, "host_wait_ms": 0.0, "load_average": 1.0, "cores": 64}
    record = read(measured) | calm | {"step_ms": 10.0, "host_ms": {"forward": host}, "micro_steps": 1} | changes
    record["doubts"] = doubts(record)
    lines = [line for name, line in summary(record) if name == "mind"]
    assert len(lines) == bool(told)
    assert all(line.startswith("the host sets the pace: ") and line.endswith(f" {told}") for line in lines)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"step_ms_p90": 11.0}, ""),
        (
            {"step_ms_p90": 12.0},
            "one in ten took under 10.0 ms, one in ten over 12.0: something else has worked here too",
        ),
        ({"step_ms_p90": 12.0, "phases_ms": {"data": 2.0}}, "data came late (2.0 ms a step)"),
        ({"step_ms_p90": 12.0, "measured_steps": 5}, ""),
        ({"data_wait_ms": 1.0}, "each step waited 1.0 ms for data"),
        ({"data_wait_ms": 0.1}, ""),
        ({"host_wait_ms": 1.0}, "each step waited 1.0 ms for a core"),
        ({"host_wait_ms": None}, ""),
        ({"load_average": 83.0}, "a load of 83 on 64 cores"),
    ],
)
def test_a_machine_that_others_use_is_told(changes: dict[str, Any], told: str) -> None:
    record = {
        "step_ms": 10.0, "step_ms_p10": 10.0, "step_ms_p90": 10.0, "measured_steps": 50, "phases_ms": {"data": 0.1},
        "host_wait_ms": 0.0, "load_average": 1.0, "cores": 64, "host_ms": None, "cuda_graphs": False, "micro_steps": 1,
    }  # fmt: skip
    found = doubts(record | changes)
    assert len(found) == bool(told)
    assert told in "".join(found)


def test_the_record_holds_every_step_and_what_the_machine_was_doing(measured: Path) -> None:
    record = read(measured)
    assert len(record["steps_ms"]) == record["measured_steps"]
    assert record["cores"] > 0
    assert record["load_average"] >= 0
    assert record["doubts"] == doubts(record)


def test_data_that_is_not_there_is_random(measured: Path) -> None:
    record = read(measured)
    assert record["data"] == "random"
    assert list(measured.parent.glob("*.bin")) == []


def test_the_profile_is_a_table_whose_shares_sum_to_one(measured: Path) -> None:
    with (measured.parent / "profile.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert sum(float(row["share"]) for row in rows) == pytest.approx(1, rel=1e-6)
    assert any("scaled_dot_product" in row["name"] for row in rows)


def test_each_rank_leaves_a_trace(measured: Path) -> None:
    for rank in (0, 1):
        assert read(measured.parent / f"trace_rank{rank}.json")["traceEvents"]


def test_a_finished_run_is_measured_on_its_own_data(run_copy: Path, tmp_path: Path) -> None:
    path = bench(tmp_path, f"run={run_copy}", "steps=2", "reference=false")
    assert path.parent.parent == run_copy / "evals"
    record = read(path)
    assert record["data"] == "text"
    assert record["config"]["model"]["num_layers"] == 2
    assert "reference" not in record


@pytest.fixture(scope="module")
def swept(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What two jobs print."""
    return printed(tmp_path_factory.mktemp("swept"), *TINY, "-m", "technique/xsa=none,all", "reference=false")


@pytest.mark.slow
def test_a_sweep_compares_its_jobs(swept: list[str]) -> None:
    jobs = read(Path(swept[-1]))["jobs"]
    assert [job["swept"] for job in jobs] == [{"technique/xsa": "none"}, {"technique/xsa": "all"}]
    assert jobs[0]["config"]["technique"]["xsa"] == {}
    assert all(job["step_ms"] > 0 for job in jobs)


@pytest.mark.slow
def test_a_sweep_prints_by_how_much_its_jobs_differ(swept: list[str]) -> None:
    table = "\n".join(swept[swept.index("jobs") :])
    steps = [job["step_ms"] for job in read(Path(swept[-1]))["jobs"]]
    told = re.findall(r"(none|all) +\S +([\d.]+) \S +([+-][\d.]+%)", table)
    assert told == [
        (name, f"{step:.2f}", f"{step / steps[0] - 1:+.1%}") for name, step in zip(("none", "all"), steps, strict=True)
    ]


@pytest.mark.slow
def test_a_second_run_finds_what_the_first_compiled(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))  # other tests compile as well
    words = (*TINY, "runtime.compile=model", "reference=false")
    first = read(bench(tmp_path, *words))["compile"]
    second = read(bench(tmp_path, *words, "compile_times=false", "profile=true"))["ranks"][0]["first_step_ms"]
    assert first["cache_found"] == "cold"
    assert first["cold_s"] > first["warm_s"]
    assert first["eager_step_ms"] > 0
    assert second < 500 * first["cold_s"]


@pytest.mark.slow
def test_a_job_of_a_sweep_finds_what_the_one_before_it_compiled(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In golf's own cache: the user has named no folder for compiled code."""
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("GOLF_CACHE", str(tmp_path / "cache"))
    path = bench(tmp_path, *TINY, "-m", "seed=1,2", "steps=2", "runtime.compile=model", "reference=false")
    assert [job["compile"]["cache_found"] for job in read(path)["jobs"]] == ["cold", "warm"]


def test_kernels_are_timed_or_said_not_to_be_there(golf_command, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = golf_command("bench", "kernels", "runtime.device=cpu")
    assert outcome.code == 0
    record = read(Path(outcome.last_line))
    assert record["reference"]["copy_tb_s"] > 0
    assert isinstance(record["kernels"], list)


MISTAKES = {
    ("recipe=nope",): "there is no such option",
    ("steps=0",): "at least 1",
    ("profile=maybe",): "choices are true, false",
    ("seed=1,2",): "need --multirun",
    ("--cfg", "job"): "no such flag",
    ("--prepare",): "no such flag",
    ("kernels", "colour=red"): "takes runtime.device",
    ("run=/nowhere",): "run=",
    ("runtime.nproc=3",): "1, 2, 4 or 8",
}


@pytest.mark.parametrize(("words", "told"), MISTAKES.items(), ids=" ".join)
def test_a_mistake_is_told_before_anything_starts(words, told, golf_command, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = golf_command("bench", *words)
    assert (outcome.code, told in outcome.err) == (2, True), outcome.err
    assert list(tmp_path.iterdir()) == []
