"""A sweep that turns techniques off: what its jobs are called, and the table of what each technique is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from golf.common.errors import ConfigError, GolfError
from golf.launch.sweep.board import differing
from golf.launch.sweep.job import SweepJob
from golf.runs.figures import FIGURES
from golf.runs.report.ablation import arm_name, is_off, is_switch
from golf.runs.report.gather import gather
from golf.runs.report.text import ablation_tables
from golf.runs.states import SCORED
from golf.runs.store import Run
from golf.runs.tables import Table


def ablations(choices: Mapping[str, Any]) -> list[list[str]]:
    """Nothing changed, then each technique that is on turned off. Raises ConfigError when none is on."""
    on = [name for name in sorted(choices) if is_switch(name) and not is_off(choices[name])]
    if not on:
        raise ConfigError("sweep.ablate=true: no technique of this config is on, so there is nothing to turn off")
    return [[], *([f"{name}=none"] for name in on)]


def name_jobs(jobs: Sequence[SweepJob], arms: Sequence[Sequence[str]]) -> None:
    """Call each job by what it lacks, `ablation=xsa off`, and the one that lacks nothing `ablation=baseline`."""
    turned = {word for words in arms for word in words}
    for job in jobs:
        off = [word for word in job.overrides if word in turned]
        rest = [word for word in differing(job, jobs) if word not in turned]
        name = arm_name(off[-1].partition("=")[0]) if off else "baseline"
        job.varied = [f"ablation={name}", *rest]


def ablation_table(jobs: Sequence[SweepJob], metric: str) -> list[Table]:
    """The table of techniques with Δ to the baseline; none where no two jobs differ in one technique alone."""
    ended = [job for job in jobs if job.state in (*SCORED, "skipped")]
    options = [{name: is_off(one) for name, one in (job.config.get("choices") or {}).items()} for job in ended]
    if not any(is_switch(name) and not off for found in options for name, off in found.items()):
        return []
    try:
        report = gather([Run(job.directory) for job in ended], metric if metric in FIGURES else None, curves=False)
    except GolfError:  # none of them has the figure, which the closing table shows
        return []
    return ablation_tables(report)
