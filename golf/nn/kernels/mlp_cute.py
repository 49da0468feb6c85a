"""The MLP's two products with what goes into their epilogues, by QuACK's GEMMs for Hopper: the same bits as Triton's.

QuACK (optional; it comes with FlashAttention-4) takes an epilogue as a Python function over the accumulator, which
CuTe's compiler puts into its own persistent kernel: one tile is written while another is multiplied. Its interface is
young: other releases than those that golf was run with are left alone.
Source: Dao-AILab, quack-kernels.
"""

from __future__ import annotations

import struct
from functools import cache
from importlib import metadata
from typing import Any

import cutlass.cute as cute
import torch
from cutlass import Float32, Int32
from quack.epilogue.frontend import gemm_epilogue
from quack.gemm_config import GemmConfig
from torch import Tensor

RELEASES = "0.6."
HOPPER = (9, 0)
MARK = 16
"""Of a float32, the bit that is the last one of a bf16."""
TILES = {"tile_m": 128, "tile_n": 192, "cluster_m": 2, "cluster_n": 1, "pingpong": True, "is_dynamic_persistent": False}

_plans: dict[tuple[Any, ...], Any] = {}


def why_not(device: torch.device) -> str | None:
    """Why these kernels are not used on a device; None: they are."""
    if torch.cuda.get_device_capability(device) != HOPPER:
        return "not a Hopper GPU"
    found = metadata.version("quack-kernels")
    return None if found.startswith(RELEASES) else f"quack-kernels {found}: golf was run with {RELEASES}x"


def launch(a: Tensor, b: Tensor, h: Tensor, du: Tensor | None, slope: float) -> None:
    """Make h = φ(a bᵀ), or with du, from that h, du = (a b) ⊙ φ'."""
    up, down = _epilogues(slope)
    if du is None:
        _run(up, a, b.T, None, h)
    else:
        _run(down, a, b, h, du)


def _run(epilogue: Any, a: Tensor, b: Tensor, c: Tensor | None, out: Tensor) -> None:
    key = (epilogue, a.device, a.shape, b.shape, b.stride())
    if key not in _plans:
        _plans[key] = epilogue.plan(a, b, c, out={"D": out}, config=GemmConfig(**TILES, device_capacity=HOPPER[0]))
    _plans[key].run(a, b, c, out={"D": out})


def _bits(x: float) -> int:
    return int.from_bytes(struct.pack("<f", x), "little", signed=True)


@cache
def _epilogues(slope: float) -> tuple[Any, Any]:
    """Those of the first product and of the second one's gradient; see golf.nn.kernels.mlp for what h's mark is."""
    last, two = 1 << MARK, _bits(2.0)
    turned = two ^ _bits(-2.0 * slope)

    @gemm_epilogue()
    def plain(acc):  # type: ignore[no-untyped-def]
        u = cute.arch.fmax(acc, 0.0)
        return {"D": u * u}

    @gemm_epilogue()
    def plain_gradient(acc, c):  # type: ignore[no-untyped-def]
        return {"D": acc * cute.math.sqrt(c, fastmath=True) * 2.0}

    @gemm_epilogue()
    def leaky(acc):  # type: ignore[no-untyped-def]
        u = cute.arch.fmax(acc, acc * slope)
        h = u * u
        negative = (acc.bitcast(Int32) >> (31 - MARK)) & last
        nearest = (h.bitcast(Int32) - negative + last) >> (MARK + 1)
        return {"D": ((nearest << (MARK + 1)) | negative).bitcast(Float32)}

    @gemm_epilogue()
    def leaky_gradient(acc, c):  # type: ignore[no-untyped-def]
        marked = (c.bitcast(Int32) << (31 - MARK)) >> 31  # all bits or none
        side = ((marked & turned) ^ two).bitcast(Float32)  # 2, or where u was negative −2·slope
        return {"D": acc * cute.math.sqrt(c, fastmath=True) * side}

    return (leaky, leaky_gradient) if slope else (plain, plain_gradient)
