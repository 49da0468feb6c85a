from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import golf
from golf.common.errors import ConfigError, GolfError


@pytest.fixture
def three(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """outputs/ with three runs that differ in seed and score."""
    for seed, bpb in ((1, 1.3), (2, 1.1), (3, 1.2)):
        folder = Path(shutil.copytree(trained, tmp_path / "outputs" / f"run{seed}"))
        config = folder / "config.yaml"
        config.write_text(config.read_text().replace("seed: 1337", f"seed: {seed}"))
        result = json.loads((folder / "result.json").read_text())
        result["val_bpb"]["post_quant"] = bpb
        result["valid"] = seed != 2
        (folder / "result.json").write_text(json.dumps(result))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "outputs"


def listed(out: str) -> list[str]:
    return [word for word in out.replace("/", " ").split() if word.startswith("run") and word[3:].isdigit()]


def test_the_default_roots_are_listed_with_what_differs(golf_command: Any, three: Path) -> None:
    done = golf_command("runs")
    assert listed(done.out) == ["run1", "run2", "run3"]
    header = done.out.splitlines()[1]
    assert "seed" in header
    assert "num_layers" not in header


def test_filters_and_roots(golf_command: Any, three: Path) -> None:
    assert listed(golf_command("runs", three, "seed=1,3", "val_bpb.post_quant<1.25").out) == ["run3"]
    assert listed(golf_command("runs", three / "run2").out) == ["run2"]
    assert "no runs in" in golf_command("runs", "seed=9").out


def test_sorting(golf_command: Any, three: Path) -> None:
    assert listed(golf_command("runs", "--sort", "val_bpb.post_quant").out) == ["run3", "run1", "run2"], "valid first"
    assert listed(golf_command("runs", "--sort=-seed").out) == ["run3", "run2", "run1"]


def test_the_best_is_valid_and_its_folder_comes_last(golf_command: Any, three: Path) -> None:
    assert golf_command("runs", "--best", "val_bpb.post_quant").last_line == "outputs/run3"


@pytest.mark.parametrize("width", ["80", "100", "120"])
def test_a_narrow_terminal_loses_no_score_and_no_setting(
    golf_command: Any, three: Path, monkeypatch: pytest.MonkeyPatch, width: str
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    lines = golf_command("runs").out.splitlines()
    assert max(map(len, lines)) <= int(width)
    row = next(line for line in lines if "run2" in line).split()
    assert {"invalid", "2"} <= set(row)
    assert any("sliding" in line for line in lines[:2])


def test_columns_are_chosen_by_name(golf_command: Any, three: Path) -> None:
    done = golf_command("runs", "--columns", "seed,post_quant,model.num_layers,state")
    header, row = (done.out.splitlines()[n].replace("┃", "│").split("│")[1:-1] for n in (1, 3))
    assert [cell.strip() for cell in header] == ["seed", "bpb.post_quant", "model.num_layers", "state"]
    assert [cell.strip() for cell in row] == ["1", "1.3000", "2", "completed"]
    assert "steps" in golf_command("runs", "--columns=all").out


def test_json_holds_config_and_result(golf_command: Any, three: Path) -> None:
    runs = json.loads(golf_command("runs", "--json", "seed=2").out)
    assert len(runs) == 1
    assert runs[0]["config"]["seed"] == 2
    assert runs[0]["result"]["val_bpb"]["post_quant"] == 1.1


def test_show_ends_with_the_folder(golf_command: Any, three: Path) -> None:
    golf_command("eval", f"run={three / 'run1'}", "eval=contiguous")
    done = golf_command("runs", "show", three / "run1")
    assert done.last_line == str(three / "run1")
    assert "contiguous_128_128_quantized_1" in done.out
    assert "bpb after quantization" in done.out


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["--srt", "seed"], 2, "did you mean '--sort'"),
        (["--best"], 2, "a name must follow"),
        (["--columns"], 2, "names must follow"),
        (["--columns", "run,sed"], 2, "did you mean 'seed'"),
        (["--columns", "nothing"], 2, "choose from run, state, seed"),
        (["--best", "val_bpb.post_qant"], 1, "did you mean 'val_bpb.post_quant'"),
        (["sed=1"], 1, "did you mean"),
        (["nowhere"], 1, "nowhere is not a folder"),
        (["show"], 2, "golf runs show DIR"),
        (["show", "."], 1, "holds no run"),
    ],
)
def test_mistakes(golf_command: Any, three: Path, words: list[str], code: int, part: str) -> None:
    done = golf_command("runs", *words)
    assert done.code == code
    assert part in done.err


def test_nothing_there_is_no_mistake(golf_command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = golf_command("runs")
    assert (done.code, done.out) == (0, "no runs in outputs/ and multirun/\n")


def test_a_notebook_gets_the_model_and_its_tokenizer(trained: Path) -> None:
    run = golf.load_run(trained)
    random.seed(5)
    torch.manual_seed(5)
    wanted = (random.random(), torch.rand(1).item())
    random.seed(5)
    torch.manual_seed(5)
    model, tokenizer = run.model(), run.tokenizer()
    assert (random.random(), torch.rand(1).item()) == wanted
    ids = torch.from_numpy(tokenizer.encode_batch(["the quick model"])[0].astype("int64"))[None]
    with torch.no_grad():
        quantized, raw = model(ids), run.model("averaged")(ids)
    assert quantized.shape == (1, ids.shape[1], tokenizer.vocab_size)
    assert not torch.equal(quantized, raw)
    assert torch.allclose(quantized, raw, atol=0.5)
    assert not model.training


def test_a_notebook_is_told_what_a_run_lacks(run_copy: Path) -> None:
    (run_copy / "artifact.golf").unlink()
    with pytest.raises(GolfError, match=r"artifact\.golf is missing"):
        golf.load_run(run_copy).model()
    with pytest.raises(ConfigError, match="weights=best: choices are quantized, averaged"):
        golf.load_run(run_copy).model("best")


def test_a_later_evaluation_on_other_data_is_marked(golf_command: Any, three: Path) -> None:
    evals = three / "run1" / "evals"
    evals.mkdir(exist_ok=True)
    (evals / "a_1.json").write_text(json.dumps({"val_bpb": 1.0, "same_data": True}))
    assert "other data" not in golf_command("runs", "show", three / "run1").out
    (evals / "b_1.json").write_text(json.dumps({"val_bpb": 1.0, "same_data": False}))
    told = golf_command("runs", "show", three / "run1").out
    assert [line for line in told.splitlines() if "b_1" in line and "other data" in line]
    assert "record     altered: result.json: no evaluation in it gave val_bpb.post_quant" in told
