"""A tiny forward and backward names the technique that is wrong, and where; golf's own all pass."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from golf.common.errors import ConfigError
from golf.nn import preflight
from golf.nn.context import Context
from golf.nn.models.attention import CausalAttention
from golf.nn.models.gpt import GPT
from golf.nn.models.head import Head
from golf.nn.models.init import Init
from golf.nn.models.mlp import SquaredMLP
from golf.nn.models.position import Rope
from golf.nn.models.residual import Residual, Straight
from golf.nn.numerics import Numerics
from golf.nn.params import declare
from golf.nn.shape import Shape
from golf.nn.techniques.base import Technique
from golf.nn.techniques.smear_gate import SmearGate
from golf.nn.techniques.xsa import XSA


def built(**techniques: type[Technique]) -> GPT:
    return GPT(
        vocab_size=32, model_dim=16, num_layers=2, num_heads=4, num_kv_heads=2, mlp_mult=2, max_seq_len=64,
        attention=CausalAttention, mlp=SquaredMLP, position=Rope, residual=Residual, plan=Straight, head=Head,
        init=Init(), numerics=Numerics(), techniques={n: functools.partial(cls) for n, cls in techniques.items()},
    )  # fmt: skip


def at(where: str, forward: Callable[..., Any], **facts: Any) -> type[Technique]:
    """A technique at one site."""
    return type("Mine", (Technique,), {"site": where, "forward": forward, **facts})


def refused(cls: type[Technique], *parts: str) -> None:
    with pytest.raises(ConfigError) as caught:
        preflight.check(built(xsa=XSA, mine=cls))
    for part in parts:
        assert part in str(caught.value)


def test_golfs_own_pass() -> None:
    preflight.check(built(xsa=XSA, smear_gate=SmearGate))


def test_nothing_outside_is_moved() -> None:
    torch.manual_seed(1)
    wanted = torch.rand(1)
    torch.manual_seed(1)
    preflight.check(built())
    assert torch.equal(torch.rand(1), wanted)


RETURNED = {
    "nothing": (lambda self, v, ctx: None, "not NoneType"),
    "one gate, which would broadcast": (lambda self, v, ctx: v[..., :1], "must return [2, 24, 16], not [2, 24, 1]"),
    "whole numbers": (lambda self, v, ctx: v.long(), "floating point numbers, not torch.int64"),
}


@pytest.mark.parametrize("what", RETURNED)
def test_what_is_returned_is_checked(what: str) -> None:
    forward, told = RETURNED[what]
    refused(at("mlp_out", forward), "technique/mine at mlp_out in layer 0", told)


def test_half_of_a_pair_is_refused() -> None:
    refused(at("qk", lambda self, qk, ctx: qk[0]), "technique/mine at qk in layer 0", "pair (queries, keys)")


@pytest.mark.parametrize("field", ["ids", "x0", "n", "visit", "documents", "targets", "border_id"])
def test_a_field_that_was_not_declared_is_refused(field: str) -> None:
    def forward(self: Any, v: torch.Tensor, ctx: Context) -> torch.Tensor:
        getattr(ctx, field)
        return v

    refused(at("mlp_out", forward), f"uses ctx.{field}", f"must name {field}")
    preflight.check(built(mine=at("mlp_out", forward, reads=(field,))))


def test_an_error_names_site_and_line() -> None:
    def forward(self: Any, v: torch.Tensor, ctx: Context) -> torch.Tensor:
        return v + ctx.v.mean()  # type: ignore[union-attr]  # there is no v at this site

    refused(at("mlp_out", forward, reads=("v",)), "technique/mine at mlp_out in layer 0", "AttributeError", __file__)


def test_a_constant_that_stays_behind_is_refused() -> None:
    def made_once(self: Any, shape: Shape, layer: int | None = None) -> None:
        Technique.__init__(self, shape, layer)
        self.table = torch.ones(shape.model_dim)

    refused(at("mlp_out", lambda self, v, ctx: v * self.table, __init__=made_once), "stays behind", "mlp_out")
    refused(at("mlp_out", lambda self, v, ctx: v * torch.ones(16)), "stays behind")


class Listed(Technique):
    """Matrices in a plain list."""

    site = "mlp_out"

    def __init__(self, shape: Shape, layer: int | None = None) -> None:
        super().__init__(shape, layer)
        self.heads = [torch.nn.Linear(4, 4)]

    def forward(self, v: torch.Tensor, ctx: Context) -> torch.Tensor:
        return v


class Stacked(Technique):
    """A stack of matrices as one parameter of the role `matrix`."""

    site = "mlp_out"

    def __init__(self, shape: Shape, layer: int | None = None) -> None:
        super().__init__(shape, layer)
        declare(self, "stack", torch.zeros(2, 4, 4), role="matrix", place="mine", layer=layer)

    def forward(self, v: torch.Tensor, ctx: Context) -> torch.Tensor:
        return v


def test_parameters_in_a_list_are_refused() -> None:
    refused(Listed, "technique/mine", "heads holds parameters that torch does not know of")


def test_a_stack_of_matrices_is_refused() -> None:
    refused(Stacked, "mine.stack", "two dimensions, not [2, 4, 4]")


def back(v: torch.Tensor) -> torch.Tensor:
    return v + 0.5 * F.pad(v[:, :-1], (0, 0, 1, 0))


def test_looking_ahead_is_refused() -> None:
    ahead = at("mlp_in", lambda self, v, ctx: v + 0.5 * F.pad(v[:, 1:], (0, 0, 0, 1)), mixes_time=True)
    refused(ahead, "technique/mine", "looks ahead")


def test_mixing_that_was_not_declared_is_refused() -> None:
    refused(at("mlp_in", lambda self, v, ctx: back(v)), "technique/mine", "mixes_time = True")
    preflight.check(built(mine=at("mlp_in", lambda self, v, ctx: back(v), mixes_time=True)))


def test_a_look_across_documents_is_refused() -> None:
    blind = at("mlp_in", lambda self, v, ctx: back(v), mixes_time=True, reads=("documents",))
    refused(blind, "technique/mine", "must heed ctx.documents")


def test_a_term_that_is_no_scalar_is_refused() -> None:
    def forward(self: Any, v: torch.Tensor, ctx: Context) -> torch.Tensor:
        ctx.add_loss("mine", v.mean(-1))
        return v

    with pytest.raises(ConfigError, match="scalars"):
        preflight.check(built(mine=at("mlp_out", forward)))
