"""Ideas that golf does not ship train from one Python file and one option each (tests/outside)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from golf.cli.main import main

HERE = Path(__file__).parents[1] / "outside"
CASES: dict[str, dict[str, Any]] = yaml.safe_load((HERE / "cases.yaml").read_text())
WORDS = (
    "budget=smoke", "recipe=quickstart", "tokenizer=byte260", "schedule.iterations=12", "schedule.clock=steps",
    "train_seq_len=64", "eval.seq_len=256", "train_batch_tokens=4096", "val_tokens=1025", "logger=jsonl", "data=text",
    "data.val_docs=8", "log_every=1", "runtime.threads=1", "runtime=cpu",
)  # fmt: skip


def test_every_idea_is_one_python_file_and_one_option() -> None:
    for name in CASES:
        files = [path for path in (HERE / name).rglob("*") if path.is_file() and path.suffix != ".pyc"]
        assert sorted(path.suffix for path in files) == [".py", ".yaml"], name


QUICK = ("recurrence", "samples")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CASES])
def test_an_idea_from_outside_trains_and_is_scored(
    name: str, workplace: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    case, run = CASES[name], tmp_path / "run"
    monkeypatch.setattr("sys.argv", ["golf"])
    given = {word.partition("=")[0] for word in case["words"]}
    recipe = [word for word in WORDS if word.partition("=")[0] not in given]
    words = [*recipe, *case["words"], f"data.paths=[{workplace / 'corpus.jsonl'}]", f"hydra.run.dir={run}"]
    assert main(["train", "--config-dir", str(HERE / name), *words]) == 0, capfd.readouterr().err
    said = capfd.readouterr()
    log = (run / "train.log").read_text() + said.out
    for wanted in case.get("says", []):
        assert re.search(wanted, log), wanted
    result = json.loads((run / "result.json").read_text())
    assert result["valid"], result["violations"]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert set(case.get("rows", [])) <= {key for row in rows for key in row}
    assert main(["eval", f"run={run}", "runtime.threads=1"]) == 0
    scored = json.loads(Path(capfd.readouterr().out.splitlines()[-1]).read_text())
    assert scored["val_bpb"] == pytest.approx(result["val_bpb"]["final"], abs=1e-6)
