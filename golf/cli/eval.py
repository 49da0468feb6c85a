"""`golf eval`: score a finished run again, from its artifact on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from golf.launch.rerun import WEIGHTS, Command, Job, Request, read_line

if TYPE_CHECKING:
    from golf.evals.evaluators import Score
    from golf.launch.loaded import LoadedRun

COMMAND = Command("eval", ("eval", "runtime", "logger"), {"weights": WEIGHTS})

PAGE = """golf eval run=DIR [eval=OPTION] [key=value] … [-m]

Scores a finished run again: reads DIR/artifact.golf back from disk (the raw weights are not needed) and evaluates it
on the run's own validation tokens. The result is kept in DIR/evals/; the last line is its path.

  run=DIR            a finished run (`golf runs` lists them)
  eval=OPTION        contiguous, sliding: replaces the run's own evaluator whole; eval.KEY=value overrides one key
                     (eval.stride, eval.seq_len, eval.coverage, eval.batch_tokens)
  weights=quantized  what is scored: quantized (the artifact), averaged (weights.safetensors, before quantization)
  runtime=OPTION     auto, cpu, cuda; the run's own by default, always one process
  logger=wandb       log the figures there too
  -m                 several values tabulate bpb against seconds

  golf eval run=outputs/2026-01-31/my_run eval=sliding eval.stride=64
  golf eval run=multirun/2026-01-31/sweep/0 -m eval=sliding eval.stride=64,256,1024
"""


def run(argv: list[str]) -> int:
    """Check, then evaluate each job. Raises ConfigError for a mistake, DataError or ArtifactError for bad files."""
    if any(word in ("--help", "-h") for word in argv):
        print(PAGE, end="")
        return 0
    request = read_line(COMMAND, argv)
    from golf.launch.loaded import loaded_runs, progress_on_stderr

    scores, paths = [], []
    with progress_on_stderr():
        last: LoadedRun | None = None
        for job, loaded in loaded_runs(request):
            if loaded is not last:
                stage = loaded.use(request.words["weights"])
                last = loaded
            score, path = evaluate(request, job, loaded, stage)
            scores.append(score)
            paths.append(path)
    show(request, stage, scores)
    for path in paths:
        print(path)
    return 0


def evaluate(request: Request, job: Job, loaded: LoadedRun, stage: str) -> tuple[Score, Path]:
    """One evaluation of the weights in place, kept in the run's folder; the score and the file's path."""
    from golf.launch import build
    from golf.launch.loaded import circumstances, keep, log_figures

    score = loaded.score(build.make(job.config["eval"], "eval"))
    record = {"stage": stage, **score.as_dict(), **circumstances(loaded, job, "eval", ("eval",))}
    path = keep(request.run, f"{score.method}_{score.stride}_{score.seq_len}_{stage}", record)
    log_figures(request, job, path, {"stage": stage, **score.as_dict()})
    return score, path


def show(request: Request, stage: str, scores: Sequence[Score]) -> None:
    """bpb against seconds, one row a job, with the columns that the sweep varied."""
    from rich.table import Table

    from golf.cli.tables import print_table

    told = {"eval.stride", "eval.seq_len"}
    swept = [key for key in request.jobs[0].swept if key not in told]
    table = Table(title=f"{request.run.name}, {stage} weights", title_justify="left")
    for name in (*swept, "method", "stride", "seq_len", "val_bpb", "val_loss", "targets", "seconds"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for job, score in zip(request.jobs, scores, strict=True):
        table.add_row(
            *(job.swept[key] for key in swept), score.method, str(score.stride), str(score.seq_len),
            f"{score.val_bpb:.4f}", f"{score.val_loss:.4f}", f"{score.targets:,}", f"{score.seconds:.1f}",
        )  # fmt: skip
    print_table(table)
