"""What a sweep runs, and where: axes, ablations, run identity, devices, verdicts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from golf.common.errors import ConfigError
from golf.launch.sweep.ablation import ablation_table, ablations, name_jobs
from golf.launch.sweep.board import Tail
from golf.launch.sweep.job import SweepJob, free_folder, length_of
from golf.launch.sweep.pool import Devices, end_of, environment
from golf.launch.sweep.sweeper import Grid, axes, count, expand, identity
from golf.launch.sweep.watch import verdict


def job(number: int = 0, nproc: int = 1, directory: Path = Path("/nowhere")) -> SweepJob:
    return SweepJob(number, [], {"runtime": {"nproc": nproc}}, directory)


def scored_job(directory: Path, number: int, config: dict[str, Any], bpb: float) -> SweepJob:
    """A job whose run ended valid with this score."""
    directory.mkdir()
    (directory / "config.yaml").write_text(json.dumps(config))
    record(directory, status="completed", valid=True, val_bpb={"post_quant": bpb})
    return SweepJob(number, [], config, directory, "completed")


def test_a_grid_is_every_combination_in_order() -> None:
    assert expand(axes(["seed=1,2", "model.num_layers=4,6"])) == [
        ["seed=1", "model.num_layers=4"], ["seed=1", "model.num_layers=6"],
        ["seed=2", "model.num_layers=4"], ["seed=2", "model.num_layers=6"],
    ]  # fmt: skip


def test_a_large_grid_is_counted_without_being_made() -> None:
    assert count(axes(["seed=range(0,100000)", "model.num_layers=range(0,100000)"])) == 10**10


def test_the_command_line_wins_over_the_sweeps_own_values() -> None:
    assert expand(axes(["seed=7"], params=["seed=1,2,3"])) == [["seed=7"]]


def test_sets_run_with_every_combination() -> None:
    found = expand(axes(["seed=1,2"], sets=["a=1 b=2", ["c=3"]]))
    assert found == [["seed=1", "a=1", "b=2"], ["seed=1", "c=3"], ["seed=2", "a=1", "b=2"], ["seed=2", "c=3"]]


def test_an_axis_without_values_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing to sweep"):
        axes(["seed=range(0,0)"])


def test_a_continuous_range_is_refused() -> None:
    with pytest.raises(ConfigError, match="without steps"):
        axes(["optimizer.matrix_lr=interval(0.01,0.1)"])


def test_an_ablation_turns_off_what_is_on() -> None:
    choices = {"technique/xsa": "last4", "technique/smear_gate": "none", "averaging": "swa", "qat": "none", "data": "x"}
    assert ablations(choices) == {
        "": [], "averaging": ["averaging=none"], "technique/xsa": ["technique/xsa=none"]
    }  # fmt: skip
    phases = [
        {"from": 0.35, "set": {"model.plan": "loop", "technique/xsa": "all", "technique.xsa.layers": "all"}},
        {"from_step": 900, "set": {"qat": "quant", "qat.times": 1.5}},
    ]
    found = ablations(choices, phases)
    assert found["qat"] == [
        'phases=[{from:0.35,set:{model.plan:"loop",technique/xsa:"all",technique.xsa.layers:"all"}}]'
    ]
    assert found["technique/xsa"] == [
        "technique/xsa=none",
        'phases=[{from:0.35,set:{model.plan:"loop"}},{from_step:900,set:{qat:"quant",qat.times:1.5}}]',
    ]
    assert ablations({}, phases[1:]) == {"": [], "qat": ["phases=[]"]}


def test_the_jobs_of_an_ablation_are_called_by_what_is_off() -> None:
    arms = ablations({"technique/xsa": "last4", "averaging": "ema"})
    words = expand([*axes(["seed=1,2", "a=3"]), list(arms.values())])
    jobs = [SweepJob(number, one, {}, Path("/nowhere")) for number, one in enumerate(words)]
    name_jobs(jobs, arms)
    assert [job.varied for job in jobs[:4]] == [
        ["ablation=baseline", "seed=1"], ["ablation=averaging off", "seed=1"], ["ablation=xsa off", "seed=1"],
        ["ablation=baseline", "seed=2"],
    ]  # fmt: skip


def test_an_ablation_ends_with_the_distance_to_the_baseline(tmp_path: Path) -> None:
    jobs = []
    for number, (option, bpb) in enumerate((("last4", 1.2), ("none", 1.25))):
        config = {"choices": {"technique/xsa": option, "recipe": "r"}, "technique": {"xsa": {}}, "seed": 1}
        jobs.append(scored_job(tmp_path / str(number), number, config, bpb))
    (table,) = ablation_table(jobs, "val_bpb.post_quant")
    assert list(table.columns[0].cells) == ["baseline (all on)", "xsa off"]
    assert "+0.0500" in [text for column in table.columns for text in column.cells]
    assert ablation_table(jobs[:1], "val_bpb.post_quant") == []


def test_what_a_phase_turns_on_has_its_own_row(tmp_path: Path) -> None:
    jobs = []
    loop = {"from": 0.35, "set": {"model.plan": "loop"}}
    for number, (phases, bpb) in enumerate((([loop, {"from": 0.85, "set": {"qat": "quant"}}], 1.2), ([loop], 1.25))):
        phases = [{**one, "values": {"what": "it comes to"}} for one in phases]
        config = {"choices": {"qat": "none", "recipe": "r"}, "qat": {}, "phases": phases, "seed": 1}
        jobs.append(scored_job(tmp_path / str(number), number, config, bpb))
    (table,) = ablation_table(jobs, "val_bpb.post_quant")
    assert list(table.columns[0].cells) == ["baseline (all on)", "qat off"]


def test_nothing_to_ablate_is_refused() -> None:
    with pytest.raises(ConfigError, match="no technique"):
        ablations({"technique/xsa": "none", "averaging": "none"})


def test_a_limit_of_no_jobs_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_jobs=0"):
        Grid(max_jobs=0)


@pytest.mark.parametrize(
    "change", [{"logger": {"name": "x"}}, {"code_paths": ["/x"]}, {"runtime": {"nproc": 8, "dtype": "float32"}}]
)
def test_where_a_run_was_made_is_no_part_of_its_identity(change: dict[str, Any]) -> None:
    config = {"seed": 1, "logger": {}, "code_paths": [], "runtime": {"nproc": 1, "dtype": "float32"}}
    assert identity(config | change) == identity(config)


@pytest.mark.parametrize("change", [{"seed": 2}, {"runtime": {"nproc": 1, "dtype": "bfloat16"}}])
def test_what_a_run_computes_is_its_identity(change: dict[str, Any]) -> None:
    config = {"seed": 1, "runtime": {"nproc": 1, "dtype": "float32"}}
    assert identity(config | change) != identity(config)


EIGHT = [str(number) for number in range(8)]


def test_eight_gpus_hold_eight_jobs() -> None:
    devices = Devices.of_gpus(EIGHT, None, None)
    assert (len(devices.free), devices.most) == (8, 8)


def test_a_job_takes_a_gpu_a_worker() -> None:
    assert Devices.of_gpus(EIGHT, None, None).needed(job(nproc=4)) == 4


def test_chosen_gpus_keep_their_visible_names() -> None:
    assert Devices.of_gpus(["GPU-a", "GPU-b", "GPU-c"], [0, 2], None).free == ["GPU-a", "GPU-c"]


def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="no GPU 9; this machine has GPUs 0 to 7"):
        Devices.of_gpus(EIGHT, [0, 9], None)


def test_a_gpu_named_twice() -> None:
    with pytest.raises(ConfigError, match="each once"):
        Devices.of_gpus(EIGHT, [1, 1], None)


def test_a_job_that_never_fits() -> None:
    with pytest.raises(ConfigError, match=r"runtime.nproc=4: job 3 has 2 GPUs"):
        Devices.of_gpus(EIGHT, [0, 1], None).check([job(3, nproc=4)])


@pytest.mark.parametrize(
    ("cores", "jobs", "number", "nproc", "most"),
    [(2, None, 8, 1, 2), (64, None, 99, 1, 8), (8, None, 99, 4, 2), (2, 4, 9, 1, 4), (8, None, 3, 1, 3)],
)
def test_room_on_the_cpu(cores: int, jobs: int | None, number: int, nproc: int, most: int) -> None:
    assert Devices.of_cpu(cores, jobs, number, nproc).most == most


def test_a_job_sees_its_gpus_and_no_other_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    made = environment(["2", "3"], threads=5)
    assert (made["CUDA_VISIBLE_DEVICES"], made["OMP_NUM_THREADS"], made.get("WORLD_SIZE")) == ("2,3", "5", None)


def record(directory: Path, **values: Any) -> Path:
    (directory / "result.json").write_text(json.dumps(values))
    return directory


def ended(directory: Path, code: int) -> tuple[str, str]:
    return verdict(directory, end_of(directory, code), False)


def test_a_valid_run_is_done(tmp_path: Path) -> None:
    assert ended(record(tmp_path, status="completed", valid=True), 0) == ("completed", "")


def test_a_run_over_a_limit_is_invalid_and_says_why(tmp_path: Path) -> None:
    record(tmp_path, status="completed", valid=False, violations=["too large"])
    assert ended(tmp_path, 0) == ("invalid", "too large")


def test_a_killed_job_is_named_so(tmp_path: Path) -> None:
    (tmp_path / "console.log").write_text("step 3\n\n")
    assert ended(tmp_path, -9) == ("failed", "killed by SIGKILL after: step 3")


def test_a_job_without_a_word_gives_its_exit_code(tmp_path: Path) -> None:
    assert ended(tmp_path, 7) == ("failed", "exit code 7")


def test_a_used_folder_is_passed_over(tmp_path: Path) -> None:
    for name in ("3", "3.2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
    assert free_folder(tmp_path / "3") == tmp_path / "3.3"


def test_a_line_still_being_written_is_read_the_next_time(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "train_loss": 3.0}\n{"step": 2, "tr')
    tail = Tail(path)
    assert tail.read()["step"] == 1
    with path.open("a") as file:
        file.write('ain_loss": 2.0}\n')
    assert tail.read() == {"step": 2, "train_loss": 2.0}


@pytest.mark.parametrize("rows", [1, 5])
def test_a_file_that_another_attempt_began_is_read_from_its_start(rows: int, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "val_bpb": 9.0}\n{"step": 2, "train_loss": 3.0}\n')
    tail = Tail(path)
    assert tail.read()["step"] == 2
    path.rename(tmp_path / "kept.jsonl")
    assert tail.read()["step"] == 2, "between the two there is none"
    path.write_text("".join(f'{{"step": {step}, "train_loss": {step}.25}}\n' for step in range(1, rows + 1)))
    assert tail.read() == {"step": rows, "train_loss": rows + 0.25}


def test_time_left_is_the_nearer_end() -> None:
    config = {"schedule": {"iterations": 100, "clock": "wall"}, "runtime": {"nproc": 4},
              "budget": {"train_seconds": 10.0, "fraction": 0.5, "reference_nproc": 8}}  # fmt: skip
    assert length_of(config).seconds_left(10, 5.0) == 5.0
    assert length_of(config).seconds_left(90, 4.5) == 0.5
