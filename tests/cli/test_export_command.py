"""`golf export`: one file that runs alone does what the run did, bit for bit."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from golf.common.errors import DataError, GolfError
from golf.export.bundle import Bundle
from golf.export.folder import Seed, write_folder
from golf.launch.compose.configs import compose_job, composer, resolved
from golf.launch.compose.own_modules import use_code
from golf.launch.work.export import closed, count, runnable
from golf.launch.work.export import script as script_of
from golf.launch.work.submission import rules_of
from golf.runs.store import Run

Bare = Callable[..., subprocess.CompletedProcess[str]]
WORDS = ("budget=smoke", "tokenizer=byte260", "model.num_layers=2", "schedule.iterations=3", "val_tokens=2049",
         "logger=jsonl", "data=text", "data.val_docs=8", "runtime.threads=1")  # fmt: skip


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The run's export in both forms; packed, of a copy that is over its limit."""
    from golf.cli.main import main

    out = tmp_path_factory.mktemp("exported")
    over = Path(shutil.copytree(trained, out / "over"))
    record = json.loads((over / "result.json").read_text())
    record["bytes"]["limit"] = 1000
    (over / "result.json").write_text(json.dumps(record))
    assert main(["export", f"run={over}", f"out={out / 'packed'}", "export.form=packed"]) == 3
    run, code = Run(trained), (out / "packed" / "train_gpt.py").stat().st_size
    text = Bundle(closed(runnable(run), "readable", run.record, run.record["bytes"]["code"])).text()
    write_folder(out / "readable", text.encode(), code, text, [Seed(run.record, run.folder.log)], "readable", [])
    return {form: out / form for form in ("readable", "packed")}


def run_alone(python: Bare, script: Path, trained: Path, place: Path, *words: str, launch: tuple[str, ...] = ()) -> str:
    """Run an exported file in a folder of its own, on the run's shards under the field's names; its lines."""
    facts = json.loads((trained / "result.json").read_text())["data"]
    (place / "data").mkdir(parents=True)
    for shard in Path(facts["folder"]).glob("*.bin"):
        (place / "data" / shard.name.replace("golf_", "fineweb_")).symlink_to(shard)
    done = python(*launch, script, *words, cwd=place, DATA_PATH="data")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


IDEA = '''"""A technique of a user's own, of two files, with names that golf has too."""

import torch
from idea_tools import HOUSE, declare as factor
from golf.nn.params import declare
from golf.nn.techniques.base import Technique


def put(value: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return value * (1 + scale * factor(HOUSE))


class Linear(Technique):
    """Scales the logits. A second sentence."""

    site = "logits"

    def __init__(self, shape, layer=None):
        super().__init__(shape, layer)
        declare(self, "scale", torch.zeros(1), role="scalar", place="idea.scale")
        self.register_buffer("seen", torch.zeros(1), persistent=False)

    def forward(self, value, ctx):
        partial = self.twice(self.scale)
        return put(value, partial)

    def twice(self, scale):
        return scale + scale

    def unused(self):
        return f"{put(self.scale, self.scale)}"
'''
TOOLS = """HOUSE = 0.5


def declare(value):
    return 2 * value
"""


def losses(trained: Path) -> dict[int, float]:
    rows = map(json.loads, (trained / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["train_loss"] for row in rows if "train_loss" in row}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["readable", "packed"])
def test_every_step_has_the_runs_loss_and_the_artifact_its_bytes(
    form: str, exported: dict[str, Path], bare_python: Bare, trained: Path, tmp_path: Path
) -> None:
    told = run_alone(bare_python, exported[form] / "train_gpt.py", trained, tmp_path / "run")
    found = {int(step): float(loss) for step, loss in re.findall(r"step:(\d+)/5 train_loss:(\S+) ", told)}
    assert found == pytest.approx(losses(trained), abs=1e-8)
    assert len(found) == 5
    assert (tmp_path / "run" / "artifact.golf").read_bytes() == (trained / "artifact.golf").read_bytes()
    record = json.loads((trained / "result.json").read_text())
    (scored,) = re.findall(r"_roundtrip_exact val_loss:\S+ val_bpb:(\S+)", told)
    assert float(scored) == pytest.approx(record["val_bpb"]["post_quant"], abs=1e-8)
    total = record["bytes"]["model"] + (exported[form] / "train_gpt.py").stat().st_size
    assert re.search(rf"Total submission size \S+: {total} bytes", told)


def test_an_artifact_is_scored_without_training(
    exported: dict[str, Path], bare_python: Bare, trained: Path, tmp_path: Path
) -> None:
    told = run_alone(
        bare_python, exported["packed"] / "train_gpt.py", trained, tmp_path / "run", "--eval",
        str(trained / "artifact.golf"),
    )  # fmt: skip
    record = json.loads((trained / "result.json").read_text())
    assert f"val_bpb:{record['val_bpb']['post_quant']:.8f}" in told
    assert "step:" not in told


def test_the_environment_has_no_golf(bare_python: Bare) -> None:
    assert "ModuleNotFoundError" in bare_python("-c", "import golf", cwd=Path("/")).stderr


def test_the_readable_form_is_clean_and_names_nothing_of_golfs(exported: dict[str, Path]) -> None:
    import ast

    text = (exported["readable"] / "train_gpt.py").read_text()
    tree = ast.parse(text)
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name.partition(".")[0] for name in imported} & {
        "golf", "hydra", "omegaconf", "wandb", "pydantic", "rich", "psutil", "safetensors",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "E,F,W", "--ignore", "E501",
         exported["readable"]], text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_the_folder_tells_the_runs_figures(exported: dict[str, Path], trained: Path, recorded: Any) -> None:
    record, folder = recorded(trained / "result.json"), exported["packed"]
    told = recorded(folder / "submission.json")
    assert told["val_bpb"] == pytest.approx(record["evals"][-1]["val_bpb"], abs=1e-8)
    assert told["bytes_code"] == (folder / "train_gpt.py").stat().st_size
    assert told["bytes_total"] == told["bytes_code"] + record["bytes"]["model"]
    assert f"{told['bytes_total']:,}" in (folder / "README.md").read_text()
    names = {line.partition("==")[0] for line in (folder / "requirements.txt").read_text().splitlines()}
    assert {"torch", "numpy"} <= names
    assert (folder / "train_seed1337.log").read_text() == (trained / "train.log").read_text()


def test_mistakes_end_before_anything_is_written(
    golf_command: Any, trained: Path, run_copy: Path, tmp_path: Path
) -> None:
    existing = golf_command("export", f"run={trained}", f"out={tmp_path}")
    assert existing.code == 1
    assert "exists: name another folder" in existing.err
    assert golf_command("export", f"run={trained}").code == 2
    assert golf_command("export", "out=x").code == 2
    assert golf_command("export", f"run={trained}", "out=x", "export.form=zip").code == 2
    config = run_copy / "config.yaml"
    config.write_text(config.read_text().replace("seed: 1337", "seed: 1").replace("matrix_lr: ", "matrix_lr: 1"))
    other = golf_command("export", f"run={trained},{run_copy}", f"out={tmp_path / 'x'}")
    assert other.code == 2
    assert "optimizer.matrix_lr" in other.err
    again = golf_command("export", f"run={trained},{trained}", f"out={tmp_path / 'x'}")
    assert again.code == 2
    assert "have the same seed" in again.err
    for change, told in (({"schema_version": 99}, "reads up to"), ({"bytes": None}, "does not say the run's bytes"),
                         ({"steps": "many"}, "is not a golf result: steps")):  # fmt: skip
        record = json.loads((trained / "result.json").read_text()) | change
        (run_copy / "result.json").write_text(json.dumps(record))
        broken = golf_command("export", f"run={run_copy}", f"out={tmp_path / 'x'}")
        assert (broken.code, told in broken.err) == (1, True)
    (run_copy / "artifact.golf").unlink()
    gone = golf_command("export", f"run={run_copy}", f"out={tmp_path / 'x'}")
    assert gone.code == 1
    assert "artifact.golf is missing" in gone.err
    assert not (tmp_path / "x").exists()


def test_a_run_over_its_limit_is_exported_and_marked(exported: dict[str, Path], trained: Path) -> None:
    size = (trained / "artifact.golf").stat().st_size + (exported["packed"] / "train_gpt.py").stat().st_size
    told = f"**Invalid: {size - 1000:,} bytes over the limit of 1,000.**"
    assert told in (exported["packed"] / "README.md").read_text()
    assert "Invalid" not in (exported["readable"] / "README.md").read_text()


def rows(folder: Path, *given: Any) -> dict[str, tuple[str, str]]:
    """State and figure of each rule."""
    return {one.rule: (one.state, one.told) for one in rules_of(folder, *given)}


def test_a_folder_is_checked_as_far_as_it_shows(exported: dict[str, Path], golf_command: Any) -> None:
    found = rows(exported["packed"])
    assert {rule for rule, (state, _) in found.items() if state == "pass"} == {
        "bytes of artifact and code", "seconds of training and calibration", "seconds of evaluation",
        "the file stands alone", "requirements.txt names what it imports", "submission.json agrees with itself",
        "each seed's log has its figure",
    }  # fmt: skip
    assert {state for state, _ in found.values()} == {"pass", "not run"}
    assert found["no prediction sees later text"][1].startswith("its log says so")
    done = golf_command("check", f"run={exported['readable']}")
    assert done.code == 0
    assert all(rule in done.out for rule in found)
    assert golf_command("check", f"run={exported['readable']}", "runtime=cpu").code == 2
    assert golf_command("check", f"run={exported['readable']}", "artifact=nowhere").code == 2


@pytest.mark.slow
def test_a_folders_file_scores_the_artifact_where_the_line_allows_it(
    exported: dict[str, Path], trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shards = Path(json.loads((trained / "result.json").read_text())["data"]["folder"])
    for shard in shards.glob("*.bin"):
        (tmp_path / shard.name.replace("golf_", "fineweb_")).symlink_to(shard)
    monkeypatch.setenv("DATA_PATH", str(tmp_path))
    rule, given = "the artifact alone gives the figure", [trained / "artifact.golf"]
    assert rows(exported["packed"], given)[rule] == ("not run", "it runs train_gpt.py: look at it, then add --trust")
    assert rows(exported["packed"], given, True)[rule][0] == "pass"
    monkeypatch.setenv("DATA_PATH", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="DATA_PATH names the folder"):
        rows(exported["packed"], given, True)


def with_idea(folder: Path, more: str = "") -> Path:
    """A --config-dir with a technique of a user's own."""
    (folder / "technique" / "idea").mkdir(parents=True)
    (folder / "technique" / "idea" / "v1.yaml").write_text("_target_: my_idea.Linear\n_partial_: true\n")
    (folder / "my_idea.py").write_text(IDEA + more)
    (folder / "idea_tools.py").write_text(TOOLS)
    return folder


@pytest.mark.slow
def test_a_users_technique_is_bundled_and_two_workers_give_the_same(
    golf_command: Any, bare_python: Bare, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The grids are fitted into what the packed file's bytes leave."""
    monkeypatch.setattr("sys.argv", ["golf"])
    monkeypatch.delenv("GOLF_CODE")
    words = [*WORDS, f"data.paths=[{workplace / 'corpus.jsonl'}]", "quant=int6", "quant.pack=false",
             "quant.scale_floor=false", "quant.k=12.85", "quant.fit=130000"]  # fmt: skip
    run, idea = tmp_path / "trained", with_idea(tmp_path / "mine")
    done = golf_command("train", "--config-dir", idea, *words, "technique/idea=v1", "runtime.nproc=2",
                        f"hydra.run.dir={run}")  # fmt: skip
    assert done.code == 0, done.out + done.err
    done = golf_command("export", f"run={run}", f"out={tmp_path / 'out'}", "export.form=packed")
    assert done.code == 0, done.err
    counted = json.loads((run / "result.json").read_text())["bytes"]
    assert counted["code_is"] == "packed"
    assert counted["code"] == (tmp_path / "out" / "train_gpt.py").stat().st_size
    assert 0.99 * 130_000 < counted["artifact"] <= 130_000
    done = golf_command("export", f"run={run}", f"out={tmp_path / 'readable'}")
    text = (tmp_path / "readable" / "train_gpt.py").read_text()
    assert "A second sentence" not in text
    assert "def unused" not in text
    run_alone(
        bare_python, tmp_path / "readable" / "train_gpt.py", run, tmp_path / "run",
        launch=("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"),
    )  # fmt: skip
    assert (tmp_path / "run" / "artifact.golf").read_bytes() == (run / "artifact.golf").read_bytes()
    use_code([])


def test_a_run_that_cannot_be_exported_keeps_the_bound_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOLF_CODE")
    found = count({"phases": [], "code_paths": [], "optimizer": {"_target_": "__main__.Mine"}})
    assert found.what.startswith("an upper bound: optimizer: ")
    assert "__main__.Mine" in found.what
    assert found.bytes > 0


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("        return open('x').read()\n", "'open' reads a file"),
        ("        return __file__\n", "'__file__' reads a file"),
    ],
)
def test_code_that_reads_a_file_is_refused_with_its_line(more: str, told: str, tmp_path: Path) -> None:
    folder = with_idea(tmp_path / "mine", f"\n    def __getstate__(self):\n{more}")
    with composer([folder]):
        config: dict[str, Any] = resolved(compose_job([*WORDS, "data.paths=[x]", "technique/idea=v1"], [folder]))
    config["code_paths"] = [str(folder)]
    with pytest.raises(GolfError, match=told) as caught:
        script_of(config, "refused")
    assert f"my_idea.py:{IDEA.count(chr(10)) + 3}: " in str(caught.value)
    use_code([])
