"""`golf bench`: its jobs from a command line or a finished run, and the worker that measures one of them.

`python -m golf.launch.work.bench run=DIR` reads DIR/bench.yaml and leaves DIR/bench.json.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from golf.common.bounded import MOST_YAML, parse_yaml, read_bytes
from golf.common.errors import ConfigError, GolfError
from golf.common.files import atomic_writer, read_json, write_json
from golf.common.log import logger

if TYPE_CHECKING:
    from golf.common.ranks import Ranks
    from golf.data.prepare import Prepared

SETTINGS, RECORD = "bench.yaml", "bench.json"
RANDOM_STEPS = 8
"""Steps of different random tokens; then they come again."""


@dataclass
class BenchJob:
    """One config to measure; `swept` are the overrides in which it differs from the other jobs."""

    config: dict[str, Any]
    name: str
    overrides: list[str] = field(default_factory=list)
    swept: dict[str, str] = field(default_factory=dict)
    directory: Path = Path()
    phase: int = 0


def compose_jobs(
    words: Sequence[str], config_dirs: Sequence[Path], multirun: bool, here: bool = True
) -> list[BenchJob]:
    """The jobs of a line that `golf train` would take. here: whether this machine is to have devices and data for them.
    Raises ConfigError for every mistake on it."""
    from golf.launch.compose.configs import Checker, compose_job, composer, resolved, told_where
    from golf.launch.compose.line import CommandLine
    from golf.launch.compose.options import groups
    from golf.launch.work.jobs import check

    line = CommandLine(list(words), [], list(config_dirs), multirun)
    with told_where(line), composer(line.config_dirs):
        checker = Checker(line)
        line = checker.complete()
        lists = checker.grid(line)
        configs = [resolved(compose_job(job, line.config_dirs)) for job in lists]
        known = groups(line.config_dirs)
    jobs = []
    for overrides, config in zip(lists, configs, strict=True):
        config.pop("sweep", None)
        pairs = dict(word.partition("=")[::2] for word in overrides)
        config["choices"] = {key: value for key, value in pairs.items() if key in known}
        config["logger"] = {"_target_": "golf.runs.loggers.JsonlLogger"}
        check(config, line.config_dirs, Path.cwd(), runs_here=here, data=here)
        varied = set(overrides) - set(overrides).intersection(*lists)
        swept = {key: value for key, value in pairs.items() if f"{key}={value}" in varied}
        jobs.append(BenchJob(config, pairs.get("recipe", "quickstart"), overrides, swept))
    return jobs


def new_folder(name: str) -> Path:
    """A folder under outputs/ that nobody has: outputs/<date>/<time>_<name>_<tag>."""
    now = datetime.now()
    return Path("outputs", f"{now:%Y-%m-%d}", f"{now:%H-%M-%S}_{name}_{secrets.token_hex(2)}").absolute()


def make_folder(folder: Path) -> None:
    """Make a new folder for what is found. Raises ConfigError where that cannot be."""
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"cannot write {folder}: {error.strerror}") from error


def start(job: BenchJob, words: dict[str, Any]) -> dict[str, Any]:
    """Measure a job in workers of its own; its record. Raises WorkerFailed when one of them fails."""
    from golf.launch.compose.trust import vouch
    from golf.launch.work.workers import launch

    words = {**words, "phase": job.phase}
    settings = {
        "name": job.name, "overrides": job.overrides, "words": words, "config": job.config,
        "vouched": vouch(job.config),
    }  # fmt: skip
    with atomic_writer(job.directory / SETTINGS, "w") as file:
        yaml.safe_dump(settings, file, sort_keys=False, allow_unicode=True)
    launch(job.directory, int(job.config["runtime"]["nproc"]), "golf.launch.work.bench")
    record: dict[str, Any] = read_json(job.directory / RECORD)
    return record


def work(directory: Path) -> None:
    """Build the training run that DIR/bench.yaml describes, and measure its steps. Raises GolfError."""
    from golf.common import ranks as rank_module
    from golf.common.clock import Clocks
    from golf.common.log import setup
    from golf.common.runtime import set_up
    from golf.launch.compose import build
    from golf.launch.compose.own_code import naming
    from golf.launch.compose.own_modules import use_code
    from golf.launch.compose.trust import check_vouched
    from golf.launch.work.early_end import DEATH, among_others
    from golf.runs.folder import RunFolder
    from golf.train.control import Interrupt
    from golf.train.trainer import Trainer

    if not (directory / SETTINGS).is_file():
        raise GolfError(f"{directory / SETTINGS} is missing: golf bench writes it")
    try:
        settings = parse_yaml(read_bytes(directory / SETTINGS, MOST_YAML))
        config: dict[str, Any] = {**settings["config"], "val_every": 0}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GolfError(f"{directory / SETTINGS} is broken: golf bench writes it") from error
    check_vouched(config, settings.get("vouched"), str(directory / SETTINGS))
    use_code(paths := config.get("code_paths") or [])
    runtime = build.make(config["runtime"], "runtime")
    ranks = rank_module.join(runtime.device_type)
    try:
        with (
            setup(ranks.rank, directory / "bench.log"),
            Interrupt((lambda number: None) if ranks.world > 1 else None) as interrupt,
            among_others(directory, ranks),
            naming(paths),
        ):
            set_up(runtime, ranks.world, config["seed"])
            prepared = find_data(config, ranks, directory)
            parts = build.build(config, ranks, runtime, RunFolder(directory), prepared)
            parts.only(settings["words"]["phase"])
            try:
                trainer = Trainer(parts, Clocks(), lambda metrics, step: None, interrupt)
                record = measured(trainer, settings["words"], directory)
            finally:
                parts.loader.close()
            if ranks.is_main:
                write_json(directory / RECORD, {**described(settings, parts.prepared.facts), **record})
    finally:
        if ranks.is_main:
            for leftover in (*directory.glob("random_train_*.bin"), *directory.glob(DEATH)):
                leftover.unlink(missing_ok=True)
    rank_module.leave()


def find_data(config: dict[str, Any], ranks: Ranks, directory: Path) -> Prepared:
    """The config's own data where it is prepared on this machine, else random tokens, with a line that says so."""
    from golf.data.prepare import find_prepared
    from golf.data.random_tokens import random_prepared
    from golf.launch.compose import build

    found = source = spec = None
    try:
        source, spec = build.make(config["data"], "data"), build.make(config["tokenizer"], "tokenizer")
        if ranks.local_rank == 0:
            found = find_prepared(source, spec, on_progress=build.log_progress())
    except ConfigError as error:
        logger.info("%s", error)
    facts = build.facts_here(ranks, found)
    if found is None and facts is not None and source is not None and spec is not None:
        found = find_prepared(source, spec, believed=facts)
    if all(ranks.gather_objects(found is not None)) and found is not None:
        logger.info("data: the run's own, %s train tokens", f"{len(found.train):,}")
        return found
    logger.info("data: uniform random tokens, as this data is not prepared here (`golf data` prepares it)")
    vocabulary, step = int(config["tokenizer"]["vocab_size"]), int(config["train_batch_tokens"]) + 8
    tokens = max(RANDOM_STEPS * step, int(config["eval"].get("seq_len") or 0) + 1)
    if ranks.is_main:
        random_prepared(vocabulary, tokens, directory, config["seed"])
    ranks.barrier()
    return random_prepared(vocabulary, tokens, directory, config["seed"])


def measured(trainer: Any, words: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Everything that is measured, as plain values."""
    from golf.train import bench, profile, reference
    from golf.train.doubts import doubts

    parts, steps = trainer.parts, int(words["steps"])
    logger.info("%d steps to settle, %d measured, of %s tokens", bench.SETTLE, steps,
                f"{parts.settings.train_batch_tokens:,}")  # fmt: skip
    record = bench.measure(trainer, steps)
    record["device"] = parts.device.type
    record["kernels"] = parts.model.kernels()
    record["cuda_graphs"] = trainer.records_graphs and not bench.graphs_skipped()
    if parts.device.type == "cuda":
        record["host_ms"] = bench.host_ms(trainer)
    record["doubts"] = doubts(record)
    record["checkpoint"] = bench.checkpoint_cost(trainer, directory / "checkpoints", record["step_ms"])
    if words["profile"] or parts.device.type == "cuda":
        trace = directory / f"trace_rank{parts.ranks.rank}.json" if words["profile"] else None
        found = profile.profile_steps(trainer, 3 if words["profile"] else 1, trace)
        record["attention_kernels"] = profile.attention_kernels(found.kernels) if parts.device.type == "cuda" else []
        record["device_busy"] = found.busy_ms / record["step_ms"] if found.busy_ms else None
        if words["profile"] and parts.ranks.is_main:
            profile.write_csv(directory / "profile.csv", found.kernels)
            record["profile"] = [vars(kernel) for kernel in found.kernels[:40]]
    record["compile"] = (
        bench.compile_costs(trainer, record) if words["compile_times"] else {"scope": parts.runtime.compile_scope}
    )
    if words["reference"]:
        logger.info("reference figures of the device")
        all_figures = parts.ranks.gather_objects(reference.reference(parts.device, parts.ranks))
        record["reference"] = all_figures[0]
        for rank, figures in zip(record["ranks"], all_figures, strict=True):
            rank["reference"] = figures
    return record


def described(settings: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """What was measured, and on what."""
    from golf.runs import environment

    config = settings["config"]
    git = environment.git_state()
    return {
        "schema_version": 1,
        "name": settings["name"],
        "overrides": settings["overrides"],
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": facts.get("source", "shards"),
        "nproc": int(config["runtime"]["nproc"]),
        "config": config,
        "versions": environment.versions(),
        "hardware": environment.hardware().model_dump(mode="json"),
        "git": None if git is None else git.model_dump(mode="json"),
    }


if __name__ == "__main__":
    from golf.common.pipes import outlive_readers
    from golf.launch.work.worker import leave_process, main

    outlive_readers()
    leave_process(main(work=work))
