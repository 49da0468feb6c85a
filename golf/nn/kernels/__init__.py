"""Fused kernels: each stands for a run of the model's ops, and is put in their place once, when the model is built.

A kernel's twin is those ops as the model has them; `reference` beside it repeats them for the bench and the tests,
which hold it to both. A kernel that cannot serve here (no CUDA, another dtype, a size it doesn't know) leaves the ops
as they are and says why.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import torch

from golf.nn.attend import AUTO, SDPA, quickest
from golf.nn.models.attention import CausalAttention
from golf.nn.models.gpt import GPT
from golf.nn.models.head import Head
from golf.nn.models.lanes import TwoLane
from golf.nn.models.mlp import GatedMLP, SquaredMLP
from golf.nn.models.position import NoPosition, Rope
from golf.nn.models.residual import Residual
from golf.nn.techniques.attn_gate import AttnGate
from golf.nn.techniques.xsa import XSA

Mode = Literal["auto", "reference"]
T = TypeVar("T")


@dataclass(frozen=True)
class Kernel:
    """A fused kernel: the ops that it covers, the parts of a model that host them, and why it cannot serve there.

    stands_for: what takes the place of a host's `attribute`, from a module that is imported only then, as it imports
    Triton; `twin` is the host's attribute that has the ops themselves, None where nothing stood there. hosts: all of a
    model's. why_not: None, it can. with_it: what else is done to a model that gets it. of_a_technique: a model may lack
    these ops, and is told nothing then. least: the compute capability that it needs; below: one whose blocks have too
    little shared memory. written_in: the language of what runs on a device.
    """

    name: str
    covers: tuple[str, ...]
    hosts: Callable[[GPT], list[Any]]
    attribute: str
    twin: str | None
    why_not: Callable[[GPT], str | None]
    stands_for: Callable[[Any], Any]
    with_it: Callable[[GPT], None] = lambda model: None
    of_a_technique: bool = False
    least: tuple[int, int] = (8, 0)
    below: tuple[int, int] | None = None
    written_in: Callable[[torch.device], str] = lambda device: "Triton"

    def takes(self, card: tuple[int, int]) -> bool:
        """Whether it runs on a GPU of this compute capability."""
        return self.least <= card and (self.below is None or card < self.below)


def install(model: GPT, mode: Mode = "auto") -> list[str]:
    """`put` every kernel that there is."""
    return put(model, KERNELS, mode)


def put(model: GPT, kernels: Sequence[Kernel], mode: Mode) -> list[str]:
    """Put those of these kernels that can serve into the model, which is on its device; a line for each that cannot.

    With `reference` all ops stay as they are. An attention backend that cannot serve is replaced by torch's own in
    either mode. `model.kernels()` tells what serves each op.
    """
    lines = _attention(model)
    for kernel in kernels:
        hosts = kernel.hosts(model)
        if kernel.of_a_technique and not hosts:
            continue
        reason = (
            "runtime.kernels=reference" if mode == "reference" else _no_triton(model, kernel) or kernel.why_not(model)
        )
        if reason is None:
            kernel.with_it(model)
            for host in hosts:
                setattr(host, kernel.attribute, kernel.stands_for(host))
                model.fused.append((kernel, host))
        elif mode == "auto" and model.embedding.is_cuda:
            lines.append(f"kernel {kernel.name} cannot serve here ({reason}): its ops run unfused")
        serves = "torch"
        if reason is None:
            language = kernel.written_in(model.embedding.device)
            serves = f"{kernel.name} ({language}){_share(model, kernel, hosts)}"
        model.served.update(dict.fromkeys(kernel.covers, serves))
    return lines


def serve_throughout(model: GPT) -> bool:
    """Whether kernels serve all that every layer and the loss have beside products, attention and techniques."""
    hosts = sum(kernel.name in ("heads", "stream", "mlp", "loss") for kernel, _ in model.fused)
    return hosts == 2 + 2 * len(model.blocks)  # `stream` and `loss` have one, the model; the others one a layer


@contextmanager
def aside(model: GPT) -> Iterator[None]:
    """Within the block the ops run as the model has them: what products read passes through their Linears."""
    fused = [getattr(host, kernel.attribute) for kernel, host in model.fused]
    for kernel, host in model.fused:
        setattr(host, kernel.attribute, kernel.twin and getattr(host, kernel.twin))
    try:
        yield
    finally:
        for (kernel, host), stands in zip(model.fused, fused, strict=True):
            setattr(host, kernel.attribute, stands)


def parts_of(model: GPT, kind: type[T]) -> list[T]:
    """The model's parts of exactly this class: a subclass may compute something else."""
    return [part for part in model.modules() if type(part) is kind]


def _share(model: GPT, kernel: Kernel, hosts: list[Any]) -> str:
    """In how many layers a kernel serves, where others have another kind of part."""
    layers, everywhere = len(model.blocks), kernel.of_a_technique or hosts[0] is model
    return "" if everywhere or len(hosts) == layers else f" in {len(hosts)} of {layers} layers"


def _attention(model: GPT) -> list[str]:
    lines = []
    asked = model.embedding.device, model.numerics.dtype, model.shape.head_dim
    found = None  # of `auto`: asked once for all layers, for a backend may be tried to tell
    for block in model.layers():
        chosen = block.attn.attend
        if chosen is None:
            continue
        if chosen.name == AUTO.name:
            block.attn.attend = found = found or quickest(*asked)
            continue
        reason = chosen.why_not(*asked)
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
    attentions = parts_of(model, CausalAttention)
    if not attentions:
        return f"attention {type(model.layers()[0].attn).__name__}"
    if not all(attention.qk_norm for attention in attentions):
        return "model.attention.qk_norm=false"
    return None


def _no_stream(model: GPT) -> str | None:
    if type(model.residual) not in (Residual, TwoLane):
        return f"residual {type(model.residual).__name__}"
    if any(block.at_block_out for block in model.layers()):
        return "a technique at block_out reads the stream before the next norm"
    if model.shape.model_dim > 2048:
        return f"model.model_dim={model.shape.model_dim} is above 2048"
    return None


def scales_into_weights(model: GPT) -> None:
    """Let the projections' weights hold the scales of their outputs, where nothing stands between the two.

    A pass over the stream then neither reads nor writes an output for its scale's sake; EffectiveWeights of
    golf.nn.linear gives weights and scales their gradients.
    """
    assert isinstance(model.residual, Residual)
    for block, vectors in zip(model.layers(), model.residual.vectors, strict=True):
        attention, mlp = block.get_submodule("attn"), block.get_submodule("mlp")
        if type(attention) is CausalAttention and not block.at_attn_out:
            vectors.into_weight("attn_scale", attention.proj)
        if type(mlp) in (SquaredMLP, GatedMLP) and not block.at_mlp_out:
            assert isinstance(mlp, SquaredMLP | GatedMLP)
            vectors.into_weight("mlp_scale", mlp.down)


def _no_mlp(model: GPT) -> str | None:
    if model.shape.model_dim % 8 or model.shape.mlp_dim % 8:
        return "model.model_dim or the MLP's width is no multiple of 8"
    mlps = parts_of(model, SquaredMLP)
    if not mlps:
        return f"MLP {type(model.layers()[0].mlp).__name__}"
    if any(mlp.at_mlp_hidden for mlp in mlps):
        return "a technique at mlp_hidden reads what the kernel keeps to itself"
    return None


def _no_loss(model: GPT) -> str | None:
    if type(model.head) is not Head:
        return f"head {type(model.head).__name__}"
    if model.at_logits:
        return "a technique at logits reads what the kernel keeps to itself"
    return None


def _with_xsa(model: GPT) -> list[CausalAttention]:
    attentions = parts_of(model, CausalAttention)
    return [one for one in attentions if any(type(technique) is XSA for technique in one.at_heads_out.children())]


def _no_xsa(model: GPT) -> str | None:
    for attention in _with_xsa(model):
        kinds = [type(technique) for technique in attention.at_heads_out.children()]
        if kinds[kinds.index(XSA) + 1 :] not in ([], [AttnGate]):
            return "a technique at heads_out reads its float32 result"
    return None


def _fused_heads(attention: CausalAttention) -> Any:
    from golf.nn.kernels.heads import stands_for

    return stands_for(attention)


def _fused_stream(model: GPT) -> Any:
    from golf.nn.kernels.stream import stands_for

    return stands_for(model)


def _fused_mlp(mlp: SquaredMLP) -> Any:
    from golf.nn.kernels.mlp import stands_for

    return stands_for(mlp)


def _language_of_mlp(device: torch.device) -> str:
    from golf.nn.kernels.mlp import written_in

    return written_in(device)


def _fused_loss(model: GPT) -> Any:
    from golf.nn.kernels.loss import stands_for

    return stands_for(model)


def _fused_xsa(attention: CausalAttention) -> Any:
    from golf.nn.kernels.xsa import stands_for

    return stands_for(attention)


HEADS = Kernel(
    "heads", ("q, k, v", "qk_norm", "rope", "qk_gain"), lambda m: parts_of(m, CausalAttention), "heads", "project",
    _no_heads, _fused_heads,
)  # fmt: skip
STREAM = Kernel(
    "stream", ("residual", "x0_mix", "skips", "norm"), lambda m: [m], "stream", None, _no_stream, _fused_stream,
    scales_into_weights,
)  # fmt: skip
MLP = Kernel(
    "mlp", ("mlp",), lambda m: parts_of(m, SquaredMLP), "whole", "unfused", _no_mlp, _fused_mlp, least=(9, 0),
    below=(12, 0), written_in=_language_of_mlp,
)  # fmt: skip
LOSS = Kernel("loss", ("head", "loss"), lambda m: [m], "loss", None, _no_loss, _fused_loss)
OUT = Kernel("xsa", ("xsa",), _with_xsa, "heads_out", "unfused_out", _no_xsa, _fused_xsa, of_a_technique=True)
KERNELS = (HEADS, STREAM, MLP, LOSS, OUT)


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
    from golf.nn.kernels import heads, loss, mlp, residual_cases, xsa

    return [*heads.CASES, *residual_cases.CASES, *mlp.CASES, *loss.CASES, *xsa.CASES]
