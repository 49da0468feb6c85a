"""Which kernels a training step runs, and how long each takes: torch's profiler around the trainer's own steps."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from golf.common.files import atomic_writer
from golf.common.log import logger
from golf.common.ranks import lost_another
from golf.common.runtime import synchronize
from golf.nn.attend import preferred_sdpa_kernels
from golf.train.trainer import Trainer

ATTENTION = re.compile(r"flash|fmha|sdpa|attention|attn", re.IGNORECASE)
BETWEEN_RANKS = "nccl"
"""How names begin of kernels that mostly wait for other ranks; with a colon after it, of spans drawn over them."""


@dataclass(frozen=True)
class KernelTime:
    """One kernel's part of a step. `share` is of the device time of all kernels."""

    name: str
    calls_per_step: float
    ms_per_step: float
    share: float


@dataclass(frozen=True)
class Profile:
    """This rank's kernels (operators on the CPU), the longest first, and how long a step keeps the device busy.

    `busy_ms`: ms of a step in which at least one kernel ran that is not NCCL's; None on a CPU.
    """

    kernels: list[KernelTime]
    busy_ms: float | None = None


def profile_steps(trainer: Trainer, steps: int, trace: Path | None = None) -> Profile:
    """Run steps under the profiler.

    `trace` receives a trace for chrome://tracing or Perfetto. Empty, with a log line, where profiling is not allowed.
    """
    device = trainer.parts.device
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    try:
        with preferred_sdpa_kernels(device), profile(activities=activities, acc_events=True) as profiler:
            for _ in range(steps):
                trainer.rehearse()
            synchronize(device)
        if trace is not None:
            profiler.export_chrome_trace(str(trace))
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or lost_another(error):
            raise  # the others would wait for this one, or it for them
        logger.warning("no profile: %s", str(error).splitlines()[0])
        return Profile([])
    wanted = "CUDA" if cuda else "CPU"
    rows = [
        (row.key, row.count, (row.self_device_time_total if cuda else row.self_cpu_time_total) / 1000)
        for row in profiler.key_averages()
        if row.device_type.name == wanted
        and not (cuda and (row.is_user_annotation or row.key.startswith(f"{BETWEEN_RANKS}:")))
    ]
    total = sum(ms for _, _, ms in rows) or 1.0
    found = [KernelTime(name, count / steps, ms / steps, ms / total) for name, count, ms in rows if ms]
    spans = (
        (event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type.name == "CUDA"
        and not event.is_user_annotation
        and not event.name.startswith(BETWEEN_RANKS)
    )
    busy_ms = covered(spans) / 1000 / steps if cuda else None
    return Profile(sorted(found, key=lambda kernel: -kernel.ms_per_step), busy_ms)


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length of the union of spans (start, end)."""
    length, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        length += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return length


def attention_kernels(kernels: list[KernelTime]) -> list[str]:
    """Names of those that compute attention, as far as names tell."""
    return [kernel.name for kernel in kernels if ATTENTION.search(kernel.name)]


def write_csv(path: Path, kernels: list[KernelTime]) -> None:
    """Keep all of them as a table. Raises GolfError when the disk is full."""
    with atomic_writer(path, "w") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(KernelTime)])
        writer.writeheader()
        writer.writerows(asdict(kernel) for kernel in kernels)
