"""Effective weights: the same loss and gradients as casting at every product, once per step, accumulated in float32."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import pytest
import torch
from torch.func import functional_call

from golf.nn.kernels import scales_into_weights
from golf.nn.linear import EffectiveWeights, Joined, Linear
from golf.nn.models.attention import CausalAttention
from golf.nn.models.gpt import GPT
from golf.nn.models.head import Head
from golf.nn.models.init import Init
from golf.nn.models.mlp import SquaredMLP
from golf.nn.models.position import Rope
from golf.nn.models.residual import Loop, Residual, Straight
from golf.nn.numerics import Numerics
from golf.quant.rounding import FakeQuantizer

BF16, FP32 = Numerics(compute="bfloat16"), Numerics()
IDS = torch.randint(0, 40, (2, 13), generator=torch.Generator().manual_seed(0))


def built(compute: str, plan: Any = Straight, numerics: Numerics | None = None) -> GPT:
    model = GPT(
        vocab_size=40, model_dim=32, num_layers=3, num_heads=4, num_kv_heads=2, mlp_mult=2, max_seq_len=12,
        attention=CausalAttention, mlp=SquaredMLP, position=Rope, residual=Residual, plan=plan, head=Head,
        init=Init(embed_std=0.3, projections="plain"), compute=compute,  # type: ignore[arg-type]
        numerics=numerics or Numerics(),
    )  # fmt: skip
    model.initialize(1)
    return model


def gradients(model: GPT) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("compute", ["bfloat16", "float32"])
@pytest.mark.parametrize("micro_steps", [1, 3])
def test_equal_to_casting_inline(compute, micro_steps):
    inline, effective = built(compute), built(compute)
    weights = EffectiveWeights(effective)
    weights.refresh()
    losses = []
    for step in range(micro_steps):
        x, y = IDS[:, step:-1], IDS[:, step + 1 :]
        pair = inline(x, y), effective(x, y)
        for loss in pair:
            loss.backward()
        weights.collect_gradients()
        losses.append(pair)
    assert all(torch.equal(a, b) for a, b in losses)
    expected, found = gradients(inline), gradients(effective)
    assert expected.keys() == found.keys() == dict(inline.named_parameters()).keys()
    for name, grad in expected.items():
        assert grad.dtype == found[name].dtype
        assert torch.equal(grad, found[name]), name


def test_a_float32_embedding_is_cast_once_and_its_gradient_is_summed_in_float32():
    inline, effective = (built("bfloat16", numerics=Numerics(embed="float32")) for _ in range(2))
    rounded = built("bfloat16")
    weights = EffectiveWeights(effective)
    weights.refresh()
    table = effective.table.effective
    assert (effective.embedding.dtype, table.dtype) == (torch.float32, torch.bfloat16)
    dtypes = []
    handle = effective.blocks[0].register_forward_pre_hook(lambda _, given: dtypes.append(given[0].x.dtype))
    for step in range(2):
        x, y = IDS[:, step:-1], IDS[:, step + 1 :]
        losses = [model(x, y) for model in (inline, effective, rounded)]
        assert torch.equal(losses[0], losses[1])
        assert torch.equal(losses[1], losses[2])  # its forward is that of an embedding held in bfloat16
        for loss in losses[:2]:
            loss.backward()
        weights.collect_gradients()
    handle.remove()
    assert dtypes == [torch.bfloat16] * 2
    found = gradients(effective)
    assert found["embedding"].dtype == torch.float32
    for name, grad in gradients(inline).items():
        torch.testing.assert_close(found[name], grad, rtol=1e-6, atol=1e-9)
    with torch.no_grad():
        effective.embedding.mul_(1.01)
    weights.refresh()
    assert effective.table.effective is table
    assert torch.equal(table, effective.embedding.to(torch.bfloat16))


def test_equal_to_rounding_inline():
    """Quantization-aware training: one rounding a step gives what a rounding in every forward gives."""
    inline, effective = built("bfloat16"), built("bfloat16")
    qat = FakeQuantizer(bits=4)
    weights, specs = EffectiveWeights(effective), inline.specs()
    weights.refresh(qat)
    rounded = {n: qat(p.to(torch.bfloat16)) if qat.covers(specs[n], p) else p for n, p in inline.named_parameters()}
    x, y = IDS[:, :-1], IDS[:, 1:]
    pair = functional_call(inline, rounded, (x, y)), effective(x, y)
    for loss in pair:
        loss.backward()
    weights.collect_gradients()
    assert torch.equal(*pair)
    assert not torch.equal(pair[0], built("bfloat16")(x, y))
    found = gradients(effective)
    for name, grad in gradients(inline).items():
        assert torch.equal(grad, found[name]), name


def test_micro_steps_add_up_in_float32():
    """256 equal gradients of 1 + 2^-7: bf16 sums would stall where their step outgrows the summand."""
    linear = Linear(1, 1, BF16, place="mlp.up")
    torch.nn.init.ones_(linear.weight)
    weights = EffectiveWeights(linear)
    weights.refresh()
    summand = 1 + 2.0**-7
    for _ in range(256):
        linear(torch.tensor([[summand]])).sum().backward()
        weights.collect_gradients()
    assert linear.weight.grad is not None
    assert linear.weight.grad.dtype == torch.float32
    assert float(linear.weight.grad) == 256 * summand


def test_collected_gradients_are_cleared():
    linear = Linear(3, 2, BF16, place="mlp.up")
    torch.nn.init.normal_(linear.weight)
    weights = EffectiveWeights(linear)
    weights.refresh()
    linear(torch.ones(1, 3)).sum().backward()
    weights.collect_gradients()
    first = linear.weight.grad.clone()  # type: ignore[union-attr]
    weights.collect_gradients()
    assert torch.equal(linear.weight.grad, first)  # type: ignore[arg-type]


def test_collected_gradients_lie_end_to_end_by_shape():
    q, k, up, out = (Linear(8, rows, BF16, place="x") for rows in (8, 4, 16, 8))
    joined, weights = Joined(q, k), EffectiveWeights(torch.nn.ModuleList([q, k, up, out]))
    weights.refresh()
    x = torch.randn(3, 8)
    (joined.forward(x).sum() + up(x).sum() + out(x).sum()).backward()
    weights.collect_gradients()
    grads = [linear.weight.grad for linear in (q, out, k, up)]
    assert all(grad is not None for grad in grads)
    assert [grad.storage_offset() for grad in grads] == [0, 64, 128, 160]
    assert len({grad.untyped_storage().data_ptr() for grad in grads}) == 1


def test_a_master_of_two_layers_gets_both_gradients():
    one, two = Linear(8, 4, BF16, place="x"), Linear(8, 4, BF16, place="y")
    two.weight = one.weight
    weights = EffectiveWeights(torch.nn.ModuleList([one, two]))
    weights.refresh()
    x, y = torch.randn(3, 8), torch.randn(3, 8)
    (one(x).sum() + two(y).sum()).backward()
    want = one.effective.grad.float() + two.effective.grad.float()
    weights.collect_gradients()
    assert torch.equal(one.weight.grad, want)


def test_masters_are_used_themselves_in_float32():
    linear = Linear(3, 2, FP32, place="mlp.up")
    weights = EffectiveWeights(linear)
    weights.refresh()
    assert linear.effective is None
    weights.refresh(FakeQuantizer(bits=4))
    assert linear.effective is not None
    weights.refresh()  # evaluation after quantization-aware training
    assert linear.effective is None


def test_refresh_follows_the_masters_in_place():
    linear = Linear(3, 2, BF16, place="mlp.up")
    weights = EffectiveWeights(linear)
    torch.nn.init.zeros_(linear.weight)
    weights.refresh()
    held = linear.effective
    torch.nn.init.ones_(linear.weight)
    assert linear(torch.ones(1, 3)).count_nonzero() == 0  # until refreshed, what the step began with
    weights.refresh()
    assert linear.effective is held
    assert linear(torch.ones(1, 3)).tolist() == [[3.0, 3.0]]


def test_only_covered_weights_are_rounded():
    class OnlyMLP(FakeQuantizer):
        def covers(self, spec: Any, weight: torch.Tensor) -> bool:
            return super().covers(spec, weight) and spec.place.startswith("mlp")

    model = built("bfloat16")
    EffectiveWeights(model).refresh(OnlyMLP(bits=3))
    block = model.blocks[1]
    assert torch.equal(block.attn.q.effective, block.attn.q.weight.bfloat16())
    assert all(row.unique().numel() <= 7 for row in block.mlp.up.effective.detach())


def test_weights_of_one_shape_are_rounded_in_one_call():
    class Counting(FakeQuantizer):
        def __call__(self, weights: torch.Tensor) -> torch.Tensor:
            calls.append(weights.shape[1:])
            return super().__call__(weights)

    calls: list[torch.Size] = []
    model = built("bfloat16")
    weights = EffectiveWeights(model)
    weights.refresh(Counting(bits=4))
    assert sorted(calls) == sorted({linear.weight.shape for linear in weights.linears})


def test_detached_weights_are_cast_inline_again():
    model = built("bfloat16")
    weights = EffectiveWeights(model)
    weights.refresh()
    before = model(IDS[:, :-1])
    weights.detach()
    assert all(m.effective is None for m in weights.linears)
    assert torch.equal(model(IDS[:, :-1]), before)


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_output_is_in_the_compute_dtype(compute):
    numerics = functools.partial(Numerics, compute=compute)()
    linear = Linear(4, 2, numerics, place="attn.q", layer=1)
    torch.nn.init.normal_(linear.weight)
    assert linear(torch.ones(3, 4)).dtype == numerics.dtype
    assert linear.weight.dtype == torch.float32
    assert (linear.spec.role, linear.spec.place, linear.spec.layer) == ("matrix", "attn.q", 1)


class Several(torch.nn.Module):
    """q, k and v of one input, each by its own product or all by one."""

    def __init__(self, joined: bool, numerics: Numerics = BF16) -> None:
        super().__init__()
        places = {"attn.q": 6, "attn.k": 2, "attn.v": 4}
        self.linears = torch.nn.ModuleList(Linear(8, out, numerics, place=p) for p, out in places.items())
        generator = torch.Generator().manual_seed(3)
        for linear in self.linears:
            torch.nn.init.normal_(linear.weight, generator=generator)
        self.joined = Joined(*self.linears) if joined else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.joined is not None:
            return self.joined.forward(x)
        return torch.cat([linear(x) for linear in self.linears], dim=-1)


def inputs(step: int = 0) -> torch.Tensor:
    return torch.randn(5, 8, generator=torch.Generator().manual_seed(step))


@pytest.mark.parametrize("numerics", [BF16, FP32], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("refreshed", [False, True])
def test_one_product_is_the_separate_ones(numerics, refreshed):
    apart, joined = Several(False, numerics), Several(True, numerics)
    if refreshed:
        for model in (apart, joined):
            EffectiveWeights(model).refresh()
    out = joined(inputs())
    assert out.dtype == numerics.dtype
    torch.testing.assert_close(out, apart(inputs()))


@pytest.mark.parametrize("qat", [None, FakeQuantizer(bits=4)], ids=["cast", "rounded"])
def test_gradients_of_one_product_reach_each_master(qat):
    apart, joined = Several(False), Several(True)
    for model in (apart, joined):
        weights = EffectiveWeights(model)
        weights.refresh(qat)
        for step in range(2):
            model(inputs(step)).float().square().sum().backward()
            weights.collect_gradients()
    for one, other in zip(joined.linears, apart.linears, strict=True):
        assert one.weight.grad.dtype == torch.float32
        torch.testing.assert_close(one.weight.grad, other.weight.grad)


def test_micro_steps_of_a_joined_product_add_up_in_float32():
    """As for a Linear by itself: bf16 sums would stall at 256."""
    q, k = Linear(1, 1, BF16, place="attn.q"), Linear(1, 1, BF16, place="attn.k")
    for linear in (q, k):
        torch.nn.init.ones_(linear.weight)
    joined, weights = Joined(q, k), EffectiveWeights(torch.nn.ModuleList([q, k]))
    weights.refresh()
    summand = 1 + 2.0**-7
    for _ in range(256):
        joined.forward(torch.tensor([[summand]])).sum().backward()
        weights.collect_gradients()
    assert [float(linear.weight.grad) for linear in (q, k)] == [256 * summand] * 2


def test_a_joined_stack_is_cleared_and_kept():
    model = Several(True)
    weights = EffectiveWeights(model)
    weights.refresh()
    held = model.joined.effective
    model(inputs()).sum().backward()
    weights.collect_gradients()
    assert held.grad is None
    with torch.no_grad():
        model.linears[1].weight.zero_()
    weights.refresh()
    assert model.joined.effective is held  # compiled code reads it by its address
    assert model(inputs())[:, 6:8].count_nonzero() == 0


def test_a_joined_stack_is_rounded_where_covered():
    class OnlyKeys(FakeQuantizer):
        def covers(self, spec: Any, weight: torch.Tensor) -> bool:
            return super().covers(spec, weight) and spec.place == "attn.k"

    model = Several(True)
    EffectiveWeights(model).refresh(OnlyKeys(bits=3))
    q, k, v = model.joined.split(model.joined.effective.detach())
    assert all(row.unique().numel() <= 7 for row in k)
    assert not torch.equal(k, model.linears[1].weight.bfloat16())
    assert torch.equal(q, model.linears[0].weight.bfloat16())
    assert torch.equal(v, model.linears[2].weight.bfloat16())


def test_a_detached_stack_is_cast_inline_again():
    model = Several(True)
    weights = EffectiveWeights(model)
    weights.refresh()
    before = model(inputs())
    weights.detach()
    assert model.joined.effective is None
    assert all(linear.effective is None for linear in model.linears)
    after = model(inputs())
    assert torch.equal(after, before)
    after.sum().backward()
    assert all(linear.weight.grad is not None for linear in model.linears)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_member_called_by_itself_in_training_is_named(compiled):
    """Its gradient would never reach the master."""
    model = Several(True)
    EffectiveWeights(model).refresh()
    key = model.linears[1]
    call = torch.compile(key, fullgraph=True, backend="eager") if compiled else key
    with pytest.raises(Exception, match=r"attn\.k was called by itself .* it and attn\.q, attn\.v"):
        call(inputs())
    with torch.no_grad():
        assert torch.equal(call(inputs()), model(inputs())[:, 6:8])
    model.eval()
    assert call(inputs()).shape == (5, 2)


def test_weights_that_others_made_are_collected_from_all_the_same():
    model = Several(True)
    EffectiveWeights(model).refresh()
    weights = EffectiveWeights(model)
    weights.refresh()
    model(inputs()).sum().backward()
    weights.collect_gradients()
    assert all(linear.weight.grad is not None for linear in model.linears)


def test_joined_masters_are_used_themselves_in_float32():
    model = Several(True, FP32)
    weights = EffectiveWeights(model)
    weights.refresh(FakeQuantizer(bits=4))
    assert model.joined.effective is not None
    weights.refresh()
    assert model.joined.effective is None


def with_scales(compute: str, held: bool, plan: Any = Straight) -> GPT:
    """A model whose output scales are anything but one, zero among them; held: in the projections' weights."""
    model = built(compute, plan)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if name.endswith(("attn_scale", "mlp_scale")):
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
            parameter.data[3] = 0.0
    if held:
        scales_into_weights(model)
        assert all(m.held for name, m in model.named_modules() if name.endswith(("proj", "down")))
    return model


def learned(model: GPT, micro_steps: int, qat: FakeQuantizer | None) -> tuple[list[torch.Tensor], dict[str, Any]]:
    weights, losses = EffectiveWeights(model), []
    weights.refresh(qat)
    for step in range(micro_steps):
        loss = model(IDS[:, step:-1], IDS[:, step + 1 :])
        loss.backward()
        weights.collect_gradients()
        losses.append(loss.detach())
    return losses, gradients(model)


@pytest.mark.parametrize("qat", [None, FakeQuantizer(bits=4)], ids=["", "rounded"])
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize("micro_steps", [1, 2])
@pytest.mark.parametrize("plan", [Straight, functools.partial(Loop, first=1, last=1, passes=2)], ids=["", "loop"])
def test_a_weight_that_holds_its_outputs_scale_learns_the_same(qat, compute, micro_steps, plan):
    """As close to the gradients of float32 as they are without: bfloat16's own error is the yardstick."""
    own = with_scales(compute, False, plan)
    exact = with_scales("float32", False, plan)
    exact.load_state_dict(own.state_dict())
    _, wanted = learned(exact, micro_steps, qat)
    losses, apart = learned(own, micro_steps, qat)
    found, held = learned(with_scales(compute, True, plan), micro_steps, qat)
    torch.testing.assert_close(found, losses, rtol=1e-6 if compute == "float32" else 3e-3, atol=0)
    assert held.keys() == apart.keys() == wanted.keys()
    for name, grad in wanted.items():
        allowed = 2 * (apart[name].float() - grad).norm() + 1e-5 * grad.norm()
        assert (held[name].float() - grad).norm() <= allowed, name


def test_a_held_scale_is_still_one_parameter():
    apart, held = (dict(with_scales("bfloat16", how).named_parameters()) for how in (False, True))
    assert apart.keys() == held.keys()


def test_several_makers_of_effective_weights_agree():
    """A finished run's weights are refreshed by one, then by another."""
    model = with_scales("bfloat16", True)
    EffectiveWeights(model).refresh()
    for parameter in model.parameters():
        parameter.data.mul_(2.0)
    EffectiveWeights(model).refresh()
    linear = model.blocks[0].attn.proj
    expected = (linear.held[0][:, None] * linear.weight.bfloat16()).bfloat16()
    assert torch.equal(linear.effective, expected)


def test_a_scale_stays_where_a_technique_reads_the_output():
    model = built("bfloat16")
    model.blocks[1].at_attn_out["one"] = torch.nn.Identity()
    scales_into_weights(model)
    assert [bool(block.attn.proj.held) for block in model.blocks] == [True, False, True]
    assert all(block.mlp.down.held for block in model.blocks)


def test_rounding_that_may_change_from_call_to_call_is_not_compiled():
    class Counting(FakeQuantizer):
        compiles = False
        seen: ClassVar[list[bool]] = []

        def __call__(self, weights: torch.Tensor) -> torch.Tensor:
            self.seen.append(torch.compiler.is_compiling())
            return super().__call__(weights)

    EffectiveWeights(built("bfloat16"), compiled=True).refresh(Counting(bits=4))
    assert Counting.seen
    assert not any(Counting.seen)


def test_a_weight_that_comes_to_hold_a_scale_is_made_anew():
    linear = Linear(8, 8, BF16, place="x")
    torch.nn.init.normal_(linear.weight)
    weights = EffectiveWeights(torch.nn.ModuleList([linear]))
    weights.refresh()
    linear.hold_scale(torch.nn.Parameter(torch.full((8,), 2.0)))
    assert torch.equal(linear.multiplier(), 2 * linear.weight.bfloat16())
    weights.refresh()
    assert torch.equal(linear.effective, 2 * linear.weight.bfloat16())


def test_compiled_rounding_gives_the_same_weights():
    plain, compiled = built("bfloat16"), built("bfloat16")
    EffectiveWeights(plain).refresh(FakeQuantizer(bits=4))
    EffectiveWeights(compiled, compiled=True).refresh(FakeQuantizer(bits=4))
    for one, other in zip(EffectiveWeights(plain).linears, EffectiveWeights(compiled).linears, strict=True):
        assert torch.equal(one.effective, other.effective)
