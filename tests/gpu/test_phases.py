"""Phases compiled on a GPU: a switch compiles nothing, and the run is the one that is not compiled."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from golf.cli.main import main
from golf.common.clock import Clocks
from golf.common.progress import Progress
from golf.common.ranks import Ranks
from golf.launch.compose import build
from golf.launch.compose.configs import compose_job, composer, resolved
from golf.launch.compose.own_modules import use_code
from golf.runs.folder import RunFolder
from golf.train.hooks import Hook
from golf.train.trainer import Trainer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
OUTSIDE = Path(__file__).parents[1] / "outside"
CASES: dict[str, dict[str, Any]] = yaml.safe_load((OUTSIDE / "cases.yaml").read_text())
SMALL = (
    "recipe=naive_baseline", "tokenizer=byte260", "model.model_dim=256", "model.num_layers=4", "model.num_heads=4",
    "model.num_kv_heads=2", "train_seq_len=256", "train_batch_tokens=16384", "schedule.iterations=16",
    "schedule.clock=steps", "schedule.warmup_steps=2", "logger=jsonl", "data=text", "data.val_docs=8", "log_every=1",
    "val_tokens=4097", "eval=contiguous", "seed=7",
)  # fmt: skip
PHASES = (
    "phases=[{from: 0.25, set: {model.plan: loop, model.plan.first: 1, model.plan.last: 2}}, "
    "{from: 0.5, set: {train_seq_len: 512, train_batch_tokens: 32768}}, "
    "{from: 0.75, set: {qat: int6, technique/xsa: all}}]"
)


class Graphs(Hook):
    """How many graphs had been compiled before each step."""

    def __init__(self) -> None:
        self.before: list[int] = []

    def before_step(self, progress: Progress) -> None:
        self.before.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Four thousand documents of a few words."""
    rng, path = random.Random(3), tmp_path / "corpus.jsonl"
    words = ["the", "quick", "model", "reads", "a", "byte", "and", "predicts", "another"]
    texts = (" ".join(rng.choice(words) for _ in range(rng.randint(40, 200))) for _ in range(4000))
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    monkeypatch.setenv("GOLF_CACHE", str(tmp_path / "cache"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield path
    use_code([])


@pytest.fixture
def run(corpus: Path, tmp_path: Path) -> Callable[..., tuple[list[float], Graphs]]:
    """Train, and give the losses and the graphs."""

    def train(*words: str) -> tuple[list[float], Graphs]:
        with composer():
            config = resolved(compose_job([*SMALL, f"data.paths=[{corpus}]", *words]))
        build.check(config)
        runtime, graphs, losses = build.make(config["runtime"], "runtime"), Graphs(), list[float]()
        prepared = build.prepare_data(config, Ranks())
        parts = build.build(config, Ranks(), runtime, RunFolder(tmp_path / "run"), prepared)
        parts.callbacks = [graphs]
        report = lambda row, step: losses.append(row["train_loss"]) if "train_loss" in row else None  # noqa: E731
        Trainer(parts, Clocks(), report).train()
        return losses, graphs

    return train


@pytest.mark.parametrize("loader", ["spans", "packed"])
@pytest.mark.parametrize("graphs", ["true", "false"])
def test_a_switch_of_phases_compiles_nothing(
    run: Callable[..., tuple[list[float], Graphs]], graphs: str, loader: str
) -> None:
    losses, seen = run(PHASES, f"runtime.cuda_graphs={graphs}", f"loader={loader}")
    assert len(set(seen.before)) == 1
    assert seen.before[0] >= 4
    eager, _ = run(PHASES, "runtime.compile=none", "runtime.kernels=reference", f"loader={loader}")
    assert losses == pytest.approx(eager, rel=2e-2)


@pytest.mark.parametrize(
    "words", [(), ("model/numerics=fp32_embed", "quant=int6_gptq"), ("model/head=untied",)], ids=["", "k", "untied"]
)
def test_rounding_as_the_quantizer_does_begins_without_compiling(
    run: Callable[..., tuple[list[float], Graphs]], words: tuple[str, ...]
) -> None:
    words += ("val_every=5", "quant.bits={default: 3, embed: 4}", "phases=[{from: 0.5, set: {qat: quant}}]")
    losses, seen = run(*words)
    plain, _ = run(*words, "phases=[]")
    eager, _ = run(*words, "runtime.compile=none", "runtime.kernels=reference")
    assert len(set(seen.before)) == 1
    assert losses == pytest.approx(eager, rel=2e-2)
    assert losses[:8] == pytest.approx(plain[:8], rel=2e-2)
    assert abs(losses[8] - plain[8]) > 1e-2


@pytest.mark.parametrize("name", CASES)
def test_an_idea_from_outside_trains_compiled(
    name: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, folder = CASES[name], tmp_path / "run"
    monkeypatch.setattr("sys.argv", ["golf"])
    given = {word.partition("=")[0] for word in case["words"]}
    own = [word for word in (*SMALL, "budget=smoke") if word.partition("=")[0] not in given]
    words = [*own, *case["words"], f"data.paths=[{corpus}]", f"hydra.run.dir={folder}", "runtime=cuda"]
    assert main(["train", "--config-dir", str(OUTSIDE / name), *words]) == 0
    result = json.loads((folder / "result.json").read_text())
    assert result["valid"], result["violations"]
    assert result["numerics"]["compile"] == "model"
