"""`golf train`: check the command line, then let Hydra run it."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import replace

from golf.common.errors import ConfigError, WorkerFailed
from golf.launch.compose.again import again
from golf.launch.compose.configs import Checker, composer, told_where
from golf.launch.compose.line import CommandLine, refuse_lone, refuse_trust
from golf.launch.compose.options import groups, options

PAGE = """golf train [--config-dir DIR] [-m] [--prepare] [group=option] [key=value] …

Trains a model, quantizes it into an artifact, scores what was read back, and leaves a run folder under outputs/
(multirun/ for a sweep). Nothing given means recipe=quickstart: two minutes on two CPU cores.

Groups and their options (group=option):
{groups}
A few keys (key=value; a bare name is completed when only one key ends so, num_layers=6):
  model.num_layers model.model_dim model.num_heads model.num_kv_heads model.mlp_mult
  train_batch_tokens train_seq_len seed val_every log_every val_tokens eval_all_stages
  optimizer.matrix_lr optimizer.tied_embed_lr optimizer.scalar_lr optimizer.momentum
  schedule.iterations schedule.warmdown_iters budget.train_seconds budget.fraction eval.stride runtime.nproc

Commands worth knowing:
  golf train recipe=naive_baseline budget=smoke            half a minute: does it run at all?
  golf train recipe=quickstart -m seed=1,2 optimizer.matrix_lr=0.02,0.04      a sweep of four runs
  golf train -m sweep=ablate recipe=gradquant_11l hydra.launcher.jobs=2       each technique off in turn, two at a time
  golf train -m sweep=tpe 'optimizer.matrix_lr=log(0.01,0.1)' val_every=100 sweep.trials=40    a search with Optuna
  golf train recipe=naive_baseline data=text 'data.paths=[corpus/]' budget=proxy budget.fraction=0.01
  golf train -m run=DIR seed=2,3,4                          a run's config again, with other seeds
  golf train resume=DIR                                    a run that ended early goes on from its last checkpoint
  golf train --config-dir mine/ -m technique/mine=none,v1  your own technique, with and without
  golf train --cfg job model.num_layers=6                  the whole composed config, nothing run

Flags: -m/--multirun sweep; --config-dir DIR (any number) your own options; --cfg job|hydra|all; --info …; --resolve;
--trust beside run=DIR or resume=DIR lets code run that another brings in it (`golf help trust`);
--prepare makes the run folder, runs nothing, and prints the line that runs it under torchrun or a scheduler.
Exit code: 0 completed, 1 failed, 2 a mistake on this line, 3 completed but invalid (over a limit), 130 interrupted,
75 stopped by a signal of the system's (SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2): resume=DIR goes on.
"""


def page(line: CommandLine) -> str:
    """The help page, with the options that are there now."""
    shown = [group for group in groups(line.config_dirs) if group.split("/")[0] not in ("hydra", "local")]
    width = max(map(len, shown))
    rows = [f"  {group:<{width}} {', '.join(options(group, line.config_dirs))}\n" for group in shown]
    return PAGE.format(groups="".join(rows))


def run(argv: list[str]) -> int:
    """Check, then train. Raises ConfigError for a mistake, before any work starts."""
    wants_help = any(word in ("--help", "-h") for word in argv)
    line = CommandLine.parse([word for word in argv if word not in ("--help", "-h")], ("run", "resume"))
    if wants_help:
        print(page(line), end="")
        return 0
    refuse_trust(line)
    if "resume=auto" in line.overrides:
        line = going_on(line)
    elif any(word.startswith("resume=") for word in line.overrides):
        return go_on(line)
    if line.multirun and (shown := {"--cfg", "-c", "--info", "-i"} & set(line.flags)):
        raise ConfigError(f"{shown.pop()} shows what one job is composed of: leave out -m, and give each key one value")
    if line.multirun and {"RANK", "WORLD_SIZE"} & set(os.environ):
        raise ConfigError("golf train -m under torchrun would mix the jobs when a worker fails\n"
                          f"golf starts each job's workers itself: {suggestion(argv)}")  # fmt: skip
    if "hydra/launcher=slurm" in line.overrides and not (line.multirun or line.flags):
        raise ConfigError("hydra/launcher=slurm: launchers run sweeps, and a single run would train right here\n"
                          "add -m: a sweep may have one job")  # fmt: skip
    with told_where(line):
        line = again(line)
    refuse_lone(line)
    with told_where(line):
        return checked(line)


def going_on(line: CommandLine) -> CommandLine:
    """A line with `resume=auto`, without it. Raises ConfigError where it can't mean anything."""
    if line.multirun:
        raise ConfigError("resume=auto: is for one run; a sweep goes on with sweep.skip_done=true")
    if not any(word.startswith("hydra.run.dir=") for word in line.overrides):
        raise ConfigError("resume=auto: say where the run lies, hydra.run.dir=…: without it every run has a new folder")
    return replace(line, overrides=[word for word in line.overrides if word != "resume=auto"], go_on=True)


def go_on(line: CommandLine) -> int:
    """Let the run go on that `resume=DIR` names; the process's exit code. Raises ConfigError."""
    from golf.launch.compose import trust
    from golf.launch.work import attempts
    from golf.launch.work.jobs import INVALID, outcome

    words = dict(word.partition("=")[::2] for word in line.overrides)
    directory, nproc = words.pop("resume"), words.pop("runtime.nproc", None)
    if others := [*words, *line.flags, *(["-m"] if line.multirun else []), *map(str, line.config_dirs)]:
        raise ConfigError(f"resume={directory}: a run goes on as it began; leave out {others[0]}\n"
                          f"golf train run={directory} … trains it anew with other settings")  # fmt: skip
    if nproc is not None and nproc not in ("1", "2", "4", "8"):
        raise ConfigError(f"runtime.nproc={nproc}: 1, 2, 4 or 8 workers")
    run = attempts.named(directory)
    if trust.admit(run.dir, run.config, f"resume={directory}", trust=line.trust) and line.trust:
        trust.sign(run.dir, run.config)  # its workers look too
    try:
        attempts.resume(run, None if nproc is None else int(nproc))
    except WorkerFailed as error:
        return error.exit_code
    return 0 if outcome(run.dir)[1] else INVALID


def checked(line: CommandLine) -> int:
    """Compose and check every job, then run them."""
    from golf.launch.work import command

    with composer(line.config_dirs):
        checker = Checker(line)
        if not line.multirun and not line.hydra_flags:
            return command.train_one(checker)
        line = checker.complete()
        jobs = checker.jobs(line)
        if not line.hydra_flags:
            if any(re.match(r"hydra/sweeper=(?!golf$)", word) for word in line.overrides):
                from golf.launch.sweep.folders import check_line

                check_line(line, jobs)
            return command.sweep(line)
    return command.show(line)


def suggestion(argv: list[str]) -> str:
    """The command to run instead of torchrun's, with as many workers a job."""
    workers = os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1"))
    words = [word for word in argv if not word.startswith("runtime.nproc=")]
    return shlex.join(["golf", "train", *words, f"runtime.nproc={workers}"])
