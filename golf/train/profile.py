"""Which kernels a training step runs, and how long each takes: torch's profiler around the trainer's own steps."""

from __future__ import annotations

import csv
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from golf.common.files import atomic_writer
from golf.common.log import logger
from golf.common.runtime import synchronize
from golf.nn.attend import preferred_sdpa_kernels
from golf.train.trainer import Trainer

ATTENTION = re.compile(r"flash|fmha|sdpa|attention|attn", re.IGNORECASE)


@dataclass(frozen=True)
class Kernel:
    """One kernel's part of a step. `share` is of the device time of all kernels."""

    name: str
    calls_per_step: float
    ms_per_step: float
    share: float


def profile_steps(trainer: Trainer, steps: int, trace: Path | None = None) -> list[Kernel]:
    """Run steps under the profiler; this rank's kernels (operators on the CPU), the longest first.

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
        logger.warning("no profile: %s", str(error).splitlines()[0])
        return []
    wanted = "CUDA" if cuda else "CPU"
    rows = [
        (row.key, row.count, (row.self_device_time_total if cuda else row.self_cpu_time_total) / 1000)
        for row in profiler.key_averages()
        if row.device_type.name == wanted
    ]
    total = sum(ms for _, _, ms in rows) or 1.0
    found = [Kernel(name, count / steps, ms / steps, ms / total) for name, count, ms in rows if ms]
    return sorted(found, key=lambda kernel: -kernel.ms_per_step)


def attention_kernels(found: list[Kernel]) -> list[str]:
    """Names of those that compute attention, as far as names tell."""
    return [kernel.name for kernel in found if ATTENTION.search(kernel.name)]


def write_csv(path: Path, found: list[Kernel]) -> None:
    """Keep all of them as a table. Raises GolfError when the disk is full."""
    with atomic_writer(path, "w") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Kernel)])
        writer.writeheader()
        writer.writerows(asdict(kernel) for kernel in found)


def busy(found: list[Kernel], step_ms: float) -> float | None:
    """Kernel time over the time of a step: below 1 the device waited, above it streams overlapped."""
    return sum(kernel.ms_per_step for kernel in found) / step_ms if found and torch.cuda.is_available() else None
