"""Trellis-coded rounding: integers as small as a plain grid's, on grids shifted by half a step where a path says so.

A value is (q + h/2) steps, where h is 0 or 1. Down each column of a matrix h follows from the integers before it: the
lowest bit of a state, which each integer's lowest bit moves on. Rounding chooses the path whose values come nearest,
among grids twice as fine, while integers take no more bits than before: squared errors are 1.0 dB smaller than plain
rounding's with 8 states, 1.1 with 32 (1.53 is the limit of any such lattice).
Source: Ungerboeck 1982 (the codes), Marcellin and Fischer 1990 (trellis-coded quantization).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache

import numpy as np
import torch
from torch import Tensor

from golf.common.errors import ArtifactError, ConfigError

CODES = {4: (0o5, 0o2), 8: (0o13, 0o4), 16: (0o23, 0o4), 32: (0o45, 0o10), 64: (0o103, 0o24)}
"""Parity-check polynomials by the number of states: Ungerboeck's for amplitude modulation."""
SEGMENT = 128
"""Rows after which a column's state begins anew, so that many paths can be looked for, and read, at once."""
_LANES = 1 << 15
"""Lanes times states that are looked at together on a CPU."""
_FAR = 1e30


def ready(states: int) -> None:
    """Load what the search will need here, before the code of a run is counted. Raises ConfigError."""
    if states not in CODES:
        raise ConfigError(f"quant.trellis={states}: states of a code (choices: 0, {', '.join(map(str, CODES))})")
    _kernel("cuda" if torch.cuda.is_available() else "cpu")


def moved(state: Tensor, parity: Tensor, states: int) -> Tensor:
    """The state after an integer whose lowest bit is `parity`; integers, broadcast together."""
    own, other = CODES[states]
    return (state >> 1) ^ ((state & 1) * (own >> 1)) ^ (parity * (other >> 1))


def halves(q: Tensor, states: int) -> Tensor:
    """Where half a step is added: bool, for int8 q [rows, n]. Raises ArtifactError for a number of states that has no
    code."""
    if states not in CODES:
        raise ArtifactError(f"a trellis of {states} states is none of {', '.join(map(str, CODES))}")
    parities = (_segments(q) & 1).int()
    state = torch.zeros_like(parities[:, 0])
    found = torch.empty_like(parities, dtype=torch.bool)
    for row in range(SEGMENT):
        found[:, row] = (state & 1).bool()
        state = moved(state, parities[:, row], states)
    return found.reshape(-1, q.shape[1])[: len(q)]


@cache  # a matrix's columns ask for them one by one
def table(states: int, device: torch.device | None = None) -> Tensor:
    """The two ways into each state, int32 [2, states]: twice the state before, and the parity between."""
    ways: list[list[int]] = [[] for _ in range(states)]
    before = torch.arange(states)
    for parity in (0, 1):
        for state, after in enumerate(moved(before, torch.tensor(parity), states).tolist()):
            ways[after].append(2 * state + parity)
    return torch.tensor(ways, dtype=torch.int32).T.contiguous().to(device)


def nearest_path(x: Tensor, top: int, states: int) -> tuple[Tensor, Tensor]:
    """The integers, int8, whose path comes nearest to x float32 [rows, n] in steps, none beyond ±top, and the values
    that they stand for, in steps, float32. Both [rows, n], on x's device."""
    rows, n = x.shape
    lanes = _segments(x).transpose(1, 2).reshape(-1, SEGMENT).contiguous()
    found = _walk(lanes, _inside(rows, n, x.device), top, states)
    q, values = (one.view(-1, n, SEGMENT).transpose(1, 2).reshape(-1, n)[:rows] for one in found)
    return q, values


@lru_cache(64)
def _inside(rows: int, n: int, device: torch.device) -> Tensor:
    """How many values of each lane count, int32."""
    counts = torch.full((-(-rows // SEGMENT) * n,), SEGMENT, dtype=torch.int32)
    if rows % SEGMENT:
        counts[-n:] = rows % SEGMENT
    return counts.to(device)


def _walk(lanes: Tensor, inside: Tensor, top: int, states: int) -> tuple[Tensor, Tensor]:
    """Integers and values of lanes [L, SEGMENT], of which the first `inside` [L] count."""
    if (kernel := _kernel(lanes.device.type)) is not None:
        return kernel(lanes, inside, top, table(states, lanes.device))
    size = max(1, _LANES // states)
    split = zip(lanes.cpu().split(size), inside.cpu().split(size), strict=True)
    parts = [_walk_plain(one, n, top, states) for one, n in split]
    return torch.cat([q for q, _ in parts]).to(lanes.device), torch.cat([at for _, at in parts]).to(lanes.device)


@cache
def _kernel(device: str) -> Callable[[Tensor, Tensor, int, Tensor], tuple[Tensor, Tensor]] | None:
    """What looks for paths on this type of device in one launch."""
    if device != "cuda":
        return None
    try:
        from golf.quant.trellis_kernel import walk

        return walk
    except ImportError:  # no Triton
        return None


def _walk_plain(lanes: Tensor, inside: Tensor, top: int, states: int) -> tuple[Tensor, Tensor]:
    """Viterbi's search by plain ops: numpy's, whose calls on a few values take a fifth of the time."""
    ways = table(states).long()
    before, kind = (ways >> 1).numpy(), (ways & 3).numpy()  # twice the half, and the parity
    kinds = torch.arange(4)
    x = lanes.T[:, None] - (kinds >> 1)[:, None] / 2  # [SEGMENT, 4, lanes]
    candidates = _of_parity(x, kinds[:, None] & 1, top)
    costs = (x - candidates).square() * (torch.arange(SEGMENT)[:, None] < inside)[:, None]
    taken = costs.numpy()[:, kind]  # [SEGMENT, 2, states, lanes]
    total = np.full((states, len(lanes)), _FAR, np.float32)
    total[0] = 0
    second = np.empty((SEGMENT, states, len(lanes)), np.bool_)
    for row in range(SEGMENT):
        both = total[before]
        both += taken[row]
        np.less(both[1], both[0], out=second[row])
        total = both.min(0)
    state, every = total.argmin(0), np.arange(len(lanes))
    chosen = np.empty((SEGMENT, len(lanes)), np.int64)
    for row in range(SEGMENT - 1, -1, -1):
        way = second[row, state, every].view(np.int8)
        chosen[row] = kind[way, state]
        state = before[way, state]
    found = torch.from_numpy(chosen)
    q = candidates.gather(1, found[:, None])[:, 0]
    return q.T.to(torch.int8), (q + (found >> 1) / 2).T


def _of_parity(x: Tensor, parity: Tensor, top: int) -> Tensor:
    """The integers of this parity nearest to x, within ±top; as floats."""
    within = top - (top + parity) % 2
    return torch.clamp(2 * torch.floor((x - parity) / 2 + 0.5) + parity, -within, within)


def _segments(x: Tensor) -> Tensor:
    """[rows, n] → [segments, SEGMENT, n], filled up with zeros."""
    if missing := -len(x) % SEGMENT:
        x = torch.nn.functional.pad(x, (0, 0, 0, missing))
    return x.reshape(-1, SEGMENT, x.shape[1])
