"""What follows training: average, quantize, write the artifact, read it back, and score every stage."""

from __future__ import annotations

import base64
import lzma
import math
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from golf.artifact.codecs import Codec
from golf.artifact.container import Artifact, ArtifactInfo, artifact_size, load_artifact, save_artifact
from golf.artifact.ledger import ledger
from golf.common.clock import Clocks
from golf.common.errors import ArtifactError, EvaluationTooLong, GolfError, reason
from golf.common.files import atomic_writer
from golf.common.log import FILE_ONLY, logger
from golf.common.paths import is_option
from golf.common.ranks import Ranks, lost_another
from golf.common.runtime import synchronize
from golf.evals.protocol import Evaluates
from golf.nn.linear import EffectiveWeights
from golf.nn.live import Live, beside_state, same
from golf.nn.models.gpt import GPT
from golf.quant.calibration import Trained
from golf.quant.entry import Entry, dequantize
from golf.quant.fit import Fits, fitted
from golf.quant.quantizer import Calibrates, Quantizer
from golf.runs.record import Bytes, EvalRecord, Proof, Stage
from golf.train import proof
from golf.train.trainer import Trainer


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


def save_weights(path: Path, model: GPT, metadata: Mapping[str, str]) -> None:
    """Write the model's weights as safetensors, atomically. Raises GolfError when the disk is full."""
    save_state(path, model.state_dict(), metadata)


def save_state(path: Path, state: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """The same of named tensors."""
    with atomic_writer(path) as file:
        file.write(save({name: t.detach().cpu().contiguous() for name, t in state.items()}, metadata=dict(metadata)))


def load_weights(path: Path, model: GPT) -> str:
    """Load weights that `save_weights` wrote; their stage. Raises GolfError when the file is missing or broken."""
    try:
        if path.exists() and not path.is_file():
            raise ArtifactError("not a plain file")
        state = load_file(path)
        with safe_open(path, "pt") as file:
            stage = str((file.metadata() or {}).get("stage", "stop"))
    except FileNotFoundError:
        raise GolfError(f"{path} is missing: the run kept no raw weights") from None
    except Exception as error:
        raise ArtifactError(f"{path}: not a readable safetensors file ({error})") from error
    load_state(model, state)
    return stage


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


@contextmanager
def mendable(what: str, remedy: str) -> Iterator[None]:
    """Within the block any error becomes a GolfError that says what is to be done; train.log gets the traceback."""
    try:
        yield
    except EvaluationTooLong:
        raise
    except GolfError as error:
        error.args = (f"{error}\n{remedy}",)
        raise
    except Exception as error:
        if lost_another(error):
            raise
        logger.info("%s", "".join(traceback.format_exception(error)), extra=FILE_ONLY)
        raise GolfError(f"{what} failed: {type(error).__name__}: {reason(error)}\n{remedy}") from error


def write_artifact(
    path: Path, model: GPT, quantizer: Quantizer, codec: Codec, tokenizer_hash: str, meta: Mapping[str, Any], code: int
) -> tuple[ArtifactInfo, dict[str, Entry]]:
    """Quantize the model's weights into an artifact on disk. code: bytes that count beside it, where it is to fit."""
    left_out = unstored(model)
    state = {name: t.detach().cpu() for name, t in model.state_dict().items() if name not in left_out}
    specs = {name: spec for name, spec in model.specs().items() if spec.stored}
    if isinstance(quantizer, Fits) and quantizer.fit is not None:
        size = partial(artifact_size, codec=codec, meta=meta, tokenizer_hash=tokenizer_hash)
        entries = fitted(quantizer, state, specs, quantizer.fit - code, size)
    else:
        entries = quantizer.quantize(state, specs)
    if all(entry.scheme == "raw" for entry in entries.values()):
        logger.warning("no tensor was quantized: each is kept whole by quant.passthrough_numel or quant.keep")
    if codec.reads_values and any(entry.packed for entry in entries.values()):
        logger.warning(
            "codec=%s finds nothing to save in packed bits: quant.pack=false leaves it a byte a value", codec.name
        )
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


def code_files() -> list[Path]:
    """The source that this process ran: golf's modules but those of commands and run records, and the user's own with
    the data that lies beside them in the run's code/."""
    root = Path(__file__).resolve().parents[1]
    files = set()
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if file is None or not file.endswith(".py"):
            continue
        path = Path(file).resolve()
        own = path.is_relative_to(root) and path.relative_to(root).parts[0] not in ("cli", "launch", "runs")
        if own:
            files.add(path)
        for code in (one for one in path.parents if one.name == "code" and one.with_name("config.yaml").exists()):
            beside = (one for one in path.parent.rglob("*") if one.suffix not in (".py", ".pyc") and one.is_file())
            files |= {path, *(one for one in beside if not is_option(one.relative_to(code)))}
    return sorted(files)


def code_bytes(more: Iterable[Path] = ()) -> int:
    """Size in bytes of `code_files`, and of `more`, as one script that unpacks itself.

    An upper bound of what a submission's script needs: compressed (LZMA, base85) as the records' are, but with nothing
    minified or left out.
    """
    files = sorted({*code_files(), *(path.resolve() for path in more)})
    packed = lzma.compress(b"".join(path.read_bytes() for path in files), preset=9 | lzma.PRESET_EXTREME)
    return len(base64.b85encode(packed))


class Finish:
    """The stages after training, on every rank; evaluations are collected in `evals`.

    An evaluation of the quantized model that would overrun its budget is stopped, and becomes one of `violations`.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.parts = trainer, trainer.parts
        self.ranks: Ranks = trainer.parts.ranks
        self.evals: list[EvalRecord] = []
        self.violations: list[str] = []
        self.kept = False
        """Whether the trained weights are on disk."""
        self.bytes: Bytes | None = None
        self.quantization: dict[str, Any] = {}
        self.proof = Proof()

    def run(self, meta: Mapping[str, Any]) -> None:
        """Keep the weights, average them and keep those, quantize, and score every stage.

        What may fail in code that is not golf's comes late: the weights lie on disk before the quantizer is called, and
        the artifact before an evaluator is. Raises GolfError.
        """
        parts, model = self.parts, self.parts.model
        self.trainer.release_graphs()
        stages: dict[Stage, Mapping[str, torch.Tensor]] = {"stop": detached(model)}
        self._keep(stages, meta)
        if (averaged := parts.averaging.average()) is not None:
            stages["averaged"] = averaged
            self._keep(stages, meta)
            load_state(model, averaged)
        elif parts.averaging.reason is not None:
            logger.info("%s", parts.averaging.reason)
        self._quantize(meta)
        for stage, state in stages.items():
            load_state(model, state)
            self._score_stage(stage, parts.settings.eval_all_stages)
        del stages, averaged
        with self.trainer.clocks.phase("quantize"):
            model = self._from_artifact()
            left_out = self._left_out(model)
            self.trainer.adopt(model)
        self._score_stage("quantized", True)
        with self.trainer.clocks.phase("prove"):
            self._prove(left_out)

    def _prove(self, left_out: str | None) -> None:
        """Look at the model that was scored as its evaluators use it; what is wrong makes the run invalid."""
        parts, trainer = self.parts, self.trainer
        parts.model.eval()
        trainer.weights.refresh()
        own = [] if parts.evaluator.method == "contiguous" else [parts.evaluator]
        exact = None if parts.model.numerics.compute == "float32" else self._exactly
        prover = proof.Prover(parts.model, trainer.run_model, parts.validation, trainer.compiled, exact)
        found = proof.Proof()
        found.add("artifact alone", left_out)
        found += prover.prove([parts.evaluator.contiguous(), *own], sorted(trainer.remembered))
        found += proof.of_data(parts.prepared.facts)
        for sentence in found.violations if self.ranks.is_main else ():
            logger.warning("%s", sentence)
        self.violations += found.violations
        self.proof = Proof(proved=found.proved, not_checked=found.not_checked)

    def _keep(self, stages: Mapping[Stage, Mapping[str, torch.Tensor]], meta: Mapping[str, Any]) -> None:
        """Write the last stage's weights to the run's file."""
        *_, (stage, state) = stages.items()
        if self.ranks.is_main:
            with self.trainer.clocks.phase("quantize"):
                told = {"stage": stage, **{key: str(value) for key, value in meta.items()}}
                save_state(self.parts.folder.weights, state, told)
        self.kept = True

    def _quantize(self, meta: Mapping[str, Any]) -> None:
        """Calibrate where the quantizer wants to, and write the artifact of the weights in place. Raises GolfError."""
        parts, clocks = self.parts, self.trainer.clocks
        trained = Trained(
            parts.model, parts.prepared.train, self.ranks, parts.settings.seed, parts.settings.train_seq_len,
            parts.model.border_id if parts.loader.packed else None,
        )  # fmt: skip
        remedy = f"the weights are kept: golf quantize run={parts.folder.path} quant=… makes an artifact of them"
        with mendable("quantization", remedy):
            calibrate(parts.quantizer, trained, clocks)
            if (took := clocks.seconds.get("calibrate")) is not None:
                logger.info("calibrated in %.1f s, %.1f s were kept for it", took, parts.reserve_s)
            with clocks.phase("quantize"):
                if self.ranks.is_main:
                    self._write(meta)
                self.ranks.barrier()

    def _write(self, meta: Mapping[str, Any]) -> None:
        parts = self.parts
        info, entries = write_artifact(
            parts.folder.artifact, parts.model, parts.quantizer, parts.codec, parts.prepared.tokenizer.hash, meta,
            code := code_bytes(),
        )  # fmt: skip
        rows = ledger(info, entries, parts.codec)
        by_group = {place: row.bytes for place, row in rows.items()}
        self.quantization = decided(entries, parts.quantizer)
        if data := [path for path in code_files() if path.suffix != ".py"]:
            listed = ", ".join(path.name for path in data[:5]) + (", …" if len(data) > 5 else "")
            logger.info("counted with your code: %d files beside it (%s)", len(data), listed)
        self.bytes = Bytes.count(info.bytes, code, parts.budget.artifact_bytes, by_group)

    def _from_artifact(self) -> GPT:
        """A model that never trained, with what the artifact holds."""
        model = self.parts.fresh()
        read_artifact(self.parts.folder.artifact, model)
        return model

    def _exactly(self) -> GPT:
        """The model that is scored, computing in float32."""
        model = self.parts.fresh(exact=True)
        load_state(model, self.parts.model.state_dict())
        return model

    @torch.no_grad()
    def _left_out(self, model: GPT) -> str | None:
        """Which state the trained model has beside the artifact, where its figures differ by it from `model`'s."""
        trained = self.parts.model
        own, read = beside_state(trained), beside_state(model)
        names = sorted(name for name in own.keys() | read.keys() if not same(own.get(name), read.get(name)))
        if not names:
            return None
        read_artifact(self.parts.folder.artifact, trained)
        window = self.parts.validation.tokens[None, : min(self.parts.evaluator.seq_len, model.longest) + 1]
        losses = []
        try:
            for one in (trained, self._from_artifact()):  # a window may leave its mark: `model` stays as it is
                one.eval()
                EffectiveWeights(one).refresh()
                losses.append(float(one(window[:, :-1], window[:, 1:])))
        except Exception as error:  # a user's own code may raise anything, and this is only something to tell
            return f"state that is not in the artifact, hence not scored: {', '.join(names[:4])} ({error})"
        if math.isclose(*losses, rel_tol=1e-5):
            return None
        listed = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        return (
            f"trained with state that is not in the artifact, hence not scored: {listed} (first window: val_loss "
            f"{losses[0]:.4f} with it, {losses[1]:.4f} without; persistent buffers are kept)"
        )

    def _score_stage(self, stage: Stage, by_own_method: bool) -> None:
        """Contiguously, and by the evaluator's own method where that is another."""
        self._score(stage, self.parts.evaluator.contiguous())
        if by_own_method and self.parts.evaluator.method != "contiguous":
            self._score(stage, self.parts.evaluator)

    def _score(self, stage: Stage, evaluator: Evaluates) -> None:
        limit = self.parts.budget.eval_seconds if stage == "quantized" else None
        remedy = f"the artifact is kept: golf eval run={self.parts.folder.path} eval=… scores it"
        try:
            with mendable("evaluation", remedy), self.trainer.clocks.phase("eval"):
                score = self.trainer.evaluate(evaluator, limit)
        except EvaluationTooLong as error:
            sentence = str(error).splitlines()[0]
            logger.warning("%s", sentence)
            self.violations.append(sentence)
            return
        logger.info("%s, %s: val_bpb %.4f  val_loss %.4f  (%.1f s, %s)",
                    stage, score.method, score.val_bpb, score.val_loss, score.seconds, score.speed)  # fmt: skip
        self.evals.append(EvalRecord(stage=stage, **score.as_dict()))
