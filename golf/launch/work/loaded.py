"""A finished run at work in this process: its model and data built again, scored, and the results kept beside it."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from golf.common.errors import ArtifactError, GolfError, reason
from golf.common.files import locked, write_json
from golf.common.log import logger, stderr_handler
from golf.common.ranks import Ranks
from golf.common.runtime import Runtime, set_up
from golf.data.prepare import Prepared
from golf.evals.evaluators import Score, Validation
from golf.evals.pace import Partial
from golf.evals.protocol import Evaluates
from golf.launch.compose import build, phases
from golf.launch.compose.own_code import naming
from golf.launch.compose.rerun import ANY_TOKENIZER, Job, Request
from golf.nn.linear import EffectiveWeights
from golf.nn.models.gpt import GPT
from golf.quant.calibration import Trained
from golf.runs import environment
from golf.runs.loggers import JsonlLogger, Logger, RunInfo
from golf.runs.screen import Screen
from golf.runs.seal import identity
from golf.runs.store import Run
from golf.tokenizers.base import Tokenizer
from golf.train.compiling import scoring
from golf.train.finish import load_weights
from golf.train.memory import put_back, told
from golf.train.stages import load_state, read_artifact

SAME_FIGURE = 1e-3
"""How far, as part of it, a figure may be from that of another device, dtype or kernel."""
IDENTITY = ("stage", "method", "stride", "seq_len", "coverage", "targets", "bytes")
NO_MATTER = ("batch_tokens", "packed")
"""Settings of evaluators that change no figure."""


class LoadedRun:
    """A finished run's model and data on this machine's device, in this process; data=False: its tokenizer alone.

    Its weights are unset until `use_artifact` or `use_weights`. Raises ConfigError or DataError, and ArtifactError when
    the tokenizer found here is not the one that the run was trained with (`any_tokenizer`: a warning).
    """

    def __init__(
        self, run: Run, config: Mapping[str, Any], any_tokenizer: bool = False, data: bool = True
    ) -> None:  # fmt: skip
        self.run, self.config, self.any_tokenizer = run, config, any_tokenizer
        self.remembered: set[str] = set()
        """What evaluations have changed in the model without leave; it was put back."""
        self.runtime: Runtime = build.make(config["runtime"], "runtime")
        self.device = torch.device(self.runtime.device_type)
        set_up(self.runtime, 1, config["seed"])  # as in training, so that the figures agree
        facts = run.record.get("data", {})
        if data:
            self.prepared: Prepared = build.prepare_data(config, Ranks())
            self.tokenizer: Tokenizer = self.prepared.tokenizer
            self.same_data = facts.get("source_hash") == self.prepared.facts["source_hash"]
        else:
            self.tokenizer = build.find_tokenizer(config, str(facts.get("source_hash")))
        self._same_tokenizer(facts.get("tokenizer_hash"), run.folder.result)
        if data and not facts:
            logger.warning("the run ended before its record could tell its data: they may have been others")
        elif data and not self.same_data:
            logger.warning("the data has changed since this run was trained: its bpb does not compare with result.json")
        self.model = build.fresh(config, self.runtime, self.device, self.tokenizer.bos_id, log=True)
        self.forward, self.fixed_shapes = scoring(self.model, self.runtime)

    def exactly(self) -> GPT:
        """The model with the weights in place, computing in float32 by the plain ops."""
        model = build.fresh(self.config, self.runtime, self.device, self.tokenizer.bos_id, exact=True)
        load_state(model, self.model.state_dict())
        return model

    def use_artifact(self, path: Path) -> str:
        """Put an artifact's weights, dequantized, into the model; its SHA-256. Raises ArtifactError."""
        artifact = read_artifact(path, self.model)
        self._same_tokenizer(artifact.header.tokenizer_hash, path)
        made_for = artifact.header.meta.get("config")
        if made_for is not None and made_for != identity(self.run.config):
            logger.warning("%s was made by a run of another config than the config.yaml beside it", path)
        self._refresh()
        return artifact.header.info.sha256

    def use_weights(self) -> str:
        """Put the run's raw weights into the model; their stage: `averaged`, or `stop` when nothing was averaged.

        Raises GolfError when the run kept none, ArtifactError when they are broken.
        """
        stage = load_weights(self.run.folder.weights, self.model)
        self._refresh()
        return stage

    def trained(self) -> Trained:
        """The model in place, with its run's training data, as a quantizer is handed them."""
        config = phases.last(self.config)
        apart = (config.get("loader") or {}).get("packed") and self.model.cannot_pack is None
        return Trained(
            self.model, self.prepared.train, Ranks(), config["seed"], config["train_seq_len"],
            self.tokenizer.bos_id if apart else None,
        )  # fmt: skip

    def use(self, weights: str) -> str:
        """`use_artifact` or `use_weights` by the name that `weights=` takes; the stage of what was loaded."""
        if weights == "averaged":
            return self.use_weights()
        self.use_artifact(self.run.folder.artifact)
        return "quantized"

    def validation(self, evaluator: Evaluates) -> Validation:
        """The run's own validation stream, on the device. Raises DataError when it is shorter than a window."""
        return Validation.of(self.prepared, evaluator.seq_len, self.config["val_tokens"], self.device)

    def score(
        self, evaluator: Evaluates, validation: Validation | None = None, *, limit_s: float | None = None,
        partial: Partial | None = None, nll: torch.Tensor | None = None,
    ) -> Score:  # fmt: skip
        """Evaluate the weights in place, exactly as the end of training does; see Evaluator.evaluate.

        Raises ConfigError or DataError, EvaluationTooLong over `limit_s`.
        """
        with naming(self.config.get("code_paths") or []), put_back(self.model) as changed:
            score = evaluator.score(
                self.model, self.forward, validation or self.validation(evaluator), Ranks(),
                self.fixed_shapes, limit_s=limit_s, partial=partial, nll=nll,
            )  # fmt: skip
        if changed and not getattr(evaluator, "adapts", False):
            self.remembered |= changed.keys()
            logger.warning("the evaluation changed %s, which was put back", told(changed))
        logger.info("%s: %.1f s, %s", score.method, score.seconds, score.speed)
        return score

    def contradiction(self, evaluator: Evaluates, stage: str, score: Score) -> dict[str, Any] | None:
        """The record's figure of the same weights, text and method, where this one is another: see SAME_FIGURE."""
        if not self.same_data or self.run.record.get("data", {}).get("tokenizer_hash") != self.tokenizer.hash:
            return None
        own: Evaluates = build.make(phases.last(self.run.config)["eval"], "eval")
        if not any(_alike(evaluator, one) for one in (own, own.contiguous())):
            return None
        for one in self.run.record.get("evals") or []:
            same = {key: one.get(key) for key in IDENTITY} == {"stage": stage} | {
                key: getattr(score, key) for key in IDENTITY if key != "stage"
            }
            if same and one.get("val_bpb") is not None:
                if math.isclose(one["val_bpb"], score.val_bpb, rel_tol=SAME_FIGURE):
                    return None
                return {"recorded": one["val_bpb"], "found": score.val_bpb}
        return None

    def _refresh(self) -> None:
        EffectiveWeights(self.model).refresh()

    def _same_tokenizer(self, expected: str | None, where: Path) -> None:
        tokenizer = self.tokenizer
        if expected is not None and expected != tokenizer.hash:
            if self.any_tokenizer:
                logger.warning("%s was made with another tokenizer: its bpb means little here", where)
                return
            raise ArtifactError(
                f"{where} was made with another tokenizer than the {tokenizer.name} prepared here: bpb refused\n"
                f"(hash {expected[:12]}…, here {tokenizer.hash[:12]}…; the training text or the .model file changed)"
            )


def _alike(one: Evaluates, other: Evaluates) -> bool:
    """Whether two evaluators are of one class and settings, but for those that change no figure."""
    mine, its = ({k: v for k, v in vars(each).items() if k not in NO_MATTER} for each in (one, other))
    return type(one).__qualname__ == type(other).__qualname__ and repr(mine) == repr(its)


def loaded_runs(request: Request) -> Iterator[tuple[Job, LoadedRun]]:
    """Each job with the run built for it; jobs that share a runtime share the build.

    Raises GolfError at once when results could not be kept in the run's folder.
    """
    _writable(request.run)
    built: dict[str, LoadedRun] = {}
    for job in request.jobs:
        key = json.dumps(job.config["runtime"], sort_keys=True)
        if key not in built:
            built.clear()  # one model in memory at a time
            any_tokenizer = request.words.get(ANY_TOKENIZER) == "true"
            built[key] = LoadedRun(request.run, job.config, any_tokenizer)
        yield job, built[key]


def _writable(run: Run) -> None:
    folder = run.folder.evals
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise GolfError(f"cannot write results into {folder}: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise GolfError(f"cannot write results into {folder}: no permission")


def keep(run: Run, stem: str, record: Mapping[str, Any], artifact: Path | None = None) -> Path:
    """Write a result to evals/<stem>_<number>.json, and move the artifact that it speaks of beside it.

    Whole or not at all, never over another; the path. Raises GolfError when the disk is full.
    """
    folder = run.folder.evals
    number = 1
    with locked(folder / ".ids"):
        while any((folder / f"{stem}_{number}{suffix}").exists() for suffix in (".json", ".golf")):
            number += 1
        path = run.folder.eval_path(f"{stem}_{number}")
        if artifact is not None:
            os.replace(artifact, path.with_suffix(".golf"))
            record = {**record, "artifact_file": path.with_suffix(".golf").name}
        write_json(path, {"schema_version": 1, "id": path.stem, **record})
    return path


def circumstances(loaded: LoadedRun, job: Job, command: str, changes: Sequence[str]) -> dict[str, Any]:
    """What a later evaluation records of how it came about."""
    return {
        "command": command,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "choices": {group: job.config["choices"].get(group) for group in changes},
        "config": {group: job.config[group] for group in (*changes, "runtime")},
        "device": loaded.device.type,
        "same_data": loaded.same_data,
        "tokenizer_hash": loaded.tokenizer.hash,
        "versions": environment.versions(),
        "hardware": environment.hardware().model_dump(mode="json"),
    }


def log_figures(
    request: Request, job: Job, path: Path, figures: Mapping[str, Any], show: Callable[[Logger], None] | None = None
) -> None:
    """Hand the figures to the logger, when the command line named one: a run of its own, called after the result.

    `show` adds tables and pictures to it.
    """
    if "logger" not in request.touched:
        return
    chosen = build.make(job.config["logger"], "logger")
    if chosen is None or isinstance(chosen, JsonlLogger):
        return  # the result's own file is the record
    directory = request.run.dir.absolute()
    try:
        chosen.start(RunInfo(directory, f"{directory.name}-{path.stem}", kind="eval"), job.config)
        if show is not None:
            show(chosen)
        chosen.finish(figures, "completed")
    except GolfError:
        raise
    except Exception as error:  # a tracker may raise anything, and the result is kept
        logger.warning("%s failed (%s); the figures are in %s", type(chosen).__name__, reason(error), path)


@contextmanager
def progress_on_stderr(what: str) -> Iterator[None]:
    """Within the block golf's log lines go to stderr, so that stdout holds the result alone; on a terminal a line
    that moves says that `what` goes on."""
    handler = stderr_handler()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        with Screen(what=what, stderr=True):
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
