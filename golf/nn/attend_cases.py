"""Every attention backend at the shapes of training, for `golf bench kernels`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch

from golf.data.loader import bucket
from golf.nn.attend import SDPA, Backend, backend, installed, preferred_sdpa_kernels
from golf.nn.context import Documents

Passes = Literal["forward", "forward and backward"]
HEADS, KV_HEADS, SIZE = 8, 4, 64
MEDIAN = 400
"""Tokens of a document, by the middle of web text's."""


class AttentionCase:
    """One layer's attention by a backend, in whole windows or in documents; its twin is torch's own."""

    def __init__(
        self, name: Backend, packed: bool, passes: Passes, tokens: int = 65_536, longest: int = 2_048
    ) -> None:  # fmt: skip
        self.backend, self.packed, self.passes, self.tokens, self.longest = name, packed, passes, tokens, longest
        self.name = f"attention {name}"
        self.lengths = documents(tokens, longest) if packed else [longest] * (tokens // longest)
        rows = f"{len(self.lengths)} documents" if packed else f"{len(self.lengths)} x {longest}"
        self.shapes = f"{passes}, {rows}, {tokens} tokens, {HEADS}/{KV_HEADS} heads of {SIZE}"

    def make(self, device: torch.device) -> tuple[Callable[[], Any], Callable[[], Any], float, float]:
        """The backend's call and torch's, the bytes that must move, and the FLOPs of what is not masked.

        Raises ConfigError where the package cannot be imported, RuntimeError where it cannot serve.
        """
        chosen = backend(self.backend)
        reason = chosen.why_not(device, torch.bfloat16, SIZE)
        if reason is not None:
            raise RuntimeError(reason)
        rows = (1, self.tokens) if self.packed else (self.tokens // self.longest, self.longest)
        q, k, v = (
            torch.randn(*rows, heads, SIZE, device=device, dtype=torch.bfloat16).requires_grad_()
            for heads in (HEADS, KV_HEADS, KV_HEADS)
        )
        grad = torch.randn_like(q)
        cuts = torch.tensor([0, *self.lengths]).cumsum(0)
        borders = torch.full((bucket(len(cuts)),), self.tokens, dtype=torch.int32)
        borders[: len(cuts)] = cuts
        where = Documents.of(borders.to(device), self.tokens, self.longest)

        def by(attend: Any) -> Callable[[], Any]:
            def run() -> None:
                with preferred_sdpa_kernels(device), torch.set_grad_enabled(self.passes != "forward"):
                    out = attend.packed(q, k, v, where) if self.packed else attend.whole(q, k, v)
                    if self.passes != "forward":
                        torch.autograd.grad(out, (q, k, v), grad)

            return run

        seen = sum(n * (n + 1) // 2 for n in self.lengths)
        flops = 4.0 * seen * HEADS * SIZE * (3.5 if self.passes != "forward" else 1)
        tensors = 2 * (HEADS + KV_HEADS) * (3 if self.passes != "forward" else 1)  # q, out and theirs; k, v
        return by(chosen), by(SDPA), 2.0 * self.tokens * SIZE * tensors, flops


def documents(tokens: int, longest: int) -> list[int]:
    """Lengths like those of web text, cut at the longest, that come to so many tokens; always the same."""
    generator = torch.Generator().manual_seed(1)
    found, left = list[int](), tokens
    while left:
        length = 1 + int(MEDIAN * (0.9 * torch.randn((), generator=generator)).exp())
        while length and left:
            found.append(min(length, longest, left))
            length, left = length - found[-1], left - found[-1]
    return found


def cases(device: torch.device) -> list[AttentionCase]:
    """One for each installed backend, in windows and in documents, forward alone and with backward; CUDA's alone."""
    if device.type != "cuda":
        return []
    names: list[Backend] = [name for name in get_args(Backend) if name != "auto" and installed(name)]
    return [
        AttentionCase(name, packed, passes)
        for packed in (False, True) for passes in get_args(Passes) for name in names
    ]  # fmt: skip
