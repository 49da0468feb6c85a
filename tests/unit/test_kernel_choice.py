"""Fused kernels where none can serve: the model stays as it is, says so, and Triton is never asked for."""

from __future__ import annotations

import functools
import importlib.machinery
import subprocess
import sys
import types
from pathlib import Path
from typing import Literal, get_args

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from golf.common import log
from golf.common.ranks import Ranks
from golf.data.random_tokens import random_prepared
from golf.launch.compose.build import build, build_model, make
from golf.launch.compose.configs import compose_job, composer, options, resolved
from golf.nn import attend, kernels
from golf.nn.attend import FLASH_TAKES, Attend, sdpa
from golf.nn.models.gpt import GPT, Reduction
from golf.nn.techniques.base import Site, Technique
from golf.nn.techniques.xsa import XSA
from golf.runs.folder import RunFolder

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
    assert model.loss is None
    assert all(block.attn.heads == block.attn.project for block in model.layers())
    assert all(block.attn.heads_out == block.attn.unfused_out for block in model.layers())
    assert all(block.mlp.whole == block.mlp.unfused for block in model.layers())
    assert torch.equal(model(ids), before)


def test_the_model_says_what_serves_each_op() -> None:
    model = built("technique/xsa=all")
    assert model.kernels() == {"attention": "sdpa"}
    kernels.install(model)
    assert model.kernels() == {"attention": "sdpa", **dict.fromkeys(COVERED, "torch")}


def test_the_quickest_attention_of_a_cpu_is_torchs_own() -> None:
    model = built("model.attention.backend=auto")
    assert model.kernels() == {"attention": "auto"}
    assert kernels.install(model) == []
    assert model.kernels()["attention"] == "sdpa"


def test_a_model_is_told_nothing_of_a_kernel_whose_ops_it_lacks() -> None:
    model = built()
    kernels.install(model)
    assert "xsa" not in model.kernels()


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


@pytest.mark.parametrize("reduction", get_args(Reduction))
def test_what_stands_for_the_loss_is_asked_for_the_scored_positions(reduction: Reduction) -> None:
    model, asked = built("model/head=untied"), []

    def loss(h: torch.Tensor, embedding: torch.Tensor, targets: torch.Tensor, how: Reduction) -> torch.Tensor:
        asked.append(tuple(targets.shape))
        return F.cross_entropy(model.head(h, embedding).flatten(0, 1), targets.flatten(), reduction=how)

    ids = torch.arange(34).view(2, 17)
    given = ((ids[:, :-1], ids[:, 1:]), (ids[:, :-1], ids[:, -4:]))
    wants = [model(*one, reduction=reduction) for one in given]
    logits = model(ids[:, :-1])
    model.loss = loss
    assert torch.equal(model(ids[:, :-1]), logits)
    assert all(torch.equal(model(*one, reduction=reduction), want) for one, want in zip(given, wants, strict=True))
    assert asked == [(2, 16), (2, 4)]
    model.fused.append((kernels.LOSS, model))
    with kernels.aside(model):
        assert model.loss is None
    assert model.loss is loss


REFUSED = {
    "heads": {
        "model.num_heads=1": None,
        "model.num_heads=8": "heads of 8 features",
        "model.attention.qk_norm=false": "qk_norm",
        "model/position=nope": None,
    },
    "stream": {
        "model/residual=plain": None,
        "model/residual=unet_gated": None,
        "model/residual=two_lane": None,
        "model.model_dim=4096": "model.model_dim=4096",
    },
    "mlp": {
        "model.mlp.negative_slope=0.5": None,
        "model/mlp=swiglu": "MLP GatedMLP",
        "model.mlp_mult=1": None,
        "model.mlp_mult=1.03125": "no multiple of 8",  # 66 features
    },
    "loss": {
        "model/head=untied": None,
        "model.head.softcap=null": None,
        "model/head=asymmetric": "head AsymmetricHead",
    },
}


@pytest.mark.parametrize(("name", "word"), [(name, word) for name, words in REFUSED.items() for word in words])
def test_a_kernel_names_what_it_cannot_do(name: str, word: str) -> None:
    (kernel,) = [kernel for kernel in kernels.KERNELS if kernel.name == name]
    with composer(), torch.device("meta"):
        model = build_model(resolved(compose_job([*SIZES, "model.num_kv_heads=1", "logger=jsonl", word])), "float32")
    told, expected = kernel.why_not(model), REFUSED[name][word]
    assert told is None if expected is None else expected in str(told)


@pytest.mark.parametrize(
    ("name", "site"), [("stream", "block_out"), ("mlp", "mlp_hidden"), ("loss", "logits"), ("xsa", "heads_out")]
)
def test_a_kernel_gives_way_to_a_technique_within_what_it_covers(name: str, site: Site) -> None:
    """In one layer alone where it can, and it keeps no other kernel away."""

    class Within(Technique):
        pass

    Within.site = site
    with composer(), torch.device("meta"):
        whole = make(resolved(compose_job([*SIZES, "logger=jsonl"]))["model"], "model")
        layers: dict[str, list[int]] = {} if site == "logits" else {"layers": [1]}
        model = whole(techniques={"xsa": functools.partial(XSA), "within": functools.partial(Within, **layers)})
    told = {kernel.name: kernel.why_not(model) for kernel in kernels.KERNELS}
    assert f"technique at {site}" in str(told.pop(name))
    assert set(told.values()) == {None}


def test_one_kernel_stands_for_xsa_and_the_gate_right_behind_it() -> None:
    (kernel,) = [kernel for kernel in kernels.KERNELS if kernel.name == "xsa"]
    words = ("technique/xsa=all", "technique.xsa.layers=last:2", "technique/attn_gate=sparse")
    model = built(*words, "model.num_layers=3")
    assert kernel.why_not(model) is None
    assert kernel.hosts(model) == [block.attn for block in model.layers()[1:]]
    assert kernel.hosts(built("technique/attn_gate=sparse")) == []  # a gate alone is the compiler's


# -------------------------------------------------------------------------------------------------- on a GPU, imagined


HOPPER = (9, 0)
UNKNOWN = ("model.model_dim=4096", "model/head=asymmetric")
"""What kernels other than the MLP's refuse."""


def on_a_card(compute: Literal["float32", "bfloat16"], *words: str, xsa: str = "all") -> GPT:
    """A model whose tensors say that they are on a GPU, and hold nothing; with all that kernels stand for."""
    with composer(), FakeTensorMode(), torch.device("cuda"):
        return build_model(resolved(compose_job([*SIZES, "logger=jsonl", f"technique/xsa={xsa}", *words])), compute)


def install(
    model: GPT, capability: tuple[int, int] = HOPPER, mode: kernels.Mode = "auto", triton: bool = True
) -> list[str]:
    """Install on a GPU of such a capability. Triton seems to be there: only now, as torch too asks for it, once."""
    seeming = types.ModuleType("triton")
    seeming.__spec__ = importlib.machinery.ModuleSpec("triton", None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "triton", seeming if triton else None)
        patch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        return kernels.install(model, mode)


def refusals(reason: str) -> list[str]:
    return [f"kernel {kernel.name} cannot serve here ({reason}): its ops run unfused" for kernel in kernels.KERNELS]


def test_a_card_before_ampere_gets_no_kernel() -> None:
    least = {kernel.name: ".".join(map(str, kernel.least)) for kernel in kernels.KERNELS}
    assert install(on_a_card("bfloat16"), (7, 5)) == [
        f"kernel {name} cannot serve here (the GPU is older than compute capability {needed}): its ops run unfused"
        for name, needed in least.items()
    ]


def test_a_kernel_says_that_it_needs_a_newer_card_than_others() -> None:
    """On an A100 the MLP's kernel is refused for the card; the others, here, for what the model is."""
    lines = install(on_a_card("bfloat16", *UNKNOWN, xsa="none"), (8, 0))
    assert ["older" in line for line in lines] == [False, False, True, False]
    assert lines[2].startswith("kernel mlp cannot serve here (the GPU is older than compute capability 9.0)")


def test_a_kernel_says_that_a_card_has_too_little_shared_memory() -> None:
    lines = install(on_a_card("bfloat16", *UNKNOWN, xsa="none"), (12, 0))
    assert "kernel mlp cannot serve here (compute capability 12.0 has too little shared memory a block)" in lines[2]


def test_no_kernel_computes_in_float32() -> None:
    assert install(on_a_card("float32")) == refusals("compute in float32")


def test_no_kernel_serves_a_float32_stream() -> None:
    model = on_a_card("bfloat16", "model.numerics.stream=float32")
    assert install(model) == refusals("model.numerics.stream=float32")


def test_a_card_without_triton_says_so() -> None:
    assert install(on_a_card("bfloat16"), triton=False) == refusals("triton is not installed")


def test_what_is_refused_on_a_card_is_torchs_own() -> None:
    model = on_a_card("float32")
    install(model)
    assert model.kernels() == {"attention": "sdpa", **dict.fromkeys(COVERED, "torch")}


def test_ops_that_are_to_stay_as_they_are_need_no_excuse() -> None:
    assert install(on_a_card("bfloat16"), mode="reference") == []


FLASH = {
    ((8, 6), torch.bfloat16, 64): "the GPU is older than compute capability 9.0",
    (HOPPER, torch.float32, 64): FLASH_TAKES,
    (HOPPER, torch.bfloat16, 36): FLASH_TAKES,
    (HOPPER, torch.bfloat16, 264): FLASH_TAKES,
    (HOPPER, torch.bfloat16, 256): None,
    ((10, 0), torch.bfloat16, 64): None,
}


@pytest.mark.parametrize(("capability", "dtype", "head_dim"), FLASH)
def test_an_attention_names_what_it_cannot_do(
    capability: tuple[int, int], dtype: torch.dtype, head_dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    fast = Attend("fast", sdpa, least=HOPPER)
    assert fast.why_not(torch.device("cuda"), dtype, head_dim) == FLASH[capability, dtype, head_dim]


def test_an_attention_that_is_refused_at_its_first_call_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: HOPPER)
    picky = Attend("picky", sdpa, least=HOPPER, tried=lambda device, head_dim: f"no heads of {head_dim}")
    assert picky.why_not(torch.device("cuda"), torch.bfloat16, 24) == "no heads of 24"
    assert picky.why_not(torch.device("cuda"), torch.float32, 24) == FLASH_TAKES


def test_torchs_own_attention_serves_any_card() -> None:
    assert attend.SDPA.why_not(torch.device("cuda"), torch.float32, 12) is None


@pytest.mark.parametrize(("capability", "serves"), [((8, 0), "sdpa"), (HOPPER, "fast")])
def test_an_attention_gives_way_on_a_card_that_is_too_old(
    capability: tuple[int, int], serves: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(attend.BACKENDS, "sdpa", lambda: Attend("fast", sdpa, least=HOPPER))
    model = on_a_card("bfloat16")
    told = "attention fast cannot serve here (the GPU is older than compute capability 9.0): torch's own runs"
    assert install(model, capability, "reference") == ([told] if serves == "sdpa" else [])
    assert model.kernels()["attention"] == serves


# ------------------------------------------------------------------------------------------------------ where it's told


def test_the_log_of_a_run_says_what_gave_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(attend.BACKENDS, "sdpa", lambda: Attend("fast", sdpa, least=(9, 0)))
    words = (*SIZES, "eval=contiguous", "train_batch_tokens=128", "runtime=cpu", "logger=jsonl")
    with composer():
        config = resolved(compose_job(words))
    runtime, prepared = make(config["runtime"], "runtime"), random_prepared(260, 1_000, tmp_path)
    with log.setup(0, tmp_path / "train.log", console=False):
        build(config, Ranks(), runtime, RunFolder(tmp_path), prepared).loader.close()
    told = (tmp_path / "train.log").read_text(encoding="utf-8")
    assert told.count("attention fast cannot serve here (no CUDA device): torch's own runs") == 1


def test_without_triton_nothing_imports_it(tmp_path: Path) -> None:
    """In a process of its own, where `import triton` fails whether it is installed or not."""
    program = """
import sys
sys.modules["triton"] = None
from golf.launch.compose.build import build_model
from golf.launch.compose.configs import compose_job, composer, resolved
from golf.nn import kernels
from golf.nn.attend import Attend, sdpa
with composer():
    config = resolved(compose_job(["tokenizer=byte260", "model.num_layers=2", "logger=jsonl"]))
assert kernels.install(build_model(config, "float32")) == []
assert kernels.cases() == []
import golf.launch.work.bench, golf.launch.work.loaded, golf.launch.work.worker, golf.train.reference
print(sorted(name for name in sys.modules if name.startswith("golf.nn.kernels.")))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
