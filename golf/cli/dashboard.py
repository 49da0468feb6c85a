"""`golf dashboard`: a wandb workspace for a sweep, published where a key exists, else written to a file."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from golf.cli.chosen import Chosen
from golf.common.errors import GolfError, reason
from golf.common.files import atomic_writer

FLAGS = dict.fromkeys(("--project", "--entity", "--name", "--metric", "--out"), "a value must follow")

PAGE = """golf dashboard [DIR …] [FILTER …] [--project NAME] [--entity NAME] [--name TEXT] [--metric NAME] [--out FILE]

Builds a wandb workspace for the runs below the DIRs (outputs/ and multirun/ here, when none is named): bpb and loss
by tokens and by training time, bpb against artifact bytes, parallel coordinates over the keys in which the runs
differ, and their speed. It shows the runs' groups; upload offline runs with `wandb sync` first or later.

With a wandb key (WANDB_API_KEY, or `wandb login`) the workspace is published, and its address is the last line.
Without one, or under WANDB_MODE=offline, its definition is written to a file, whose path is the last line.

  FILTER            as for golf runs: seed=1, recipe=naive*, 'val_bpb.post_quant<1.3'
  --project, --entity   where it goes; by default where most of the runs were logged
  --name TEXT       the workspace's name; by default the DIRs
  --metric NAME     as for golf report: val_bpb.final, val_bpb.sliding, val_bpb.post_quant, val_bpb.pre_quant
  --out FILE        write the definition there, and publish nothing

  golf dashboard multirun/2026-11-20/14-03-11_quickstart_8c1f
  golf dashboard multirun/ recipe=quickstart --out workspace.json
"""


def parse(argv: Sequence[str]) -> Chosen:
    """Take the line apart. Raises ConfigError for a mistake."""
    return Chosen.parse("golf dashboard", argv, FLAGS)


def run(argv: list[str]) -> int:
    """Build, then publish or write. Raises ConfigError for a mistake, GolfError where there is nothing to show."""
    if any(word in ("--help", "-h") for word in argv):
        print(PAGE, end="")
        return 0
    from golf.runs.dashboard import Place, check_name, left_out, plain_name, serialised, workspace
    from golf.runs.loggers import has_wandb_key
    from golf.runs.wandb_environment import accepted, kept_off

    line = parse(argv)
    values = line.values
    project, entity = (accepted(key, values.get(f"--{key}"), f"--{key}") or "" for key in ("project", "entity"))
    check_name(values.get("--name", "golf"))
    runs = line.runs()
    place = Place.of(runs, project, entity)
    name = values.get("--name") or plain_name(f"golf: {', '.join([line.where, *line.filters])}")
    built = workspace(runs, place, name, values.get("--metric"))
    if apart := left_out(runs, values.get("--metric")):
        print(apart, file=sys.stderr)
    off = kept_off(os.environ)
    if has_wandb_key() and "--out" not in values and not off:
        print(publish(built))
        return 0
    out = Path(values.get("--out") or "wandb_workspace.json").expanduser()
    try:
        with atomic_writer(out, "w") as file:
            file.write(serialised(built))
    except (GolfError, OSError) as error:
        told = error if isinstance(error, GolfError) else f"cannot write {out}: {error.strerror}"
        raise GolfError(f"{told}\n--out FILE names another") from error
    if "--out" not in values:
        why, once = ("there is no wandb key here", "once `wandb login` has one") if not off else (off, "without it")
        print(f"{why}, so nothing was published; to publish, {once}:")
        print(f"  {shlex.join(['golf', 'dashboard', *argv])}")
    print(out)
    return 0


def publish(built: object) -> str:
    """Save the workspace on the server; its address. Raises GolfError where the server refuses or is not reached."""
    import wandb

    try:
        if not built.entity:  # type: ignore[attr-defined]
            built.entity = wandb.Api(timeout=30).default_entity  # type: ignore[attr-defined]
        return str(built.save().url)  # type: ignore[attr-defined]
    except Exception as error:  # the library raises requests', wandb's and its own
        raise GolfError(
            f"wandb did not take the workspace ({reason(error)})\n--out FILE writes its definition"
        ) from error
