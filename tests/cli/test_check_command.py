"""`golf check`: a finished run proved again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any


def test_a_run_is_proved_from_its_folder_alone(golf_command: Any, recorded: Any, run_copy: Path) -> None:
    (run_copy / "weights.safetensors").unlink()
    done = golf_command("check", f"run={run_copy}")
    assert done.code == 0, done.err
    kept = recorded(done.last_line)
    assert kept["violations"] == kept["proof"]["not_checked"] == []
    assert kept["val_bpb"] == recorded(run_copy / "result.json")["val_bpb"]["post_quant"]
    told = "proved: artifact alone, pruned = whole, sums to one, nothing remembered, causal, once each, one pass, "
    assert done.out.splitlines()[-2] == f"{told}disjoint, validation unread"
    assert recorded(run_copy / "result.json")["proof"] == kept["proof"]
    states = {one["rule"]: one["state"] for one in kept["checks"]}
    assert recorded(run_copy / "result.json")["checks"] == kept["checks"]
    assert states["probabilities sum to 1"] == states["bytes of artifact and code"] == "pass"
    assert states["seconds of training and calibration"] == "not run"


def test_a_figure_that_is_not_the_artifacts_is_wrong(golf_command: Any, recorded: Any, run_copy: Path) -> None:
    record = recorded(run_copy / "result.json")
    for one in record["evals"]:
        one["val_bpb"] *= 0.8
    (run_copy / "result.json").write_text(json.dumps(record))
    done = golf_command("check", f"run={run_copy}")
    assert done.code == 3
    assert "wrong: artifact.golf scores" in done.out
    assert "artifact alone" not in done.out.splitlines()[-2]
    assert re.search(r"the artifact alone gives the figure\W+fail", done.out)
    assert golf_command("check", f"run={run_copy}", "-m").code == 2


def test_what_a_run_is_compared_with_is_scored_alike(
    golf_command: Any, recorded: Any, run_copy: Path, trained: Path, tmp_path: Path
) -> None:
    rule = "the text is that of what it is compared with"
    for word in ("1.2", tmp_path / "nowhere"):
        assert golf_command("check", f"run={run_copy}", f"against={word}").code == 2
    kept = recorded(golf_command("check", f"run={run_copy}", f"against={trained}").last_line)
    assert {one["rule"]: one["state"] for one in kept["checks"]}[rule] == "pass"
