"""`golf size`: how many bytes a recipe's artifact will take, before it is trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from golf.cli.tables import Column, Table, print_table
from golf.common.errors import ConfigError, GolfError
from golf.runs.dotted import last_parts

if TYPE_CHECKING:
    from golf.launch.work.bench import BenchJob
    from golf.launch.work.forecast import Forecast, Stored

PAGE = """golf size [--config-dir DIR] [-m] [--json] [group=option] [key=value] …

Forecasts the bytes of the artifact that a training (every group and key of `golf train`) will leave: the model's shapes
are filled with noise as large as weights come to be, quantized by the config's own quantizer, and given to its codec.
Takes seconds, needs no data and no GPU, writes nothing.

Prints the bytes by place and by layer, then model, code, the limit (budget.artifact_bytes) and what is left of it. The
range beside the model is 2 % up and down where grids go with the weights (quant.k), and wider where steps are fixed, so
that bytes depend on how far weights grow (int8, int6, gradguided: schedule.iterations says for how long). Where
quant.fit is set, it says what the fit reaches, and how many times as wide steps become.

  -m      several values, and a table that compares them
  --json  all of it as JSON, every tensor too

  golf size recipe=frontier quant.fit=null model.num_layers=12
  golf size recipe=frontier -m model.mlp_mult=3,4 codec=ans,brotli quant.fit=null

Exit code 3: the forecast is over the limit (one job; a table shows it).
"""


def run(argv: list[str]) -> int:
    """Check, then forecast. Raises ConfigError for a mistake, GolfError where nothing can be foretold."""
    if any(word in ("--help", "-h") for word in argv):
        print(PAGE, end="")
        return 0
    as_json = "--json" in argv
    jobs = read([word for word in argv if word != "--json"])
    from golf.launch.work.forecast import forecast

    if len(jobs) == 1:
        one = forecast(jobs[0].config)
        if as_json:
            print(json.dumps({"overrides": jobs[0].overrides, **one.as_dict()}, indent=1))
        else:
            for table in tables(jobs[0], one):
                print_table(table)
        return 3 if one.left < 0 else 0
    found: list[Forecast | GolfError] = []
    for job in jobs:
        try:
            found.append(forecast(job.config))
        except GolfError as error:
            found.append(error)
    if as_json:
        rows = [{"overrides": job.overrides, **plain(told)} for job, told in zip(jobs, found, strict=True)]
        print(json.dumps(rows, indent=1))
    else:
        print_table(comparison(jobs, found))
    return 1 if any(isinstance(told, GolfError) for told in found) else 0


def read(argv: Sequence[str]) -> list[BenchJob]:
    """The jobs of the line. Raises ConfigError."""
    from golf.launch.compose.line import CommandLine, refuse_unused
    from golf.launch.work.bench import compose_jobs

    line = CommandLine.parse(argv, ("run",))
    if run := next((word for word in line.overrides if word.startswith("run=")), None):
        raise ConfigError(f"{run}: the bytes of a finished run are in its record: golf runs show {run[4:]}")
    refuse_unused(line, "size", "sweep", "logger")
    return compose_jobs(line.overrides, line.config_dirs, line.multirun, here=False)


def plain(found: Forecast | GolfError) -> dict[str, Any]:
    """A job's part of the JSON."""
    return {"error": str(found)} if isinstance(found, GolfError) else found.as_dict()


def tables(job: BenchJob, found: Forecast) -> list[Table]:
    """What one config's bytes are made of."""
    places = Table(
        Column("place", right=False), Column("role", drop=3, right=False), Column("tensors", drop=2),
        Column("values", drop=1), Column("bits"), Column("k"), Column("bytes"), Column("share", drop=4),
        title=f"{job.name}, forecast",
    )  # fmt: skip
    for place, tensors in found.by(lambda one: one.place).items():
        places.add_row(place, tensors[0].role, str(len(tensors)), f"{sum(one.values for one in tensors):,}",
                       spoken(one.bits for one in tensors), spoken(one.k for one in tensors),
                       *taken(tensors, found))  # fmt: skip
    layers = Table(Column("layer", right=False), Column("values", drop=1), Column("bytes"), Column("share", drop=2))
    for layer, tensors in found.by(lambda one: "outside" if one.layer is None else str(one.layer)).items():
        layers.add_row(layer, f"{sum(one.values for one in tensors):,}", *taken(tensors, found))
    total = Table(Column("what", right=False), Column("bytes"), Column("", right=False, prose=True), header=False)
    for name, count, text in summary(found):
        total.add_row(name, f"{count:,}", text)
    return [places, layers, total]


def taken(tensors: Sequence[Stored], found: Forecast) -> tuple[str, str]:
    """Bytes and share of these tensors."""
    size = sum(one.bytes for one in tensors)
    return f"{size:,.0f}", f"{size / found.model:.1%}"


def spoken(values: Any) -> str:
    """Different numbers of a place, in their order."""
    return ", ".join(f"{one:.4g}" for one in sorted({one for one in values if one is not None}))


def summary(found: Forecast) -> list[tuple[str, int, str]]:
    """The last table: what a user asks first."""
    if found.times is None:
        told = f"from {found.least:,} to {found.most:,}, after {found.steps:,} steps"
    else:
        told = f"fitted: steps {found.times:.3f} times as wide"
    return [
        ("model", found.model, told),
        ("code", found.code, found.code_is),
        ("artifact", found.artifact, ""),
        ("limit", found.limit, ""),
        ("left", found.left, "" if found.left >= 0 else f"over the limit by {-found.left / found.limit:.1%}"),
    ]


def comparison(jobs: Sequence[BenchJob], found: Sequence[Forecast | GolfError]) -> Table:
    """One row a job."""
    keys = list(dict.fromkeys(key for job in jobs for key in job.swept))
    table = Table(
        *(Column(head, name=key, right=False, shorten=True) for key, head in zip(keys, last_parts(keys))),
        Column("values", drop=2), Column("model bytes"), Column("from", drop=4), Column("to", drop=3),
        Column("with code"), Column("left"), Column("steps wider", drop=1), title="artifacts, forecast",
    )  # fmt: skip
    for number, (job, one) in enumerate(zip(jobs, found, strict=True)):
        cells = [job.swept.get(key, "") for key in keys]
        if isinstance(one, GolfError):
            table.add_row(*cells, "", "not known")
            table.notes.append(f"job {number}: {one}")
            continue
        table.add_row(
            *cells, f"{sum(tensor.values for tensor in one.tensors):,}", f"{one.model:,}", f"{one.least:,}",
            f"{one.most:,}", f"{one.artifact:,}", f"{one.left:,}", "" if one.times is None else f"{one.times:.3f}",
            style="yellow" if one.left < 0 else None,
        )  # fmt: skip
    return table
