"""Mistakes on a `golf train` line: at most three lines that name key, value and choices, exit code 2, nothing run."""

from __future__ import annotations

from pathlib import Path

import pytest

MISTAKES = {
    "mistyped key": (["model.num_layer=3"], ["model.num_layer", "did you mean 'model.num_layers'"]),
    "mistyped group": (["recipes=quickstart"], ["recipes", "recipe"]),
    "mistyped option": (["tokenizer=sp99"], ["tokenizer=sp99", "sp1024", "byte260"]),
    "option of a nested group": (["model/attention=x"], ["model/attention=x", "causal"]),
    "option given to a key": (["model.attention=causal"], ["model/attention", "choices"]),
    "ambiguous bare name": (["layers=3", "technique/xsa=all"], ["technique.xsa.layers"]),
    "short name": (["lr=3"], ["optimizer.matrix_lr"]),
    "wrong type": (["model.num_layers=many"], ["model.num_layers=many", "int"]),
    "a float for an int": (["schedule.iterations=1.5"], ["schedule.iterations", "int"]),
    "wrong choice": (["runtime.device=tpu"], ["runtime.device=tpu", "auto", "cuda"]),
    "kernels that are not there": (["runtime.kernels=fused"], ["runtime.kernels=fused", "auto", "reference"]),
    "several values alone": (["seed=1,2"], ["seed=1,2", "--multirun"]),
    "a cluster for one run": (["hydra/launcher=slurm"], ["hydra/launcher=slurm", "add -m"]),
    "broken override": (["x=[1"], ["x=[1"]),
    "unknown flag": (["--mulitrun"], ["--mulitrun", "did you mean '--multirun'"]),
    "missing value": (["data=text"], ["data.paths"]),
    "vocabulary against tokenizer": (["model.vocab_size=512"], ["model.vocab_size=512", "260"]),
    "heads that don't divide": (["model.num_heads=7"], ["model.model_dim=128", "model.num_heads=7"]),
    "kv heads that don't divide": (["model.num_kv_heads=3"], ["model.num_heads=4", "model.num_kv_heads=3"]),
    "batch that doesn't divide": (["train_batch_tokens=1000"], ["train_batch_tokens=1000", "train_seq_len"]),
    "layers that are not there": (["technique/xsa=all", "technique.xsa.layers=last:9"], ["technique.xsa.layers"]),
    "workers that can't share": (["runtime.nproc=3"], ["runtime.nproc=3"]),
    "neither a choice nor a bool": (["runtime.cuda_graphs=maybe"], ["runtime.cuda_graphs=maybe", "auto, true, false"]),
    "recorded passes without a GPU": (["runtime=cpu", "runtime.cuda_graphs=true"], ["runtime.cuda_graphs=true", "GPU"]),
    "stride of zero": (["eval.stride=0"], ["eval.stride=0"]),
    "stride over the window": (["eval.stride=999"], ["eval.stride=999", "eval.seq_len"]),
    "bits out of range": (["quant.bits=9"], ["bits=9"]),
    "codec level": (["codec.level=77"], ["level=77"]),
    "negative seed": (["seed=-1"], ["seed=-1"]),
    "decay out of range": (["averaging=ema", "averaging.decay=1.5"], ["averaging.decay=1.5"]),
    "missing backend": (["model.attention.backend=flash_attn_3"], ["flash_attn_3", "not installed"]),
    "vocabulary too small": (["tokenizer=sp1024", "tokenizer.vocab_size=10"], ["tokenizer.vocab_size=10"]),
    "one bad job of a sweep": (["-m", "model.num_heads=4,7"], ["model.num_heads=7"]),
    "one config of a sweep": (["-m", "--cfg", "job", "seed=1,2"], ["--cfg", "leave out -m"]),
    "mistyped swept option": (["-m", "tokenizer=sp1024,sp99"], ["tokenizer=sp99"]),
    "empty sweep": (["-m", "seed=choice()"], ["seed=choice()"]),
    "groups set to null": (["technique=null"], ["technique=null", "technique/xsa"]),
    "hydra set to null": (["hydra=null"], ["hydra=null"]),
    "a name that no folder can have": (["name=a/b"], ["name=a/b", "folder's name"]),
    "a run without a folder": (["hydra.run.dir="], ["hydra.run.dir", "name the folder"]),
    "a folder that cannot be made": (["hydra.run.dir=/proc/mine"], ["cannot write /proc/mine"]),
    "online wandb without a key": (["logger.mode=online"], ["logger.mode=online", "offline"]),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake(mistake: str, golf_command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    words, told = MISTAKES[mistake]
    outcome = golf_command("train", *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert len(outcome.err.splitlines()) <= 3
    assert [part for part in told if part not in outcome.err] == []
    assert list(tmp_path.iterdir()) == []


def test_data_that_is_not_there(golf_command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = golf_command("train", "data=text", "data.paths=[nowhere.jsonl]")
    assert outcome.code == 1
    assert "nowhere.jsonl" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_unknown_command(golf_command) -> None:
    outcome = golf_command("trian")
    assert outcome.code == 2
    assert "did you mean 'train'" in outcome.err


def test_help_needs_no_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    program = (
        "import sys; from golf.cli.main import main; code = main(['train', '--help']); "
        "assert not {'torch', 'wandb'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "model/attention" in done.stdout
    assert done.stdout.count("golf train ") >= 5
