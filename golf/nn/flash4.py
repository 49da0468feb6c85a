"""FlashAttention-4 as an operator that compiles without a break, for whole windows and for packed documents.

The package (optional, pure Python) traces its kernels at the first call of each kind, which takes seconds. Its public
functions are autograd functions that the compiler cannot look into; the operator calls what lies beneath them.
Source: Dao-AILab, FlashAttention-4.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from flash_attn.cute.interface import _flash_attn_bwd, _flash_attn_fwd
from torch import Tensor

from golf.nn.packed_flash import differentiable

# the package's own tracing speaks of its own arguments, once a kernel
warnings.filterwarnings("ignore", r"Argument \w+ \(position \d+\) cannot be converted", UserWarning)


@torch.library.custom_op("golf::flash4", mutates_args=())
def flash4(q: Tensor, k: Tensor, v: Tensor, borders: Tensor | None, longest: int) -> tuple[Tensor, Tensor]:
    """Causal attention of q [B, Tq, H, hd] and k, v [B, T, Hkv, hd], Tq ≤ T: out as q, and lse float32 [B, H, Tq].

    With `borders` int32 [S + 1] the tensors are [T, heads, hd] of documents in a row, none longer than `longest`.
    """
    rows = {} if borders is None else _rows(borders, longest)
    out, lse, *_ = _flash_attn_fwd(q, k, v, causal=True, return_lse=True, **rows)
    return out, lse


@flash4.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, borders: Tensor | None, longest: int) -> tuple[Tensor, Tensor]:
    *batch, time, heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty(*batch, heads, time, dtype=torch.float32)


@torch.library.custom_op("golf::flash4_backward", mutates_args=())
def flash4_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, borders: Tensor | None, longest: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v. Their sums over queries are made by atomic additions: not the same bits twice."""
    rows = {} if borders is None else _rows(borders, longest)
    dq, dk, dv = _flash_attn_bwd(q, k, v, out, dout, lse, causal=True, **rows)
    return dq.contiguous(), dk.contiguous(), dv.contiguous()  # they come in the layout of q, k and v


@flash4_backward.register_fake
def _(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, borders: Tensor | None, longest: int
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _rows(borders: Tensor, longest: int) -> dict[str, Any]:
    return {"cu_seqlens_q": borders, "cu_seqlens_k": borders, "max_seqlen_q": longest, "max_seqlen_k": longest}


differentiable(flash4, flash4_backward)
