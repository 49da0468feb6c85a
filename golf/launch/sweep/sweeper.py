"""What a sweep runs: grids, sets of overrides, ablations; and golf's sweeper, which composes each job once."""

from __future__ import annotations

import itertools
import math
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.utils import setup_globals
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from golf.common.errors import ConfigError
from golf.launch.compose.configs import MOST_CHECKED, Checker, resolved_node, without
from golf.launch.compose.phases import written
from golf.launch.compose.ranges import split, words_of
from golf.launch.compose.words import override_values, parse_override
from golf.launch.sweep.coming import Coming, Progress
from golf.launch.sweep.folders import check_apart, check_space
from golf.launch.sweep.job import SweepJob
from golf.launch.sweep.kinds import Space, SweepSettings, assign_folder
from golf.launch.sweep.local import LocalLauncher
from golf.runs.seal import identity

__all__ = ["GolfSweeper", "Grid", "axes", "count", "expand", "identity"]


@dataclass(frozen=True)
class Grid(SweepSettings):
    """A grid: every combination of the swept values.

    sets: sets of overrides, each a string or a list, run with every combination. ablate: the config whole, and with
    each technique off. max_jobs: more is refused.
    """

    sets: list[str | list[str]] = field(default_factory=list)
    ablate: bool = False
    max_jobs: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
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
    alternatives = [shlex.split(one) if isinstance(one, str) else list(map(str, one)) for one in sets]
    if several := [word for one in alternatives for word in one if parse_override(word).is_sweep_override()]:
        raise ConfigError(f"sweep.sets: {several[0]}: a set has one value a key; sweep it beside the sets")
    return [*by_key.values(), *([alternatives] if alternatives else [])]


def firsts(words: Iterable[str]) -> list[str]:
    """Every word with the first of its values; keys with a range or without any value keep the config's own."""
    found = []
    for word in words:
        override = parse_override(word)
        if not override.is_sweep_override():
            found.append(word)
        elif override.is_discrete_sweep() and (values := override_values(override)):
            found.append(f"{override.get_key_element()}={values[0]}")
    return found


def count(found: Sequence[Axis]) -> int:
    """How many jobs the axes make."""
    return math.prod(len(axis) for axis in found)


def expand(found: Sequence[Axis]) -> list[list[str]]:
    """Every combination, as override lists; the last axis varies fastest."""
    return [[word for part in job for word in part] for job in itertools.product(*found)]


class GolfSweeper(Sweeper):
    """Counts, composes and checks every job before the first starts, of many on this machine those that show each swept
    value; then hands them to the launcher."""

    launcher: Launcher

    def __init__(self, params: Any = None) -> None:
        """params: swept keys as Hydra's own sweeper has them, `hydra.sweeper.params`; others win over them."""
        self.params = params

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
        from golf.launch.compose import build
        from golf.launch.compose.annotations import check_types
        from golf.launch.sweep.ablation import ablations, name_jobs

        setup_globals()
        composer = self.launcher if isinstance(self.launcher, LocalLauncher) else self.composer
        start = firsts(arguments)
        base, hydra_config, _ = first = composer.compose(start, 0)
        node = resolved_node(base, "sweep")  # what else must be given, the plan itself may give
        check_types(node, "sweep")
        plan: SweepSettings = build.make(node, "sweep")
        known = _Known(composer, arguments, base)
        params = known.words([*words_of(self.params), *words_of(plan.params)])
        if not isinstance(plan, Grid):
            return self._guided(plan, composer, [*params, *arguments], base)
        sets = [known.words(shlex.split(one) if isinstance(one, str) else list(map(str, one))) for one in plan.sets]
        found = axes(arguments, params, sets)
        arms = ablations(hydra_config.runtime.choices, written(base)) if plan.ablate else {}
        if arms:
            found.append(list(arms.values()))
        if count(found) > plan.max_jobs:
            raise ConfigError(f"a sweep of {count(found):,} jobs: if you mean it, sweep.max_jobs={count(found)}")
        lists = expand(found)
        composed = {0: first} if lists[0] == start else {}

        def made(words: Sequence[str], number: int) -> SweepJob:
            return composer.job(words, number, composed.pop(number, None))

        assert composer.sweep_dir is not None
        if composer is self.launcher and composer.takes_more and len(lists) > MOST_CHECKED and not arms:
            return composer.run_all(Coming(found, lists, made, composer.sweep_dir, plan), plan.metric, plan.forecast)
        jobs, progress = list[SweepJob](), Progress(len(lists), partial(print, flush=True))
        for number, words in enumerate(lists):
            jobs.append(made(words, number))
            progress.done(number + 1)
        if arms:
            name_jobs(jobs, arms)
        check_apart(jobs, composer.sweep_dir)
        if plan.skip_done:
            valid, unfinished = plan.results(composer.sweep_dir), plan.unfinished(composer.sweep_dir)
            given = set[Path]()
            for job in jobs:
                assign_folder(job, valid, given, unfinished)
        if composer is self.launcher:
            return composer.run(jobs, plan.metric, forecast=plan.forecast)
        return self.launcher.launch([job.overrides for job in jobs if job.state == "waiting"], 0)

    def _guided(self, plan: SweepSettings, composer: LocalLauncher, words: list[str], base: DictConfig) -> Any:
        """A sweep whose jobs come one after the other, each chosen by what the earlier ones came to."""
        if composer is not self.launcher:
            raise ConfigError("this sweep chooses its jobs while others run: it needs hydra/launcher=local or slurm")
        own = [word for word in words if parse_override(word).key_or_group.split(".")[0] != "sweep"]
        fixed, ranges = split(own, base)
        if not ranges:
            raise ConfigError(
                "there is nothing to sweep over: give values or ranges, 'optimizer.matrix_lr=log(0.01,0.1)'"
            )
        assert composer.sweep_dir is not None
        space = Space(fixed, ranges, composer.job, composer.sweep_dir, composer.owner.line.config_dirs)
        space.probe()
        check_space(space)
        composer.backend(space.probes, print, guided=True)  # what cannot run is told before a study is opened
        guide = plan.guide(space)
        assert guide is not None
        alike = list(itertools.islice(itertools.cycle(space.probes), max(1, guide.planned)))
        return composer.run(alike, plan.metric, guide, plan.forecast)


class _Known:
    """Finds mistaken keys in a plan's own words; the base config is composed anew where a word chooses an option."""

    def __init__(self, composer: LocalLauncher, arguments: Sequence[str], base: DictConfig) -> None:
        self.composer, self.base = composer, without(base, "sweep")
        self.arguments = firsts(arguments)
        self.checker = Checker(composer.owner.line)

    def words(self, words: Sequence[str]) -> list[str]:
        """The words, bare names completed. Raises ConfigError with the nearest key."""
        words = [self.checker.plain(word) for word in words]
        parsed = [override for override in map(parse_override, words) if self.checker.is_group(override)]
        for override in parsed:
            self.checker.check_options(override)
        try:
            return self.checker.completed(words, self.base)
        except ConfigError:
            if not parsed:
                raise
        chosen = firsts(str(override.input_line) for override in parsed)
        base, _, _ = self.composer.compose([*self.arguments, *chosen], 0)
        return self.checker.completed(words, without(base, "sweep"))
