"""What the bench times of the passes over the residual stream, of one lane and of two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from golf.nn.kernels import lanes, stream


class StreamCase:
    """Forward and backward of the pass before a layer: two additions and the mix, or one addition.

    As in a model, the first addition's scale is in a weight.
    """

    name = "stream"

    def __init__(self, tokens: int, dim: int = 512, mixed: bool = True) -> None:
        self.tokens, self.dim, self.mixed = tokens, dim, mixed
        self.shapes = f"{tokens} tokens of {dim}, {'skip and mix' if mixed else 'one addition'}"

    def make(self, device: torch.device) -> tuple[Callable[[], Any], Callable[[], Any], float, float]:
        """The kernel and its twin (compiled), the bytes that both passes must move, and no FLOPs to speak of."""

        def draw(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
            return torch.randn(*shape, device=device, dtype=dtype, requires_grad=True)

        wide = (self.tokens, self.dim)
        inputs: list[Tensor | None] = [draw(*wide), draw(*wide), None, None, None, None, None]
        if self.mixed:
            inputs[3:] = [
                draw(*wide),
                draw(self.dim, dtype=torch.float32),
                draw(*wide),
                draw(2, self.dim, dtype=torch.float32),
            ]
        grads = [torch.randn(wide, device=device, dtype=torch.bfloat16) for _ in range(2)]
        twin = torch.compile(stream.reference, dynamic=False)

        def run(function: Callable[..., Any]) -> None:
            torch.autograd.backward(function(*inputs, False, 1e-6, 1.0, 0)[:2], grads)
            for tensor in inputs:
                if tensor is not None:
                    tensor.grad = None

        passes = (4 + 2) + (7 + 3) if self.mixed else (2 + 2) + (3 + 1)
        return lambda: run(stream.stream), lambda: run(twin), 2.0 * self.tokens * self.dim * passes, 0.0


class LanesCase:
    """Forward and backward of the pass between two layers of two lanes, with the mix, and with or without a skip."""

    name = "lanes"

    def __init__(self, tokens: int, dim: int = 512, popped: bool = False) -> None:
        self.tokens, self.dim, self.popped = tokens, dim, popped
        self.shapes = f"{tokens} tokens of {dim}, {'skip and mix' if popped else 'mix'}"

    def make(self, device: torch.device) -> tuple[Callable[[], Any], Callable[[], Any], float, float]:
        """The kernel and its twin (compiled), the bytes that both passes must move, and no FLOPs to speak of."""

        def draw(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
            return torch.randn(*shape, device=device, dtype=dtype, requires_grad=True)

        wide = (self.tokens, self.dim)
        skip = draw(*wide) if self.popped else None
        c = draw(9, self.dim, dtype=torch.float32)
        inputs = [draw(*wide), draw(*wide), draw(*wide), draw(*wide), skip, draw(*wide), c]
        grads = [torch.randn(wide, device=device, dtype=torch.bfloat16) for _ in range(4)]
        twin = torch.compile(lanes.reference, dynamic=False)

        def run(function: Callable[..., Any]) -> None:
            torch.autograd.backward(function(*inputs, 1e-6, 1.0, 0)[:4], grads)
            for tensor in inputs:
                if tensor is not None:
                    tensor.grad = None

        passes = (5 + 4) + (9 + 5) + (3 if self.popped else 0)
        return lambda: run(lanes.lanes), lambda: run(twin), 2.0 * self.tokens * self.dim * passes, 0.0


CASES: list[StreamCase | LanesCase] = [
    StreamCase(65_536), StreamCase(65_536, mixed=False), StreamCase(98_304), LanesCase(98_304),
    LanesCase(98_304, popped=True),
]  # fmt: skip
