"""The trellis's search on a GPU: a warp a lane, a thread a state, both ways through it in one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _of_parity(x, parity, top):
    within = top - (top + parity) % 2
    near = 2 * tl.floor((x - parity) / 2 + 0.5) + parity
    return tl.minimum(tl.maximum(near, -within.to(tl.float32)), within.to(tl.float32))


@triton.jit
def _search(x_at, inside_at, ways_at, second_at, q_at, value_at, top, LENGTH: tl.constexpr, STATES: tl.constexpr):
    lane = tl.program_id(0).to(tl.int64)
    state = tl.arange(0, STATES)
    one, two = tl.load(ways_at + state), tl.load(ways_at + STATES + state)
    first, other = one >> 1, two >> 1
    half, half_other = (first & 1) * 0.5, (other & 1) * 0.5
    inside = tl.load(inside_at + lane)
    total = tl.where(state == 0, 0.0, 1e30)
    for row in range(LENGTH):
        x = tl.load(x_at + lane * LENGTH + row)
        counts = tl.where(row < inside, 1.0, 0.0)
        lost = x - half - _of_parity(x - half, one & 1, top)
        lost_other = x - half_other - _of_parity(x - half_other, two & 1, top)
        by_first = tl.gather(total, first, 0) + counts * lost * lost
        by_other = tl.gather(total, other, 0) + counts * lost_other * lost_other
        tl.store(second_at + (lane * LENGTH + row) * STATES + state, (by_other < by_first).to(tl.int8))
        total = tl.minimum(by_first, by_other)
    tl.debug_barrier()
    now = tl.argmin(total, 0)
    for back in range(LENGTH):
        row = LENGTH - 1 - back
        way = tl.load(second_at + (lane * LENGTH + row) * STATES + now).to(tl.int32)
        taken = tl.load(ways_at + way * STATES + now)
        now = taken >> 1
        added = (now & 1) * 0.5
        q = _of_parity(tl.load(x_at + lane * LENGTH + row) - added, taken & 1, top)
        tl.store(q_at + lane * LENGTH + row, q.to(tl.int8))
        tl.store(value_at + lane * LENGTH + row, q + added)


def walk(lanes: Tensor, inside: Tensor, top: int, ways: Tensor) -> tuple[Tensor, Tensor]:
    """Integers int8 and values in steps of the nearest path through each of lanes [L, length] float32, contiguous.

    inside: int32 [L], how many values of a lane count. ways: int32 [2, states], see golf.quant.trellis.table.
    """
    count, length = lanes.shape
    states = ways.shape[1]
    second = torch.empty(count, length, states, dtype=torch.int8, device=lanes.device)
    q, value = torch.empty_like(lanes, dtype=torch.int8), torch.empty_like(lanes)
    _search[(count,)](lanes, inside, ways, second, q, value, top, LENGTH=length, STATES=states, num_warps=1)
    return q, value
