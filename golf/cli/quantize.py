"""`golf quantize`: quantize a finished run's weights anew, beside its own artifact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from golf.common.files import scratch_folder
from golf.common.log import logger
from golf.launch.compose.rerun import Command, Job, Request, read_line
from golf.runs.dotted import last_parts
from golf.runs.tradeoff import Point, plot

if TYPE_CHECKING:
    from golf.evals.evaluators import Score
    from golf.launch.work.loaded import LoadedRun
    from golf.runs.record import Result
    from golf.runs.store import Run
    from golf.train.finish import Code

COMMAND = Command("quantize", ("quant", "codec", "eval", "runtime", "logger"))

PAGE = """golf quantize run=DIR [quant=OPTION] [codec=OPTION] [key=value] … [-m]

Quantizes a finished run's weights.safetensors anew into DIR/evals/<id>.golf, reads that file back, and scores it
(contiguous). DIR/evals/<id>.json holds its bytes by place, val_bpb and the gap to the weights before quantization,
scored here too; the last line is its path. The run's own artifact is never touched.

  run=DIR            a finished run with its weights.safetensors
  quant=OPTION       int8, int6, …: replaces the run's quantizer whole; quant.KEY=value overrides one key (quant.bits)
  codec=OPTION       zlib, zstd, lzma, brotli, ans, store; codec.KEY=value
  eval.KEY=value     eval.seq_len, eval.coverage of the contiguous score
  runtime=OPTION     auto, cpu, cuda; the run's own by default, always one process
  logger=wandb       log the figures there too
  -m                 several values tabulate bytes against bpb, and plot them (DIR/evals/bytes.png)

quant=gradguided ranks tensors by the gradients that the run's result.json holds, if it was trained with it. A quantizer
that calibrates does so anew, on the run's own training data. --config-dir DIR finds yours, be it younger than the run.
A run that failed after training is taken too.

  golf quantize run=outputs/2026-01-31/my_run quant=int6 codec=zstd
  golf quantize run=outputs/2026-01-31/my_run -m quant.bits=5,6,7,8 codec=zstd,brotli

Exit code 3: completed but invalid, over the run's limit of bytes (one job; a sweep shows it).
"""


def run(argv: list[str]) -> int:
    """Check, then quantize each job. Raises ConfigError for a mistake, GolfError when the run kept no weights."""
    if any(word in ("--help", "-h") for word in argv):
        print(PAGE, end="")
        return 0
    request = read_line(COMMAND, argv)
    from golf.launch.work.loaded import loaded_runs, progress_on_stderr

    records, paths = [], []
    with progress_on_stderr("quantizing"):
        before: dict[str, Score] = {}
        for job, loaded in loaded_runs(request):
            record, path = quantize(request, job, loaded, before)
            records.append(record)
            paths.append(path)
    show(request, records)
    if len(records) > 1 and (picture := draw(request, records)) is not None:
        paths.append(picture)
    over = [violation for record in records for violation in record["violations"]]
    for violation in dict.fromkeys(over):
        print(f"over the limit: {violation}")
    for path in paths:
        print(path)
    return 3 if over and len(records) == 1 else 0


def quantize(request: Request, job: Job, loaded: LoadedRun, before: dict[str, Score]) -> tuple[dict[str, Any], Path]:
    """One new artifact with its record. `before` keeps the scores of the raw weights, by evaluator and runtime."""
    from golf.artifact.ledger import ledger
    from golf.common.clock import Clocks
    from golf.launch.compose import build
    from golf.launch.compose.own_code import naming
    from golf.launch.work.loaded import circumstances, keep, log_figures
    from golf.runs.record import Bytes, find_violations
    from golf.runs.seal import identity
    from golf.train.stages import calibrate, decided, write_artifact

    config, folder = job.config, request.run.folder
    result = recorded(request.run)
    stage = loaded.use_weights()
    quantizer, codec = build.make(config["quant"], "quant"), build.make(config["codec"], "codec")
    if quantizer.observes_gradients and not quantizer.recall(result.quantization, loaded.model.state_dict()):
        logger.info("the run kept no gradients: bits follow the quantizer's fallback rule")
    evaluator = build.make(config["eval"], "eval").contiguous()
    key = f"{config['eval']} {config['runtime']}"
    if key not in before:
        before[key] = loaded.score(evaluator)
    clocks = Clocks()
    with naming(config["code_paths"]):
        calibrate(quantizer, loaded.trained(), clocks)
    with scratch_folder(folder.evals, ".quantize-") as scratch:
        file = scratch / "artifact.golf"
        meta = {"steps": result.steps, "seed": config["seed"], "config": identity(loaded.run.config)}
        code = code_of(request.run, config)
        limit = result.bytes.limit if result.bytes else config["budget"]["artifact_bytes"]
        with naming(config["code_paths"]):
            info, entries = write_artifact(
                file, loaded.model, quantizer, codec, loaded.tokenizer.hash, meta, lambda: code.bytes
            )
        by_group = {place: row.bytes for place, row in ledger(info, entries, codec).items()}
        loaded.use_artifact(file)
        score = loaded.score(evaluator)
        counted = Bytes.count(info.bytes, code.bytes, limit, by_group, code.what)
        record = {
            "evals": [{"stage": stage, **before[key].as_dict()}, {"stage": "quantized", **score.as_dict()}],
            "val_bpb": score.val_bpb,
            "gap": score.val_bpb - before[key].val_bpb,
            "bytes": counted.model_dump(mode="json"),
            "quantization": decided(entries, quantizer),
            "clocks": clocks.seconds,
            "violations": find_violations([], counted, None, 0.0),
            "sha256": info.sha256,
            **circumstances(loaded, job, "quantize", ("quant", "codec", "eval")),
        }
        names = [str(config["choices"].get(group)) for group in ("quant", "codec")]
        path = keep(request.run, f"quantize_{'_'.join(names)}", record, file)
    figures = {"val_bpb": score.val_bpb, "gap": record["gap"], **{f"bytes/{k}": v for k, v in by_group.items()}}
    log_figures(request, job, path, figures)
    return record, path


def recorded(run: Run) -> Result:
    """The run's record; an empty one where it died before it wrote any. Raises GolfError for one that is broken."""
    from golf.runs.record import Result

    if run.folder.result.exists():
        return run.result
    return Result.from_parts(status="failed", steps=0, train_time_s=0)


def code_of(run: Run, config: Mapping[str, Any]) -> Code:
    """The bytes of a run's code as it counted them, or as it would have, had it not failed before; of one whose record
    does not say what it used, what bounds them. config: a job's, with the code that may run."""
    from golf.launch.work.export import count
    from golf.launch.work.session import modules
    from golf.runs.record import BOUND
    from golf.train.finish import Code, code_bytes

    if (own := recorded(run).bytes) is not None:
        return Code(own.code, own.code_is)
    if not (used := run.record.get("modules")):
        return Code(code_bytes(), BOUND)
    its = {**config, **{name: run.config[name] for name in COMMAND.changes if name in run.config}}
    return count(its, {**run.record, "modules": sorted({*used, *modules()})})


def points(jobs: Sequence[Job], records: Sequence[dict[str, Any]]) -> list[Point]:
    """Where each job stands, with what the line varied of its codec and of all else."""
    found = []
    for job, record in zip(jobs, records, strict=True):
        told = {"quant": [str(record["choices"]["quant"])], "codec": [str(record["choices"]["codec"])]}
        for key, value in job.swept.items():
            group, _, setting = key.partition(".")
            if setting:
                told["codec" if group == "codec" else "quant"].append(f"{setting}={value}")
        quant, codec = " ".join(told["quant"]), " ".join(told["codec"])
        found.append(Point(quant, codec, record["bytes"]["artifact"], record["val_bpb"]))
    return found


def draw(request: Request, records: Sequence[dict[str, Any]]) -> Path | None:
    """Bytes against bpb as a picture, in place of the one before."""
    before = records[0]["evals"][0]["val_bpb"]
    where = request.run.folder.evals / "bytes.png"
    return plot(where, points(request.jobs, records), before, records[0]["bytes"]["limit"])


def show(request: Request, records: Sequence[dict[str, Any]]) -> None:
    """Bytes against bpb, one row a job, the run's own artifact first."""
    from golf.cli.tables import Column, Table, print_table

    result = recorded(request.run)
    swept = [key for key in request.jobs[0].swept if key not in ("quant", "codec")]
    table = Table(
        Column("quant", right=False, shorten=True), Column("codec", right=False),
        *(Column(head, name=key, shorten=True) for key, head in zip(swept, last_parts(swept))),
        Column("model bytes", drop=3), Column("with code", drop=1), Column("val_bpb"), Column("gap", drop=2),
        Column("seconds", drop=4), title=f"{request.run.name}, quantized anew",
    )  # fmt: skip
    if result.bytes is not None:
        choices, bpb, gap = request.run.config.get("choices", {}), result.val_bpb.post_quant, result.quant_gap
        table.add_row(
            f"{choices.get('quant')} (as trained)", str(choices.get("codec")), *["" for _ in swept],
            f"{result.bytes.model:,}", f"{result.bytes.artifact:,}", "" if bpb is None else f"{bpb:.4f}",
            "" if gap is None else f"{gap:+.4f}", "", style="dim",
        )  # fmt: skip
    for job, record in zip(request.jobs, records, strict=True):
        counted, choices, seconds = record["bytes"], record["choices"], record["evals"][-1]["seconds"]
        table.add_row(
            str(choices["quant"]), str(choices["codec"]), *(job.swept[key] for key in swept), f"{counted['model']:,}",
            f"{counted['artifact']:,}", f"{record['val_bpb']:.4f}", f"{record['gap']:+.4f}", f"{seconds:.1f}",
        )  # fmt: skip
    print_table(table)
