"""Which tiles suit the MLP's kernels: `python benchmarks/mlp_tiles.py [TOKENS] [DIM] [HIDDEN] [SLOPE]` on a GPU.

Each candidate's result is held to that of the tiles in force, then timed: the median of 20 calls, with cuBLAS' product
of the same sizes, which has no activation, and QuACK's kernels, where installed, for comparison. Those that the GPU
cannot hold are said to be refused.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from golf.nn.kernels import mlp

UP = [
    mlp.FORWARD, mlp.Tiles(128, 256, 64, 3, 8, 1, 8), mlp.Tiles(128, 256, 64, 3, 8, 1, 1),
    mlp.Tiles(128, 256, 32, 6, 8, 1, 1), mlp.Tiles(128, 128, 64, 3, 4, 2, 1), mlp.Tiles(128, 128, 64, 3, 4, 2, 4),
    mlp.Tiles(128, 128, 64, 3, 4, 2, 8), mlp.Tiles(128, 128, 32, 6, 4, 2, 8), mlp.Tiles(64, 256, 64, 2, 4, 2, 1),
    mlp.Tiles(256, 128, 64, 3, 8, 1, 8),
]  # fmt: skip
DOWN = [
    mlp.BACKWARD, mlp.Tiles(128, 128, 64, 3, 4, 2, 1), mlp.Tiles(128, 128, 64, 3, 4, 2, 4),
    mlp.Tiles(128, 128, 64, 3, 4, 2, 8), mlp.Tiles(128, 128, 32, 6, 4, 2, 8), mlp.Tiles(128, 256, 64, 3, 8, 1, 1),
    mlp.Tiles(128, 256, 64, 3, 8, 1, 8), mlp.Tiles(256, 128, 64, 3, 8, 1, 8), mlp.Tiles(64, 256, 64, 2, 4, 2, 8),
]  # fmt: skip


def milliseconds(call: Callable[..., Any], *given: Any) -> float:
    """The median over 20 calls, after three."""
    for _ in range(3):
        call(*given)
    times = []
    for _ in range(20):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(10):  # one alone would be timed with the host's work for it
            call(*given)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 10)
    return statistics.median(times)


def main(tokens: int = 98_304, dim: int = 512, hidden: int = 2048, slope: float = 0.5) -> None:
    """Print a line for each candidate."""
    torch.manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device="cuda").div_(shape[-1] ** 0.5).bfloat16()

    n, dy, up, down = draw(tokens, dim), draw(tokens, dim), draw(hidden, dim), draw(dim, hidden)
    h = n.new_empty(tokens, hidden)
    mlp.by_triton(n, up, h, None, slope)
    flops = 2.0 * tokens * dim * hidden
    for _ in range(3000):  # until clocks are those of long work
        F.linear(n, up)

    def told(what: str, took: float) -> None:
        print(f"{what:<70} {took:7.4f} ms {flops / took / 1e9:6.0f} TFLOP/s", flush=True)

    print(f"{torch.cuda.get_device_name()}: [{tokens}, {dim}] × [{dim}, {hidden}], slope {slope}")
    for name, attribute, candidates, first, second, kept in (
        ("up", "FORWARD", UP, n, up, None), ("down's gradient", "BACKWARD", DOWN, dy, down, h)
    ):  # fmt: skip
        plain = F.linear if kept is None else torch.matmul
        told(f"{name}: cuBLAS, the product alone", milliseconds(plain, first, second))
        want: torch.Tensor | None = None
        for tiles in candidates:
            setattr(mlp, attribute, tiles)
            out = torch.empty_like(h)
            made = (out, None) if kept is None else (kept, out)
            try:
                took = milliseconds(mlp.by_triton, first, second, *made, slope)
            except Exception as error:  # whatever Triton raises for what does not fit
                print(f"{name}: {tuple(tiles)} refused: {str(error).splitlines()[0][:80]}")
                continue
            want = out if want is None else want
            told(f"{name}: {tuple(tiles)}{'' if torch.equal(out, want) else ' DIFFERS'}", took)
        setattr(mlp, attribute, candidates[0])
        if mlp.written_in(n.device) == "CuTe":
            from golf.nn.kernels import mlp_cute

            out = torch.empty_like(h)
            made = (out, None) if kept is None else (kept, out)
            took = milliseconds(mlp_cute.launch, first, second, *made, slope)
            told(f"{name}: QuACK{'' if want is None or torch.equal(out, want) else ' DIFFERS'}", took)


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:4]), *(float(word) for word in sys.argv[4:5]))
