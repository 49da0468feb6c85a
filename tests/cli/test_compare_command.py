from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

NOTE = ("1.20143417", "1.19945102", "1.20319508")


@pytest.fixture
def rates(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """multirun/ with two learning rates of three seeds each, the second's higher by 0.01 and a little."""
    for number, (rate, seed) in enumerate((rate, seed) for rate in (0.02, 0.04) for seed in (1, 2, 3)):
        folder = Path(shutil.copytree(trained, tmp_path / "multirun" / str(number)))
        config = folder / "config.yaml"
        text = config.read_text().replace("seed: 1337", f"seed: {seed}").replace(str(trained), str(folder))
        config.write_text(text.replace("  matrix_lr: ", f"  matrix_lr: {rate} # "))
        result = json.loads((folder / "result.json").read_text())
        score = 1.2 + seed / 1000 + (0.01 + (seed == 2) / 1000) * (rate > 0.03)
        result["evals"][-1]["val_bpb"] = result["val_bpb"]["final"] = result["val_bpb"]["sliding"] = score
        (folder / "result.json").write_text(json.dumps({name: one for name, one in result.items() if name != "seal"}))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "multirun"


LOW, HIGH = ("multirun", "optimizer.matrix_lr=0.02"), ("multirun/", "optimizer.matrix_lr=0.04")


def test_the_seeds_of_a_record_against_its_bar(golf_command: Any) -> None:
    done = golf_command("compare", *NOTE, "--against", "1.21113611")
    assert (done.code, done.err) == (0, "")
    assert "A is lower by 0.00978, 95 % interval 0.00512 to 0.01443" in done.out
    assert "one-sample t-test, one-sided, that A is lower: t = 9.04, df = 2, p = 0.006\n" in done.out


def test_filters_choose_the_sides_out_of_one_sweep(golf_command: Any, rates: Path) -> None:
    done = golf_command("compare", *LOW, "--against", *HIGH)
    assert done.code == 0, done.err
    assert "1: 1.20100, 2: 1.20200, 3: 1.20300" in done.out
    assert "A is lower by 0.01033" in done.out
    assert "Welch's t-test, one-sided, that A is lower: t = 11.72, df = 3.92, p = 0.00017" in done.out


def test_pairs_margins_and_json(golf_command: Any, rates: Path) -> None:
    done = golf_command("compare", "--json", *LOW, "--margin", "0.003bpb", f"--against={HIGH[0]}", HIGH[1], "--paired")
    told = json.loads(done.out)
    assert told["test"].pop("kind") == "paired"
    assert told["test"].pop("alternative") == "A is lower"
    assert told["test"] == pytest.approx({"t": 22.0, "df": 2, "p": 0.0010299}, rel=1e-4)
    assert told["margin"] == {"value": 0.003, "unit": "bpb", "bpb": 0.003, "bytes_per_token": None}
    assert [run["seed"] for run in told["A"]["runs"]] == [1, 2, 3]
    assert (told["further_seeds"]["of"], told["further_seeds"]["count"]) == ("pairs", 0)


def test_nats_say_how_they_are_converted(golf_command: Any, rates: Path) -> None:
    done = golf_command("compare", *LOW, "--against", "1.2072±0.0011,n=3", "--margin=0.003nats")
    assert "margin: 0.003 nats per token = 0.00" in done.out
    assert "the bytes of a token in the runs' validation text" in done.out
    assert "further seeds of A for p < 0.01 with a power of 80 %: " in done.out
    assert "not checked: of which text and by which rules a published figure is" in done.out


def test_one_seed_is_no_test(golf_command: Any, rates: Path) -> None:
    done = golf_command("compare", "multirun/0", "multirun/1", "--against", "multirun/3")
    assert done.code == 0
    assert "no test is possible: B has one seed" in done.out
    assert "p =" not in done.out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["multirun/0"], 2, "golf compare A … --against B …"),
        (["--against", "1.2"], 2, "golf compare A … --against B …"),
        (["multirun/0", "--agianst", "1.2"], 2, "did you mean '--against'?"),
        (["multirun/0", "--against", "1.2", "--margin"], 2, "a number with its unit must follow"),
        (["multirun/0", "--against", "1.2", "--margin", "0.005"], 2, "0.005nats"),
        (["multirun/0", "--against", "1.2±0.1"], 2, "number of seeds"),
        (["multirun/0", "1.3", "--against", "1.2"], 2, "runs or published figures, not both"),
        (["multirun", "--against", "1.2"], 2, "differ in more than the seed: optimizer.matrix_lr"),
        (["multirun", "--against", "multirun/0"], 2, "multirun/0 stands on both sides"),
        (["1.2", "--against", "1.3", "--metric", "val_bpb.final"], 2, "no runs here to have such a figure"),
        (["1.2", "--against", "1.3", "--paired"], 2, "both sides have to be runs"),
        (["nowhere", "--against", "1.2"], 1, "nowhere is not a folder"),
        (["multirun", "seed=9", "--against", "1.2"], 1, "no runs in multirun with seed=9"),
        (["multirun/0", "--against", "1.2", "--metric", "bpb"], 1, "choose from val_bpb.final"),
    ],
)
def test_mistakes_are_clear(golf_command: Any, rates: Path, words: list[str], code: int, message: str) -> None:
    done = golf_command("compare", *words)
    assert (done.code, done.out) == (code, "")
    assert message in done.err
    assert len(done.err.splitlines()) <= 3


def test_it_needs_no_torch(rates: Path) -> None:
    code = (
        "import sys; from golf.cli.main import main; code = main(['compare', 'multirun/0', '--against', '1.2']); "
        "assert not {'torch', 'hydra', 'scipy.stats'} & set(sys.modules); sys.exit(code)"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0
