"""Runs read back: open one (`load_run`), find many (`find_runs`), filter and rank them.

Nothing is read before it is asked for and torch is never imported, so that listing hundreds of runs is quick.
"""

from __future__ import annotations

import html
import math
import os
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from golf.common.bounded import MOST_YAML, parse_yaml, read_bytes, read_json
from golf.common.errors import DataError, GolfError, did_you_mean
from golf.runs.dotted import dig, flatten
from golf.runs.figures import (
    FINAL,
    POST_QUANT,
    PRE_QUANT,
    SLIDING,
    Sorting,
    basis,
    filled,
    is_score,
    sort_out,
)
from golf.runs.filters import number, parse, scalar, show
from golf.runs.folder import AXES, RunFolder, each_row, read_metrics
from golf.runs.states import State, state_of, verdict

if TYPE_CHECKING:
    import numpy as np

    from golf.runs.record import Result
FIGURES = (PRE_QUANT, POST_QUANT, SLIDING, FINAL, "bytes.artifact", "steps", "train_time_s")
"""What a table of runs shows."""
MOST_CELLS = 50_000_000
"""Numbers of `columns`, eight bytes each."""
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
    def _config_text(self) -> bytes | None:
        return _read(self.folder.config)

    @cached_property
    def _written(self) -> dict[str, Any]:
        return _read_json_object(self.folder.result)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved config, nested; empty when there is none."""
        loaded = _parse_yaml(self._config_text)
        return loaded if isinstance(loaded, dict) else {}

    @cached_property
    def overrides(self) -> list[str]:
        """What the command line set, one `key=value` each."""
        loaded = _parse_yaml(_read(self.folder.overrides))
        return [str(one) for one in loaded] if isinstance(loaded, list) else []

    @property
    def overridden(self) -> list[str]:
        """The groups and keys that the command line set, in its order."""
        return [one.lstrip("+~").partition("=")[0] for one in self.overrides]

    @cached_property
    def record(self) -> dict[str, Any]:
        """result.json as it stands; empty while the run lasts, or when the file is broken."""
        return filled(self._written)

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

    def disagreements(self, whole: bool = False) -> list[str]:
        """Which parts of the record do not agree with each other, a sentence each; see golf.runs.seal."""
        from golf.runs.seal import disagreements

        return disagreements(self.folder, self._written, self._config_text, whole=whole)

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

    @property
    def state(self) -> State:
        """Status and validity in one word: `completed` is within every limit, `invalid` completed but over one."""
        return state_of(self.status, self.valid, str(self.record.get("error") or ""))

    @property
    def verdict(self) -> str:
        """The state, and what an invalid run is over: `invalid: over artifact bytes`."""
        told = self.record.get("violations")
        return verdict(self.state, [str(one) for one in told] if isinstance(told, list) else [])

    def columns(self, *names: str) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
        """Metrics as float64 arrays of shape [rows], NaN where a row has no such number; all of them by default.

        Only rows that have at least one of the `names` (axes aside) are kept, so that `columns("step", "val_bpb")`
        can be plotted as it is.
        """
        import numpy as np

        wanted = names or self._measured()
        measured = [name for name in wanted if name not in AXES] or list(wanted)
        found = {name: array("d") for name in wanted}
        for row in self._rows():
            if any(number(row.get(name)) for name in measured):
                for name, column in found.items():
                    column.append(row[name] if number(row.get(name)) else math.nan)
        return {name: np.array(column, dtype=np.float64) for name, column in found.items()}

    def _rows(self) -> Iterator[dict[str, Any]]:
        """The rows of metrics.jsonl, one after another."""
        return each_row(self.folder.metrics) if self.folder.metrics.exists() else iter(())

    def _measured(self) -> tuple[str, ...]:
        """The metrics of all rows. Raises DataError for more of them than fit into memory as columns."""
        names: dict[str, None] = {}
        rows = 0
        for row in self._rows():
            rows += 1
            names.update(dict.fromkeys(name for name, value in row.items() if name not in names and number(value)))
        if len(names) * rows > MOST_CELLS:
            raise DataError(f"{self.folder.metrics}: {len(names):,} metrics of {rows:,} rows; name those that you want")
        return tuple(names)

    def get(self, key: str, default: Any = None) -> Any:
        """A value by its dotted name: `status`, `valid`, `state`, `name` (given, else the folder's), a key of the
        config, the option that a group was composed from (`recipe`, `optimizer`, `model/attention`, …), or a field of
        result.json."""
        if key == "name":
            return self.config.get("name") or self.name
        if key in ("status", "valid", "state", "dir"):
            return getattr(self, key)
        value = dig(self.config, key, _MISSING)
        if value is _MISSING or isinstance(value, dict):
            for one in reversed(self.overrides):
                name, equals, chosen = one.lstrip("+~").partition("=")
                if equals and name == key:
                    return scalar(chosen)
            choices = self.config.get("choices")
            if isinstance(choices, dict) and key in choices:
                return choices[key]
        if value is _MISSING:
            value = dig(self.record, key, _MISSING)
        return default if value is _MISSING else value

    def __repr__(self) -> str:
        figures = [f"{name.split('.')[-1]} {show(value)}" for name, value in self._figures() if name.startswith("val")]
        return f"Run({str(self.dir)!r}: {', '.join([self.state, *figures])})"

    def _repr_html_(self) -> str:
        facts = [("state", self.verdict), *self._figures()]
        facts += [("overrides", " ".join(self.overrides))]
        cells = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th><td>{html.escape(show(value))}</td></tr>"
            for name, value in facts
        )
        return f"<table><caption>{html.escape(str(self.dir))}</caption>{cells}</table>"

    def _figures(self) -> list[tuple[str, Any]]:
        found = ((name, dig(self.record, name)) for name in FIGURES)
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
        key, test = parse(expression)
        _must_exist(everything, key)
        kept = [run for run in kept if test(run.get(key))]
    return kept


def best(runs: Iterable[Run], metric: str = POST_QUANT, largest: bool = False, valid_only: bool = True) -> Run | None:
    """The run with the smallest (or largest) `metric`, among valid ones; None when no run has that number.

    Of a bpb only runs that are scored as most of them are count: on the same text by the same rules. Raises GolfError
    for a name that no run has.
    """
    everything = list(runs)
    if everything:
        _must_exist(everything, metric)
    ranked = [run for run in everything if number(run.get(metric)) and (run.valid or not valid_only)]
    ranked = [run for run, kind in zip(ranked, sorting(ranked, metric).numbers) if kind == 0]
    if not ranked:
        return None
    return (max if largest else min)(ranked, key=lambda run: float(run.get(metric)))


def sorting(runs: Sequence[Run], metric: str) -> Sorting:
    """Which of these runs may be compared by `metric`; all of them by what is no bpb."""
    if not is_score(metric):
        return Sorting([0] * len(runs), [""] * len(runs))
    return sort_out([basis(run.record, metric) for run in runs])


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


def _must_exist(runs: Sequence[Run], key: str) -> None:
    if any(run.get(key, _MISSING) is not _MISSING for run in runs):
        return
    # a run still going has no result yet, so the names of a record count as known
    known = {name for run in runs for part in (run.config, run.record) for name, _ in flatten(part)} | {*FIGURES}
    if key not in known:
        raise GolfError(f"no run has {key} {did_you_mean(key, known | {'status', 'valid', 'state', 'name'})}".rstrip())


def _read(path: Path) -> bytes | None:
    try:
        return read_bytes(path, MOST_YAML)
    except (OSError, ValueError):
        return None


def _parse_yaml(text: bytes | None) -> Any:
    try:
        return None if text is None else parse_yaml(text)
    except ValueError:
        return None


def _read_json_object(path: Path) -> dict[str, Any]:
    try:
        loaded = read_json(path)
    except (OSError, ValueError):
        return {}
    return loaded if isinstance(loaded, dict) else {}
