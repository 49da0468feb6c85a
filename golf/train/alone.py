"""A run without the rest of golf: what an exported `train_gpt.py` calls with the components of its config.

It trains, quantizes, writes the artifact, reads it back and scores it by the classes that every run has; data,
tokenizer and log lines are by the record scripts' conventions. It reads no config, keeps no record, and knows no
logger but lines.

    DATA_PATH       folder of fineweb_train_*.bin and fineweb_val_*.bin   (./data/datasets/fineweb10B_<tokenizer>)
    TOKENIZER_PATH  the SentencePiece model          (./data/tokenizers/fineweb_<vocabulary>_bpe.model)
    SEED            in place of the run's own        RUN_ID  names logs/<RUN_ID>.txt
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from golf.artifact.container import ArtifactInfo
from golf.common import ranks as groups
from golf.common.clock import Clocks
from golf.common.errors import DataError, EvaluationTooLong, GolfError, GolfInterrupted
from golf.common.log import logger
from golf.common.ranks import Ranks
from golf.common.runtime import set_up
from golf.data import sidecar
from golf.data.prepare import Prepared
from golf.data.shards import Shards
from golf.evals.evaluators import Score
from golf.nn.linear import EffectiveWeights
from golf.quant.entry import Entry
from golf.runs.folder import Names
from golf.tokenizers.base import Loads, counts_apart
from golf.train.assemble import Components, assemble, device_of, fresh, validation_of
from golf.train.compiling import scoring
from golf.train.parts import Parts
from golf.train.stages import Stage, Stages, read_artifact
from golf.train.trainer import Trainer


def main(components: Callable[[], Components], tokenizer: Loads, config: str, code: int | None = None) -> int:
    """Train and score, or with `--eval FILE` only score; the exit code. config: the identity of the run's config, which
    the artifact holds. code: bytes that count beside it (None: this file's), where grids are
    fitted into a limit."""
    words = sys.argv[1:]
    if words and (words[0] != "--eval" or len(words) != 2):
        print("usage: train_gpt.py [--eval FILE]", file=sys.stderr)
        return 2
    try:
        made = seeded(components(), os.environ.get("SEED"))
        ranks = groups.join(made.runtime.device_type)
        speak(ranks, os.environ.get("RUN_ID", "train"))
        settings = made.phases[0].settings
        set_up(made.runtime, ranks.world, settings.seed)
        if words:
            evaluate(made, tokenizer, ranks, Path(words[1]))
        else:
            train(made, tokenizer, ranks, config, code)
        groups.leave()
    except GolfError as error:
        logger.error("%s", str(error) or place_of(error))
        return error.exit_code
    return 0


def place_of(error: BaseException) -> str:
    """Where an error without a text, or its first cause, arose: a packed file has few texts, and the line says why."""
    while error.__cause__ is not None:
        error = error.__cause__
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"line {last.lineno}: {last.line}  {error}".rstrip()


def seeded(made: Components, seed: str | None) -> Components:
    """The components of a run of this seed."""
    if seed is None:
        return made
    if not seed.isdecimal():
        raise DataError(f"SEED={seed}: a whole number is needed")
    phases = [replace(one, settings=replace(one.settings, seed=int(seed))) for one in made.phases]
    return replace(made, phases=phases)


def speak(ranks: Ranks, name: str) -> None:
    """Let rank 0 write lines to standard output and logs/<name>.txt."""
    logger.propagate = False
    logger.setLevel(logging.INFO if ranks.is_main else logging.ERROR)
    logger.addHandler(logging.StreamHandler(sys.stdout))
    if ranks.is_main:
        Path("logs").mkdir(exist_ok=True)
        logger.addHandler(logging.FileHandler(f"logs/{name}.txt", encoding="utf-8"))


def found(tokenizer: Loads, training: bool) -> Prepared:
    """The shards and their tokenizer, where the record scripts look for them. training: the training shards too."""
    name, folder = tokenizer.name, Path("data")
    shards = Path(os.environ.get("DATA_PATH", folder / "datasets" / f"fineweb10B_{name}"))
    vocabulary = name.lstrip("sp")
    model = Path(os.environ.get("TOKENIZER_PATH", folder / "tokenizers" / f"fineweb_{vocabulary}_bpe.model"))
    loaded = tokenizer.load(model)
    pattern = "fineweb_val_*.bin"
    val = Shards.open(sidecar.without(sorted(shards.glob(pattern))) or shards / pattern, loaded.vocab_size)
    counts = None
    if counts_apart(loaded):
        beside = sidecar.beside(val.paths)
        if not beside:
            raise DataError(f"{model}: bytes are counted by a side-car, and {shards} has no fineweb_val_bytes_*.bin")
        counts = sidecar.open_beside(beside, val)
    train = Shards.open(shards / "fineweb_train_*.bin", loaded.vocab_size) if training else val
    return Prepared(loaded, train, val, {}, counts)


def train(made: Components, tokenizer: Loads, ranks: Ranks, config: str, code: int | None) -> None:
    """Train, quantize, write artifact.golf, read it back and score it. Raises GolfError."""
    parts = assemble(made, ranks, Names("."), found(tokenizer, training=True))
    total = sum(parameter.numel() for parameter in parts.model.parameters())
    logger.info("model_params:%d", total)
    logger.info("train_tokens:%d val_tokens:%d", len(parts.prepared.train), len(parts.validation.tokens) - 1)
    logger.info("world_size:%d micro_steps:%d seed:%d", ranks.world, parts.micro_steps(parts.settings),
                parts.settings.seed)  # fmt: skip
    trainer = Trainer(parts, Clocks(), Lines(parts).report)
    try:
        trainer.train()
    finally:
        parts.loader.close()
    if trainer.interrupted:
        raise GolfInterrupted(trainer.step, trainer.interrupt.by)
    elapsed = 1000 * trainer.clock.elapsed_s
    if trainer.step < parts.schedule.iterations:
        logger.info("stopping_early: wallclock_cap train_time:%.0fms step:%d/%d", elapsed, trainer.step,
                    parts.schedule.iterations)  # fmt: skip
    if parts.device.type == "cuda":
        logger.info("peak memory allocated: %d MiB reserved: %d MiB", torch.cuda.max_memory_allocated() >> 20,
                    torch.cuda.max_memory_reserved() >> 20)  # fmt: skip
    Submission(trainer, code).run({"steps": trainer.step, "seed": parts.settings.seed, "config": config})


def evaluate(made: Components, tokenizer: Loads, ranks: Ranks, path: Path) -> None:
    """Score an artifact. Raises GolfError."""
    prepared = found(tokenizer, training=False)
    runtime, device = made.runtime, device_of(made.runtime, ranks)
    validation = validation_of(made, device, prepared)
    model = fresh(made.model, made.kernels, made.phases[-1], runtime, device, prepared.tokenizer.bos_id, log=True)
    entries = read_artifact(path, model).entries
    EffectiveWeights(model).refresh()
    forward, fixed_shapes = scoring(model, runtime)
    evaluator = made.evaluator
    for one in [evaluator.contiguous()] + [evaluator] * (evaluator.method != "contiguous"):
        limit = made.budget.eval_seconds
        score = one.score(model, forward, validation, ranks, fixed_shapes, limit_s=limit)
        roundtrip(label(entries, made.codec.name), score)


class Lines:
    """A row of metrics as the record scripts' line."""

    def __init__(self, parts: Parts) -> None:
        self.planned = parts.schedule.iterations

    def report(self, metrics: Mapping[str, Any], step: int) -> None:
        """Log what training or validation tells after a step."""
        time_ms = 1000 * metrics["train_time_s"]
        for kind, more in (("val_loss", "val_bpb"), ("train_loss", "")):
            if kind in metrics:
                values = "".join(f" {name}:{metrics[name]:.8f}" for name in (kind, more) if name)
                logger.info("step:%d/%d%s train_time:%.0fms step_avg:%.2fms", step, self.planned, values, time_ms,
                            time_ms / max(step, 1))  # fmt: skip


class Submission(Stages):
    """The stages after training, told in the record scripts' lines."""

    def __init__(self, trainer: Trainer, code: int | None) -> None:
        super().__init__(trainer)
        self.own = Path(__file__).stat().st_size
        self.code = self.own if code is None else code

    def code_bytes(self) -> int:
        """Those that the run went by."""
        return self.code

    def written(self, info: ArtifactInfo, entries: Mapping[str, Entry]) -> None:
        """Tell the sizes, by the file as it is."""
        code = self.own
        self.label = label(entries, self.parts.codec.name)
        logger.info("Serialized model %s: %d bytes (payload:%d raw:%d)", self.label, info.bytes, info.payload_bytes,
                    info.raw_bytes)  # fmt: skip
        logger.info("Code size: %d bytes", code)
        logger.info("Total submission size %s: %d bytes", self.label, info.bytes + code)
        if (limit := self.parts.budget.artifact_bytes) is not None and info.bytes + code > limit:
            logger.warning("over the limit of %d bytes by %d", limit, info.bytes + code - limit)

    def scored(self, stage: Stage, score: Score) -> None:
        """Tell the figure of what was read back."""
        if stage == "quantized" and self.ranks.is_main:
            roundtrip(self.label, score)

    def too_long(self, error: EvaluationTooLong) -> None:
        """A submission without its figure is none."""
        raise error


def label(entries: Mapping[str, Entry], codec: str) -> str:
    """How a model is stored, such as int8+zlib: the bits of most of its values, and the codec."""
    values = Counter[int]()
    for entry in entries.values():
        if entry.scheme != "raw":
            values[entry.bits] += entry.numel
    return f"int{values.most_common(1)[0][0]}+{codec}" if values else codec


def roundtrip(stored: str, score: Score) -> None:
    """The line that a submission's figure is read from."""
    name = f"final_{stored.replace('+', '_')}_roundtrip"
    if score.method != "contiguous":
        name = f"{name}_{score.method}"
    logger.info("%s val_loss:%.4f val_bpb:%.4f eval_time:%.0fms", name, score.val_loss, score.val_bpb,
                1000 * score.seconds)  # fmt: skip
    logger.info("%s_exact val_loss:%.8f val_bpb:%.8f", name, score.val_loss, score.val_bpb)
