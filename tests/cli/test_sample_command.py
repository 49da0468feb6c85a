from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from golf.cli.sample import draw


def test_a_seed_repeats_and_another_differs(golf_command: Any, trained: Path) -> None:
    words = ("sample", f"run={trained}", "prompt=the model", "tokens=40", "temperature=1.0")
    first, again, other = (golf_command(*words, f"seed={seed}").out for seed in (1, 1, 2))
    assert first == again != other
    assert first.startswith("the model")


def test_it_writes_beyond_the_window(golf_command: Any, trained: Path) -> None:
    done = golf_command("sample", f"run={trained}", f"prompt={'a byte ' * 30}", "tokens=20", "temperature=0")
    assert done.code == 0, done.err
    assert len(done.out) > 7 * 30  # the window is 128 bytes


def test_texts_of_a_batch_are_those_of_their_seeds(golf_command: Any, trained: Path) -> None:
    words = ("sample", f"run={trained}", "prompt=a", "tokens=10")
    both = golf_command(*words, "n=2", "seed=5").out
    assert golf_command(*words, "seed=6").out.strip() in both.split("(seed 6)")[1]


@pytest.mark.parametrize("prompt", ["def f(x={1: [2]}, *a): # ~+$ ü", "log(1,2)", "int(a, b)"])
def test_a_prompt_may_hold_anything(prompt: str, golf_command: Any, trained: Path) -> None:
    done = golf_command("sample", f"run={trained}", f"prompt={prompt}", "tokens=1")
    assert done.out.startswith(prompt)


def test_the_raw_weights_can_write_too(golf_command: Any, trained: Path) -> None:
    assert golf_command("sample", f"run={trained}", "weights=averaged", "tokens=3").code == 0


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["tokens=0"], "tokens=0: must be at least 1"),
        (["tokens=many"], "expected int"),
        (["temperature=-1"], "temperature=-1.0"),
        (["temperature=nan"], "temperature=nan"),
        (["top_k=0"], "top_k=0"),
        (["promt=x"], "did you mean 'prompt'"),
        (["-m"], "--multirun"),
    ],
)
def test_a_mistake_on_the_line(golf_command: Any, trained: Path, words: list[str], part: str) -> None:
    done = golf_command("sample", f"run={trained}", *words)
    assert done.code == 2
    assert part in done.err


def test_top_k_draws_from_the_likeliest_alone() -> None:
    logits = torch.tensor([0.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    drawn = {int(draw(logits, 5.0, 2, generator)) for _ in range(100)}
    assert drawn == {1, 2}


def test_drawing_follows_the_softmax() -> None:
    logits = torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    counts = torch.bincount(torch.stack([draw(logits, 0.7, None, generator) for _ in range(4000)]), minlength=3)
    assert torch.allclose(counts / 4000.0, (logits / 0.7).softmax(0).float(), atol=0.03)


@pytest.fixture
def without_data(golf_command: Any, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A run of one step whose text and shards are gone since."""

    def train(*words: str) -> Path:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["golf"])
        text = Path(shutil.copy(workplace / "corpus.jsonl", tmp_path / "text.jsonl"))
        done = golf_command(
            "train", "budget=smoke", "schedule.iterations=1", "val_tokens=512", "logger=jsonl", "model.num_layers=1",
            "runtime.threads=1", "data=text", "data.val_docs=8", f"data.paths=[{text}]", "hydra.run.dir=r", *words,
        )  # fmt: skip
        assert done.code == 0, done.out + done.err
        text.unlink()
        return tmp_path / "r"

    return train


@pytest.mark.parametrize("words", [["tokenizer=byte260"], ["tokenizer=sp1024", "tokenizer.vocab_size=300"]])
def test_it_needs_the_tokenizer_alone(golf_command: Any, without_data: Any, words: list[str]) -> None:
    done = golf_command("sample", f"run={without_data(*words)}", "prompt=the", "tokens=3")
    assert done.code == 0, done.err
    assert done.out.startswith("the")


def test_a_tokenizer_that_is_gone_too_asks_for_its_text(
    golf_command: Any, without_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = without_data("tokenizer=sp1024", "tokenizer.vocab_size=300")
    monkeypatch.setenv("GOLF_CACHE", str(tmp_path / "another"))
    done = golf_command("sample", f"run={run}", "tokens=3")
    assert done.code == 1
    assert "text.jsonl" in done.err
