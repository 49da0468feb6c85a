"""Fused kernels where none can serve: the model stays as it is, says so, and Triton is never asked for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch

from golf.launch.build import build_model
from golf.launch.compose import compose_job, composer, options, resolved
from golf.nn import kernels
from golf.nn.attend import Attend, sdpa
from golf.nn.models.gpt import GPT

RECIPES = [option for option in options("recipe") if option != "none"]
SIZES = ["model.model_dim=64", "model.num_heads=4", "model.num_kv_heads=2", "train_seq_len=16", "tokenizer=byte260"]
COVERED = [op for kernel in kernels.KERNELS for op in kernel.covers]


def built(*words: str) -> GPT:
    with composer():
        model = build_model(resolved(compose_job([*SIZES, "logger=jsonl", *words])), "float32")
    model.initialize(1)
    return model


@pytest.mark.parametrize("mode", get_args(kernels.Mode))
@pytest.mark.parametrize("recipe", RECIPES)
def test_on_a_cpu_the_model_stays_as_it_is(recipe: str, mode: kernels.Mode) -> None:
    model = built(f"recipe={recipe}")
    ids = torch.arange(32).view(2, 16)
    before = model(ids)
    assert kernels.install(model, mode) == []  # nothing went missing that could have been there
    assert model.stream is None
    assert all(block.attn.heads == block.attn.project for block in model.layers())
    assert all(block.mlp.whole == block.mlp.unfused for block in model.layers())
    assert torch.equal(model(ids), before)


def test_the_model_says_what_serves_each_op() -> None:
    model = built()
    assert model.kernels() == {"attention": "sdpa"}
    kernels.install(model)
    assert model.kernels() == {"attention": "sdpa", **dict.fromkeys(COVERED, "torch")}


def test_an_attention_that_cannot_run_here_gives_way_to_torchs_own() -> None:
    model = built()
    for block in model.layers():
        block.attn.attend = Attend("fast", sdpa, least=(9, 0))
    assert kernels.install(model, "reference") == [
        "attention fast cannot serve here (no CUDA device): torch's own runs"
    ]
    assert model.kernels()["attention"] == "sdpa"


def test_no_op_is_covered_twice() -> None:
    assert len(COVERED) == len(set(COVERED))


REFUSED = {
    "heads": {
        "model.num_heads=1": None,
        "model.num_heads=8": "heads of 8 features",
        "model.attention.qk_norm=false": "qk_norm",
        "model/position=nope": None,
    },
    "stream": {
        "model/residual=plain": None,
        "model.model_dim=4096": "model.model_dim=4096",
    },
    "mlp": {
        "model.mlp.negative_slope=0.5": None,
        "model/mlp=swiglu": "MLP GatedMLP",
        "model.mlp_mult=1": None,
    },
}


@pytest.mark.parametrize(("name", "word"), [(name, word) for name, words in REFUSED.items() for word in words])
def test_a_kernel_names_what_it_cannot_do(name: str, word: str) -> None:
    (kernel,) = [kernel for kernel in kernels.KERNELS if kernel.name == name]
    with composer(), torch.device("meta"):
        model = build_model(resolved(compose_job([*SIZES, "model.num_kv_heads=1", "logger=jsonl", word])), "float32")
    told, expected = kernel.why_not(model), REFUSED[name][word]
    assert told is None if expected is None else expected in str(told)


def test_without_triton_nothing_imports_it(tmp_path: Path) -> None:
    """In a process of its own, where `import triton` fails whether it is installed or not."""
    program = """
import sys
sys.modules["triton"] = None
from golf.launch.build import build_model
from golf.launch.compose import compose_job, composer, resolved
from golf.nn import kernels
from golf.nn.attend import Attend, sdpa
with composer():
    config = resolved(compose_job(["tokenizer=byte260", "model.num_layers=2", "logger=jsonl"]))
assert kernels.install(build_model(config, "float32")) == []
assert kernels.cases() == []
import golf.launch.bench, golf.launch.loaded, golf.launch.worker, golf.train.reference
print(sorted(name for name in sys.modules if name.startswith("golf.nn.kernels.")))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
