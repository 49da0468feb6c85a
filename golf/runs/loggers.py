"""Where a run's numbers go: metrics.jsonl always, wandb by choice.

A logger is handed the run (`start`), rows of metrics (`log`), now and then a table or a text, and the final
figures (`finish`). `Loggers` is the one that the trainer holds: it speaks on rank 0 only and lets no tracker
stop a training run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args, runtime_checkable
from urllib.parse import urlparse

from golf.common.errors import ConfigError, GolfError, reason
from golf.common.log import logger as console
from golf.runs import wandb_end, wandb_files
from golf.runs.folder import AXES, MetricsWriter, RunFolder, plain
from golf.runs.states import Status
from golf.runs.wandb_environment import LONGEST_NAME, WandbMode, as_chosen, choose, new_id

XAxis = Literal["step", "tokens", "train_time_s"]


@dataclass(frozen=True)
class RunInfo:
    """What a logger needs to know of a run: its folder and its name.

    Of one that goes on from a checkpoint also `known`, the `facts` of its loggers by then, and the `rows` of metrics up
    to there. `kind` is train, or eval for a later evaluation, which has no curves.
    """

    dir: Path
    name: str
    known: Mapping[str, Any] | None = None
    rows: Sequence[Mapping[str, Any]] = ()
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
        self._writer = MetricsWriter(Path(run.dir) / "metrics.jsonl")

    def settled(self) -> int:
        """The bytes of all rows so far, which the disk has then."""
        return 0 if self._writer is None else self._writer.settled()

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

    `project, entity, mode, group, name` and `tags` that are None are left to wandb's own variables, then to golf: the
    project golf, offline, the folder's name (golf.runs.wandb_environment has the order). Offline needs neither account
    nor network and loses nothing: `wandb sync` uploads it later. `online` needs a key; `disabled` writes nothing.
    Config is logged nested and whole; `x_axis` is the default x-axis of every chart, and the other two of step, tokens
    and train time are declared beside it; `val_bpb` and `val_bpb/…` are summarised by their minimum. Runs of one
    multirun share `group`, and `multirun` says that this is one of its jobs; recipe, tokenizer and quant are tags
    beside `tags`. `source` keeps golf's and the user's Python files and the resolved config as wandb Artifacts,
    `artifact` artifact.golf. The end of a run waits `finish_seconds` for the server; what that lacks is left to a sync.

    Raises ConfigError for `online` without a key, for an unknown mode or axis, an empty project, a wait that is none,
    and for what wandb does not take, in a key or in a variable.
    """

    def __init__(
        self,
        project: str | None = None,
        mode: WandbMode | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        entity: str | None = None,
        name: str | None = None,
        x_axis: XAxis = "step",
        system_stats: bool = True,
        source: bool = True,
        artifact: bool = False,
        multirun: bool = False,
        finish_seconds: float = 60.0,
    ) -> None:
        if mode not in (*get_args(WandbMode), None):
            raise ConfigError(f"logger.mode={mode!r} is none of {', '.join(get_args(WandbMode))}")
        if x_axis not in AXES:
            raise ConfigError(f"logger.x_axis={x_axis!r} is none of {', '.join(AXES)}")
        if not finish_seconds > 0:
            raise ConfigError(f"logger.finish_seconds={finish_seconds:g}: must be positive")
        self._finish_s = finish_seconds
        self._keys = {"project": project, "mode": mode, "group": group, "tags": tags, "entity": entity, "name": name}
        self._own = "each job of a multirun is a wandb run of its own" if multirun else ""
        self._choice = choose(self._keys, os.environ, self._own)
        if self.mode == "online" and not has_wandb_key():
            by = f"logger.mode={mode}" if mode else f"WANDB_MODE={os.environ['WANDB_MODE']}"
            raise ConfigError(
                f"{by} needs a wandb key, and there is none: set WANDB_API_KEY or run `wandb login`\n"
                "or keep logger.mode=offline and upload later with `wandb sync` (nothing is lost), or logger=jsonl"
            )
        self._x_axis = x_axis
        self._system_stats, self._source, self._artifact = system_stats, source, artifact
        self._run: Any = None
        self._folder: Path | None = None
        """Where wandb keeps the run."""
        self._info: RunInfo | None = None
        self._count = self._there = 0
        """Rows so far; and how many of them the run already had when this process went on with it."""

    @property
    def mode(self) -> WandbMode:
        """Where the run goes: offline, online, or nowhere."""
        return self._choice.mode

    @property
    def told(self) -> tuple[str, ...]:
        """What is to be said of wandb's variables, a line each."""
        return self._choice.told

    def facts(self) -> dict[str, Any]:
        """What the run's record says: where its figures went, and which variables had a say."""
        known: dict[str, Any] = {"mode": self.mode, "variables": list(self.told)}
        if self._run is not None:
            known |= {"mode": "offline" if self._run.offline else self.mode, "project": self._choice.project,
                      "entity": self._choice.entity, "group": self._choice.group, "id": self._run.id,
                      "url": self._run.url}  # fmt: skip
        return {"wandb": {name: value for name, value in known.items() if value}}

    def start(self, run: RunInfo, config: Mapping[str, Any]) -> None:
        """Open the wandb run; where the server cannot be reached, offline."""
        self._info = run
        if run.kind == "eval":
            self._choice = choose(self._keys, os.environ, "an evaluation is a wandb run of its own")
        for line in self.told:
            console.info("%s", line)
        if self.mode == "disabled":
            if self._keys["mode"]:
                console.info("wandb is off by logger.mode=disabled")
            return
        self._run = self._init(run, config, self.mode)
        place = Path(self._run.settings.sync_dir or run.dir / "wandb")
        self._folder = place if place.is_dir() else None
        for axis in AXES:
            self._run.define_metric(axis, step_metric=None if axis == self._x_axis else self._x_axis)
        self._run.define_metric("*", step_metric=self._x_axis)
        for name in ("val_bpb", "val_bpb/*"):
            self._run.define_metric(name, step_metric=self._x_axis, summary="min")
        self._there = self._run.step
        for row in run.rows:  # a process that was killed may have taken some along; offline there are none yet
            self.log(row, row["step"])
        if self._source and self._choice.source and run.kind == "train":
            folder = RunFolder(run.dir)
            archive = wandb_files.zip_source(run.dir / "wandb" / "source.zip", run.dir / "code")
            wandb_files.keep(self._run, "source", "code", archive)
            wandb_files.keep(self._run, f"config-{self._run.id}", "config", folder.config, folder.overrides)

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """One history row, unless the run has as many; `step` is an ordinary column, as wandb's own counts rows."""
        if self._run is None:
            return
        if self._folder is not None:
            wandb_end.check_place(self._folder)
        self._count += 1
        if self._count > self._there:
            self._run.log({"step": step, **{name: plain(value) for name, value in metrics.items()}})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A wandb.Table under `name`."""
        if self._run is None:
            return
        import wandb

        self._run.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def image(self, name: str, path: Path) -> None:
        """A wandb.Image under `name`."""
        if self._run is None:
            return
        import wandb

        self._run.log({name: wandb.Image(str(path))})

    def text(self, name: str, body: str, step: int) -> None:
        """A one-row table, which keeps line breaks and needs no escaping."""
        self.table(name, ["step", "text"], [[step, body]])

    def finish(self, summary: Mapping[str, Any], status: Status) -> None:
        """Write the summary, mark the run finished or failed, and say how to upload it."""
        if self._run is None:
            return
        folder = self._folder
        offline, url = self._run.offline, self._run.url
        self._run.summary.update({**{name: plain(value) for name, value in summary.items()}, "status": status})
        if self._artifact and self._info is not None and self._info.kind == "train":
            figures = {name: summary[name] for name in ("val_bpb/post_quant", "bytes/artifact") if name in summary}
            stored = RunFolder(self._info.dir).artifact
            wandb_files.keep(self._run, f"artifact-{self._run.id}", "model", stored, metadata=figures)
        whole = wandb_end.end(self._run, 0 if status == "completed" else 1, self._finish_s)
        if folder is not None:
            wandb_end.check_place(folder)
        if not whole:
            console.warning("wandb's server has not taken all within %g s; for the rest: wandb sync %s",
                            self._finish_s, folder)  # fmt: skip
        elif offline and folder is not None:
            console.info("wandb kept this run offline; to upload it: wandb sync %s", folder)
        elif url:
            console.info("wandb: %s", url)

    def abandon(self) -> None:
        """Give the run up after an error, as far as wandb still answers, and be silent about it."""
        run, self._run = self._run, None
        with suppress(Exception):
            if run is not None:
                wandb_end.end(run, 1, min(self._finish_s, 10.0))
        wandb_end.kill()

    def _init(self, run: RunInfo, config: Mapping[str, Any], mode: WandbMode) -> Any:
        import wandb

        chosen, known = self._choice, ((run.known or {}).get("wandb") or {}).get("id")
        settings = wandb.Settings(
            silent=True,  # golf says the one line that matters itself
            console="off",  # train.log has the lines; wrapping stdout would break the live display
        )
        if not self._system_stats:
            settings.x_disable_stats = True  # WANDB__DISABLE_STATS may say so too
        wandb_end.limit(settings, self._finish_s)
        if not os.environ.get("WANDB_INIT_TIMEOUT", "").strip():
            settings.init_timeout = 30  # the default blocks a dead network for 90 s
        try:
            with as_chosen(chosen):
                wandb.setup(wandb.Settings(silent=True))  # the login before `init` reads only these
                return wandb.init(
                    id=known or chosen.run_id or new_id(),
                    resume="allow" if known else None,
                    project=chosen.project,
                    entity=chosen.entity,
                    group=chosen.group,
                    job_type=run.kind,
                    tags=list(dict.fromkeys([*chosen.tags, *wandb_files.tags(config)])),
                    name=chosen.name or run.name[:LONGEST_NAME],
                    config=plain(config),
                    dir=run.dir,
                    mode=mode,
                    reinit="finish_previous",  # in a multirun a forgotten run would else be handed back as this one
                    settings=settings,
                )
        except wandb.errors.Error as error:
            if mode != "online":
                raise
            console.warning("wandb cannot log in (%s): this run is logged offline", reason(error))
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
        self._failed: dict[str, str] = {}

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

    def settled(self) -> int:
        """The bytes of metrics.jsonl so far, which the disk has then."""
        return next((one.settled() for one in self._active if isinstance(one, JsonlLogger)), 0)

    def facts(self) -> dict[str, Any]:
        """What the trackers say of themselves for the run's record, and which of them failed, and why."""
        told: dict[str, Any] = {}
        for one in self._active:
            if callable(facts := getattr(one, "facts", None)):
                told |= facts()
        return told | ({"failed": dict(self._failed)} if self._failed else {})

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
                name, why = type(one).__name__, reason(error)
                self._failed[name] = why
                if callable(abandon := getattr(one, "abandon", None)):
                    abandon()
                console.warning("%s failed and is off from here on; metrics.jsonl goes on (%s)", name, why)


def has_wandb_key() -> bool:
    """Whether wandb could log in here: a key or identity token in the environment, or a netrc entry for its host."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    import netrc

    file = Path(os.environ.get("NETRC") or Path.home() / ".netrc").expanduser()
    try:
        host = urlparse(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
        return netrc.netrc(str(file)).authenticators(host) is not None
    except (OSError, ValueError, netrc.NetrcParseError):  # ValueError: an address that is none
        return False
