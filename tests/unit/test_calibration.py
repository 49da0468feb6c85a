"""Calibration: what each matrix reads, in the forward that trained, summed over visits and ranks."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from golf.common.ranks import Ranks
from golf.data.random_tokens import random_prepared
from golf.data.shards import Shards
from golf.launch.compose.build import build, build_model, make
from golf.launch.compose.configs import compose_job, composer, resolved
from golf.nn import kernels
from golf.nn.context import Context
from golf.nn.linear import EffectiveWeights, Joined
from golf.nn.models.attention import CausalAttention
from golf.nn.models.gpt import GPT
from golf.nn.models.mlp import SquaredMLP
from golf.quant.calibration import Trained
from golf.quant.rounding import FakeQuantizer
from golf.runs.folder import RunFolder

SIZES = ("recipe=quickstart", "tokenizer=byte260", "model.model_dim=32", "model.num_heads=4", "model.num_kv_heads=2",
         "model.num_layers=2", "train_seq_len=16", "logger=jsonl")  # fmt: skip
Seen = dict[str, list[torch.Tensor]]


def built(*words: str, compute: str = "float32") -> GPT:
    with composer():
        model = build_model(resolved(compose_job([*SIZES, *words])), compute)
    model.initialize(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("proj.weight", "down.weight", "head.weight")):  # zero at the start
                parameter.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(2))
    return model


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    return random_prepared(260, 4000, tmp_path_factory.mktemp("tokens")).train


def trained(model: GPT, shards: Shards, ranks: Ranks | None = None) -> Trained:
    return Trained(model, shards, ranks or Ranks(), seed=3, seq_len=16)


def inputs(of: Trained, windows: int = 4) -> Seen:
    seen: Seen = {}
    of.run(of.batches(windows), lambda name, x: seen.setdefault(name, []).append(x))
    return seen


@torch.no_grad()
def test_what_is_seen_is_what_the_matrices_multiply(shards: Shards) -> None:
    model = built()
    of = trained(model, shards)
    x = {name: torch.cat(parts) for name, parts in inputs(of).items()}
    assert {tuple(value.shape) for value in x.values()} == {(64, 32), (64, model.shape.mlp_dim)}
    for layer, block in enumerate(model.layers()):
        at = f"blocks.{layer}"
        assert torch.equal(x[f"{at}.attn.q.weight"], x[f"{at}.attn.v.weight"])
        up, down = x[f"{at}.mlp.up.weight"], x[f"{at}.mlp.down.weight"]
        torch.testing.assert_close(down, F.relu(up @ block.get_parameter("mlp.up.weight").T) ** 2)
    (ids,) = of.batches(4)
    model.eval()
    torch.testing.assert_close(model.head(x["embedding"], model.embedding), model(ids).flatten(0, 1))


def test_a_head_of_its_own_is_told_by_its_matrix(shards: Shards) -> None:
    seen = inputs(trained(built("model.head.tied=false"), shards))
    assert "head.weight" in seen
    assert "embedding" not in seen


def test_the_visits_of_a_layer_are_summed(shards: Shards) -> None:
    model = built("model/plan=loop", "model.plan.first=1", "model.plan.last=1", "model.plan.passes=3")
    of = trained(model, shards)
    seen = Counter({name: len(torch.cat(parts)) for name, parts in inputs(of).items()})
    assert seen["blocks.1.attn.q.weight"] == 3 * seen["blocks.0.attn.q.weight"] == 3 * 64
    x = torch.cat(inputs(of)["blocks.1.mlp.up.weight"])
    torch.testing.assert_close(of.hessians(of.batches(4))["blocks.1.mlp.up.weight"], x.T @ x)


def fused_as_kernels_are(model: GPT) -> dict[str, Any]:
    """Put in place of each attention's heads and each MLP what keeps its products to itself, as a kernel does."""
    stand_ins: dict[str, Any] = {}
    for name, part in model.named_modules():
        if isinstance(part, CausalAttention):
            joined, sizes = Joined(part.q, part.k, part.v), [m.weight.shape[0] for m in (part.q, part.k, part.v)]

            def heads(n: torch.Tensor, asking: int = 0, places: Any = None, part: Any = part, joined: Joined = joined,
                      sizes: list[int] = sizes) -> Any:  # fmt: skip
                return part.turned(*joined.forward(n).split(sizes, dim=-1), asking, places)

            part.heads = stand_ins[name] = heads
            model.fused.append((kernels.HEADS, part))
        elif isinstance(part, SquaredMLP):

            def whole(n: torch.Tensor, ctx: Context, part: Any = part) -> torch.Tensor:
                u = F.linear(n, part.up.multiplier())
                return F.linear(F.relu(u) ** 2, part.down.multiplier())

            part.whole = stand_ins[name] = whole
            model.fused.append((kernels.MLP, part))
    return stand_ins


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_fused_kernels_step_aside_and_come_back(shards: Shards, compute: str) -> None:
    plain, fused = built(compute=compute), built(compute=compute)
    stand_ins = fused_as_kernels_are(fused)
    expected, seen = inputs(trained(plain, shards)), inputs(trained(fused, shards))
    assert seen.keys() == expected.keys()
    for name, parts in expected.items():
        assert parts[0].dtype == plain.numerics.dtype
        torch.testing.assert_close(torch.cat(seen[name]), torch.cat(parts))
    for name, stand_in in stand_ins.items():
        part: Any = fused.get_submodule(name)
        assert stand_in in (getattr(part, "heads", None), getattr(part, "whole", None))


def test_compiled_blocks_are_passed_by(shards: Shards) -> None:
    plain, compiled = built("model.num_layers=1"), built("model.num_layers=1")
    for block in compiled.blocks:
        block.compile(backend="eager", fullgraph=True)
    with torch.no_grad():
        compiled.eval()(torch.zeros(4, 16, dtype=torch.int64))  # the graph is there, of this shape
    expected, seen = inputs(trained(plain, shards)), inputs(trained(compiled, shards))
    assert seen.keys() == expected.keys()
    assert all(torch.equal(torch.cat(seen[name]), torch.cat(parts)) for name, parts in expected.items())
    torch._dynamo.reset()


def test_weights_are_not_fake_quantized_and_the_model_stays_as_it_was(shards: Shards) -> None:
    model = built(compute="bfloat16").train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    expected = inputs(trained(model, shards))
    EffectiveWeights(model).refresh(FakeQuantizer(bits=2))
    for name, parts in inputs(trained(model, shards)).items():
        assert torch.equal(torch.cat(parts), torch.cat(expected[name])), name
    assert model.training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_matrix_that_multiplies_nothing_is_left_out_and_told(
    shards: Shards, caplog: pytest.LogCaptureFixture
) -> None:
    model = built()
    model.visits = model.visits[:1]
    of = trained(model, shards)
    found = of.hessians(of.batches(2))
    assert "blocks.0.attn.q.weight" in found
    assert not any(name.startswith("blocks.1") for name in found)
    assert "no inputs were seen of blocks.1.attn.q.weight" in caplog.text


def test_documents_that_training_kept_apart_are_apart(shards: Shards) -> None:
    model = built()
    apart = replace(trained(model, shards), border_id=7)
    (ids,) = apart.batches(4)
    ids[0, 9], ids[2, 3], ids[2, 4] = 7, 7, 7
    seen: list[dict[str, torch.Tensor]] = []
    documents = [row for window in ids for row in torch.tensor_split(window, (window == 7).nonzero()[:, 0].tolist())]
    for of, batches in ((apart, [ids]), (trained(model, shards), [one[None] for one in documents if len(one)])):
        found: Seen = {}
        of.run(batches, lambda name, x, found=found: found.setdefault(name, []).append(x))  # type: ignore[misc]
        seen.append({name: torch.cat(parts) for name, parts in found.items()})
    for name, alone in seen[1].items():
        torch.testing.assert_close(seen[0][name], alone)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_windows_that_one_has(shards: Shards, world: int) -> None:
    def rows(ranks: Ranks) -> list[tuple[int, ...]]:
        model = built()
        return [tuple(row.tolist()) for ids in trained(model, shards, ranks).batches(7) for row in ids]

    together = [row for rank in range(world) for row in rows(Ranks(rank, world))]
    assert Counter(together) == Counter(rows(Ranks()))


def test_a_seed_draws_its_own_windows(shards: Shards) -> None:
    of = trained(built(), shards)
    one, again, other = (torch.cat(list(of.batches(8, seed=seed, batch_tokens=16))) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("reserve_s", [0.0, 12.0])
def test_steps_end_earlier_by_what_a_quantizer_keeps(reserve_s: float, tmp_path: Path) -> None:
    with composer():
        words = ["runtime=cpu", "budget.train_seconds=600", "budget.fraction=0.5", "eval=contiguous"]
        config = resolved(compose_job([*SIZES, "budget=smoke", "train_batch_tokens=256", *words]))
    prepared = random_prepared(260, 4000, tmp_path)
    parts = build(config, Ranks(), make(config["runtime"], "runtime"), RunFolder(tmp_path), prepared)
    parts.quantizer.reserve_s = reserve_s
    try:
        assert parts.train_seconds == (600 - reserve_s) * 0.5 * 8  # one worker does eight's work
        assert parts.scaled.scaled["train_seconds"] == 2400  # the limit that the run is held to
    finally:
        parts.loader.close()
