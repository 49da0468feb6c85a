"""The pages say what works: their commands parse and compose, their code runs, their links lead somewhere."""

from __future__ import annotations

import functools
import inspect
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import yaml

from golf.cli import bench, check, compare, dashboard, data, data_inspect, quantize, sample, size, trust
from golf.cli import eval as eval_command
from golf.cli import export as export_command
from golf.data.loader import Feed
from golf.data.shards import Shards
from golf.launch.compose import build, rerun
from golf.launch.compose.again import again
from golf.launch.compose.annotations import check_types
from golf.launch.compose.configs import Checker, CommandLine, compose_job, composer, resolved
from golf.launch.compose.own_modules import use_code
from golf.launch.compose.rerun import Command
from golf.nn.context import READABLE, Context
from golf.nn.linear import EffectiveWeights
from golf.nn.params import ParamSpec
from golf.nn.slots import SLOTS
from golf.nn.techniques.base import SITES, Technique
from golf.quant.entry import dequantize

ROOT = Path(__file__).parents[2]
GUIDES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES = [*GUIDES, *sorted((ROOT / "docs").glob("*.md")), ROOT / "multirun" / "README.md", ROOT / "CHANGELOG.md"]
CHECKED = [*GUIDES, *(page for page in PAGES if page.parent.name in ("docs", "multirun") and page.stem != "migrating")]
"""The pages whose commands are tried; docs/migrating.md has a test of its own."""
RERUN: dict[str, Command] = {
    "eval": eval_command.COMMAND, "check": check.COMMAND, "quantize": quantize.COMMAND, "sample": sample.COMMAND,
    "export": export_command.COMMAND,
}  # fmt: skip
RUN_FOR_REAL = ("runs", "report", "doctor", "completion", "import-env")


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced code blocks of a page in these languages."""
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [body for language, body in found if language in languages]


def lines(page: Path) -> list[str]:
    """The command lines of a page's shell blocks, continuations joined."""
    return [
        line.strip()
        for body in blocks(page, "sh")
        for line in body.replace("\\\n", " ").splitlines()
        if line.strip() and not line.lstrip().startswith("#")
    ]


def golf_commands(page: Path) -> list[str]:
    """The `golf …` lines of a page, those inside `$( )` too."""
    found = []
    for line in lines(page):
        found += re.findall(r"\$\((golf [^)|]*)", line)
        if line.startswith("golf "):
            found.append(line)
    return found


COMMANDS = [(page, line) for page in CHECKED for line in golf_commands(page)]
TARGETS = [(page, target) for page in CHECKED for line in lines(page) if line.startswith("make ")
           for target in shlex.split(line, comments=True)[1:] if "=" not in target]  # fmt: skip
FILES = {
    line.removeprefix("# "): body
    for page in GUIDES
    for body in blocks(page, "python", "yaml")
    for line in body.splitlines()[:2]
    if re.fullmatch(r"# \S+/\S+\.(py|yaml)", line)
}
"""The files that the pages show, by the path in one of their first two lines, which may be copied with the rest."""


def named(value: object) -> str:
    return value.name if isinstance(value, Path) else str(value)[:70]


@pytest.fixture
def place(tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that the pages speak of: their files, a corpus, documents, a run in outputs/ and one in multirun/."""
    for name, body in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(body, encoding="utf-8")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "one.txt").write_text("some text\n", encoding="utf-8")
    (tmp_path / "docs_selected.jsonl").write_text('{"text": "some text"}\n', encoding="utf-8")
    for folder in ("outputs/2026-01-31/one", "multirun/2026-01-31/sweep/0"):
        shutil.copytree(trained, tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in FILES:
        sys.modules.pop(Path(name).stem, None)


def words_of(line: str, run: Path) -> list[str]:
    """A command's words, the example's run folder and what `$( )` would print put in."""
    line = re.sub(r'"?\$\([^)]*\)"?', str(run), line.partition(" | ")[0].partition(" > ")[0])
    words = shlex.split(line, comments=True)[1:]
    words = [f"run={run}" if word.startswith("run=") else str(run) if word == "DIR" else word for word in words]
    return words


def check_train(words: list[str]) -> None:
    """What `golf train` does before it starts anything; every job of a sweep is checked."""
    line = again(CommandLine.parse(words))
    with composer(line.config_dirs):
        checker = Checker(line)
        line = checker.complete()
        configs = [resolved(compose_job(job, line.config_dirs)) for job in checker.jobs(line)]
    for config in configs:
        config["code_paths"] = [str(folder) for folder in line.config_dirs]
        build.check(config)


def check_data(words: list[str]) -> None:
    """What `golf data` does before it prepares anything."""
    if words[:1] == ["inspect"]:
        assert data_inspect.parse(words[1:])
        return
    line = CommandLine.parse(data.spelt_out(words))
    with composer(line.config_dirs):
        checker = Checker(line)
        line = checker.complete()
        for job in checker.jobs(line):
            config = resolved(compose_job(job, line.config_dirs))
            for part in ("data", "tokenizer"):
                check_types(config[part], part)
                build.make(config[part], part)


def check_bench(words: list[str]) -> None:
    """What `golf bench` does before it measures anything."""
    assert words[:1] == ["kernels"] or bench.read(words)[0]


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=named)
def test_a_command_of_the_pages(page: Path, line: str, place: Path, golf_command) -> None:
    command, *words = words_of(line, place / "outputs/2026-01-31/one")
    if command in RUN_FOR_REAL or "--help" in words or command.startswith("--"):
        outcome = golf_command(command, *words)
        assert outcome.code == 0, outcome.err
    elif command in RERUN:
        assert rerun.read_line(RERUN[command], words).jobs
    else:
        checks: dict[str, Any] = {"train": check_train, "data": check_data, "bench": check_bench, "size": size.read}
        checks["trust"] = lambda words: [trust.named(word, False, {}) for word in words]
        {**checks, "compare": compare.parse, "dashboard": dashboard.parse}[command](words)


def test_the_readme_shows_the_daily_commands() -> None:
    shown = {line.split()[1] for page, line in COMMANDS if page.name == "README.md"}
    assert shown >= {"train", "eval", "quantize", "size", "sample", "runs", "data", "doctor", "completion"}


@pytest.mark.parametrize(("page", "target"), TARGETS, ids=named)
def test_a_make_target_of_the_pages(page: Path, target: str) -> None:
    assert re.search(rf"^{re.escape(target)}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_the_notebook_of_the_readme(place: Path) -> None:
    (body,) = [body for body in blocks(ROOT / "README.md", "python") if "load_run" in body]
    scope: dict[str, Any] = {}
    exec(body.replace('"DIR"', repr(str(place / "outputs/2026-01-31/one"))), scope)
    assert len(scope["curve"]["train_loss"]) == 5


def train_two_steps(place: Path, workplace: Path, *words: str) -> None:
    common = (
        "budget=smoke", "schedule.iterations=2", "val_tokens=2048", "logger=jsonl", "runtime.threads=1", "data=text",
        f"data.paths=[{workplace}/corpus.jsonl]", "data.val_docs=8",
    )  # fmt: skip
    command = [sys.executable, "-m", "golf.cli.main", "train", "--config-dir", "mine", *common, *words]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr


def result(directory: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((directory / "result.json").read_text(encoding="utf-8"))
    return loaded


@pytest.mark.slow
def test_the_worked_technique_trains(place: Path, workplace: Path) -> None:
    words = ("-m", "technique/head_gate=none,v1", "model.num_layers=2", f"hydra.sweep.dir={place}/sweep")
    train_two_steps(place, workplace, *words)
    without, gated = (result(place / "sweep" / job) for job in "01")
    assert gated["params"]["total"] - without["params"]["total"] == 2 * 4 * 12  # layers, heads, width
    assert gated["params"]["by_role"]["gate"] == 2 * 4 * 12
    assert "attn.head_gate" in gated["bytes"]["by_group"]
    assert (place / "sweep" / "1" / "code" / "head_gate.py").exists()


@pytest.mark.slow
def test_the_worked_term_of_the_loss_is_trained_and_shown(place: Path, workplace: Path) -> None:
    train_two_steps(place, workplace, "technique/confidence=v1", "model.num_layers=1", f"hydra.run.dir={place}/terms")
    rows = [json.loads(line) for line in (place / "terms" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["confidence"] == pytest.approx(-1e-2 * row["entropy"]) for row in rows if "train_loss" in row)


def test_the_worked_loader_reads_the_data_backwards_and_packs(place: Path, workplace: Path) -> None:
    run, words = place / "backwards", ("model.num_layers=1", "tokenizer=byte260", "loader=backwards")
    train_two_steps(place, workplace, *words, "loader.packed=true", f"hydra.run.dir={run}")
    assert (run / "code" / "backwards.py").exists()
    config = yaml.safe_load((run / "config.yaml").read_text())
    use_code(config["code_paths"])
    ids = np.arange(1, 1000, dtype=np.uint16)
    loader = build.make(config["loader"], "loader")(feed=Feed(Shards([place], [ids], 1000), 64, 8, border_id=0))
    assert loader.next_step()[0].x[0, -8:].tolist() == list(range(999 - 64, 999 - 56))
    assert loader.next_step()[0].x[0, :8].tolist() == list(range(999 - 72, 999 - 64))
    loader.close()


def test_the_worked_schedule_averaging_callback_tokenizer_and_logger(place: Path, workplace: Path) -> None:
    words = (
        "schedule=cosine", "schedule.clock=steps", "averaging=late", "averaging.every=1", "callbacks/samples=greedy",
        "callbacks.samples.tokens=3", "tokenizer=nibbles", "logger=csv", "model.num_layers=1", "schedule.iterations=4",
    )  # fmt: skip
    train_two_steps(place, workplace, *words, f"hydra.run.dir={place}/own")
    made = result(place / "own")
    assert [one["stage"] for one in made["evals"]][:2] == ["stop", "averaged"]
    assert made["data"]["tokenizer"] == "nibbles"
    assert made["data"]["byte_proof"]["proved"]
    rows = [json.loads(line) for line in (place / "own" / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "train_loss" in row]
    assert [row["lr_multiplier"] for row in steps] == pytest.approx([1.0, 0.853553, 0.5, 0.146447], abs=1e-6)
    told = (place / "own" / "metrics.csv").read_text().splitlines()
    assert told[0] == "step,train_time_s,train_loss"
    assert [float(line.split(",")[2]) for line in told[1:]] == [row["train_loss"] for row in steps]
    assert "after step 4: 'def " in (place / "own" / "train.log").read_text()


def table(page: Path, head: str) -> list[list[str]]:
    """The cells of the table whose first column is headed so."""
    found = re.search(rf"^\| {head} \|.*\n\|[- |]+\n((?:\|.*\n)+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in found[1].splitlines()]


def code(text: str) -> set[str]:
    """The names within a cell's backquotes."""
    return {name for part in re.findall(r"`([^`]+)`", text) for name in re.split(r"[ ,()]+", part) if name}


def test_the_table_of_slots_is_what_parts_are_built_with_and_must_have() -> None:
    with composer():
        config = resolved(compose_job(["budget=smoke"]))
    given: dict[str, set[str]] = {}

    def noting(slot: str, part: Any) -> Any:
        def built(**keywords: Any) -> Any:
            given[slot] = set(keywords)
            return part(**keywords)

        return built

    model = build.make(config["model"], "model")
    with torch.device("meta"):
        model(**{slot: noting(slot, model.keywords[slot]) for slot in SLOTS})
    rows = {next(iter(code(slot))): (code(built), has) for slot, built, has in table(ROOT / "CONTRIBUTING.md", "slot")}
    assert {slot: built for slot, (built, _) in rows.items()} == given
    for slot, protocol in SLOTS.items():
        called = protocol.__call__ if "__call__" in vars(protocol) else None
        arguments = set(inspect.signature(called).parameters) - {"self"} if called else set()
        members = {name for name in (*inspect.get_annotations(protocol), *vars(protocol)) if not name.startswith("_")}
        assert code(rows[slot][1]) == arguments | members, slot


def test_the_table_of_sites_says_what_the_context_holds_there() -> None:
    held: dict[str, set[str]] = {}
    always = {"ids", "score_from", "border_id", "carried", "targets", "to_logits"}

    class Probe(Technique):
        sites: ClassVar = {site: f"at_{site}" for site in SITES}
        reads = READABLE
        shared = True

    def look(site: str, _: Technique, value: Any, ctx: Context) -> Any:
        held[site] = {name for name in READABLE if getattr(ctx, name) is not None} - always
        return value

    for site, method in Probe.sites.items():
        setattr(Probe, method, functools.partialmethod(functools.partial(look, site)))
    with composer():
        config = resolved(compose_job(["budget=smoke", "model.num_layers=1", "tokenizer=byte260"]))
    made = build.make(config["model"], "model")(techniques={"probe": functools.partial(Probe)}, compute="float32")
    made.border_id = 1
    made.initialize(1)
    EffectiveWeights(made).refresh()
    ids = torch.randint(4, 260, (1, 8))
    made(ids, ids, noting=True)
    told = {site: code(also) for cells, _, also in table(ROOT / "CONTRIBUTING.md", "site") for site in code(cells)}
    assert told == held


def test_the_worked_quantizer_noise_and_evaluator(place: Path, workplace: Path, golf_command) -> None:
    more = ("model.num_layers=1", "passthrough_numel=0", "quant.windows=8", f"hydra.run.dir={place}/after")
    train_two_steps(place, workplace, "quant=descent", "qat=noisy", *more)
    trained = result(place / "after")
    assert trained["clocks"]["calibrate"] > 0
    assert set(trained["quantization"]["bits"].values()) == {4}
    line = ("eval", "--config-dir", "mine", f"run={place}/after", "-m", "eval=tempered", "eval.temperature=1,3")
    done = golf_command(*line)
    assert done.code == 0, done.err
    one, three = (json.loads(Path(path).read_text(encoding="utf-8")) for path in done.out.splitlines()[-2:])
    assert one["val_bpb"] == pytest.approx(trained["val_bpb"]["sliding"], abs=1e-6)
    assert three["val_bpb"] != pytest.approx(one["val_bpb"], abs=1e-3)


def test_the_worked_quantizer_loses_less_than_the_nearest_integers_in_every_row(place: Path) -> None:
    use_code([str(place / "mine")])
    descent = build.make({"_target_": "descent.Descent", "bits": 3, "passthrough_numel": 0}, "quant")
    drawn = torch.Generator().manual_seed(1)
    weight, x = torch.randn(6, 24, generator=drawn), torch.randn(40, 24, generator=drawn)
    spec, errors = {"w": ParamSpec("matrix", "mlp.up")}, []
    for hessians in ({}, {"w": x.T @ x}):
        descent.hessians = hessians
        rounded = dequantize(descent.quantize({"w": weight}, spec)["w"])
        errors.append(((weight - rounded) @ x.T).square().sum(-1))
    assert (errors[1] <= 1.001 * errors[0]).all()  # a scale is stored in float16
    assert errors[1].sum() < 0.9 * errors[0].sum()


def test_the_worked_recipe_composes(place: Path) -> None:
    line = CommandLine.parse(["--config-dir", "mine", "recipe=gated"])
    with composer(line.config_dirs):
        config = resolved(compose_job(line.overrides, line.config_dirs))
    assert config["model"]["num_layers"] == 2
    assert config["technique"]["head_gate"]["width"] == 12


@torch.no_grad()
def test_the_worked_technique_is_causal_and_starts_as_the_identity(place: Path) -> None:
    def model(*words: str) -> torch.nn.Module:
        line = CommandLine.parse(["--config-dir", "mine", "budget=smoke", "logger=jsonl", *words])
        with composer(line.config_dirs):
            config = resolved(compose_job(line.overrides, line.config_dirs))
        use_code([str(folder) for folder in line.config_dirs])
        built = build.build_model(config, "float32").eval()
        built.initialize(1)
        for name, parameter in built.named_parameters():
            if name.endswith("proj.weight"):  # a projection that starts at zero would hide the gate
                parameter.normal_(generator=torch.Generator().manual_seed(2))
        return built

    plain, gated = model(), model("technique/head_gate=v1")
    ids = torch.randint(4, 260, (2, 16), generator=torch.Generator().manual_seed(3))
    assert torch.equal(plain(ids), gated(ids))
    for name, parameter in gated.named_parameters():
        if "head_gate" in name:
            parameter.normal_(generator=torch.Generator().manual_seed(4))
    changed = ids.clone()
    changed[:, 9:] = (ids[:, 9:] + 7) % 260
    assert not torch.allclose(plain(ids), gated(ids))
    assert torch.allclose(gated(ids)[:, :9], gated(changed)[:, :9], atol=1e-6)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 160
