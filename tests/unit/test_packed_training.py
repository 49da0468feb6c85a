"""Documents that share a row train as each does alone: losses, terms, gradients, whatever the split of a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter

from golf.common.errors import ConfigError
from golf.data.loader import Batch, Feed
from golf.data.orders import Spans
from golf.data.shards import Shards
from golf.launch.compose.build import build_model, check
from golf.launch.compose.configs import compose_job, composer, resolved
from golf.nn.attend import packed
from golf.nn.context import Context, Documents
from golf.nn.linear import EffectiveWeights
from golf.nn.models.gpt import GPT, Losses
from golf.nn.techniques.base import Technique

LENGTH, BORDER = 16, 1
SIZES = (
    "budget=smoke", "tokenizer=byte260", "runtime=cpu", "logger=jsonl", "model.num_layers=3", "model.model_dim=32",
    "model.num_heads=4", "model.num_kv_heads=2", f"train_seq_len={LENGTH}", "train_batch_tokens=512",
    "eval.stride=8",
)  # fmt: skip


def composed(*words: str) -> dict[str, Any]:
    with composer():
        return resolved(compose_job([*SIZES, *words]))


def scattered(model: GPT) -> GPT:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.5)
    return model


TECHNIQUES = [
    f"technique/{choice}"
    for choice in ("attn_gate=sparse", "smear_gate=v2", "bigram_hash=v1", "value_residual=v1", "value_embed=last2",
                   "z_loss=v1", "mtp=v1")
]  # fmt: skip


class MeanSquare(Technique):
    """A term of the loss that is a mean over tokens."""

    site = "pre_head"

    def forward(self, h: torch.Tensor, ctx: Context) -> torch.Tensor:
        ctx.add_loss("square", h.square().mean())
        return h


class Blurs(Technique):
    """Looks at other positions, and knows of no documents."""

    site, mixes_time = "attn_in", True


def feed(tokens: int, micro_steps: int = 1, rank: int = 0, world: int = 1) -> Feed:
    """Random bytes in documents of 12 on average, some longer than 16; 512 of them a step."""
    rng = np.random.default_rng(1)
    ids = np.where(rng.random(tokens) < 1 / 12, BORDER, rng.integers(4, 260, tokens)).astype(np.uint16)
    return Feed(Shards([Path("text")], [ids], 260), 512, LENGTH, micro_steps, rank, world, border_id=BORDER)


def read(world: int = 1, micro_steps: int = 1, packs: bool = True) -> list[Batch]:
    """The first step of every rank."""
    found = []
    for rank in range(world):
        loader = Spans(feed(2000, micro_steps, rank, world), packs)
        found += loader.next_step()
        loader.close()
    return found


def alone(batch: Batch) -> list[Batch]:
    """Each document of a packed row by itself."""
    assert batch.borders is not None
    sizes = batch.borders.diff().tolist()
    parts = zip(batch.x.split(sizes, 1), batch.y.split(sizes, 1), strict=True)
    return [Batch(x, y) for x, y in parts if x.numel()]


def trained(model: GPT, batches: list[Batch], weigh: bool = False) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss of all batches together and its gradients; weigh: by their tokens, else alike."""
    weights = EffectiveWeights(model.train())
    weights.refresh()
    model.zero_grad()
    total, tokens = 0.0, sum(batch.x.numel() for batch in batches)
    for x, y, borders in batches:
        found = model(x, y, borders=borders, noting=True)
        assert isinstance(found, Losses)
        share = x.numel() / tokens if weigh else 1 / len(batches)
        loss = (found.nll + sum(found.terms.values())) * share
        loss.backward()
        weights.collect_gradients()
        total += float(loss.detach())
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same(one: tuple[float, dict[str, torch.Tensor]], other: tuple[float, dict[str, torch.Tensor]]) -> None:
    assert one[0] == pytest.approx(other[0], rel=1e-5)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        assert (gradient - other[1][name]).norm() <= 1e-4 * gradient.norm() + 1e-7, name


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["technique/smear_gate=v1", "technique/xsa=all"],
        [*TECHNIQUES, "model/head=asymmetric"],
        ["recipe=sp2048_normuon_int6", "tokenizer=byte260"],
        ["model/plan=loop", "model.plan.first=0", "model.plan.last=1", "model/position=rope_ntk", "eval.seq_len=64"],
    ],
)
def test_a_rows_loss_and_gradients_are_those_of_its_documents(words: list[str]) -> None:
    model = scattered(build_model(composed(*words), "float32"))
    (row,) = read()
    assert row.x.shape == (1, 512)
    assert len(alone(row)) > 50
    same(trained(model, [row]), trained(model, alone(row), weigh=True))


def test_terms_of_the_loss_are_those_of_the_documents_too() -> None:
    model = scattered(build_model(composed(), "float32"))
    model.at_pre_head["square"] = MeanSquare(model.shape)
    (row,) = read()
    same(trained(model, [row]), trained(model, alone(row), weigh=True))


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize(("world", "micro_steps"), [(1, 8), (1, 2), (4, 1), (8, 1)])
@pytest.mark.parametrize("words", [["technique/smear_gate=v1"], TECHNIQUES], ids=["smear_gate", "techniques"])
def test_a_steps_gradients_are_the_same_for_every_split(
    words: list[str], world: int, micro_steps: int, packs: bool
) -> None:
    model = scattered(build_model(composed(*words), "float32"))
    model.border_id = BORDER
    same(trained(model, read(world, micro_steps, packs)), trained(model, read(packs=packs)))


def test_documents_make_a_difference() -> None:
    model = scattered(build_model(composed(), "float32"))
    assert trained(model, read())[0] != pytest.approx(trained(model, read(packs=False))[0], rel=1e-4)


def test_steps_compile_one_graph() -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    model = scattered(build_model(composed("technique/smear_gate=v1"), "float32"))
    run = torch.compile(model, backend=counter, fullgraph=True, dynamic=False)
    loader = Spans(feed(20_000), packed=True)
    for _ in range(8):
        (batch,) = loader.next_step()
        found, eager = (one(batch.x, batch.y, borders=batch.borders, noting=True) for one in (run, model))
        assert float(found.nll.detach()) == pytest.approx(float(eager.nll.detach()), rel=1e-5)
    loader.close()
    assert counter.frame_count == 1


def test_several_rows_with_borders_are_refused() -> None:
    (row,) = read()
    with pytest.raises(ConfigError, match="packed in one row, not in 2"):
        build_model(composed(), "float32")(row.x.view(2, -1), row.y.view(2, -1), borders=row.borders)


@pytest.mark.parametrize("longest", [16, 20, 64, 1000])
@pytest.mark.parametrize("time", [1, 16, 100])
def test_attention_by_blocks_is_that_of_each_document(time: int, longest: int) -> None:
    torch.manual_seed(time)
    q, k, v = (torch.randn(1, time, heads, 8, dtype=torch.float64, requires_grad=True) for heads in (4, 2, 2))
    sizes = [size for _ in range(20) for size in (5, 1, 16, 0)]
    borders = torch.tensor([0, *sizes], dtype=torch.int32).cumsum(0, dtype=torch.int32).clamp(max=time)
    out = packed(q, k, v, Documents.of(borders, time, longest))
    grad = torch.randn_like(out)
    fast = torch.autograd.grad(out, (q, k, v), grad)
    number = torch.bucketize(torch.arange(time), borders, right=True)
    mask = (number[:, None] == number).tril()
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k.repeat_interleave(2, 2)) / 8**0.5
    want = torch.einsum("bhqk,bkhd->bqhd", scores.masked_fill(~mask, -torch.inf).softmax(-1), v.repeat_interleave(2, 2))
    assert torch.allclose(out, want)
    for one, other in zip(fast, torch.autograd.grad(want, (q, k, v), grad), strict=True):
        assert torch.allclose(one, other)


def test_a_model_that_cannot_pack_is_refused_before_the_start(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("some text\n\nmore text")
    config = composed("loader=packed", "data=text", f"data.paths=[{tmp_path}/corpus.txt]")
    check(config)

    config["technique"]["blurs"] = {"_target_": f"{__name__}.Blurs", "_partial_": True}
    with pytest.raises(ConfigError, match=r"loader\.packed=true: .*: technique/blurs mixes time and doesn't read"):
        check(config)


@pytest.mark.parametrize("loader", ["spans", "packed"])
def test_sequences_longer_than_the_position_tables_are_refused_before_the_start(loader: str) -> None:
    with pytest.raises(ConfigError, match=r"train_seq_len=16 is longer than .*model\.max_seq_len=8"):
        check(composed(f"loader={loader}", "model.max_seq_len=8", "eval.seq_len=8"))
