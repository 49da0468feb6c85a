"""A pasted shell text: which trainings it starts, with which variables, and what is said of the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from golf.common.errors import ConfigError
from golf.launch.compose.environment_names import VARIABLES
from golf.launch.compose.shell.trainings import read

RUN = "torchrun --standalone --nproc_per_node=8 train_gpt.py"
KNOWN = frozenset(VARIABLES)


def variables(text: str) -> list[dict[str, str]]:
    """The variables of each training."""
    return [{name: one.text for name, one in training.variables.items()} for training in read(text, KNOWN).trainings]


def once(**given: str) -> list[dict[str, str]]:
    return [{**given, "WORLD_SIZE": "8"}]


@pytest.mark.parametrize(
    "text",
    [
        f"SEED=1 NUM_LAYERS=9 {RUN}",
        f"env SEED=1 NUM_LAYERS=9 {RUN}",
        f"export SEED=1 NUM_LAYERS=9\n{RUN}",
        f"export SEED=1; export NUM_LAYERS=9; {RUN}",
        f"export SEED=1&&export NUM_LAYERS=9&&{RUN} || echo failed",
        f"export SEED=1 NUM_LAYERS=8\nexport NUM_LAYERS=9\n{RUN}",
        f"SEED=1\nexport NUM_LAYERS=9\n{RUN}",
        f"SEED=1 NUM_LAYERS=3\nexport SEED NUM_LAYERS=9\n{RUN}",
        f"SEED=1 NUM_LAYERS=9\n\n# é\n[ -d x ] && {RUN}",
        f"SEED=1 NUM_LAYERS=9\n{{ {RUN}; }}",
        f"set -a\nSEED=1\nNUM_LAYERS=9\nset +a\n{RUN}",
        f"SEED=1 NUM_LAYERS=9\n{RUN}",
        f"SEED=1 NUM_LAYERS=9 nohup {RUN} > log.txt 2>&1 &",
        f"time env SEED=1 NUM_LAYERS=9 {RUN} 2>&1 | tee log.txt",
        f"sudo -E env SEED=1 NUM_LAYERS=9 timeout 900 {RUN}",
        f"#!/bin/bash\n#SBATCH --nodes=1\nset -eu\ncd /w\n# SEED=7\nSEED=1 NUM_LAYERS=9 {RUN} # MODEL_DIM=3\n",
        f"SEED=1 \\  \nNUM_LAYERS=9 \\\t\n {RUN}",
        f"SEED=1 \\\r\nNUM_LAYERS=9 \\\r\n{RUN}\r\n",
        f"\ufeffSEED='1' NUM_LAYERS=\"9\" {RUN} \\\n",
        f"N=9\nSEED=1 NUM_LAYERS=$N {RUN}",
        f"N=9 S=1\nSEED=${{S}} NUM_LAYERS=${{N:-3}} {RUN}",
        f"SEED=${{SEED:-1}} NUM_LAYERS=${{N:-9}} {RUN}",
        f'ALL="SEED=1 NUM_LAYERS=9"\nenv $ALL {RUN}',
        f'bash -c "SEED=1 NUM_LAYERS=9 {RUN}"',
        f"NUM_LAYERS=9 bash -lc 'export SEED=1; {RUN}'",
        f'ssh host "cd /w && SEED=1 NUM_LAYERS=9 {RUN}"',
        f"bash <<EOF\nexport SEED=1\nNUM_LAYERS=9 {RUN}\nEOF",
        f"cat > run.sh <<'EOF'\nSEED=1 NUM_LAYERS=$1 {RUN}\nEOF\nbash run.sh 9",
        f"train() {{ SEED=$1 NUM_LAYERS=9 {RUN}; }}\ntrain 1",
        f"SEED=1 srun --ntasks=1 --export=ALL,NUM_LAYERS=9 {RUN}",
        f"```bash\npip install x\nSEED=1 NUM_LAYERS=9 {RUN}\n```",
        f"$ export SEED=1\n$ NUM_LAYERS=9 \\\n> {RUN}\nstep:0 val_loss:6.9",
        f"(venv) root@host:/w# SEED=1 NUM_LAYERS=9 {RUN}",
        f"> SEED=1 NUM_LAYERS=9 \\\n> {RUN}",
        f"- `SEED=1 NUM_LAYERS=9 {RUN}`",
        f"%env SEED=1\n!NUM_LAYERS=9 {RUN}",
        f'$env:SEED="1"; $env:NUM_LAYERS = 9\n{RUN}',
        f"@echo off\nset SEED=1\nset NUM_LAYERS=9\n{RUN}",
        f"SEED=1 NUM_LAYERS=9 {RUN}\nNUM_LAYERS=3 python eval.py",
        f"NUM_LAYERS=2 python3 data/cached_challenge_fineweb.py\nSEED=1 NUM_LAYERS=9 {RUN}",
        "SEED=1 NUM_LAYERS=9 python3 -u -m torch.distributed.run --nproc-per-node 8 train_gpt.py",
        "SEED=1 NUM_LAYERS=9 uv run torchrun --nproc_per_node 8 records/x/train_gpt.py",
        "SEED=1 NUM_LAYERS=9 accelerate launch --num_processes=8 train_gpt.py",
        "G=8\nSEED=1 NUM_LAYERS=9 torchrun --nproc_per_node=$G -m train_gpt",
    ],
)
def test_one_training_in_many_clothes(text: str) -> None:
    assert variables(text) == once(SEED="1", NUM_LAYERS="9")


@pytest.mark.parametrize(
    "text",
    [
        f"for SEED in 1 2 3; do\n  SEED=$SEED {RUN} | tee log_$SEED.txt\ndone",
        f"for SEED in 1 2 3; do {RUN}; done",
        f"for s in {{1..3}}; do SEED=$s {RUN}; done",
        f"for s in $(seq 1 3)\ndo\nexport SEED=$s\n{RUN}\ndone",
        f'SEEDS=(1 2 3)\nfor s in "${{SEEDS[@]}}"; do SEED=$s {RUN}; done',
        f'SEEDS="1 2 3"; for s in $SEEDS; do (SEED=$s {RUN}) & done; wait',
        f"SEED=1 {RUN}\nSEED=2 {RUN}\n# the last\nSEED=3 {RUN}",
        f"export SEED=1; {RUN} && export SEED=2; {RUN}; export SEED=3; {RUN}",
        f"t() {{ SEED=$1 {RUN}; }}\nt 1\nt 2\nt 3",
    ],
)
def test_three_seeds(text: str) -> None:
    assert variables(text) == [{"SEED": seed, "WORLD_SIZE": "8"} for seed in "123"]


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        (f"DATA_PATH='/a b;c&&d/$x' {RUN}", "DATA_PATH", "/a b;c&&d/$x"),
        (f'DATA_PATH="/a \\"b\\" $U ${{V-v}}/c" {RUN}', "DATA_PATH", '/a "b" $U v/c'),
        (f"DATA_PATH=/a\\ b#c {RUN}", "DATA_PATH", "/a b#c"),
        (f"DATA_PATH=/a'b'\"c\"$'\\td' {RUN}", "DATA_PATH", "/abc\td"),
        (f"D=/a\nDATA_PATH=$D/x:${{D}}y {RUN}", "DATA_PATH", "/a/x:/ay"),
        (f"cd /w/x && cd ../y\nDATA_PATH=$PWD/d {RUN}", "DATA_PATH", "/w/y/d"),
        (f"RUN_ID=a=b,c {RUN}", "RUN_ID", "a=b,c"),
        (f"A=(7 8)\nSEED=${{A[1]}} {RUN}", "SEED", "8"),
        (f"SEED= {RUN}", "SEED", ""),
    ],
)
def test_words_are_what_a_shell_makes_of_them(text: str, name: str, value: str) -> None:
    assert variables(text)[0][name] == value


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (f"SEED=$N {RUN}", "$N"),
        (f"SEED=$(date +%s) {RUN}", "$(date +%s)"),
        (f"SEED=x`date` {RUN}", "`date`"),
        (f"SEED=$((1+2)) {RUN}", "$((1+2))"),
        (f"SEED=${{N%x}} {RUN}", "${N%x}"),
        (f"(N=1)\nSEED=$N {RUN}", "$N"),
    ],
)
def test_what_is_not_in_the_text_is_named(text: str, part: str) -> None:
    assert read(text, KNOWN).trainings[0].variables["SEED"].unknown == (part,)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (f"pip install x\nSEED=1 {RUN}", "not used: pip install x"),
        (f"SEED=1 {RUN} 2>&1 | tee log.txt", "not used: tee log.txt"),
        (f"SEED=1 {RUN} --lr 3", "--lr 3: arguments of train_gpt.py"),
        ("SEED=1 torchrun --nproc_per_node=8 --nnodes=2 train_gpt.py", "--nnodes=2: golf starts its own workers"),
        (f"SEED=1 timeout 900 {RUN}", "not used: timeout 900"),
        (f"source .env\nSEED=1 {RUN}", "not used: source .env"),
        (f"NUM_LAYERS=3 python eval.py\nSEED=1 {RUN}", "not used: NUM_LAYERS=3 python eval.py"),
        (f"TTT_LR=1\nexport SEED=1\n{RUN}", "TTT_LR: set, but not before"),
        (f"SEED=1\n{RUN}", "SEED: set without export"),
        (f"SEED=1 {RUN} || SEED=2 {RUN}", "not used: || SEED=2"),
        (f"if [ -d x ]; then Y=1; fi\nSEED=1 {RUN}", "not used: if [ -d x ]"),
        (f"```\nSEED=1 {RUN}\n```\nThen NUM_LAYERS=3 helps.\n", "only what stands within the fences was read"),
        (f"$ SEED=1 {RUN}\nlr=3\n", "taken for output, as it has no prompt: lr=3"),
    ],
)
def test_nothing_is_dropped_in_silence(text: str, part: str) -> None:
    reading = read(text, KNOWN)
    assert reading.trainings[0].variables["SEED"].text == "1"
    assert any(part in note for note in reading.notes)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (f"SEED='1 {RUN}", "cannot read this line: SEED='1"),
        (f"for SEED in 1 2; do SEED=$SEED {RUN}", "cannot read this line"),
        (f"for SEED in $(cat seeds); do SEED=$SEED {RUN}; done", "what it goes over is not in this text"),
        (f"while true; do SEED=1 {RUN}; done", "golf runs no conditions"),
        (f"if [ $X ]; then export NUM_LAYERS=3; fi\n{RUN}", "golf runs no conditions"),
        (f"SEED=1 {RUN}\nexport NUM_LAYERS=3", "NUM_LAYERS: set, but not before the command"),
        ("t() { t; }\nt", "calls itself without end"),
    ],
)
def test_what_cannot_be_told_is_refused(text: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text, KNOWN)
    assert part in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3


def test_prose_that_is_no_shell_may_stand_between() -> None:
    text = f"Then, when it's done (and only then:\nSEED=1 {RUN}"
    assert variables(text) == once(SEED="1")
    assert any("when it's done" in note for note in read(text, KNOWN).notes)


def test_variables_alone_are_a_training() -> None:
    assert variables("SEED=1 NUM_LAYERS=9\nexport MODEL_DIM=384") == [
        {"SEED": "1", "NUM_LAYERS": "9", "MODEL_DIM": "384"}
    ]


def test_a_script_that_is_not_shown_gets_the_variables_before_it() -> None:
    assert variables("export SEED=1\nNUM_LAYERS=9 bash run.sh") == [{"SEED": "1", "NUM_LAYERS": "9"}]


def test_other_scripts_do_not_train(tmp_path: Path) -> None:
    for command in (
        "python data/train_tokenizer.py",
        "python3 -m py_compile train_gpt.py",
        "cat train_gpt.py",
        "torchrun eval.py",
    ):
        assert variables(command) == []


def test_reading_runs_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    read(f"touch {mark}; SEED=$(touch {mark}) {RUN} > {mark}", KNOWN)
    assert not mark.exists()
