"""Where a run's numbers go: metrics.jsonl always, wandb by choice.

A logger is handed the run (`start`), rows of metrics (`log`), now and then a table or a text, and the final
figures (`finish`). `Loggers` is the one that the trainer holds: it speaks on rank 0 only and lets no tracker
stop a training run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable
from urllib.parse import urlparse

from golf.common.errors import ConfigError, GolfError
from golf.common.log import logger as console
from golf.runs import wandb_files
from golf.runs.folder import AXES, MetricsWriter, RunFolder, plain
from golf.runs.states import Status

XAxis = Literal["step", "tokens", "train_time_s"]
WandbMode = Literal["offline", "online", "disabled"]


@dataclass(frozen=True)
class RunInfo:
    """What a logger needs to know of a run: its folder, its name, and for a resumed run the step it goes on from.

    `kind` is train, or eval for a later evaluation, which has no curves.
    """

    dir: Path
    name: str
    resume_step: int | None = None
    kind: Literal["train", "eval"] = "train"


@runtime_checkable
class Logger(Protocol):
    """The six calls that a destination of metrics answers; all of them come from rank 0."""

    def start(self, run: RunInfo, config: Mapping[str, Any]) -> None:
        """Open the destination; `config` is the resolved config, nested, as JSON types."""

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """One row of metrics after `step` updates; it holds `tokens` and `train_time_s` too."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A small table, such as the byte ledger."""

    def image(self, name: str, path: Path) -> None:
        """A picture on disk, such as a plot."""

    def text(self, name: str, body: str, step: int) -> None:
        """A piece of text, such as a sample."""

    def finish(self, summary: Mapping[str, Any], status: Status) -> None:
        """The final figures (flat names, `/` between levels), and close."""


class JsonlLogger:
    """Rows to metrics.jsonl in the run folder; tables and figures stand in result.json already."""

    def __init__(self) -> None:
        self._writer: MetricsWriter | None = None

    def start(self, run: RunInfo, config: Mapping[str, Any]) -> None:
        """Open metrics.jsonl. Raises GolfError when it cannot be written."""
        self._writer = MetricsWriter(Path(run.dir) / "metrics.jsonl", run.resume_step)

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """Append one row."""
        if self._writer is not None:
            self._writer.write({"step": step, **metrics})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Nothing: result.json keeps the ledger."""

    def image(self, name: str, path: Path) -> None:
        """Nothing: it lies in the run folder."""

    def text(self, name: str, body: str, step: int) -> None:
        """Append a row that holds the text under its name."""
        self.log({name: body}, step)

    def finish(self, summary: Mapping[str, Any], status: Status) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()


class WandbLogger:
    """A wandb run inside the run folder (`<run folder>/wandb/`).

    `mode="offline"` (the default) needs neither account nor network and loses nothing: `wandb sync` uploads it
    later. `online` needs a key. Config is logged nested and whole; `x_axis` is the default x-axis of every chart,
    and the other two of step, tokens and train time are declared beside it; `val_bpb` and `val_bpb/…` are summarised
    by their minimum. Runs of one multirun share `group`; recipe, tokenizer and quant are tags beside `tags`. `source`
    keeps golf's and the user's Python files and the resolved config as wandb Artifacts, `artifact` artifact.golf.

    Raises ConfigError for `online` without a key, for an unknown mode or axis, or an empty project.
    """

    def __init__(
        self,
        project: str = "golf",
        mode: WandbMode = "offline",
        group: str | None = None,
        tags: list[str] | None = None,
        entity: str | None = None,
        name: str | None = None,
        x_axis: XAxis = "step",
        system_stats: bool = True,
        source: bool = True,
        artifact: bool = False,
    ) -> None:
        if not project:
            raise ConfigError("logger.project is empty: wandb files every run under a project")
        if mode not in get_args(WandbMode):
            raise ConfigError(f"logger.mode={mode!r} is none of {', '.join(get_args(WandbMode))}")
        if x_axis not in AXES:
            raise ConfigError(f"logger.x_axis={x_axis!r} is none of {', '.join(AXES)}")
        if mode == "online" and not has_wandb_key():
            raise ConfigError(
                "logger.mode=online needs a wandb key, and there is none: set WANDB_API_KEY or run `wandb login`\n"
                "or keep logger.mode=offline and upload later with `wandb sync` (nothing is lost), or logger=jsonl"
            )
        self.mode: WandbMode = mode
        self._x_axis = x_axis
        self._project, self._entity, self._group = project, entity, group
        self._tags, self._name = list(tags or []), name
        self._system_stats, self._source, self._artifact = system_stats, source, artifact
        self._run: Any = None
        self._info: RunInfo | None = None

    def start(self, run: RunInfo, config: Mapping[str, Any]) -> None:
        """Open the wandb run; where the server cannot be reached, offline."""
        self._run, self._info = self._init(run, config, self.mode), run
        for axis in AXES:
            self._run.define_metric(axis, step_metric=None if axis == self._x_axis else self._x_axis)
        self._run.define_metric("*", step_metric=self._x_axis)
        for name in ("val_bpb", "val_bpb/*"):
            self._run.define_metric(name, step_metric=self._x_axis, summary="min")
        if self._source and self.mode != "disabled" and run.kind == "train":
            folder = RunFolder(run.dir)
            archive = wandb_files.zip_source(run.dir / "wandb" / "source.zip", run.dir / "code")
            wandb_files.keep(self._run, "source", "code", archive)
            wandb_files.keep(self._run, f"config-{self._run.id}", "config", folder.config, folder.overrides)

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """One history row; `step` is an ordinary column, so that a resumed run may go on from its own."""
        # wandb's private counter only ever grows and would drop the rows of a run that went back to a checkpoint
        self._run.log({"step": step, **{name: plain(value) for name, value in metrics.items()}})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A wandb.Table under `name`."""
        import wandb

        self._run.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def image(self, name: str, path: Path) -> None:
        """A wandb.Image under `name`."""
        import wandb

        self._run.log({name: wandb.Image(str(path))})

    def text(self, name: str, body: str, step: int) -> None:
        """A one-row table, which keeps line breaks and needs no escaping."""
        self.table(name, ["step", "text"], [[step, body]])

    def finish(self, summary: Mapping[str, Any], status: Status) -> None:
        """Write the summary, mark the run finished or failed, and say how to upload it."""
        import wandb

        folder = Path(self._run.settings.sync_dir) if self._run.settings.sync_dir else None
        offline, url = self._run.offline, self._run.url
        self._run.summary.update({**{name: plain(value) for name, value in summary.items()}, "status": status})
        if self._artifact and self._info is not None and self._info.kind == "train" and self.mode != "disabled":
            figures = {name: summary[name] for name in ("val_bpb/post_quant", "bytes/artifact") if name in summary}
            stored = RunFolder(self._info.dir).artifact
            wandb_files.keep(self._run, f"artifact-{self._run.id}", "model", stored, metadata=figures)
        self._run.finish(exit_code=0 if status == "completed" else 1)
        wandb.teardown()  # finish returns some milliseconds before wandb's own process has written the file's end
        if offline and self.mode != "disabled" and folder is not None:
            console.info("wandb kept this run offline; to upload it: wandb sync %s", folder)
        elif url and self.mode == "online":
            console.info("wandb: %s", url)

    def _init(self, run: RunInfo, config: Mapping[str, Any], mode: WandbMode) -> Any:
        import wandb

        settings = wandb.Settings(
            silent=True,  # golf says the one line that matters itself
            console="off",  # train.log has the lines; wrapping stdout would break the live display
            x_disable_stats=not self._system_stats,
            init_timeout=30,  # the default blocks a dead network for 90 s
        )
        try:
            wandb.setup(wandb.Settings(silent=True))  # the login before `init` reads only these
            return wandb.init(
                project=self._project,
                entity=self._entity,
                group=self._group,
                job_type=run.kind,
                tags=list(dict.fromkeys([*self._tags, *wandb_files.tags(config)])),
                name=self._name or run.name,
                config=dict(config),
                dir=run.dir,
                mode=mode,
                reinit="finish_previous",  # in a multirun a forgotten run would otherwise be handed back as this one
                settings=settings,
            )
        except wandb.errors.Error as error:
            if mode != "online":
                raise
            console.warning("wandb cannot log in (%s): this run is logged offline", _first_line(error))
            return self._init(run, config, "offline")


class Loggers:
    """All of a run's loggers as one, on rank 0; on every other rank a `Loggers` that does nothing.

    metrics.jsonl is always among them. It completes each row with `tokens` and `train_time_s` (the last known
    values). An error of the record itself is raised; a tracker that fails is dropped with one warning line, and
    training goes on.
    """

    def __init__(self, chosen: Logger | Iterable[Logger] | None = None, rank: int = 0) -> None:
        given = [chosen] if isinstance(chosen, Logger) else list(chosen or [])
        if not any(isinstance(one, JsonlLogger) for one in given):
            given.insert(0, JsonlLogger())
        self._active: list[Logger] = given if rank == 0 else []
        self._axes: dict[str, Any] = {"tokens": 0, "train_time_s": 0.0}

    def start(self, run: RunInfo, config: Mapping[str, Any]) -> None:
        """Open every logger."""
        self._each(lambda one: one.start(run, config))

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """One row to every logger; 0-d tensors are read here, once."""
        if not self._active:
            return
        row = {name: plain(value) for name, value in metrics.items()}
        self._axes.update({name: row[name] for name in self._axes if name in row})
        self._each(lambda one: one.log({**self._axes, **row}, step))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table to every logger that shows tables."""
        self._each(lambda one: one.table(name, columns, rows))

    def image(self, name: str, path: Path) -> None:
        """A picture to every logger that shows pictures."""
        self._each(lambda one: one.image(name, path))

    def text(self, name: str, body: str, step: int) -> None:
        """A text to every logger."""
        self._each(lambda one: one.text(name, body, step))

    def ledger(self, by_group: Mapping[str, int]) -> None:
        """The byte ledger as the table `bytes_by_group`, the largest place first."""
        rows = sorted(by_group.items(), key=lambda item: (-item[1], item[0]))
        self.table("bytes_by_group", ["place", "bytes"], rows)

    def finish(self, summary: Mapping[str, Any], status: Status) -> None:
        """Close every logger; later calls do nothing."""
        self._each(lambda one: one.finish(summary, status))
        self._active = []

    def _each(self, call: Callable[[Logger], None]) -> None:
        for one in list(self._active):
            try:
                call(one)
            except GolfError:
                raise
            except Exception as error:
                if isinstance(one, JsonlLogger):
                    raise
                self._active.remove(one)
                console.warning(
                    "%s failed and is off from here on; metrics.jsonl goes on (%s)",
                    type(one).__name__,
                    _first_line(error),
                )


def has_wandb_key() -> bool:
    """Whether wandb could log in here: a key or identity token in the environment, or a netrc entry for its host."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    import netrc

    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    file = Path(os.environ.get("NETRC") or Path.home() / ".netrc").expanduser()
    try:
        return netrc.netrc(str(file)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
