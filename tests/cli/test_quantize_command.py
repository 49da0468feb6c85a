from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file

from golf.cli.quantize import points


def test_the_runs_own_settings_give_the_runs_own_bytes(golf_command: Any, recorded: Any, run_copy: Path) -> None:
    before = (run_copy / "artifact.golf").read_bytes()
    done = golf_command("quantize", f"run={run_copy}")
    path = Path(done.last_line)
    assert path.with_suffix(".golf").read_bytes() == before
    assert (run_copy / "artifact.golf").read_bytes() == before
    told = recorded(run_copy / "result.json")
    assert recorded(path)["val_bpb"] == pytest.approx(told["val_bpb"]["post_quant"], abs=1e-9)
    assert recorded(path)["gap"] == pytest.approx(told["quant_gap"], abs=1e-9)


def test_the_record_counts_the_file_that_was_read_back(golf_command: Any, recorded: Any, run_copy: Path) -> None:
    words = ("quant=int6", "codec=zstd", "quant.passthrough_numel=0", "keep=null")
    done = golf_command("quantize", f"run={run_copy}", *words)
    assert done.code == 0, done.err
    path = Path(done.last_line)
    record = recorded(path)
    assert path.name == "quantize_int6_zstd_1.json"
    size = (path.parent / record["artifact_file"]).stat().st_size
    assert size == record["bytes"]["model"] == sum(record["bytes"]["by_group"].values())
    assert size < recorded(run_copy / "result.json")["bytes"]["model"]
    before, after = record["evals"]
    assert (before["stage"], after["stage"]) == ("stop", "quantized")
    assert record["gap"] == after["val_bpb"] - before["val_bpb"]
    assert {p.name for p in path.parent.glob("[!.]*")} == {path.name, record["artifact_file"]}


def test_a_sweep_tabulates_bytes_against_bpb(golf_command: Any, recorded: Any, run_copy: Path) -> None:
    done = golf_command("quantize", f"run={run_copy}", "-m", "quant.bits=3,8", "codec=zlib,store")
    *paths, picture = done.out.splitlines()[-5:]
    assert Path(picture).read_bytes().startswith(b"\x89PNG")
    records = [recorded(path) for path in paths]
    sizes = [record["bytes"]["model"] for record in records]
    assert sizes[0] < sizes[2] < sizes[3]  # 3 bits zlib, 8 bits zlib, 8 bits stored
    assert records[0]["gap"] != records[2]["gap"]
    assert all(f"{size:,}" in done.out for size in sizes)


def test_a_sweep_over_a_run_that_died_before_its_record(golf_command: Any, recorded: Any, run_copy: Path) -> None:
    (run_copy / "result.json").unlink()
    (run_copy / "metrics.jsonl").write_text("")
    done = golf_command("quantize", f"run={run_copy}", "-m", "quant.bits=3,8")
    assert done.code == 0, done.err
    *paths, picture = done.out.splitlines()[-3:]
    assert Path(picture).read_bytes().startswith(b"\x89PNG")
    assert all(f"{recorded(path)['bytes']['model']:,}" in done.out for path in paths)
    assert "as trained" not in done.out


@pytest.mark.slow
def test_code_of_a_run_that_failed_before_it_was_counted_is_counted_then(
    golf_command: Any, recorded: Any, run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GOLF_CODE")
    record = recorded(run_copy / "result.json")
    told = {"status": "failed", "error": "quantization failed", "bytes": None, "evals": []}
    (run_copy / "result.json").write_text(json.dumps({**record, **told}))
    counted = recorded(golf_command("quantize", f"run={run_copy}").last_line)["bytes"]
    assert counted["code_is"] == "packed"
    assert counted["artifact"] == counted["model"] + counted["code"]
    assert counted["code"] < 60_000


def test_a_codecs_settings_are_plotted_as_its_own() -> None:
    jobs: Any = [SimpleNamespace(swept={"quant": "int6", "quant.k": 12, "codec": "zlib", "codec.level": 1})]
    record = {"choices": {"quant": "int6", "codec": "zlib"}, "bytes": {"artifact": 9}, "val_bpb": 1.5}
    assert points(jobs, [record]) == [("int6 k=12", "zlib level=1", 9, 1.5)]


def test_bits_follow_the_gradients_that_the_run_kept(golf_command: Any, recorded: Any, run_copy: Path) -> None:
    result = json.loads((run_copy / "result.json").read_text())
    names = sorted(load_file(run_copy / "weights.safetensors"))
    matrices = [name for name in names if name.endswith((".q.weight", ".k.weight", ".v.weight"))]
    result["quantization"] = {"mean_gradient": {name: 1.0 + place for place, name in enumerate(matrices)}}
    (run_copy / "result.json").write_text(json.dumps(result))
    words = ("quant=gradguided", "quant.passthrough_numel=0", "keep=null", "quant.allocation.sensitivity=raw_gradient")
    done = golf_command("quantize", f"run={run_copy}", *words)
    assert "fallback" not in done.err
    bits = recorded(Path(done.last_line))["quantization"]["bits"]
    assert bits[matrices[0]] == 5
    assert bits[matrices[-1]] == 7


def test_a_correction_is_measured_from_the_record_alone(golf_command: Any, recorded: Any, run_copy: Path) -> None:
    words = (
        "-m",
        "quant=int6_gptq",
        "quant.passthrough_numel=64",
        "quant.windows=4",
        "quant.lqer.tensors=0,2",
        "quant.lqer.by=inputs",
    )
    done = golf_command("quantize", f"run={run_copy}", *words)
    assert done.code == 0, done.err
    plain, corrected = (recorded(Path(path)) for path in done.out.splitlines()[-3:-1])
    assert plain["bytes"]["model"] < corrected["bytes"]["model"]
    assert "lqer" not in plain["quantization"]
    left = corrected["quantization"]["lqer"]
    assert 1 <= len(left) <= 2
    assert all(0 < part < 1 for part in left.values())


def test_over_the_limit_is_done_and_told(golf_command: Any, run_copy: Path) -> None:
    result = json.loads((run_copy / "result.json").read_text())
    result["bytes"]["limit"] = 1_000
    (run_copy / "result.json").write_text(json.dumps(result))
    done = golf_command("quantize", f"run={run_copy}")
    assert done.code == 3
    assert "over the limit of 1,000" in done.out
    assert Path(done.last_line).is_file()


def test_missing_weights_are_told_and_nothing_is_left(golf_command: Any, run_copy: Path) -> None:
    (run_copy / "weights.safetensors").unlink()
    done = golf_command("quantize", f"run={run_copy}", "quant=int6")
    assert done.code == 1
    assert "weights.safetensors is missing" in done.err
    assert not list(run_copy.glob("evals/*"))


def test_broken_weights_are_told(golf_command: Any, run_copy: Path) -> None:
    weights = run_copy / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    done = golf_command("quantize", f"run={run_copy}", "quant=int6")
    assert done.code == 1
    assert "not a readable safetensors file" in done.err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["quant=int5"], "choices: "),
        (["quant.bits=9"], "bits=9"),
        (["codec.levl=3"], "did you mean 'codec.level'"),
        (["averaging=ema"], "a finished run's averaging is fixed"),
    ],
)
def test_a_mistake_on_the_line(golf_command: Any, run_copy: Path, words: list[str], part: str) -> None:
    done = golf_command("quantize", f"run={run_copy}", *words)
    assert done.code == 2
    assert part in done.err
    assert not (run_copy / "evals").exists()
