from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def three(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """outputs/ with two seeds and one failed run."""
    for seed in (1, 2, 3):
        folder = Path(shutil.copytree(trained, tmp_path / "outputs" / f"run{seed}"))
        config = folder / "config.yaml"
        config.write_text(config.read_text().replace("seed: 1337", f"seed: {seed}"))
        result = json.loads((folder / "result.json").read_text())
        result["val_bpb"]["post_quant"] = 1 + seed / 10
        if seed == 3:
            result |= {"status": "failed", "error": "train_loss is nan at step 2", "valid": False}
        (folder / "result.json").write_text(json.dumps(result))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "outputs"


def test_a_report_of_one_folder_lands_in_it(golf_command: Any, three: Path) -> None:
    done = golf_command("report", three)
    assert done.code == 0
    assert done.last_line == str(three / "report.html")
    assert "train_loss is nan at step 2" in done.out
    assert "(./run1/)" in (three / "report.md").read_text()


def test_the_default_roots_are_reported_into_report(golf_command: Any, three: Path) -> None:
    done = golf_command("report")
    assert done.last_line == "report/report.html"
    assert "(./../outputs/run1/)" in Path("report/report.md").read_text()


def test_filters_out_and_title(golf_command: Any, three: Path, tmp_path: Path) -> None:
    assert golf_command("report", three, "seed=1", "--out", tmp_path / "there", "--title=Mine").code == 0
    text = (tmp_path / "there" / "report.md").read_text()
    assert text.startswith("# Mine\n\n1 run.")


def test_columns_of_the_first_table(golf_command: Any, three: Path) -> None:
    header = golf_command("report", three, "--columns", "seed,run").out.splitlines()[1]
    assert [cell.strip() for cell in header.strip("┃").split("┃")] == ["seed", "run"]


def test_a_report_is_no_run(golf_command: Any, three: Path) -> None:
    golf_command("report", three)
    first = (three / "report.html").read_bytes()
    golf_command("report", three)
    assert (three / "report.html").read_bytes() == first


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["nowhere"], 1, "nowhere is not a folder"),
        (["--ot", "x"], 2, "did you mean '--out'?"),
        (["--out"], 2, "a value must follow"),
        (["--columns", "run,nothing"], 2, "choose from run, state, seed"),
        (["seed=9"], 1, "no runs in outputs/ and multirun/ with seed=9"),
        (["--metric", "bpb"], 1, "choose from val_bpb.final, val_bpb.sliding"),
        (["--out", "outputs/run1/config.yaml"], 1, "cannot write"),
    ],
)
def test_mistakes_are_one_clear_line(golf_command: Any, three: Path, words: list[str], code: int, message: str) -> None:
    done = golf_command("report", *words)
    assert done.code == code
    assert message in done.err
    assert "Traceback" not in done.err


def test_help(golf_command: Any) -> None:
    assert "golf report [DIR" in golf_command("report", "--help").out


def test_a_report_needs_no_torch(three: Path) -> None:
    code = (
        "import sys; from golf.cli.main import main; code = main(['report', 'outputs']); "
        "assert not {'torch', 'hydra', 'scipy.stats'} & set(sys.modules); sys.exit(code)"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0
