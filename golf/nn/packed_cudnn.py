"""cuDNN's attention within packed documents, as an operator, by NVIDIA's frontend package (optional).

torch's own way to this kernel (`aten::_cudnn_attention_forward` with borders) builds its graph anew at each call, which
takes the host 50 ms, and its gradients are wrong for what it saves (seen in torch 2.11). Here a graph is built once for
each layout and kept. Documents are told to cuDNN as lengths, and as offsets of their first elements.
Source: cuDNN's operation guide, scaled dot product attention with ragged tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cudnn
import torch
from torch import Tensor

from golf.nn.operator import operator

FORWARD = {"q": "q", "k": "k", "v": "v"}
BACKWARD = {**FORWARD, "out": "o", "dout": "dO", "lse": "stats"}
"""Arguments of the package's operations, by the names that tensors have here."""


@dataclass(frozen=True)
class Graph:
    """An operation that is ready to run. uids: of its tensors by name; by: of the offsets by elements a token has."""

    built: Any
    workspace: int
    uids: dict[str, int]
    lengths: int
    by: dict[int, int]


_graphs: dict[tuple[Any, ...], Graph] = {}
_handles: dict[torch.device, Any] = {}


def forward(q: Tensor, k: Tensor, v: Tensor, borders: Tensor | None, longest: int) -> tuple[Tensor, Tensor]:
    """As `operator` has it, in bfloat16, of packed documents alone; lse [T, H]."""
    given = {"q": _rows(q), "k": _rows(k), "v": _rows(v)}
    made = {"out": q.new_empty(q.shape), "lse": q.new_empty(q.shape[:2], dtype=torch.float32)}
    _run(given, made, borders, longest)
    return made["out"], made["lse"]


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, borders: Tensor | None, longest: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v. Their sums over keys are made by atomic additions: not the same bits twice."""
    given = {"q": _rows(q), "k": _rows(k), "v": _rows(v), "out": _rows(out), "dout": _rows(dout), "lse": lse}
    made = {f"d{name}": x.new_empty(x.shape) for name, x in (("q", q), ("k", k), ("v", v))}
    _run(given, made, borders, longest)
    return made["dq"], made["dk"], made["dv"]


def why_not(device: torch.device, head_dim: int) -> str | None:
    """Why the installed cuDNN does not take such heads, told by a document that it is given; None: it does."""
    x = torch.zeros(8, 1, head_dim, dtype=torch.bfloat16, device=device)
    borders = torch.tensor([0, 8, 8], dtype=torch.int32, device=device)
    try:
        backward(x, x, x, x, *forward(x, x, x, borders, 8), borders, 8)
    except Exception as error:  # whatever the package raises, training goes on without it
        return f"cuDNN refuses: {(str(error).splitlines() or [type(error).__name__])[0][:200]}"
    return None


def _rows(x: Tensor) -> Tensor:
    """[T, heads, hd] whose features lie side by side; the rest may be a part of something wider."""
    return x if x.stride(2) == 1 else x.contiguous()


def _run(given: dict[str, Tensor], made: dict[str, Tensor], borders: Tensor | None, longest: int) -> None:
    """Fill `made` from `given` on the current stream; a recorded CUDA graph reads borders anew when it is launched."""
    assert borders is not None
    q, tensors = given["q"], given | made
    layout = tuple((name, x.shape, x.stride()) for name, x in tensors.items())
    key = (q.device, len(borders), longest, layout)
    if q.device not in _handles:
        _handles[q.device] = cudnn.create_handle()
    handle = _handles[q.device]
    cudnn.set_stream(handle=handle, stream=torch.cuda.current_stream(q.device).cuda_stream)
    if key not in _graphs:
        _graphs[key] = _build(handle, given, made, len(borders) - 1, longest)
    graph = _graphs[key]
    pack = {graph.uids[name]: x for name, x in tensors.items()}
    pack[graph.lengths] = borders.diff()
    pack |= {uid: borders * elements for elements, uid in graph.by.items()}
    workspace = torch.empty(max(1, graph.workspace), dtype=torch.uint8, device=q.device)
    graph.built.execute(pack, workspace, handle=handle)


def _build(handle: Any, given: dict[str, Tensor], made: dict[str, Tensor], documents: int, longest: int) -> Graph:
    """The graph for tensors that lie as these do."""
    kind = cudnn.data_type
    graph = cudnn.pygraph(
        io_data_type=kind.BFLOAT16, intermediate_data_type=kind.FLOAT, compute_data_type=kind.FLOAT, handle=handle
    )
    lengths = graph.tensor(dim=[documents, 1, 1, 1], stride=[1, 1, 1, 1], data_type=torch.int32, name="lengths")
    by = {
        x.stride(0): graph.tensor(dim=[documents + 1, 1, 1, 1], stride=[1, 1, 1, 1], data_type=torch.int32)
        for x in (*given.values(), *made.values())
    }
    places = {
        name: graph.tensor(**_place(x, documents, longest), data_type=x.dtype, ragged_offset=by[x.stride(0)], name=name)
        for name, x in given.items()
    }
    options = {
        "attn_scale": given["q"].shape[-1] ** -0.5, "use_causal_mask": True, "use_padding_mask": True,
        "seq_len_q": lengths, "seq_len_kv": lengths,
    }  # fmt: skip
    if "dout" in given:
        arguments = {BACKWARD[name]: place for name, place in places.items()}
        tokens = -(-len(given["q"]) // 64) * 64  # else it takes memory for `documents` of the longest
        found = graph.sdpa_backward(
            **arguments, **options, max_total_seq_len_q=tokens, max_total_seq_len_kv=tokens, name="backward"
        )
    else:
        arguments = {FORWARD[name]: place for name, place in places.items()}
        found = graph.sdpa(**arguments, **options, generate_stats=True, name="forward")
    for (name, x), place in zip(made.items(), found, strict=True):
        where = _place(x, documents, longest)
        place.set_output(True).set_dim(where["dim"]).set_stride(where["stride"]).set_data_type(x.dtype)
        place.set_ragged_offset(by[x.stride(0)])
        places[name] = place
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A])
    graph.check_support()
    graph.build_plans()
    return Graph(
        graph, graph.get_workspace_size(), {name: place.get_uid() for name, place in places.items()},
        lengths.get_uid(), {elements: offsets.get_uid() for elements, offsets in by.items()},
    )  # fmt: skip


def _place(x: Tensor, documents: int, longest: int) -> dict[str, list[int]]:
    """Shape and strides of [T, heads, hd], or of the lse [T, heads], as documents × heads × places × features."""
    token, head, *_ = x.stride()
    size = x.shape[2] if x.ndim == 3 else 1
    return {"dim": [documents, x.shape[1], longest, size], "stride": [longest * token, head, token, 1]}


attention = operator("packed_cudnn", forward, backward, lse_shape=lambda q: tuple(q.shape[:2]))
