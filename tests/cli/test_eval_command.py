from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from golf.artifact.codecs import codec_named
from golf.artifact.container import load_artifact, save_artifact
from golf.data.shards import write_shards
from golf.nn.models.gpt import GPT
from golf.tokenizers.byte260 import Byte260


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir()) if p.is_file()}


def test_the_artifact_alone_gives_the_recorded_bpb(golf_command: Any, recorded: Any, run_copy: Path) -> None:
    (run_copy / "weights.safetensors").unlink()
    told = recorded(run_copy / "result.json")["val_bpb"]
    for words, name in (([], "sliding"), (["eval=contiguous"], "post_quant")):
        done = golf_command("eval", f"run={run_copy}", *words)
        assert done.code == 0, done.err
        assert recorded(done.last_line)["val_bpb"] == pytest.approx(told[name], abs=1e-9)


def test_the_raw_weights_give_the_recorded_bpb_before_quantization(
    golf_command: Any, recorded: Any, run_copy: Path
) -> None:
    done = golf_command("eval", f"run={run_copy}", "eval=contiguous", "weights=averaged")
    result = recorded(done.last_line)
    assert result["val_bpb"] == pytest.approx(recorded(run_copy / "result.json")["val_bpb"]["pre_quant"], abs=1e-9)
    assert result["stage"] == "stop"  # this run averages nothing


def test_results_are_added_and_the_run_stays_as_it_was(golf_command: Any, recorded: Any, run_copy: Path) -> None:
    before = digests(run_copy)
    paths = [golf_command("eval", f"run={run_copy}", "eval=contiguous").last_line for _ in range(2)]
    assert len({*paths}) == 2
    assert all(Path(path).parent == run_copy / "evals" for path in paths)
    assert recorded(paths[0])["val_bpb"] == recorded(paths[1])["val_bpb"]
    assert digests(run_copy) == before


def test_a_sweep_tabulates_bpb_against_seconds(golf_command: Any, recorded: Any, run_copy: Path) -> None:
    done = golf_command("eval", f"run={run_copy}", "eval.stride=32,128", "-m")
    results = [recorded(path) for path in done.out.splitlines()[-2:]]
    assert [(one["stride"], one["method"]) for one in results] == [(32, "sliding"), (128, "contiguous")]
    for one in results:
        cells = [f"{one['stride']}", "128", f"{one['val_bpb']:.4f}"]
        row = next(line for line in done.out.splitlines() if [c.strip() for c in line.split("│")][2:5] == cells)
        assert f" {one['seconds']:.1f} " in row


def test_a_named_group_replaces_the_whole_and_reads_the_run_for_what_it_refers_to(
    golf_command: Any, recorded: Any, run_copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = run_copy / "config.yaml"
    config.write_text(config.read_text().replace("coverage: full", "coverage: seed_s2"))
    kept = recorded(golf_command("eval", f"run={run_copy}", "eval.stride=32").last_line)
    assert kept["coverage"] == "seed_s2"
    anew = recorded(golf_command("eval", f"run={run_copy}", "eval=sliding", "stride=32").last_line)
    assert (anew["coverage"], anew["stride"], anew["seq_len"]) == ("full", 32, 128)


def test_other_data_than_the_run_was_trained_on_is_told(golf_command: Any, recorded: Any, run_copy: Path) -> None:
    result = recorded(run_copy / "result.json")
    result["data"]["source_hash"] = "0" * 64
    (run_copy / "result.json").write_text(json.dumps(result))
    done = golf_command("eval", f"run={run_copy}", "eval=contiguous")
    assert recorded(done.last_line)["same_data"] is False
    assert "the data has changed" in done.err


def test_a_shard_changed_since_the_run_is_told(golf_command: Any, recorded: Any, tmp_path: Path) -> None:
    texts = [f"the reader of document {i} reads another byte and predicts the next" for i in range(40)]
    ids = np.concatenate([[1, *one] for one in Byte260().encode_batch(texts)])
    for split, times in (("train", 2), ("val", 1)):  # a copy of the validation shard would be refused
        write_shards(tmp_path, split, [ids] * times)
    data = (f"data.{split}={tmp_path}/golf_{split}_*.bin" for split in ("train", "val"))
    words = ("tokenizer=byte260", "model.num_layers=1", "schedule.iterations=1", "val_tokens=512", "runtime.threads=1")
    run = tmp_path / "run"
    made = golf_command("train", "budget=smoke", "logger=jsonl", "data=shards", *data, *words, f"hydra.run.dir={run}")
    assert made.code == 0, made.err
    same = [recorded(golf_command("eval", f"run={run}", "eval=contiguous").last_line)["same_data"]]
    shard = tmp_path / "golf_val_000000.bin"
    shard.write_bytes(shard.read_bytes()[:-2] + b"\x50\x00")
    done = golf_command("eval", f"run={run}", "eval=contiguous")
    same.append(recorded(done.last_line)["same_data"])
    assert same == [True, False]
    assert "the data has changed" in done.err


def test_figures_go_to_a_logger_that_is_named(golf_command: Any, run_copy: Path) -> None:
    done = golf_command("eval", f"run={run_copy}", "eval=contiguous", "logger=wandb", "logger.mode=offline")
    assert done.code == 0, done.err
    assert list(run_copy.glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["eval.strid=3"], "did you mean 'eval.stride'"),
        (["eval=slding"], "choices: contiguous, document, sliding"),
        (["eval.stride=abc"], "eval.stride=abc: expected int"),
        (["eval.stride=0"], "eval.stride=0"),
        (["eval.stride=200"], "eval.stride=200"),
        (["eval.seq_len=4096"], "model.max_seq_len=128"),
        (["eval.rope=nkt"], "choices are trained, extend, ntk"),
        (["eval.packed=true"], "only evaluation by documents"),
        (["eval.rope=ntk", "eval.trained_seq_len=null"], "eval.trained_seq_len must say"),
        (["eval.stride=32,64"], "--multirun"),
        (["eval.stride=", "-m"], "eval.stride="),
        (["model.num_layers=3"], "a finished run's model is fixed"),
        (["num_layers=3"], "a finished run's model is fixed"),
        (["recipe=none"], "a finished run's recipe is fixed"),
        (["seed=3"], "a finished run's seed is fixed"),
        (["quant=int6"], "golf eval leaves it alone"),
        (["~eval"], "cannot be left out"),
        (["weight=averaged"], "did you mean 'weights'"),
        (["weights=best"], "choices are quantized, averaged"),
        (["runtime.nproc=2"], "one process"),
        (["budget.eval_seconds=0"], "budget.eval_seconds=0: must be more than 0"),
        (["budget.eval_seconds=long"], "expected float"),
        (["eval=document", "eval.stride=0"], "eval.stride=0"),
        (["eval=document", "eval.coverage=seed_s2"], "covers every target"),
        (["--cfg", "job"], "--cfg"),
        (["--strid=3"], "unknown flag"),
    ],
)
def test_a_mistake_on_the_line_is_told_before_any_work(
    golf_command: Any, run_copy: Path, words: list[str], part: str
) -> None:
    done = golf_command("eval", f"run={run_copy}", *words)
    assert done.code == 2
    assert part in done.err
    assert len(done.err.splitlines()) <= 3
    assert not (run_copy / "evals").exists()


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (lambda blob: blob[:-100], "truncated"),
        (lambda blob: blob[:-50] + bytes([blob[-50] ^ 4]) + blob[-49:], "checksum mismatch"),
        (lambda blob: b"", "not a golf artifact"),
    ],
)
def test_a_damaged_artifact_is_refused(golf_command: Any, run_copy: Path, damage: Any, part: str) -> None:
    artifact = run_copy / "artifact.golf"
    artifact.write_bytes(damage(artifact.read_bytes()))
    done = golf_command("eval", f"run={run_copy}")
    assert done.code == 1
    assert part in done.err
    assert str(artifact) in done.err
    assert not list(run_copy.glob("evals/*"))


def test_an_artifact_of_another_tokenizer_is_refused(golf_command: Any, run_copy: Path) -> None:
    artifact = run_copy / "artifact.golf"
    entries, header = load_artifact(artifact)
    save_artifact(artifact, entries, codec_named(header.codec), header.meta, "0" * 64)
    done = golf_command("eval", f"run={run_copy}")
    assert done.code == 1
    assert "another tokenizer" in done.err


def test_a_folder_that_cannot_be_written_is_told_before_any_work(golf_command: Any, run_copy: Path) -> None:
    (run_copy / "evals").write_text("a file, where a folder is needed")
    done = golf_command("eval", f"run={run_copy}")
    assert done.code == 1
    assert f"cannot write results into {run_copy / 'evals'}" in done.err


def test_a_missing_artifact_is_told(golf_command: Any, run_copy: Path) -> None:
    (run_copy / "artifact.golf").unlink()
    done = golf_command("eval", f"run={run_copy}")
    assert done.code == 1
    assert "cannot read artifact" in done.err


def test_another_tokenizer_is_allowed_when_asked_for(golf_command: Any, recorded: Any, run_copy: Path) -> None:
    artifact = run_copy / "artifact.golf"
    entries, header = load_artifact(artifact)
    save_artifact(artifact, entries, codec_named(header.codec), header.meta, "0" * 64)
    done = golf_command("eval", f"run={run_copy}", "eval.allow_tokenizer_mismatch=true")
    assert done.code == 0, done.err
    assert "another tokenizer" in done.err
    assert recorded(done.last_line)["val_bpb"] == recorded(run_copy / "result.json")["val_bpb"]["sliding"]


def test_an_evaluation_over_its_limit_is_stopped_and_goes_on_with_more(
    golf_command: Any, recorded: Any, run_copy: Path
) -> None:
    words = ("eval", f"run={run_copy}", "eval=sliding", "eval.stride=8", "eval.batch_tokens=128")
    stopped = golf_command(*words, "budget.eval_seconds=0.01")
    assert stopped.code == 1
    assert "over the limit of 0.01 s (budget.eval_seconds)" in stopped.err
    assert not list(run_copy.glob("evals/*.json"))
    assert len(list(run_copy.glob("evals/.partial-*.npz"))) == 1
    resumed = golf_command(*words, "budget.eval_seconds=600")
    assert resumed.code == 0, resumed.err
    assert "resuming" in resumed.err
    whole = golf_command(*words)
    assert recorded(resumed.last_line)["val_bpb"] == recorded(whole.last_line)["val_bpb"]
    assert not list(run_copy.glob("evals/.partial-*"))


def test_a_scheduler_that_ends_an_evaluation_loses_none_of_it(golf_command: Any, recorded: Any, run_copy: Path) -> None:
    words = ("eval", f"run={run_copy}", "eval=sliding", "eval.stride=64", "eval.batch_tokens=128")
    whole = recorded(golf_command(*words).last_line)
    calls = 0

    def end_at_the_fifth(module: torch.nn.Module, *_: Any) -> None:
        nonlocal calls
        calls += isinstance(module, GPT)
        if calls == 5 and isinstance(module, GPT):
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    hook = torch.nn.modules.module.register_module_forward_hook(end_at_the_fifth)
    try:
        assert golf_command(*words).code == 130
    finally:
        hook.remove()
    assert signal.getsignal(signal.SIGTERM) is before
    (partial,) = run_copy.glob("evals/.partial-*.npz")
    assert np.load(partial)["done"] == 4
    assert recorded(golf_command(*words).last_line)["val_bpb"] == whole["val_bpb"]
    assert not partial.exists()


def test_documents_are_scored_alone(golf_command: Any, recorded: Any, run_copy: Path) -> None:
    done = golf_command("eval", f"run={run_copy}", "eval=document", "eval.stride=32")
    result = recorded(done.last_line)
    assert (result["method"], result["stride"]) == ("document", 32)
    sliding = recorded(golf_command("eval", f"run={run_copy}", "eval=sliding", "eval.stride=32").last_line)
    assert [result[key] for key in ("targets", "bytes")] == [sliding[key] for key in ("targets", "bytes")]
    assert result["val_bpb"] != sliding["val_bpb"]
    assert result["flops"] > 0


def test_windows_longer_than_trained_on(golf_command: Any, recorded: Any, run_copy: Path) -> None:
    words = (
        "eval",
        f"run={run_copy}",
        "eval=sliding",
        "eval.seq_len=256",
        "eval.stride=128",
        "eval.rope=extend,ntk",
        "-m",
    )
    done = golf_command(*words)
    assert done.code == 0, done.err
    extended, scaled = (recorded(path) for path in done.out.splitlines()[-2:])
    assert (extended["seq_len"], extended["targets"]) == (scaled["seq_len"], scaled["targets"]) == (256, 2049)
    assert extended["val_bpb"] != scaled["val_bpb"]
    assert [one["config"]["eval"]["rope"] for one in (extended, scaled)] == ["extend", "ntk"]


def test_a_stream_shorter_than_a_window_is_told(golf_command: Any, run_copy: Path) -> None:
    done = golf_command("eval", f"run={run_copy}", "eval.seq_len=99999", "eval.rope=extend")
    assert done.code == 1
    assert "one sequence of 99999 needs 100000" in done.err


def test_a_run_with_an_attention_that_is_not_here_is_scored_by_torchs(
    golf_command: Any, recorded: Any, run_copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = run_copy / "config.yaml"
    config.write_text(config.read_text().replace("backend: sdpa", "backend: flash_attn_3"))
    done = golf_command("eval", f"run={run_copy}")
    assert done.code == 0, done.err
    assert "flash_attn_3 is not installed here: sdpa serves" in caplog.text
    assert recorded(done.out.splitlines()[-1])["val_bpb"] > 0


def test_packed_and_padded_documents_score_alike(golf_command: Any, recorded: Any, run_copy: Path) -> None:
    done = golf_command("eval", f"run={run_copy}", "eval=document", "eval.packed=true,false", "-m")
    packed, padded = (recorded(path) for path in done.out.splitlines()[-2:])
    assert packed["val_bpb"] == pytest.approx(padded["val_bpb"], rel=1e-6)
    assert (packed["targets"], packed["bytes"]) == (padded["targets"], padded["bytes"])
    assert packed["flops"] <= padded["flops"]


def test_detail_writes_every_tokens_loss_and_a_report(golf_command: Any, recorded: Any, run_copy: Path) -> None:
    done = golf_command("eval", f"run={run_copy}", "eval=document", "detail=true")
    assert done.code == 0, done.err
    score, folder = recorded(done.last_line), Path(done.last_line).with_suffix("")
    with np.load(folder / "tokens.npz", allow_pickle=False) as file:
        nll, before = file["nll"], file["nll_before"]
    assert np.isfinite(nll[1:]).all()
    assert len(nll) == len(before) == score["targets"] + 1
    assert nll[1:].astype(np.float64).mean() == pytest.approx(score["val_loss"], rel=1e-3)
    told = (folder / "report.md").read_text()
    for heading in ("Token class", "Tokens of context", "Tokens of the document", "documents (of at least 64 bytes)"):
        assert heading in told
    assert f"val_bpb **{score['val_bpb']:.4f}**" in told
    plots = sorted(path.name for path in folder.glob("*.png"))
    if importlib.util.find_spec("matplotlib"):
        assert plots == ["by_class.png", "by_context.png", "by_length.png"]
        assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in plots)
    else:
        assert not plots
        assert "pip install matplotlib" in done.err


PLAIN = """import dataclasses

from golf.evals.evaluators import Evaluator


class Plain:
    seq_len = 128
    method = "plain"

    def __init__(self, tells):
        self.tells = tells

    def contiguous(self):
        return Evaluator(128)

    def score(self, *given, nll=None, **more):
        score = self.contiguous().score(*given, nll=nll if self.tells else None, **more)
        return dataclasses.replace(score, method="plain")
"""


def test_a_new_evaluator_scores_an_older_run_and_need_have_no_plan_of_windows(
    golf_command: Any, recorded: Any, run_copy: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine" / "eval").mkdir(parents=True)
    (tmp_path / "mine" / "eval" / "plain.yaml").write_text("_target_: plain.Plain\ntells: true\n")
    (tmp_path / "mine" / "plain.py").write_text(PLAIN)
    config = yaml.safe_load((run_copy / "config.yaml").read_text())
    for key in ("callbacks", "phases", "frozen"):  # as a run from before them has none
        config.pop(key, None)
    (run_copy / "config.yaml").write_text(yaml.safe_dump(config))
    words = ("eval", f"run={run_copy}", "--config-dir", tmp_path / "mine", "eval=plain", "detail=true")
    done = golf_command(*words)
    assert done.code == 0, done.err
    told = recorded(run_copy / "result.json")["val_bpb"]
    assert recorded(done.last_line)["val_bpb"] == pytest.approx(told["post_quant"], abs=1e-9)
    assert "Tokens of context" not in (Path(done.last_line).with_suffix("") / "report.md").read_text()
    silent = golf_command(*words, "eval.tells=false")
    assert silent.code == 0, silent.err
    assert "Plain tells no token's loss" in silent.err


def test_detail_goes_to_wandb_as_tables_and_images(golf_command: Any, run_copy: Path) -> None:
    done = golf_command(
        "eval", f"run={run_copy}", "eval=document", "detail=true", "logger=wandb", "logger.system_stats=false"
    )
    assert done.code == 0, done.err
    (media,) = run_copy.glob("wandb/offline-run-*/files/media")
    (table,) = (json.loads(file.read_text()) for file in (media / "table").glob("documents*.json"))
    bpb = [row[table["columns"].index("bpb")] for row in table["data"]]
    assert bpb == sorted(bpb, reverse=True)
    tables = {path.name.split("_")[2] for path in (media / "table").glob("bits_by_*.json")}
    assert tables == {"class", "context", "length"}
    assert {path.name[:8] for path in (media / "images").glob("*.png")} == {"by_class", "by_conte", "by_lengt"}


def test_a_figure_that_contradicts_the_record_is_told(golf_command: Any, recorded: Any, run_copy: Path) -> None:
    record = recorded(run_copy / "result.json")
    for one in record["evals"]:
        if (one["stage"], one["method"]) == ("quantized", "contiguous"):
            one["val_bpb"] *= 0.9
    (run_copy / "result.json").write_text(json.dumps(record))
    done = golf_command("eval", f"run={run_copy}", "eval=contiguous")
    assert done.code == 3
    assert "contradicts the record: val_bpb" in done.out
    assert recorded(done.last_line)["contradicts"]["recorded"] < recorded(done.last_line)["val_bpb"]
    assert golf_command("eval", f"run={run_copy}", "eval=contiguous", "eval.seq_len=64").code == 0  # another figure


def test_weights_of_a_run_that_ended_early_are_used(
    run_copy: Path, golf_command: Any, caplog: pytest.LogCaptureFixture
) -> None:
    record = json.loads((run_copy / "result.json").read_text())
    told = {"status": "failed", "error": "worker 0 was killed by SIGKILL", "trained": False}
    (run_copy / "result.json").write_text(json.dumps({**record, **told}))
    (run_copy / "artifact.golf").unlink()
    refused = golf_command("eval", f"run={run_copy}")
    assert refused.code == 2
    assert "failed after step 5: worker 0 was killed by SIGKILL\nit kept weights" in refused.err
    done = golf_command("sample", f"run={run_copy}", "weights=averaged", "prompt=a", "tokens=1", "runtime.threads=1")
    assert (done.code, "what it had by then is used" in caplog.text) == (0, True)
    (run_copy / "weights.safetensors").unlink()
    assert "it kept no weights" in golf_command("quantize", f"run={run_copy}").err
