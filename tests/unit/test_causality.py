"""For all that conf/ offers: a later token changes no earlier prediction, pruned forwards score like whole ones, and
documents that share a row do not see each other."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
import torch

from golf.common.errors import ConfigError
from golf.launch.compose.annotations import locate
from golf.launch.compose.build import build_model
from golf.launch.compose.configs import compose_job, composer, discovered, options, resolved
from golf.nn.models.gpt import GPT

VOCAB, TIME, LAYERS = 64, 24, 5
SIZES = [
    f"model.num_layers={LAYERS}", "model.model_dim=32", "model.num_heads=4", "model.num_kv_heads=2",
    f"train_seq_len={TIME}", "runtime=cpu", "logger=jsonl",
]  # fmt: skip
SLOTS = ["attention", "mlp", "position", "residual", "plan", "head", "init", "numerics"]
PLAN = {"loop": ["model.plan.first=1", "model.plan.last=3", "model.plan.passes=2"]}
BORDERS = (0, 1, 7, 15, TIME - 2)
"""Positions after which everything is changed."""

CHOICES = [f"technique/{name}={option}" for name in discovered("technique") for option in options(f"technique/{name}")]
ALONE = [choice for choice in CHOICES if not choice.endswith("=none")]
PAIRS = [(a, b) for a, b in itertools.combinations(ALONE, 2) if a.split("=")[0] != b.split("=")[0]]
VARIANTS = [f"model/{slot}={option}" for slot in SLOTS for option in options(f"model/{slot}")]
RECIPES = [option for option in options("recipe") if option != "none"]


@functools.cache
def composed(*overrides: str, recipe: str = "none") -> dict[str, Any]:
    with composer():
        return resolved(compose_job([f"recipe={recipe}", *SIZES, *overrides, f"tokenizer.vocab_size={VOCAB}"]))


def named(choice: str) -> str:
    """The technique that `technique/NAME=OPTION` chooses."""
    return choice.removeprefix("technique/").split("=")[0]


def built(*overrides: str, recipe: str = "none") -> GPT:
    """A tiny model on the CPU with random weights everywhere: nothing is masked by a zero or a one."""
    config = composed(*(word for word in overrides if word not in ALONE), recipe=recipe)
    chosen = {named(choice): composed(choice)["technique"][named(choice)] for choice in overrides if choice in ALONE}
    model = build_model({**config, "technique": {**config["technique"], **chosen}}, "float32").eval()
    model.border_id = 1
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.5)
    return model


def ids() -> torch.Tensor:
    """[2, TIME] with a document's start (id 1) in the middle."""
    chosen = torch.randint(2, VOCAB, (2, TIME), generator=torch.Generator().manual_seed(1))
    chosen[:, 8] = 1
    return chosen


@torch.no_grad()
def check_causal(model: GPT) -> None:
    x = ids()
    before = model(x)
    for border in BORDERS:
        changed = x.clone()
        changed[:, border + 1 :] = (x[:, border + 1 :] + 17) % VOCAB
        after = model(changed)
        leaked = (after[:, : border + 1] - before[:, : border + 1]).abs().max()
        assert leaked <= 1e-6, f"position {border} or before sees what follows"
        assert not torch.equal(after[:, border + 1], before[:, border + 1])


@torch.no_grad()
def check_pruned(model: GPT) -> None:
    x = ids()
    y = x.roll(-1, 1)
    whole = model(x, y, reduction="none")
    for score_from in (0, 1, TIME // 2, TIME - 1):
        pruned = model(x, y, reduction="none", score_from=score_from)
        assert pruned.shape == (2, TIME - score_from)
        assert torch.allclose(pruned, whole[:, score_from:], rtol=2e-6, atol=2e-6)


@torch.no_grad()
def check_packed(model: GPT) -> None:
    """Documents in one row score as each does alone, and a changed one changes no other."""
    assert model.cannot_pack is None
    sizes = (9, 1, 14, TIME, 3)
    x = torch.randint(1, VOCAB, (1, sum(sizes)), generator=torch.Generator().manual_seed(2))
    y = x.roll(-1, 1)
    borders = torch.tensor([0, *torch.tensor(sizes).cumsum(0), sum(sizes)], dtype=torch.int32)
    packed = model(x, y, reduction="none", borders=borders)
    alone = [model(a, b, reduction="none") for a, b in zip(x.split(sizes, 1), y.split(sizes, 1), strict=True)]
    assert torch.allclose(packed, torch.cat(alone, 1), rtol=1e-5, atol=1e-4)
    changed = x.clone()
    changed[:, 10:24] = (x[:, 10:24] + 17) % VOCAB
    moved = (model(changed, y, reduction="none", borders=borders) - packed).abs()[0]
    assert moved[10:24].max() > 1e-2
    assert torch.cat((moved[:10], moved[24:])).max() <= 1e-6, "a document sees another"


def check(*overrides: str, recipe: str = "none") -> None:
    model = built(*overrides, recipe=recipe)
    check_causal(model)
    check_pruned(model)
    check_packed(model)


def conflicting(pair: tuple[str, str]) -> bool:
    """Whether one of two techniques declares that it cannot stand with the other."""
    names = [named(choice) for choice in pair]
    classes = [
        locate(composed(choice)["technique"][name]["_target_"], name) for choice, name in zip(pair, names, strict=True)
    ]
    return names[0] in classes[1].conflicts or names[1] in classes[0].conflicts


@pytest.mark.parametrize("choice", ALONE)
def test_each_technique(choice):
    check(choice)


@pytest.mark.parametrize("pair", PAIRS, ids=" ".join)
def test_each_pair_of_techniques(pair):
    if conflicting(pair):
        with pytest.raises(ConfigError, match="cannot be composed"):
            built(*pair)
    else:
        check(*pair)


@pytest.mark.parametrize("choice", ALONE)
def test_each_technique_in_a_loop(choice):
    check(choice, "model/plan=loop", *PLAN["loop"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_option_of_a_slot(variant):
    check(variant, *PLAN.get(variant.split("=")[1], []))


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_recipe(recipe):
    small = ["model.num_layers=6", "model.position.dims=4"] if recipe == "frontier" else []  # it loops over 3 to 5
    check(*small, recipe=recipe)


def test_the_check_finds_a_leak():
    model = built()
    model.at_pre_head["leak"] = Leak()
    with pytest.raises(AssertionError, match="sees what follows"):
        check_causal(model)


def test_the_check_finds_a_look_across_documents():
    model = built("technique/smear_gate=v1")
    model.at_post_embed["smear_gate"].forward = lambda e, ctx: e + torch.nn.functional.pad(e[:, :-1], (0, 0, 1, 0))
    with pytest.raises(AssertionError):
        check_packed(model)


class Leak(torch.nn.Module):
    def forward(self, h: torch.Tensor, ctx: object) -> torch.Tensor:
        return h + h.roll(-1, 1)
