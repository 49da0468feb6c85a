"""`sweep=tpe`: Optuna asks for trials, the pool runs them, and what they come to is told back.

Numbers are Optuna's all the way: trial 7 is job 7 in folder 7. A study is kept in a database, so that the same command
goes on where it was left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from golf.common.errors import ConfigError, GolfError, reason
from golf.common.files import hold
from golf.launch.compose.ranges import Range
from golf.launch.sweep.board import Tail
from golf.launch.sweep.job import SweepJob, length_of
from golf.launch.sweep.kinds import (
    Space,
    SweepSettings,
    assign_folder,
    check_figure,
    figure,
    write_best,
)
from golf.runs.dotted import last_parts
from golf.runs.figures import Basis, basis, is_score
from golf.runs.seal import identity
from golf.runs.states import SCORED, state_of
from golf.runs.store import Run
from golf.runs.tables import Column, Table

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

RUNGS = 1000
"""How far a run has come, in thousandths: what Optuna's pruner calls its step."""
SHOWN = 5
COUNTED = (*SCORED, "skipped", "pruned", "failed", "done")
"""States of a job that answer for a trial; one that was interrupted is asked for anew. Older studies say `done`."""


@dataclass(frozen=True)
class Search(SweepSettings):
    """Optuna's TPE over ranges.

    trials: of the whole study, those of earlier sweeps included. metrics: several numbers to trade off, instead of
    `metric`. constraints: `name<=number` or `name>=number` beside the run's own limits, which always count. startup:
    trials at random before the model of the others is asked. prune: stop what does badly (null: where it can be
    done); prune_from: the part of a run that is safe; eta: of so many that come as far, one goes on. storage: a file
    or a URL (null: study.db in the sweep's folder); study: its name there. sampler_seed: of TPE.
    """

    trials: int = 20
    metrics: list[str] = field(default_factory=list)
    constraints: list[str] = field(default_factory=list)
    startup: int = 10
    sampler_seed: int = 1
    prune: bool | None = None
    prune_from: float = 0.125
    eta: int = 3
    storage: str | None = None
    study: str = "golf"
    forecast: bool = True

    def __post_init__(self) -> None:
        for name in self.metrics:
            check_figure("sweep.metrics", name)
        if len(set(self.metrics)) < len(self.metrics):
            raise ConfigError(f"sweep.metrics={self.metrics}: name each once")
        super().__post_init__()
        for name, least in (("trials", 1), ("startup", 1), ("eta", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"sweep.{name}={getattr(self, name)}: must be at least {least}")
        if not 0 < self.prune_from < 1:
            raise ConfigError(f"sweep.prune_from={self.prune_from}: a part of a run, between 0 and 1")
        for text in self.constraints:
            bound(text)

    @property
    def goals(self) -> list[str]:
        """What is minimised."""
        return self.metrics or [self.metric]

    def prunes(self, config: Mapping[str, Any]) -> bool:
        """Whether bad runs of this config are stopped. Raises ConfigError where that is wished and cannot be."""
        obstacle = ""
        if len(self.goals) > 1:
            obstacle = "sweep.metrics has several metrics, and runs are stopped by one"
        elif not is_score(self.goals[0]):
            obstacle = f"sweep.metric={self.goals[0]} is not known while a run lasts, val_bpb is"
        elif not config["val_every"]:
            obstacle = "val_every=0: runs are not validated before their end"
        if obstacle and self.prune:
            raise ConfigError(f"sweep.prune=true: {obstacle}")
        if obstacle and self.prune is None:
            print(f"no run will be stopped early ({obstacle})", flush=True)
        return not obstacle and self.prune is not False

    def guide(self, space: Space) -> Trials:
        """Open the study and check that it is this search's. Raises ConfigError when it is another's."""
        config = space.probes[0].config
        prunes = self.prunes(config)
        # what all trials share: the config with every swept key at the first of its values
        shared = identity(space.compose({one.key: one.ends[0] for one in space.ranges}, 0).config)
        study, lock = open_study(self, space, shared)
        known = self.results(space.folder, invalid=True)
        return Trials(self, space, study, lock, prunes, known)


class Trials:
    """A study between Optuna and the pool: its trials as jobs, the jobs' ends as results."""

    def __init__(
        self, plan: Search, space: Space, study: Study, lock: FileLock, prunes: bool, known: dict[str, Path]
    ) -> None:
        self.plan, self.space, self.study, self.known = plan, space, study, known
        self.lock, self.prunes = lock, prunes
        self.distributions = {one.key: one.distribution() for one in space.ranges}
        self.bounds = [bound(text) for text in plan.constraints]
        self.asked: dict[int, Trial] = {}
        self.first: dict[str, Basis] = {}
        self.tails: dict[int, Tail] = {}
        clean_up(study, self.tell)
        finished = sum(trial.user_attrs.get("state") in COUNTED for trial in study.trials)
        self.planned = self.left = max(0, plan.trials - finished)
        if finished:
            print(f"the study has {finished} trials; {self.left} more to reach sweep.trials={plan.trials}", flush=True)

    def more(self, jobs: Sequence[SweepJob]) -> list[SweepJob]:
        """The next trial, or nothing when there are as many as wished."""
        if self.left <= 0:
            return []
        self.left -= 1
        trial = self.study.ask(self.distributions)
        values = {one.key: one.spell(trial.params[one.key]) for one in self.space.ranges}
        try:
            job = self.space.compose(values, trial.number)
            assign_folder(job, self.known, self.space.given)
        except ConfigError as error:
            config = self.space.probes[0].config
            folder = self.space.folder / str(trial.number)
            job = SweepJob(trial.number, self.space.words(values), config, folder, "failed", reason(error), seal="")
        trial.set_user_attr("values", values)
        trial.set_user_attr("folder", str(job.directory))
        self.asked[trial.number] = trial
        return [job]

    def prune(self, job: SweepJob) -> str:
        """Report a running job's new validations; a reason to stop it when Optuna gives it up."""
        if not self.prunes:
            return ""
        tail = self.tails.setdefault(job.number, Tail(job.directory / "metrics.jsonl"))
        trial = self.asked[job.number]
        for row in tail.rows():
            bpb, at = row.get("val_bpb"), progress(job.config, row)
            if bpb is None or not 0 < at < RUNGS:
                continue
            trial.report(float(bpb), at)
            if trial.should_prune():
                return (
                    f"val_bpb {bpb:.4f} after {at / RUNGS:.0%} of the run: not among the best 1/{self.plan.eta} there"
                )
        return ""

    def ended(self, job: SweepJob) -> None:
        """Tell Optuna what became of a trial."""
        trial = self.asked.pop(job.number)
        self.tails.pop(job.number, None)
        if self.plan.skip_done and job.state in SCORED:
            self.known[identity(job.config)] = job.directory
        if job.state in (*SCORED, "skipped") and (told := self.tell(trial, job)):
            job.state, job.error = "failed", told
        elif job.state in (*SCORED, "skipped"):
            return
        if job.over:
            trial.set_constraint("artifact", job.over)
        self.close(trial, job.state, job.error)

    def tell(self, trial: Trial, job: SweepJob) -> str:
        """Tell the values and constraints of a completed run; or why it has none, and then nothing is told."""
        values = [figure(job, name) for name in self.plan.goals]
        if None in values:
            return f"its result has no {self.plan.goals[values.index(None)]}"
        if told := self.apart(job):
            return told
        over = violations(job.run.record)
        for name, sign, limit in self.bounds:
            found = figure(job, name)
            if found is None:
                return f"its result has no {name} (sweep.constraints)"
            over[f"{name}{'<=' if sign > 0 else '>='}{limit:g}"] = sign * (found - limit) / (abs(limit) or 1.0)
        for name, value in over.items():
            trial.set_constraint(name, value)
        trial.set_user_attr("state", job.state)
        self.study.tell(trial, [value for value in values if value is not None])
        return ""

    def apart(self, job: SweepJob) -> str:
        """Why a job's bpb does not compare with that of the study's first run; empty where it does."""
        of = {name: one for name in self.plan.goals if (one := basis(job.run.record, name)) is not None}
        if not self.first:
            done = (trial for trial in self.study.trials if trial.state.name == "COMPLETE")
            record = next((Run(trial.user_attrs["folder"]).record for trial in done), {})
            self.first = {name: one for name in of if (one := basis(record, name)) is not None} or of
        for name, one in of.items():
            if name in self.first and not self.first[name].compares(one):
                return f"not compared: its {name} is of other text or by other rules ({one}; {self.first[name]})"
        return ""

    def close(self, trial: Trial, state: str, error: str) -> None:
        """Tell of a trial that has no result."""
        from optuna.trial import TrialState

        trial.set_user_attr("state", state)
        trial.set_user_attr("error", error)
        self.study.tell(trial, state=TrialState.PRUNED if state == "pruned" else TrialState.FAIL)

    def finish(self, jobs: Sequence[SweepJob]) -> None:
        """Print the best trials, leave them in best.yaml, and say how to run the best again."""
        from golf.cli.tables import print_table

        self.lock.release()
        best = best_trials(self.study)
        states = Counter(str(trial.user_attrs.get("state", "interrupted")) for trial in self.study.trials)
        goals = self.plan.goals
        entries = [self.entry(trial) for trial in best]
        write_best(
            self.space.folder / "best.yaml",
            {"study": self.study.study_name, "minimised": goals, "trials": dict(states), "best": entries},
        )
        if not best:
            print("no trial was completed within every limit: there is no best one")
            return
        print_table(self.table(best if len(goals) > 1 else best[:SHOWN]))
        print(f"{self.space.folder / 'best.yaml'}\nthe best again{' by ' + goals[0] if len(goals) > 1 else ''}:")
        print(entries[0]["command"])

    def entry(self, trial: FrozenTrial) -> dict[str, Any]:
        """A trial for best.yaml."""
        values = trial.user_attrs["values"]
        return {
            "trial": trial.number,
            "folder": trial.user_attrs["folder"],
            "figures": dict(zip(self.plan.goals, trial.values)),
            "constraints": dict(trial.constraints),
            "values": values,
            "command": self.space.command(self.space.words(values)),
        }

    def table(self, trials: Sequence[FrozenTrial]) -> Table:
        """The best trials: of one metric the best first, of several the Pareto front by the first of them."""
        keys = [one.key for one in self.space.ranges]
        table = Table(
            *(Column(name) for name in ("trial", *self.plan.goals)),
            *(Column(head, name=key, shorten=True) for key, head in zip(keys, last_parts(keys))),
            title="Pareto front" if len(self.plan.goals) > 1 else "best trials",
        )
        for trial in trials:
            figures = [f"{value:,.0f}" if value.is_integer() else f"{value:.4f}" for value in trial.values]
            table.add_row(str(trial.number), *figures, *trial.user_attrs["values"].values())
        return table


def best_trials(study: Study) -> list[FrozenTrial]:
    """Completed trials within every limit: all of them, the best first; of several metrics the Pareto front.

    Of trials that share a run the first counts.
    """
    found = study.best_trials
    if len(study.directions) == 1:
        complete = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
        found = [one for one in complete if max(one.constraints.values(), default=0) <= 0]
    of_run = {trial.user_attrs["folder"]: trial for trial in sorted(found, key=lambda one: -one.number)}
    return sorted(of_run.values(), key=lambda one: (one.values, one.number))


def open_study(plan: Search, space: Space, shared: str) -> tuple[Study, FileLock]:
    """The plan's study, made or continued, and the lock that keeps a second sweep from it.

    `shared` is the identity of what all trials have in common. Raises ConfigError for a study of another search.
    """
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise ConfigError("a search needs Optuna: pip install 'golf[search]'") from error
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    given = plan.storage or str(space.folder / "study.db")
    url = given if "://" in given else f"sqlite:///{Path(given).expanduser().absolute()}"
    file = Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:///") else space.folder / "study"
    try:
        lock = hold(Path(f"{file}.lock"))
    except GolfError as error:
        raise ConfigError(f"sweep.storage={given}: {error}") from error
    if lock is None:
        raise ConfigError(f"{given}: another sweep is running this study; wait for it, or name another")
    try:
        study = optuna.create_study(
            storage=url, study_name=plan.study, directions=["minimize"] * len(plan.goals), load_if_exists=True,
            pruner=optuna.pruners.SuccessiveHalvingPruner(
                min_resource=max(1, round(plan.prune_from * RUNGS)), reduction_factor=plan.eta
            ),
        )  # fmt: skip
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError, ImportError) as error:
        raise ConfigError(f"sweep.storage={given}: {reason(error)}") from error
    # by the number of trials: a study that goes on must not draw its first trials again
    study.sampler = optuna.samplers.TPESampler(
        seed=plan.sampler_seed + len(study.trials), n_startup_trials=plan.startup
    )
    kept = {"ranges": described(space.ranges), "minimised": plan.goals, "config": shared}
    if (told := study.user_attrs.get("golf")) is None:
        if study.trials:
            raise ConfigError(f"sweep.storage={given}: '{plan.study}' there is no study of golf's; name another")
        study.set_user_attr("golf", kept)
    elif told != kept:
        raise ConfigError(
            f"sweep.storage={given}: the study there is another search ({difference(told, kept)})\n"
            "go on with the same search, or name another folder, sweep.storage or sweep.study"
        )
    return study, lock


def described(ranges: Sequence[Range]) -> dict[str, str]:
    """Ranges as text, by key."""
    return {one.key: str(one) for one in ranges}


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In which way a study differs from what is asked of it, in a few words."""
    if before["minimised"] != now["minimised"]:
        return f"it minimises {', '.join(before['minimised'])}, not {', '.join(now['minimised'])}"
    for key in {**before["ranges"], **now["ranges"]}:
        was, is_now = (one["ranges"].get(key, "not searched") for one in (before, now))
        if was != is_now:
            return f"{key} was {was}, now {is_now}"
    return "the settings that all its trials share were others"


def clean_up(study: Study, tell: Callable[[Any, SweepJob], str]) -> None:
    """Settle trials that a killed sweep left running: by their result where there is one, else as failed.

    Raises ConfigError while the job of one still runs.
    """
    from optuna.trial import Trial, TrialState

    for left in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        run = Run(left.user_attrs.get("folder", "/nowhere"))
        if run.status == "running":
            raise ConfigError(
                f"trial {left.number} of an earlier sweep is still running in {run.dir}: wait, or stop it"
            )
        trial = Trial(study, left._trial_id)
        job = SweepJob(left.number, [], {}, run.dir, state_of("completed", run.valid))
        if run.status != "completed" or tell(trial, job):
            study.tell(left.number, state=TrialState.FAIL)


def progress(config: Mapping[str, Any], row: Mapping[str, Any]) -> int:
    """How far a run has come at a row of its metrics, in thousandths, by its steps or its clock."""
    step, spent = row.get("step") or 0, row.get("train_time_s") or 0.0
    if step <= 0 or spent <= 0:
        return 0
    return int(RUNGS * length_of(config).fraction(step, spent) + 1e-6)


def violations(record: Mapping[str, Any]) -> dict[str, float]:
    """How far a completed run is over each of its limits, as a part of the limit; 0 or less is within."""
    size, budget = record.get("bytes") or {}, record.get("budget") or {}
    scored = [one["seconds"] for one in record.get("evals") or [] if one.get("stage") == "quantized"]
    pairs = {
        "artifact": (size.get("artifact"), size.get("limit") or budget.get("artifact_bytes")),
        "train_time": (record.get("train_time_s"), budget.get("train_seconds")),
        "eval_time": (max(scored, default=None), budget.get("eval_seconds")),
    }
    over = {name: value / limit - 1.0 for name, (value, limit) in pairs.items() if value is not None and limit}
    if record.get("valid"):  # a step that reaches the clock's end may be finished
        return {name: min(0.0, value) for name, value in over.items()}
    return over if max(over.values(), default=0.0) > 0 else {**over, "valid": 1.0}


def bound(text: str) -> tuple[str, int, float]:
    """`name<=number` as name, sign and number; `>=` has sign -1. Raises ConfigError."""
    for sign, symbol in ((1, "<="), (-1, ">=")):
        name, found, number = text.partition(symbol)
        if found:
            check_figure("sweep.constraints", name.strip())
            try:
                return name.strip(), sign, float(number)
            except ValueError:
                break
    raise ConfigError(f"sweep.constraints={text}: write name<=number or name>=number, bytes.artifact<=15000000")
