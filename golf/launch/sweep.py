"""What a sweep runs: grids, sets of overrides, ablations; and golf's sweeper, which composes each job once."""

from __future__ import annotations

import itertools
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.utils import setup_globals
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from golf.common.errors import ConfigError
from golf.common.files import sha256_json
from golf.launch.compose import override_values, parse_override
from golf.launch.local import LocalLauncher
from golf.launch.pool import Job, free_folder
from golf.runs.store import find_runs

ASIDE = ("logger", "code_paths", "choices", "published", "sweep", "run_name", "log_every")
ASIDE_OF_RUNTIME = ("nproc", "threads", "check_every", "micro_tokens")
"""Settings that change where and how a run is made and shown, not what it is."""

ABLATED = ("averaging", "qat")
"""Groups beside technique/ whose option `none` turns something off."""


@dataclass(frozen=True)
class Plan:
    """The `sweep` config group.

    params: swept keys beside those of the command line, which win. sets: sets of overrides, each a string or a list,
    run with every combination. ablate: the config whole, and with each technique off. metric: a number of result.json.
    max_jobs: more is refused. skip_done, done_roots: leave out what has a valid result there or in the sweep's folder.
    """

    params: list[str] = field(default_factory=list)
    sets: list[str | list[str]] = field(default_factory=list)
    ablate: bool = False
    metric: str = "val_bpb.post_quant"
    max_jobs: int = 256
    skip_done: bool = False
    done_roots: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.max_jobs < 1:
            raise ConfigError(f"sweep.max_jobs={self.max_jobs}: must be at least 1")


Axis = list[list[str]]
"""Alternatives, each a list of overrides."""


def axes(words: Sequence[str], params: Sequence[str] = (), sets: Iterable[str | Sequence[str]] = ()) -> list[Axis]:
    """What is combined: one axis a key, later words winning over earlier ones, and one of all sets.

    Raises ConfigError for a key without values and a word that is no override.
    """
    by_key: dict[str, Axis] = {}
    for word in (*params, *words):
        override = parse_override(word)
        key = override.get_key_element()
        by_key.pop(key, None)
        if override.is_sweep_override():
            values = override_values(override)
            if not values:
                raise ConfigError(f"{word}: there is nothing to sweep over")
            by_key[key] = [[f"{key}={value}"] for value in values]
        else:
            by_key[key] = [[word]]
    alternatives = [shlex.split(one) if isinstance(one, str) else [str(word) for word in one] for one in sets]
    return [*by_key.values(), *([alternatives] if alternatives else [])]


def count(found: Sequence[Axis]) -> int:
    """How many jobs the axes make."""
    return math.prod(len(axis) for axis in found)


def expand(found: Sequence[Axis]) -> list[list[str]]:
    """Every combination, as override lists; the last axis varies fastest."""
    return [[word for part in job for word in part] for job in itertools.product(*found)]


def ablations(choices: Mapping[str, Any]) -> Axis:
    """Nothing changed, then each technique that is on turned off. Raises ConfigError when none is on."""
    switches = [name for name in sorted(choices) if name.startswith("technique/") or name in ABLATED]
    on = [name for name in switches if choices[name] not in (None, "none")]
    if not on:
        raise ConfigError("sweep.ablate=true: no technique of this config is on, so there is nothing to turn off")
    return [[], *([f"{name}=none"] for name in on)]


def identity(config: Mapping[str, Any]) -> str:
    """What a run is, as a hash of its config without logging, folders, and the share of the machine it had."""
    kept = {name: value for name, value in config.items() if name not in ASIDE}
    kept["runtime"] = {k: v for k, v in (config.get("runtime") or {}).items() if k not in ASIDE_OF_RUNTIME}
    return sha256_json(kept)


def done(roots: Iterable[Path]) -> dict[str, Path]:
    """The valid runs below the roots that exist, by identity."""
    found = find_runs(*(root for root in roots if root.is_dir()))
    return {identity(run.config): run.dir for run in found if run.valid and run.config}


class GolfSweeper(Sweeper):
    """Counts, composes and checks every job before the first starts, then hands them to the launcher."""

    launcher: Launcher

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Called by Hydra."""
        from hydra.core.plugins import Plugins

        self.config = config
        self.composer = LocalLauncher()
        self.composer.setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Run the sweep of a command line. Raises ConfigError before any job starts when one of them cannot run."""
        from golf.launch import build
        from golf.launch.compose import resolved

        setup_globals()
        composer = self.launcher if isinstance(self.launcher, LocalLauncher) else self.composer
        base, hydra_config, _ = composer.compose(expand([axis[:1] for axis in axes(arguments)])[0], 0)
        node = resolved(base)["sweep"]
        build.check_types(node, "sweep")
        plan: Plan = build.make(node, "sweep")
        found = axes(arguments, plan.params, plan.sets)
        if plan.ablate:
            found.append(ablations(hydra_config.runtime.choices))
        if count(found) > plan.max_jobs:
            raise ConfigError(f"a sweep of {count(found):,} jobs: if you mean it, sweep.max_jobs={count(found)}")
        jobs = [composer.job(overrides, number) for number, overrides in enumerate(expand(found))]
        assert composer.sweep_dir is not None
        if plan.skip_done:
            skip_done(jobs, [composer.sweep_dir, *(Path(root).expanduser() for root in plan.done_roots)])
        if composer is self.launcher:
            return composer.run(jobs, plan.metric)
        return self.launcher.launch([job.overrides for job in jobs if job.state == "waiting"], 0)


def skip_done(jobs: Sequence[Job], roots: Sequence[Path]) -> None:
    """Point jobs that have a valid result at it, and the others at a folder that is free."""
    known = done(roots)
    for job in jobs:
        if (folder := known.get(identity(job.config))) is not None:
            job.state, job.directory = "skipped", folder
        else:
            job.directory = free_folder(job.directory)
