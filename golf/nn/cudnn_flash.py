"""cuDNN's forward and FlashAttention-4's backward within packed documents, each the quicker one there, as one operator.

Both keep the same of a forward: its output, and the natural logarithm of each query's sum of exponentials, which the
one has [T, H] and the other wants [H, T]. Whole windows are FlashAttention-4's.
"""

from __future__ import annotations

from torch import Tensor

from golf.nn.flash4 import backward
from golf.nn.flash4 import forward as whole
from golf.nn.operator import operator
from golf.nn.packed_cudnn import forward as packed


def forward(q: Tensor, k: Tensor, v: Tensor, borders: Tensor | None, longest: int) -> tuple[Tensor, Tensor]:
    """As `operator` has it, in bfloat16."""
    if borders is None:
        return whole(q, k, v, borders, longest)
    out, lse = packed(q, k, v, borders, longest)
    return out, lse.T.contiguous()


attention = operator("cudnn_flash", forward, backward)
