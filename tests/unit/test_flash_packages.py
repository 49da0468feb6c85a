"""Attention by packages that are not here: stand-ins with the signatures that they document, and exact arithmetic."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from itertools import pairwise
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from golf.launch.compose.build import build_model
from golf.launch.compose.configs import compose_job, composer, resolved
from golf.nn.attend import SDPA, Attend, Backend, backend
from golf.nn.context import Documents
from golf.nn.models.gpt import GPT


def scores_of(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """[B, T, heads, hd], the queries at the last positions → [B, H, Tq, T]."""
    scores = scale * torch.einsum("bqhd,bkhd->bhqk", q, k.repeat_interleave(q.shape[2] // k.shape[2], 2))
    hidden = ~torch.ones(scores.shape[2:], dtype=torch.bool).tril(k.shape[1] - q.shape[1])
    return scores.masked_fill(hidden, -torch.inf)


def exact(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The output, in the layout of q, and the lse [B, H, Tq]."""
    scores = scores_of(q, k, scale)
    out = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v.repeat_interleave(q.shape[2] // v.shape[2], 2))
    return torch.empty_like(q).copy_(out), scores.logsumexp(-1).float()


def derived(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float) -> list[Tensor]:
    """The gradients, of what the forward left."""
    groups = q.shape[2] // k.shape[2]
    p = (scores_of(q, k, scale) - lse[..., None]).exp()
    towards = torch.einsum("bqhd,bkhd->bhqk", dout, v.repeat_interleave(groups, 2))
    moved = scale * p * (towards - (dout * out).sum(-1).transpose(1, 2)[..., None])
    dq = torch.einsum("bhqk,bkhd->bqhd", moved, k.repeat_interleave(groups, 2))
    both = torch.einsum("bhqk,bqhd->bkhd", moved, q), torch.einsum("bhqk,bqhd->bkhd", p, dout)
    return [dq, *(x.unflatten(2, (-1, groups)).sum(3) for x in both)]


def run(q: Tensor, k: Tensor, v: Tensor, borders: Tensor | None, longest: int, scale: float) -> tuple[Tensor, Tensor]:
    """Whole windows, or documents in a row: then out as q, and lse [H, T]."""
    assert all(x.stride(-1) == 1 for x in (q, k, v))
    if borders is None:
        return exact(q, k, v, scale)
    out, lse = torch.empty_like(q), torch.empty(q.shape[1], q.shape[0])
    for at in cuts(borders, longest):
        one, lse[:, at] = exact(q[None, at], k[None, at], v[None, at], scale)
        out[at] = one[0]
    return out, lse


def fill(given: tuple[Tensor, ...], borders: Tensor | None, longest: int, scale: float) -> Tensor:
    """Put the gradients where they are asked for."""
    *given, dq, dk, dv = given
    assert all(x.stride(-1) == 1 for x in given[1:5])
    if borders is None:
        for place, found in zip((dq, dk, dv), derived(*given, scale), strict=True):
            place.copy_(found)
        return torch.zeros(())
    *tensors, lse = given
    for at in cuts(borders, longest):
        found = derived(*(x[None, at] for x in tensors), lse[None, :, at], scale)
        for place, one in zip((dq, dk, dv), found, strict=True):
            place[at] = one[0]
    return torch.zeros(())


def cuts(borders: Tensor, longest: int) -> list[slice]:
    assert borders.dtype == torch.int32
    assert int(borders.diff().max()) <= longest
    return [slice(*ends) for ends in pairwise(borders.tolist())]


class Two:
    """flash_attn.flash_attn_interface of 2.8.3."""

    @staticmethod
    def _flash_attn_forward(
        q, k, v, dropout_p, softmax_scale, causal, window_size_left, window_size_right, softcap, alibi_slopes,
        return_softmax,
    ):  # type: ignore[no-untyped-def]  # fmt: skip
        assert (dropout_p, causal, window_size_left, window_size_right, softcap) == (0.0, True, -1, -1, 0.0)
        out, lse = run(q, k, v, None, 0, softmax_scale)
        return out, lse, torch.empty(0), torch.empty(2, dtype=torch.int64)

    @staticmethod
    def _flash_attn_varlen_forward(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale, causal,
        window_size_left=-1, window_size_right=-1, softcap=0.0, alibi_slopes=None, return_softmax=False,
        block_table=None, leftpad_k=None, seqused_k=None, zero_tensors=False,
    ):  # type: ignore[no-untyped-def]  # fmt: skip
        assert causal
        assert cu_seqlens_q is cu_seqlens_k
        out, lse = run(q, k, v, cu_seqlens_q, max_seqlen_q, softmax_scale)
        return out, lse, torch.empty(0), torch.empty(2, dtype=torch.int64)

    @staticmethod
    def _flash_attn_backward(
        dout, q, k, v, out, softmax_lse, dq, dk, dv, dropout_p, softmax_scale, causal, window_size_left,
        window_size_right, softcap, alibi_slopes, deterministic, rng_state=None,
    ):  # type: ignore[no-untyped-def]  # fmt: skip
        assert causal
        return fill((dout, q, k, v, out, softmax_lse, dq, dk, dv), None, 0, softmax_scale)

    @staticmethod
    def _flash_attn_varlen_backward(
        dout, q, k, v, out, softmax_lse, dq, dk, dv, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p,
        softmax_scale, causal, window_size_left, window_size_right, softcap, alibi_slopes, deterministic,
        rng_state=None, zero_tensors=False,
    ):  # type: ignore[no-untyped-def]  # fmt: skip
        assert causal
        return fill((dout, q, k, v, out, softmax_lse, dq, dk, dv), cu_seqlens_q, max_seqlen_q, softmax_scale)


class Three:
    """flash_attn_interface as it is now."""

    @staticmethod
    def _flash_attn_forward(
        q, k, v, k_new=None, v_new=None, qv=None, out_=None, cu_seqlens_q=None, cu_seqlens_k=None,
        cu_seqlens_k_new=None, seqused_q=None, seqused_k=None, max_seqlen_q=None, max_seqlen_k=None, page_table=None,
        kv_batch_idx=None, leftpad_k=None, rotary_cos=None, rotary_sin=None, seqlens_rotary=None, q_descale=None,
        k_descale=None, v_descale=None, softmax_scale=None, causal=False, window_size_left=-1, window_size_right=-1,
        attention_chunk=0, softcap=0.0, rotary_interleaved=True, scheduler_metadata=None, num_splits=1, pack_gqa=None,
        sm_margin=0,
    ):  # type: ignore[no-untyped-def]  # fmt: skip
        assert causal
        assert cu_seqlens_q is cu_seqlens_k
        assert (max_seqlen_q is None) == (cu_seqlens_q is None)
        out, lse = run(q, k, v, cu_seqlens_q, max_seqlen_q, softmax_scale)
        return out, lse, torch.empty(0), torch.empty(0)

    @staticmethod
    def _flash_attn_backward(
        dout, q, k, v, out, softmax_lse, cu_seqlens_q=None, cu_seqlens_k=None, sequed_q=None, sequed_k=None,
        max_seqlen_q=None, max_seqlen_k=None, dq=None, dk=None, dv=None, softmax_scale=None, is_causal=False,
        window_size_left=-1, window_size_right=-1, softcap=0.0, deterministic=False, sm_margin=0,
    ):  # type: ignore[no-untyped-def]  # fmt: skip
        assert is_causal
        return fill((dout, q, k, v, out, softmax_lse, dq, dk, dv), cu_seqlens_q, max_seqlen_q, softmax_scale)


class FirstThree:
    """flash_attn_interface as it was in its first release."""

    @staticmethod
    def _flash_attn_forward(
        q, k, v, k_new, v_new, qv, out, cu_seqlens_q, cu_seqlens_k, cu_seqlens_k_new, seqused_q, seqused_k,
        max_seqlen_q, max_seqlen_k, page_table, kv_batch_idx, leftpad_k, rotary_cos, rotary_sin, seqlens_rotary,
        q_descale, k_descale, v_descale, softmax_scale, causal, window_size=(-1, -1), attention_chunk=0, softcap=0.0,
        rotary_interleaved=True, scheduler_metadata=None, num_splits=1, pack_gqa=None, sm_margin=0,
    ):  # type: ignore[no-untyped-def]  # fmt: skip
        assert causal
        found, lse = run(q, k, v, cu_seqlens_q, max_seqlen_q, softmax_scale)
        return found, lse

    @staticmethod
    def _flash_attn_backward(
        dout, q, k, v, out, softmax_lse, cu_seqlens_q, cu_seqlens_k, sequed_q, sequed_k, max_seqlen_q, max_seqlen_k,
        dq, dk, dv, softmax_scale, causal, window_size=(-1, -1), softcap=0.0, deterministic=False, sm_margin=0,
    ):  # type: ignore[no-untyped-def]  # fmt: skip
        assert causal
        fill((dout, q, k, v, out, softmax_lse, dq, dk, dv), cu_seqlens_q, max_seqlen_q, softmax_scale)
        return dq, dk, dv, torch.zeros(())


class Place:
    """A tensor of a cuDNN graph: where its elements are, told by lists of four."""

    def __init__(self, dim=(), stride=(), data_type=None, ragged_offset=None, name="", uid=-1):  # type: ignore[no-untyped-def]
        self.dim, self.stride, self.offset, self.uid, self.output = dim, stride, ragged_offset, id(self), False

    def set_output(self, value: bool) -> Place:
        self.output = value
        return self

    def set_dim(self, dim: list[int]) -> Place:
        self.dim = dim
        return self

    def set_stride(self, stride: list[int]) -> Place:
        self.stride = stride
        return self

    def set_data_type(self, kind: Any) -> Place:
        return self

    def set_ragged_offset(self, offset: Place) -> Place:
        self.offset = offset
        return self

    def get_uid(self) -> int:
        return self.uid

    def read(self, pack: dict[int, Tensor], document: int, length: int) -> Tensor:
        """A document's part of what stands for it, [1, length, heads, features], to be read and written."""
        offset, x = pack[self.offset.uid], pack[self.uid]
        assert offset.dtype == torch.int32
        assert length <= self.dim[2]
        size, stride = (length, self.dim[1], self.dim[3]), (self.stride[2], self.stride[1], self.stride[3])
        return x.as_strided(size, stride, x.storage_offset() + int(offset[document]))[None]


class PyGraph:
    """cudnn.pygraph, of attention with padding and ragged offsets."""

    def __init__(self, io_data_type, intermediate_data_type, compute_data_type, handle):  # type: ignore[no-untyped-def]
        self.steps: list[str] = []
        self.tensor, self.room = Place, math.inf

    def sdpa(
        self, q, k, v, attn_scale=None, use_padding_mask=False, seq_len_q=None, seq_len_kv=None, use_causal_mask=False,
        generate_stats=None, name="",
    ):  # type: ignore[no-untyped-def]  # fmt: skip
        assert use_padding_mask
        assert use_causal_mask
        assert generate_stats
        self.given, self.made = [q, k, v], [Place(), Place()]
        self.arithmetic, self.lengths, self.scale = exact, seq_len_q, attn_scale
        return self.made

    def sdpa_backward(
        self, q, k, v, o, dO, stats, attn_scale=None, use_padding_mask=False, seq_len_q=None, seq_len_kv=None,
        max_total_seq_len_q=None, max_total_seq_len_kv=None, use_causal_mask=False, name="",
    ):  # type: ignore[no-untyped-def]  # fmt: skip
        assert use_padding_mask
        assert use_causal_mask
        assert max_total_seq_len_q % 64 == max_total_seq_len_kv % 64 == 0
        self.given, self.made = [dO, q, k, v, o, stats], [Place(), Place(), Place()]
        self.arithmetic, self.lengths, self.scale, self.room = derived, seq_len_q, attn_scale, max_total_seq_len_q
        return self.made

    def __getattr__(self, step: str) -> Any:
        return lambda *given: self.steps.append(step)

    def get_workspace_size(self) -> int:
        return 0

    def execute(self, pack: dict[int, Tensor], workspace: Tensor, handle: Any) -> None:
        built = "validate build_operation_graph create_execution_plans check_support build_plans"
        assert " ".join(self.steps) == built
        assert all(place.output for place in self.made)
        lengths = pack[self.lengths.uid].tolist()
        assert sum(lengths) <= self.room
        for document, length in enumerate(lengths):
            given = [place.read(pack, document, length) for place in self.given]
            if self.arithmetic is derived:
                given[-1] = given[-1][..., 0].transpose(1, 2)
            for place, found in zip(self.made, self.arithmetic(*given, self.scale), strict=True):
                out = place.read(pack, document, length)
                out.copy_(found.transpose(1, 2)[..., None] if found.ndim == 3 else found)


class CuDNN:
    """The module itself."""

    data_type = SimpleNamespace(BFLOAT16=1, FLOAT=2)
    heur_mode = SimpleNamespace(A=1)
    create_handle = staticmethod(lambda: "handle")
    set_stream = staticmethod(lambda handle, stream: None)
    pygraph = PyGraph


class Four:
    """flash_attn.cute.interface of 4.0.0b36, what golf calls of it."""

    @staticmethod
    def _flash_attn_fwd(
        q, k, v, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None, softmax_scale=None,
        causal=False, return_lse=False,
    ):  # type: ignore[no-untyped-def]  # fmt: skip
        assert causal
        assert return_lse
        assert cu_seqlens_q is cu_seqlens_k
        return *run(q, k, v, cu_seqlens_q, max_seqlen_q, q.shape[-1] ** -0.5), None, None, None

    @staticmethod
    def _flash_attn_bwd(
        q, k, v, out, dout, lse, softmax_scale=None, causal=False, cu_seqlens_q=None, cu_seqlens_k=None,
        max_seqlen_q=None, max_seqlen_k=None,
    ):  # type: ignore[no-untyped-def]  # fmt: skip
        assert causal
        assert lse.is_contiguous()
        found = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        fill((dout, q, k, v, out, lse, *found), cu_seqlens_q, max_seqlen_q, q.shape[-1] ** -0.5)
        return found


class CuDNNAndFour:
    """Both packages."""


for functions in (CuDNN, Four):
    for key in vars(functions):
        if not key.startswith("__"):
            setattr(CuDNNAndFour, key, vars(functions)[key])

CUTE = ("flash_attn", "flash_attn.cute", "flash_attn.cute.interface")
PACKAGES: dict[str, tuple[Backend, str, type, tuple[str, ...]]] = {
    "2": ("flash_attn_2", "flash2", Two, ("flash_attn_2_cuda", "flash_attn", "flash_attn.flash_attn_interface")),
    "3": ("flash_attn_3", "flash3", Three, ("flash_attn_interface",)),
    "first 3": ("flash_attn_3", "flash3", FirstThree, ("flash_attn_interface",)),
    "cudnn": ("cudnn", "packed_cudnn", CuDNN, ("cudnn",)),
    "4": ("flash_attn_4", "flash4", Four, CUTE),
    "cudnn and 4": ("cudnn_flash_attn_4", "cudnn_flash", CuDNNAndFour, ("cudnn", *CUTE)),
}
OWN = {name: f"golf.nn.{own}" for name, own, _, _ in PACKAGES.values()}


@pytest.fixture(params=PACKAGES)
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    """A backend whose package has a stand-in."""
    name, _, functions, modules = PACKAGES[request.param]
    for module in modules:
        stand_in = ModuleType(module)
        stand_in.__spec__ = ModuleSpec(module, None, is_package=True)
        stand_in.__path__ = []
        vars(stand_in).update({key: getattr(functions, key) for key in vars(functions) if not key.startswith("__")})
        monkeypatch.setitem(sys.modules, module, stand_in)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: SimpleNamespace(cuda_stream=0))
    for own in OWN.values():
        monkeypatch.delitem(sys.modules, own, raising=False)
    yield name
    for own in OWN.values():
        sys.modules.pop(own, None)
    torch._dynamo.reset()


def draw(batch: int, asked: int, time: int, heads: int = 4, kv_heads: int = 2) -> list[Tensor]:
    shapes = (batch, heads, asked, 8), *[(batch, kv_heads, time, 8)] * 2
    generator = torch.Generator().manual_seed(1)
    given = [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]
    return [x.transpose(1, 2).requires_grad_() for x in given]  # not in the layout of [B, T, heads, hd]


def check(attends: Callable[..., Tensor], twin: Callable[..., Tensor], given: list[Tensor]) -> None:
    out, want = attends(*given), twin(*given)
    torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-6)
    grad = torch.randn(want.shape, dtype=want.dtype, generator=torch.Generator().manual_seed(2))
    found = torch.autograd.grad(out, given, grad)
    torch.testing.assert_close(found, torch.autograd.grad(want, given, grad), rtol=1e-5, atol=1e-6)


def compiled(attends: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(attends, fullgraph=True, dynamic=False, backend="aot_eager")


def packed_by(attend: Attend, borders: Tensor) -> Callable[..., Tensor]:
    attends = attend.packed
    assert attends is not None
    return lambda q, k, v: attends(q, k, v, Documents.of(borders, q.shape[1], 7))


@pytest.mark.parametrize(("asked", "heads"), [(12, 4), (5, 4), (1, 2)])
@pytest.mark.parametrize("how", [lambda attends: attends, compiled], ids=["eager", "compiled"])
def test_whole_windows(name: Backend, how: Any, asked: int, heads: int) -> None:
    check(how(backend(name).whole), SDPA.whole, draw(2, asked, 12, heads))


@pytest.mark.parametrize("how", [lambda attends: attends, compiled], ids=["eager", "compiled"])
def test_packed_documents(name: Backend, how: Any) -> None:
    borders = torch.tensor([0, 1, 1, 8, 15, 19, 19, 19], dtype=torch.int32)
    check(how(packed_by(backend(name), borders)), packed_by(SDPA, borders), draw(1, 19, 19))


def test_what_the_compiler_is_told_is_what_comes(name: Backend) -> None:
    backend(name)
    operator = importlib.import_module(OWN[name]).attention
    borders = torch.tensor([0, 3, 9, 9], dtype=torch.int32)
    for given in ((*draw(2, 4, 9), None, 0), (*(x[0] for x in draw(1, 9, 9)), borders, 6)):
        if given[3] is not None or name != "cudnn":  # of packed documents alone
            tests = "test_schema", "test_faketensor", "test_autograd_registration"
            torch.library.opcheck(operator, given, test_utils=tests)


def test_one_gradient_for_all_tokens(name: Backend) -> None:
    borders = torch.tensor([0, 5, 12, 19], dtype=torch.int32)
    given = draw(1, 19, 19)
    grad = torch.randn(8, dtype=torch.float64).expand(1, 19, 4, 8)
    found, want = (torch.autograd.grad(packed_by(one, borders)(*given), given, grad) for one in (backend(name), SDPA))
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-6)


def test_documents_may_lie_in_something_wider(name: Backend) -> None:
    borders = torch.tensor([0, 5, 12, 19], dtype=torch.int32)
    q, k, v = draw(1, 19, 19)
    wide = torch.cat((q, k, v), 2).detach().requires_grad_()

    def of_a_part(attends: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x: attends(*x.split((4, 2, 2), 2))

    check(of_a_part(packed_by(backend(name), borders)), of_a_part(packed_by(SDPA, borders)), [wide])


def model_by(name: Backend) -> GPT:
    with composer():
        model = build_model(resolved(compose_job([
            "recipe=none", "model.model_dim=32", "model.num_layers=2", "model.num_heads=4", "model.num_kv_heads=2",
            "train_seq_len=32", "tokenizer=byte260", f"model.attention.backend={name}",
        ])), "float32")  # fmt: skip
    model.initialize(1337)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():  # projections that start at zero would hide the attention
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize(
    "borders", [None, torch.tensor([0, 3, 19, 32, 32], dtype=torch.int32)], ids=["whole", "packed"]
)
def test_a_model_compiles_to_one_graph_and_learns_the_same(name: Backend, borders: Tensor | None) -> None:
    ids = torch.randint(4, 260, (1, 33), generator=torch.Generator().manual_seed(1))
    found = []
    for one in (name, "sdpa"):
        model = model_by(one)
        assert model.cannot_pack is None
        loss = (compiled(model) if one == name else model)(ids[:, :-1], ids[:, 1:], borders=borders)
        loss.backward()
        found.append((loss.detach(), [p.grad for p in model.parameters()]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
