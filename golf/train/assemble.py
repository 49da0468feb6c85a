"""From components to the parts of a run on this worker's device; who made them, and of what config, is not asked.

golf's own commands make them by Hydra's rules (golf.launch.compose.build); an exported file names them as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch

from golf.artifact.codecs import Codec
from golf.common.errors import ConfigError
from golf.common.log import logger
from golf.common.ranks import Ranks
from golf.common.runtime import SPANS, Runtime
from golf.common.seeding import seed_all
from golf.data.loader import Feed, Loader
from golf.data.prepare import Prepared
from golf.data.shards import Shards
from golf.evals.evaluators import Validation
from golf.evals.protocol import Evaluates
from golf.learn.averaging import Averaging
from golf.learn.budget import Budget, Scalable, rescale_components
from golf.nn.kernels import Kernel, put
from golf.nn.models.gpt import GPT
from golf.quant.quantizer import Quantizer
from golf.runs.folder import Names
from golf.train.hooks import Hook
from golf.train.parts import Optimizer, Parts, Schedule
from golf.train.timeline import Phase


class ScalableOptimizer(Optimizer, Scalable, Protocol):
    """An optimizer with settings that count training time."""


class ScalableSchedule(Schedule, Scalable, Protocol):
    """A schedule with such settings."""


@dataclass
class Components:
    """What a config stands for, before there is data or a device.

    model: builds the model, with unset weights, for a compute dtype, on the current default device. loader: of a
    keyword `feed`. kernels: those that may be put into the model.
    """

    phases: Sequence[Phase]
    model: Callable[[str], GPT]
    kernels: Sequence[Kernel]
    loader: Callable[..., Loader]
    optimizer: ScalableOptimizer
    schedule: ScalableSchedule
    averaging: Averaging
    quantizer: Quantizer
    codec: Codec
    evaluator: Evaluates
    runtime: Runtime
    budget: Budget
    callbacks: Sequence[Hook] = ()


def assemble(made: Components, ranks: Ranks, folder: Names, prepared: Prepared) -> Parts:
    """All parts of a training run, on this worker's device. Raises ConfigError or DataError."""
    stages, runtime, budget = made.phases, made.runtime, made.budget
    for phase in stages:
        if (follow := getattr(phase.qat, "follow", None)) is not None:  # it rounds as the run's own quantizer does
            follow(made.quantizer)
    settings, device = stages[0].settings, device_of(runtime, ranks)
    border = prepared.tokenizer.bos_id
    model = placed(made.model, made.kernels, settings.seed, runtime, device, border, initialize=True, log=True)
    optimizer, schedule, averaging = made.optimizer, made.schedule, made.averaging
    scaled = rescale_components([optimizer, schedule, averaging], budget, ranks.world)
    optimizer.attach(dict(model.named_parameters()), model.specs(), ranks, tied=model.tied)
    validation = validation_of(made, device, prepared)
    passes = runtime.micro_steps(SPANS, settings.train_batch_tokens // SPANS, ranks.world)
    feed = feed_of(
        stages, prepared.train, rank=ranks.rank, world=ranks.world, micro_steps=passes, device=device, border_id=border
    )
    loader = made.loader(feed=feed)
    if loader.packed:
        check_packs(model, device.type)
    return Parts(
        phases=stages, runtime=runtime, ranks=ranks, device=device, model=model,
        fresh=partial(fresh, made.model, made.kernels, stages[-1], runtime, device, border), optimizer=optimizer,
        schedule=schedule, averaging=averaging, loader=loader, prepared=prepared, validation=validation,
        evaluator=made.evaluator, quantizer=made.quantizer, codec=made.codec, budget=budget,
        scaled=scaled, folder=folder, callbacks=made.callbacks,
    )  # fmt: skip


def device_of(runtime: Runtime, ranks: Ranks) -> torch.device:
    """This worker's device."""
    return torch.device("cuda", ranks.local_rank) if runtime.device_type == "cuda" else torch.device("cpu")


def validation_of(made: Components, device: torch.device, prepared: Prepared) -> Validation:
    """What evaluators read, on the device. Raises DataError when it is shorter than a window."""
    return Validation.of(prepared, made.evaluator.seq_len, made.phases[0].settings.val_tokens, device)


def placed(
    build: Callable[[str], GPT], kernels: Sequence[Kernel], seed: int, runtime: Runtime, device: torch.device,
    border_id: int | None, *,
    initialize: bool = False, log: bool = False, exact: bool = False,
) -> GPT:  # fmt: skip
    """The model that `build` makes on its device, with those of the kernels that can serve. What its parts draw at
    random is the same each time.

    initialize: with a run's first weights, else with unset ones. log: say which kernels cannot serve. exact: computing
    in float32 by the plain ops, whatever the runtime says.
    """
    seed_all(seed)
    model = build("float32" if exact else runtime.compute)
    model.border_id = border_id
    if initialize:
        model.initialize(seed)
    model.to(device)
    lines = put(model, kernels, "reference" if exact else runtime.kernels)
    for line in lines if log else ():
        logger.info("%s", line)
    return model


def fresh(
    build: Callable[[str], GPT], kernels: Sequence[Kernel], last: Phase, runtime: Runtime, device: torch.device,
    border_id: int | None = None, *,
    log: bool = False, exact: bool = False,
) -> GPT:  # fmt: skip
    """The model on its device as it is in the `last` phase, with unset weights, ready to be scored. border_id: the
    token that begins a document. log: say which kernels cannot serve. exact: in float32, by the plain ops. Raises
    ConfigError."""
    model = placed(build, kernels, last.settings.seed, runtime, device, border_id, log=log, exact=exact)
    last.enter(model)
    return model.eval()


def feed_of(stages: Sequence[Phase], shards: Shards, **more: Any) -> Feed:
    """What a run's loader is built with: the sizes are those of its first phase."""
    first, longest = stages[0].settings, max(phase.settings.train_seq_len for phase in stages)
    sizes = first.train_batch_tokens, first.train_seq_len
    return Feed(shards, *sizes, spans=SPANS, seed=first.seed, longest=longest, **more)


def check_packs(model: GPT, device: str) -> None:
    """Raises ConfigError where the documents of a loader that packs cannot share a row."""
    if (reason := model.cannot_pack_on(device)) is not None:
        raise ConfigError(f"loader.packed=true: documents cannot share a row here: {reason}")
