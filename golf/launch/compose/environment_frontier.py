"""The environment variables of pull request 1855's script, the CaseOps records', and what each is called in golf."""

from __future__ import annotations

from golf.common.errors import ConfigError
from golf.launch.compose.environment_values import (
    PR1855,
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

ONLY1855 = (PR1855,)

DEFAULTS = {
    "TRAIN_BATCH_TOKENS": "786432", "WARMDOWN_FRAC": "0.75", "MIN_LR": "0", "BETA2": "0.95", "EMBED_BITS": "8",
    "MLP_CLIP_SIGMAS": "10.0", "EMBED_CLIP_SIGMAS": "20.0", "SPARSE_ATTN_GATE_ENABLED": "0", "SMEAR_GATE_ENABLED": "0",
    "LQER_ENABLED": "1", "LQER_TOP_K": "3",
}  # fmt: skip
"""What the script has where nothing is given and its record had another; the recipe has the record's."""

OTHERWISE = ("loader=packed", "quant=int6_gptq")
"""What the recipe has otherwise than the record, and no variable says."""

ASSUMED = {
    "CASEOPS_ENABLED": "0", "NUM_LAYERS": "11", "SPARSE_ATTN_GATE_ENABLED": "1", "GATED_ATTN_ENABLED": "0",
    "ATTN_OUT_GATE_ENABLED": "0", "SMEAR_GATE_ENABLED": "1", "LQER_ENABLED": "1", "MATRIX_BITS": "6", "EMBED_BITS": "7",
    "MATRIX_CLIP_SIGMAS": "12.85", "ATTN_CLIP_SIGMAS": "13.0", "MLP_CLIP_SIGMAS": "11.5", "EMBED_CLIP_SIGMAS": "14.0",
    "NUM_LOOPS": "2", "LOOP_START": "3", "LOOP_END": "5", "ENABLE_LOOPING_AT": "0.35",
}  # fmt: skip
"""Values of the variables that others depend on."""

_CASEOPS = "fineweb10B_sp8192_caseops/datasets"
_RESERVED = "8192_bpe_lossless_caps_caseops_v1_reserved.model"


def _root(env: Environment) -> list[str]:
    """DATA_DIR: the folder in which the script looks for what has no path of its own."""
    folder, words = env.text("DATA_DIR").rstrip("/"), list[str]()
    if not env.on("CASEOPS_ENABLED"):
        if "DATA_PATH" in env.given:
            raise Ignored("DATA_PATH says where the shards are")
        return ["data=fineweb", f"data.folder={quoted(folder)}"]
    root = f"{folder}/datasets/{_CASEOPS}"
    if "DATA_PATH" not in env.given:
        shards = f"{root}/datasets/fineweb10B_sp8192_lossless_caps_caseops_v1_reserved"
        words += ["data=shards", *(f"data.{s}={quoted(f'{shards}/fineweb_{s}_*.bin')}" for s in ("train", "val"))]
    if "TOKENIZER_PATH" not in env.given:
        words += ["tokenizer=sp8192", f"tokenizer.model_path={quoted(f'{root}/tokenizers/fineweb_{_RESERVED}')}"]
    if not words:
        raise Ignored("DATA_PATH and TOKENIZER_PATH say where everything is")
    return words


def _gate(env: Environment) -> list[str]:
    """The one of three gates of attention's output that is on."""
    gates = (("SPARSE_ATTN_GATE", "sparse"), ("GATED_ATTN", "dense"), ("ATTN_OUT_GATE", "doubled"))
    return [f"technique/attn_gate={next((name for one, name in gates if env.on(f'{one}_ENABLED')), 'none')}"]


def _of_gate(name: str, key: str, gate: str) -> Convert:
    def convert(env: Environment) -> list[str]:
        if not env.on(f"{gate}_ENABLED"):
            raise Ignored(f"without effect while {gate}_ENABLED=0")
        return [*_gate(env), f"technique.attn_gate.{key}={env.real(name)}"]

    return convert


def _window(env: Environment) -> list[str]:
    width, words = env.whole("GATE_WINDOW"), list[str]()
    if env.on("SPARSE_ATTN_GATE_ENABLED"):
        words += [*_gate(env), f"technique.attn_gate.width={width}"]
    if env.on("SMEAR_GATE_ENABLED"):
        words += ["technique/smear_gate=v2", f"technique.smear_gate.width={width}"]
    if not words:
        raise Ignored("without effect while both gates are off")
    return words


def _loops(env: Environment) -> list[str]:
    passes = env.whole("NUM_LOOPS") + 1
    if passes < 2:
        return ["phases=[]"]
    first, last = env.whole("LOOP_START"), env.whole("LOOP_END")
    changes = f"model.plan: loop, model.plan.passes: {passes}"
    changes += f", model.plan.first: {first}, model.plan.last: {last}" if (first, last) != (3, 5) else ""
    return [f"phases=[{{from: {env.real('ENABLE_LOOPING_AT')}, set: {{{changes}}}}}]"]


def _lanes(env: Environment) -> list[str]:
    start, layers = env.whole("PARALLEL_START_LAYER"), env.whole("NUM_LAYERS")
    if not 0 <= start < layers:
        raise ConfigError(f"PARALLEL_START_LAYER={start}: a layer below NUM_LAYERS={layers}")
    return ["model/residual=two_lane", f"model.residual.lanes=last:{layers - start}"]


def _bits(env: Environment) -> list[str]:
    return ["quant=int6_gptq", f"quant.bits={{default:{env.whole('MATRIX_BITS')},embed:{env.whole('EMBED_BITS')}}}"]


def _sigmas(env: Environment) -> list[str]:
    parts = {"default": "MATRIX", "attn.*": "ATTN", "mlp.*": "MLP", "embed": "EMBED"}
    told = ",".join(f"{place}:{env.real(f'{name}_CLIP_SIGMAS')}" for place, name in parts.items())
    return ["quant=int6_gptq", f"quant.k={{{told}}}"]


def _of_lqer(name: str, key: str) -> Convert:
    def convert(env: Environment) -> list[str]:
        if not env.on("LQER_ENABLED"):
            raise Ignored("without effect while LQER_ENABLED=0")
        return ["quant=int6_gptq", f"quant.lqer.{key}={env.whole(name)}"]

    return convert


def _lqer(env: Environment) -> list[str]:
    if env.on("LQER_ENABLED"):
        raise Ignored("LQER_TOP_K says for how many tensors")
    return ["quant=int6_gptq", "quant.lqer.tensors=0"]


def _codec(env: Environment) -> list[str]:
    if (name := env.text("COMPRESSOR")) in ("brotli", "lzma"):
        return [f"codec={name}"]
    raise Ignored("golf sorts no rows and calls no lrzip; the recipe's `codec=ans` packs as well")


TTT = "golf has no test-time training: the score is that of `eval=document` without it"

FRONTIER = [
    switch("CASEOPS_ENABLED", "`tokenizer/transform=caseops`, `none`", ["tokenizer/transform=caseops"],
           ["tokenizer/transform=none"], "the bytes are those of the side-car beside the validation shards", ONLY1855),
    Variable("DATA_DIR", "`data=fineweb data.folder`", _root,
             "with CASEOPS_ENABLED=1 `data.train`, `data.val` and `tokenizer.model_path` below it", ONLY1855),
    number("WARMDOWN_FRAC", "schedule.warmdown_frac", scripts=ONLY1855),
    number("MIN_LR", "schedule.floor", scripts=ONLY1855),
    number("MUON_WD", "optimizer.matrix_weight_decay", scripts=ONLY1855),
    number("EMBED_WD", "optimizer.adam_weight_decay", scripts=ONLY1855),
    switch("MUON_ROW_NORMALIZE", "`optimizer.matrix.row_norm`", ["optimizer.matrix.row_norm=true"],
           ["optimizer.matrix.row_norm=false"], "", ONLY1855),
    Variable("EMA_DECAY", "`averaging=ema averaging.decay`",
             lambda env: ["averaging=ema", f"averaging.decay={env.real('EMA_DECAY')}"], "", ONLY1855),
    Variable("VAL_BATCH_TOKENS", "`eval.batch_tokens`",
             lambda env: [f"eval.batch_tokens={max(env.whole('VAL_BATCH_TOKENS') // 8, 1)}"],
             "an eighth of it, as VAL_BATCH_SIZE", ONLY1855),
    whole("ROPE_DIMS", "model.position.dims", scripts=ONLY1855),
    switch("LN_SCALE", "`model.residual.norm_scale=depth`, `none`", ["model.residual.norm_scale=depth"],
           ["model.residual.norm_scale=none"], "", ONLY1855),
    switch("SKIP_GATES_ENABLED", "`model.residual.skip_gates`", ["model.residual.skip_gates=true"],
           ["model.residual.skip_gates=false"], "", ONLY1855),
    Variable("NUM_LOOPS", "`phases=[{from: …, set: {model.plan: loop, …}}]`", _loops,
             "one pass more than loops; 0: `phases=[]`", ONLY1855),
    *(Variable(name, "`phases`", _loops, "with NUM_LOOPS", ONLY1855)
      for name in ("LOOP_START", "LOOP_END", "ENABLE_LOOPING_AT")),
    Variable("PARALLEL_START_LAYER", "`model.residual.lanes=last:N`", _lanes, "counted from the end", ONLY1855),
    unused("PARALLEL_FINAL_LANE", "golf's two lanes end in their mean", ONLY1855, off="mean"),
    Variable("SPARSE_ATTN_GATE_ENABLED", "`technique/attn_gate=sparse`, `none`", _gate, "", ONLY1855),
    Variable("GATED_ATTN_ENABLED", "`technique/attn_gate=dense`, `none`", _gate, "", ONLY1855),
    Variable("ATTN_OUT_GATE_ENABLED", "`technique/attn_gate=doubled`, `none`", _gate, "", ONLY1855),
    Variable("SPARSE_ATTN_GATE_SCALE", "`technique.attn_gate.slope`",
             _of_gate("SPARSE_ATTN_GATE_SCALE", "slope", "SPARSE_ATTN_GATE"), "", ONLY1855),
    Variable("SPARSE_ATTN_GATE_INIT_STD", "`technique.attn_gate.init_std`",
             _of_gate("SPARSE_ATTN_GATE_INIT_STD", "init_std", "SPARSE_ATTN_GATE"), "", ONLY1855),
    Variable("GATED_ATTN_INIT_STD", "`technique.attn_gate.init_std`",
             _of_gate("GATED_ATTN_INIT_STD", "init_std", "GATED_ATTN"), "", ONLY1855),
    unused("ATTN_OUT_GATE_SRC", "golf's gate reads the block's normed input", ONLY1855, off="proj"),
    switch("SMEAR_GATE_ENABLED", "`technique/smear_gate=v2`, `none`", ["technique/smear_gate=v2"],
           ["technique/smear_gate=none"], "never across a document's beginning", ONLY1855),
    Variable("GATE_WINDOW", "`technique.attn_gate.width`, `technique.smear_gate.width`", _window, "", ONLY1855),
    Variable("MATRIX_BITS", "`quant.bits.default`", _bits, "", ONLY1855),
    Variable("EMBED_BITS", "`quant.bits.embed`", _bits, "", ONLY1855),
    *(Variable(f"{name}_CLIP_SIGMAS", f"`quant.k={{{place}: …}}`", _sigmas, "", ONLY1855)
      for name, place in (("MATRIX", "default"), ("ATTN", "attn.*"), ("MLP", "mlp.*"), ("EMBED", "embed"))),
    Variable("LQER_ENABLED", "`quant.lqer.tensors=0` for 0", _lqer, "1: as many as LQER_TOP_K", ONLY1855),
    Variable("LQER_TOP_K", "`quant.lqer.tensors`", _of_lqer("LQER_TOP_K", "tensors"), "", ONLY1855),
    Variable("LQER_RANK", "`quant.lqer.rank`", _of_lqer("LQER_RANK", "rank"), "", ONLY1855),
    Variable("LQER_FACTOR_BITS", "`quant.lqer.b_bits`", _of_lqer("LQER_FACTOR_BITS", "b_bits"), "", ONLY1855),
    Variable("LQER_ASYM_GROUP", "`quant.lqer.group`", _of_lqer("LQER_ASYM_GROUP", "group"), "", ONLY1855),
    unused("LQER_ASYM_ENABLED", "golf has A in `quant.lqer.a_bits` and B in groups, as the script's asymmetric form",
           ONLY1855),
    number("GPTQ_RESERVE_SECONDS", "quant.reserve_s", scripts=ONLY1855),
    unused("GPTQ_CALIBRATION_BATCHES", "golf counts windows of training text: `quant.windows`", ONLY1855),
    unused("GATED_ATTN_QUANT_GATE", "golf keeps small tensors whole: `quant.passthrough_numel`, `quant.small`",
           ONLY1855, off="0"),
    Variable("COMPRESSOR", "`codec=brotli`, `lzma`", _codec, "pergroup: the recipe's `codec=ans`", ONLY1855),
    unused("FUSED_CE_ENABLED", "golf fuses it where it can: `runtime.kernels=reference` fuses nothing", ONLY1855),
    unused("ROPE_YARN", "golf does not rescale RoPE so, and the record's run did not either", ONLY1855, off="0"),
    unused("ROPE_TRAIN_SEQ_LEN", "golf does not rescale RoPE in evaluation", ONLY1855),
    unused("VAL_DOC_FRACTION", "`val_tokens` scores fewer tokens", ONLY1855, off="1.0"),
    unused("ARTIFACT_DIR", "the run's folder holds everything: `hydra.run.dir`", ONLY1855),
    *(unused(name, TTT, ONLY1855) for name in (
        "TTT_ENABLED", "PHASED_TTT_ENABLED", "PHASED_TTT_PREFIX_DOCS", "PHASED_TTT_NUM_PHASES", "TTT_LORA_RANK",
        "TTT_LORA_LR", "TTT_CHUNK_SIZE", "TTT_EVAL_SEQ_LEN", "TTT_BATCH_SIZE", "TTT_GRAD_STEPS", "TTT_WEIGHT_DECAY",
        "TTT_BETA1", "TTT_BETA2", "TTT_K_LORA", "TTT_MLP_LORA", "TTT_O_LORA", "TTT_OPTIMIZER", "TTT_EVAL_BATCHES",
        "GLOBAL_TTT_LR", "GLOBAL_TTT_MOMENTUM", "GLOBAL_TTT_EPOCHS", "GLOBAL_TTT_CHUNK_TOKENS", "GLOBAL_TTT_BATCH_SEQS",
        "GLOBAL_TTT_WARMUP_START_LR", "GLOBAL_TTT_WARMUP_CHUNKS", "GLOBAL_TTT_GRAD_CLIP",
        "GLOBAL_TTT_RESPECT_DOC_BOUNDARIES")),
]  # fmt: skip
