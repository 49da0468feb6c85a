"""The original systems: their golden tensors, their names for things, and golf's recipes of them at any size.

$GOLF_GOLDEN_DIR, or the folder beside this file, holds the goldens; sizes are read from there, never assumed.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from golf.launch.compose.build import build_model
from golf.launch.compose.configs import compose_job, composer, resolved
from golf.nn.models.gpt import GPT

NAMES = {
    r"tok_emb\.weight": r"embedding",
    r"skip_weights": r"residual.skip_weights",
    r"smear_gate_param": r"at_post_embed.smear_gate.gate",
    r"blocks\.(\d+)\.attn\.c_([qkv])\.weight": r"blocks.\1.attn.\2.weight",
    r"blocks\.(\d+)\.attn\.proj\.weight": r"blocks.\1.attn.proj.weight",
    r"blocks\.(\d+)\.attn\.q_gain": r"blocks.\1.attn.gain",
    r"blocks\.(\d+)\.mlp\.fc\.weight": r"blocks.\1.mlp.up.weight",
    r"blocks\.(\d+)\.mlp\.proj\.weight": r"blocks.\1.mlp.down.weight",
    r"blocks\.(\d+)\.(attn_scale|mlp_scale)": r"residual.layers.\1.\2",
    r"blocks\.(\d+)\.resid_mix": r"residual.layers.\1.mix",
}
"""The originals' parameter names, as patterns, and golf's."""

GLOBAL_IDS = {"embedding": 1, "residual.skip_weights": 2, "at_post_embed.smear_gate.gate": 3}
LAYER_IDS = ("attn.q", "attn.k", "attn.v", "attn.proj", "mlp.up", "mlp.down", "attn_scale", "mlp_scale", "mix", "gain")


def golf_name(original: str) -> str:
    """golf's state_dict name of a parameter that an original system calls `original`."""
    for pattern, name in NAMES.items():
        if re.fullmatch(pattern, original):
            return re.sub(pattern, name, original)
    raise KeyError(original)


def tensor_id(name: str) -> int:
    """The number of a parameter in the deterministic fill: 1 to 3 global, 10 (layer + 1) + 0 … 9 in a layer."""
    if name in GLOBAL_IDS:
        return GLOBAL_IDS[name]
    layer, leaf = re.fullmatch(r"(?:blocks|residual\.layers)\.(\d+)\.(.*?)(?:\.weight)?", name).groups()  # type: ignore[union-attr]
    return 10 * (int(layer) + 1) + LAYER_IDS.index("gain" if leaf == "attn.gain" else leaf)


def uniform(number: int, shape: tuple[int, ...]) -> Tensor:
    """2·frac(sin(12.9898 i + 78.233 number)·43758.5453) − 1 for i = 1 … n, float64, then float32."""
    z = np.sin(12.9898 * np.arange(1, int(np.prod(shape)) + 1) + 78.233 * number) * 43758.5453
    return torch.from_numpy((2 * (z - np.floor(z)) - 1).astype(np.float32)).reshape(shape)


def filled(name: str, shape: torch.Size) -> Tensor:
    """The value of a parameter in the deterministic fill: nothing of it hides behind a zero or a one."""
    number, u = tensor_id(name), uniform(tensor_id(name), tuple(shape)).double()
    kind = number % 10 if number >= 10 else -number
    if kind == -1:
        return (0.5 * u).float()
    if kind == -3:
        return (0.5 * u).float()
    if 0 <= kind <= 5:
        return (u * (3 / shape[1]) ** 0.5).float()
    if kind in (6, 7, -2):
        return (1 + 0.2 * u).float()
    if kind == 8:
        return (0.2 * u + torch.tensor([[1.0], [0.0]])).float()
    return (1.5 + 0.3 * u).float()


@functools.cache
def _config(recipe: str, overrides: tuple[str, ...]) -> str:
    with composer():
        words = [f"recipe={recipe}", "runtime=cpu", "logger=jsonl", *overrides]
        return json.dumps(resolved(compose_job(words)))


def recipe_config(recipe: str, *overrides: str) -> dict[str, Any]:
    """A recipe's composed config, on the CPU in float32."""
    config: dict[str, Any] = json.loads(_config(recipe, overrides))
    return config


def size_overrides(sizes: Mapping[str, Any]) -> list[str]:
    """Overrides that give a recipe the sizes and switches of an original's `config`."""
    words = [
        f"model.{key}={sizes[key]}" for key in ("num_layers", "model_dim", "num_heads", "num_kv_heads", "mlp_mult")
    ]
    words += [
        f"tokenizer.vocab_size={sizes['vocab_size']}",
        f"train_seq_len={sizes['seq_len']}",
        f"model/head={'tied' if sizes.get('tie_embeddings', True) else 'untied'}",
        f"model.head.softcap={sizes.get('logit_softcap', 30.0)}",
        f"model.position.base={sizes.get('rope_base', 10000.0)}",
        f"model.attention.qk_gain_init={sizes.get('qk_gain_init', 1.5)}",
    ]
    if sizes["seq_len"] < 64:  # the recipes' stride is longer than that window; tests of sliding set their own
        words.append(f"eval.stride={sizes['seq_len']}")
    if "ntk_seq_len" in sizes:
        words.append(f"model.position.ntk_seq_len={sizes['ntk_seq_len'] or 'null'}")
    if "smear_gate" in sizes:
        words.append(f"technique/smear_gate={'v1' if sizes['smear_gate'] else 'none'}")
    if "xsa_last_n" in sizes:
        last = sizes["xsa_last_n"]
        words += [f"technique.xsa.layers=last:{last}"] if last else ["technique/xsa=none"]
    return words


class Golden:
    """One original system's recorded facts and tensors, and golf's recipe of it at the recorded size."""

    def __init__(self, folder: Path, system: str) -> None:
        self.system = system
        self.facts: dict[str, Any] = json.loads((folder / f"{system}.json").read_text())
        self.tensors = load_file(folder / f"{system}.safetensors")
        self.sizes: dict[str, Any] = self.facts["config"]
        self.config = recipe_config(system, *size_overrides(self.sizes))

    def model(self, compute: str = "float32") -> GPT:
        """golf's model with the original's weights."""
        model = build_model(self.config, compute)
        model.load_state_dict(self.renamed("weight/"))
        return model

    def renamed(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under `prefix`, by golf's names."""
        chosen = {k.removeprefix(prefix): t for k, t in self.tensors.items() if k.startswith(prefix)}
        return {golf_name(name): t for name, t in chosen.items() if t.numel()}  # one layer has no skips: 0 × D there


class Originals:
    """What the parity tests share, handed out by the fixture `originals`."""

    systems = ("naive_baseline", "sp2048_normuon_int6", "gradquant_11l")
    recipes = ("naive_baseline", "seq4096", "sp2048_normuon_int6", "gradquant_11l")
    config = staticmethod(recipe_config)
    size_overrides = staticmethod(size_overrides)
    uniform = staticmethod(uniform)
    tensor_id = staticmethod(tensor_id)

    def __init__(self, folder: Path) -> None:
        self.golden = functools.cache(functools.partial(Golden, folder))

    @staticmethod
    def small_config(recipe: str, num_layers: int, *overrides: str) -> dict[str, Any]:
        """A recipe at V 1024, D 128, H 4, Hkv 2, T 64, XSA (where it has it) on the last two layers."""
        words = [
            f"model.num_layers={num_layers}", "model.model_dim=128", "model.num_heads=4", "model.num_kv_heads=2",
            "train_seq_len=64", "tokenizer.vocab_size=1024",
        ]  # fmt: skip
        if recipe == "gradquant_11l" and "technique/xsa=none" not in overrides:
            words.append("technique.xsa.layers=last:2")
        return recipe_config(recipe, *words, *overrides)

    @staticmethod
    def filled_model(config: dict[str, Any]) -> GPT:
        """The model of a config with the deterministic fill."""
        model = build_model(config, "float32")
        model.load_state_dict({name: filled(name, value.shape) for name, value in model.state_dict().items()})
        return model


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The folder of golden files; other sizes and seeds of the same checks may stand in another one."""
    return Path(os.environ.get("GOLF_GOLDEN_DIR") or Path(__file__).parent / "golden")


@pytest.fixture(scope="session")
def originals(golden_dir: Path) -> Originals:
    """Configs, models and goldens of the original systems."""
    return Originals(golden_dir)
