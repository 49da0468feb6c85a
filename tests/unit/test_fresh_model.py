"""Techniques that gather state as they train: what is undone, averaged, and scored of it."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from golf.common.clock import Clocks
from golf.common.errors import GolfError
from golf.common.ranks import Ranks
from golf.launch.compose import build
from golf.launch.compose.configs import compose_job, composer, resolved
from golf.launch.compose.own_modules import use_code
from golf.nn.live import beside_state
from golf.runs.folder import RunFolder
from golf.train.finish import Finish
from golf.train.stages import read_artifact
from golf.train.trainer import Trainer

TINY = (
    "recipe=quickstart", "budget=smoke", "tokenizer=byte260", "model.num_layers=2", "model.model_dim=32",
    "model.num_heads=2", "model.num_kv_heads=1", "train_seq_len=16", "train_batch_tokens=256", "val_tokens=257",
    "schedule.iterations=6", "eval=contiguous", "logger=jsonl", "runtime=cpu", "runtime.threads=1", "data=text",
    "data.val_docs=4",
)  # fmt: skip
IDEAS = """
import torch
from golf.nn.techniques.base import Technique


class Gathers(Technique):
    site = "pre_head"

    def __init__(self, shape, layer=None, kept="buffer"):
        super().__init__(shape, layer)
        self.kept = kept
        gain = torch.ones(shape.model_dim)
        if kept in ("buffer", "temporary"):
            self.register_buffer("gain", gain, persistent=kept == "buffer")
        else:
            if kept == "late":
                return
            if kept == "declared":
                self.register_buffer("gain", None)
                return
            if kept == "grows":
                self.register_buffer("gain", torch.ones(1))
                return
            self.gain = {"attribute": gain, "list": [gain], "number": 1.0, "counter": 0, "drawn": gain}[kept]
        if kept == "drawn":
            self.register_buffer("drawn", torch.randn(shape.model_dim), persistent=False)

    def forward(self, value, ctx):
        if getattr(self, "gain", None) is None or (self.kept == "grows" and len(self.gain) == 1):
            if self.kept == "late":
                self.register_buffer("gain", torch.ones(value.shape[-1]))
            self.gain = torch.ones(value.shape[-1])
        gain = self.gain[0] if self.kept == "list" else self.gain
        if self.training and self.kept != "drawn":
            grown = gain + 0.2
            self.gain = [grown] if self.kept == "list" else grown
        if self.kept == "counter":
            return value
        return (value * gain + (self.drawn if self.kept == "drawn" else 0)).to(value.dtype)
"""
Made = Callable[..., tuple[Trainer, Finish]]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Made]:
    """A trainer of a tiny model with the technique above, and what follows training."""
    corpus, ideas = tmp_path / "corpus.jsonl", tmp_path / "mine"
    corpus.write_text("".join(json.dumps({"text": f"document {i}: " + "ab cd " * (20 + i)}) + "\n" for i in range(40)))
    ideas.mkdir()
    (ideas / "gathering_ideas.py").write_text(IDEAS)
    monkeypatch.setenv("GOLF_CACHE", str(tmp_path / "cache"))

    def make(kept: str, *words: str) -> tuple[Trainer, Finish]:
        with composer():
            config: dict[str, Any] = resolved(compose_job([*TINY, f"data.paths=[{corpus}]", *words]))
        config["technique"]["gathers"] = {
            "_target_": "gathering_ideas.Gathers", "_partial_": True, "kept": kept,
        }  # fmt: skip
        config["code_paths"] = [str(ideas)]
        build.check(config)
        runtime = build.make(config["runtime"], "runtime")
        prepared = build.prepare_data(config, Ranks())
        folder = RunFolder.claim(tmp_path / f"run{len(list(tmp_path.glob('run*')))}")
        trainer = Trainer(build.build(config, Ranks(), runtime, folder, prepared), Clocks(), lambda *_: None)
        return trainer, Finish(trainer)

    yield make
    use_code([])


def scored(finish: Finish) -> dict[str, float]:
    return {one.stage: one.val_bpb for one in finish.evals}


STATE = ("buffer", "declared", "temporary", "attribute", "list", "number", "counter", "drawn")


@pytest.mark.parametrize("kept", STATE)
def test_the_artifacts_figure_is_that_of_a_model_that_never_trained(
    made: Made, kept: str, caplog: pytest.LogCaptureFixture
) -> None:
    trainer, finish = made(kept, "quant=int8", "quant.passthrough_numel=1000000")  # nothing is rounded
    trainer.train()
    trained = trainer.parts.model
    with caplog.at_level(logging.WARNING, logger="golf"):
        finish.run({})
    figures = scored(finish)
    model = trainer.parts.fresh()
    read_artifact(trainer.parts.folder.artifact, model)
    trainer.adopt(model)
    assert trainer.evaluate(trainer.parts.evaluator).val_bpb == figures["quantized"]
    assert trainer.parts.model is not trained
    left_out = kept not in ("buffer", "declared", "counter", "drawn")
    assert (figures["quantized"] != pytest.approx(figures["stop"], abs=1e-3)) is left_out
    told = [record.getMessage() for record in caplog.records if "not in the artifact" in record.getMessage()]
    assert len(told) == left_out
    assert all("at_pre_head.gathers.gain" in line for line in told)


@pytest.mark.parametrize(("kept", "told"), [("late", "was not there"), ("grows", r"another shape, \[32\]")])
@pytest.mark.parametrize("warmed", [False, True])
def test_state_that_no_artifact_could_give_back_ends_the_first_step(
    made: Made, kept: str, told: str, warmed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, _ = made(kept, "schedule.warmup_steps=2")
    if warmed:
        monkeypatch.setattr(Trainer, "compiled", property(lambda self: True))
    with pytest.raises(GolfError, match=r"at_pre_head.gathers.gain: this state (was|has) .*first step") as caught:
        trainer.train()
    assert re.search(told, str(caught.value))
    assert trainer.step == 1


@pytest.mark.parametrize("kept", STATE)
def test_a_warm_up_leaves_no_mark_on_what_is_gathered(made: Made, kept: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, _ = made(kept, "schedule.warmup_steps=3")
    monkeypatch.setattr(Trainer, "compiled", property(lambda self: True))
    before = {name: str(value) for name, value in beside_state(trainer.parts.model).items()}
    weights = {name: tensor.clone() for name, tensor in trainer.parts.model.state_dict().items()}
    trainer.warm_up()
    assert {name: str(value) for name, value in beside_state(trainer.parts.model).items()} == before
    after = trainer.parts.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize("words", [["averaging=ema", "averaging.decay=1e-9"], ["averaging=swa"]])
def test_averages_know_what_was_gathered(made: Made, words: list[str]) -> None:
    trainer, finish = made("buffer", *words)
    if words == ["averaging=swa"]:
        trainer.parts.averaging.every, trainer.parts.averaging.start_multiplier = 3, 2.0  # type: ignore[attr-defined]
    trainer.train()
    gathered = trainer.parts.model.state_dict()["at_pre_head.gathers.gain"].clone()
    finish.run({})
    read = trainer.parts.model.state_dict()["at_pre_head.gathers.gain"]
    expected = gathered if "averaging=ema" in words else gathered - 0.3  # SWA: the mean of steps 3 and 6
    torch.testing.assert_close(read, expected, rtol=1e-5, atol=1e-5)
