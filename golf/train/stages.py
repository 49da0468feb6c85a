"""The stages after training, as they are for any run: average, quantize, write the artifact, read it back, score.

`Stages` knows of no record and writes nothing but the artifact; `golf.train.finish` keeps more of a run, and
`golf.train.alone` runs without the rest of golf.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from golf.artifact.codecs import Codec
from golf.artifact.container import Artifact, ArtifactInfo, artifact_size, load_artifact, save_artifact
from golf.common.clock import Clocks
from golf.common.errors import ArtifactError, EvaluationTooLong, GolfError
from golf.common.files import is_full
from golf.common.log import logger
from golf.common.ranks import Ranks
from golf.common.runtime import synchronize
from golf.evals.evaluators import Score
from golf.evals.protocol import Evaluates
from golf.nn.live import Live
from golf.nn.models.gpt import GPT
from golf.quant.entry import Entry, dequantize
from golf.quant.quantizer import Calibrates, Fits, Quantizer
from golf.train.trainer import Trainer

if TYPE_CHECKING:
    from golf.quant.calibration import Trained

Stage = Literal["stop", "averaged", "quantized"]
"""Whose weights are scored: those that training stopped at, their averages, what the artifact gives."""


@torch.no_grad()
def load_state(model: GPT, state: Mapping[str, torch.Tensor]) -> None:
    """Copy named tensors into the model; a buffer that it declares as None takes what there is for it. Raises
    ArtifactError for missing, unknown or misshapen ones."""
    live = Live(model)
    for name in (state.keys() & live.declared) - set(live):
        live[name] = state[name].clone().to(model.embedding.device)
    own = model.state_dict()
    for name in sorted(own.keys() ^ state.keys()):
        raise ArtifactError(f"{name}: {'missing from' if name in own else 'unknown to'} the model's weights")
    for name, target in own.items():
        if target.shape != state[name].shape:
            raise ArtifactError(f"{name}: shape {list(state[name].shape)}, the model has {list(target.shape)}")
        target.copy_(state[name])


def detached(model: GPT) -> dict[str, torch.Tensor]:
    """A copy of the model's state, on its device."""
    return {name: t.detach().clone() for name, t in model.state_dict().items()}


def calibrate(quantizer: Quantizer, trained: Trained, clocks: Clocks) -> None:
    """Let a quantizer that wants to see what was trained do so, on a clock of its own; the model is then as it was."""
    if not isinstance(quantizer, Calibrates):
        return
    before = detached(trained.model)
    synchronize(trained.device)
    with clocks.phase("calibrate"):
        quantizer.calibrate(trained)
        synchronize(trained.device)
    load_state(trained.model, before)


def write_artifact(
    path: Path, model: GPT, quantizer: Quantizer, codec: Codec, tokenizer_hash: str, meta: Mapping[str, Any],
    code: Callable[[], int], spare: Path | None = None,
) -> tuple[ArtifactInfo, dict[str, Entry]]:  # fmt: skip
    """Quantize the model's weights into an artifact on disk. code: tells the bytes that count beside it, which is asked
    where it is to fit. spare: a file that gives way to it on a full disk."""
    left_out = unstored(model)
    state = {name: t.detach().cpu() for name, t in model.state_dict().items() if name not in left_out}
    specs = {name: spec for name, spec in model.specs().items() if spec.stored}
    if isinstance(quantizer, Fits) and quantizer.fit is not None:
        from golf.quant.fit import fitted  # its code counts where it is used

        size = partial(artifact_size, codec=codec, meta=meta, tokenizer_hash=tokenizer_hash)
        entries = fitted(quantizer, state, specs, quantizer.fit - code(), size)
    else:
        entries = quantizer.quantize(state, specs)
    if all(entry.scheme == "raw" for entry in entries.values()):
        logger.warning("no tensor was quantized: each is kept whole by quant.passthrough_numel or quant.keep")
    if codec.reads_values and any(entry.packed for entry in entries.values()):
        logger.warning(
            "codec=%s finds nothing to save in packed bits: quant.pack=false leaves it a byte a value", codec.name
        )
    try:
        return save_artifact(path, entries, codec, meta, tokenizer_hash), entries
    except GolfError as error:
        if spare is None or not is_full(error) or not spare.exists():
            raise
        logger.warning("the disk is full: %s gives way to the artifact", spare)
        spare.unlink()
        return save_artifact(path, entries, codec, meta, tokenizer_hash), entries


EXPANDED, SLACK = 16, 1 << 26
"""An artifact's parts take at most so many bytes a value of the model, and what no model tells beforehand."""


def read_artifact(path: Path, model: GPT) -> Artifact:
    """Load an artifact's weights, dequantized, into the model; what served training alone becomes zero.

    Raises ArtifactError for what doesn't fit.
    """
    own = model.state_dict()
    artifact = load_artifact(path, SLACK + EXPANDED * sum(one.numel() for one in own.values()))
    unset = Live(model).declared
    for name, entry in artifact.entries.items():  # before anything of its size is made
        if name not in own and name not in unset:
            raise ArtifactError(f"{name}: unknown to the model's weights")
        if name in own and entry.shape != own[name].shape:
            raise ArtifactError(f"{name}: shape {list(entry.shape)}, the model has {list(own[name].shape)}")
    state = {name: dequantize(entry) for name, entry in artifact.entries.items()}
    for name, values in state.items():
        if values.is_floating_point() and bool(values.isnan().any()):
            raise ArtifactError(f"{path}: {name} holds values that are no numbers")
    load_state(model, state | {name: torch.zeros_like(own[name]) for name in unstored(model) if name not in state})
    return artifact


def unstored(model: GPT) -> set[str]:
    """The parameters that serve training alone, by their state_dict names."""
    return {name for name, spec in model.specs().items() if not spec.stored}


def decided(entries: Mapping[str, Entry], quantizer: Quantizer) -> dict[str, Any]:
    """What was decided for each tensor: `bits` of those that were rounded, and what the quantizer went by."""
    bits = {name: entry.bits for name, entry in entries.items() if entry.scheme != "raw"}
    return {"bits": bits, **quantizer.facts()}


class Stages:
    """The stages after training, on every rank. What a subclass overrides beside `code_bytes` is told of a moment.

    An evaluation of the quantized model that would overrun its budget is stopped, and `too_long` is told.
    """

    spare: Path | None = None
    """A file that gives way to the artifact on a full disk."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.parts = trainer, trainer.parts
        self.ranks: Ranks = trainer.parts.ranks

    def run(self, meta: Mapping[str, Any]) -> None:
        """Average, quantize, and score every stage; meta: what the artifact says of its run. Raises GolfError.

        What may fail in code that is not golf's comes late: weights are told of before the quantizer is called, and the
        artifact lies on disk before an evaluator is.
        """
        parts, model = self.parts, self.parts.model
        self.trainer.release_graphs()
        stages: dict[Stage, Mapping[str, torch.Tensor]] = {"stop": detached(model)}
        self.reached(stages, meta)
        if (averaged := parts.averaging.average()) is not None:
            stages["averaged"] = averaged
            self.reached(stages, meta)
            load_state(model, averaged)
        elif parts.averaging.reason is not None:
            logger.info("%s", parts.averaging.reason)
        self.quantize(meta)
        for stage, state in stages.items():
            load_state(model, state)
            self._score_stage(stage, parts.settings.eval_all_stages)
        del stages, averaged
        with self.trainer.clocks.phase("quantize"):
            model = self.from_artifact()
            self.adopting(model)
            self.trainer.adopt(model)
        self._score_stage("quantized", True)

    def reached(self, stages: Mapping[Stage, Mapping[str, torch.Tensor]], meta: Mapping[str, Any]) -> None:
        """The weights of the last of these stages are there."""

    def written(self, info: ArtifactInfo, entries: Mapping[str, Entry]) -> None:
        """The artifact is on disk (rank 0)."""

    def adopting(self, model: GPT) -> None:
        """A model that never trained, with what the artifact holds, is about to stand in the trained one's place."""

    def scored(self, stage: Stage, score: Score) -> None:
        """An evaluation has ended."""

    def too_long(self, error: EvaluationTooLong) -> None:
        """An evaluation was stopped at its limit of time."""

    def code_bytes(self) -> int:
        """Bytes of code that count beside the artifact."""
        raise NotImplementedError

    def quantize(self, meta: Mapping[str, Any]) -> None:
        """Calibrate where the quantizer wants to, and write the artifact of the weights in place. Raises GolfError."""
        parts, clocks = self.parts, self.trainer.clocks
        if isinstance(parts.quantizer, Calibrates):
            from golf.quant.calibration import Trained  # its code counts where it is used

            trained = Trained(
                parts.model, parts.prepared.train, self.ranks, parts.settings.seed, parts.settings.train_seq_len,
                parts.model.border_id if parts.loader.packed else None,
            )  # fmt: skip
            calibrate(parts.quantizer, trained, clocks)
        if (took := clocks.seconds.get("calibrate")) is not None:
            logger.info("calibrated in %.1f s, %.1f s were kept for it", took, parts.reserve_s)
        with clocks.phase("quantize"):
            if self.ranks.is_main:
                info, entries = write_artifact(
                    parts.folder.artifact, parts.model, parts.quantizer, parts.codec, parts.prepared.tokenizer.hash,
                    meta, self.code_bytes, self.spare,
                )  # fmt: skip
                self.written(info, entries)
            self.ranks.barrier()

    def from_artifact(self) -> GPT:
        """A model that never trained, with what the artifact holds."""
        model = self.parts.fresh()
        read_artifact(self.parts.folder.artifact, model)
        return model

    def _score_stage(self, stage: Stage, by_own_method: bool) -> None:
        """Contiguously, and by the evaluator's own method where that is another."""
        self.score(stage, self.parts.evaluator.contiguous())
        if by_own_method and self.parts.evaluator.method != "contiguous":
            self.score(stage, self.parts.evaluator)

    def score(self, stage: Stage, evaluator: Evaluates) -> None:
        """Score the weights in place, within the budget's limit where they are the artifact's."""
        limit = self.parts.budget.eval_seconds if stage == "quantized" else None
        try:
            with self.trainer.clocks.phase("eval"):
                score = self.trainer.evaluate(evaluator, limit)
        except EvaluationTooLong as error:
            logger.warning("%s", str(error).splitlines()[0])
            self.too_long(error)
            return
        logger.info("%s, %s: val_bpb %.4f  val_loss %.4f  (%.1f s, %s)",
                    stage, score.method, score.val_bpb, score.val_loss, score.seconds, score.speed)  # fmt: skip
        self.scored(stage, score)
