"""Loggers: the jsonl that is always on, and wandb's offline file read back record by record."""

from __future__ import annotations

import json
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic
import pytest
import torch

from golf.common import log
from golf.common.errors import ConfigError, GolfError
from golf.runs import wandb_files
from golf.runs.folder import read_metrics
from golf.runs.loggers import JsonlLogger, Logger, Loggers, RunInfo, WandbLogger
from golf.runs.record import Bytes, EvalRecord, Result

CHOICES = {"recipe": "quickstart", "tokenizer": "sp1024", "quant": "int6", "optimizer": "muon"}
CONFIG = {
    "choices": CHOICES,
    "seed": 7,
    "model": {"num_layers": 3, "attention": {"backend": "sdpa"}},
    "tags": ["a", "b"],
}


@pytest.fixture(autouse=True)
def _quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No account on this machine, and the console lines of golf alone."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with log.setup(0, None):
        yield


# --- a reader of .wandb files


def chunks(data: bytes) -> Iterator[bytes]:
    """The records of a LevelDB log behind wandb's 7-byte header: 32 KiB blocks of (crc, length, type, payload)."""
    block, header = 32 * 1024, 7
    assert data[:4] == b":W&B"
    at, record = header, b""
    while at + header <= len(data):
        if block - at % block < header:  # a header never straddles blocks: the rest is padding
            at += block - at % block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        record += data[at + header : at + header + length]
        at += header + length
        if kind in (1, 4):  # full, or last of several
            yield record
            record = b""


class WandbFile:
    """What one offline run wrote."""

    def __init__(self, run_dir: Path, kept: str = "offline-run-*") -> None:
        from wandb.proto.wandb_internal_pb2 import Record

        (path,) = run_dir.glob(f"wandb/{kept}/*.wandb")
        self.files = path.parent / "files"
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.metrics: list[Any] = []
        self.artifacts: dict[str, Any] = {}
        self.run: Any = None
        self.exit_code: int | None = None
        for chunk in chunks(path.read_bytes()):
            record = Record.FromString(chunk)
            match record.WhichOneof("record_type"):
                case "run":
                    self.run = record.run
                    self.config |= self._items(record.run.config.update)
                case "config":
                    self.config |= self._items(record.config.update)
                case "summary":
                    self.summary |= self._items(record.summary.update)
                case "history":
                    self.history.append(self._items(record.history.item))
                case "metric":
                    self.metrics.append(record.metric)
                case "artifact":
                    self.artifacts[record.artifact.type] = record.artifact
                case "exit":
                    self.exit_code = record.exit.exit_code

    @staticmethod
    def _items(items: Any) -> dict[str, Any]:
        return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}

    def metric(self, name: str) -> Any:
        return [one for one in self.metrics if name in (one.name, one.glob_name)][-1]


# --- wandb


def result() -> Result:
    def one(stage: Any, method: Any, bpb: float) -> EvalRecord:
        facts = {"seq_len": 8, "val_loss": 1.0, "targets": 1, "bytes": 1, "seconds": 0.1}
        return EvalRecord(stage=stage, method=method, val_bpb=bpb, **facts)  # type: ignore[arg-type]

    evals = [one("stop", "contiguous", 1.3), one("quantized", "contiguous", 1.31), one("quantized", "sliding", 1.2)]
    ledger = Bytes.count(1000, 50, 16_000_000, {"attn.q": 300, "mlp.up": 700})
    return Result.from_parts(status="completed", steps=3, train_time_s=1.5, evals=evals, bytes=ledger)


def picture(path: Path) -> Path:
    """A PNG of one pixel."""
    rows = b"\x00\x80"
    body = [(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    chunked = [struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
               for kind, data in body]  # fmt: skip
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunked))
    return path


@pytest.fixture(scope="module")
def wandb_file(tmp_path_factory: pytest.TempPathFactory) -> WandbFile:
    """One whole offline run, as the trainer would log it."""
    run_dir = tmp_path_factory.mktemp("run")
    wandb = WandbLogger(project="golf-tests", group="sweep-1", tags=["small"], system_stats=False, artifact=True)
    loggers = Loggers(wandb)
    (run_dir / "config.yaml").write_text("seed: 7\n")
    (run_dir / "artifact.golf").write_bytes(bytes(1000))
    (run_dir / "code").mkdir()
    (run_dir / "code" / "mine.py").write_text("MINE = 1\n")
    loggers.start(RunInfo(run_dir, "run-1"), CONFIG)
    for step, bpb in ((1, 1.5), (2, 1.25), (3, 1.3)):
        loggers.log({"train_loss": torch.tensor(4.0 - step), "tokens": 100 * step, "train_time_s": 0.5 * step}, step)
        loggers.log({"val_bpb": bpb}, step)
    loggers.ledger({"attn.q": 300, "mlp.up": 700})
    loggers.text("sample", "Once upon\na time", 3)
    loggers.image("plot", picture(run_dir / "plot.png"))
    loggers.finish(result().summary(), "completed")
    return WandbFile(run_dir)


def test_config_is_logged_whole_and_nested(wandb_file: WandbFile) -> None:
    assert {name: wandb_file.config[name] for name in CONFIG} == CONFIG


def test_project_group_kind_and_name(wandb_file: WandbFile) -> None:
    run = wandb_file.run
    told = (run.project, run.run_group, run.job_type, run.display_name)
    assert told == ("golf-tests", "sweep-1", "train", "run-1")


def test_tags_are_the_users_and_what_runs_are_looked_up_by(wandb_file: WandbFile) -> None:
    assert set(wandb_file.run.tags) == {"small", "a", "b", "recipe=quickstart", "tokenizer=sp1024", "quant=int6"}


def files_of(artifact: Any) -> dict[str, Path]:
    return {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}


def test_the_source_that_ran_is_kept(wandb_file: WandbFile) -> None:
    names = zipfile.ZipFile(files_of(wandb_file.artifacts["code"])["source.zip"]).namelist()
    assert {"golf/runs/loggers.py", "code/mine.py"} <= set(names)


def test_equal_source_makes_equal_bytes(tmp_path: Path) -> None:
    first, second = (wandb_files.zip_source(tmp_path / name, tmp_path / "none") for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_config_and_artifact_are_kept_where_they_lie(wandb_file: WandbFile) -> None:
    assert files_of(wandb_file.artifacts["config"])["config.yaml"].read_text() == "seed: 7\n"
    assert files_of(wandb_file.artifacts["model"])["artifact.golf"].stat().st_size == 1000


def test_a_plot_is_an_image(wandb_file: WandbFile) -> None:
    assert list((wandb_file.files / "media" / "images").glob("plot*.png"))


def test_history_holds_every_row_with_its_axes(wandb_file: WandbFile) -> None:
    losses = [row for row in wandb_file.history if "train_loss" in row]
    assert [(row["step"], row["tokens"], row["train_time_s"], row["train_loss"]) for row in losses] == [
        (1, 100, 0.5, 3.0), (2, 200, 1.0, 2.0), (3, 300, 1.5, 1.0),
    ]  # fmt: skip
    scores = [row for row in wandb_file.history if "val_bpb" in row]
    assert [(row["step"], row["tokens"], row["val_bpb"]) for row in scores] == [
        (1, 100, 1.5),
        (2, 200, 1.25),
        (3, 300, 1.3),
    ]


def test_the_x_axes_are_declared(wandb_file: WandbFile) -> None:
    assert {"step", "tokens", "train_time_s"} <= {one.name for one in wandb_file.metrics}
    assert wandb_file.metric("*").step_metric == "step"
    assert wandb_file.metric("val_bpb").step_metric == "step"


def test_val_bpb_is_summarised_by_its_minimum(wandb_file: WandbFile) -> None:
    assert wandb_file.metric("val_bpb").summary.min
    assert wandb_file.metric("val_bpb/*").summary.min


def test_the_summary_carries_the_final_figures(wandb_file: WandbFile) -> None:
    figures = {"val_bpb/pre_quant": 1.3, "val_bpb/post_quant": 1.31, "val_bpb/sliding": 1.2, "valid": True}
    figures |= {"bytes/model": 1000, "bytes/artifact": 1050, "bytes/limit": 16_000_000, "status": "completed"}
    assert {name: wandb_file.summary[name] for name in figures} == figures
    assert wandb_file.summary["quant_gap"] == pytest.approx(0.01)


def test_the_byte_ledger_is_a_table(wandb_file: WandbFile) -> None:
    (file,) = (wandb_file.files / "media" / "table").glob("bytes_by_group*.json")
    table = json.loads(file.read_text())
    assert (table["columns"], table["data"]) == (["place", "bytes"], [["mlp.up", 700], ["attn.q", 300]])


def test_a_completed_run_exits_with_0(wandb_file: WandbFile) -> None:
    assert wandb_file.exit_code == 0


def test_two_runs_of_one_process_stay_apart_even_when_the_first_is_not_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loggers = []
    for seed in (1, 2):
        loggers.append(WandbLogger(system_stats=False))
        loggers[-1].start(RunInfo(tmp_path / str(seed), f"seed-{seed}"), {"seed": seed})
        loggers[-1].log({"train_loss": float(seed)}, 1)
    loggers[-1].finish({}, "failed")
    first, second = WandbFile(tmp_path / "1"), WandbFile(tmp_path / "2")
    assert (first.config["seed"], second.config["seed"]) == (1, 2)
    assert [row["train_loss"] for row in second.history] == [2.0]
    assert second.exit_code == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1, "wandb is silent but for golf's own line"
    assert f"wandb sync {tmp_path / '2' / 'wandb'}" in lines[0]


def test_jobs_of_a_multirun_stay_apart_whatever_they_inherit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inherited = {"RUN_ID": "abc123", "SWEEP_ID": "s1", "RESUME": "must", "NAME": "one", "PROJECT": "pg", "DIR": "/none",
                 "CONFIG_PATHS": "a.yaml", "SWEEP_PARAM_PATH": "/none/p.yaml", "SILENT": ""}  # fmt: skip
    for name, value in inherited.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    facts = []
    for job in ("0", "1"):
        loggers = Loggers(WandbLogger(system_stats=False, source=False, multirun=True))
        (tmp_path / job).mkdir()
        loggers.start(RunInfo(tmp_path / job, job), {"seed": 1})
        facts.append(loggers.facts()["wandb"])
        loggers.finish({}, "completed")
    runs = [WandbFile(tmp_path / job).run for job in ("0", "1")]
    assert len({"abc123", *(run.run_id for run in runs)}) == 3
    assert [(run.display_name, run.project, run.sweep_id) for run in runs] == [("0", "pg", ""), ("1", "pg", "")]
    assert [(one["id"], one["project"], one["mode"]) for one in facts] == [
        (run.run_id, "pg", "offline") for run in runs
    ]
    assert "WANDB_RUN_ID=abc123" in facts[0]["variables"][0]


def test_a_single_run_under_an_agent_is_the_agents_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RUN_ID": "abc123", "SWEEP_ID": "s1", "NAME": "one"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    odd = {"heads": {1: "one", None: 2}, 3: "three", "rate": math.inf}
    loggers = Loggers(WandbLogger(project="mine", system_stats=False))
    (tmp_path / "config.yaml").write_text("seed: 7\n")
    loggers.start(RunInfo(tmp_path, "run"), odd)
    loggers.finish({}, "completed")
    logged = WandbFile(tmp_path)
    assert (logged.run.run_id, logged.run.sweep_id, logged.run.display_name) == ("abc123", "s1", "one")
    assert logged.run.project == "mine", "under an agent wandb passes over what it is handed"
    assert logged.config["heads"] == {"1": "one", "None": 2}, "wandb's own keys are strings"


def test_a_later_evaluation_is_not_the_run_that_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "abc123")
    monkeypatch.setenv("WANDB_NAME", "n" * 128)
    logger = WandbLogger(system_stats=False)
    logger.start(RunInfo(tmp_path, "e" * 200, kind="eval"), {})
    logger.finish({}, "completed")
    run = WandbFile(tmp_path).run
    assert run.run_id != "abc123"
    assert run.display_name == "e" * 128, "a name of golf's own is shortened"


def test_a_run_that_goes_on_is_the_same_one_and_holds_every_row_once(tmp_path: Path) -> None:
    rows = [{"step": step, "tokens": 10 * step, "train_time_s": 0.1 * step} for step in (1, 2)]
    wandb = WandbLogger(system_stats=False, source=False)
    wandb.start(RunInfo(tmp_path, "run", known={"wandb": {"id": "abc12345"}}, rows=rows), CONFIG)
    wandb.log({"step": 3}, 3)
    wandb.finish({}, "completed")
    kept = WandbFile(tmp_path)
    assert kept.run.run_id == "abc12345"
    assert [(row["_step"], row["step"]) for row in kept.history] == [(0, 1), (1, 2), (2, 3)]


@pytest.mark.parametrize("by", ["mode", "WANDB_MODE=disabled", "WANDB_DISABLED=true"])
def test_disabled_writes_nothing_and_says_so(
    by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if by != "mode":
        monkeypatch.setenv(*by.split("="))
    loggers = Loggers(WandbLogger(mode="disabled" if by == "mode" else None))
    loggers.start(RunInfo(tmp_path, "run"), CONFIG)
    loggers.log({"train_loss": 1.0}, 1)
    loggers.text("sample", "Once", 1)
    loggers.image("plot", tmp_path / "none.png")
    facts = loggers.facts()
    loggers.finish({}, "completed")
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert facts["wandb"]["mode"] == "disabled"
    assert capsys.readouterr().out.splitlines() == [f"wandb is off by {'logger.mode=disabled' if by == 'mode' else by}"]


def test_online_without_a_key_is_refused_before_training() -> None:
    with pytest.raises(ConfigError, match=r"needs a wandb key(.|\n)*WANDB_API_KEY(.|\n)*mode=offline"):
        WandbLogger(mode="online")


def test_online_by_the_environment_needs_a_key_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(ConfigError, match="WANDB_MODE=online needs a wandb key"):
        WandbLogger()


def test_online_takes_a_key_from_the_environment_or_netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password not-a-key\n")
    WandbLogger(mode="online")
    (tmp_path / "netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", "not-a-key")
    WandbLogger(mode="online")


@pytest.mark.parametrize("arguments", [{"mode": "offlin"}, {"project": ""}, {"x_axis": "epoch"}])
def test_bad_options_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        WandbLogger(**arguments)


# --- all loggers as one


class Tracker:
    """A logger of one's own; fails from its second row on."""

    def __init__(self) -> None:
        self.rows: list[Mapping[str, Any]] = []
        self.finished = False

    def start(self, run: RunInfo, config: Mapping[str, Any]) -> None:
        pass

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        if self.rows:
            raise OSError("the server is gone\nwith a long story")
        self.rows.append({"step": step, **metrics})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        pass

    def image(self, name: str, path: Path) -> None:
        pass

    def text(self, name: str, body: str, step: int) -> None:
        pass

    def finish(self, summary: Mapping[str, Any], status: Any) -> None:
        self.finished = True


def test_the_jsonl_is_always_on_and_completes_rows(tmp_path: Path) -> None:
    loggers = Loggers()
    loggers.start(RunInfo(tmp_path, "run"), CONFIG)
    loggers.log({"train_loss": torch.tensor(2.0), "tokens": 64, "train_time_s": 0.25}, 1)
    loggers.log({"val_bpb": math.nan}, 1)
    loggers.text("sample", "hello", 1)
    loggers.finish({}, "completed")
    axes = {"step": 1, "tokens": 64, "train_time_s": 0.25}
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {**axes, "train_loss": 2.0},
        {**axes, "val_bpb": None, "val_bpb_nonfinite": "nan"},
        {**axes, "sample": "hello"},
    ]


def test_a_tracker_that_fails_never_stops_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = Tracker()
    loggers = Loggers([tracker])
    loggers.start(RunInfo(tmp_path, "run"), CONFIG)
    for step in (1, 2, 3):
        loggers.log({"train_loss": 1.0}, step)
    loggers.finish({}, "completed")
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 3
    assert not tracker.finished
    assert capsys.readouterr().out == (
        "warning: Tracker failed and is off from here on; metrics.jsonl goes on (the server is gone)\n"
    )


class Settings(pydantic.BaseModel):
    silent: bool


class Refused(Tracker):
    """A logger whose library tells the reason on a later line."""

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        Settings.model_validate({"silent": "maybe"})


def test_the_warning_has_the_line_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loggers = Loggers(Refused())
    loggers.start(RunInfo(tmp_path, "run"), CONFIG)
    loggers.log({"train_loss": 1.0}, 1)
    told = "silent: Input should be a valid boolean, unable to interpret input"
    assert capsys.readouterr().out == (
        f"warning: Refused failed and is off from here on; metrics.jsonl goes on ({told})\n"
    )
    assert loggers.facts() == {"failed": {"Refused": told}}


def test_a_record_that_cannot_be_written_does_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(GolfError, match="cannot write"):
        Loggers().start(RunInfo(tmp_path / "missing", "run"), CONFIG)


def test_other_ranks_log_nothing(tmp_path: Path) -> None:
    tracker = Tracker()
    loggers = Loggers(tracker, rank=1)
    loggers.start(RunInfo(tmp_path, "run"), CONFIG)
    loggers.log({"train_loss": 1.0}, 1)
    loggers.finish({}, "completed")
    assert not tracker.rows
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [JsonlLogger, WandbLogger, Loggers, Tracker])
def test_everything_that_logs_answers_the_protocol(kind: type) -> None:
    assert isinstance(kind(), Logger)


def test_a_runs_own_tags_are_wandbs_too() -> None:
    config = {"tags": ["mlp", "night"], "choices": {"recipe": "quickstart", "quant": "none"}}
    assert wandb_files.tags(config) == ["mlp", "night", "recipe=quickstart"]
