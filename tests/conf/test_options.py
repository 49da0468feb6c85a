"""Every yaml under conf/ composes, fits its constructor, and instantiates."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from golf.common.paths import conf_dir
from golf.launch.compose import annotations, build
from golf.launch.compose.configs import compose_job, composer, groups, options, resolved
from golf.nn.techniques.base import Technique

REQUIRED = {
    "data=text": ["data.paths=[{text}]"],
    "data=docs": ["data.docs={text}"],
    "data=hf": ["data.repo=owner/name"],
    "data=shards": ["data.train={text}", "data.val={text}"],
}
GUIDE = Path(__file__).parents[2] / "CONTRIBUTING.md"
CHOICES = [f"{group}={option}" for group in groups() for option in options(group) if group not in ("hydra", "local")]


@pytest.fixture(autouse=True)
def composing() -> Iterator[None]:
    """Hydra's compose API over golf's conf."""
    with composer():
        yield


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A small corpus, for the options that want files."""
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": f"document {i}"}) + "\n" for i in range(20)))
    return path


@cache
def composed(*overrides: str) -> dict[str, Any]:
    """A resolved config, which no test may change."""
    return resolved(compose_job(list(overrides)))


def components(node: Any) -> Iterator[dict[str, Any]]:
    """Every node with a `_target_`, outermost first."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield node
        for value in node.values():
            yield from components(value)


@pytest.mark.parametrize("choice", CHOICES)
def test_every_option_passes_the_check(choice: str, text: Path) -> None:
    if choice == "runtime=cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    extra = [word.format(text=text) for word in REQUIRED.get(choice, [])]
    full_size = [] if choice.startswith("recipe=") else ["recipe=none"]
    build.check(composed(*full_size, choice, *extra))


@pytest.mark.parametrize("file", sorted(conf_dir().rglob("*.yaml")), ids=lambda p: p.relative_to(conf_dir()).as_posix())
def test_a_yaml_lists_every_setting_of_its_component(file: Path) -> None:
    content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    handed_over = {
        "shape", "numerics", "layer", "position", "techniques", "visits", "num_layers", "compute", "plans", "feed",
    }  # fmt: skip
    for node in components(content):
        target = annotations.locate(node["_target_"], file.name)
        settings = {name for name in inspect.signature(target).parameters if name != "kwargs"}
        if node.get("_partial_"):
            settings -= handed_over
        given = {name for name in node if name not in annotations.SPECIAL}
        if isinstance(target, type) and issubclass(target, Technique):
            given -= {"layers"}
        from_defaults = {
            entry_name for entry in content.get("defaults", []) if isinstance(entry, dict) for entry_name in entry
        }
        assert settings - handed_over <= given | from_defaults, "a setting without a key can't be overridden"


@pytest.mark.parametrize("choice", [c for c in CHOICES if c.startswith("recipe=")])
@pytest.mark.parametrize("budget", ["record_10min", "proxy", "smoke"])
def test_every_recipe_composes_at_every_budget(choice: str, budget: str) -> None:
    build.check(composed(choice, f"budget={budget}"))


@pytest.mark.parametrize("recipe", sorted(conf_dir().glob("recipe/*.yaml")), ids=lambda p: p.stem)
def test_recipes_are_short_and_leave_the_budget_alone(recipe: Path) -> None:
    lines = recipe.read_text(encoding="utf-8").splitlines()
    told = re.search(r"a yaml of at most (\d+) lines in `conf/recipe/`", GUIDE.read_text(encoding="utf-8"))
    assert told is not None
    assert len(lines) <= int(told[1])
    assert max(map(len, lines)) <= 100
    assert "budget" not in (yaml.safe_load("\n".join(lines)) or {})


OWN_SETTINGS = {"eval": {"coverage"}}
"""What recipes set in these groups, for any of their options."""


@pytest.mark.parametrize("recipe", ["sp2048_normuon_int6", "gradquant_11l"])
@pytest.mark.parametrize("group", ["quant", "codec", "eval", "averaging", "qat"])
def test_an_option_on_the_line_is_that_option_whatever_the_recipe(recipe: str, group: str) -> None:
    for option in options(group):
        words = [f"{group}={option}", *(["eval.coverage=full"] if option == "document" else [])]  # it knows no other
        chosen, alone = composed(f"recipe={recipe}", *words), composed("recipe=none", *words)
        build.check(chosen)
        from_elsewhere = OWN_SETTINGS.get(group, set()) | {"seq_len", "trained_seq_len"}
        kept = [{k: v for k, v in config[group].items() if k not in from_elsewhere} for config in (chosen, alone)]
        assert kept[0] == kept[1], option


def test_smoke_keeps_what_the_recipe_is_about() -> None:
    full, smoke = composed("recipe=gradquant_11l"), composed("recipe=gradquant_11l", "budget=smoke")
    assert smoke["technique"] == full["technique"]
    assert smoke["model"]["num_layers"] == full["model"]["num_layers"]
    assert smoke["quant"] == {**full["quant"], "passthrough_numel": 1024}  # else a tiny model has nothing to quantize
    assert smoke["eval"]["_target_"] == full["eval"]["_target_"]
    assert smoke["eval"]["stride"] == full["eval"]["stride"]
    sizes = {k: smoke["model"][k] for k in ("model_dim", "num_heads", "num_kv_heads")}
    assert sizes == {"model_dim": 64, "num_heads": 4, "num_kv_heads": 2}
    assert (smoke["train_seq_len"], smoke["train_batch_tokens"], smoke["schedule"]["iterations"]) == (128, 4096, 30)


def test_the_command_line_wins_over_recipe_and_budget() -> None:
    config = composed(
        "recipe=quickstart", "budget=smoke", "model.num_layers=3", "model.model_dim=96", "train_seq_len=64"
    )
    assert (config["model"]["num_layers"], config["model"]["model_dim"], config["train_seq_len"]) == (3, 96, 64)


@pytest.mark.parametrize(
    ("words", "warmdown"),
    [((), 533), (("schedule.iterations=200",), 133), (("schedule.iterations=200", "schedule.warmdown_iters=50"), 50)],
)
def test_the_quickstarts_warmdown_is_a_part_of_its_steps(words: tuple[str, ...], warmdown: int) -> None:
    assert composed("recipe=quickstart", *words)["schedule"]["warmdown_iters"] == warmdown


FIXED_NAMES = [
    "model.num_layers", "model.model_dim", "model.num_heads", "model.num_kv_heads", "model.mlp_mult",
    "model.vocab_size",
    "schedule.iterations", "train_batch_tokens", "train_seq_len", "eval.seq_len", "budget.train_seconds",
    "budget.eval_seconds", "budget.artifact_bytes", "budget.fraction", "schedule.warmup_steps",
    "schedule.warmdown_iters",
    "schedule.warmdown_frac", "optimizer.matrix_lr", "optimizer.embed_lr", "optimizer.tied_embed_lr",
    "optimizer.head_lr", "optimizer.scalar_lr", "runtime.nproc", "seed",
]  # fmt: skip


@pytest.mark.parametrize("name", [*FIXED_NAMES, "eval.stride"])
def test_fixed_key(name: str) -> None:
    node: Any = composed("eval=sliding")
    for part in name.split("."):
        node = node[part]
    assert node is not None or name in ("schedule.warmdown_frac",)


@pytest.mark.parametrize(
    "choice",
    ["recipe=naive_baseline", "recipe=seq4096", "recipe=sp2048_normuon_int6", "recipe=gradquant_11l",
    "budget=record_10min",
     "budget=proxy", "budget=smoke", "runtime=auto", "runtime=cpu", "runtime=cuda", "logger=wandb", "logger=jsonl"],
)  # fmt: skip
def test_fixed_option(choice: str) -> None:
    group, option = choice.split("=")
    assert option in options(group)


def test_no_option_reads_as_a_boolean() -> None:
    assert not {name for group in groups() for name in options(group)} & {"on", "off", "yes", "no", "true", "false"}


def test_resolved_configs_hold_nothing_of_hydra() -> None:
    assert "${" not in json.dumps(composed("recipe=quickstart"))


def test_proxy_differs_from_a_record_in_its_fraction_alone() -> None:
    record, proxy = composed("budget=record_10min")["budget"], composed("budget=proxy")["budget"]
    assert {k for k in record if record[k] != proxy[k]} == {"fraction"}


def test_what_a_recipe_fits_into_is_the_budgets_limit() -> None:
    assert composed("recipe=frontier", "budget.artifact_bytes=8000000")["quant"]["fit"] == 8_000_000
