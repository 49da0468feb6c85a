"""What golf's own techniques compute, against the same formula in float64, written out here."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch

from golf.common.errors import ConfigError
from golf.nn import preflight
from golf.nn.context import Context, Documents, Visit, begins
from golf.nn.models.attention import CausalAttention
from golf.nn.models.gpt import GPT, Losses
from golf.nn.models.head import AsymmetricHead, Head
from golf.nn.models.init import Init
from golf.nn.models.mlp import SquaredMLP
from golf.nn.models.position import Rope
from golf.nn.models.residual import Loop, Residual, Straight
from golf.nn.numerics import Numerics
from golf.nn.shape import Shape
from golf.nn.techniques.attn_gate import AttnGate
from golf.nn.techniques.bigram_hash import BigramHash
from golf.nn.techniques.mtp import MultiToken
from golf.nn.techniques.smear_gate import SmearGate, SmearGateByToken
from golf.nn.techniques.value_embed import ValueEmbed
from golf.nn.techniques.value_residual import ValueResidual
from golf.nn.techniques.xsa import XSA
from golf.nn.techniques.z_loss import ZLoss

VOCAB, DIM, LAYERS, HEADS, KV_HEADS, TIME, BORDER = 32, 16, 3, 4, 2, 24, 1
SHAPE = Shape(
    vocab_size=VOCAB, model_dim=DIM, num_layers=LAYERS, num_heads=HEADS, num_kv_heads=KV_HEADS, mlp_mult=2,
    max_seq_len=TIME,
)  # fmt: skip
IDS = torch.randint(2, VOCAB, (2, TIME + 1), generator=torch.Generator().manual_seed(0))
IDS[0, 5] = IDS[1, 0] = IDS[1, 11] = BORDER
X, Y = IDS[:, :-1], IDS[:, 1:]
BORDERS = torch.tensor([0, 1, 9, 9, TIME], dtype=torch.int32)
WINDOWS, ROW = Context(X, border_id=BORDER), Context(X[:1], documents=Documents.of(BORDERS, TIME, TIME))
EVERY: dict[str, Any] = {
    "xsa": XSA, "attn_gate": AttnGate, "smear_gate": SmearGateByToken, "bigram_hash": BigramHash,
    "value_residual": ValueResidual, "value_embed": functools.partial(ValueEmbed, layers="last:2"), "z_loss": ZLoss,
    "mtp": functools.partial(MultiToken, heads=2),
}  # fmt: skip
UNMOVED: dict[str, Any] = {
    "attn_gate": functools.partial(AttnGate, slope=1.0, ceiling=2.0), "smear_gate": SmearGateByToken,
    "bigram_hash": BigramHash, "value_embed": ValueEmbed, "z_loss": ZLoss, "mtp": MultiToken,
}  # fmt: skip
"""Those that start as if they were not there."""


def built(head: Any = Head, plan: Any = Straight, **techniques: Any) -> GPT:
    model = GPT(
        vocab_size=VOCAB, model_dim=DIM, num_layers=LAYERS, num_heads=HEADS, num_kv_heads=KV_HEADS, mlp_mult=2,
        max_seq_len=TIME, attention=CausalAttention, mlp=SquaredMLP, position=Rope, residual=Residual, plan=plan,
        head=head, init=Init(), numerics=Numerics(),
        techniques={name: functools.partial(technique) for name, technique in techniques.items()},
    )  # fmt: skip
    model.border_id = BORDER
    return model


def scattered(module: Any) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, 0.5)
    return module


def ruled(ctx: Context) -> list[list[bool]]:
    """Which tokens begin a document, the slow way."""
    rows = [[t == 0 or token == ctx.border_id for t, token in enumerate(row)] for row in ctx.ids.tolist()]
    if ctx.documents is not None:
        for border in BORDERS[:-1].tolist():
            rows[0][border] = True
    return rows


@pytest.mark.parametrize("ctx", [WINDOWS, ROW, Context(X)], ids=["windows", "row", "no border"])
def test_where_documents_begin(ctx: Context) -> None:
    assert begins(ctx).tolist() == ruled(ctx)


# ------------------------------------------------------------------------------------------------ gates


@pytest.mark.parametrize("settings", [{}, {"slope": 1.0, "ceiling": 2.0}, {"width": None, "slope": 1.0}], ids=str)
def test_attn_gate(settings: dict[str, Any]) -> None:
    gate = scattered(AttnGate(SHAPE, 0, **settings))
    y, n = torch.randn(2, TIME, HEADS, 4), torch.randn(2, TIME, DIM)
    slope, ceiling = settings.get("slope", 0.5), settings.get("ceiling", 1.0)
    part = n.double()[..., : settings.get("width", 12)]
    want = y.double() * (ceiling / (1 + torch.exp(-slope * (part @ gate.weight.double().T))))[..., None]
    torch.testing.assert_close(gate(y, Context(X, n=n)).double(), want, rtol=1e-5, atol=1e-6)


def test_a_gate_reads_first_features_that_come_apart_while_n_is_theirs() -> None:
    """A kernel may hand out more of them than the gate reads; behind a technique that changed n they are another's."""
    gate = scattered(AttnGate(SHAPE, 0))
    y, n, other = torch.randn(2, TIME, HEADS, 4), torch.randn(2, TIME, DIM), torch.randn(2, TIME, DIM)
    apart = n[..., : min(16, DIM)].clone().requires_grad_()
    ctx = Context(X, n=n, narrow=(n, apart))
    for position in (0, 3):
        part = ctx.since(position)
        got = gate(y[:, position:], part)
        torch.testing.assert_close(got, gate(y[:, position:], Context(X, n=n[:, position:])))
        (gradient,) = torch.autograd.grad(got.sum(), apart)
        assert gradient[:, position:, :12].all()
        assert not gradient[..., 12:].any()
    assert torch.equal(gate(y, ctx._replace(n=other)), gate(y, Context(X, n=other)))
    assert ctx._replace(n=other).since(3).narrow is None


def test_attn_gate_draws_a_dense_start() -> None:
    torch.manual_seed(0)
    assert 0.004 < float(AttnGate(SHAPE, 0, width=None, init_std=0.005).weight.detach().std()) < 0.006
    assert not AttnGate(SHAPE, 0).weight.any()


def test_attn_gate_stands_behind_xsa() -> None:
    assert list(built(attn_gate=AttnGate, xsa=XSA).layers()[0].attn.at_heads_out) == ["xsa", "attn_gate"]


@pytest.mark.parametrize("ctx", [WINDOWS, ROW], ids=["windows", "row"])
def test_smear_gate_by_token(ctx: Context) -> None:
    smear = scattered(SmearGateByToken(SHAPE, width=5))
    e = torch.randn(*ctx.ids.shape, DIM)
    want, first = e.double(), ruled(ctx)
    for b, row in enumerate(e.double()):
        for t in range(TIME):
            if not first[b][t]:
                gate = 1 / (1 + math.exp(-(row[t, :5] @ smear.weight.double()).item()))
                want[b, t] = row[t] + smear.strength.item() * gate * row[t - 1]
    torch.testing.assert_close(smear(e, ctx).double(), want, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------------ tables


@pytest.mark.parametrize("ctx", [WINDOWS, ROW], ids=["windows", "row"])
def test_bigram_hash(ctx: Context) -> None:
    bigram = scattered(BigramHash(SHAPE, Numerics(), rows=50, dim=6))
    e = torch.randn(*ctx.ids.shape, DIM)
    want, first = e.double(), ruled(ctx)
    for b, row in enumerate(ctx.ids.tolist()):
        for t, token in enumerate(row):
            at = 49 if first[b][t] else ((36313 * token) ^ (27191 * row[t - 1])) % 49
            found = bigram.proj.weight.double() @ bigram.table[at].double()
            want[b, t] = e[b, t].double() + bigram.scale.item() * found
    torch.testing.assert_close(bigram(e, ctx).double(), want, rtol=1e-5, atol=1e-5)


def test_value_embed() -> None:
    embed = scattered(ValueEmbed(SHAPE, Numerics(), dim=6))
    v = torch.randn(2, TIME, KV_HEADS, 4)
    found = (embed.table.double()[X] @ embed.proj.weight.double().T).view(v.shape)
    carried: dict[str, Any] = {}
    for layer in (1, 2):
        ctx = Context(X, visit=Visit(layer, layer), carried=carried)
        want = v.double() + embed.scale[layer].item() * found
        torch.testing.assert_close(embed(v, ctx).double(), want, rtol=1e-5, atol=1e-5)
    assert len(carried) == 1


def test_tables_are_embeddings_to_the_optimizer_and_have_places() -> None:
    specs = built(bigram_hash=BigramHash, value_embed=ValueEmbed).specs().values()
    assert {spec.place: spec.role for spec in specs if spec.place.startswith(("bigram", "value_embed"))} == {
        "bigram.table": "embed", "bigram.proj": "matrix", "bigram.scale": "scalar",
        "value_embed.table": "embed", "value_embed.proj": "matrix", "value_embed.scale": "scalar",
    }  # fmt: skip


def test_value_residual() -> None:
    first, later = (scattered(ValueResidual(SHAPE, layer)) for layer in (0, 1))
    one, other = torch.randn(2, TIME, KV_HEADS, 4), torch.randn(2, TIME, KV_HEADS, 4)
    ctx = Context(X, carried={})
    assert torch.equal(first(one, ctx), one)
    want = other.double() + one.double() / (1 + math.exp(-later.alpha.item()))
    torch.testing.assert_close(later(other, ctx).double(), want, rtol=1e-5, atol=1e-6)


def test_a_loop_that_comes_back_to_the_first_layer_adds_its_values() -> None:
    plan = functools.partial(Loop, first=0, last=1, passes=2)
    model = scattered(built(plan=plan, value_residual=functools.partial(ValueResidual, layers="first:1")))
    before = model(X)
    model.techniques("value_residual")[0].alpha.data.add_(5.0)
    assert not torch.allclose(model(X), before)


def test_matrices_outside_the_layers_count_as_work() -> None:
    bare, bigram, more = built(), built(bigram_hash=BigramHash), built(mtp=functools.partial(MultiToken, heads=2))
    assert bigram.flops_per_token(6) - bare.flops_per_token(6) == 6 * 128 * DIM
    assert bigram.window_flops(TIME, 5) - bare.window_flops(TIME, 5) == 2 * 128 * DIM * TIME
    bigram.enter(0, set())
    assert bigram.flops_per_token(6) == bare.flops_per_token(6)
    assert more.flops_per_token(6) - bare.flops_per_token(6) == 6 * 2 * DIM * DIM
    assert more.window_flops(TIME) == bare.window_flops(TIME)  # they serve training alone


# ------------------------------------------------------------------------------------------------ terms of the loss


def terms(model: GPT, ctx: Context, targets: torch.Tensor) -> Losses:
    borders = None if ctx.documents is None else BORDERS
    model.border_id = ctx.border_id
    found = model(ctx.ids, targets, borders=borders, noting=True)
    assert isinstance(found, Losses)
    return found


def test_z_loss() -> None:
    model = scattered(built(z_loss=functools.partial(ZLoss, weight=0.25)))
    log_z = model(X).double().exp().sum(-1).log()
    found = terms(model, WINDOWS, Y)
    assert found.terms["z_loss"].item() == pytest.approx(0.25 * log_z.square().mean().item(), rel=1e-5)
    assert found.reports["log_z"].item() == pytest.approx(log_z.mean().item(), rel=1e-5)


@pytest.mark.parametrize("ctx", [WINDOWS, ROW], ids=["windows", "row"])
def test_multi_token(ctx: Context) -> None:
    """Position t predicts what stands behind its target, where no document begins on the way."""
    model = scattered(built(mtp=functools.partial(MultiToken, heads=2, weight=0.5)))
    (technique,) = model.techniques("mtp")
    kept: list[torch.Tensor] = []
    technique.register_forward_pre_hook(lambda module, args: kept.append(args[0].detach().double()))
    targets, first = Y[: len(ctx.ids)], ruled(ctx)
    found = terms(model, ctx, targets)
    total, counted = 0.0, 0
    for ahead, matrix in enumerate(technique.heads, 1):
        x = kept[0] + kept[0] @ matrix.weight.double().T
        z = x / x.square().mean(-1, keepdim=True).sqrt() @ model.embedding.double().T
        log_p = (30 * torch.tanh(z / 30)).log_softmax(-1)
        for b in range(len(targets)):
            for t in range(TIME - ahead):
                if not any(first[b][t + 1 : t + ahead + 1]):
                    total -= log_p[b, t, targets[b, t + ahead]].item()
                    counted += 1
    assert 0 < counted < 2 * targets.numel()
    assert found.terms["mtp"].item() == pytest.approx(0.5 * total / 2 / targets.numel(), rel=1e-5)
    assert found.nll.item() == pytest.approx(terms(built_without(model), ctx, targets).nll.item(), rel=1e-6)


def built_without(model: GPT) -> GPT:
    """The same weights without techniques."""
    bare = built()
    bare.load_state_dict({name: value for name, value in model.state_dict().items() if name in bare.state_dict()})
    return bare


def test_a_weight_of_zero_takes_a_term_away() -> None:
    model = built(z_loss=functools.partial(ZLoss, weight=0.0), mtp=functools.partial(MultiToken, weight=0.0))
    assert terms(model, WINDOWS, Y).terms == {}


def test_the_further_heads_are_not_stored() -> None:
    assert {spec.stored for spec in built(mtp=MultiToken).specs().values() if spec.place == "mtp"} == {False}


# ------------------------------------------------------------------------------------------------ head


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_asymmetric_head(tied: bool, learned: bool) -> None:
    made = AsymmetricHead(SHAPE, Numerics(), tied=tied, softcap=3.0, softcap_negative=5.0, learned=learned)
    head = scattered(made)
    h, embedding = torch.randn(2, TIME, DIM), torch.randn(VOCAB, DIM)
    z = h.double() @ (embedding if head.weight is None else head.weight).double().T
    above, below = (
        c if head.shift is None else c * math.exp(head.shift[i].item() / c) for i, c in enumerate((3.0, 5.0))
    )
    want = torch.where(z > 0, above * torch.tanh(z / above), below * torch.tanh(z / below))
    torch.testing.assert_close(head(h, embedding).double(), want, rtol=1e-5, atol=1e-5)


def test_equal_caps_are_those_of_the_plain_head() -> None:
    one, other = built(head=AsymmetricHead), built()
    one.initialize(1)
    other.initialize(1)
    torch.testing.assert_close(one(X), other(X), rtol=0, atol=0)


# ------------------------------------------------------------------------------------------------ of them all


@pytest.mark.parametrize("name", UNMOVED)
def test_it_starts_as_if_it_were_not_there(name: str) -> None:
    one, other = built(**{name: UNMOVED[name]}), built()
    one.initialize(1)
    other.initialize(1)
    assert torch.equal(one(X), other(X))


def test_the_check_before_a_run_passes_them() -> None:
    assert preflight.check(built(head=AsymmetricHead, **EVERY)) == []
    assert preflight.check(built(smear_gate=SmearGate)) == []


@pytest.mark.parametrize("packed", [False, True])
def test_they_compile_whole_in_training_and_evaluation(packed: bool) -> None:
    torch._dynamo.reset()
    model = scattered(built(head=AsymmetricHead, **EVERY))
    x, y, more = (X[:1], Y[:1], {"borders": BORDERS}) if packed else (X, Y, {})
    step = torch.compile(model, backend="eager", fullgraph=True, dynamic=False)
    found, wanted = step(x, y, noting=True, **more), model(x, y, noting=True, **more)
    assert found.terms.keys() == wanted.terms.keys() == {"z_loss", "mtp"}
    torch.testing.assert_close((found.nll, *found.terms.values()), (wanted.nll, *wanted.terms.values()))
    (found.nll + sum(found.terms.values())).backward()
    with torch.no_grad():
        torch.testing.assert_close(
            step(x, y, reduction="none", **more), model(x, y, reduction="none", **more), rtol=1e-5, atol=1e-4
        )


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: AttnGate(SHAPE, 0, width=17), r"attn_gate\.width=17: from 1 to model\.model_dim=16"),
        (lambda: AttnGate(SHAPE, 0, init_std=-1.0), r"attn_gate\.init_std=-1\.0"),
        (lambda: SmearGateByToken(SHAPE, width=0), r"smear_gate\.width=0"),
        (lambda: BigramHash(SHAPE, Numerics(), rows=1), r"bigram_hash\.rows=1"),
        (lambda: ValueEmbed(SHAPE, Numerics(), dim=0), r"value_embed\.dim=0"),
        (lambda: ZLoss(SHAPE, weight=-1.0), r"z_loss\.weight=-1\.0"),
        (lambda: MultiToken(SHAPE, Numerics(), heads=0), r"mtp\.heads=0"),
        (lambda: MultiToken(SHAPE, Numerics(), weight=-1.0), r"mtp\.weight=-1\.0"),
        (lambda: AsymmetricHead(SHAPE, Numerics(), softcap_negative=0.0), r"head\.softcap_negative=0\.0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settings_out_of_range_are_refused(make: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        make()
