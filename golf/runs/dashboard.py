"""The wandb workspace for a sweep: which panels it has is told by its run folders; no account is needed to build it."""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from golf.common.errors import ConfigError, GolfError
from golf.runs.figures import SCORED_BY
from golf.runs.report import gather
from golf.runs.store import Run
from golf.runs.wandb_environment import PROJECT

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

MOST_AXES = 8
"""Parallel coordinates beyond that cannot be read."""
CURVES = {"val_bpb": "val_bpb", "training loss": "train_loss_mean"}
X_AXES = {"tokens": "tokens", "training time, s": "train_time_s"}
SIGNS = {"!=": " not ", "<=": " at most ", ">=": " at least ", "=": " ", "<": " below ", ">": " above "}
"""How a filter reads in a name."""
SPEED = ("tokens_per_s", "step_ms", "mfu", "data_wait_ms")


@dataclass(frozen=True)
class Place:
    """Where a workspace goes, and which of the project's runs it shows: those of these groups, or all."""

    project: str
    entity: str | None
    groups: list[str]

    @classmethod
    def of(cls, runs: Sequence[Run], project: str = "", entity: str = "") -> Place:
        """What the runs' own loggers say, most of them, unless `project` or `entity` do.

        Raises GolfError when no run was logged with wandb and no project is named.
        """
        loggers = [found for run in runs if (found := logged(run))]
        if not loggers and not project:
            raise GolfError(
                "none of these runs was logged with wandb (logger=wandb), so there is nothing to show there\n"
                "`golf report` makes a page from the run folders alone; --project names one all the same"
            )

        def usual(name: str) -> str | None:
            counted = Counter(str(one[name]) for one in loggers if one.get(name))
            return counted.most_common(1)[0][0] if counted else None

        groups = {str(one["group"]) for one in loggers if one.get("group")}
        whole = all(one.get("group") for one in loggers)
        return cls(project or usual("project") or PROJECT, entity or usual("entity"), sorted(groups) if whole else [])


def logged(run: Run) -> dict[str, Any]:
    """Where a run was logged, by its config and, for what that leaves open, by its record; {} without wandb."""
    asked, facts = run.config.get("logger"), (run.record.get("tracking") or {}).get("wandb") or {}
    if not isinstance(asked, dict) or "project" not in asked or "disabled" in (asked.get("mode"), facts.get("mode")):
        return {}
    return {"project": PROJECT, **{key: value for key, value in asked.items() if value}, **facts}


def plain_name(name: str) -> str:
    """A name of golf's own that a workspace may have: wandb-workspaces takes signs of all kinds, also =, for emojis."""
    for sign, word in SIGNS.items():
        name = name.replace(sign, word)
    return " ".join("".join(letter if taken(letter) else " " for letter in name).split())


def check_name(name: str) -> None:
    """Raise ConfigError for a name that a workspace cannot have."""
    if not name.strip():
        raise ConfigError("--name: a workspace's name holds more than blanks")
    if refused := [letter for letter in name if not taken(letter)]:
        raise ConfigError(f"--name {name!r}: wandb-workspaces takes no {' '.join(dict.fromkeys(refused))} in a name")


def taken(letter: str) -> bool:
    """Whether wandb-workspaces takes a character in a workspace's name."""
    return unicodedata.category(letter) not in ("So", "Sk", "Sm", "Sc", "Cs", "Cc")


def workspace(runs: Sequence[Run], place: Place, name: str, metric: str | None = None) -> Workspace:
    """Curves of bpb and loss by tokens and by time, bpb against bytes, and parallel coordinates over the swept keys.

    `metric` is as for gather. Raises ConfigError without wandb-workspaces, GolfError as gather does.
    """
    try:
        import wandb_workspaces.reports.v2.interface as wr
        import wandb_workspaces.workspaces as ws
    except ImportError:
        raise ConfigError("golf dashboard needs wandb-workspaces: pip install 'golf[dashboard]'") from None
    report = gather(runs, metric)
    apart = ["summary:scored_by"] if any(run.kind for run in report.runs) else []
    score = report.metric.replace(".", "/")
    choices = {str(group) for run in runs for group in run.config.get("choices") or {}}
    swept = [name for name in report.swept if name != SCORED_BY]  # a figure's, no setting
    swept = [f"choices.{key}" if key in choices else key for key in swept[:MOST_AXES]]
    curves: list[Any] = [
        wr.LinePlot(title=f"{title} by {axis}", x=x, y=[y], title_x=axis)
        for title, y in CURVES.items() for axis, x in X_AXES.items()
    ]  # fmt: skip
    size, bpb = wr.SummaryMetric("bytes/artifact"), wr.SummaryMetric(score)
    axes: list[Any] = [*(wr.Config(key) for key in swept), size, bpb]
    whole = ws.Section(
        name="The sweep", is_open=True,
        panels=[
            wr.ScatterPlot(title=f"{score} against artifact bytes", x=size, y=bpb),
            wr.ParallelCoordinatesPlot(
                title="swept keys", columns=[wr.ParallelCoordinatesPlotColumn(metric=axis) for axis in axes]
            ),
        ],
    )  # fmt: skip
    speed: list[Any] = [wr.LinePlot(title=metric, x="step", y=[metric]) for metric in SPEED]
    shown = [ws.Section(name="Curves", panels=curves, is_open=True), whole, ws.Section(name="Speed", panels=speed)]
    columns = ["run:displayName", f"summary:{score}", "summary:bytes/artifact", "summary:valid", *apart]
    filters = f"Metric('Group') in [{', '.join(map(_literal, place.groups))}]" if place.groups else ""
    return ws.Workspace(
        entity=place.entity or "", project=place.project, name=name, sections=shown,
        settings=ws.WorkspaceSettings(x_axis="tokens", max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=filters, order=[ws.Ordering(ws.Summary(score), ascending=True)],
            pinned_columns=[*columns, *(f"config:{_column(key)}" for key in swept)],
        ),
    )  # fmt: skip


def left_out(runs: Sequence[Run], metric: str | None = None) -> str:
    """What to say of runs whose bpb does not compare with most runs': the workspace shows them beside each other, and
    the column `scored_by` says which is which."""
    report = gather(runs, metric, curves=False)
    others = sum(run.kind > 0 for run in report.runs)
    told = f"{others} of {len(runs)} runs are scored on other text or by other rules: see the column scored_by"
    return told if others else ""


def serialised(built: Workspace) -> str:
    """The workspace's definition as JSON, as it would be sent."""
    view: Any = built._to_model()  # the library has no public name for it
    return json.dumps(view.model_dump(mode="json", by_alias=True, exclude_none=True), indent=1) + "\n"


def _literal(text: str) -> str:
    """A string in the library's language of filters, which reads operators and quotes within strings too: escaped."""
    plain = "".join(sign if sign.isalnum() and sign.isascii() else f"\\U{ord(sign):08x}" for sign in text)
    return f"'{plain}'"


def _column(key: str) -> str:
    """A nested config key as wandb names its column: the first part's `.value`, then the rest."""
    first, _, rest = key.partition(".")
    return f"{first}.value" + (f".{rest}" if rest else "")
