"""What only a CUDA device can show: the bf16 contract, compiled against eager, the loader's copies, a whole run."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from golf.common.ranks import Ranks
from golf.common.runtime import Arriving
from golf.evals.evaluators import Evaluator, Validation
from golf.launch.compose import build
from golf.launch.compose.configs import compose_job, composer, resolved
from golf.nn import kernels
from golf.nn.attend import packed, preferred_sdpa_kernels, sdpa
from golf.nn.context import Documents
from golf.nn.linear import EffectiveWeights
from golf.nn.models.gpt import GPT
from golf.quant.grid import Grid
from golf.quant.rounding import FakeQuantizer
from golf.tokenizers.byte260 import Byte260
from golf.train import compiling

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
SMALL = ("model.model_dim=256", "model.num_layers=3", "train_seq_len=256", "tokenizer=byte260")
Batch = tuple[torch.Tensor, torch.Tensor]
RECIPES = ["naive_baseline", "seq4096", "sp2048_normuon_int6", "gradquant_11l"]


def model_of(recipe: str, compute: str, *overrides: str) -> GPT:
    extra = ["technique.xsa.layers=all"] if recipe == "gradquant_11l" else []
    with composer():
        config = resolved(compose_job([f"recipe={recipe}", *SMALL, *extra, *overrides]))
    model = build.build_model(config, compute)
    model.initialize(1337)
    with torch.no_grad():  # projections that start at zero would hide most of the model
        generator = torch.Generator().manual_seed(7)
        for name, parameter in model.named_parameters():
            if name.endswith("weight"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[1] ** 0.5)
    return model.cuda()


@pytest.fixture
def batch() -> Batch:
    ids = torch.randint(4, 260, (8, 257), generator=torch.Generator().manual_seed(1)).cuda()
    return ids[:, :-1], ids[:, 1:]


def loss_and_gradients(
    model: GPT, run: Any, batch: tuple[torch.Tensor, torch.Tensor]
) -> tuple[float, dict[str, torch.Tensor]]:
    weights = EffectiveWeights(model)
    weights.refresh()
    model.zero_grad()
    with preferred_sdpa_kernels(torch.device("cuda")):
        loss = run(*batch)
        loss.backward()
    weights.collect_gradients()
    return float(loss), {n: p.grad.float().clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("recipe", "words"), [*((recipe, ()) for recipe in RECIPES), ("naive_baseline", ("model/numerics=fp32_embed",))]
)
@pytest.mark.parametrize("recorded", [False, True])
def test_compiled_equals_eager_to_bf16_rounding(
    recipe: str, words: tuple[str, ...], recorded: bool, batch: Batch
) -> None:
    model = model_of(recipe, "bfloat16", *words)
    eager, eager_grads = loss_and_gradients(model, model, batch)
    run = compiling.compiled(model, "model", as_graphs=recorded)
    for _ in range(3 if recorded else 1):  # compiled by the first, recorded by the second
        torch.compiler.cudagraph_mark_step_begin()
        compiled, compiled_grads = loss_and_gradients(model, run, batch)
    assert compiled == pytest.approx(eager, rel=2e-3)
    for name, grad in eager_grads.items():
        assert (compiled_grads[name] - grad).norm() <= 0.06 * grad.norm() + 1e-6, name


@pytest.mark.parametrize("recipe", RECIPES)
def test_bf16_follows_fp32(recipe: str, batch: Batch) -> None:
    low, _ = loss_and_gradients(*(2 * [model_of(recipe, "bfloat16")]), batch)
    high, _ = loss_and_gradients(*(2 * [model_of(recipe, "float32")]), batch)
    assert low == pytest.approx(high, rel=1e-2)


@pytest.mark.parametrize("recipe", RECIPES)
def test_fp32_on_the_gpu_equals_the_cpu(recipe: str, batch: Batch) -> None:
    model = model_of(recipe, "float32")
    gpu, _ = loss_and_gradients(model, model, batch)
    cpu = float(model.cpu()(*(t.cpu() for t in batch)))
    assert gpu == pytest.approx(cpu, rel=1e-4)


def test_the_preferred_attention_kernel_runs_and_is_right() -> None:
    q, k, v = (torch.randn(2, 512, heads, 64, device="cuda", dtype=torch.bfloat16) for heads in (8, 4, 4))
    with preferred_sdpa_kernels(q.device):
        fast = sdpa(q, k, v)
    assert (fast.float() - sdpa(q.double(), k.double(), v.double()).float()).abs().max() < 0.03


def ran(work: Callable[[], Any]) -> list[str]:
    """The names of the kernels that the device ran for it."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize()
    return [row.key for row in profiler.key_averages() if row.device_type.name == "CUDA"]


@pytest.mark.parametrize("kv_heads", [8, 4])
def test_on_hopper_the_preferred_attention_is_cudnns(kv_heads: int) -> None:
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("cuDNN's attention comes first on compute capability 9 alone")
    q, k, v = (
        torch.randn(2, 512, heads, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for heads in (8, kv_heads, kv_heads)
    )
    with preferred_sdpa_kernels(q.device):
        out = sdpa(q, k, v)
        grad = torch.randn_like(out)
        for names in (ran(lambda: sdpa(q, k, v)), ran(lambda: out.backward(grad))):
            assert any("cudnn" in name.lower() for name in names), names


@pytest.mark.parametrize("heads", [(8, 4), (8, 8)])
@pytest.mark.parametrize("asked", [1, 64, 300, 511])
def test_fewer_queries_than_keys_on_the_gpu(heads: tuple[int, int], asked: int) -> None:
    q, k, v = (torch.randn(2, 512, n, 64, device="cuda") for n in (heads[0], heads[1], heads[1]))
    exact = sdpa(q.double(), k.double(), v.double())[:, -asked:].float()
    assert (sdpa(q[:, -asked:], k, v) - exact).abs().max() < 1e-3
    low = [t.bfloat16() for t in (q[:, -asked:], k, v)]
    compiled = torch.compile(sdpa, fullgraph=True, dynamic=False)
    with preferred_sdpa_kernels(q.device):
        for run in (sdpa, compiled):
            assert (run(*low).float() - exact).abs().max() < 0.03


@pytest.mark.parametrize("kv_heads", [8, 4])
def test_the_kernel_for_packed_documents_equals_its_masked_twin(kv_heads: int) -> None:
    q, k, v = (torch.randn(1, 600, n, 64, device="cuda").bfloat16() for n in (8, kv_heads, kv_heads))
    borders = torch.tensor([0, 1, 130, 387, 600, 600, 600], dtype=torch.int32)
    twin = packed(*(t.float().cpu() for t in (q, k, v)), Documents.of(borders, 600, 300))

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, borders: torch.Tensor) -> torch.Tensor:
        return packed(q, k, v, Documents.of(borders, 600, 300))

    for form in (run, torch.compile(run, fullgraph=True, dynamic=False)):
        assert (form(q, k, v, borders.cuda()).float().cpu() - twin).abs().max() < 0.03


@pytest.mark.parametrize("recipe", RECIPES)
def test_packed_documents_score_like_padded_ones(recipe: str) -> None:
    model = model_of(recipe, "bfloat16").eval()
    assert model.cannot_pack is None
    tokens = torch.randint(4, 260, (9001,), generator=torch.Generator().manual_seed(3)).cuda()
    tokens[torch.randint(0, 9001, (60,), generator=torch.Generator().manual_seed(4))] = 1
    validation = Validation(tokens, Byte260().byte_table(), bos_id=1)
    run = torch.compile(model, fullgraph=True, dynamic=False)
    padded, together = (
        Evaluator(256, 64, "full", 2048, documents=True, packed=packed).score(model, run, validation, Ranks(), True)
        for packed in (False, True)
    )
    assert (together.targets, together.bytes) == (padded.targets, padded.bytes)
    assert together.val_loss == pytest.approx(padded.val_loss, rel=2e-3)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(("compute", "within"), [("float32", 2e-5), ("bfloat16", 0.05)])
def test_pruned_forwards_score_alike(recipe: str, compute: str, within: float, batch: Batch) -> None:
    model = model_of(recipe, compute).eval()
    run = torch.compile(model, fullgraph=True, dynamic=False)
    with torch.no_grad(), preferred_sdpa_kernels(torch.device("cuda")):
        whole = model(*batch, reduction="none")
        for score_from in (64, 192, 255):
            pruned = run(*batch, reduction="none", score_from=score_from)
            assert (pruned - whole[:, score_from:]).abs().mean() < within


def test_training_tables_match_the_documented_bf16_rounding() -> None:
    rope = model_of(
        "naive_baseline", "bfloat16", "train_seq_len=4096", "model.num_heads=4", "model.num_kv_heads=2"
    ).position
    frequency = torch.tensor(0.75).bfloat16().float()  # 10000^(−2/64), rounded
    for position in (257, 1023, 4095):
        expected = torch.cos(position * frequency).bfloat16()
        assert rope.cos[position, 1].cpu() == expected


def test_compiled_sliding_evaluation_equals_eager(batch: Batch) -> None:
    model = model_of("naive_baseline", "float32").eval()
    tokens = torch.randint(4, 260, (4099,), generator=torch.Generator().manual_seed(2)).cuda()
    validation = Validation(tokens, Byte260().byte_table())
    evaluator = Evaluator(seq_len=256, stride=64, batch_tokens=4096)
    eager = evaluator.evaluate(model, validation, Ranks())
    compiled = evaluator.evaluate(
        torch.compile(model, fullgraph=True, dynamic=False), validation, Ranks(), fixed_shapes=True, compiles=True
    )
    assert compiled.val_bpb == pytest.approx(eager.val_bpb, rel=1e-5)
    assert (compiled.targets, compiled.bytes) == (eager.targets, eager.bytes)


def train(directory: Path, *words: str) -> dict[str, Any]:
    rng = random.Random(0)
    corpus = directory / "corpus.jsonl"
    if not corpus.exists():
        words_of = ["golf", "putt", "drive", "green", "bunker", "fairway"]
        texts = (" ".join(rng.choice(words_of) for _ in range(200)) for _ in range(300))
        corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    name = str(len(list(directory.iterdir())))
    command = [
        sys.executable, "-m", "golf.cli.main", "train", "budget=smoke", "recipe=quickstart", "data=text",
        "data.val_docs=20",
        f"data.paths=[{corpus}]", "logger=jsonl", "val_tokens=8193", f"hydra.run.dir={directory}/{name}", *words,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((directory / name / "result.json").read_text())


def test_the_host_goes_on_while_a_tensor_is_on_its_way() -> None:
    square = torch.eye(8192, device="cuda")
    done = torch.cuda.Event()
    result = square
    for _ in range(20):
        result = result @ square
    coming = Arriving(result.sum())
    done.record()
    assert not done.query()
    assert float(coming.wait()) == 8192.0
    torch.cuda.synchronize()


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The record of one run, made as a user makes it, with all that kernels stand for."""
    return train(tmp_path_factory.mktemp("whole"), "runtime=cuda", "technique/xsa=all")


def test_a_whole_run_on_the_gpu(whole_run: dict[str, Any]) -> None:
    assert whole_run["valid"]
    assert whole_run["numerics"]["compute"] == "bfloat16"
    assert whole_run["hardware"]["gpus"]
    assert whole_run["peak_memory"]["gpu_allocated"]
    assert whole_run["val_bpb"]["post_quant"] < 2.0  # six words over and over


def test_the_record_names_the_kernels_that_the_card_can_have(whole_run: dict[str, Any]) -> None:
    """The quickstart's sizes fit them all, at the smoke budget too; only the card may be too old for one."""
    served = {"attention": "sdpa"}
    for kernel in kernels.KERNELS:
        fits = kernel.takes(torch.cuda.get_device_capability())
        served |= dict.fromkeys(kernel.covers, f"{kernel.name} (Triton)" if fits else "torch")
    assert whole_run["kernels"] == served


def test_recorded_passes_train_like_launched_ones(tmp_path: Path) -> None:
    fixed = (
        "runtime=cuda",
        "budget.train_seconds=null",
        "schedule.clock=steps",
        "schedule.iterations=60",
        "val_every=25",
    )
    recorded, launched = (train(tmp_path, *fixed, f"runtime.cuda_graphs={how}") for how in ("true", "false"))
    assert recorded["val_bpb"]["pre_quant"] == pytest.approx(launched["val_bpb"]["pre_quant"], rel=2e-3)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_train_like_one(tmp_path: Path) -> None:
    one = train(tmp_path, "runtime=cuda", "runtime.nproc=1", "runtime.micro_tokens=1024")
    two = train(tmp_path, "runtime=cuda", "runtime.nproc=2", "runtime.micro_tokens=1024")
    assert two["val_bpb"]["pre_quant"] == pytest.approx(one["val_bpb"]["pre_quant"], rel=2e-2)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_with_recorded_passes_train_like_two_without(tmp_path: Path) -> None:
    fixed = ("runtime=cuda", "runtime.nproc=2", "budget.train_seconds=null", "schedule.clock=steps", "quant=gradguided",
             "schedule.iterations=60", "val_every=25", "optimizer.grad_clip=0.3")  # fmt: skip
    recorded, launched = (train(tmp_path, *fixed, f"runtime.cuda_graphs={how}") for how in ("true", "false"))
    assert recorded["val_bpb"]["pre_quant"] == pytest.approx(launched["val_bpb"]["pre_quant"], rel=2e-3)


@pytest.mark.parametrize("shape", [(2, 512, 1536), (3, 256, 512), (1, 96, 40)])
def test_compiled_rounding_is_torchs_but_for_a_quotients_last_place(shape: tuple[int, ...]) -> None:
    weights = torch.randn(shape, device="cuda").bfloat16()
    qat = FakeQuantizer(bits=6)
    plain, compiled = qat(weights), torch.compile(qat.__call__, dynamic=False)(weights)
    for sigmas, clips in ((12.85, False), (3.0, True), (None, False)):
        grid = Grid(6, sigmas, 0.999, False, packed=clips)
        one, other = grid(weights.float()), torch.compile(grid.__call__, dynamic=False)(weights.float())
        step = grid.steps(weights.float())[1][..., None]
        assert ((one - other).abs() <= 1.1 * step).all()
        assert ((one - other).abs() > 0.5 * step).float().mean() < 1e-3
    level = weights.float().abs().amax(-1, keepdim=True) / 31
    assert ((plain.float() - compiled.float()).abs() <= 1.01 * level).all()
    assert (plain != compiled).float().mean() < 1e-3
