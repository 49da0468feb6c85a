"""The line of `golf train`, run by Hydra's rules: each job is composed once and checked once, and that is what runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from golf.common.errors import ConfigError
from golf.common.paths import conf_dir
from golf.launch.compose.configs import Checker, register, short, version_base, without
from golf.launch.compose.line import CommandLine, searched
from golf.launch.compose.options import CONFIG_NAME
from golf.launch.work.jobs import TrainTask

HYDRAS_SWEEP = "hydra.mode=MULTIRUN: golf knows a sweep by its -m; write that on the line"


class ComposedOnce(Hydra):
    """Hydra with golf's conf, within `composer`: what it composes when first asked is what it runs."""

    def __init__(self, line: CommandLine) -> None:
        super().__init__("golf", GlobalHydra.instance().config_loader())
        self.line, self.words = line, [*line.overrides, *searched(line.config_dirs)]
        self.composed: DictConfig | None = None

    def compose_config(self, *args: Any, **kwargs: Any) -> DictConfig:
        """Hydra's method, called by its `run` too."""
        if self.composed is None:
            self.composed = super().compose_config(*args, **kwargs)
        return self.composed

    def single(self) -> DictConfig:
        """The config of a single run, with Hydra's own part. Raises ConfigError."""
        try:
            config = self.compose_config(CONFIG_NAME, self.words, RunMode.RUN, with_log_configuration=True)
        except Exception as error:  # a yaml of the user's may bring Hydra down in any way
            raise ConfigError(short(error)) from error
        if config.hydra.mode == RunMode.MULTIRUN:
            raise ConfigError(HYDRAS_SWEEP)
        config.hydra.mode = RunMode.RUN
        return config


def train_one(checker: Checker) -> int:
    """Compose, check and run one job; the process's exit code. Raises ConfigError before anything is written."""
    hydra = composed(checker)
    task, config = TrainTask(hydra.line), hydra.single()
    HydraConfig.instance().set_config(config)
    task.ready = task.checked(without(config, "hydra"), config.hydra)
    with told_as_mistakes():
        hydra.run(CONFIG_NAME, task.run_job, hydra.words)
    return task.exit_code


def composed(checker: Checker) -> ComposedOnce:
    """Hydra that has composed the line of a single run, with every key in full. Raises ConfigError.

    A line without bare names is composed as it stands; where that fails, the checker says what is wrong with which
    word.
    """
    if (whole := checker.whole()) is not None:
        with suppress(ConfigError):
            return _composed(checker, whole)
    return _composed(checker, checker.complete())


def _composed(checker: Checker, line: CommandLine) -> ComposedOnce:
    checker.jobs(line)  # several values are for sweeps
    hydra = ComposedOnce(line)
    hydra.single()
    return hydra


def sweep(line: CommandLine) -> int:
    """Hand a checked line to its sweeper, which composes and checks the jobs; the process's exit code."""
    task, hydra = TrainTask(line), ComposedOnce(line)
    with told_as_mistakes():
        hydra.multirun(CONFIG_NAME, task.run_job, [*hydra.words, "hydra.mode=MULTIRUN"])
    if task.failures:
        print(f"\n{len(task.failures)} of {len(task.exit_codes)} jobs failed:", file=sys.stderr)
        for failure in task.failures:
            print(f"  {failure}", file=sys.stderr)
    return task.exit_code


def show(line: CommandLine) -> int:
    """What Hydra shows of a line with one of its flags, as --cfg; nothing runs."""
    import hydra

    register(line.config_dirs)
    GlobalHydra.instance().clear()
    sys.argv = ["golf train", *line.hydra_argv()]
    with told_as_mistakes():
        hydra.main(config_path=str(conf_dir()), config_name=CONFIG_NAME, **version_base())(TrainTask(line).run_job)()
    return 0


@contextmanager
def told_as_mistakes() -> Iterator[None]:
    """Within the block, what Hydra says of the line is a ConfigError, as is a folder that cannot be written."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # a traceback here is a bug: show it whole
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(short(error)) from error
    except OSError as error:
        if error.filename is None:
            raise
        raise ConfigError(f"cannot write {error.filename}: {error.strerror}") from error
