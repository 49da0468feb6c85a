"""How the backward pass over two lanes is best cut up: `python benchmarks/lanes_tiles.py [TOKENS]` on a GPU.

Warps a row, programs, and rows in hand or on the way, each candidate timed as the median of 20 calls, with and without
a skip. The last column is what must be moved through memory.
"""

from __future__ import annotations

import statistics
import sys

import torch

from golf.nn.kernels import lanes

CANDIDATES = [
    lanes.BACKWARD,
    *(lanes.Tiles(4, 132 * each, stages) for stages in (1, 2, 3, 4) for each in (2, 3, 4, 6)),
    *(lanes.Tiles(2, 132 * each, stages) for stages in (1, 2, 3) for each in (4, 8)),
    *(lanes.Tiles(8, 132 * each, stages) for stages in (2, 3) for each in (1, 2)),
]


def milliseconds(inputs: list[torch.Tensor | None], grads: list[torch.Tensor], c: torch.Tensor) -> float:
    """The median over 20 calls, after three."""
    times = []
    for number in range(23):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(10):  # one alone would be timed with the host's work for it
            lanes.lanes_backward(*grads, *inputs, c, 1e-6, 0.5)
        end.record()
        end.synchronize()
        if number >= 3:
            times.append(begin.elapsed_time(end) / 10)
    return statistics.median(times)


def main(tokens: int = 98_304, dim: int = 512) -> None:
    """Print a line for each candidate."""

    def draw(width: int = dim) -> torch.Tensor:
        return torch.randn(tokens, width, device="cuda", dtype=torch.bfloat16)

    print(torch.cuda.get_device_name())
    c = torch.randn(9, dim, device="cuda")
    for popped in (True, False):
        inputs = [draw(), draw(), draw(), draw(), draw() if popped else None, draw()]
        grads = [draw(), draw(), draw(), draw(), draw(16)]
        moved = 2.0 * tokens * dim * (14 + 2 * popped)
        for tiles in CANDIDATES:
            lanes.BACKWARD = tiles
            took = milliseconds(inputs, grads, c)
            told = f"{took:7.4f} ms  {moved / took / 1e9:5.2f} TB/s"
            print(f"{'with a skip' if popped else 'without':<12} {tuple(tiles)!s:<16} {told}", flush=True)
        lanes.BACKWARD = CANDIDATES[0]


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:2]))
