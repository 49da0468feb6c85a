"""A user's own files around a run: in the working folder, beside a technique, and in its errors."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

WORDS = ("train", "budget=smoke", "schedule.iterations=1", "val_tokens=512", "tokenizer=byte260", "logger=jsonl",
         "model.num_layers=1", "runtime.threads=1", "data=text", "data.val_docs=8")  # fmt: skip
TABLE = """import sys
from pathlib import Path
import torch
from golf.nn.techniques.base import Technique


class Table(Technique):
    site = "logits"

    def __init__(self, shape, layer=None):
        super().__init__(shape, layer)
        rows = [float(word) for word in Path(__file__).with_name("table.txt").read_text().split()]
        self.register_buffer("bias", torch.tensor(rows))

    def forward(self, value, ctx):
        if Path(sys.argv[0]).stem == "worker" and self.training and (Path.cwd() / "fuse").exists():  # not tried before
            raise RuntimeError("it burns")
        return value + self.bias
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A technique that reads a file beside it; no other test's table is found by this process."""
    folder = tmp_path / "mine"
    monkeypatch.setattr(sys, "path", [path for path in sys.path if Path(path).name != "mine"])
    sys.modules.pop("table", None)
    (folder / "technique" / "table").mkdir(parents=True)
    (folder / "technique" / "table" / "v1.yaml").write_text("_target_: table.Table\n_partial_: true\n")
    (folder / "table.py").write_text(TABLE)
    (folder / "table.txt").write_text(" ".join(["0.001"] * 260))
    return folder


@pytest.fixture
def train(golf_command: Any, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`golf train` of one step, in the test's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["golf"])
    return lambda *words: golf_command(*WORDS, f"data.paths=[{workplace}/corpus.jsonl]", *words)


@pytest.mark.slow
def test_workers_import_nothing_from_the_working_folder(train: Any, tmp_path: Path, recorded: Any) -> None:
    for name in ("golf", "queue", "random", "profile", "typing_extensions", "runpy", "torch", "socket"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the working folder')")
    done = train("-m", "seed=1", "runtime.nproc=2", "hydra.sweep.dir=sweep")
    assert done.code == 0, done.out + done.err
    assert recorded(tmp_path / "sweep" / "0" / "result.json")["numerics"]["nproc"] == 2


@pytest.mark.slow
def test_data_beside_a_technique_goes_with_the_run_and_is_counted(
    train: Any, mine: Path, tmp_path: Path, recorded: Any, golf_command: Any
) -> None:
    sizes = []
    drawn = random.Random(1)
    for name, text in (("small", "0.001 " * 260), ("large", " ".join(f"{drawn.random():.9f}" for _ in range(260)))):
        (mine / "table.txt").write_text(text)
        done = train("--config-dir", mine, "technique/table=v1", f"hydra.run.dir={name}")
        assert done.code == 0, done.out + done.err
        assert "counted with your code: 1 files beside it (table.txt)" in (tmp_path / name / "train.log").read_text()
        sizes.append(recorded(tmp_path / name / "result.json")["bytes"]["code"])
    assert sizes[1] - sizes[0] > 500
    (mine / "table.txt").unlink()
    assert golf_command("eval", "run=large", "eval=contiguous").code == 0


def test_an_error_in_a_technique_names_the_users_file_in_one_line(
    train: Any, mine: Path, tmp_path: Path, recorded: Any
) -> None:
    (tmp_path / "fuse").touch()
    run = tmp_path / "sweep" / "0"
    assert train("--config-dir", mine, "technique/table=v1", "-m", "hydra.sweep.dir=sweep").code == 1
    told = f"{mine}/table.py, line 17: RuntimeError: it burns"
    console = (run / "console.log").read_text()
    assert f"golf: {told}" in console
    assert "Traceback" not in console
    assert recorded(run / "result.json")["error"] == told
    assert "Traceback" in (run / "train.log").read_text()


def test_an_error_as_the_model_is_built_names_the_line_before_anything_is_written(
    train: Any, mine: Path, tmp_path: Path
) -> None:
    (mine / "table.txt").write_text("one two")
    done = train("--config-dir", mine, "technique/table=v1", "hydra.run.dir=r")
    assert done.code == 2
    assert f"({mine}/table.py, line 12)" in done.err
    assert not (tmp_path / "r").exists()


def test_more_data_than_an_artifact_holds_is_refused_before_anything_is_written(
    train: Any, mine: Path, tmp_path: Path
) -> None:
    (mine / "tables").mkdir()
    (mine / "tables" / "huge.npy").write_bytes(bytes(16_000_001))
    for words in (["hydra.run.dir=r"], ["-m", "seed=1,2", "hydra.sweep.dir=r"]):
        done = train("--config-dir", mine, "technique/table=v1", *words)
        assert done.code == 2
        assert f"{mine}/tables/huge.npy: 16,000,001 bytes" in done.err
        assert len(done.err.splitlines()) <= 3
    assert not (tmp_path / "r").exists()


PACKAGE = {
    "hydra_plugins/acme_golf/__init__.py": """from hydra.plugins.search_path_plugin import SearchPathPlugin


class Acme(SearchPathPlugin):
    def manipulate_search_path(self, search_path):
        search_path.append("acme", "pkg://acme.conf")
""",
    "acme/__init__.py": "",
    "acme/conf/__init__.py": "",
    "acme/conf/technique/table/v1.yaml": "_target_: acme.table.Table\n_partial_: true\n",
    "acme/table.py": TABLE,
    "acme/table.txt": "0.001 " * 260,
}
OTHERS = {
    "scores/eval/halved.yaml": "_target_: scorer.Halved\nseq_len: 128\nstride: 64\n",
    "scores/scorer.py": "import golf.evals.evaluators as e\n\n\nclass Halved(e.Evaluator):\n    method = 'halved'\n",
    "more/callbacks/idle/v1.yaml": "_target_: idle.Idle\n",
    "more/idle.py": "from golf.train.hooks import Hook\n\n\nclass Idle(Hook):\n    pass\n",
}
SESSION = """import sys
from golf.cli.main import main

main(["train", "--help"])
main(["__complete", "--", "train", "technique/table="])
raise SystemExit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_package_and_several_folders_are_found_used_and_kept(
    workplace: Path, tmp_path: Path, recorded: Any, golf_command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in (PACKAGE | {f"../{name}": text for name, text in OTHERS.items()}).items():
        file = (tmp_path / "site" / name).resolve()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    monkeypatch.chdir(tmp_path)
    words = [*WORDS, f"data.paths=[{workplace}/corpus.jsonl]", "--config-dir", "scores", "--config-dir", "more",
             "technique/table=v1", "eval=halved", "callbacks/idle=v1", "hydra.run.dir=run"]  # fmt: skip
    path = os.pathsep.join([str(tmp_path / "site"), os.environ["PYTHONPATH"]])
    done = subprocess.run(
        [sys.executable, "-c", SESSION, *words], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"technique/table +none, v1\n", done.stdout)
    assert "technique/table=v1\n" in done.stdout
    kept = {file.relative_to(tmp_path / "run" / "code").as_posix() for file in (tmp_path / "run").rglob("code/**/*.*")}
    assert {"acme/table.py", "acme/table.txt", "scorer.py", "idle.py", "eval/halved.yaml"} <= kept
    assert "counted with your code: 1 files beside it (table.txt)" in done.stdout
    score = recorded(tmp_path / "run" / "result.json")["val_bpb"]
    assert score["final"] == score["by_method"]["halved"] != score["post_quant"]
    again = golf_command("eval", "run=run")  # where no such package is installed
    assert again.code == 0, again.err
    assert recorded(again.last_line)["val_bpb"] == pytest.approx(score["final"], abs=1e-9)


OUTSIDE = """import numpy as np
import torch
from golf.nn.techniques.base import Technique
{imports}

class Table(Technique):
    site = "logits"

    def __init__(self, shape, layer=None):
        super().__init__(shape, layer)
        {built}

    def forward(self, value, ctx):
        {run}
        return value
"""


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"built": "self.rows = np.load({file!r})"}, r"golf: .*py, line 11, reads {file}, which lies outside"),
        ({"built": "self.rows = np.memmap({file!r}, mode='r')"}, "reads {file}, which lies outside --config-dir"),
        ({"run": "rows = open({file!r}, 'rb').read(8)"}, "py, line 14, reads {file}, which lies outside"),
        ({"imports": "ROWS = np.load({file!r})"}, "py, line 4, reads {file}, which lies outside"),
        ({"imports": "import far_helper"}, "py, line 4, imports {helper}, which lies outside --config-dir"),
        ({"run": "import far_helper"}, "py, line 14, imports {helper}, which lies outside --config-dir"),
    ],
)
def test_what_lies_outside_the_folder_is_refused_before_the_start(
    train: Any, mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: dict[str, str], told: str
) -> None:
    far = tmp_path / "far"
    far.mkdir()
    names = {"file": str(far / "rows.npy"), "helper": str(far / "far_helper.py")}
    np.save(names["file"], np.zeros(8))
    Path(names["helper"]).write_text("GAIN = 1.0\n")
    monkeypatch.syspath_prepend(str(far))
    monkeypatch.delitem(sys.modules, "far_helper", raising=False)
    filled = {name: parts.get(name, "pass" if name != "imports" else "").format(**names)
              for name in ("imports", "built", "run")}  # fmt: skip
    (mine / f"{tmp_path.name}.py").write_text(OUTSIDE.format(**filled))
    (mine / "technique" / "table" / "v1.yaml").write_text(f"_target_: {tmp_path.name}.Table\n_partial_: true\n")
    done = train("--config-dir", str(mine), "technique/table=v1")
    assert done.code == 2, done.out + done.err
    assert re.search(told.format(**names), done.err)
    assert "put it beside that code" in done.err
    assert not (tmp_path / "outputs").exists()


def test_what_is_read_late_makes_the_run_invalid(train: Any, mine: Path, tmp_path: Path, recorded: Any) -> None:
    far = tmp_path / "rows.npy"
    np.save(far, np.zeros(8))
    late = f"if __import__('sys').argv[0].endswith('worker.py') and not self.training: np.load({str(far)!r})"
    (mine / "table.py").write_text(OUTSIDE.format(imports="", built="pass", run=late))
    done = train("--config-dir", str(mine), "technique/table=v1", "hydra.run.dir=run")
    assert done.code == 3, done.err
    record = recorded(tmp_path / "run" / "result.json")
    assert [one for one in record["violations"] if f"line 14, reads {far}, which lies outside" in one]
    assert "bytes counted" not in record["proof"]["proved"]
    assert "causal" in record["proof"]["proved"]
