"""What a run proves of its figures at its end: causal, pruned as whole, nothing remembered, from the artifact alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from golf.common.clock import Clocks
from golf.common.ranks import Ranks
from golf.evals.evaluators import Evaluator, Score
from golf.launch.compose import build
from golf.launch.compose.configs import compose_job, composer, resolved
from golf.launch.compose.own_modules import use_code
from golf.nn.models.gpt import GPT
from golf.runs.folder import RunFolder
from golf.runs.record import Result
from golf.runs.screen import final_table
from golf.train.finish import Finish
from golf.train.memory import put_back
from golf.train.parts import Parts
from golf.train.proof import Proof, Prover
from golf.train.stages import load_state
from golf.train.trainer import Trainer

TINY = (
    "recipe=quickstart", "budget=smoke", "tokenizer=byte260", "model.num_layers=2", "model.model_dim=32",
    "model.num_heads=2", "model.num_kv_heads=1", "train_seq_len=16", "train_batch_tokens=256", "val_tokens=513",
    "schedule.iterations=2", "eval.seq_len=64", "eval.stride=16", "model.max_seq_len=64", "logger=jsonl",
    "runtime=cpu", "runtime.threads=1", "data=text", "data.val_docs=6",
)  # fmt: skip
IDEAS = """
import torch
from golf.nn.techniques.base import Technique

READ = {}


class Looks(Technique):
    site = "pre_head"
    mixes_time = True

    def __init__(self, shape, layer=None, does="nothing"):
        super().__init__(shape, layer)
        self.does = does
        if does == "remembers in a buffer":
            self.register_buffer("seen", torch.zeros(1))
        self.seen_tokens = []
        self.mask = None

    def forward(self, value, ctx):
        return getattr(self, self.does.split()[0])(value, ctx)

    def nothing(self, value, ctx):
        return value

    def peeks(self, value, ctx):
        return value + torch.cat((value[:, 1:], value[:, -1:]), 1)

    def blends(self, value, ctx):
        return value + value.cumsum(1) / 8

    def caches(self, value, ctx):
        if self.mask is None or len(self.mask) < value.shape[1]:
            self.mask = torch.ones(value.shape[1], 1)
        return value * self.mask[: value.shape[1]]

    def remembers(self, value, ctx):
        if self.does.endswith("buffer"):
            self.seen = self.seen + ctx.ids.float().mean()
            return value
        if self.does.endswith("list"):
            self.seen_tokens.append(int(ctx.ids.sum()))
            return value
        key = str(ctx.ids.tolist())  # where nobody looks
        READ[key] = READ.get(key, 0) + 1
        return value * READ[key]


class Blends(Looks):
    mixes_time = False


class Inside(Looks):
    reads = ("documents",)
"""
Made = Callable[..., Parts]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Made]:
    """The parts of a run of a tiny model with a technique of the file above."""
    corpus, ideas = tmp_path / "corpus.jsonl", tmp_path / "mine"
    corpus.write_text("".join(json.dumps({"text": f"document {i}: " + "ab cd " * (5 + i)}) + "\n" for i in range(40)))
    ideas.mkdir()
    (ideas / "proved_ideas.py").write_text(IDEAS)
    monkeypatch.setenv("GOLF_CACHE", str(tmp_path / "cache"))

    def make(does: str, *words: str, kind: str = "Looks") -> Parts:
        with composer():
            config: dict[str, Any] = resolved(compose_job([*TINY, f"data.paths=[{corpus}]", *words]))
        config["technique"]["looks"] = {"_target_": f"proved_ideas.{kind}", "_partial_": True, "does": does}
        config["code_paths"] = [str(ideas)]
        build.check(config)
        runtime, prepared = build.make(config["runtime"], "runtime"), build.prepare_data(config, Ranks())
        return build.build(config, Ranks(), runtime, RunFolder.claim(tmp_path / "run"), prepared)

    yield make
    use_code([])


def proof_of(parts: Parts, *evaluators: Evaluator) -> Proof:
    parts.model.eval()
    plain = parts.evaluator.contiguous()
    return Prover(parts.model, parts.model, parts.validation).prove([plain, *(evaluators or (parts.evaluator,))])


ALL = ["pruned = whole", "sums to one", "nothing remembered", "causal", "once each", "one pass"]


@pytest.mark.parametrize("does", ["nothing", "caches", "blends"])
@pytest.mark.parametrize("evaluator", [["eval.stride=16"], ["eval=document", "eval.packed=false"]])
def test_what_looks_back_alone_is_proved(made: Made, does: str, evaluator: list[str]) -> None:
    proof = proof_of(made(does, *evaluator, kind="Inside" if "eval=document" not in evaluator else "Looks"))
    assert (proof.proved, proof.not_checked, proof.violations) == (ALL, [], [])


def test_what_reads_the_next_token_is_named(made: Made) -> None:
    proof = proof_of(made("peeks"))
    assert len(proof.violations) == 1
    assert proof.violations[0].startswith("technique/looks: text that comes later changes an earlier prediction")
    assert "causal" not in proof.proved


def test_a_loss_that_is_no_probabilitys_is_wrong(made: Made) -> None:
    parts = made("nothing")
    model = parts.model.eval()
    as_it_was = model.forward
    model.forward = lambda *read, **how: 0.9 * as_it_was(*read, **how)
    wrong, unknown = Prover(model, model, parts.validation).sums()
    assert unknown is None
    assert wrong is not None
    assert "is no probability's" in wrong


def test_what_looks_across_a_border_of_packed_documents_is_named(made: Made) -> None:
    proof = proof_of(made("blends", "eval=document", "eval.packed=true", kind="Inside"))
    assert [sentence.partition(":")[0] for sentence in proof.violations] == ["technique/looks"]
    assert "across a border" in proof.violations[0]


def test_what_mixes_without_saying_so_is_told_what_to_declare(made: Made) -> None:
    proof = proof_of(made("blends", kind="Blends"))
    assert len(proof.violations) == 1
    assert proof.violations[0].startswith("technique/looks: ")
    assert "mixes_time = True" in proof.violations[0]


@pytest.mark.parametrize(("kind", "found"), [("Looks", False), ("Blends", True)])
def test_pruning_in_a_model_that_computes_in_bfloat16_is_looked_at_in_float32(
    made: Made, kind: str, found: bool
) -> None:
    parts = made("blends", kind=kind)
    model = parts.fresh.args[0]("bfloat16").eval()  # type: ignore[attr-defined]
    load_state(model, parts.model.state_dict())
    dtypes = []

    def exactly() -> GPT:
        twin = parts.fresh(exact=True)
        load_state(twin, model.state_dict())
        dtypes.append(twin.numerics.dtype)
        return twin

    sentence = Prover(model, model, parts.validation, exact=exactly).pruning(parts.evaluator.contiguous())
    assert bool(sentence and "technique/looks" in sentence) == found
    assert dtypes == [torch.float32]


@pytest.mark.parametrize(
    ("does", "told"),
    [("remembers in a buffer", "at_pre_head.looks.seen"), ("remembers in a list", "at_pre_head.looks.seen_tokens"),
     ("remembers elsewhere", "another score each time")],
)  # fmt: skip
def test_what_remembers_the_text_is_named(made: Made, does: str, told: str) -> None:
    proof = proof_of(made(does))
    assert any("technique/looks" in sentence and told in sentence for sentence in proof.violations)
    assert not {"nothing remembered", "causal"} <= set(proof.proved)


class TwoPasses(Evaluator):
    """Knows every target before it scores it."""

    method = "twice"

    def score(self, model: Any, forward: Any, *args: Any, **how: Any) -> Score:
        """Logits are raised where the next token will be, a token of the same window."""

        def knowing(ids: torch.Tensor, targets: torch.Tensor, **more: Any) -> torch.Tensor:
            return forward(ids, targets, reduction="none") - ids[:, -1:].float() / 300

        return super().score(model, knowing, *args, **how)


class Adapting(Evaluator):
    """Changes the model while it scores, and leaves it so."""

    method, adapts = "adapting", True

    def score(self, model: Any, forward: Any, *args: Any, **how: Any) -> Score:
        """One parameter moves."""
        with torch.no_grad():
            model.embedding.mul_(1.25)
        return super().score(model, forward, *args, **how)


def test_an_evaluator_that_looks_ahead_is_named(made: Made) -> None:
    proof = proof_of(made("nothing"), TwoPasses(64, 16))
    assert [sentence.partition(":")[0] for sentence in proof.violations] == ["eval (TwoPasses)"]


def test_an_evaluator_may_change_the_model_if_it_says_so(made: Made) -> None:
    parts = made("nothing")
    before = parts.model.embedding.detach().clone()
    assert proof_of(parts, Adapting(64, 16, batch_tokens=64)).proved == ALL
    assert torch.equal(parts.model.embedding, before)
    Adapting.adapts = False
    try:
        assert "embedding" in proof_of(parts, Adapting(64, 16)).violations[0]
    finally:
        Adapting.adapts = True


class Backwards(Adapting):
    """Scores the later targets first, or all of them twice; or tells its losses at the end."""

    how = "turned"

    def score(self, model: Any, forward: Any, *args: Any, nll: torch.Tensor | None = None, **how: Any) -> Score:
        """Takes what its parent has found, and tells it in another order."""
        mine = None if nll is None else torch.full(nll.shape, torch.nan)
        score = super().score(model, forward, *args, nll=mine, **how)
        if nll is not None and mine is not None:
            middle = len(mine) // 2
            spans = [slice(middle, None), slice(0, middle)] if self.how == "turned" else [slice(0, None)]
            for span in spans:
                nll[span] = mine[span]
            if self.how == "twice":
                nll[1:3].sub_(0.5)
        return score


@pytest.mark.parametrize(
    ("how", "told"),
    [("turned", r"scores target 1 after target \d+"), ("twice", "scores target 1 a second time"), ("at once", None)],
)
def test_one_that_adapts_goes_through_the_text_once_from_left_to_right(made: Made, how: str, told: str | None) -> None:
    evaluator = Backwards(64, 16)
    evaluator.how = how
    proof = proof_of(made("nothing"), evaluator)
    if told is None:
        assert proof.not_checked == ["one pass (adapting: it tells its losses at once)"]
    else:
        assert re.search(told, proof.broken["one pass"])
        assert proof.violations == [proof.broken["one pass"]]


def test_targets_that_are_left_out_are_told(made: Made) -> None:
    proof = proof_of(made("nothing", "eval.coverage=seed_s3"))
    assert "once each" not in proof.proved
    assert any("leaves targets out: coverage seed_s3" in one for one in proof.not_checked)


def test_an_evaluator_that_fails_on_a_short_text_is_not_judged(made: Made) -> None:
    class Fails(Evaluator):
        method = "fails"

        def score(self, *args: Any, **how: Any) -> Score:
            raise RuntimeError("no less than a chapter")

    proof = proof_of(made("nothing"), Fails(64, 16))
    assert proof.violations == []
    assert "causal (fails: RuntimeError: no less than a chapter)" in proof.not_checked


def test_a_run_that_remembers_is_invalid_and_its_table_says_what_was_proved(made: Made) -> None:
    parts = made("remembers in a list")
    trainer = Trainer(parts, Clocks(), lambda *_: None)
    finish = Finish(trainer)
    trainer.train()
    finish.run({})
    result = Result.from_parts(status="completed", steps=2, train_time_s=0.0, evals=finish.evals,
                               violations=finish.violations, proof=finish.proof)  # fmt: skip
    assert not result.valid
    assert "technique/looks (at_pre_head.looks.seen_tokens)" in result.violations[-1]
    *_, line, folder = final_table(result, "DIR").splitlines()
    assert folder == "DIR"
    assert line.startswith("proved: artifact alone, ")
    assert "disjoint" in line
    assert "nothing remembered" not in line


def test_what_a_block_changes_is_told_and_put_back() -> None:
    model = torch.nn.BatchNorm1d(4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with put_back(model) as changed:
        model(torch.randn(8, 4))
    assert set(changed) == {"running_mean", "running_var", "num_batches_tracked"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_there_was_no_time_for_is_told(made: Made) -> None:
    parts = made("nothing")
    parts.model.eval()
    prover = Prover(parts.model, parts.model, parts.validation, seconds=1e-9)
    proof = prover.prove([parts.evaluator.contiguous(), parts.evaluator])
    assert proof.violations == []
    assert "causal" not in proof.proved
    assert any("sliding: over 1e-09 s; golf check takes its time" in one for one in proof.not_checked)
