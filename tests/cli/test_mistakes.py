"""Mistakes on a `golf train` line: at most three lines that name key, value and choices, exit code 2, nothing run."""

from __future__ import annotations

from pathlib import Path

import pytest

MISTAKES = {
    "mistyped key": (["model.num_layer=3"], ["model.num_layer", "did you mean 'model.num_layers'"]),
    "mistyped group": (["recipes=quickstart"], ["recipes", "recipe"]),
    "mistyped option": (["tokenizer=sp99"], ["tokenizer=sp99", "sp1024", "byte260"]),
    "option of a nested group": (["model/attention=x"], ["model/attention=x", "causal"]),
    "a part it has not": (["tokenizer/transform=caseops"], ["tokenizer/transform: the option", "tokenizer="]),
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
    "evaluations compiled alone": (["runtime.compile=none", "runtime.compile_eval=true"], ["compile_eval=true: needs"]),
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
    "a tag that wandb would not take": (["tags=[" + "t" * 65 + "]"], ["tags: 'ttt", "65 characters", "64"]),
    "a name that no folder can have": (["name=a/b"], ["name=a/b", "folder's name"]),
    "a launcher that is not there": (
        ["-m", "hydra/launcher=foo", "seed=1,2"], ["hydra/launcher=foo", "local (", "slurm (", "basic ("]
    ),
    "a sweeper that is not there": (["-m", "hydra/sweeper=optuna", "seed=1,2"], ["hydra/sweeper=optuna", "tpe"]),
    "a launcher without a name": (["-m", "hydra/launcher=", "seed=1,2"], ["local (", "slurm ("]),
    "a group of hydra's that is not there": (["hydra/launchers=local"], ["did you mean 'hydra/launcher'"]),
    "hydra as a group": (["hydra=local"], ["hydra/launcher=", "hydra/sweeper="]),
    "a technique for an option": (["technique=xsa"], ["technique/xsa=all, last4, none"]),
    "no technique's name": (["technique=mine"], ["technique/smear_gate=none, v1", "technique/xsa=all, last4, none"]),
    "a run without a folder": (["hydra.run.dir="], ["hydra.run.dir", "name the folder"]),
    "a folder that cannot be made": (["hydra.run.dir=/proc/mine"], ["cannot write /proc/mine"]),
    "a key added that nothing takes": (["+optimiser.matrix_lr=1"], ["'optimiser'", "did you mean 'optimizer'"]),
    "a key forced in": (["++sead=1"], ["'sead'", "did you mean 'seed'"]),
    "a key that golf adds": (["+choices.recipe=x"], ["'choices'"]),
    "a key that golf fills in": (["code_paths=[mine]"], ["--config-dir"]),
    "a text for a list": (["data=text", "data.paths=../x/"], ["'data.paths=[../x/]'"]),
    "a text for a list, with quotes": (["data=text", "data.paths=ünï/"], ["""'data.paths=["ünï/"]'"""]),
    "texts for a list": (["data=text", "data.paths=a/,b/"], ["--multirun", "data.paths=[…]"]),
    "a number for a text": (["logger.name=3"], ["""'logger.name="3"'"""]),
    "no setting": (["seed"], ["seed: not a setting", "key=value"]),
    "no key": (["=3"], ["names no key"]),
    "a key of other letters": (["ünï=3"], ["there is no key 'ünï'"]),
    "a misspelled function": (["-m", "seed=chioce(1,2)"], ["did you mean 'choice'"]),
    "options of a key": (["-m", "seed=glob(*)"], ["seed=glob(*)", "seed is a key"]),
    "no such options": (["-m", "model/mlp=glob(x*)"], ["no option", "relu2"]),
    "options without a sweep": (["model/mlp=glob(*)"], ["--multirun"]),
    "a sweep in a set": (["-m", "sweep.sets=['seed=1,2']"], ["sweep.sets", "one value a key"]),
    "a sweep's word for one run": (["sweep=ablate"], ["sweep=ablate", "add -m"]),
    "a sweep's setting for one run": (["sweep.max_jobs=3"], ["sweep.max_jobs=3", "add -m"]),
    "a sweep's folder for one run": (["hydra.sweep.dir=x"], ["hydra.sweep.dir=x", "add -m"]),
    "a launcher for one run": (["hydra.launcher.jobs=2"], ["hydra.launcher.jobs=2", "add -m"]),
    "a run's folder for a sweep": (["-m", "seed=1,2", "hydra.run.dir=x"], ["hydra.run.dir=x", "hydra.sweep.dir"]),
    "a setting for another sweeper": (
        ["-m", "hydra/sweeper=basic", "seed=1,2", "sweep.max_jobs=3"], ["sweep.max_jobs=3", "hydra/sweeper=basic"],
    ),
    "no launcher": (["-m", "seed=1,2", "hydra.launcher=null"], ["hydra/launcher="]),
    "a search path": (["hydra.searchpath=[file:///tmp]"], ["--config-dir"]),
    "half a flag": (["--resolve"], ["--resolve", "--cfg job"]),
    "two flags at odds": (["--prepare", "--cfg", "job"], ["--prepare", "--cfg"]),
    "online wandb without a key": (["logger.mode=online"], ["logger.mode=online", "offline"]),
    "a wandb mode that is none": (["logger.mode=dry"], ["logger.mode=dry", "offline, online, disabled, null"]),
    "a long tag": ([f"logger.tags=[{'t' * 70}]"], ["logger.tags", "70 characters, wandb takes 64"]),
    "a long tag in a sweep": (["-m", f"logger.tags=[{'t' * 70}]", "seed=1,2"], ["70 characters, wandb takes 64"]),
    "a long name": ([f"logger.name={'n' * 129}"], ["logger.name", "129 characters, wandb takes 128"]),
    "a path as a project": (["logger.project=a/b"], ["logger.project=a/b", "wandb takes no /"]),
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


UNUSED = {
    "a folder": ["hydra.run.dir=x"],
    "a launcher": ["hydra/launcher=local"],
    "a sweep's folder": ["-m", "hydra.sweep.dir=x", "seed=1,2"],
    "a flag of train's": ["--prepare"],
    "a flag of Hydra's": ["--resolve"],
}


@pytest.mark.parametrize("command", ["bench", "data", "eval", "quantize", "sample"])
@pytest.mark.parametrize("words", UNUSED)
def test_words_that_a_command_would_not_use_are_refused(
    command: str, words: str, golf_command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = golf_command(command, *(() if command in ("bench", "data") else ("run=there",)), *UNUSED[words])
    assert outcome.code == 2
    assert next(word for word in UNUSED[words] if word != "-m") in outcome.err
    assert f"golf {command}" in outcome.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["sweep=ablate"], ["sweep.max_jobs=3"], ["logger=wandb"]])
def test_bench_refuses_what_it_would_not_use(words: list[str], golf_command) -> None:
    outcome = golf_command("bench", *words)
    assert outcome.code == 2
    assert words[0] in outcome.err


def test_hydra_needs_the_asserts_that_python_may_leave_out(tmp_path: Path) -> None:
    import subprocess
    import sys

    import hydra

    if not hydra.__version__.startswith("1.3"):
        pytest.skip("this Hydra's parser does without")
    words = [sys.executable, "-O", "-m", "golf.cli.main", "train", "-m", "seed=range(1,3)"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 2
    assert "PYTHONOPTIMIZE" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("word", ["WANDB_SILENT=maybe", "WANDB_MODE=shared", "WANDB_RUN_ID=a/b", "WANDB_PROJECT=a#b"])
def test_a_variable_that_wandb_does_not_take(
    word: str, golf_command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(*word.split("="))
    outcome = golf_command("train")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(f"golf: {word}: ")
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
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "model/attention" in done.stdout
    assert done.stdout.count("golf train ") >= 5
