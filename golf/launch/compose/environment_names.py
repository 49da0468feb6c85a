"""The environment variables of the record scripts, and what each is called in golf.

The scripts are the naive baseline's (seq4096 has the same with other defaults), pull request 122's, 422's and 1855's. A
variable becomes words of a golf command line: `group=option` and `key=value`, as Hydra reads them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from golf.common.errors import ConfigError, did_you_mean
from golf.launch.compose import environment_frontier
from golf.launch.compose.environment_values import (
    BASELINE,
    EVERY,
    PR122,
    PR422,
    PR1855,
    SCRIPTS,
    Convert,
    Environment,
    Ignored,
    Variable,
    number,
    quoted,
    switch,
    unused,
    whole,
)

__all__ = [
    "EVERY",
    "KEYS",
    "PASSED_ON",
    "SCRIPTS",
    "TABLE",
    "VARIABLES",
    "Converted",
    "convert",
    "near",
    "refusal",
    "unknown",
]

PASSED_ON = re.compile(
    r"(NCCL|CUDA|TORCH|TORCHINDUCTOR|PYTORCH|TRITON|OMP|MKL|WANDB|HF|GLOO|UCX|NVIDIA|CUBLAS|CUDNN|KMP|GOMP|OPENBLAS"
    r"|NUMEXPR|TOKENIZERS|TRANSFORMERS|PROTOCOL_BUFFERS|SLURM|MASTER|LD|LC|XDG|UV|PIP|MODAL)_\w+"
    r"|PYTHON\w*|PATH|HOME|USER|PWD|SHELL|TERM|LANG|TMPDIR|CC|CXX|CFLAGS|VIRTUAL_ENV|MALLOC_\w+"
)
"""Variables of other software, which golf's processes inherit."""

DEFAULTS: dict[str, dict[str, str]] = {
    BASELINE: {},
    PR122: {"VOCAB_SIZE": "1024", "NUM_LAYERS": "9", "MLP_MULT": "2", "TRAIN_SEQ_LEN": "1024"},
    PR422: {},
    PR1855: environment_frontier.DEFAULTS,
}
"""A script's defaults that its recipe does not have: two of the records were set with variables."""

OTHERWISE = {PR1855: environment_frontier.OTHERWISE}

ASSUMED = {
    "TRAIN_SEQ_LEN": "1024", "USE_EMA": "1", "EMA_FROM_INIT": "1", "EMA_START_RATIO": "0.6", "SWA_ENABLED": "1",
    "GRAD_GUIDED_QUANT": "1", "QUANT_BITS_MIDDLE": "6", "QUANT_BITS_MLP": "0", "FP16_EMBEDDINGS": "0",
    "WEIGHT_QUANTIZATION_BITS": "6", "EMBED_QUANTIZATION_BITS": "16", **environment_frontier.ASSUMED,
}  # fmt: skip
"""Defaults of the variables that others depend on."""


def _vocabulary(env: Environment) -> list[str]:
    size = env.whole("VOCAB_SIZE")
    if size == 260:
        return ["tokenizer=byte260"]
    if size in (1024, 2048, 4096, 8192):
        return [f"tokenizer=sp{size}"]
    return ["tokenizer=sp1024", f"tokenizer.vocab_size={size}"]


def _data(env: Environment) -> list[str]:
    folder = env.text("DATA_PATH").rstrip("/")
    return [
        "data=shards",
        f"data.train={quoted(f'{folder}/fineweb_train_*.bin')}",
        f"data.val={quoted(f'{folder}/fineweb_val_*.bin')}",
    ]


def _softcap(env: Environment) -> list[str]:
    if env.real("LOGIT_SOFTCAP") <= 0:
        raise ConfigError(f"LOGIT_SOFTCAP={env.text('LOGIT_SOFTCAP')}: the scripts want it above 0")
    return [f"model.head.softcap={env.real('LOGIT_SOFTCAP')}"]


def _stride(env: Environment) -> list[str]:
    stride = env.whole("EVAL_STRIDE")
    if env.recipe == PR1855:
        return [f"eval.stride={stride}"]
    if stride > 0:
        return ["eval=sliding", f"eval.stride={stride}"]
    return ["eval=contiguous", "eval.coverage=seed_s2"]


def _eval_length(env: Environment) -> list[str]:
    length, trained = env.whole("EVAL_SEQ_LEN"), env.whole("TRAIN_SEQ_LEN")
    if length <= trained and env.recipe != PR1855:
        raise Ignored(f"the script uses it only above TRAIN_SEQ_LEN ({trained})")
    return [f"eval.seq_len={length}"]


def _packed_bits(env: Environment) -> list[str]:
    bits, embedding = env.whole("WEIGHT_QUANTIZATION_BITS"), env.whole("EMBED_QUANTIZATION_BITS")
    if embedding >= 16:
        return ["quant=int6", f"quant.bits={bits}", "quant.keep={embed:float16}"]
    return ["quant=int6", f"quant.bits={{default:{bits},embed:{embedding}}}", "quant.keep=null"]


def _guided_bits(env: Environment) -> list[str]:
    middle, mlp = env.whole("QUANT_BITS_MIDDLE"), env.whole("QUANT_BITS_MLP")
    if env.on("GRAD_GUIDED_QUANT"):
        return ["quant=gradguided_raw", f"quant.allocation.middle={middle}"]
    by_place = [f"default:{middle}", "embed:8", "head:8", *([f"mlp.*:{mlp}"] if mlp > 0 else [])]
    return ["quant=int6", "quant.pack=false", *_kept(env),
            f"quant.bits={{{','.join(by_place)}}}"]  # fmt: skip


def _mlp_bits(env: Environment) -> list[str]:
    if env.whole("QUANT_BITS_MLP") <= 0:
        raise Ignored("0 is off")
    if env.on("GRAD_GUIDED_QUANT"):
        raise Ignored("without effect while GRAD_GUIDED_QUANT=1, in the script too")
    return _guided_bits(env)


def _kept(env: Environment) -> list[str]:
    return ["quant.keep={embed:float16,head:float16}" if env.on("FP16_EMBEDDINGS") else "quant.keep=null"]


def _of_swa(name: str, key: str) -> Convert:
    def convert(env: Environment) -> list[str]:
        if not env.on("SWA_ENABLED"):
            raise Ignored("without effect while SWA_ENABLED=0")
        value: Any = env.whole(name) if key.endswith("every") else env.real(name)
        return ["averaging=swa", f"{key}={value}"]

    return convert


def _ema(env: Environment) -> list[str]:
    if not env.on("USE_EMA"):
        raise Ignored("without effect while USE_EMA=0")
    return ["averaging=ema"]


def _ema_decay(env: Environment) -> list[str]:
    return [*_ema(env), f"averaging.decay={env.real('EMA_ALPHA')}"]


def _ema_start(env: Environment) -> list[str]:
    start = "null" if env.on("EMA_FROM_INIT") else env.real("EMA_START_RATIO")
    return [*_ema(env), f"averaging.start_multiplier={start}"]


def _ema_ratio(env: Environment) -> list[str]:
    if env.on("EMA_FROM_INIT"):
        raise Ignored("without effect while EMA_FROM_INIT=1")
    return _ema_start(env)


def _exclusive(env: Environment) -> list[str]:
    last = env.whole("XSA_LAST_N")
    return ["technique/xsa=last4", f"technique.xsa.layers=last:{last}"] if last > 0 else ["technique/xsa=none"]


def _variant(env: Environment) -> list[str]:
    if env.text("OPTIMIZER_VARIANT") == "standard":
        raise Ignored("standard is golf's Muon")
    raise Ignored("a variant that no record used; optimizer=normuon is pull request 122's NorMuon, another one")


def _adam_decay(env: Environment) -> list[str]:
    which = "scalar" if env.recipe == PR1855 else "adam"
    return [f"optimizer.{which}_weight_decay={env.real('ADAM_WD')}"]


ONLY122, ONLY422, FIRST_THREE = (PR122,), (PR422,), (BASELINE, PR122, PR422)
SCALED = "at record scale: `budget.fraction` shortens it"
ROLES = "golf knows parameters by their declared role and place, not by name: see `quant.small`, `quant.keep`"

TABLE = [
    Variable("DATA_PATH", "`data=shards data.train=DIR/fineweb_train_*.bin data.val=DIR/fineweb_val_*.bin`", _data,
             "`data=fineweb` instead finds the published shards by itself; PR 422 ignores the variable",
             (BASELINE, PR122, PR1855)),
    Variable("TOKENIZER_PATH", "`tokenizer.model_path`",
             lambda env: [f"tokenizer.model_path={quoted(env.text('TOKENIZER_PATH'))}"],
             "needed with `data=shards`; PR 422 ignores the variable", (BASELINE, PR122, PR1855)),
    Variable("RUN_ID", "`hydra.run.dir=outputs/…`",
             lambda env: [f"hydra.run.dir={quoted('outputs/' + env.text('RUN_ID'))}"],
             "the script names its log file so, golf the run's folder, which must be new"),
    whole("SEED", "seed"),
    Variable("VAL_BATCH_SIZE", "`eval.batch_tokens`",
             lambda env: [f"eval.batch_tokens={max(env.whole('VAL_BATCH_SIZE') // 8, 1)}"],
             "an eighth of it: golf counts the tokens of one forward, not of eight; no score depends on it",
             FIRST_THREE),
    whole("VAL_LOSS_EVERY", "val_every", "step 0 counts, as in the scripts; 0: at the end only", least=0),
    Variable("TRAIN_LOG_EVERY", "`log_every`", lambda env: [f"log_every={env.whole('TRAIN_LOG_EVERY') or 1_000_000}"],
             "0 (off) becomes 1000000; the first ten steps are logged"),
    whole("ITERATIONS", "schedule.iterations"),
    whole("WARMDOWN_ITERS", "schedule.warmdown_iters", SCALED, FIRST_THREE, least=0),
    whole("WARMUP_STEPS", "schedule.warmup_steps", "undone before the clock starts; no lr warm-up", least=0),
    whole("TRAIN_BATCH_TOKENS", "train_batch_tokens"),
    whole("TRAIN_SEQ_LEN", "train_seq_len", "`eval.seq_len` follows it"),
    number("MAX_WALLCLOCK_SECONDS", "budget.train_seconds",
          "0: null, bound by steps. n GPUs are granted 8/n times as long, unless `budget.reference_nproc=n`", off=True),
    number("QK_GAIN_INIT", "model.attention.qk_gain_init"),
    Variable("VOCAB_SIZE", "`tokenizer=sp1024`, `sp2048` …, `tokenizer.vocab_size`", _vocabulary,
             "`model.vocab_size` follows the tokenizer"),
    whole("NUM_LAYERS", "model.num_layers"),
    whole("NUM_KV_HEADS", "model.num_kv_heads"),
    whole("MODEL_DIM", "model.model_dim"),
    whole("NUM_HEADS", "model.num_heads"),
    whole("MLP_MULT", "model.mlp_mult"),
    switch("TIE_EMBEDDINGS", "`model/head=tied`, `untied`", ["model/head=tied"], ["model/head=untied"],
            "untied, the scripts draw the embedding with deviation 1, golf with `model.init.embed_std`"),
    number("ROPE_BASE", "model.position.base"),
    Variable("LOGIT_SOFTCAP", "`model.head.softcap`", _softcap, "golf also takes null: no cap"),
    number("EMBED_LR", "optimizer.embed_lr", "untied embeddings only"),
    number("HEAD_LR", "optimizer.head_lr", "untied heads only", FIRST_THREE),
    number("TIED_EMBED_LR", "optimizer.tied_embed_lr"),
    number("TIED_EMBED_INIT_STD", "model.init.embed_std"),
    number("MATRIX_LR", "optimizer.matrix_lr"),
    number("SCALAR_LR", "optimizer.scalar_lr"),
    number("MUON_MOMENTUM", "optimizer.momentum"),
    whole("MUON_BACKEND_STEPS", "optimizer.matrix.ns_steps"),
    number("MUON_MOMENTUM_WARMUP_START", "optimizer.momentum_start"),
    whole("MUON_MOMENTUM_WARMUP_STEPS", "optimizer.momentum_warmup_steps", SCALED, least=0),
    number("BETA1", "optimizer.adam_beta1"),
    number("BETA2", "optimizer.adam_beta2"),
    number("ADAM_EPS", "optimizer.adam_eps"),
    number("GRAD_CLIP_NORM", "optimizer.grad_clip", "0: null, none", off=True),
    number("MUON_WEIGHT_DECAY", "optimizer.matrix_weight_decay", scripts=ONLY422),
    Variable("ADAM_WD", "`optimizer.adam_weight_decay`, PR 1855's `scalar_weight_decay`", _adam_decay,
             "decays gains, mixes and skip weights too", (PR422, PR1855)),
    Variable("MUON_BETA2", "`optimizer=normuon optimizer.matrix.beta2`",
             lambda env: ["optimizer=normuon", f"optimizer.matrix.beta2={env.real('MUON_BETA2')}"], "", ONLY122),
    Variable("EVAL_STRIDE", "`eval=sliding eval.stride`", _stride,
             "0: `eval=contiguous`; the recipes keep the scripts' `eval.coverage`", (PR122, PR422, PR1855)),
    Variable("EVAL_SEQ_LEN", "`eval.seq_len`", _eval_length,
             "PR 122: in effect above TRAIN_SEQ_LEN only; golf does not rescale RoPE for it, the script does",
             (PR122, PR1855)),
    Variable("SW_EVAL_BATCH", "`eval.batch_tokens`",
             lambda env: [f"eval.batch_tokens={env.whole('SW_EVAL_BATCH') * env.whole('TRAIN_SEQ_LEN')}"],
             "windows in the script, tokens in golf; no score depends on it", ONLY122),
    unused("EVAL_ROPE_BASE", "golf does not rescale RoPE at evaluation, and the record's run did not either", ONLY122),
    switch("SWA_ENABLED", "`averaging=swa`, `none`", ["averaging=swa"], ["averaging=none"], "", ONLY122),
    Variable("SWA_START_FRAC", "`averaging.start_multiplier`", _of_swa("SWA_START_FRAC", "averaging.start_multiplier"),
             "with `averaging=swa`: collect below this lr multiplier", ONLY122),
    Variable("SWA_EVERY", "`averaging.every`", _of_swa("SWA_EVERY", "averaging.every"),
             SCALED, ONLY122),
    Variable("WEIGHT_QUANTIZATION_BITS", "`quant=int6 quant.bits`", _packed_bits,
             "of the export; training rounds to `qat.bits`, always 6 in the script", ONLY122),
    Variable("EMBED_QUANTIZATION_BITS", "`quant.keep={embed:float16}`", _packed_bits, "below 16: `quant.bits.embed`",
             ONLY122),
    unused("FA3_PATH", "put the folder on PYTHONPATH and choose `model.attention.backend=flash_attn_3`", ONLY122),
    switch("SMEAR_GATE", "`technique/smear_gate=v1`, `none`", ["technique/smear_gate=v1"],
            ["technique/smear_gate=none"], "", ONLY422),
    Variable("XSA_LAST_N", "`technique/xsa=last4 technique.xsa.layers=last:N`", _exclusive,
             "0: `technique/xsa=none`", (PR422, PR1855)),
    switch("USE_NTK_ROPE", "`model/position=rope_ntk`, `rope`", ["model/position=rope_ntk"],
            ["model/position=rope", "model.position.round_frequencies=false"],
            "0 also sets `model.position.round_frequencies=false`: this script keeps exact frequencies", ONLY422),
    Variable("INIT_TYPE", "`model/init=orthogonal`, `zero_proj`",
             lambda env: [f"model/init={'orthogonal' if env.text('INIT_TYPE') == 'ortho' else 'zero_proj'}"],
             "ortho: orthogonal; anything else: zero_proj", ONLY422),
    switch("USE_EMA", "`averaging=ema`, `none`", ["averaging=ema"], ["averaging=none"], "", ONLY422),
    Variable("EMA_ALPHA", "`averaging.decay`", _ema_decay, SCALED, ONLY422),
    Variable("EMA_FROM_INIT", "`averaging.start_multiplier=null`", _ema_start, "0: EMA_START_RATIO's value", ONLY422),
    Variable("EMA_START_RATIO", "`averaging.start_multiplier`", _ema_ratio,
             "with EMA_FROM_INIT=0; the script also waits for step 200", ONLY422),
    Variable("GRAD_GUIDED_QUANT", "`quant=gradguided_raw`", _guided_bits,
             "0: `quant=int6` by place, without the script's 8 bits for first and last block", ONLY422),
    Variable("QUANT_BITS_MIDDLE", "`quant.allocation.middle`", _guided_bits,
             "with GRAD_GUIDED_QUANT=0: `quant.bits.default`", ONLY422),
    Variable("QUANT_BITS_MLP", "`quant.bits={mlp.*:N}`", _mlp_bits, "with GRAD_GUIDED_QUANT=0 only; 0 is off", ONLY422),
    Variable("FP16_EMBEDDINGS", "`quant.keep={embed:float16,head:float16}`", _kept, "0: null", ONLY422),
    Variable("COMPRESS_ALGO", "`codec=zstd`, `zlib`",
             lambda env: [f"codec={'zstd' if env.text('COMPRESS_ALGO') == 'zstd' else 'zlib'}"],
             "anything but zstd is zlib", ONLY422),
    switch("SKIP_COMPILE", "`runtime.compile=none`, `auto`", ["runtime.compile=none"], ["runtime.compile=auto"],
            "", ONLY422),
    switch("DEV_MODE", "`runtime=cpu`, `auto`", ["runtime=cpu"], ["runtime=auto"],
            "`runtime=auto` takes a GPU when there is one", ONLY422),
    Variable("OPTIMIZER_VARIANT", "–", _variant, "standard is golf's Muon; its normuon is not PR 122's", ONLY422),
    unused("SKIP_QUANT", "golf always quantizes: what counts is the score of the artifact", ONLY422, off="0"),
    unused("WINDOW_SIZE", "golf has no windowed attention, and no record used it", ONLY422, off="0"),
    unused("NUM_PHYSICAL_LAYERS", "golf shares no layers this way; `model/plan=loop` repeats some", ONLY422, off="0"),
    unused("DATA_CURRICULUM", "golf reads shards in order; give `data.train` a list to order them", ONLY422, off=""),
    unused("SEQ_CURRICULUM", "golf trains at one sequence length", ONLY422, off=""),
    unused("MAX_SLIDE_ITERS", "a shortcut for trials; `val_tokens` scores fewer tokens", ONLY422),
    unused("GRAD_ACCUM_STEPS", "a step is always eight spans; `runtime.micro_tokens` joins them", ONLY422),
    unused("CONTROL_TENSOR_NAME_PATTERNS", ROLES),
    unused("INT8_KEEP_FLOAT_FP32_NAME_PATTERNS", ROLES, FIRST_THREE),
    *environment_frontier.FRONTIER,
    whole("WORLD_SIZE", "runtime.nproc", "golf starts its own workers; `--nproc_per_node=8` is understood too"),
    unused("RANK", "golf numbers its own workers"),
    unused("LOCAL_RANK", "golf numbers its own workers"),
]  # fmt: skip
VARIABLES = {variable.name: variable for variable in TABLE}


@dataclass(frozen=True)
class Converted:
    """The recipe that was assumed, the words after it (options first), and (variable, note) for those left out."""

    recipe: str
    words: list[str]
    left_out: list[tuple[str, str]]


KEYS = {
    "ADAM_WEIGHT_DECAY": "optimizer.adam_weight_decay", "EMA_ENABLED": "averaging",
    "EVAL_BATCH_SEQS": "eval.batch_tokens", "NPROC": "runtime.nproc", "SWA": "averaging", "VAL_DOCS": "data.val_docs",
    "WEIGHT_DECAY": "optimizer.matrix_weight_decay",
}  # fmt: skip


"""Variables of other scripts, and the key of golf's that does most nearly the same."""


def unknown(given: Iterable[str]) -> list[str]:
    """The variables that no script of the records reads, nor other software."""
    return [name for name in given if name not in VARIABLES and not PASSED_ON.fullmatch(name)]


def near(name: str) -> str | None:
    """What an unknown variable may be for in golf, or a variable that is spelled nearly so."""
    if name in KEYS:
        return KEYS[name]
    return next(iter(difflib.get_close_matches(name, sorted(VARIABLES), n=1, cutoff=0.8)), None)


def refusal(names: list[str]) -> str:
    """What to say of unknown variables: each once, and what comes near."""
    if len(names) == 1:
        key = KEYS.get(names[0])
        hint = f"(golf has {key})" if key else did_you_mean(names[0], VARIABLES)
        return f"{names[0]}: no script of the records reads this variable {hint}".rstrip()
    hints = [f"{name}: {found}" for name in names if (found := near(name))]
    told = f"{', '.join(names)}: no script of the records reads these variables"
    return f"{told}\nnear: {', '.join(hints)}" if hints else told


def convert(given: Mapping[str, str], recipe: str | None = None, assumed: Mapping[str, str] | None = None) -> Converted:
    """Variables as golf's words, on the given recipe or the one whose script reads most of them.

    Without a recipe a script's own defaults count too, where they are not the record's. `assumed` holds values of
    variables that are not given. Raises ConfigError for variables that no script reads and for a value that one could
    not have.
    """
    known = [name for name in given if name in VARIABLES]
    if names := unknown(given):
        raise ConfigError(refusal(names))
    found: dict[str, str] = {}
    if recipe is None:
        recipe = max(SCRIPTS, key=lambda script: sum(script in VARIABLES[name].scripts for name in known))
        given = {**DEFAULTS[recipe], **given}
        found = {word.split("=", 1)[0]: word for word in OTHERWISE.get(recipe, ())}
    env = Environment(given, {**ASSUMED, **(assumed or {})}, recipe)
    left_out = [(name, "passed on to golf's processes as it is") for name in given if name not in VARIABLES]
    for variable in TABLE:
        if variable.name in given:
            try:
                found |= {word.split("=", 1)[0]: word for word in variable.convert(env)}
            except Ignored as reason:
                left_out.append((variable.name, str(reason)))
    return Converted(recipe, sorted(found.values(), key=_is_value), left_out)


def _is_value(word: str) -> bool:
    """False for `group=option`, so that options sort before the keys that they bring."""
    key = word.split("=", 1)[0]
    return not (
        "/" in key or key in ("data", "tokenizer", "optimizer", "averaging", "quant", "codec", "eval", "runtime")
    )
