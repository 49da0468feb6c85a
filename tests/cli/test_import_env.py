"""`golf import-env`: every variable of the record scripts lands on its key."""

from __future__ import annotations

import io
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from golf.cli.import_env import table
from golf.common.errors import ConfigError
from golf.launch.compose.configs import Checker, compose_job, composer, flat_keys, resolved
from golf.launch.compose.environment_frontier import FRONTIER
from golf.launch.compose.environment_names import KEYS, PASSED_ON, SCRIPTS, VARIABLES, convert
from golf.launch.compose.line import CommandLine
from golf.launch.compose.options import options

DOCS = Path(__file__).parents[2] / "docs/migrating.md"

LANDS: dict[str, tuple[str, dict[str, Any]]] = {
    "DATA_PATH": ("/d/fineweb10B_sp1024/", {"data.train": "/d/fineweb10B_sp1024/fineweb_train_*.bin",
                                           "data.val": "/d/fineweb10B_sp1024/fineweb_val_*.bin"}),
    "TOKENIZER_PATH": ("/a b/fineweb_1024_bpe.model", {"tokenizer.model_path": "/a b/fineweb_1024_bpe.model"}),
    "RUN_ID": ("my_run.1", {}),
    "SEED": ("41", {"seed": 41}),
    "VAL_BATCH_SIZE": ("524_288", {"eval.batch_tokens": 65_536}),
    "VAL_LOSS_EVERY": ("-1", {"val_every": 0}),
    "TRAIN_LOG_EVERY": ("25", {"log_every": 25}),
    "ITERATIONS": ("5000", {"schedule.iterations": 5000}),
    "WARMDOWN_ITERS": ("3000", {"schedule.warmdown_iters": 3000}),
    "WARMUP_STEPS": ("0", {"schedule.warmup_steps": 0}),
    "TRAIN_BATCH_TOKENS": ("393216", {"train_batch_tokens": 393_216}),
    "TRAIN_SEQ_LEN": ("2048", {"train_seq_len": 2048, "eval.seq_len": 2048}),
    "MAX_WALLCLOCK_SECONDS": ("300", {"budget.train_seconds": 300.0}),
    "QK_GAIN_INIT": ("1.25", {"model.attention.qk_gain_init": 1.25}),
    "VOCAB_SIZE": ("2048", {"tokenizer.vocab_size": 2048, "model.vocab_size": 2048, "tokenizer.name": "sp2048"}),
    "NUM_LAYERS": ("8", {"model.num_layers": 8}),
    "NUM_KV_HEADS": ("2", {"model.num_kv_heads": 2}),
    "MODEL_DIM": ("384", {"model.model_dim": 384}),
    "NUM_HEADS": ("4", {"model.num_heads": 4}),
    "MLP_MULT": ("3", {"model.mlp_mult": 3}),
    "TIE_EMBEDDINGS": ("0", {"model.head.tied": False}),
    "ROPE_BASE": ("50000", {"model.position.base": 50_000.0}),
    "LOGIT_SOFTCAP": ("15", {"model.head.softcap": 15.0}),
    "EMBED_LR": ("0.5", {"optimizer.embed_lr": 0.5}),
    "HEAD_LR": ("0.01", {"optimizer.head_lr": 0.01}),
    "TIED_EMBED_LR": ("0.03", {"optimizer.tied_embed_lr": 0.03}),
    "TIED_EMBED_INIT_STD": ("0.01", {"model.init.embed_std": 0.01}),
    "MATRIX_LR": ("2e-2", {"optimizer.matrix_lr": 0.02}),
    "SCALAR_LR": ("0.02", {"optimizer.scalar_lr": 0.02}),
    "MUON_MOMENTUM": ("0.99", {"optimizer.momentum": 0.99}),
    "MUON_BACKEND_STEPS": ("7", {"optimizer.matrix.ns_steps": 7}),
    "MUON_MOMENTUM_WARMUP_START": ("0.92", {"optimizer.momentum_start": 0.92}),
    "MUON_MOMENTUM_WARMUP_STEPS": ("1500", {"optimizer.momentum_warmup_steps": 1500}),
    "BETA1": ("0.8", {"optimizer.adam_beta1": 0.8}),
    "BETA2": ("0.99", {"optimizer.adam_beta2": 0.99}),
    "ADAM_EPS": ("1e-10", {"optimizer.adam_eps": 1e-10}),
    "GRAD_CLIP_NORM": ("0.3", {"optimizer.grad_clip": 0.3}),
    "MUON_WEIGHT_DECAY": ("0.02", {"optimizer.matrix_weight_decay": 0.02}),
    "ADAM_WD": ("0.01", {"optimizer.adam_weight_decay": 0.01}),
    "MUON_BETA2": ("0.9", {"optimizer.matrix._target_": "golf.learn.muon.NorMuon", "optimizer.matrix.beta2": 0.9}),
    "EVAL_STRIDE": ("256", {"eval.stride": 256}),
    "EVAL_SEQ_LEN": ("8192", {"eval.seq_len": 8192}),
    "SW_EVAL_BATCH": ("16", {"eval.batch_tokens": 16 * 1024}),
    "SWA_ENABLED": ("0", {"averaging._target_": "golf.learn.averaging.NoAveraging"}),
    "SWA_START_FRAC": ("0.4", {"averaging.start_multiplier": 0.4}),
    "SWA_EVERY": ("50", {"averaging.every": 50}),
    "WEIGHT_QUANTIZATION_BITS": ("5", {"quant.bits": 5, "quant.pack": True, "quant.keep": {"embed": "float16"}}),
    "EMBED_QUANTIZATION_BITS": ("8", {"quant.bits": {"default": 6, "embed": 8}, "quant.keep": None}),
    "SMEAR_GATE": ("0", {"technique.smear_gate": {}}),
    "XSA_LAST_N": ("6", {"technique.xsa.layers": "last:6"}),
    "USE_NTK_ROPE": ("0", {"model.position.ntk_seq_len": None, "model.position.round_frequencies": False}),
    "INIT_TYPE": ("standard", {"model.init.projections": "zero", "model.init.matrices": "uniform"}),
    "USE_EMA": ("0", {"averaging._target_": "golf.learn.averaging.NoAveraging"}),
    "EMA_ALPHA": ("0.99", {"averaging.decay": 0.99}),
    "EMA_FROM_INIT": ("0", {"averaging.start_multiplier": 0.6}),
    "EMA_START_RATIO": ("0.5", {}),
    "GRAD_GUIDED_QUANT": ("0", {"quant.allocation": None, "quant.bits": {"default": 6, "embed": 8, "head": 8}}),
    "QUANT_BITS_MIDDLE": ("5", {"quant.allocation.middle": 5}),
    "QUANT_BITS_MLP": ("0", {}),
    "FP16_EMBEDDINGS": ("1", {"quant.keep": {"embed": "float16", "head": "float16"}}),
    "COMPRESS_ALGO": ("zlib", {"codec._target_": "golf.artifact.codecs.Zlib"}),
    "SKIP_COMPILE": ("1", {"runtime.compile": "none"}),
    "DEV_MODE": ("1", {"runtime.device": "cpu"}),
    "WORLD_SIZE": ("4", {"runtime.nproc": 4}),
    "CASEOPS_ENABLED": ("1", {"tokenizer.transform._target_": "golf.tokenizers.caseops.CaseOps"}),
    "DATA_DIR": ("./data/", {"data._target_": "golf.data.fineweb.FineWeb", "data.folder": "./data"}),
    "WARMDOWN_FRAC": ("0.82", {"schedule.warmdown_frac": 0.82}),
    "MIN_LR": ("0.05", {"schedule.floor": 0.05}),
    "MUON_WD": ("0.09", {"optimizer.matrix_weight_decay": 0.09}),
    "EMBED_WD": ("0.08", {"optimizer.adam_weight_decay": 0.08}),
    "MUON_ROW_NORMALIZE": ("0", {"optimizer.matrix.row_norm": False}),
    "EMA_DECAY": ("0.99", {"averaging.decay": 0.99}),
    "VAL_BATCH_TOKENS": ("524288", {"eval.batch_tokens": 65_536}),
    "ROPE_DIMS": ("32", {"model.position.dims": 32}),
    "LN_SCALE": ("0", {"model.residual.norm_scale": "none"}),
    "SKIP_GATES_ENABLED": ("0", {"model.residual.skip_gates": False}),
    "NUM_LOOPS": ("1", {"phases": [{"from": 0.35, "set": {"model.plan": "loop", "model.plan.passes": 2}}]}),
    "LOOP_START": ("4", {"phases": [{"from": 0.35, "set": {
        "model.plan": "loop", "model.plan.passes": 3, "model.plan.first": 4, "model.plan.last": 5}}]}),
    "LOOP_END": ("4", {"phases": [{"from": 0.35, "set": {
        "model.plan": "loop", "model.plan.passes": 3, "model.plan.first": 3, "model.plan.last": 4}}]}),
    "ENABLE_LOOPING_AT": ("0.5", {"phases": [{"from": 0.5, "set": {"model.plan": "loop", "model.plan.passes": 3}}]}),
    "PARALLEL_START_LAYER": ("7", {"model.residual.lanes": "last:4"}),
    "SPARSE_ATTN_GATE_ENABLED": ("1", {"technique.attn_gate.ceiling": 1.0, "technique.attn_gate.width": 12}),
    "GATED_ATTN_ENABLED": ("1", {"technique.attn_gate.width": None}),
    "ATTN_OUT_GATE_ENABLED": ("1", {"technique.attn_gate.ceiling": 2.0}),
    "SMEAR_GATE_ENABLED": ("1", {"technique.smear_gate._target_": "golf.nn.techniques.smear_gate.SmearGateByToken"}),
    "MATRIX_BITS": ("5", {"quant.bits": {"default": 5, "embed": 8}}),
    "EMBED_BITS": ("7", {"quant.bits": {"default": 6, "embed": 7}}),
    **{f"{name}_CLIP_SIGMAS": ("9", {"quant.k": {"default": 12.85, "attn.*": 13.0, "mlp.*": 10.0, "embed": 20.0}
                                   | {place: 9.0}})
       for name, place in (("MATRIX", "default"), ("ATTN", "attn.*"), ("MLP", "mlp.*"), ("EMBED", "embed"))},
    "LQER_ENABLED": ("0", {"quant.lqer.tensors": 0}),
    "LQER_TOP_K": ("2", {"quant.lqer.tensors": 2}),
    "LQER_RANK": ("8", {"quant.lqer.rank": 8}),
    "LQER_FACTOR_BITS": ("3", {"quant.lqer.b_bits": 3}),
    "LQER_ASYM_GROUP": ("32", {"quant.lqer.group": 32}),
    "GPTQ_RESERVE_SECONDS": ("0.5", {"quant.reserve_s": 0.5}),
    "COMPRESSOR": ("brotli", {"codec._target_": "golf.artifact.codecs.Brotli"}),
    **{name: ("0.5", {}) for name in ("SPARSE_ATTN_GATE_SCALE", "SPARSE_ATTN_GATE_INIT_STD", "GATED_ATTN_INIT_STD")},
    "GATE_WINDOW": ("16", {}),
    **{name: ("1", {}) for name in (
        "EVAL_ROPE_BASE", "FA3_PATH", "OPTIMIZER_VARIANT", "SKIP_QUANT", "WINDOW_SIZE", "NUM_PHYSICAL_LAYERS",
        "DATA_CURRICULUM", "SEQ_CURRICULUM", "MAX_SLIDE_ITERS", "GRAD_ACCUM_STEPS", "CONTROL_TENSOR_NAME_PATTERNS",
        "INT8_KEEP_FLOAT_FP32_NAME_PATTERNS", "RANK", "LOCAL_RANK",
        *(one.name for one in FRONTIER if one.place == "–"),
    )},
}  # fmt: skip
"""Variable → an example of its value, and where it must be found in the composed config."""


@pytest.fixture
def composing() -> Iterator[None]:
    """Hydra's compose API over golf's conf."""
    with composer():
        yield


@pytest.fixture
def line_of(golf_command: Any) -> Callable[..., list[str]]:
    """The words that `golf import-env` prints."""

    def call(*argv: str) -> list[str]:
        done = golf_command("import-env", *argv)
        assert done.code == 0, done.err
        return shlex.split(done.out)

    return call


def config(words: list[str]) -> dict[str, Any]:
    """The config that these words compose, keys checked as `golf train` checks them."""
    with composer():
        return resolved(compose_job(Checker(CommandLine.parse(words)).complete().overrides))


def assert_holds(composed: DictConfig, wanted: dict[str, Any]) -> None:
    """The config has these values at these keys."""
    for key, expected in wanted.items():
        found = OmegaConf.select(composed, key)
        assert (OmegaConf.to_container(found) if OmegaConf.is_config(found) else found) == expected


def test_every_variable_has_an_example() -> None:
    assert sorted(LANDS) == sorted(VARIABLES)


@pytest.mark.parametrize("name", LANDS)
def test_a_variable_lands_on_its_key(composing: None, name: str) -> None:
    value, wanted = LANDS[name]
    result = convert({name: value})
    if wanted:
        assert_holds(compose_job([f"recipe={result.recipe}", *result.words]), wanted)
    alone = convert({name: value}, result.recipe)
    assert bool(alone.words) != (name in dict(alone.left_out))


@pytest.mark.parametrize("script", SCRIPTS)
def test_all_of_a_scripts_variables_compose_together(script: str) -> None:
    given = {name: value for name, (value, _) in LANDS.items() if script in VARIABLES[name].scripts}
    given |= {name: "1" for name in ("SWA_ENABLED", "USE_EMA", "GRAD_GUIDED_QUANT") if name in given}
    result = convert(given)
    assert result.recipe == script
    found = config([f"recipe={script}", *result.words])
    assert (found["model"]["num_layers"], found["train_seq_len"], found["runtime"]["nproc"]) == (8, 2048, 4)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("GRAD_CLIP_NORM=0", {"optimizer.grad_clip": None}),
        ("MAX_WALLCLOCK_SECONDS=0", {"budget.train_seconds": None}),
        ("TRAIN_LOG_EVERY=0", {"log_every": 1_000_000}),
        ("VOCAB_SIZE=1536", {"tokenizer.vocab_size": 1536, "tokenizer.name": "sp1536"}),
        ("VOCAB_SIZE=260", {"tokenizer._target_": "golf.tokenizers.byte260.Byte260Spec"}),
        ("XSA_LAST_N=0", {"technique.xsa": {}}),
        ("USE_EMA=1 EVAL_STRIDE=0", {"eval.stride": None, "eval.coverage": "seed_s2"}),
        ("EMA_FROM_INIT=0 EMA_START_RATIO=0.5", {"averaging.start_multiplier": 0.5}),
        ("GRAD_GUIDED_QUANT=0 QUANT_BITS_MLP=5 QUANT_BITS_MIDDLE=7",
         {"quant.bits": {"default": 7, "embed": 8, "head": 8, "mlp.*": 5}, "quant.pack": False}),
        ("WEIGHT_QUANTIZATION_BITS=5 EMBED_QUANTIZATION_BITS=7", {"quant.bits": {"default": 5, "embed": 7}}),
        ("NUM_LAYERS=4 NUM_LAYERS=5", {"model.num_layers": 5}),
    ],
)  # fmt: skip
def test_values_are_converted(line_of: Any, text: str, wanted: dict[str, Any]) -> None:
    words = line_of(text)
    with composer():
        assert_holds(compose_job(words), wanted)


def test_a_whole_command_may_be_pasted(line_of: Any) -> None:
    words = line_of(
        "NCCL_IB_DISABLE=1 \\\nVOCAB_SIZE=1024 NUM_LAYERS=6 \\\n"
        "torchrun --standalone --nproc_per_node=8 records/x/train_gpt.py"
    )
    assert words == ["recipe=naive_baseline", "tokenizer=sp1024", "model.num_layers=6", "runtime.nproc=8"]


def test_words_may_come_one_by_one(line_of: Any) -> None:
    assert line_of("NUM_LAYERS=6", "MODEL_DIM=384") == line_of("NUM_LAYERS=6 MODEL_DIM=384")


def test_the_words_survive_a_shell(line_of: Any) -> None:
    words = line_of("DATA_PATH='/a b/x' TOKENIZER_PATH=t.model RUN_ID=one")
    assert "data.train='/a b/x/fineweb_train_*.bin'" in words
    assert words[-1] == "hydra.run.dir=outputs/one"


RECORD_OF_122 = "VOCAB_SIZE=2048 NUM_LAYERS=8 MLP_MULT=3 TRAIN_SEQ_LEN=4096 EVAL_STRIDE=64 SWA_ENABLED=1"


def test_pull_request_122s_command_is_its_recipe(line_of: Any) -> None:
    assert config(line_of(RECORD_OF_122)) == config(["recipe=sp2048_normuon_int6"])
    assert line_of("--recipe", "sp2048_normuon_int6", RECORD_OF_122) == ["recipe=sp2048_normuon_int6"]


def test_pull_request_122s_defaults_are_not_its_records(line_of: Any) -> None:
    found = config(line_of("SWA_EVERY=100"))
    assert (found["tokenizer"]["vocab_size"], found["model"]["num_layers"], found["train_seq_len"]) == (1024, 9, 1024)


CASEOPS = "fineweb10B_sp8192_lossless_caps_caseops_v1_reserved"
RECORD_OF_1855 = (
    f"DATA_DIR=./data VOCAB_SIZE=8192 DATA_PATH=./data/datasets/{CASEOPS} "
    "TOKENIZER_PATH=./data/tokenizers/caseops.model CASEOPS_ENABLED=1 ITERATIONS=20000 MAX_WALLCLOCK_SECONDS=600 "
    "PHASED_TTT_ENABLED=1 PHASED_TTT_PREFIX_DOCS=2500 PHASED_TTT_NUM_PHASES=3 EMBED_BITS=7 MATRIX_LR=0.026 "
    "MIN_LR=0.1 MLP_CLIP_SIGMAS=11.5 ATTN_CLIP_SIGMAS=13.0 EMBED_CLIP_SIGMAS=14.0 GRAD_CLIP_NORM=0.3 "
    "TTT_CHUNK_SIZE=48 WARMUP_STEPS=20 MUON_BACKEND_STEPS=5 GLOBAL_TTT_MOMENTUM=0.9 WARMDOWN_FRAC=0.85 BETA2=0.99 "
    "TTT_BETA2=0.99 TTT_WEIGHT_DECAY=0.5 TTT_LORA_RANK=80 SPARSE_ATTN_GATE_SCALE=0.5 GPTQ_RESERVE_SECONDS=4 "
    "GPTQ_CALIBRATION_BATCHES=16 GATED_ATTN_QUANT_GATE=1 SPARSE_ATTN_GATE_ENABLED=1 GATE_WINDOW=12 "
    "SMEAR_GATE_ENABLED=1 LQER_ENABLED=1 LQER_ASYM_ENABLED=1 LQER_RANK=4 LQER_FACTOR_BITS=4 LQER_ASYM_GROUP=64 "
    "LQER_TOP_K=3 FUSED_CE_ENABLED=1 COMPRESSOR=pergroup NCCL_NET=Socket SEED=1337"
)
OF_CASEOPS = [
    "data=shards", "tokenizer.model_path=./data/tokenizers/caseops.model", "tokenizer/transform=caseops",
    *(f"data.{split}=./data/datasets/{CASEOPS}/fineweb_{split}_*.bin" for split in ("train", "val")),
    "quant.lqer.tensors=3", "train_batch_tokens=786432", "loader=packed", "quant=int6_gptq",
]  # fmt: skip


def test_pull_request_1855s_command_is_its_recipe_with_its_data() -> None:
    result = convert(dict(word.split("=", 1) for word in RECORD_OF_1855.split()))
    assert config([f"recipe={result.recipe}", *result.words]) == config(["recipe=frontier", *OF_CASEOPS])
    assert {name for name, reason in result.left_out if "no test-time training" in reason} == {
        name for name in RECORD_OF_1855.replace("=", " ").split() if "TTT_" in name
    }


DATA_OF_1855 = "/my data/datasets/fineweb10B_sp8192_caseops/datasets"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"DATA_DIR": "/my data", "CASEOPS_ENABLED": "1"},
         {"data=shards", "tokenizer=sp8192", "tokenizer/transform=caseops",
          f"data.train='{DATA_OF_1855}/datasets/{CASEOPS}/fineweb_train_*.bin'",
          f"data.val='{DATA_OF_1855}/datasets/{CASEOPS}/fineweb_val_*.bin'", "tokenizer.model_path="
          f"'{DATA_OF_1855}/tokenizers/fineweb_8192_bpe_lossless_caps_caseops_v1_reserved.model'"}),
        ({"DATA_DIR": "d", "DATA_PATH": "d/x"}, {"data=shards", "data.train=d/x/fineweb_train_*.bin",
                                                "data.val=d/x/fineweb_val_*.bin"}),
        ({"NUM_LOOPS": "0", "LQER_ENABLED": "0", "LQER_RANK": "8"},
         {"phases=[]", "quant=int6_gptq", "quant.lqer.tensors=0"}),
        ({"SPARSE_ATTN_GATE_ENABLED": "0", "GATED_ATTN_ENABLED": "1", "GATED_ATTN_INIT_STD": "0.01"},
         {"technique/attn_gate=dense", "technique.attn_gate.init_std=0.01"}),
        ({"ADAM_WD": "0.01", "EVAL_STRIDE": "32", "EVAL_SEQ_LEN": "1024", "COMPRESSOR": "pergroup"},
         {"optimizer.scalar_weight_decay=0.01", "eval.stride=32", "eval.seq_len=1024"}),
        ({"GATE_WINDOW": "16", "SMEAR_GATE_ENABLED": "0"},
         {"technique/attn_gate=sparse", "technique.attn_gate.width=16", "technique/smear_gate=none"}),
    ],
)  # fmt: skip
def test_pull_request_1855s_variables_depend_on_each_other(given: dict[str, str], wanted: set[str]) -> None:
    assert set(convert(given, "frontier").words) == wanted


def test_a_layer_that_is_none_is_named() -> None:
    with pytest.raises(ConfigError, match="PARALLEL_START_LAYER=11: a layer below NUM_LAYERS=11"):
        convert({"PARALLEL_START_LAYER": "11"})


@pytest.mark.parametrize(
    ("recipe", "text", "wanted"),
    [
        ("naive_baseline", "NUM_LAYERS=9 MATRIX_LR=0.02 SEED=1337", ["optimizer.matrix_lr=0.02"]),
        ("gradquant_11l", "XSA_LAST_N=4 SMEAR_GATE=1 EMA_ALPHA=0.99", ["averaging.decay=0.99"]),
        ("gradquant_11l", "XSA_LAST_N=0", ["technique/xsa=none"]),
        ("gradquant_11l", "EVAL_STRIDE=0", ["eval=contiguous", "eval.coverage=seed_s2"]),
        ("seq4096", "EVAL_STRIDE=64 SWA_EVERY=200", ["eval=sliding", "averaging=swa"]),
        ("sp2048_normuon_int6", "EVAL_SEQ_LEN=4096", []),
        ("seq4096", "RUN_ID=x", ["hydra.run.dir=outputs/x"]),
    ],
)
def test_only_what_differs_from_a_recipe(line_of: Any, recipe: str, text: str, wanted: list[str]) -> None:
    words = line_of(f"--recipe={recipe}", text)
    assert words == [f"recipe={recipe}", *wanted]


def test_what_is_left_out_is_named_with_its_reason(golf_command: Any) -> None:
    done = golf_command("import-env", "NUM_LAYERS=8 SKIP_QUANT=1 WINDOW_SIZE=0 EMA_START_RATIO=0.5 OMP_NUM_THREADS=1")
    assert done.code == 0
    reasons = dict(line.split(": ", 1) for line in done.err.splitlines())
    assert reasons["SKIP_QUANT"].startswith("golf always quantizes")
    assert reasons["WINDOW_SIZE"] == "off, as in golf"
    assert reasons["EMA_START_RATIO"] == "without effect while EMA_FROM_INIT=1"
    assert reasons["OMP_NUM_THREADS"].startswith("passed on")
    assert len(reasons) == 4


RUN = "torchrun --standalone --nproc_per_node=8 train_gpt.py"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (f"python3 data/cached_challenge_fineweb.py --variant sp1024\nSEED=42 NUM_LAYERS=11 MATRIX_LR=0.02 {RUN}",
         "seed=42 model.num_layers=11 optimizer.matrix_lr=0.02 runtime.nproc=8"),
        (f"export RUN_ID=base; export TOKENIZER_PATH=./tok.model; NUM_LAYERS=11 {RUN}",
         "tokenizer.model_path=./tok.model hydra.run.dir=outputs/base model.num_layers=11 runtime.nproc=8"),
        (f"SEED=42 {RUN}\nSEED=1337 {RUN}", "-m seed=42,1337 runtime.nproc=8"),
        (f"for SEED in 42 1337; do RUN_ID=s$SEED SEED=$SEED {RUN}; done", "-m seed=42,1337 runtime.nproc=8"),
        (f"for L in 8 9; do for S in 1 2; do NUM_LAYERS=$L SEED=$S {RUN}; done; done",
         "-m seed=1,2 model.num_layers=8,9 runtime.nproc=8"),
        (f"MLP_MULT=2 {RUN}\nMLP_MULT=2 {RUN}", "model.mlp_mult=2 runtime.nproc=8"),
        (f"RUN_ID=a_$(date +%s) SEED=1 {RUN}", "seed=1 runtime.nproc=8"),
    ],
)  # fmt: skip
def test_what_a_text_comes_to(line_of: Any, text: str, wanted: str) -> None:
    assert line_of(text) == ["recipe=naive_baseline", *wanted.split()]


def test_a_sweep_keeps_what_it_sweeps_over_beside_a_recipe(line_of: Any) -> None:
    words = line_of("--recipe=naive_baseline", f"NUM_LAYERS=9 SEED=1337 {RUN}\nNUM_LAYERS=9 SEED=7 {RUN}")
    assert words == ["recipe=naive_baseline", "-m", "seed=1337,7", "runtime.nproc=8"]


def test_the_words_of_a_sweep_are_a_command_line(line_of: Any) -> None:
    line = CommandLine.parse(line_of(f"SEED=1 {RUN}\nSEED=2 {RUN}"))
    with composer():
        checker = Checker(line)
        assert line.multirun
        assert len(checker.jobs(checker.complete())) == 2


def test_trainings_that_are_no_sweep_are_told_apart_and_chosen(golf_command: Any, line_of: Any) -> None:
    text = f"ITERATIONS=20 torchrun --nproc_per_node=1 train_gpt.py\nSEED=3 {RUN}"
    done = golf_command("import-env", text)
    assert (done.code, done.out) == (2, "")
    assert "2 trainings that differ in ITERATIONS, WORLD_SIZE, SEED" in done.err
    assert "2: WORLD_SIZE=8 SEED=3" in done.err
    assert line_of("--run", "2", text) == ["recipe=naive_baseline", "seed=3", "runtime.nproc=8"]
    assert golf_command("import-env", "--run=3", text).code == 2


UNKNOWN = f"NUM_LAYERS=11 TTT_LR=0.1 EMA_ENABLED=1 VAL_DOCS=50000 {RUN}"


def test_unknown_variables_are_named_together_with_what_comes_near(golf_command: Any) -> None:
    done = golf_command("import-env", UNKNOWN)
    assert (done.code, done.out) == (2, "")
    assert "TTT_LR, EMA_ENABLED, VAL_DOCS: no script of the records reads these variables" in done.err
    assert "VAL_DOCS: data.val_docs" in done.err
    assert "--skip-unknown" in done.err
    assert len(done.err.splitlines()) == 3


def test_the_rest_is_translated_on_request_and_each_unknown_variable_said(golf_command: Any) -> None:
    done = golf_command("import-env", "--skip-unknown", UNKNOWN)
    assert shlex.split(done.out) == ["recipe=naive_baseline", "model.num_layers=11", "runtime.nproc=8"]
    assert [line.split(":")[0] for line in done.err.splitlines()] == ["TTT_LR", "EMA_ENABLED", "VAL_DOCS"]


def test_trainings_that_differ_in_an_unknown_variable_do_not_become_one(golf_command: Any) -> None:
    done = golf_command("import-env", "--skip-unknown", f"TTT_LR=1 {RUN}\nTTT_LR=2 {RUN}")
    assert (done.code, done.out) == (2, "")
    assert "differ in TTT_LR" in done.err


def test_what_comes_near_is_a_key_or_a_group(composing: None) -> None:
    keys = flat_keys(compose_job(["recipe=naive_baseline", "averaging=ema", "data=docs"]))
    assert [key for key in KEYS.values() if key not in keys and not options(key)] == []


def test_a_file_may_be_given_or_piped_in(golf_command: Any, tmp_path: Path, monkeypatch: Any) -> None:
    script = tmp_path / "run.sh"
    script.write_bytes(b"\xef\xbb\xbfexport SEED=1\r\nnohup torchrun train_gpt.py &\r\n")
    wanted = "recipe=naive_baseline seed=1\n"
    assert golf_command("import-env", str(script)).out == wanted
    monkeypatch.setattr("sys.stdin", io.StringIO("export SEED='1'\npython train_gpt.py"))
    assert golf_command("import-env", "-").out == wanted
    script.write_bytes(b"\xff\xfeS\x00")
    assert golf_command("import-env", str(script)).code == 2


def test_words_of_a_command_may_come_one_by_one(line_of: Any) -> None:
    words = line_of("DATA_PATH=/a b", "SEED=1", "torchrun", "--nproc_per_node=8", "train_gpt.py")
    assert "data.val='/a b/fineweb_val_*.bin'" in words
    assert "runtime.nproc=8" in words


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["NUM_LAYERS=$LAYERS torchrun train_gpt.py"], "$LAYERS is not set in this text"),
        (["SEED=$(date +%s) torchrun train_gpt.py"], "$(date +%s) is not known here"),
        (["torchrun --nproc_per_node=gpu train_gpt.py"], "--nproc_per_node=gpu: write the number of workers"),
        (["bash run.sh"], "not used: bash run.sh"),
        (["--run", "x", "SEED=1"], "--run x: expected a whole number"),
        (["NUM_LAYER=8"], "did you mean 'NUM_LAYERS'"),
        (["NUM_LAYERS=eight"], "NUM_LAYERS=eight: expected a whole number"),
        (["MATRIX_LR=fast"], "MATRIX_LR=fast: expected a number"),
        (["SMEAR_GATE=yes"], "SMEAR_GATE=yes: expected 0 or 1"),
        (["LOGIT_SOFTCAP=0"], "LOGIT_SOFTCAP=0"),
        (["NUM_LAYERS='8"], "cannot read this line"),
        (["NUM_LAYERS 8"], "expected VARIABLE=value"),
        ([""], "give variables"),
        (["--recipe", "naive", "SEED=1"], "--recipe naive: there is no such recipe"),
        (["--recipe=naive_baseline", "USE_EMA=1 SWA_EVERY=9"], "averaging"),
        (["--quiet", "SEED=1"], "no such flag"),
    ],
)
def test_mistakes(golf_command: Any, words: list[str], part: str) -> None:
    done = golf_command("import-env", *words)
    assert done.code == 2
    assert part in done.err
    assert done.out == ""


def test_variables_of_other_software_are_not_the_scripts_own() -> None:
    assert not [name for name in VARIABLES if PASSED_ON.fullmatch(name)]


def test_the_page_shows_the_mapping(golf_command: Any) -> None:
    assert golf_command("import-env", "--table").out == table()
    assert table() in DOCS.read_text(encoding="utf-8"), "put the output of `golf import-env --table` into the page"
