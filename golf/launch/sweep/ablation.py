"""A sweep that turns techniques off: what its jobs are called, and the table of what each technique is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from golf.common.errors import ConfigError, GolfError
from golf.launch.compose.words import literal
from golf.launch.sweep.board import differing
from golf.launch.sweep.job import SweepJob
from golf.runs.figures import FIGURES
from golf.runs.report.ablation import arm_name, is_off, is_switch, later, told_apart, without
from golf.runs.report.gather import gather
from golf.runs.report.text import ablation_tables
from golf.runs.states import SCORED
from golf.runs.store import Run
from golf.runs.tables import Table


def ablations(choices: Mapping[str, Any], phases: Sequence[Mapping[str, Any]] = ()) -> dict[str, list[str]]:
    """What to set so that nothing is changed (""), then for each technique that is on, be it in a phase alone, so that
    it is off. Raises ConfigError when none is on."""
    on = {name for name in choices if is_switch(name) and not is_off(choices[name])}
    begun = later(phases)
    if not on and not begun:
        raise ConfigError("sweep.ablate=true: no technique of this config is on, so there is nothing to turn off")
    arms: dict[str, list[str]] = {"": []}
    for name in sorted(on | begun.keys()):
        arms[name] = [f"{name}=none"] if name in on else []
        if name in begun:
            arms[name].append(f"phases={literal(without(phases, name))}")
    return arms


def name_jobs(jobs: Sequence[SweepJob], arms: Mapping[str, Sequence[str]]) -> None:
    """Call each job by what it lacks, `ablation=xsa off`, and the one that lacks nothing `ablation=baseline`."""
    turned = {word for words in arms.values() for word in words}
    for job in jobs:
        off = [switch for switch, words in arms.items() if words and set(words) <= set(job.overrides)]
        rest = [word for word in differing(job, jobs) if word not in turned]
        job.varied = [f"ablation={arm_name(off[-1]) if off else 'baseline'}", *rest]


def ablation_table(jobs: Sequence[SweepJob], metric: str) -> list[Table]:
    """The table of techniques with Δ to the baseline; none where no two jobs differ in one technique alone."""
    ended = [job for job in jobs if job.state in (*SCORED, "skipped")]
    options = [{name: is_off(one) for name, one in told_apart(job.config)[0].items()} for job in ended]
    if not any(is_switch(name) and not off for found in options for name, off in found.items()):
        return []
    try:
        report = gather([Run(job.directory) for job in ended], metric if metric in FIGURES else None, curves=False)
    except GolfError:  # none of them has the figure, which the closing table shows
        return []
    return ablation_tables(report)
