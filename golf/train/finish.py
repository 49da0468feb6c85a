"""What follows training in a run of golf's: its stages, and what is kept, recorded and proved of them."""

from __future__ import annotations

import base64
import lzma
import math
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from golf.artifact.container import ArtifactInfo
from golf.artifact.ledger import ledger
from golf.common.errors import ArtifactError, EvaluationTooLong, GolfError, reason
from golf.common.files import atomic_writer
from golf.common.log import FILE_ONLY, logger
from golf.common.paths import is_option
from golf.common.ranks import lost_another
from golf.evals.evaluators import Score
from golf.evals.protocol import Evaluates
from golf.nn.linear import EffectiveWeights
from golf.nn.live import beside_state, same
from golf.nn.models.gpt import GPT
from golf.quant.entry import Entry
from golf.runs.record import BOUND, PACKED, Bytes, EvalRecord, Proof
from golf.train import proof
from golf.train.stages import Stage, Stages, decided, load_state, read_artifact
from golf.train.trainer import Trainer


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


def code_files() -> list[Path]:
    """The source that this process ran: golf's modules but those of commands, exports and run records, and the user's
    own with the data that lies beside them in the run's code/."""
    root = Path(__file__).resolve().parents[1]
    files = set()
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if file is None or not file.endswith(".py"):
            continue
        path = Path(file).resolve()
        own = path.is_relative_to(root) and path.relative_to(root).parts[0] not in ("cli", "launch", "runs", "export")
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


@dataclass(frozen=True)
class Code:
    """Bytes of code that count beside an artifact, and what they are."""

    bytes: int
    what: str = PACKED


class Finish(Stages):
    """The stages after training; weights are kept, evaluations collected in `evals`, and the scored model is proved.

    An evaluation of the quantized model that would overrun its budget becomes one of `violations`.
    """

    def __init__(
        self, trainer: Trainer, count: Callable[[], Code] | None = None, made: Callable[[], None] = lambda: None
    ) -> None:
        """count: tells the bytes of code, on rank 0 (None: `code_bytes`). made: is called on every rank as soon as the
        artifact is made."""
        super().__init__(trainer)
        self._made = made
        self.spare = self.parts.folder.weights
        self._count = count
        self.evals: list[EvalRecord] = []
        self.violations: list[str] = []
        self.kept = False
        """Whether the trained weights are on disk."""
        self.bytes: Bytes | None = None
        self.quantization: dict[str, Any] = {}
        self.proof = Proof()
        self._left_out: str | None = None

    def run(self, meta: Mapping[str, Any]) -> None:
        """Go through the stages, and look at what was scored. Raises GolfError."""
        super().run(meta)
        with self.trainer.clocks.phase("prove"):
            self._prove()

    def reached(self, stages: Mapping[Stage, Mapping[str, torch.Tensor]], meta: Mapping[str, Any]) -> None:
        """Write the last stage's weights to the run's file."""
        *_, (stage, state) = stages.items()
        if self.ranks.is_main:
            with self.trainer.clocks.phase("quantize"):
                told = {"stage": stage, **{key: str(value) for key, value in meta.items()}}
                try:
                    save_state(self.parts.folder.weights, state, told)
                except GolfError as error:  # they are worth less than the artifact, which takes a tenth of the room
                    logger.warning("the weights are not kept: %s", error)
                    return
        self.kept = True

    def quantize(self, meta: Mapping[str, Any]) -> None:
        """As any run does; an error says what is to be done."""
        remedy = f"the weights are kept: golf quantize run={self.parts.folder.path} quant=… makes an artifact of them"
        if not self.kept:
            remedy = "the weights are not kept either"
        with mendable("quantization", remedy):
            super().quantize(meta)
        self._made()

    @cached_property
    def code(self) -> Code:
        """The bytes of code, counted once."""
        with self.trainer.clocks.phase("count"):
            return Code(code_bytes(), BOUND) if self._count is None else self._count()

    def code_bytes(self) -> int:
        """Those of what this process ran."""
        return self.code.bytes

    def written(self, info: ArtifactInfo, entries: Mapping[str, Entry]) -> None:
        """Note where the bytes go."""
        parts, code = self.parts, self.code
        rows = ledger(info, entries, parts.codec)
        by_group = {place: row.bytes for place, row in rows.items()}
        self.quantization = decided(entries, parts.quantizer)
        if code.what != PACKED:
            logger.info("bytes of code: %s", code.what)
        if code.what != PACKED and (data := [path for path in code_files() if path.suffix != ".py"]):
            listed = ", ".join(path.name for path in data[:5]) + (", …" if len(data) > 5 else "")
            logger.info("counted with your code: %d files beside it (%s)", len(data), listed)
        self.bytes = Bytes.count(info.bytes, code.bytes, parts.budget.artifact_bytes, by_group, code.what)

    def adopting(self, model: GPT) -> None:
        """See whether the trained model has more than the artifact holds."""
        self._left_out = self._beside(model)

    def score(self, stage: Stage, evaluator: Evaluates) -> None:
        """As any run does; an error says what is to be done."""
        remedy = f"the artifact is kept: golf eval run={self.parts.folder.path} eval=… scores it"
        with mendable("evaluation", remedy):
            super().score(stage, evaluator)

    def scored(self, stage: Stage, score: Score) -> None:
        """Keep it for the record."""
        self.evals.append(EvalRecord(stage=stage, **score.as_dict()))

    def too_long(self, error: EvaluationTooLong) -> None:
        """It makes the run invalid."""
        self.violations.append(str(error).splitlines()[0])

    def _prove(self) -> None:
        """Look at the model that was scored as its evaluators use it; what is wrong makes the run invalid."""
        parts, trainer = self.parts, self.trainer
        parts.model.eval()
        trainer.weights.refresh()
        own = [] if parts.evaluator.method == "contiguous" else [parts.evaluator]
        exact = None if parts.model.numerics.compute == "float32" else self._exactly
        prover = proof.Prover(parts.model, trainer.run_model, parts.validation, trainer.fixed_shapes, exact)
        found = proof.Proof()
        found.add("artifact alone", self._left_out)
        found += prover.prove([parts.evaluator.contiguous(), *own], sorted(trainer.remembered))
        found += proof.of_data(parts.prepared.facts)
        for sentence in found.violations if self.ranks.is_main else ():
            logger.warning("%s", sentence)
        self.violations += found.violations
        self.proof = Proof(proved=found.proved, not_checked=found.not_checked, broken=found.broken)

    def _exactly(self) -> GPT:
        """The model that is scored, computing in float32."""
        model = self.parts.fresh(exact=True)
        load_state(model, self.parts.model.state_dict())
        return model

    @torch.no_grad()
    def _beside(self, model: GPT) -> str | None:
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
            for one in (trained, self.from_artifact()):  # a window may leave its mark: `model` stays as it is
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
