"""FlashAttention-4 as an operator, for whole windows and for packed documents.

The package (optional, pure Python) traces its kernels at the first call of each kind, which takes seconds. Its public
functions are autograd functions that the compiler cannot look into; what is called here lies beneath them.
Source: Dao-AILab, FlashAttention-4.
"""

from __future__ import annotations

import warnings
from typing import Any

from flash_attn.cute.interface import _flash_attn_bwd, _flash_attn_fwd
from torch import Tensor

from golf.nn.operator import operator

# the package's own tracing speaks of its own arguments, once a kernel
warnings.filterwarnings("ignore", r"Argument \w+ \(position \d+\) cannot be converted", UserWarning)


def forward(q: Tensor, k: Tensor, v: Tensor, borders: Tensor | None, longest: int) -> tuple[Tensor, Tensor]:
    """As `operator` has it, in bfloat16."""
    out, lse, *_ = _flash_attn_fwd(q, k, v, causal=True, return_lse=True, **_rows(borders, longest))
    return out, lse


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, borders: Tensor | None, longest: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v. Their sums over queries are made by atomic additions: not the same bits twice."""
    dq, dk, dv = _flash_attn_bwd(q, k, v, out, dout, lse, causal=True, **_rows(borders, longest))
    return dq, dk, dv


def _rows(borders: Tensor | None, longest: int) -> dict[str, Any]:
    if borders is None:
        return {}
    return {"cu_seqlens_q": borders, "cu_seqlens_k": borders, "max_seqlen_q": longest, "max_seqlen_k": longest}


attention = operator("flash4", forward, backward)
