"""How FlashAttention-4 is best asked for documents: `python benchmarks/packed_attention.py [TOKENS] [MEDIAN]` on a GPU.

Forward by tile and by whether query heads are packed; backward by configuration, of which the package has one for each
size of heads; with borders as they are, and filled up to a power of two as a loader does. Medians of 10 calls of 5.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import flash_attn.cute.interface as package
import torch

from golf.data.loader import bucket
from golf.nn import attend_cases

FORWARD = [(None, None), *(((m, n), packed) for m in (192, 128) for n in (128, 96, 64) for packed in (True, False))]
BACKWARD: list[dict[str, Any]] = [
    {}, {"num_stages_PdS": 1}, {"m_block_size": 64, "AtomLayoutMdQ": 1},
    {"m_block_size": 64, "AtomLayoutMdQ": 1, "dQ_single_wg": True}, {"n_block_size": 64, "AtomLayoutNdKV": 1},
    {"m_block_size": 64, "AtomLayoutMdQ": 1, "n_block_size": 192, "num_wg": 3, "AtomLayoutNdKV": 3},
]  # fmt: skip


def milliseconds(call: Callable[[], Any]) -> float:
    """A call's time, after three that are not measured."""
    for _ in range(3):
        call()
    times = []
    for _ in range(10):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(5):
            call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 5)
    return statistics.median(times)


def told(what: str, call: Callable[[], Any], flops: float) -> None:
    """A line for what was measured; what the package cannot do is said to be refused."""
    try:
        took = milliseconds(call)
    except Exception as error:  # whatever the package, its compiler or the driver raise
        print(f"{what:<72} refused: {type(error).__name__} {str(error).splitlines()[:1]}"[:160], flush=True)
        return
    print(f"{what:<72} {took:7.3f} ms {flops / took / 1e9:5.0f} TFLOP/s", flush=True)


def main(tokens: int = 98_304, median: int = 900) -> None:
    """Print a line for each way."""
    attend_cases.MEDIAN = median
    lengths = attend_cases.documents(tokens, 2048)
    cuts = torch.tensor([0, *lengths], dtype=torch.int32, device="cuda").cumsum(0).int()
    filled = torch.nn.functional.pad(cuts, (0, bucket(len(cuts)) - len(cuts)), value=tokens)
    flops = 4.0 * sum(n * (n + 1) // 2 for n in lengths) * attend_cases.HEADS * attend_cases.SIZE
    print(
        f"{torch.cuda.get_device_name()}: {tokens} tokens, {len(lengths)} documents, {len(filled)} borders when filled"
    )
    q, k, v, dout = (
        torch.randn(tokens, heads, attend_cases.SIZE, device="cuda", dtype=torch.bfloat16)
        for heads in (attend_cases.HEADS, attend_cases.KV_HEADS, attend_cases.KV_HEADS, attend_cases.HEADS)
    )
    chosen = package._tile_size_bwd_sm90
    for name, borders in (("as they are", cuts), ("filled", filled)):
        rows = {"cu_seqlens_q": borders, "cu_seqlens_k": borders, "max_seqlen_q": 2048, "max_seqlen_k": 2048}
        for tile, packed in FORWARD:
            told(
                f"forward, borders {name}, tile {tile}, heads packed {packed}",
                partial(
                    package._flash_attn_fwd,
                    q,
                    k,
                    v,
                    causal=True,
                    return_lse=True,
                    tile_mn=tile,
                    pack_gqa=packed,
                    **rows,
                ),
                flops,
            )
        out, lse, *_ = package._flash_attn_fwd(q, k, v, causal=True, return_lse=True, **rows)
        for change in BACKWARD:
            package._tile_size_bwd_sm90 = lambda *given, change=change, **more: replace(
                chosen(*given, **more), **change
            )
            told(
                f"backward, borders {name}, {change}",
                partial(package._flash_attn_bwd, q, k, v, out, dout, lse, causal=True, **rows),
                2.5 * flops,
            )
        package._tile_size_bwd_sm90 = chosen
    windows = [x.view(-1, 2048, *x.shape[1:]) for x in (q, k, v)]
    dense = 4.0 * tokens * 2049 / 2 * attend_cases.HEADS * attend_cases.SIZE
    told("whole windows, forward", lambda: package._flash_attn_fwd(*windows, causal=True, return_lse=True), dense)
    out, lse, *_ = package._flash_attn_fwd(*windows, causal=True, return_lse=True)
    told(
        "whole windows, backward",
        lambda: package._flash_attn_bwd(*windows, out, dout.view_as(out), lse, causal=True),
        2.5 * dense,
    )


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:3]))
