"""Every recipe's exported file does what golf does, alone or as two workers: the losses of all steps, and the artifact
to the byte.

Processes are forked from one that has imported torch, golf's and those that have no golf: a start costs more than a
run.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from golf.common.paths import conf_dir
from golf.export.bundle import Bundle
from golf.launch.work.export import closed, runnable
from golf.runs.store import Run

Bare = Callable[..., subprocess.CompletedProcess[str]]
RECIPES = sorted({path.stem for path in (conf_dir() / "recipe").glob("*.yaml")} - {"none"})
SMALL = {
    "frontier": ["model.num_layers=6", "model.position.dims=4"],  # it loops over 3 to 5
    "gradquant_11l": ["model.num_layers=4"],
}
WORDS = (
    "budget=smoke", "tokenizer=byte260", "train_batch_tokens=1024", "schedule.iterations=3", "val_tokens=1025",
    "eval_all_stages=false", "logger=jsonl", "data=text", "data.val_docs=8", "runtime.threads=1",
)  # fmt: skip
WORKER = "golf.launch.work.worker"
STARTS = """
import importlib, json, os, runpy, socket, sys
loaded, jobs = json.loads(sys.argv[1])
for name in loaded:
    importlib.import_module(name)
for what, words, folder, workers, environment in jobs:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    children = []
    for rank in range(workers):
        if child := os.fork():
            children.append(child)
            continue
        os.environ.update(environment)
        if workers > 1:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(workers), MASTER_ADDR="127.0.0.1",
                              MASTER_PORT=str(port))
        os.chdir(folder)
        sys.argv = [what, *words]
        code = 1
        try:
            (runpy.run_path if what.endswith(".py") else runpy.run_module)(what, run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
    for child in children:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, (what, words, workers)
"""


def losses(run: Path) -> dict[int, float]:
    """Those of a run's rows by step."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["train_loss"] for row in rows if "train_loss" in row}


def same(
    recipes: Sequence[str], workers: Sequence[int], golf_command: Any, python: Bare, place: Path, corpus: Path
) -> None:
    """Train by golf and by the exported file, and compare."""
    jobs: list[Any] = []
    for recipe in recipes:
        words = [f"recipe={recipe}", *WORDS, *SMALL.get(recipe, ["model.num_layers=2"]), f"data.paths=[{corpus}]"]
        first = place / recipe / str(workers[0])
        done = golf_command("train", "--prepare", *words, f"hydra.run.dir={first}")
        assert done.code == 0, done.err
        for number in workers[1:]:
            shutil.copytree(first, place / recipe / str(number))
        jobs += [(WORKER, [f"run={place / recipe / str(n)}"], str(place), n, {}) for n in workers]
    started = [sys.executable, "-c", STARTS, json.dumps([["golf.launch.work.session"], jobs])]
    done = subprocess.run(started, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    jobs = []
    for recipe in recipes:
        run = Run(place / recipe / str(workers[0]))
        made = closed(runnable(run), recipe, run.record, run.record["bytes"]["code"])
        script = place / recipe / "train_gpt.py"
        script.write_text(Bundle(made).text(), encoding="utf-8")
        for number in workers:
            empty = place / recipe / f"alone_{number}"
            empty.mkdir()
            jobs.append((str(script), [], str(empty), number, {"DATA_PATH": str(place / "data")}))
    (place / "data").mkdir()
    for shard in Path(run.record["data"]["folder"]).glob("*.bin"):
        (place / "data" / shard.name.replace("golf_", "fineweb_")).symlink_to(shard)
    done = python("-c", STARTS, json.dumps([["torch", "numpy"], jobs]), cwd=place)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for recipe in recipes:
        for number in workers:
            run_, alone = place / recipe / str(number), place / recipe / f"alone_{number}"
            told = (alone / "logs" / "train.txt").read_text()
            found = {int(step): float(loss) for step, loss in re.findall(r"step:(\d+)/3 train_loss:(\S+) ", told)}
            assert found == pytest.approx(losses(run_), abs=1e-8), (recipe, number)
            assert len(found) == 3
            assert f"world_size:{number} " in told
            assert (alone / "artifact.golf").read_bytes() == (run_ / "artifact.golf").read_bytes(), (recipe, number)


def test_the_frontiers_file_does_what_golf_does(
    golf_command: Any, bare_python: Bare, workplace: Path, tmp_path: Path
) -> None:
    same(["frontier"], [1], golf_command, bare_python, tmp_path, workplace / "corpus.jsonl")


@pytest.mark.slow
def test_every_recipes_file_does_what_golf_does_by_one_and_two_workers(
    golf_command: Any, bare_python: Bare, workplace: Path, tmp_path: Path
) -> None:
    assert {"frontier", "gradquant_11l"} < set(RECIPES)
    same(RECIPES, [1, 2], golf_command, bare_python, tmp_path, workplace / "corpus.jsonl")
