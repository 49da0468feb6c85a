"""Recipes are what they were: what defines their training, written out under tests/conf/frozen/.

After a change that is meant: `python tests/conf/test_frozen.py`, and read what git says of the folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from golf.launch.compose.configs import compose_job, composer, resolved

FROZEN = Path(__file__).with_name("frozen")
RECIPES = ("naive_baseline", "seq4096", "sp2048_normuon_int6", "gradquant_11l", "frontier", "quickstart")
ELSEWHERE = {"name", "tags", "code_paths", "data", "runtime", "logger", "callbacks", "sweep", "checkpoint"}
"""What tells where and how a run is made, not what is trained."""


def definition(recipe: str) -> dict[str, Any]:
    with composer():
        config = resolved(compose_job([f"recipe={recipe}", "runtime=cpu", "logger=jsonl"]))
    return {key: value for key, value in sorted(config.items()) if key not in ELSEWHERE}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_defines_what_it_did(recipe: str) -> None:
    assert definition(recipe) == yaml.safe_load((FROZEN / f"{recipe}.yaml").read_text(encoding="utf-8"))


if __name__ == "__main__":
    FROZEN.mkdir(exist_ok=True)
    for name in RECIPES:
        text = yaml.safe_dump(definition(name), sort_keys=True, width=120)
        (FROZEN / f"{name}.yaml").write_text(text, encoding="utf-8")
