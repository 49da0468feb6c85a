"""Runs read back: open one (`load_run`), find many (`find_runs`), filter, rank and tabulate them.

Nothing is read before it is asked for and torch is never imported, so that listing hundreds of runs is quick.
"""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from golf.common.errors import GolfError, did_you_mean
from golf.runs.dotted import dig, flatten, last_parts, telling
from golf.runs.folder import RunFolder, read_metrics

if TYPE_CHECKING:
    import numpy as np
    from rich.table import Table

    from golf.runs.record import Result

_FIGURES = ("val_bpb.pre_quant", "val_bpb.post_quant", "val_bpb.sliding", "bytes.artifact", "steps", "train_time_s")
_MISSING = object()


class Run:
    """One run folder, whatever state it is in; every part is read when first asked for.

    A part that is missing or broken reads as empty, and `status` says what became of the run.
    """

    def __init__(self, directory: Path | str) -> None:
        self.dir = Path(directory)
        self.folder = RunFolder(self.dir)

    @property
    def name(self) -> str:
        """The last two parts of the folder's path, enough to tell the jobs of a sweep apart."""
        return "/".join(self.dir.absolute().parts[-2:])

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved config, nested; empty when there is none."""
        loaded = _read_yaml(self.folder.config)
        return loaded if isinstance(loaded, dict) else {}

    @cached_property
    def overrides(self) -> list[str]:
        """What the command line set, one `key=value` each."""
        loaded = _read_yaml(self.folder.overrides)
        return [str(one) for one in loaded] if isinstance(loaded, list) else []

    @property
    def overridden(self) -> list[str]:
        """The groups and keys that the command line set, in its order."""
        return [one.lstrip("+~").partition("=")[0] for one in self.overrides]

    @cached_property
    def record(self) -> dict[str, Any]:
        """result.json as it stands; empty while the run lasts, or when the file is broken."""
        return _read_json_object(self.folder.result)

    @cached_property
    def result(self) -> Result:
        """result.json, checked and typed. Raises GolfError when it is missing, broken or of a newer schema."""
        from golf.runs.record import Result

        return Result.read(self.folder.result)

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl. Raises DataError when a line in the middle is broken."""
        return read_metrics(self.folder.metrics) if self.folder.metrics.exists() else []

    @cached_property
    def evals(self) -> dict[str, dict[str, Any]]:
        """The later evaluations under evals/, by name."""
        return {file.stem: _read_json_object(file) for file in sorted(self.folder.evals.glob("*.json"))}

    @property
    def status(self) -> str:
        """`completed`, `interrupted` or `failed` as recorded; without a record `prepared`, `running`, or `failed` if it
        died."""
        if "status" in self.record:
            return str(self.record["status"])
        liveness = self.folder.liveness()
        return "failed" if liveness == "finished" else liveness

    @property
    def valid(self) -> bool:
        """Whether the run was completed within every limit."""
        return bool(self.record.get("valid", False))

    def columns(self, *names: str) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
        """Metrics as float64 arrays of shape [rows], NaN where a row has no such number; all of them by default.

        Only rows that have at least one of the `names` (axes aside) are kept, so that `columns("step", "val_bpb")`
        can be plotted as it is.
        """
        import numpy as np

        rows = self.metrics
        wanted = names or tuple(dict.fromkeys(name for row in rows for name, value in row.items() if _number(value)))
        measured = [name for name in wanted if name not in ("step", "tokens", "train_time_s")] or list(wanted)
        kept = [row for row in rows if any(_number(row.get(name)) for name in measured)]
        return {
            name: np.array([row[name] if _number(row.get(name)) else np.nan for row in kept], dtype=np.float64)
            for name in wanted
        }

    def get(self, key: str, default: Any = None) -> Any:
        """A value by its dotted name: `status`, `valid`, `name` (given, else the folder's), a key of the config, the
        option that a group was composed from (`recipe`, `optimizer`, `model/attention`, …), or a field of
        result.json."""
        if key == "name":
            return self.config.get("name") or self.name
        if key in ("status", "valid", "dir"):
            return getattr(self, key)
        value = dig(self.config, key, _MISSING)
        if value is _MISSING or isinstance(value, dict):
            for one in reversed(self.overrides):
                name, equals, chosen = one.lstrip("+~").partition("=")
                if equals and name == key:
                    return _scalar(chosen)
            choices = self.config.get("choices")
            if isinstance(choices, dict) and key in choices:
                return choices[key]
        if value is _MISSING:
            value = dig(self.record, key, _MISSING)
        return default if value is _MISSING else value

    def __repr__(self) -> str:
        figures = [f"{name.split('.')[-1]} {_show(value)}" for name, value in self._figures() if name.startswith("val")]
        return f"Run({str(self.dir)!r}: {', '.join([self.status, *figures])})"

    def _repr_html_(self) -> str:
        facts = [("status", self.status + ("" if self.valid or not self.record else ", not valid")), *self._figures()]
        facts += [("overrides", " ".join(self.overrides))]
        cells = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th><td>{html.escape(_show(value))}</td></tr>"
            for name, value in facts
        )
        return f"<table><caption>{html.escape(str(self.dir))}</caption>{cells}</table>"

    def _figures(self) -> list[tuple[str, Any]]:
        found = ((name, dig(self.record, name)) for name in _FIGURES)
        return [(name, value) for name, value in found if value is not None]


def load_run(directory: Path | str) -> Run:
    """Open a run folder. Raises GolfError when there is none at `directory`."""
    path = Path(directory).expanduser()
    if not path.is_dir():
        raise GolfError(f"{path} is not a folder")
    if not _is_run({entry.name for entry in os.scandir(path)}):
        raise GolfError(f"{path} holds no run (no metrics.jsonl, result.json, or config.yaml with overrides.yaml)")
    return Run(path)


def find_runs(*roots: Path | str) -> list[Run]:
    """Every run below `roots` (default: outputs and multirun here), ordered by path with numbers as numbers.

    Raises GolfError for a root that was named and does not exist.
    """
    for root in roots:
        if not Path(root).expanduser().is_dir():
            raise GolfError(f"{root} is not a folder")
    given = [Path(root).expanduser() for root in roots] or [Path("outputs"), Path("multirun")]
    found = {path.absolute(): Run(path) for root in given if root.is_dir() for path in _walk(root)}
    return [found[path] for path in sorted(found, key=_natural)]


def filter_runs(runs: Iterable[Run], expressions: str | Iterable[str]) -> list[Run]:
    """The runs that satisfy every expression: a dotted name, one of `= != < <= > >=`, and a value.

    `optimizer.matrix_lr=0.02`, `val_bpb.post_quant<1.3`, `recipe=naive*` (a pattern), `seed=1,2` (any of them),
    `git.commit=null`. A run that lacks the name satisfies only `=null` and `!=value`. Raises GolfError for an
    expression that cannot be read, and for a name that no run has.
    """
    kept = list(runs)
    if not kept:
        return []
    everything = list(kept)
    for expression in [expressions] if isinstance(expressions, str) else expressions:
        key, test = _parse(expression)
        _must_exist(everything, key)
        kept = [run for run in kept if test(run.get(key))]
    return kept


def best(
    runs: Iterable[Run], metric: str = "val_bpb.post_quant", largest: bool = False, valid_only: bool = True
) -> Run | None:
    """The run with the smallest (or largest) `metric`, among valid ones; None when no run has that number.

    Raises GolfError for a name that no run has.
    """
    everything = list(runs)
    if everything:
        _must_exist(everything, metric)
    ranked = [run for run in everything if _number(run.get(metric)) and (run.valid or not valid_only)]
    if not ranked:
        return None
    return (max if largest else min)(ranked, key=lambda run: float(run.get(metric)))


def runs_table(runs: Sequence[Run], max_settings: int = 8) -> Table:
    """A rich table of runs: name, state, the settings in which they differ, and the final figures.

    Settings that all runs share, and those that only follow from another, are left out and counted in the caption; of
    more than `max_settings` those set on the command line come first.
    """
    from rich.table import Table

    flat = [dict(flatten(run.config)) for run in runs]
    settings, shared, more = _differing(runs, flat, max_settings)
    figures = [name for name in _FIGURES if any(_number(run.get(name)) for run in runs)]
    caption = f"{len(runs)} runs; {shared} settings are the same in all" if len(runs) > 1 else ""
    table = Table(caption=caption + (f"; {more} more differ" if more else ""), caption_justify="left")
    table.add_column("run", overflow="fold")
    table.add_column("state")
    for name in last_parts(settings):
        table.add_column(name, justify="right", style="cyan")
    for name in figures:
        table.add_column(name.removeprefix("val_"), justify="right")
    for run, values in zip(runs, flat):
        state = run.status if run.valid or run.status != "completed" else "not valid"
        cells = [_show(values.get(name)) for name in settings] + [_show(run.get(name)) for name in figures]
        table.add_row(run.name, state, *cells)
    return table


def _walk(root: Path) -> Iterator[Path]:
    """Run folders at or below `root`; inside a run, and in hidden folders, there is nothing to look for."""
    for directory, folders, files in os.walk(root):
        if _is_run(set(files)):
            folders.clear()
            yield Path(directory)
        else:
            folders[:] = [name for name in folders if not name.startswith(".") and name != "wandb"]


def _is_run(names: set[str]) -> bool:
    return bool({"metrics.jsonl", "result.json"} & names) or {"config.yaml", "overrides.yaml"} <= names


def _natural(path: Path) -> list[tuple[int, int, str]]:
    parts = re.split(r"(\d+)", str(path))
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts if part]


_EXPRESSION = re.compile(r"\s*([A-Za-z_][\w./-]*)\s*(<=|>=|!=|==|=|<|>)\s*(.*?)\s*", re.DOTALL)
_ORDER: dict[str, Callable[[float, float], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


def _parse(expression: str) -> tuple[str, Callable[[Any], bool]]:
    """A filter expression as its name and a test of the value found there."""
    match = _EXPRESSION.fullmatch(expression)
    if match is None or not match.group(3):
        raise GolfError(f"{expression!r} is no filter: write name=value, or one of != < <= > >= (val_bpb.sliding<1.2)")
    key, operator, text = match.groups()
    if operator in _ORDER:
        bound = _scalar(text)
        if not _number(bound):
            raise GolfError(f"{expression!r}: {operator} compares numbers, and {text!r} is none")
        compare = _ORDER[operator]
        return key, lambda value: _number(value) and compare(float(value), float(bound))
    wanted = [_scalar(text), *(_scalar(part) for part in text.split(","))]
    if operator == "!=":
        return key, lambda value: not any(_equal(value, one) for one in wanted)
    return key, lambda value: any(_equal(value, one) for one in wanted)


def _equal(value: Any, wanted: Any) -> bool:
    if isinstance(value, list):
        return any(_equal(one, wanted) for one in value)
    if _number(value) and _number(wanted):
        return float(value) == float(wanted)
    if isinstance(value, (bool, type(None))) or isinstance(wanted, (bool, type(None))):
        return value is wanted
    return fnmatchcase(_show(value) if not isinstance(value, float) else repr(value), str(wanted))


def _scalar(text: str) -> Any:
    """A word of a command line as what it means: null, true, false, a number, or itself."""
    word = text.strip()
    if word in ("null", "None", "~"):
        return None
    if word.lower() in ("true", "false"):
        return word.lower() == "true"
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word.strip("'\"")


def _must_exist(runs: Sequence[Run], key: str) -> None:
    if any(run.get(key, _MISSING) is not _MISSING for run in runs):
        return
    # a run still going has no result yet, so the names of a record count as known
    known = {name for run in runs for part in (run.config, run.record) for name, _ in flatten(part)} | {*_FIGURES}
    if key not in known:
        raise GolfError(f"no run has {key} {did_you_mean(key, known | {'status', 'valid', 'name'})}".rstrip())


def _differing(runs: Sequence[Run], flat: Sequence[dict[str, Any]], most: int) -> tuple[list[str], int, int]:
    """The settings to show, how many are shared, and how many more differ."""
    names = list(dict.fromkeys(name for values in flat for name in values))
    shared = {name for name in names if all(values.get(name, _MISSING) == flat[0].get(name) for values in flat)}
    folders = [str(run.dir.absolute()) for run in runs]
    differing = [
        name
        for name in names
        if name not in shared
        # a run's own folder differs always and says nothing
        and not any(folder in str(values.get(name)) for folder, values in zip(folders, flat))
    ]
    chosen = {name for run in runs for name in run.overridden}
    first = [name for name in differing if name.removeprefix("choices.") in chosen]
    values = {name: [str(one.get(name)) for one in flat] for name in differing}
    shown = telling(first, differing, values)[:most]
    return shown, len(shared), len(differing) - len(shown)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _show(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.5g}"
    return f"{value:,}" if isinstance(value, int) and abs(value) >= 100_000 else str(value)


def _read_yaml(path: Path) -> Any:
    import yaml

    try:
        with open(path, "rb") as file:
            # libyaml's safe loader is ten times quicker and, like safe_load, builds nothing but plain data
            return yaml.load(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, yaml.YAMLError):
        return None


def _read_json_object(path: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return loaded if isinstance(loaded, dict) else {}
