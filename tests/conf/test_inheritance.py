"""Options that inherit from others, as a user writes them: keys are set anew, parts that are groups replaced whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from golf.launch.compose.configs import compose_job, composer, resolved


@pytest.mark.parametrize("words", [["optimizer=mine"], ["optimizer=muon_adamw", "optimizer/matrix=mine"]])
def test_another_rule_for_matrices_inherits_rates_and_no_setting_of_the_rule_before(
    words: list[str], tmp_path: Path
) -> None:
    rule = {"_target_": "mine.Rule", "_partial_": True, "sharpness": 3}
    (tmp_path / "optimizer" / "matrix").mkdir(parents=True)
    (tmp_path / "optimizer" / "matrix" / "mine.yaml").write_text("".join(f"{k}: {v}\n" for k, v in rule.items()))
    (tmp_path / "optimizer" / "mine.yaml").write_text(
        "defaults: [muon_adamw, override matrix: mine, _self_]\nhead_lr: 0.01\n"
    )
    with composer([tmp_path]):
        inherited = resolved(compose_job(["recipe=none", "optimizer=muon_adamw"]))["optimizer"]
        mine = resolved(compose_job(["recipe=none", *words], [tmp_path]))["optimizer"]
    changed = {"head_lr": 0.01} if words == ["optimizer=mine"] else {}
    assert mine == {**inherited, **changed, "matrix": rule}
