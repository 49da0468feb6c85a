"""The task that Hydra runs for `golf train`: one job, from a composed config to a finished run folder."""

from __future__ import annotations

import glob
import os
import shlex
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from golf.common.errors import BY_SYSTEM, STOPPED, ConfigError, GolfError, GolfInterrupted, WorkerFailed
from golf.common.files import atomic_writer, hold
from golf.common.paths import conf_dir
from golf.common.secret import keys_here, secret_key
from golf.common.shown import told
from golf.launch.compose import phases, trust
from golf.launch.compose.configs import resolved
from golf.launch.compose.keys import put_right
from golf.launch.compose.line import CommandLine
from golf.launch.compose.own_code import keep_code, kept, refuse_doubles, refuse_shadowed, used_packages
from golf.launch.work.attempts import AUTO, take_up
from golf.runs.store import Run
from golf.runs.wandb_environment import group_of

INVALID = 3
"""Exit code of a completed run over a limit."""
INTERRUPTED = 130
"""Exit code of a run that Ctrl-C ended."""


@dataclass
class TrainTask:
    """What a command's jobs came to: filled by `run_job`, read when Hydra is done."""

    line: CommandLine
    here: Path = field(default_factory=Path.cwd)
    """Where the command was given: relative paths mean this folder also after hydra.job.chdir has left it."""
    ready: dict[str, Any] | None = None
    """The config of a single run, composed and checked already."""
    exit_codes: list[int] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    interrupted: bool = False

    def run_job(self, cfg: DictConfig) -> float | None:
        """Run one job and return its score in bits per byte, or None without one. A failing job never ends a sweep."""
        hydra_cfg = HydraConfig.get()
        directory = Path(hydra_cfg.runtime.output_dir).absolute()
        sweep = hydra_cfg.mode == RunMode.MULTIRUN
        if sweep:
            print(f"\n── job {hydra_cfg.job.num}: {' '.join(hydra_cfg.overrides.task)}", flush=True)
        try:
            config = self.ready or self.checked(cfg, hydra_cfg, Path(hydra_cfg.sweep.dir).name if sweep else None)
            overrides = list(hydra_cfg.overrides.task)
            if self.line.prepare:
                write(directory, config, overrides, self.line.config_dirs)
                print(prepared(directory, config))
                self.exit_codes.append(0)
                return None
            if not (self.line.go_on and take_up(directory, config)):
                start(directory, config, overrides, self.line.config_dirs)
        except GolfError as error:
            self._failed(directory, error, sweep)
            if sweep and error.exit_code == INTERRUPTED:
                raise KeyboardInterrupt from None  # Ctrl-C ends the sweep, not one job of it
            return None
        score, valid = outcome(directory)
        self.exit_codes.append(0 if valid else INVALID)
        return score

    def checked(
        self, cfg: DictConfig, hydra_cfg: Any, group: str | None = None, runs_here: bool = True
    ) -> dict[str, Any]:
        """A job's config as plain data, fit to be run from anywhere. Raises ConfigError for what cannot run.

        group: of the sweep, as for `task_config`. runs_here: whether this machine runs it, unless the line prepares.
        """
        config = task_config(cfg, hydra_cfg, group)
        check(config, self.line.config_dirs, self.here, runs_here and not self.line.prepare)
        return config

    def _failed(self, directory: Path, error: GolfError, sweep: bool) -> None:
        self.exit_codes.append(error.exit_code)
        if not isinstance(error, WorkerFailed):
            print(f"golf: {told(error)}", file=sys.stderr, flush=True)
        if sweep:
            self.failures.append(f"{directory}: {error}")

    @property
    def exit_code(self) -> int:
        """0, the only job's code, or for a sweep 130 when Ctrl-C ended it and 1 when any job failed."""
        if len(self.exit_codes) == 1 and not self.line.multirun:
            return self.exit_codes[0]
        if self.interrupted or INTERRUPTED in self.exit_codes:
            return INTERRUPTED
        return 1 if any(code not in (0, INVALID) for code in self.exit_codes) else 0


def task_config(cfg: DictConfig, hydra_cfg: Any, group: str | None) -> dict[str, Any]:
    """A job's config as plain data, with the options it was composed from; `group` names its sweep for trackers.

    Raises ConfigError for what cannot be resolved.
    """
    put_right(cfg, hydra_cfg.overrides.task)
    config = resolved(cfg)
    config.pop("sweep", None)  # how jobs are chosen is nothing that a job knows of itself
    choices = {k: v for k, v in hydra_cfg.runtime.choices.items() if not k.startswith(("hydra/", "sweep"))}
    config["choices"] = {**choices, **phases.chosen(config)}
    if group is None and OmegaConf.select(hydra_cfg, "sweeper.params"):
        raise ConfigError("hydra.sweeper.params: is for sweeps, and one run would ignore it; add -m (--multirun)")
    config["published"] = published(choices.get("recipe"), config["seed"])
    if group and isinstance(logger := config["logger"], dict):
        if "multirun" in logger:
            logger["multirun"] = True
        if logger.get("group", "") is None:
            logger["group"] = group_of(group)
    return config


def logger_notes(configs: Iterable[dict[str, Any]]) -> list[str]:
    """What the loggers of a multirun's jobs say of the environment, each line once; the jobs' own logs hold it too."""
    from golf.launch.compose import build

    made = (build.make(config["logger"], "logger") for config in configs)
    return list(dict.fromkeys(line for one in made for line in getattr(one, "told", ())))


def start(directory: Path, config: dict[str, Any], overrides: list[str], config_dirs: list[Path]) -> None:
    """Write a checked job's run folder, and run its workers. Raises GolfError."""
    run_workers(
        directory, int(config["runtime"]["nproc"]), before=lambda: write(directory, config, overrides, config_dirs)
    )


def run_workers(
    directory: Path, nproc: int, resume: str | None = None, before: Callable[[], None] = lambda: None
) -> None:
    """Run the workers of a run's folder, which no other process is starting; first what comes `before` them. resume: as
    a worker has it. One that ran out of memory is started again where its config says so. Raises GolfError;
    WorkerFailed with STOPPED for a run that the system stopped, and that is kept."""
    from golf.launch.work import retry
    from golf.launch.work.early_end import STARTING, record_death
    from golf.launch.work.workers import launch
    from golf.runs.folder import RunFolder

    if (held := hold(lock := directory / STARTING)) is None:
        raise ConfigError(f"another process is starting a run in {directory}: name another folder")
    folder = RunFolder(directory)
    try:
        before()
        while True:
            folder.mark(os.getpid())
            try:
                launch(directory, nproc, on_failed=record_death, words=[f"resume={resume}"] if resume else [])
                break
            except WorkerFailed:
                if (line := retry.follow(directory)) is None:
                    raise
                print(f"golf: {line}", file=sys.stderr, flush=True)
                resume = AUTO
    except WorkerFailed as error:
        if (number := error.exit_code - 128) in BY_SYSTEM:
            record_death(directory, GolfInterrupted(0, number))  # it was about to begin
            if Run(directory).status == "interrupted":
                error.exit_code = STOPPED
        raise
    finally:
        folder.unmark()
        lock.unlink(missing_ok=True)
        held.release()


def prepared(directory: Path, config: dict[str, Any]) -> str:
    """How to run a prepared folder; its path is the last line."""
    nproc = config["runtime"]["nproc"]
    words = (
        f"torchrun --standalone --nproc_per_node={nproc} -m golf.launch.work.worker run={shlex.quote(str(directory))}"
    )
    return f"prepared, not run: env PYTHONSAFEPATH=1 {words}\n{directory}"  # torchrun's -m looks in the working folder


def check(
    config: dict[str, Any], config_dirs: list[Path], here: Path, runs_here: bool = True, data: bool = True
) -> None:
    """Make a job's config fit to be run from anywhere, and check all of it. Raises ConfigError.

    here: the folder that relative paths mean. runs_here: whether this machine will run it. data: whether it is to find
    the data.
    """
    from golf.common.reads import watching
    from golf.launch.compose import build
    from golf.launch.compose.own_reads import reads_of

    config["code_paths"] = [str(folder) for folder in config_dirs]
    trust.check_composed(config, config_dirs)
    refuse_keys(config)
    if Path.cwd() != here:
        absolute_paths(config, here)
    with watching(reads_of(config)):
        build.check(config, runs_here, data)  # what it says of a path quotes it as it was typed
        absolute_paths(config, here)
        build.try_out(config)
    check_code(config, config_dirs)


def refuse_keys(config: Any, key: str = "") -> None:
    """Raises ConfigError for a config with the value of a key or password of the environment's: it is kept for all to
    read."""
    if isinstance(config, dict):
        for name, one in config.items():
            refuse_keys(one, f"{key}.{name}" if key else str(name))
    elif isinstance(config, list):
        for one in config:
            refuse_keys(one, key)
    elif isinstance(config, str) and (found := [name for value, name in keys_here().items() if value in config]):
        raise ConfigError(f"{key}: holds the value of {found[0]}, and a run's config.yaml is kept for all to read\n"
                          "leave it to the environment")  # fmt: skip


def check_code(config: dict[str, Any], config_dirs: list[Path]) -> None:
    """Raises ConfigError for more code, or data beside it, than a run keeps, and for code of the user's in whose place
    another module was imported; call it once the config was checked."""
    for source in config_dirs:
        refuse_shadowed(source)
        kept(source, named_data(config))
    refuse_doubles(config_dirs, named_data(config))


def write(directory: Path, config: dict[str, Any], overrides: list[str], config_dirs: list[Path]) -> None:
    """Make a job's run folder: its config, its overrides, the code it uses. Raises GolfError for a used folder."""
    from golf.launch.compose import build
    from golf.runs.folder import RunFolder

    folder = RunFolder(directory)
    RunFolder.claim(directory).release()  # refuse a used folder before anything is written into it
    code = directory / "code"
    packages = used_packages(name.removesuffix(".*") for name in build.packages(config))
    if config_dirs or packages:
        secret_key(make=True)  # or there is no folder either
    keep_code(config_dirs, code, named_data(config), packages)
    config["code_paths"] = [str(code)] if code.is_dir() else []
    for path, value in ((folder.config, config), (folder.overrides, overrides)):
        with atomic_writer(path, "w") as file:
            yaml.safe_dump(value, file, sort_keys=False, allow_unicode=True)
    if code.is_dir():
        trust.sign(directory, config)


NAMED = (("data", ("paths", "val_paths", "train", "val", "folder")), ("tokenizer", ("model_path",)))
"""Where a config names files: groups and their keys."""


def named_data(config: dict[str, Any]) -> list[Path]:
    """The files and folders of data that a config names; of a pattern the files that match it."""
    values = [(config.get(group) or {}).get(key) for group, keys in NAMED for key in keys]
    named = [item for value in values for item in (value if isinstance(value, list) else [value])]
    paths = [Path(item).expanduser().absolute() for item in named if isinstance(item, str)]
    return [match for path in paths for match in ([path] if path.exists() else _matches(path))]


def _matches(pattern: Path) -> list[Path]:
    return [Path(match) for match in glob.glob(str(pattern), recursive=True) if os.path.isfile(match)]


def absolute_paths(config: dict[str, Any], here: Path) -> None:
    """Make the files that a config names absolute, relative ones below `here`, so that the run can be evaluated from
    any folder."""

    def absolute(value: Any) -> Any:
        if isinstance(value, list):
            return [absolute(item) for item in value]
        return str(here / Path(value).expanduser()) if isinstance(value, str) else value

    for group, keys in NAMED:
        node = config[group]
        node.update({key: absolute(node[key]) for key in keys if key in node})


def published(recipe: str | None, seed: int) -> dict[str, Any] | None:
    """What the author of a record printed for this seed, else for the record's own; None for other recipes."""
    records = yaml.safe_load((conf_dir() / "published.yaml").read_text(encoding="utf-8"))
    record = records.get(recipe)
    if record is None:
        return None
    own = seed if seed in record["seeds"] else record["seed"]
    return {**record["seeds"][own], "seed": own, "dataset": record["dataset"]}


def outcome(directory: Path) -> tuple[float | None, bool]:
    """A finished run's score and whether it is valid."""
    from golf.runs.folder import RunFolder
    from golf.runs.record import Result

    result = Result.read(RunFolder(directory).result)
    return result.score, result.valid
