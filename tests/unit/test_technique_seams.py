"""What a technique may be beyond one module at one site: at several, shared, carrying values, adding to the loss."""

from __future__ import annotations

import copy
import functools
from typing import Any, ClassVar

import pytest
import torch

from golf.common.errors import ConfigError
from golf.nn.context import Context
from golf.nn.linear import EffectiveWeights, Linear
from golf.nn.models.attention import CausalAttention
from golf.nn.models.gpt import GPT, Losses
from golf.nn.models.head import Head
from golf.nn.models.init import Init
from golf.nn.models.mlp import GatedMLP, SquaredMLP
from golf.nn.models.position import Rope
from golf.nn.models.residual import Residual, Straight
from golf.nn.numerics import Numerics
from golf.nn.params import declare
from golf.nn.shape import Shape
from golf.nn.slots import by_layer
from golf.nn.techniques.base import Technique

LAYERS, TIME = 3, 12
IDS = torch.randint(0, 32, (2, TIME + 1), generator=torch.Generator().manual_seed(0))
X, Y = IDS[:, :-1], IDS[:, 1:]


def built(slots: dict[str, Any] | None = None, **techniques: Any) -> GPT:
    """A tiny model with random weights everywhere."""
    parts = {"attention": CausalAttention, "mlp": SquaredMLP, **(slots or {})}
    model = GPT(
        vocab_size=32, model_dim=16, num_layers=LAYERS, num_heads=4, num_kv_heads=2, mlp_mult=2, max_seq_len=TIME,
        position=Rope, residual=Residual, plan=Straight, head=Head, init=Init(), numerics=Numerics(),
        techniques={name: functools.partial(cls) for name, cls in techniques.items()}, **parts,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return model


class TwoSites(Technique):
    """One vector that scales what the attention and the MLP read."""

    sites: ClassVar = {"attn_in": "before_attention", "mlp_in": "before_mlp"}

    def __init__(self, shape: Shape, layer: int | None = None) -> None:
        super().__init__(shape, layer)
        declare(self, "gain", torch.ones(shape.model_dim), role="scalar", place="mine.gain", layer=layer)
        self.ran: list[str] = []

    def before_attention(self, n: torch.Tensor, ctx: Context) -> torch.Tensor:
        self.ran.append("attention")
        return n * self.gain

    def before_mlp(self, n: torch.Tensor, ctx: Context) -> torch.Tensor:
        self.ran.append("mlp")
        return n * self.gain


class Shared(TwoSites):
    """The same vector for all layers."""

    shared = True


def of(model: GPT, cls: type[Technique]) -> list[Any]:
    return [module for module in model.modules() if type(module) is cls]


def test_one_technique_serves_several_sites_with_one_parameter() -> None:
    model = built(mine=TwoSites)
    model(X)
    assert [technique.ran for technique in of(model, TwoSites)] == [["attention", "mlp"]] * LAYERS
    specs = {name: spec.layer for name, spec in model.specs().items() if spec.place == "mine.gain"}
    assert list(specs.values()) == list(range(LAYERS))
    assert specs.keys() <= model.state_dict().keys()


def test_a_shared_technique_is_held_once() -> None:
    model = built(mine=Shared)
    model(X)
    (one,) = of(model, Shared)
    assert one.layer is None
    assert one.ran == ["attention", "mlp"] * LAYERS
    assert sum("gain" in name and "mine" in name for name in model.state_dict()) == 1


def test_a_copied_model_keeps_its_shared_technique_to_itself() -> None:
    model = built(mine=Shared)
    twin = copy.deepcopy(model)
    of(twin, Shared)[0].gain.data.mul_(2.0)
    assert not torch.equal(twin(X), model(X))
    of(model, Shared)[0].gain.data.mul_(2.0)
    assert torch.equal(twin(X), model(X))


class ValueResidual(Technique):
    """The first layer's values, mixed into every later layer's."""

    site = "v"
    reads = ("carried",)

    def forward(self, v: torch.Tensor, ctx: Context) -> torch.Tensor:
        if self.layer == 0:
            ctx.carry("first values", v)
            return v
        return 0.5 * v + 0.5 * ctx.fetch("first values")


class Echo(Technique):
    """What the first layer's MLP read, added to what the last one puts out: cut where positions are left out."""

    sites: ClassVar = {"mlp_in": "keep", "mlp_out": "add"}
    reads = ("carried",)

    def keep(self, n: torch.Tensor, ctx: Context) -> torch.Tensor:
        if self.layer == 0:
            ctx.carry("early", n)
        return n

    def add(self, m: torch.Tensor, ctx: Context) -> torch.Tensor:
        return m + ctx.fetch("early") if self.layer == LAYERS - 1 else m


@pytest.mark.parametrize("cls", [ValueResidual, Echo])
def test_carried_values_reach_later_layers_and_are_pruned_with_them(cls: type[Technique]) -> None:
    model = built(mine=cls).eval()
    whole = model(X, Y, reduction="none")
    assert not torch.allclose(whole, built().eval()(X, Y, reduction="none"))
    for score_from in (1, 7, TIME - 1):
        pruned = model(X, Y, reduction="none", score_from=score_from)
        torch.testing.assert_close(pruned, whole[:, score_from:], rtol=2e-6, atol=2e-6)


class Adapter(Technique):
    """A Linear of its own, which quantization in training sees like any other."""

    site = "mlp_out"

    def __init__(self, shape: Shape, numerics: Numerics, layer: int | None = None) -> None:
        super().__init__(shape, layer)
        self.down = Linear(shape.model_dim, shape.model_dim, numerics, place="mine.down", layer=layer)

    def forward(self, m: torch.Tensor, ctx: Context) -> torch.Tensor:
        return m + self.down(m)


def test_a_linear_of_a_techniques_own_has_effective_weights() -> None:
    model = built(mine=Adapter)
    assert sum(linear.spec.place == "mine.down" for linear in EffectiveWeights(model).linears) == LAYERS


def test_what_a_constructor_draws_depends_on_no_other_technique() -> None:
    class Drawn(Technique):
        site = "mlp_out"

        def __init__(self, shape: Shape, layer: int | None = None) -> None:
            super().__init__(shape, layer)
            declare(self, "noise", torch.randn(4), role="scalar", place="mine.noise", layer=layer)

        def forward(self, m: torch.Tensor, ctx: Context) -> torch.Tensor:
            return m

    def drawn(**techniques: type[Technique]) -> list[torch.Tensor]:
        torch.manual_seed(3)
        model = GPT(
            vocab_size=32, model_dim=16, num_layers=LAYERS, num_heads=4, num_kv_heads=2, mlp_mult=2, max_seq_len=TIME,
            position=Rope, residual=Residual, plan=Straight, head=Head, init=Init(), numerics=Numerics(),
            attention=CausalAttention, mlp=SquaredMLP,
            techniques={name: functools.partial(cls) for name, cls in techniques.items()},
        )  # fmt: skip
        return [value for name, value in model.state_dict().items() if name.endswith("b.noise")]

    alone, beside = drawn(b=Drawn), drawn(a=Drawn, b=Drawn)
    assert len(alone) == LAYERS
    assert all(torch.equal(one, other) for one, other in zip(alone, beside, strict=True))
    assert not torch.equal(alone[0], alone[1])


# ------------------------------------------------------------------------------------------------ terms and reports


class ZLoss(Technique):
    """1e-2 times the mean squared log partition function."""

    site = "logits"

    def forward(self, logits: torch.Tensor, ctx: Context) -> torch.Tensor:
        ctx.add_loss("z_loss", 1e-2 * logits.logsumexp(-1).square().mean())
        ctx.report("largest_logit", logits.max())
        return logits


class NextButOne(Technique):
    """The nll of the token after the next, by the head itself."""

    site = "pre_head"
    reads = ("targets", "to_logits")

    def forward(self, h: torch.Tensor, ctx: Context) -> torch.Tensor:
        if ctx.targets is not None and ctx.to_logits is not None:
            logits = ctx.to_logits(h[:, :-1])
            term = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ctx.targets[:, 1:].flatten())
            ctx.add_loss("next_but_one", 0.1 * term)
        return h


def test_training_gets_the_terms_beside_the_nll() -> None:
    found = built(z=ZLoss)(X, Y, noting=True)
    assert isinstance(found, Losses)
    assert torch.equal(found.nll, built()(X, Y))
    logits = built()(X)
    assert torch.allclose(found.terms["z_loss"], 1e-2 * logits.logsumexp(-1).square().mean())
    assert torch.equal(found.reports["largest_logit"], logits.max())
    assert found.terms["z_loss"].requires_grad
    assert not found.reports["largest_logit"].requires_grad


def test_evaluation_knows_no_terms() -> None:
    assert torch.equal(built(z=ZLoss, n=NextButOne)(X, Y), built()(X, Y))


def test_a_term_may_use_targets_and_head() -> None:
    terms = built(n=NextButOne)(X, Y, noting=True).terms
    assert 0.01 < terms["next_but_one"].item() < 2.0


def test_terms_of_one_name_are_summed_and_reports_averaged() -> None:
    class Each(Technique):
        site = "mlp_out"

        def forward(self, m: torch.Tensor, ctx: Context) -> torch.Tensor:
            ctx.add_loss("t", m.new_tensor(2.0))
            ctx.report("r", m.new_tensor(float(self.layer or 0)))
            return m

    found = built(e=Each)(X, Y, noting=True)
    assert (float(found.terms["t"]), float(found.reports["r"])) == (2.0 * LAYERS, 1.0)


def test_without_techniques_there_are_none() -> None:
    found = built()(X, Y, noting=True)
    assert (found.terms, found.reports) == ({}, {})


def test_terms_and_carried_values_compile_whole() -> None:
    model = built(z=ZLoss, n=NextButOne, v=ValueResidual, two=TwoSites, s=Shared)
    for technique in (*of(model, TwoSites), *of(model, Shared)):
        technique.ran = _Nothing()  # what a test notes is no part of the graph
    step = torch.compile(model, backend="eager", fullgraph=True, dynamic=False)
    found, wanted = step(X, Y, noting=True), model(X, Y, noting=True)
    assert found.terms.keys() == wanted.terms.keys() == {"z_loss", "next_but_one"}
    torch.testing.assert_close((found.nll, *found.terms.values()), (wanted.nll, *wanted.terms.values()))


class _Nothing:
    def append(self, what: str) -> None:
        """Forget it."""


def test_a_part_of_ones_own_that_keeps_tensors_is_known() -> None:
    class Counted(Technique):
        site = "mlp_out"

        def __init__(self, shape: Shape, layer: int | None = None) -> None:
            super().__init__(shape, layer)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, m: torch.Tensor, ctx: Context) -> torch.Tensor:
            return m

    assert built(c=Counted).keeps_state
    assert not built(z=ZLoss, two=TwoSites).keeps_state


# ------------------------------------------------------------------------------------------------ what is refused


def refused(match: str, slots: dict[str, Any] | None = None, **techniques: Any) -> None:
    with pytest.raises(ConfigError, match=match):
        built(slots, **techniques)


def variant(base: type[Technique], **attributes: Any) -> type[Technique]:
    return type("Mine", (base,), attributes)


def test_a_site_that_the_slot_does_not_host_is_refused() -> None:
    class Bare(CausalAttention):
        def __init__(self, **parts: Any) -> None:
            super().__init__(**{**parts, "techniques": built_without()})

    def built_without() -> Any:
        from golf.nn.techniques.base import Techniques

        shape = Shape(
            vocab_size=32, model_dim=16, num_layers=LAYERS, num_heads=4, num_kv_heads=2, mlp_mult=2, max_seq_len=TIME
        )
        return Techniques({}, shape, Numerics())

    refused(r"technique/mine: nothing hosts its site v in layer 0", {"attention": Bare}, mine=ValueResidual)


@pytest.mark.parametrize(
    ("attributes", "match"),
    [
        ({"site": "v"}, "either `site` or `sites`"),
        ({"sites": {"attn_in": "nowhere"}}, "has no method 'nowhere' for its site attn_in"),
        ({"sites": {"post_embed": "before_mlp", "mlp_in": "before_mlp"}}, "must say shared = True"),
        ({"reads": ("idz",)}, r"reads 'idz': the context has no such field .*ids"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_class_says_of_itself_is_checked(attributes: dict[str, Any], match: str) -> None:
    refused(match, mine=variant(TwoSites, **attributes))


def test_a_part_that_lacks_what_its_slot_promises_is_refused_by_name() -> None:
    class Half(torch.nn.Module):
        prunes = frozenset[str]()

        def __init__(self, **parts: Any) -> None:
            super().__init__()

    refused(r"model\.attention: Half has no attend \(golf\.nn\.slots\.Attention", {"attention": Half})


# ------------------------------------------------------------------------------------------------ a slot by layer


def test_a_slot_may_differ_by_layer() -> None:
    mlp = functools.partial(by_layer, [{"layers": "first:1", "of": GatedMLP}], SquaredMLP)
    model = built({"mlp": mlp})
    assert [type(block.mlp) for block in model.layers()] == [GatedMLP, SquaredMLP, SquaredMLP]


def test_a_slot_by_layer_names_layers_that_do_not_exist() -> None:
    mlp = functools.partial(by_layer, [{"layers": "first:9", "of": GatedMLP}], SquaredMLP)
    refused(r"kinds\[0\]\.layers='first:9': the model has 3 layers", {"mlp": mlp})
