"""Training on the grid of the run's own quantizer: the same rounding, in effect wherever weights are read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from golf.common.errors import ConfigError
from golf.launch.compose.build import build_model, components, make
from golf.launch.compose.configs import compose_job, composer, resolved
from golf.nn.linear import EffectiveWeights
from golf.nn.models.gpt import GPT
from golf.nn.params import ParamSpec, declare
from golf.quant.allocation import GradientGuidedBits
from golf.quant.entry import dequantize
from golf.quant.gptq import GPTQ
from golf.quant.rehearsal import AsQuantized
from golf.quant.rowwise import RowQuantizer

SIZES = (
    "recipe=quickstart", "tokenizer=byte260", "model.model_dim=32", "model.num_heads=4", "model.num_kv_heads=2",
    "model.num_layers=2", "train_seq_len=16", "logger=jsonl", "keep_below=64", "quant.small={default: float32}",
    "technique/bigram_hash=v1", "technique/value_embed=last2",
)  # fmt: skip
IDS = torch.randint(0, 256, (3, 17), generator=torch.Generator().manual_seed(5))
MATRIX = ParamSpec("matrix", "mlp.up", 0)
QUANTIZERS = {
    "int8": RowQuantizer(passthrough_numel=0),
    "floor": RowQuantizer(bits=4, clip_percentile=0.9, passthrough_numel=0),
    "k": GPTQ(k={"default": 9.0, "mlp.*": 3.0}, bits={"default": 5, "mlp.*": 4}, passthrough_numel=0),
    "packed": RowQuantizer(bits=5, pack=True, k=2.5, scale_floor=False, passthrough_numel=0),
}


@pytest.fixture(autouse=True)
def composing() -> Iterator[None]:
    with composer():
        yield


def rounding(quantizer: Any, **settings: Any) -> AsQuantized:
    qat = AsQuantized(**settings)
    qat.follow(quantizer)
    return qat


def built(*words: str) -> tuple[GPT, dict[str, Any]]:
    config = resolved(compose_job([*SIZES, *words]))
    compute = "bfloat16" if "runtime.dtype=bfloat16" in words else "float32"
    model = build_model(config, compute)
    model.initialize(1)
    with torch.no_grad():  # what starts at zero is to be seen too
        for number, parameter in enumerate(model.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter.add_((0.05 * noise).to(parameter.dtype))
    return model, config


@pytest.mark.parametrize("name", QUANTIZERS)
def test_training_rounds_as_the_artifact_does_bit_for_bit(name: str) -> None:
    quantizer = QUANTIZERS[name]
    stack = torch.randn(4, 12, 96, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 1, 12)[:, None]
    stack[1, 3, 5], stack[2] = 40.0, 0.0  # beyond the grid; nothing at all
    stack[3, 2] += 900.0  # beyond a byte's
    qat = rounding(quantizer)
    assert qat.covers(MATRIX, stack[0])
    found = qat.rounding_of(MATRIX, stack[0])(stack)
    for matrix, rounded in zip(stack, found, strict=True):
        assert torch.equal(rounded, dequantize(quantizer.quantize({"w": matrix}, {"w": MATRIX})["w"]))
    assert not torch.equal(found[0], stack[0])


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "words", [(), ("model/numerics=fp32_embed",), ("model/head=untied",)], ids=["tied", "fp32_embed", "untied"]
)
def test_forward_and_gradients_are_those_of_the_model_that_is_read_back(words: tuple[str, ...], compute: str) -> None:
    words += (f"runtime.dtype={compute}", "quant.bits={default: 5, embed: 6}", "quant.k={default: 8, attn.*: 6}")
    (trained, config), (loaded, _) = built(*words), built(*words)
    quantizer = make(config["quant"], "quant")
    state = loaded.state_dict()
    for name, entry in quantizer.quantize(state, loaded.specs()).items():
        with torch.no_grad():
            state[name].copy_(dequantize(entry))
    weights, plain = EffectiveWeights(trained), EffectiveWeights(loaded)
    weights.refresh(rounding(quantizer))
    plain.refresh()
    losses = [model(IDS[:, :-1], IDS[:, 1:]) for model in (trained, loaded)]
    for loss in losses:
        loss.backward()
    weights.collect_gradients()
    plain.collect_gradients()
    assert torch.equal(*losses)
    wanted = dict(loaded.named_parameters())
    for name, parameter in trained.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == parameter.dtype
        torch.testing.assert_close(
            parameter.grad, wanted[name].grad, rtol=2e-2 if parameter.dtype == torch.bfloat16 else 1e-5, atol=1e-5
        )
    assert not torch.equal(trained.embedding, loaded.embedding)  # masters stay
    weights.refresh()
    fresh, _ = built(*words)
    assert torch.equal(trained(IDS[:, :-1], IDS[:, 1:]), fresh(IDS[:, :-1], IDS[:, 1:]))  # evaluations see no rounding


@pytest.mark.slow
def test_a_compiled_forward_follows_when_rounding_begins() -> None:
    (model, _), (eager, _) = built("runtime.dtype=bfloat16"), built("runtime.dtype=bfloat16")
    qat = rounding(RowQuantizer(bits=3, passthrough_numel=0, scale_floor=False))
    graph = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False)
    losses, gradients = [], []
    for one, call in ((model, graph), (eager, eager)):
        weights = EffectiveWeights(one, compiled=False)
        for rounds in (None, qat, None):
            weights.refresh(rounds)
            loss = call(IDS[:, :-1], IDS[:, 1:])
            loss.backward()
            weights.collect_gradients()
            losses.append(float(loss.detach()))
            gradients.append({name: p.grad.clone() for name, p in one.named_parameters()})
            one.zero_grad(set_to_none=True)
    before, during, after, *expected = losses
    assert [before, during, after] == pytest.approx(expected, rel=1e-3)
    assert before == after
    assert abs(during - before) > 1e-3
    for name, gradient in gradients[1].items():
        assert not torch.equal(gradient, gradients[0][name]), name
        torch.testing.assert_close(gradient, gradients[4][name], rtol=5e-2, atol=1e-3)


def test_the_rounding_itself_compiles() -> None:
    stack = torch.randn(3, 8, 64, generator=torch.Generator().manual_seed(2))
    for quantizer in QUANTIZERS.values():
        one = rounding(quantizer).rounding_of(MATRIX, stack[0])
        compiled = torch.compile(one.__call__, backend="aot_eager", fullgraph=True, dynamic=False)
        torch.testing.assert_close(compiled(stack), one(stack), rtol=1e-6, atol=1e-6)


def test_what_is_kept_whole_or_serves_training_alone_is_not_rounded() -> None:
    quantizer = RowQuantizer(passthrough_numel=64, keep={"embed": "float16"})
    matrix, small = torch.zeros(20, 20), torch.zeros(8, 8)
    qat = rounding(quantizer)
    assert qat.covers(MATRIX, matrix)
    assert not qat.covers(MATRIX, small)
    assert not qat.covers(ParamSpec("embed", "embed"), matrix)
    assert not qat.covers(ParamSpec("matrix", "mtp", stored=False), matrix)
    assert not qat.covers(ParamSpec("scalar", "attn.gain"), torch.zeros(400))
    assert not rounding(RowQuantizer(passthrough_numel=0), roles=["head"]).covers(MATRIX, matrix)


def test_steps_are_as_wide_as_a_fit_will_make_them() -> None:
    quantizer = RowQuantizer(bits=6, k=12.0, passthrough_numel=0, scale_floor=False)
    fitted = RowQuantizer(bits=6, k=12.0, passthrough_numel=0, scale_floor=False)
    fitted.times = 1.7
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    [found] = rounding(quantizer, times=1.7).rounding_of(MATRIX, weight)(weight[None])
    assert torch.equal(found, dequantize(fitted.quantize({"w": weight}, {"w": MATRIX})["w"]))


def test_bits_that_gradients_will_choose_are_the_middle_ones() -> None:
    quantizer = RowQuantizer(passthrough_numel=0, allocation=GradientGuidedBits(middle=5))
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    [found] = rounding(quantizer).rounding_of(MATRIX, weight)(weight[None])
    assert torch.equal(found, dequantize(quantizer.quantize({"w": weight}, {"w": MATRIX}, {"w": 5})["w"]))


def test_what_training_rounds_is_told_and_what_it_cannot_reach() -> None:
    model, _ = built()
    declare(model, "own", torch.ones(20, 20), role="matrix", place="mine")
    places, others = EffectiveWeights(model).rounded(rounding(RowQuantizer(passthrough_numel=64)))
    assert {"attn.q", "mlp.down", "embed", "bigram.table", "value_embed.table", "value_embed.proj"} <= set(places)
    assert others == ["mine"]
    assert EffectiveWeights(model).rounded(rounding(RowQuantizer(passthrough_numel=10**9))) == ([], [])


def test_it_follows_the_quantizer_of_the_run_and_needs_one_that_tells() -> None:
    config = resolved(
        compose_job([*SIZES, "eval=contiguous", "quant=int6_gptq", "phases=[{from: 0.5, set: {qat: quant}}]"])
    )
    made = components(config, data=False)
    before, after = (phase.qat for phase in made["phases"])
    assert before is None
    assert after.rounding_of(MATRIX, torch.zeros(9, 9)) == made["quant"].rounding(MATRIX, torch.zeros(9, 9))
    with pytest.raises(ConfigError, match="object does not say how it rounds"):
        AsQuantized().follow(object())
    with pytest.raises(ConfigError, match=r"qat\.times=0: must be more than 0"):
        AsQuantized(times=0)
