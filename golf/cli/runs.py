"""`golf runs`: list, filter and compare runs. Reads their records alone, so it is quick (torch is never imported)."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from golf.cli.chosen import Chosen
from golf.common.errors import ConfigError, GolfError
from golf.common.shown import plain_text
from golf.runs.dotted import dig, of_kind
from golf.runs.figures import is_score
from golf.runs.filters import number
from golf.runs.listing import runs_table
from golf.runs.seal import is_sealed
from golf.runs.store import Run, best, load_run, sorting
from golf.runs.tables import Column, Table

FLAGS = {
    **dict.fromkeys(("--sort", "--best"), "a name must follow, such as val_bpb.post_quant"),
    "--columns": "names must follow, such as run,seed,val_bpb.post_quant, or all",
}

PAGE = """golf runs [ROOT …] [FILTER …] [--sort KEY] [--best METRIC] [--columns NAMES] [--json]
golf runs show DIR

Lists the runs below the ROOTs (outputs/ and multirun/ here, when none is named), with the settings in which they
differ and their final figures; `show` prints one run: what it set, its closing table, its later evaluations.

  FILTER           name=value, or one of != < <= > >= between a dotted name of the config or of result.json and a
                   value: optimizer.matrix_lr=0.02, 'val_bpb.post_quant<1.3', recipe=naive*, seed=1,2, state=invalid
  --sort KEY       ascending by such a name; -KEY descending; runs without it come last. By a score (val_bpb.…) valid
                   runs come first, and those scored on the same text by the same rules stand together
  --best METRIC    only the valid run whose METRIC is smallest; its folder is the last line. Runs scored on other text
                   or by other rules than most are left out, and said so
  --columns NAMES  run, state, or such names, with commas: these columns and no others; all: everything in which the
                   runs differ. A narrow terminal leaves out what matters least, and says so; a pipe nothing
  --json           the runs as JSON: dir, status, valid, overrides, config, result

  golf runs multirun/ valid=true --sort val_bpb.post_quant
  golf eval run="$(golf runs 'steps>=300' --best val_bpb.sliding | tail -n 1)" eval.stride=32
"""


def parse(argv: Sequence[str]) -> Chosen:
    """Take the line apart. Raises ConfigError for a mistake."""
    return Chosen.parse("golf runs", argv, FLAGS, ("--json",))


def run(argv: list[str]) -> int:
    """List or show. Raises ConfigError for a mistake on the line, GolfError for names that no run has."""
    if any(word in ("--help", "-h") for word in argv):
        print(PAGE, end="")
        return 0
    if argv and argv[0] == "show":
        if len(argv) != 2:
            raise ConfigError("golf runs show takes one folder: golf runs show DIR")
        show(load_run(argv[1]))
        return 0
    line = parse(argv)
    runs, metric = line.find(), line.values.get("--best")
    if "--sort" in line.values:
        runs = ordered(runs, line.values["--sort"])
    if metric:
        chosen = best(runs, metric)
        if chosen is None and runs:
            raise GolfError(f"no valid run here has a number {metric}")
        having = [one for one in runs if one.valid and isinstance(one.get(metric), int | float)]
        if told := sorting(having, metric).left_out(metric):
            print(told, file=sys.stderr)
        for one in chosen.disagreements(whole=True) if chosen else ():
            print(f"its record is altered: {one}", file=sys.stderr)
        runs = [chosen] if chosen else []
    if "--json" in line.switches:
        print(json.dumps([plain(one) for one in runs], indent=1, default=str))
    elif not runs:
        print(line.none)
    else:
        print_table(runs_table(runs, columns=line.values.get("--columns", "")))
        if metric:
            print(runs[0].dir)
    return 0


def print_table(table: Table) -> None:
    """Print a table."""
    from golf.cli import tables

    tables.print_table(table)


def ordered(runs: Sequence[Run], key: str) -> list[Run]:
    """Runs by a dotted name, numbers before texts; those without it last, and by a score valid runs before others
    and those that are scored alike together.

    Raises GolfError when no run has it.
    """
    name = key.removeprefix("-")
    values = [one.get(name) for one in runs]
    if runs and all(value is None for value in values):
        raise GolfError(f"--sort {key}: no run has {name}")
    present = [index for index, value in enumerate(values) if value is not None]

    def rank(index: int) -> tuple[bool, Any]:
        value = values[index]
        number = isinstance(value, int | float)
        return (not number, value if number else str(value))

    present.sort(key=rank, reverse=key != name)
    if is_score(name):
        kinds = dict(zip(present, sorting([runs[index] for index in present], name).numbers))
        present.sort(key=lambda index: (not runs[index].valid, kinds[index]))
    return [runs[index] for index in present] + [one for one, value in zip(runs, values) if value is None]


def plain(run: Run) -> dict[str, Any]:
    """A run as JSON types."""
    return {
        "dir": str(run.dir), "name": run.name, "status": run.status, "valid": run.valid,
        "overrides": run.overrides, "config": run.config, "result": run.record,
    }  # fmt: skip


def show(run: Run) -> None:
    """One run on a page; its folder is the last line."""
    from golf.runs.screen import final_table

    print(plain_text("\n".join(facts(run))))
    if run.evals:
        print_table(evals_table(run))
    if run.record:
        print(final_table(run.result, run.dir, run.config.get("published")))
    else:
        print(run.dir)


def facts(run: Run) -> Iterator[str]:
    """What the run was: state, what its command line set, its technique and group choices."""
    record = run.record
    yield f"run        {run.name}"
    yield f"state      {run.verdict}"
    if record:
        found = run.disagreements(whole=True)
        yield from (f"record     altered: {one}" for one in found)
        if not found:
            yield f"record     {'its parts agree' if is_sealed(record) else 'unsealed, as records from before were'}"
    yield f"overrides  {' '.join(run.overrides) or 'none'}"
    choices = run.config.get("choices")
    if isinstance(choices, dict):
        told = [f"{group}={one}" for group, one in sorted(choices.items()) if one not in (None, "none", "default")]
        yield f"groups     {' '.join(told)}"
    if record.get("started"):
        machine = of_kind(record.get("hardware"), dict)
        devices = [dig(gpu, "name", "") for gpu in of_kind(machine.get("gpus"), list)] or [machine.get("cpu", "")]
        yield f"trained    {record['started']} on {devices[0]} x {dig(record, 'numerics.nproc', 1)}"
    versions = of_kind(record.get("versions"), dict)
    if versions:
        git = of_kind(record.get("git"), dict)
        commit = f", commit {str(git.get('commit'))[:10]}{' with changes' if git.get('dirty') else ''}" if git else ""
        yield f"software   golf {versions.get('golf')}, torch {versions.get('torch')}{commit}"


def evals_table(run: Run) -> Table:
    """The evaluations made since the run ended."""
    changed = any(record.get("same_data") is False for record in run.evals.values())
    table = Table(
        Column("evals/", right=False, shorten=True), Column("method", right=False, drop=2), Column("stride", drop=1),
        Column("val_bpb"), Column("gap", drop=3), Column("model bytes", drop=4), Column("seconds", drop=5),
        *([Column("", right=False)] if changed else []), title="later evaluations",
    )  # fmt: skip
    for name, record in run.evals.items():
        score = of_kind((of_kind(record.get("evals"), list) or [record])[-1], dict)
        counted = record.get("bytes")
        table.add_row(
            name, _cell(score.get("method")), _cell(score.get("stride")), _cell(score.get("val_bpb"), ".4f"),
            _cell(record.get("gap"), "+.4f"), _cell(counted.get("model") if isinstance(counted, dict) else None, ","),
            _cell(score.get("seconds"), ".1f"),
            *(["other data"] * (record.get("same_data") is False) or [""] if changed else []),
        )  # fmt: skip
    if changed:
        table.notes.append("other data: the data has changed since training, and the figure does not compare")
    return table


def _cell(value: Any, form: str = "") -> str:
    """A value of a record, which may hold anything, as it is shown."""
    return "" if value is None else format(value, form) if number(value) or not form else str(value)
