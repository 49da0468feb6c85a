"""torch's variable-length flash attention, with its gradients, as an operator of its own.

torch's own derivative hands the state of a random generator from forward to backward, on a device that depends on
whether a CUDA graph is being recorded. Nothing is drawn here, so that nothing of the kind is kept.
Source: FlashAttention-2 in torch; Dao 2023.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("golf::packed_flash", mutates_args=())
def packed_flash(q: Tensor, k: Tensor, v: Tensor, borders: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """Causal attention of q [T, H, hd] and k, v [T, Hkv, hd], bfloat16, within documents: out as q, and the lse.

    borders int32 [S + 1], from 0 to T; no document is longer than `longest`, and empty ones may be anywhere.
    """
    out, lse, *_ = _forward(q, k, v, borders, longest)
    return out, lse


@packed_flash.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, borders: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    _, lse, *_ = _forward(q, k, v, borders, longest)
    return q.new_empty(q.shape), lse


@torch.library.custom_op("golf::packed_flash_backward", mutates_args=())
def packed_flash_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, borders: Tensor, longest: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v."""
    drawn = torch.zeros(2, dtype=torch.uint64, device=q.device)  # what dropout would have been drawn from
    dq, dk, dv = torch.ops.aten._flash_attention_backward(
        dout, q, k, v, out, lse, borders, borders, longest, longest, 0.0, True, drawn, drawn[:0]
    )
    return dq.contiguous(), dk.contiguous(), dv.contiguous()  # they come in the layout of q, k and v


@packed_flash_backward.register_fake
def _(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, borders: Tensor, longest: int
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _forward(q: Tensor, k: Tensor, v: Tensor, borders: Tensor, longest: int) -> Any:
    return torch.ops.aten._flash_attention_forward(q, k, v, borders, borders, longest, longest, 0.0, True, False)


def differentiable(forward: Any, backward: Any) -> None:
    """Give an operator of attention, (q, k, v, borders, longest) → (out, lse), the gradients that another makes."""

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        q, k, v, borders, ctx.longest = inputs
        out, lse = output
        ctx.mark_non_differentiable(lse)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(q, k, v, out, lse, borders)

    def gradients(ctx: Any, dout: Tensor, dlse: None) -> tuple[Any, ...]:
        q, k, v, out, lse, borders = ctx.saved_tensors
        return *backward(dout, q, k, v, out, lse, borders, ctx.longest), None, None

    forward.register_autograd(gradients, setup_context=save)


differentiable(packed_flash, packed_flash_backward)
