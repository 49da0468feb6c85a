"""What a device can do: products, copies, attention, all-reduce; and fused kernels timed against their twins.

Figures of two machines compare once they are divided by these, measured in the same run.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F

from golf.common.log import logger
from golf.common.ranks import Ranks
from golf.common.runtime import synchronize
from golf.nn import kernels

ATTENTION_TOKENS = 65_536
ATTENTION_LENGTHS = (1024, 2048, 4096)
_FLUSH_BYTES = 256 << 20  # beyond any level-2 cache


def time_ms(run: Callable[[], Any], device: torch.device, seconds: float = 0.3, least: int = 10) -> float:
    """Median milliseconds of one call, caches cold, after two calls that are not counted."""
    run()
    began = time.perf_counter()
    run()
    synchronize(device)
    estimate = time.perf_counter() - began
    count = min(max(int(seconds / max(estimate, 1e-9)), least), 200)
    if device.type != "cuda":
        times = []
        for _ in range(count):
            began = time.perf_counter()
            run()
            times.append(1000 * (time.perf_counter() - began))
        return statistics.median(times)
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device=device)
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(count)]
    for begin, end in pairs:
        flush.zero_()
        begin.record()
        run()
        end.record()
    synchronize(device)
    return statistics.median(float(begin.elapsed_time(end)) for begin, end in pairs)


def reference(device: torch.device, ranks: Ranks | None = None) -> dict[str, float | None]:
    """The figures by name: `…_tflops`, `…_tb_s`, `…_ms` (attention: forward and backward). None: could not run here."""
    found: dict[str, float | None] = {}
    cuda = device.type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    for shape in ((65_536, 512, 1536), (8192, 8192, 8192)) if cuda else ((1024, 512, 512),):
        ms = _attempt(lambda shape=shape: _product_ms(shape, dtype, device))  # type: ignore[misc]
        name = "product_" + "x".join(map(str, shape)) + "_tflops"
        found[name] = None if ms is None else 2e-9 * shape[0] * shape[1] * shape[2] / ms
    size = (1 << 29) if cuda else (1 << 24)
    ms = _attempt(lambda: _copy_ms(size, device))
    found["copy_tb_s"] = None if ms is None else 2e-9 * size / ms
    if cuda:
        for backend in ("flash", "cudnn"):
            for length in ATTENTION_LENGTHS:
                found[f"attention_{backend}_{length}_ms"] = _attempt(
                    lambda backend=backend, length=length: _attention_ms(backend, length, device)  # type: ignore[misc]
                )
    if ranks is not None and ranks.world > 1:
        found["all_reduce_gb_s"] = _all_reduce_gb_s(device, ranks)
    return found


def _attempt(measure: Callable[[], float]) -> float | None:
    try:
        return measure()
    except (RuntimeError, torch.OutOfMemoryError) as error:
        logger.info("a reference figure could not be measured: %s", (str(error).splitlines() or [""])[0])
        return None


def _product_ms(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> float:
    m, k, n = shape
    a, b = torch.randn(m, k, dtype=dtype, device=device), torch.randn(n, k, dtype=dtype, device=device)
    out = torch.empty(m, n, dtype=dtype, device=device)
    return time_ms(lambda: torch.mm(a, b.T, out=out), device)


def _copy_ms(size: int, device: torch.device) -> float:
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return time_ms(lambda: target.copy_(source), device)


def _attention_ms(backend: str, length: int, device: torch.device) -> float:
    """Forward and backward of causal attention over 65,536 tokens, 8 query and 4 key heads of 64, bfloat16."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    batch = ATTENTION_TOKENS // length
    q, k, v = (
        torch.randn(batch, length, heads, 64, dtype=torch.bfloat16, device=device, requires_grad=True)
        for heads in (8, 4, 4)
    )
    grad = torch.randn(batch, length, 8, 64, dtype=torch.bfloat16, device=device).transpose(1, 2)

    def both() -> None:
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, enable_gqa=True
        )
        torch.autograd.grad(out, (q, k, v), grad)

    chosen = SDPBackend.FLASH_ATTENTION if backend == "flash" else SDPBackend.CUDNN_ATTENTION
    with sdpa_kernel(chosen):
        return time_ms(both, device)


def _all_reduce_gb_s(device: torch.device, ranks: Ranks, size: int = 1 << 26) -> float:
    """Bytes that cross each rank's links per second in an all-reduce of 64 MiB (nccl's "bus bandwidth")."""
    tensor = torch.zeros(size // 4, device=device)
    times = []
    for _ in range(8):
        ranks.barrier()
        synchronize(device)
        began = time.perf_counter()
        ranks.sum(tensor)
        synchronize(device)
        times.append(time.perf_counter() - began)
    return 2e-9 * size * (ranks.world - 1) / ranks.world / statistics.median(times)


@dataclass(frozen=True)
class CaseResult:
    """A kernel against its twin. `floor_ms` is the time that the device's copy and product rates allow at best;
    `of_ceiling` the part of that rate which the kernel reached."""

    name: str
    shapes: str
    kernel_ms: float
    twin_ms: float
    speedup: float
    bytes: float
    flops: float
    tb_s: float
    tflops: float
    floor_ms: float
    of_ceiling: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values by name."""
        return asdict(self)


def ceiling(figures: dict[str, float | None]) -> tuple[float, float]:
    """(bytes a second, FLOP/s) of a device, from its reference figures."""
    products = [value for name, value in figures.items() if name.startswith("product_") and value]
    return 1e12 * (figures.get("copy_tb_s") or float("inf")), 1e12 * max(products, default=float("inf"))


def without_launches(run: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """The call as a CUDA graph, which takes the device's time and not the host's; itself where it can't be captured."""
    if device.type != "cuda":
        return run
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(3):  # compiles, and makes what capturing must not
            run()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            run()
    except RuntimeError as error:
        logger.info("timed with its launches: %s", (str(error).splitlines() or [""])[0])
        return run
    return graph.replay


def time_case(case: kernels.Case, device: torch.device, rates: tuple[float, float]) -> CaseResult:
    """Time one kernel and its twin, launches left out."""
    kernel, twin, moved, flops = case.make(device)
    kernel_ms, twin_ms = (time_ms(without_launches(run, device), device) for run in (kernel, twin))
    floor_ms = 1000 * max(moved / rates[0], flops / rates[1])
    return CaseResult(
        case.name, str(case.shapes), kernel_ms, twin_ms, twin_ms / kernel_ms, moved, flops,
        1e-9 * moved / kernel_ms, 1e-9 * flops / kernel_ms, floor_ms, floor_ms / kernel_ms,
    )  # fmt: skip


def peak_flops(device: torch.device) -> float | None:
    """Dense bf16 peak of a known GPU in FLOP/s, by the vendor's datasheet; None when it isn't known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    known = {
        "H100": 989e12,
        "H200": 989e12,
        "H800": 989e12,
        "A100": 312e12,
        "B200": 2250e12,
        "L40S": 362e12,
        "4090": 165e12,
    }
    return next((flops for part, flops in known.items() if part in name), None)
