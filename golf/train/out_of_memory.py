"""Memory that did not suffice, a GPU's or the machine's: what took it, and which setting would fit."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from golf.common.errors import GolfError
from golf.common.log import FILE_ONLY, logger
from golf.common.runtime import SPANS
from golf.runs import environment
from golf.train.parts import Parts

SPARE = 0.9
"""Which part of a device a setting may be expected to take that is said to fit."""


@dataclass(frozen=True)
class Use:
    """Bytes of a device at their peak. `passes`: what is there of neither of the others, mostly activations."""

    weights: int
    optimizer: int
    passes: int
    total: int
    """What the device has for this process."""


class OutOfMemory(GolfError):
    """Memory did not suffice for a pass of training of so many `tokens`; `fits`: so many are expected to, if any."""

    def __init__(self, message: str, tokens: int, fits: int | None) -> None:
        super().__init__(message)
        self.tokens, self.fits = tokens, fits


def explained(error: BaseException, parts: Parts) -> BaseException:
    """The error itself, or of memory that did not suffice an OutOfMemory with what took it and what would fit; the
    traceback goes into the log."""
    if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator: can't allocate" not in str(error):
        return error
    logger.info("%s", "".join(traceback.format_exception(error)), extra=FILE_ONLY)
    settings = parts.settings
    use, passes = used(parts), parts.micro_steps(settings)
    span_tokens, spans = settings.train_batch_tokens // SPANS, SPANS // parts.ranks.world
    lines = told(use, passes, span_tokens, spans, "the GPU" if parts.device.type == "cuda" else "this machine")
    return OutOfMemory("\n".join(lines), spans // passes * span_tokens, fitting(use, passes, span_tokens, spans))


def used(parts: Parts) -> Use:
    """What the run's device had at its peak, of whom."""
    model, device = parts.model, parts.device
    weights = held([model.state_dict(), [one.grad for one in model.parameters()]], device)
    others = held([part.state_dict() for name, part in parts.stateful().items() if name != "loader"], device)
    if device.type == "cuda":
        peak = int(torch.cuda.max_memory_allocated(device))
        total = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    else:
        peak, total = environment.peak_memory().host_rss or 0, environment.hardware().memory_bytes or 0
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


def fitting(use: Use, passes: int, span_tokens: int, spans: int) -> int | None:
    """Tokens of the largest pass that is expected to fit, of a worker whose `spans` of so many tokens are cut into
    `passes` now; None where no smaller one would."""
    fixed = use.weights + use.optimizer
    for count in range(passes + 1, spans + 1):
        if spans % count == 0 and fixed + use.passes * passes / count <= SPARE * use.total:
            return spans // count * span_tokens
    return None


def told(use: Use, passes: int, span_tokens: int, spans: int, where: str = "the GPU") -> list[str]:
    """The lines of the error: what took the memory, and the largest `runtime.micro_tokens` that is `fitting`."""
    gib = {name: f"{value / 2**30:.2f} GiB" for name, value in vars(use).items()}
    tokens = spans // passes * span_tokens
    lines = [
        f"out of memory: {where} has {gib['total']} here; at the peak {gib['weights']} were weights and gradients, "
        f"{gib['optimizer']} optimizer and averages, {gib['passes']} a pass of {tokens:,} tokens"
    ]
    if (fits := fitting(use, passes, span_tokens, spans)) is None:
        return [*lines, "no smaller pass fits: fewer train_batch_tokens, a smaller model or more workers might"]
    cut = spans * span_tokens // fits
    return [*lines, f"runtime.micro_tokens={fits} cuts a step into {cut} passes, which is expected to fit"]
