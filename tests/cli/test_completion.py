from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def complete(golf_command: Any, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Candidates for the last of some words, asked from the folder that holds the run."""
    monkeypatch.chdir(trained.parent)
    return lambda *words: golf_command("__complete", "--", *words).out.splitlines()


@pytest.mark.parametrize(
    ("words", "some"),
    [
        ([""], ["train", "eval", "runs", "doctor", "--help"]),
        (["qu"], ["quantize"]),
        (["train", ""], ["recipe=", "model=", "model/", "model.", "seed="]),
        (["train", "--m"], ["--multirun"]),
        (["train", "recipe=qu"], ["recipe=quickstart"]),
        (["train", "model/att"], ["model/attention="]),
        (["train", "model/attention="], ["model/attention=causal"]),
        (["train", "model.num_l"], ["model.num_layers="]),
        (["train", "num_l"], ["num_layers="]),
        (["train", "data=text", "data.val_d"], ["data.val_docs="]),
        (["train", "-m", "tokenizer=sp1024,sp20"], ["tokenizer=sp1024,sp2048"]),
        (["train", "runtime.deterministic="], ["runtime.deterministic=true", "runtime.deterministic=false"]),
        (["train", "--cfg", "j"], ["job"]),
        (["train", "technique/xsa="], ["technique/xsa=none", "technique/xsa=last4"]),
        (["train", "resume=tr"], ["resume=trained"]),
        (["eval", "run=tr"], ["run=trained"]),
        (["eval", "run=trained", "eval.str"], ["eval.stride="]),
        (["eval", "weights="], ["weights=quantized", "weights=averaged"]),
        (["quantize", "run=trained", "codec=z"], ["codec=zlib", "codec=zstd"]),
        (["sample", "prom"], ["prompt="]),
        (["runs", "show", "tr"], ["trained"]),
        (["runs", "--best", "val_bpb.s"], ["val_bpb.sliding"]),
        (["runs", "--sort", "val_bpb.f"], ["val_bpb.final"]),
        (["train", "sweep.metric=val_bpb.f"], ["sweep.metric=val_bpb.final"]),
        (["runs", "--columns", "run,by"], ["run,bytes.artifact"]),
        (["data", "tokenizer=byt"], ["tokenizer=byte260"]),
        (["completion", "f"], ["fish"]),
        (["help", "tr"], ["train"]),
        (["report", "tr"], ["trained/"]),
        (["report", ""], ["trained/"]),
        (["dashboard", "tr"], ["trained/"]),
        (["report", "--metric", "val_bpb.s"], ["val_bpb.sliding"]),
        (["report", "--o"], ["--out"]),
        (["compare", "trained", "--against", "tr"], ["trained/"]),
        (["compare", "--a"], ["--against"]),
        (["bench", "run=tr"], ["run=trained"]),
        (["bench", "run=trained", "runtime.nproc"], ["runtime.nproc="]),
        (["bench", "profile="], ["profile=true", "profile=false"]),
        (["bench", "ker"], ["kernels"]),
        (["size", "recipe=fr"], ["recipe=frontier"]),
        (["size", "--j"], ["--json"]),
        (["train", "hyd"], ["hydra/"]),
        (["train", "-m", "hydra/"], ["hydra/launcher=", "hydra/sweeper="]),
        (["train", "-m", "hydra/launcher="], ["hydra/launcher=local", "hydra/launcher=slurm"]),
        (["train", "-m", "hydra/sweeper=g"], ["hydra/sweeper=golf"]),
        (["import-env", "corp"], ["corpus.jsonl"]),
        (["import-env", "--recipe", "naive"], ["naive_baseline"]),
    ],
)
def test_candidates(complete: Any, words: list[str], some: list[str]) -> None:
    found = complete(*words)
    assert set(some) <= set(found)
    assert all(one.startswith(words[-1]) for one in found)


@pytest.mark.parametrize(
    "words", [["trian", ""], ["train", "recipe=nosuch"], ["eval", "model.num"], ["train", "se=ed=["]]
)
def test_where_there_is_nothing_to_offer(complete: Any, words: list[str]) -> None:
    assert complete(*words) == []


def test_a_users_own_options_are_offered(complete: Any, tmp_path: Path) -> None:
    (tmp_path / "technique" / "mine").mkdir(parents=True)
    (tmp_path / "technique" / "mine" / "v1.yaml").write_text("_target_: mine.Mine\n")
    words = ("train", "--config-dir", str(tmp_path), "technique/mine=")
    assert complete(*words) == ["technique/mine=none", "technique/mine=v1"]


def test_it_imports_nothing_that_takes_long(trained: Path) -> None:
    """A shell waits for it at every Tab."""
    slow = "torch numpy scipy pyarrow matplotlib plotly sentencepiece rich wandb optuna submitit"
    program = (
        "import sys\n"
        "from golf.cli.main import main\n"
        "main(['__complete', '--', 'train', 'optimizer=muon', 'optimizer.m'])\n"
        f"print(sorted(set('{slow}'.split()) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("line", "reply"),
    [
        ("golf trai", ["train"]),
        ("golf train recipe=quick", ["quickstart"]),  # bash has made a word of what follows the =
        ("golf train -m tokenizer=sp1024,sp20", ["sp1024,sp2048"]),
        ("golf train model.num_la", ["model.num_layers="]),
        ("golf eval run=tr", ["trained"]),
    ],
)
def test_the_bash_script_completes(complete: Any, line: str, reply: list[str]) -> None:
    script = f"""
golf() {{ "{sys.executable}" -m golf.cli.main "$@"; }}
eval "$(golf completion bash)"
COMP_LINE="{line}"; COMP_POINT=${{#COMP_LINE}}
_golf
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == reply


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_are_valid_where_their_shell_is(golf_command: Any, shell: str) -> None:
    done = golf_command("completion", shell)
    assert done.code == 0
    assert "__complete --" in done.out
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=done.out, text=True, check=True)


def test_an_unknown_shell(golf_command: Any) -> None:
    done = golf_command("completion", "tcsh")
    assert done.code == 2
    assert "bash, fish, zsh" in done.err
