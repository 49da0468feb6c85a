"""What the bench times of the passes over the residual stream, of one lane and of two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from golf.nn.kernels import lanes, stream

Calls = tuple[Callable[[], Any], Callable[[], Any], float, float]
"""Forward and backward by the kernel and by its twin (compiled), the bytes both passes must move, and the FLOPs."""


def _draw(device: torch.device, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, device=device, dtype=dtype, requires_grad=True)


def _calls(
    kernel: Callable[..., Any], reference: Callable[..., Any], inputs: list[Tensor | None], constants: tuple[Any, ...],
    outputs: int, passes: int,
) -> Calls:  # fmt: skip
    """Gradients come to the first so many outputs, all as wide as the first input, which `passes` tensors of both ways
    are too; the rest and the FLOPs are nothing to speak of."""
    wide = inputs[0]
    assert wide is not None
    grads = [torch.randn_like(wide) for _ in range(outputs)]
    twin = torch.compile(reference, dynamic=False)

    def run(function: Callable[..., Any]) -> None:
        torch.autograd.backward(function(*inputs, *constants)[:outputs], grads)
        for tensor in inputs:
            if tensor is not None:
                tensor.grad = None

    return lambda: run(kernel), lambda: run(twin), 2.0 * wide.numel() * passes, 0.0


class StreamCase:
    """Forward and backward of the pass before a layer: two additions and the mix, or one addition.

    As in a model, the first addition's scale is in a weight.
    """

    name = "stream"

    def __init__(self, tokens: int, dim: int = 512, mixed: bool = True) -> None:
        self.tokens, self.dim, self.mixed = tokens, dim, mixed
        self.shapes = f"{tokens} tokens of {dim}, {'skip and mix' if mixed else 'one addition'}"

    def make(self, device: torch.device) -> Calls:
        """What is timed."""
        x, v1, v2, x0 = (_draw(device, self.tokens, self.dim) for _ in range(4))
        inputs: list[Tensor | None] = [x, v1, None, None, None, None, None]
        if self.mixed:
            s2, mix = (_draw(device, *shape, dtype=torch.float32) for shape in ((self.dim,), (2, self.dim)))
            inputs[3:] = [v2, s2, x0, mix]
        passes = (4 + 2) + (7 + 3) if self.mixed else (2 + 2) + (3 + 1)
        return _calls(stream.stream, stream.reference, inputs, (False, 1e-6, 1.0, 0), 2, passes)


class LanesCase:
    """Forward and backward of the pass between two layers of two lanes, with the mix, and with or without a skip."""

    name = "lanes"

    def __init__(self, tokens: int, dim: int = 512, popped: bool = False) -> None:
        self.tokens, self.dim, self.popped = tokens, dim, popped
        self.shapes = f"{tokens} tokens of {dim}, {'skip and mix' if popped else 'mix'}"

    def make(self, device: torch.device) -> Calls:
        """What is timed."""
        u, w, a, b, skip, x0 = (_draw(device, self.tokens, self.dim) for _ in range(6))
        c = _draw(device, 9, self.dim, dtype=torch.float32)
        inputs = [u, w, a, b, skip if self.popped else None, x0, c]
        passes = (5 + 4) + (9 + 5) + (3 if self.popped else 0)
        return _calls(lanes.lanes, lanes.reference, inputs, (1e-6, 1.0, 0), 4, passes)


CASES: list[StreamCase | LanesCase] = [
    StreamCase(65_536), StreamCase(65_536, mixed=False), StreamCase(98_304), LanesCase(98_304),
    LanesCase(98_304, popped=True),
]  # fmt: skip
