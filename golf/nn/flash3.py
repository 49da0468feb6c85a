"""FlashAttention-3 as an operator, for whole windows and for packed documents.

The package (optional, built from the hopper/ folder of its repository) has renamed its arguments since its first
release, `out` and `window_size` among them, and kept their order: so they are given by position.
Source: Dao-AILab, FlashAttention-3; Shah et al. 2024.
"""

from __future__ import annotations

from flash_attn_interface import _flash_attn_backward, _flash_attn_forward
from torch import Tensor

from golf.nn.operator import operator


def forward(q: Tensor, k: Tensor, v: Tensor, borders: Tensor | None, longest: int) -> tuple[Tensor, Tensor]:
    """As `operator` has it, in bfloat16."""
    most = None if borders is None else longest
    out, lse, *_ = _flash_attn_forward(
        q, k, v,
        None, None, None, None,  # keys and values to append, more of the queries, where to write
        borders, borders, None,  # borders of queries, of keys, of keys to append
        None, None, most, most,  # how many of each row are used; the longest of either
        None, None, None, None, None, None,  # pages, which row, padding at the left, rotary cos, sin and lengths
        None, None, None,  # scales of 8-bit q, k and v
        q.shape[-1] ** -0.5, True,
    )  # fmt: skip
    return out, lse


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, borders: Tensor | None, longest: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v. Sums over keys are made by atomic additions: not the same bits twice."""
    dq, dk, dv = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    most = None if borders is None else longest
    _flash_attn_backward(
        dout, q, k, v, out, lse,
        borders, borders, None, None, most, most,  # borders, how many of each row are used, the longest of either
        dq, dk, dv, q.shape[-1] ** -0.5, True,
    )  # fmt: skip
    return dq, dk, dv


attention = operator("flash3", forward, backward)
