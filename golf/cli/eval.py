"""`golf eval`: score a finished run again, from its artifact on disk."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial as partial_call
from pathlib import Path
from typing import TYPE_CHECKING

from golf.common.errors import ConfigError
from golf.common.files import sha256_file, sha256_json
from golf.launch.compose.rerun import ANY_TOKENIZER, SWITCH, WEIGHTS, Command, Job, Request, Word, read_line
from golf.runs.dotted import last_parts

if TYPE_CHECKING:
    import torch

    from golf.evals.detail import Detail, Row
    from golf.evals.evaluators import Evaluator, Score, Validation
    from golf.launch.work.loaded import LoadedRun
    from golf.runs.loggers import Logger

LIMIT = "budget.eval_seconds"
MOST_DOCUMENTS = 10_000  # a wandb table holds no more rows
COMMAND = Command(
    "eval",
    ("eval", "runtime", "logger"),
    {"weights": WEIGHTS, "detail": SWITCH, LIMIT: Word(float), ANY_TOKENIZER: SWITCH},
)

PAGE = """golf eval run=DIR [eval=OPTION] [key=value] … [-m]

Scores a finished run again: reads DIR/artifact.golf back from disk (the raw weights are not needed) and evaluates it
on the run's own validation tokens. The result is kept in DIR/evals/; the last line is its path.

  run=DIR            a finished run (`golf runs` lists them)
  eval=OPTION        contiguous, sliding, document: replaces the run's own evaluator whole; eval.KEY=value overrides one
                     key (eval.stride, eval.seq_len, eval.coverage, eval.batch_tokens, eval.packed). Windows longer than
                     the run's position tables need eval.rope=extend or eval.rope=ntk
  weights=quantized  what is scored: quantized (the artifact), averaged (weights.safetensors, before quantization)
  detail=true        every token's loss, and a report of where the bits go, in a folder beside the result: bpb by token
                     class, context and document, what quantization adds to each, the worst and best documents, plots
  runtime=OPTION     auto, cpu, cuda; the run's own by default, always one process
  budget.eval_seconds=S   stop an evaluation that would take longer; by default the run's own limit times its
                     number of processes. What was done is kept: the same command with more seconds goes on from there
  eval.allow_tokenizer_mismatch=true   score in spite of another tokenizer than the artifact was made with
  logger=wandb       log the figures there too; with detail=true its tables, every document's loss, and the plots
  -m                 several values tabulate bpb against seconds; what one leaves in the model is put back for the next

  golf eval run=outputs/2026-01-31/my_run eval=sliding eval.stride=64
  golf eval run=multirun/2026-01-31/sweep/0 -m eval=sliding eval.stride=64,256,1024

Exit code 3: a figure of the same weights, method, text and tokenizer differs from the record's by over 0.1 %.
Interrupted, the same command goes on where it stopped. --config-dir DIR finds methods of your own, be they younger than
the run, whose model stays that of its own copy of your code.
"""


def run(argv: list[str]) -> int:
    """Check, then evaluate each job.

    Raises ConfigError for a mistake, DataError or ArtifactError for bad files, EvaluationTooLong over the limit.
    """
    if any(word in ("--help", "-h") for word in argv):
        print(PAGE, end="")
        return 0
    request = read_line(COMMAND, argv)
    limit = time_limit(request)
    from golf.launch.work.loaded import loaded_runs, progress_on_stderr
    from golf.train.control import Interrupt

    scores, paths, contradictions = [], [], list[str]()
    with Interrupt(), progress_on_stderr("evaluating"):  # a scheduler's SIGTERM keeps what was done, as Ctrl-C does
        last: LoadedRun | None = None
        for job, loaded in loaded_runs(request):
            if loaded is not last:
                stage = loaded.use(request.words["weights"])
                last = loaded
            score, path, contradiction = evaluate(request, job, loaded, stage, limit)
            scores.append(score)
            paths.append(path)
            if contradiction is not None:
                contradictions.append(contradiction)
    show(request, stage, scores)
    for contradiction in dict.fromkeys(contradictions):
        print(f"contradicts the record: {contradiction}")
    for path in paths:
        print(path)
    return 3 if contradictions else 0


def time_limit(request: Request) -> float | None:
    """Seconds that an evaluation may take here, in one process. Raises ConfigError for a limit that isn't positive."""
    given: float | None = request.words[LIMIT]
    if given is not None:
        if not given > 0:
            raise ConfigError(f"{LIMIT}={given:g}: must be more than 0")
        return given
    seconds = (request.run.config.get("budget") or {}).get("eval_seconds")
    return None if seconds is None else float(seconds) * int(request.run.config["runtime"]["nproc"])


def unfinished(request: Request, job: Job, loaded: LoadedRun) -> Path:
    """The file of an unfinished evaluation: the same for the same weights, data, evaluator and runtime."""
    folder = request.run.folder
    weights = folder.artifact if request.words["weights"] == "quantized" else folder.weights
    facts = [
        sha256_file(weights), job.config["eval"], job.config["runtime"], job.config["val_tokens"],
        loaded.prepared.facts["source_hash"], loaded.prepared.tokenizer.hash, loaded.device.type,
        request.words["detail"],
    ]  # fmt: skip
    return folder.evals / f".partial-{sha256_json(facts)[:16]}.npz"


def evaluate(
    request: Request, job: Job, loaded: LoadedRun, stage: str, limit_s: float | None = None
) -> tuple[Score, Path, str | None]:
    """One evaluation of the weights in place, kept in the run's folder; the score, the file's path, and what in the
    record it contradicts."""
    import torch

    from golf.evals.pace import Partial
    from golf.launch.compose import build
    from golf.launch.work.loaded import circumstances, keep, log_figures

    partial, evaluator = Partial(unfinished(request, job, loaded)), build.make(job.config["eval"], "eval")
    validation = loaded.validation(evaluator)
    nll = None
    if request.words["detail"] == "true":
        nll = torch.full(validation.tokens.shape, torch.nan, device=loaded.device)
    score = loaded.score(evaluator, validation, limit_s=limit_s, partial=partial, nll=nll)
    record = {"stage": stage, **score.as_dict(), **circumstances(loaded, job, "eval", ("eval",))}
    contradiction = loaded.contradiction(evaluator, stage, score)
    if contradiction is not None:
        record["contradicts"] = contradiction
    path = keep(request.run, f"{score.method}_{score.stride}_{score.seq_len}_{stage}", record)
    detail = None if nll is None else report(request, loaded, stage, path, evaluator, validation, score, nll)
    show = None if detail is None else partial_call(log_detail, detail=detail, folder=path.with_suffix(""))
    log_figures(request, job, path, {"stage": stage, **score.as_dict()}, show)
    if contradiction is None:
        return score, path, None
    of = f"{stage}, {score.method}, {score.targets:,} targets"
    return score, path, f"val_bpb {contradiction['recorded']:.4f} there, {contradiction['found']:.4f} here ({of})"


def report(
    request: Request, loaded: LoadedRun, stage: str, path: Path, evaluator: Evaluator, validation: Validation,
    score: Score, nll: torch.Tensor,
) -> Detail | None:  # fmt: skip
    """Write the detailed report of a result into the folder of its name; score the raw weights too, when kept. None,
    and a line, where the evaluator tells no token's loss."""
    import torch

    from golf.common.log import logger
    from golf.evals.detail import Detail
    from golf.evals.report import write_report

    if bool(nll.isnan().all()):
        logger.warning("no report of where the bits go: %s tells no token's loss (nll)", type(evaluator).__name__)
        return None
    before = None
    if stage == "quantized" and request.run.folder.weights.exists():
        logger.info("scoring the weights before quantization too, for what it adds")
        loaded.use_weights()
        before = torch.full_like(nll, torch.nan)
        loaded.score(evaluator, validation, nll=before)
        loaded.use(request.words["weights"])
    plan = getattr(evaluator, "plan", None)  # a user's evaluator need have none
    contexts = None if plan is None else plan(validation).contexts(len(nll))
    detail = Detail.of(
        validation.tokens.cpu().numpy(), nll.cpu().numpy(), contexts,
        loaded.prepared.tokenizer, None if before is None else before.cpu().numpy(), validation.charges(),
    )  # fmt: skip
    title = f"{request.run.name}, {stage} weights"
    told = write_report(path.with_suffix(""), title, score, detail, loaded.prepared.tokenizer)
    logger.info("where the bits go: %s", told)
    return detail


def log_detail(tracker: Logger, detail: Detail, folder: Path) -> None:
    """Hand a detailed report to a logger: its tables, every document's loss (the worst first), and its plots."""
    columns = ["tokens", "bytes", "nats_per_token", "bpb", "share", "gap"]

    def cells(row: Row) -> list[float | None]:
        return [row.targets, row.bytes, row.loss, row.bpb, row.share, row.gap]

    for name, rows in (("class", detail.by_class()), ("context", detail.by_context()), ("length", detail.by_length())):
        if rows:
            tracker.table(f"bits_by_{name}", [name, *columns], [[row.name, *cells(row)] for row in rows])
    documents = sorted(detail.documents().items(), key=lambda pair: -(pair[1].bpb or 0.0))
    tracker.table(
        "documents", ["document", *columns], [[number, *cells(row)] for number, row in documents[:MOST_DOCUMENTS]]
    )
    for plot in sorted(folder.glob("*.png")):
        tracker.image(plot.stem, plot)


def show(request: Request, stage: str, scores: Sequence[Score]) -> None:
    """bpb against seconds, one row a job, with the columns that the sweep varied."""
    from golf.cli.tables import Column, Table, print_table

    told = {"eval.stride", "eval.seq_len"}
    swept = [key for key in request.jobs[0].swept if key not in told]
    table = Table(
        *(Column(head, name=key, shorten=True) for key, head in zip(swept, last_parts(swept))),
        Column("method", right=False), Column("stride"), Column("seq_len"), Column("val_bpb"),
        Column("val_loss", drop=2), Column("targets", drop=3), Column("seconds", drop=1),
        title=f"{request.run.name}, {stage} weights",
    )  # fmt: skip
    for job, score in zip(request.jobs, scores, strict=True):
        table.add_row(
            *(job.swept[key] for key in swept), score.method, str(score.stride), str(score.seq_len),
            f"{score.val_bpb:.4f}", f"{score.val_loss:.4f}", f"{score.targets:,}", f"{score.seconds:.1f}",
        )  # fmt: skip
    print_table(table)
