"""Where and how a run computes: device, workers, dtype, compilation."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

import torch

from golf.common.errors import ConfigError
from golf.common.process import usable_cores
from golf.common.seeding import deterministic, seed_all

SPANS = 8
"""Spans of a global batch: the record scripts' eight GPUs, whatever the number of workers."""
GRAPH_TOKENS = 65_536
"""Most tokens of a pass that `cuda_graphs=auto` records: with more, a GPU is busy for longer than its host queues."""


def synchronize(device: torch.device) -> None:
    """Wait for the device's queued work; a CPU has none."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Arriving:
    """A device's small tensor on its way to the host, which goes on meanwhile; a CPU's is there at once."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._host, self._there = tensor, None
        if tensor.is_cuda:
            self._host = torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
            self._there = torch.cuda.Event()
            self._there.record()

    def wait(self) -> torch.Tensor:
        """The tensor on the host, once the work queued before it is done."""
        if self._there is not None:
            self._there.synchronize()
        return self._host


@dataclass(frozen=True)
class Runtime:
    """The `runtime` config group.

    device: auto takes a GPU if there is one. nproc: workers, which share the spans of a step. dtype: auto is bfloat16
    on cuda and float32 on the CPU. compile: auto is the whole model on cuda and nothing on the CPU. compile_eval:
    evaluations as training is compiled; auto: unless fused kernels serve throughout. micro_tokens: most tokens of one
    forward/backward per worker; spans are joined up to it (None: 262,144 on a GPU of at least 64 GB, else 131,072).
    check_every: steps between looks at the clock, the loss and Ctrl-C (None: 1 on the CPU, 8 on cuda).
    threads: CPU threads of a worker (None: cores / nproc). kernels: auto puts fused kernels in place of the ops that
    they cover, reference leaves every op as it is. cuda_graphs: launch a step's forward and its backward as recorded
    graphs; auto: where a worker's step is one of each, in bfloat16, over at most `GRAPH_TOKENS`, and the GPU has room
    for the memory that graphs keep to themselves (64 GB). deterministic: only reproducible kernels. hang_seconds: for
    how long one of several workers may be silent and idle before the run ends (None: for ever). retry_out_of_memory:
    where memory did not suffice for a pass of training, start the run again with the `micro_tokens` that is expected to
    fit. Raises ConfigError for values out of range.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    nproc: int = 1
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: Literal["auto", "model", "block", "none"] = "auto"
    compile_eval: Literal["auto"] | bool = "auto"
    micro_tokens: int | None = None
    check_every: int | None = None
    threads: int | None = None
    kernels: Literal["auto", "reference"] = "auto"
    cuda_graphs: Literal["auto"] | bool = "auto"
    deterministic: bool = False
    hang_seconds: float | None = 120.0
    retry_out_of_memory: bool = False

    def __post_init__(self) -> None:
        if self.nproc < 1 or SPANS % self.nproc:
            *fewer, most = [str(n) for n in range(1, SPANS + 1) if SPANS % n == 0]
            shared = f"the {SPANS} spans of a step are shared by {', '.join(fewer)} or {most} workers"
            raise ConfigError(f"runtime.nproc={self.nproc}: {shared}")
        if self.compile_eval is True and self.compile == "none":
            raise ConfigError("runtime.compile_eval=true: needs runtime.compile=model or block")
        if self.micro_tokens is not None and self.micro_tokens < 1:
            raise ConfigError(f"runtime.micro_tokens={self.micro_tokens}: must be positive")
        if self.check_every is not None and self.check_every < 1:
            raise ConfigError(f"runtime.check_every={self.check_every}: must be at least 1")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"runtime.threads={self.threads}: must be at least 1")
        if self.hang_seconds is not None and self.hang_seconds <= 0:
            raise ConfigError(f"runtime.hang_seconds={self.hang_seconds:g}: must be positive, or null for ever")

    @property
    def device_type(self) -> Literal["cpu", "cuda"]:
        """cpu or cuda. Raises ConfigError when cuda was asked for and is not there."""
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("runtime.device=cuda: torch sees no CUDA device here (try runtime=cpu)")
        return "cuda" if self.device != "cpu" and torch.cuda.is_available() else "cpu"

    def check_devices(self) -> None:
        """Raises ConfigError when there are fewer GPUs than workers."""
        if self.device_type == "cuda" and torch.cuda.device_count() < self.nproc:
            raise ConfigError(f"runtime.nproc={self.nproc}: this machine has {torch.cuda.device_count()} GPUs")

    @property
    def compute(self) -> Literal["float32", "bfloat16"]:
        """The dtype of matrix products."""
        if self.dtype == "auto":
            return "bfloat16" if self.device_type == "cuda" else "float32"
        return self.dtype

    @property
    def compile_scope(self) -> Literal["model", "block", "none"]:
        """What is compiled."""
        if self.compile == "auto":
            return "model" if self.device_type == "cuda" else "none"
        return self.compile

    @property
    def check_interval(self) -> int:
        """Steps between looks at the clock, the loss and Ctrl-C."""
        return self.check_every or (8 if self.device_type == "cuda" else 1)

    def check_graphs(self, spans: int, span_tokens: int, world: int) -> None:
        """Raises ConfigError when CUDA graphs were asked for and cannot be recorded.

        What one pass puts out, gradients too, lasts until the next one: a step must be a single one.
        """
        if self.cuda_graphs is not True:
            return
        if not self._compiles_low:
            raise ConfigError("runtime.cuda_graphs=true: needs a GPU, bfloat16 and runtime.compile=model")
        passes = self.micro_steps(spans, span_tokens, world)
        if passes > 1:
            raise ConfigError(
                f"runtime.cuda_graphs=true: a step is {passes} forwards here, and must be one: a larger "
                "runtime.micro_tokens, or more workers"
            )

    def records_graphs(self, spans: int, span_tokens: int, world: int) -> bool:
        """Whether training launches a step's forward and its backward as CUDA graphs. Raises ConfigError as
        `check_graphs` does."""
        self.check_graphs(spans, span_tokens, world)
        if self.cuda_graphs != "auto":
            return self.cuda_graphs
        small = spans // world * span_tokens <= GRAPH_TOKENS and self.micro_steps(spans, span_tokens, world) == 1
        return self._compiles_low and small and self.roomy

    @property
    def _compiles_low(self) -> bool:
        return self.device_type == "cuda" and self.compile_scope == "model" and self.compute == "bfloat16"

    def cpu_threads(self, world: int) -> int:
        """CPU threads for one of `world` workers on this machine."""
        return self.threads or max(1, usable_cores() // world)

    @property
    def micro_limit(self) -> int:
        """Most tokens of one forward/backward."""
        if self.micro_tokens is not None:
            return self.micro_tokens
        return 262_144 if self.roomy else 131_072

    @property
    def roomy(self) -> bool:
        """Whether it is a GPU of at least 64 GB."""
        return self.device_type == "cuda" and torch.cuda.get_device_properties(0).total_memory >= 64e9

    def micro_steps(self, spans: int, span_tokens: int, world: int) -> int:
        """Forward/backward passes per step and worker: the fewest that divide its spans and respect `micro_limit`."""
        mine = spans // world
        for count in range(1, mine + 1):
            if mine % count == 0 and mine // count * span_tokens <= self.micro_limit:
                return count
        return mine


def set_up(runtime: Runtime, world: int, seed: int) -> None:
    """What of torch is this process's own, as one of `world` workers: threads, TF32, determinism, seeds."""
    torch.set_num_threads(runtime.cpu_threads(int(os.environ.get("LOCAL_WORLD_SIZE", world))))
    if runtime.device_type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
    deterministic(runtime.deterministic)
    seed_all(seed)
