"""Fused kernels: each stands for a run of the model's ops, and is put in their place once, when the model is built.

A kernel's twin is those ops as the model has them; `reference` beside it repeats them for the bench and the tests,
which hold it to both. A kernel that cannot serve here (no CUDA, another dtype, a size it doesn't know) leaves the ops
as they are and says why.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import nn

from golf.nn.attend import SDPA, Attend
from golf.nn.models.attention import CausalAttention
from golf.nn.models.gpt import GPT
from golf.nn.models.mlp import GatedMLP, SquaredMLP
from golf.nn.models.position import NoPosition, Rope
from golf.nn.models.residual import Residual
from golf.nn.techniques.xsa import XSA

Mode = Literal["auto", "reference"]


@dataclass(frozen=True)
class Kernel:
    """A fused kernel: the ops that it covers, why a model cannot have it (None: it can), and how it is put in place.

    least: the compute capability that it needs; below: one whose blocks have too little shared memory; within: whether
    a model has these ops at all.
    """

    name: str
    covers: tuple[str, ...]
    why_not: Callable[[GPT], str | None]
    install: Callable[[GPT], None]
    least: tuple[int, int] = (8, 0)
    below: tuple[int, int] | None = None
    within: Callable[[GPT], bool] = lambda model: True

    def takes(self, card: tuple[int, int]) -> bool:
        """Whether it runs on a GPU of this compute capability."""
        return self.least <= card and (self.below is None or card < self.below)


def install(model: GPT, mode: Mode = "auto") -> list[str]:
    """Put every kernel that can serve into the model, which is on its device; a line for each one that cannot.

    With `reference` all ops stay as they are. An attention backend that cannot serve gives way to torch's own in either
    mode. `model.kernels()` tells what serves each op.
    """
    lines = _attention(model)
    for kernel in KERNELS:
        if not kernel.within(model):
            continue
        reason = (
            "runtime.kernels=reference" if mode == "reference" else _no_triton(model, kernel) or kernel.why_not(model)
        )
        if reason is None:
            kernel.install(model)
        elif mode == "auto" and model.embedding.is_cuda:
            lines.append(f"kernel {kernel.name} cannot serve here ({reason}): its ops run unfused")
        model.served.update(dict.fromkeys(kernel.covers, f"{kernel.name} (Triton)" if reason is None else "torch"))
    return lines


def _attention(model: GPT) -> list[str]:
    lines = []
    for block in model.layers():
        chosen: Attend | None = getattr(block.attn, "attend", None)
        if chosen is None:
            continue
        reason = chosen.why_not(model.embedding.device, model.numerics.dtype, model.shape.head_dim)
        if reason is not None:
            block.attn.attend = SDPA
            lines.append(f"attention {chosen.name} cannot serve here ({reason}): torch's own runs")
    return list(dict.fromkeys(lines))


def _no_triton(model: GPT, kernel: Kernel) -> str | None:
    if not model.embedding.is_cuda:
        return "no CUDA device"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    card = torch.cuda.get_device_capability(model.embedding.device)
    if card < kernel.least:
        return f"the GPU is older than compute capability {kernel.least[0]}.{kernel.least[1]}"
    if not kernel.takes(card):
        return f"compute capability {card[0]}.{card[1]} has too little shared memory a block"
    if model.numerics.compute != "bfloat16":
        return f"compute in {model.numerics.compute}"
    if model.numerics.stream != "compute":
        return "model.numerics.stream=float32"
    return None


def _no_heads(model: GPT) -> str | None:
    size = model.shape.head_dim
    if size & (size - 1) or not 16 <= size <= 256:
        return f"heads of {size} features: not a power of two from 16 to 256"
    if type(model.position) not in (Rope, NoPosition):
        return f"position {type(model.position).__name__}"
    for block in model.layers():
        if type(block.attn) is not CausalAttention:
            return f"attention {type(block.attn).__name__}"
        if not block.attn.qk_norm:
            return "model.attention.qk_norm=false"
    return None


def _heads(model: GPT) -> None:
    from golf.nn.kernels.heads import FusedHeads

    for block in model.layers():
        block.attn.heads = FusedHeads(block.attn)


def _no_stream(model: GPT) -> str | None:
    if type(model.residual) is not Residual:
        return f"residual {type(model.residual).__name__}"
    if any(block.at_block_out for block in model.layers()):
        return "a technique at block_out reads the stream before the next norm"
    if model.shape.model_dim > 2048:
        return f"model.model_dim={model.shape.model_dim} is above 2048"
    return None


def _stream(model: GPT) -> None:
    from golf.nn.kernels.stream import FusedResidual

    scales_into_weights(model)
    model.stream = FusedResidual(model.residual, model.numerics)  # type: ignore[arg-type]


def scales_into_weights(model: GPT) -> None:
    """Let the projections' weights hold the scales of their outputs, where nothing stands between the two.

    A pass over the stream then neither reads nor writes an output for its scale's sake; golf.nn.linear.Scaled gives
    weights and scales their gradients.
    """
    for block, vectors in zip(model.layers(), model.residual.layers, strict=True):  # type: ignore[union-attr,arg-type]
        if type(block.attn) is CausalAttention and not block.at_attn_out:
            vectors.into_weight("attn_scale", block.attn.proj)
        if type(block.mlp) in (SquaredMLP, GatedMLP) and not block.at_mlp_out:
            vectors.into_weight("mlp_scale", block.mlp.down)


def _no_mlp(model: GPT) -> str | None:
    if model.shape.model_dim % 8 or model.shape.mlp_dim % 8:
        return "model.model_dim or the MLP's width is no multiple of 8"
    for block in model.layers():
        if type(block.mlp) is not SquaredMLP:
            return f"MLP {type(block.mlp).__name__}"
        if block.mlp.at_mlp_hidden:
            return "a technique at mlp_hidden reads what the kernel keeps to itself"
    return None


def _mlp(model: GPT) -> None:
    from golf.nn.kernels.mlp import FusedMLP

    for block in model.layers():
        block.mlp.whole = FusedMLP(block.mlp)


def _at_heads_out(model: GPT) -> list[list[nn.Module]]:
    """The techniques of each layer at heads_out, in their order."""
    return [list(b.attn.at_heads_out.values()) for b in model.layers() if type(b.attn) is CausalAttention]


def _xsas(model: GPT) -> list[XSA]:
    return [t for techniques in _at_heads_out(model) for t in techniques if type(t) is XSA]


def _no_xsa(model: GPT) -> str | None:
    if any(type(t) is XSA for techniques in _at_heads_out(model) for t in techniques[:-1]):
        return "a technique at heads_out reads its float32 result"
    return None


def _xsa(model: GPT) -> None:
    from golf.nn.kernels.xsa import fused

    for technique in _xsas(model):
        technique.whole = fused


KERNELS = (
    Kernel("heads", ("q, k, v", "qk_norm", "rope", "qk_gain"), _no_heads, _heads),
    Kernel("stream", ("residual", "x0_mix", "skips", "norm"), _no_stream, _stream),
    Kernel("mlp", ("mlp",), _no_mlp, _mlp, least=(9, 0), below=(12, 0)),
    Kernel("xsa", ("xsa",), _no_xsa, _xsa, within=lambda model: bool(_xsas(model))),
)


class Case(Protocol):
    """A kernel at one set of shapes, for the bench."""

    name: str
    shapes: str

    def make(self, device: torch.device) -> tuple[Callable[[], Any], Callable[[], Any], float, float]:
        """(the kernel, its twin, bytes that must be moved, FLOPs): both calls do the same work on the same inputs."""
        ...


def cases() -> list[Case]:
    """What `golf bench kernels` times; empty without Triton."""
    if importlib.util.find_spec("triton") is None:
        return []
    from golf.nn.kernels import heads, mlp, stream, xsa

    return [*heads.CASES, *stream.CASES, *mlp.CASES, *xsa.CASES]
