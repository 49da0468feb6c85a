"""A package's attention kernel as an operator of torch's: the compiler calls it as it is, without a break."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Forward = Callable[[Tensor, Tensor, Tensor, Tensor | None, int], tuple[Tensor, Tensor]]
Backward = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, int], tuple[Tensor, Tensor, Tensor]]


def heads_first(q: Tensor) -> tuple[int, ...]:
    """The shape of the lse of most kernels: of q [B, Tq, H, hd] [B, H, Tq], of q [T, H, hd] [H, T]."""
    *batch, time, heads, _ = q.shape
    return (*batch, heads, time)


def operator(
    name: str, forward: Forward, backward: Backward, lse_shape: Callable[[Tensor], tuple[int, ...]] = heads_first
) -> Any:
    """golf::NAME(q, k, v, borders, longest) → (out, lse), with gradients for q, k and v.

    Causal attention of q [B, Tq, H, hd] and k, v [B, T, Hkv, hd], Tq ≤ T: queries stand at the last positions; out as
    q, lse float32. With borders int32 [S + 1], from 0 to T, the tensors are [T, heads, hd] of documents in a row, none
    longer than `longest`; empty ones may be anywhere. forward and backward, (dout, q, k, v, out, lse, borders,
    longest) → (dq, dk, dv), call the kernel; tensors come to them in whatever layout they have, and may leave so.
    """

    def run(q: Tensor, k: Tensor, v: Tensor, borders: Tensor | None, longest: int) -> tuple[Tensor, Tensor]:
        out, lse = forward(q, k, v, borders, longest)
        return out.contiguous(), lse

    def run_fake(q: Tensor, k: Tensor, v: Tensor, borders: Tensor | None, longest: int) -> tuple[Tensor, Tensor]:
        return q.new_empty(q.shape), q.new_empty(lse_shape(q), dtype=torch.float32)

    def back(
        dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, borders: Tensor | None, longest: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        dq, dk, dv = backward(dout, q, k, v, out, lse, borders, longest)
        return dq.contiguous(), dk.contiguous(), dv.contiguous()

    def back_fake(
        dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, borders: Tensor | None, longest: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)

    def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        q, k, v, borders, ctx.longest = inputs
        out, lse = output
        ctx.mark_non_differentiable(lse)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(q, k, v, out, lse, borders)

    def gradients(ctx: Any, dout: Tensor, dlse: None) -> tuple[Any, ...]:
        q, k, v, out, lse, borders = ctx.saved_tensors
        return *backward_op(dout, q, k, v, out, lse, borders, ctx.longest), None, None

    forward_op: Any = torch.library.custom_op(f"golf::{name}", run, mutates_args=())
    forward_op.register_fake(run_fake)
    backward_op: Any = torch.library.custom_op(f"golf::{name}_backward", back, mutates_args=())
    backward_op.register_fake(back_fake)
    forward_op.register_autograd(gradients, setup_context=save)
    return forward_op
