"""A GPU's memory that did not suffice: what took it, and which setting would fit."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from golf.common.errors import GolfError
from golf.common.log import FILE_ONLY, logger
from golf.common.runtime import SPANS
from golf.train.parts import Parts

SPARE = 0.9
"""Which part of a GPU a setting may be expected to take that is said to fit."""


@dataclass(frozen=True)
class Use:
    """Bytes of a GPU at their peak. `passes`: what is there of neither of the others, mostly activations."""

    weights: int
    optimizer: int
    passes: int
    total: int
    """What the GPU has for this process."""


def explained(error: BaseException, parts: Parts) -> BaseException:
    """The error itself, or of a GPU's memory that did not suffice a GolfError with what took it and what would fit; the
    traceback goes into the log."""
    if not isinstance(error, torch.OutOfMemoryError) or parts.device.type != "cuda":
        return error
    logger.info("%s", "".join(traceback.format_exception(error)), extra=FILE_ONLY)
    settings = parts.settings
    return GolfError("\n".join(told(
        used(parts), parts.micro_steps(settings), settings.train_batch_tokens // SPANS, SPANS // parts.ranks.world
    )))  # fmt: skip


def used(parts: Parts) -> Use:
    """What the run's GPU had at its peak, of whom."""
    model = parts.model
    weights = held([model.state_dict(), [one.grad for one in model.parameters()]], parts.device)
    others = held([part.state_dict() for name, part in parts.stateful().items() if name != "loader"], parts.device)
    peak = int(torch.cuda.max_memory_allocated(parts.device))
    total = torch.cuda.mem_get_info(parts.device)[0] + torch.cuda.memory_reserved(parts.device)
    return Use(weights, others, max(0, peak - weights - others), total)


def held(values: Any, device: torch.device) -> int:
    """Bytes of the tensors in nested values that lie on a device, each storage once."""
    found = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors(values)
             if one.device.type == device.type}  # fmt: skip
    return sum(found.values())


def tensors(values: Any) -> Iterable[torch.Tensor]:
    """All tensors in nested mappings and lists."""
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from tensors(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from tensors(value)


def told(use: Use, passes: int, span_tokens: int, spans: int) -> list[str]:
    """The lines of the error: what took the memory, and the largest `runtime.micro_tokens` that is expected to fit, of
    a worker whose `spans` of so many tokens are cut into `passes` now."""
    gib = {name: f"{value / 2**30:.2f} GiB" for name, value in vars(use).items()}
    lines = [
        f"out of memory: the GPU has {gib['total']} here; at the peak {gib['weights']} were weights and gradients, "
        f"{gib['optimizer']} optimizer and averages, {gib['passes']} a pass of {spans // passes * span_tokens:,} tokens"
    ]
    fixed = use.weights + use.optimizer
    for count in range(passes + 1, spans + 1):
        if spans % count == 0 and fixed + use.passes * passes / count <= SPARE * use.total:
            setting = f"runtime.micro_tokens={spans // count * span_tokens}"
            return [*lines, f"{setting} cuts a step into {count} passes, which is expected to fit"]
    return [*lines, "no smaller pass fits: fewer train_batch_tokens, a smaller model or more workers might"]
