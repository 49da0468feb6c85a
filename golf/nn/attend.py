"""Attention backends: causal softmax attention over [B, T, heads, hd] tensors, by name.

There may be fewer queries than keys: then the queries stand at the last positions.

`sdpa` is torch's own (cuDNN first on Hopper, then flash, then whatever the device has); `cudnn` is the same with packed
documents by cuDNN as well; `cudnn_flash_attn_4` leaves their forward to cuDNN and all else to FlashAttention-4. These
and the flash_attn options are optional packages, imported only when chosen. `auto` is the quickest that is there, for
the device that the model comes to (`quickest`). The extension point is `BACKENDS`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F

from golf.common.errors import ConfigError
from golf.common.log import logger
from golf.nn.context import Documents
from golf.nn.packed_flash import packed_flash

Whole = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
Packed = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Documents], torch.Tensor]
Backend = Literal["auto", "sdpa", "cudnn", "flash_attn_2", "flash_attn_3", "flash_attn_4", "cudnn_flash_attn_4"]

#: modules that only its packages have, and what to install, by optional backend
OPTIONAL: dict[str, tuple[tuple[str, ...], str]] = {
    "cudnn": (("cudnn",), "pip install 'golf[cudnn]'"),
    "flash_attn_2": (("flash_attn_2_cuda",), "pip install 'golf[flash-attn-2]' (builds from source)"),
    "flash_attn_3": (("flash_attn_interface",), "build FlashAttention-3 from the hopper/ folder of its repository"),
    "flash_attn_4": (("flash_attn.cute",), "pip install 'golf[flash-attn-4]'"),
    "cudnn_flash_attn_4": (("cudnn", "flash_attn.cute"), "pip install 'golf[cudnn,flash-attn-4]'"),
}

FLASH_TAKES = "the GPU's kernel takes bfloat16 and heads of 8, 16, … 256"


def fits_flash(dtype: torch.dtype, head_dim: int) -> bool:
    """Whether the flash kernels, torch's and the packages', take such queries."""
    return dtype == torch.bfloat16 and head_dim in range(8, 257, 8)


@dataclass(frozen=True)
class Attend:
    """A backend: attention over whole windows as `sdpa` has it, over packed documents as `packed` (None: it cannot).

    least: the compute capability that its kernels need, which take what `fits_flash` (None: whatever there is).
    tried: what a first call of them with heads of so many features says, None when it went well. repeated: it is
    quicker with keys and values repeated for each query head, whose shares of a gradient need no adding up then.
    """

    name: str
    whole: Whole
    packed: Packed | None = None
    least: tuple[int, int] | None = None
    tried: Callable[[torch.device, int], str | None] = lambda device, head_dim: None
    repeated: bool = False

    def why_not(self, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """Why it cannot serve such a model on this device; None: it can."""
        if self.least is None:
            return None
        if device.type != "cuda":
            return "no CUDA device"
        if torch.cuda.get_device_capability(device) < self.least:
            return f"the GPU is older than compute capability {self.least[0]}.{self.least[1]}"
        return self.tried(device, head_dim) if fits_flash(dtype, head_dim) else FLASH_TAKES


def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal attention, scale 1/sqrt(hd): q [B, Tq, H, hd], k and v [B, T, Hkv, hd], Tq ≤ T → [B, Tq, H, hd]."""
    asked, time, grouped = q.shape[1], k.shape[1], q.shape[2] != k.shape[2]
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if asked == time:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    elif q.is_cuda and fits_flash(q.dtype, q.shape[-1]):
        # torch aligns is_causal to the first key; the kernel beneath, called by itself, to the last.
        out = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, is_causal=True)[0]
    else:
        mask = torch.ones(asked, time, dtype=torch.bool, device=q.device).tril(time - asked)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
    return out.transpose(1, 2)


def packed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: Documents) -> torch.Tensor:
    """Causal attention within each document of one row: q [1, T, H, hd], k and v [1, T, Hkv, hd] → [1, T, H, hd].

    On CUDA by the variable-length kernel, in bfloat16; elsewhere by masks.
    """
    if q.is_cuda:
        return packed_flash(*_rows(q, k, v), documents.borders, documents.longest)[0][None]
    return _packed_by_masks(q, k, v, documents)


def _rows(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """[1, T, heads, hd] → [T, heads, hd]. Indexing would do, but its gradient is a copy of each tensor."""
    return [x.squeeze(0) for x in tensors]


def _packed_by_masks(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: Documents) -> torch.Tensor:
    """The same by torch's attention in blocks of queries that are as long as the longest document, so that none reads
    further back than the block before its own."""
    time, size = q.shape[1], min(documents.longest, q.shape[1])
    blocks = -(-time // size)

    def cut(x: torch.Tensor) -> torch.Tensor:
        return F.pad(x[0], (0, 0, 0, 0, 0, blocks * size - time)).unflatten(0, (blocks, size)).transpose(1, 2)

    def with_the_one_before(x: torch.Tensor) -> torch.Tensor:
        return torch.cat((F.pad(x[:-1], (0, 0) * (x.ndim - 1) + (1, 0), value=-1), x), dim=-2)

    number = F.pad(documents.number, (0, blocks * size - time), value=-1).view(blocks, size, 1)
    mask = number == with_the_one_before(number).transpose(1, 2)
    mask = mask & torch.ones(size, 2 * size, dtype=torch.bool, device=q.device).tril(size)
    out = F.scaled_dot_product_attention(
        cut(q), with_the_one_before(cut(k)), with_the_one_before(cut(v)), attn_mask=mask[:, None],
        enable_gqa=q.shape[2] != k.shape[2],
    )  # fmt: skip
    return out.transpose(1, 2).flatten(0, 1)[None, :time]


def _package(operator: Any, name: str, least: tuple[int, int], repeated: bool = False) -> Attend:
    """A backend whose one operator (golf.nn.operator) calls a package's kernel."""

    def whole(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = operator(q, k, v, None, 0)[0]
        return out

    def packed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, documents: Documents) -> torch.Tensor:
        out: torch.Tensor = operator(*_rows(q, k, v), documents.borders, documents.longest)[0]
        return out[None]

    return Attend(name, whole, packed, least, repeated=repeated)


def _cudnn() -> Attend:
    """torch's own for whole windows, which asks cuDNN first on Hopper; cuDNN for packed documents too."""
    from golf.nn.packed_cudnn import attention, why_not

    packed = _package(attention, "", (9, 0)).packed
    return Attend("sdpa, packed documents by cuDNN", sdpa, packed, (9, 0), why_not)


def _flash2() -> Attend:
    from golf.nn.flash2 import attention

    return _package(attention, "FlashAttention-2", (8, 0))


def _flash3() -> Attend:
    from golf.nn.flash3 import attention

    return _package(attention, "FlashAttention-3", (9, 0))


def _flash4() -> Attend:
    from golf.nn.flash4 import attention

    return _package(attention, "FlashAttention-4", (9, 0), repeated=True)


def _cudnn_flash() -> Attend:
    """Documents' forward by cuDNN, their backward and whole windows by FlashAttention-4."""
    from golf.nn.cudnn_flash import attention
    from golf.nn.packed_cudnn import why_not

    both = _package(attention, "FlashAttention-4, packed documents forward by cuDNN", (9, 0), repeated=True)
    return replace(both, tried=why_not)


SDPA = Attend("sdpa", sdpa, packed)
AUTO = replace(SDPA, name="auto")
"""What stands in a model until it is on its device."""
QUICKEST: tuple[Backend, ...] = ("cudnn_flash_attn_4", "flash_attn_4", "cudnn")
"""By what a step of documents took on an H200."""


#: how each backend is made, once its package is known to be there
BACKENDS: dict[str, Callable[[], Attend]] = {
    "auto": lambda: AUTO,
    "sdpa": lambda: SDPA,
    "cudnn": _cudnn,
    "flash_attn_2": _flash2,
    "flash_attn_3": _flash3,
    "flash_attn_4": _flash4,
    "cudnn_flash_attn_4": _cudnn_flash,
}


def installed(backend: str) -> bool:
    """Whether a backend's packages can be found (without importing them)."""
    if backend not in OPTIONAL:
        return backend in get_args(Backend)
    try:
        return all(importlib.util.find_spec(module) is not None for module in OPTIONAL[backend][0])
    except ModuleNotFoundError:
        return False


def backend(name: Backend) -> Attend:
    """The backend called `name`.

    Raises ConfigError for an unknown name, and for a package that is not installed or cannot be imported.
    """
    if name not in get_args(Backend):
        raise ConfigError(f"model.attention.backend={name}: choices are {', '.join(get_args(Backend))}")
    if not installed(name):
        raise ConfigError(f"model.attention.backend={name} is not installed here.\nInstall it: {OPTIONAL[name][1]}")
    try:
        return BACKENDS[name]()
    except ImportError as error:
        raise ConfigError(f"model.attention.backend={name} is installed but cannot be imported: {error}") from error


def quickest(device: torch.device, dtype: torch.dtype, head_dim: int) -> Attend:
    """The first of QUICKEST that is installed and can serve such a model on this device, else torch's own."""
    for name in QUICKEST if device.type == "cuda" else ():
        if installed(name):
            try:
                found = backend(name)
            except ConfigError as error:
                logger.info("%s", error)
                continue
            if found.why_not(device, dtype, head_dim) is None:
                return found
    return SDPA


@contextmanager
def preferred_sdpa_kernels(device: torch.device) -> Iterator[None]:
    """Within the block torch picks cuDNN's attention first on Hopper, then flash, efficient, math."""
    if device.type != "cuda":
        yield
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    order = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    if torch.cuda.get_device_capability(device)[0] == 9:
        order.insert(0, SDPBackend.CUDNN_ATTENTION)
    with sdpa_kernel(order, set_priority=True):
        yield
