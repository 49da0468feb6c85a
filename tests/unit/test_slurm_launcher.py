"""`hydra/launcher=slurm` without a Slurm: what is asked for, a task's environment, and what becomes of a job."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from golf.common.errors import ConfigError
from golf.common.paths import conf_dir
from golf.common.secret import secret_key
from golf.launch.compose.configs import composer
from golf.launch.sweep.job import SweepJob
from golf.launch.sweep.slurm import Resources, end_of, groups
from golf.launch.sweep.slurm_job import environment, places
from golf.launch.sweep.watch import verdict


def job(number: int = 0, nproc: int = 1, device: str = "auto") -> SweepJob:
    return SweepJob(number, [], {"runtime": {"nproc": nproc, "device": device}}, Path(str(number)))


@pytest.mark.parametrize(
    ("request_", "one", "gpus"),
    [
        (Resources(), job(nproc=8), 8),
        (Resources(nodes=2), job(nproc=8), 4),
        (Resources(nodes=2, gpus_per_node=4), job(nproc=8, device="cuda"), 4),
        (Resources(), job(nproc=2, device="cpu"), 0),
        (Resources(gpus_per_node=0), job(nproc=2), 0),
    ],
)
def test_a_gpu_a_worker_unless_told_otherwise(request_: Resources, one: SweepJob, gpus: int) -> None:
    assert request_.gpus(one) == gpus


@pytest.mark.parametrize(
    ("request_", "one", "told"),
    [
        (Resources(nodes=3), job(nproc=8), "hydra.launcher.nodes=3"),
        (Resources(nodes=2, gpus_per_node=8), job(nproc=8), "runtime.nproc=16"),
        (Resources(gpus_per_node=1), job(device="cpu"), "runtime.device=cpu"),
    ],
)
def test_workers_that_do_not_fit_are_told(request_: Resources, one: SweepJob, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        request_.gpus(one)


def test_the_request_in_sbatchs_words() -> None:
    asked = Resources(partition="long", time=90, mem_gb=1.5, requeue=False, extra={"exclude": "node7"}).options(8, 8)
    assert asked == {
        "nodes": 1, "ntasks_per_node": 8, "time": 90, "gpus_per_node": 8, "partition": "long", "mem": "1536M",
        "no_requeue": True, "exclude": "node7",
    }  # fmt: skip


def test_jobs_of_one_size_are_one_array() -> None:
    jobs = [job(0, 1), job(1, 8), job(2, 1), job(3, 8, "cpu"), job(4, 1)]
    jobs[4].state = "skipped"
    assert [[one.number for one in group] for group in groups(jobs)] == [[0, 2], [1], [3]]


SLURM = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8", "SLURM_NNODES": "2", "MASTER_ADDR": "node1",
         "MASTER_PORT": "1234"}  # fmt: skip


def test_a_task_is_a_rank() -> None:
    made = environment(SLURM)
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    assert [made[name] for name in names] == ["5", "8", "1", "4", "node1", "1234"]


def test_on_one_node_the_workers_meet_without_its_name() -> None:
    assert environment({**SLURM, "SLURM_NNODES": "1"})["MASTER_ADDR"] == "localhost"


def test_a_job_with_another_home_finds_the_key_and_the_data_where_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOLF_CACHE", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    secret, told = secret_key(make=True), places()
    (tmp_path / ".cache" / "golf").mkdir(parents=True)
    there = {"XDG_CONFIG_HOME": str(tmp_path / ".config"), "GOLF_CACHE": str(tmp_path / ".cache" / "golf")}
    assert there.items().isdisjoint(environment({**SLURM, "HOME": str(tmp_path)}, told).items())
    for other in ({"HOME": "/nowhere"}, {}):
        made = environment({**SLURM, **other}, told)
        assert there.items() <= made.items()
        with monkeypatch.context() as patch:
            patch.setenv("HOME", made.get("HOME", ""))
            patch.setenv("XDG_CONFIG_HOME", made["XDG_CONFIG_HOME"])
            assert secret_key() == secret
    assert environment({**SLURM, "GOLF_CACHE": "/own"}, told)["GOLF_CACHE"] == "/own"
    assert "GOLF_CACHE" not in environment(SLURM, {**told, "GOLF_CACHE": "/not/on/this/node"})


@pytest.fixture
def ended(tmp_path: Path) -> Callable[..., tuple[str, str]]:
    """The verdict on a job with this record and console."""

    def call(state: str, reason: str = "None", console: str = "", stopped: bool = False, **record: Any) -> Any:
        if record:
            (tmp_path / "result.json").write_text(json.dumps(record))
        (tmp_path / "console.log").write_text(console)
        return verdict(tmp_path, end_of(tmp_path, state, reason, tmp_path / "none"), stopped)

    return call


Ended = Callable[..., tuple[str, str]]


@pytest.mark.parametrize("state", ["COMPLETED", "GONE"])
def test_a_completed_record_is_believed(ended: Ended, state: str) -> None:
    assert ended(state, status="completed", valid=True) == ("completed", "")
    assert ended(state, status="completed", valid=False, violations=["too large"]) == ("invalid", "too large")


def test_a_job_that_slurm_has_forgotten_without_a_record_has_failed(ended: Ended) -> None:
    assert ended("GONE", console="step 3\n") == ("failed", "Slurm no longer knows it after: step 3")


def test_slurms_reason_is_told(ended: Ended) -> None:
    told = ended("TIMEOUT", "TimeLimit", "step 7/9\n")
    assert told == ("failed", "ended by Slurm, TIMEOUT (TimeLimit) after: step 7/9")


def test_the_worker_that_was_killed_is_told_not_those_that_missed_it(ended: Ended) -> None:
    console = ("golf: rank 0 ended with exit code 1 after: connection closed\n"
               "golf: rank 1 was killed by SIGKILL after: step 3\n"
               "golf: rank 2 was killed by SIGTERM after: step 3\n")  # fmt: skip
    told = ended("FAILED", "NonZeroExitCode", console, status="failed", error="connection closed")
    assert told == ("failed", "rank 1 was killed by SIGKILL after: step 3")


def test_a_run_that_told_its_error_is_quoted(ended: Ended) -> None:
    console = "golf: rank 0 ended with exit code 1 after: golf: train_loss is nan\n"
    assert ended("FAILED", console=console, status="failed", error="train_loss is nan")[1] == "train_loss is nan"


def test_what_ctrl_c_stopped_has_not_failed(ended: Ended) -> None:
    assert ended("CANCELLED", stopped=True, status="interrupted") == ("interrupted", "")


def composed(*words: str) -> Any:
    """The launcher that Hydra makes of a command line."""
    from hydra import compose
    from hydra.utils import instantiate

    with composer():
        config = compose("train", overrides=["hydra/launcher=slurm", *words], return_hydra_config=True)
        return instantiate(config.hydra.launcher)


def test_its_options_on_a_command_line() -> None:
    words = ("hydra.launcher.extra={exclude: node7, exclusive: true}", "hydra.launcher.setup=[module load cuda]")
    asked = composed(*words, "hydra.launcher.nodes=2").resources
    assert asked == Resources(nodes=2, extra={"exclude": "node7", "exclusive": True}, setup=["module load cuda"])


@pytest.mark.parametrize("word", ["nodes=0", "nodes=many", "time=1:30", "requeue=perhaps", "poll_s=0", "jobs=0"])
def test_an_option_that_cannot_be(word: str) -> None:
    with pytest.raises(Exception, match=r"hydra\.launcher\." + word) as caught:
        composed(f"hydra.launcher.{word}")
    assert "ConfigError" in repr(caught.value) or isinstance(caught.value.__cause__, ConfigError)


def test_every_setting_is_a_key_with_the_same_default() -> None:
    assert composed().resources == Resources()
    keys = set(yaml.safe_load((conf_dir() / "hydra" / "launcher" / "slurm.yaml").read_text(encoding="utf-8")))
    assert keys == {"_target_", "poll_s", *Resources.__dataclass_fields__}
