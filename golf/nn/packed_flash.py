"""torch's variable-length flash attention, with its gradients, as an operator of its own.

torch's own derivative hands the state of a random generator from forward to backward, on a device that depends on
whether a CUDA graph is being recorded. Nothing is drawn here, so that nothing of the kind is kept.
Source: FlashAttention-2 in torch; Dao 2023.
"""

from __future__ import annotations

import torch
from torch import Tensor

from golf.nn.operator import operator


def forward(q: Tensor, k: Tensor, v: Tensor, borders: Tensor | None, longest: int) -> tuple[Tensor, Tensor]:
    """As `operator` has it, in bfloat16, of packed documents alone."""
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        q, k, v, borders, borders, longest, longest, 0.0, True, False
    )
    return out, lse


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, borders: Tensor | None, longest: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v."""
    drawn = torch.zeros(2, dtype=torch.uint64, device=q.device)  # what dropout would have been drawn from
    dq, dk, dv = torch.ops.aten._flash_attention_backward(
        dout, q, k, v, out, lse, borders, borders, longest, longest, 0.0, True, drawn, drawn[:0]
    )
    return dq, dk, dv


packed_flash = operator("packed_flash", forward, backward)
