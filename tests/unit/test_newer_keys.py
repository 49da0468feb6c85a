"""A finished run knows no settings that golf has learnt since: a command beside it takes them all the same."""

from __future__ import annotations

from typing import Any

from golf.launch.compose.rerun import settle


def test_settings_that_are_newer_than_a_run_stand_at_their_defaults() -> None:
    old = {"_target_": "golf.quant.gptq.GPTQ", "windows": 0, "k": 12.0}
    config: dict[str, Any] = {
        "runtime": {"_target_": "golf.common.runtime.Runtime"}, "model": {}, "quant": dict(old),
        "eval": {"_target_": "mine.Evaluator"},
    }  # fmt: skip
    settle(config, [])
    assert config["quant"].items() >= old.items()
    assert config["quant"]["trellis"] == config["quant"]["by_frequency"] == 0
    assert config["runtime"]["compile"] == "auto"
    assert config["eval"] == {"_target_": "mine.Evaluator"}
