"""FlashAttention-2 as an operator, for whole windows and for packed documents.

The package (optional) has operators of its own, whose derivatives hand the state of a random generator along and pad
heads; what is called here lies beneath. Written to the functions of 2.8.3.
Source: Dao-AILab, FlashAttention-2; Dao 2023.
"""

from __future__ import annotations

from typing import Any

from flash_attn.flash_attn_interface import (
    _flash_attn_backward,
    _flash_attn_forward,
    _flash_attn_varlen_backward,
    _flash_attn_varlen_forward,
)
from torch import Tensor

from golf.nn.operator import operator


def forward(q: Tensor, k: Tensor, v: Tensor, borders: Tensor | None, longest: int) -> tuple[Tensor, Tensor]:
    """As `operator` has it, in bfloat16."""
    if borders is None:
        out, lse, *_ = _flash_attn_forward(q, k, v, return_softmax=False, **_options(q))
    else:
        out, lse, *_ = _flash_attn_varlen_forward(q, k, v, **_rows(borders, longest), **_options(q))
    return out, lse


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, borders: Tensor | None, longest: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v. Sums over keys are made by atomic additions: not the same bits twice."""
    dq, dk, dv = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    given = dout, q, k, v, out, lse, dq, dk, dv
    if borders is None:
        _flash_attn_backward(*given, deterministic=False, **_options(q))
    else:
        _flash_attn_varlen_backward(*given, deterministic=False, **_rows(borders, longest), **_options(q))
    return dq, dk, dv


def _options(q: Tensor) -> dict[str, Any]:
    return {
        "dropout_p": 0.0, "softmax_scale": q.shape[-1] ** -0.5, "causal": True, "window_size_left": -1,
        "window_size_right": -1, "softcap": 0.0, "alibi_slopes": None,
    }  # fmt: skip


def _rows(borders: Tensor, longest: int) -> dict[str, Any]:
    return {"cu_seqlens_q": borders, "cu_seqlens_k": borders, "max_seqlen_q": longest, "max_seqlen_k": longest}


attention = operator("flash2", forward, backward)
