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


def built(window: int = 64, **techniques: type[Technique]) -> GPT:
    return GPT(
        vocab_size=32, model_dim=16, num_layers=2, num_heads=4, num_kv_heads=2, mlp_mult=2, max_seq_len=window,
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
    assert preflight.check(built(xsa=XSA, smear_gate=SmearGate)) == []


def test_nothing_outside_is_moved() -> None:
    torch.manual_seed(1)
    wanted = torch.rand(1)
    torch.manual_seed(1)
    preflight.check(built())
    assert torch.equal(torch.rand(1), wanted)


RETURNED = {
    "nothing": (lambda self, v, ctx: None, "not NoneType"),
    "one gate, which would broadcast": (lambda self, v, ctx: v[..., :1], "must return [2, 64, 16], not [2, 64, 1]"),
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


def test_windows_of_any_length_will_do() -> None:
    for window in (1, 2, 3, 100):
        assert preflight.check(built(window, xsa=XSA, smear_gate=SmearGate)) == []


# ------------------------------------------------------------------------------------------------ what is right passes


class Positive(Technique):
    """Parameters that must stay positive, and a second name of one."""

    site = "mlp_out"

    def __init__(self, shape: Shape, layer: int | None = None) -> None:
        super().__init__(shape, layer)
        declare(self, "scale", torch.ones(4, shape.model_dim), role="scalar", place="mine.scale", layer=layer)
        self._names = (self.scale,)

    def forward(self, v: torch.Tensor, ctx: Context) -> torch.Tensor:
        return v * self._names[0].log1p().sqrt().mean(0)


class Drops(Technique):
    """Random in training, and a look at numbers that a device without them cannot have."""

    site = "mlp_out"
    reads = ("ids",)

    def forward(self, v: torch.Tensor, ctx: Context) -> torch.Tensor:
        if (ctx.ids == 3).any():
            v = v * 1.0
        return F.dropout(v, 0.1, self.training)


class Blocks(Technique):
    """Works in blocks of 128 positions."""

    site = "mlp_out"

    def forward(self, v: torch.Tensor, ctx: Context) -> torch.Tensor:
        return v.view(v.shape[0], v.shape[1] // 128, 128, -1).flatten(1, 2)


@pytest.mark.parametrize("cls", [Positive, Drops])
def test_a_legitimate_technique_passes(cls: type[Technique]) -> None:
    assert preflight.check(built(mine=cls)) == []


def test_what_works_in_blocks_is_tried_with_whole_ones() -> None:
    (line,) = preflight.check(built(256, mine=Blocks))
    assert "it was tried with 256" in line


def test_drawing_in_evaluation_is_refused_as_what_it_is() -> None:
    refused(
        at("mlp_out", lambda self, v, ctx: F.dropout(v, 0.5)), "technique/mine", "the same input gives another output"
    )


def test_a_leak_is_named_beside_techniques_that_need_each_other() -> None:
    class Leaves(Technique):
        site = "mlp_in"
        reads = ("carried",)

        def forward(self, v: torch.Tensor, ctx: Context) -> torch.Tensor:
            ctx.carry("x", v)
            return v

    class Takes(Technique):
        site = "mlp_out"
        reads = ("carried",)

        def forward(self, v: torch.Tensor, ctx: Context) -> torch.Tensor:
            return v + ctx.fetch("x")

    ahead = at("attn_in", lambda self, v, ctx: v + 0.5 * F.pad(v[:, 1:], (0, 0, 0, 1)), mixes_time=True)
    with pytest.raises(ConfigError, match="technique/z: a later token changes"):
        preflight.check(built(a=Leaves, b=Takes, z=ahead))


def test_an_error_where_documents_share_a_row_is_named() -> None:
    def forward(self: Any, v: torch.Tensor, ctx: Context) -> torch.Tensor:
        return v if ctx.documents is None else v + ctx.documents.nothing  # type: ignore[attr-defined]

    refused(at("mlp_in", forward, mixes_time=True, reads=("documents",)), "technique/mine at mlp_in", "nothing")


def test_targets_are_missing_in_evaluation_and_that_is_said() -> None:
    def forward(self: Any, h: torch.Tensor, ctx: Context) -> torch.Tensor:
        ctx.add_loss("mine", ctx.to_logits(h).square().mean())  # type: ignore[misc]
        return h

    refused(at("pre_head", forward, reads=("to_logits",)), "technique/mine at pre_head", "None in evaluation")


def test_the_border_token_is_a_number() -> None:
    def forward(self: Any, v: torch.Tensor, ctx: Context) -> torch.Tensor:
        return v * (ctx.ids != ctx.border_id).unsqueeze(-1)  # type: ignore[union-attr]

    assert preflight.check(built(mine=at("mlp_out", forward, reads=("ids", "border_id")))) == []


def test_what_is_not_stored_may_not_be_needed() -> None:
    class Hidden(Technique):
        site = "mlp_out"

        def __init__(self, shape: Shape, layer: int | None = None) -> None:
            super().__init__(shape, layer)
            declare(self, "gain", torch.ones(16), role="scalar", place="mine", layer=layer, stored=False)

        def forward(self, v: torch.Tensor, ctx: Context) -> torch.Tensor:
            return v * self.gain

    refused(Hidden, "what is not stored in the artifact changes the output")
