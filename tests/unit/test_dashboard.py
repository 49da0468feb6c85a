"""`golf dashboard`: the workspace's definition, built and read back offline, and what the command says."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from golf.cli import dashboard
from golf.common.errors import ConfigError, GolfError
from golf.runs.dashboard import Place, plain_name, serialised, workspace
from golf.runs.store import find_runs

pytest.importorskip("wandb_workspaces")
WANDB = {"_target_": "golf.runs.loggers.WandbLogger", "project": "pg", "entity": None, "group": "lr_study"}
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A sweep over a rate and a codec; returns its folder."""

    def call(**logger: Any) -> Path:
        for number, (rate, codec) in enumerate([(0.02, "zlib"), (0.04, "zlib"), (0.02, "lzma")]):
            folder = tmp_path / "sweep" / str(number)
            folder.mkdir(parents=True)
            config = {"optimizer": {"matrix_lr": rate}, "choices": {"codec": codec}, "logger": {**WANDB, **logger}}
            (folder / "config.yaml").write_text(yaml.safe_dump(config))
            (folder / "overrides.yaml").write_text(yaml.safe_dump([f"optimizer.matrix_lr={rate}", f"codec={codec}"]))
            result = {"status": "completed", "valid": True, "val_bpb": {"post_quant": 1.2 + rate},
                      "bytes": {"artifact": 1000, "limit": 16_000_000}}  # fmt: skip
            (folder / "result.json").write_text(json.dumps(result))
        return tmp_path / "sweep"

    return call


@pytest.fixture(autouse=True)
def _no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def definition(make: Make) -> dict[str, Any]:
    """The serialised workspace of the sweep."""
    runs = find_runs(make())
    view: dict[str, Any] = json.loads(serialised(workspace(runs, Place.of(runs), "lr study")))
    return view


def panels(view: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    sections = view["spec"]["section"]["panelBankConfig"]["sections"]
    return [panel["config"] for section in sections for panel in section["panels"] if panel["viewType"] == kind]


def test_it_goes_where_the_runs_were_logged_and_shows_their_group(definition: dict[str, Any]) -> None:
    assert (definition["project"], definition["displayName"]) == ("pg", "lr study")
    (found,) = definition["spec"]["section"]["runSets"][0]["filters"]["filters"]
    assert (found["key"]["name"], found["op"], found["value"]) == ("group", "IN", ["lr_study"])


def test_bpb_is_plotted_by_tokens_and_by_time(definition: dict[str, Any]) -> None:
    plotted = {(one["xAxis"], *one["metrics"]) for one in panels(definition, "Run History Line Plot")}
    assert {("tokens", "val_bpb"), ("train_time_s", "val_bpb"), ("tokens", "train_loss_mean")} <= plotted


def test_bpb_is_plotted_against_bytes(definition: dict[str, Any]) -> None:
    (plot,) = panels(definition, "Scatter Plot")
    assert (plot["xAxis"], plot["yAxis"]) == ("summary:bytes/artifact", "summary:val_bpb/post_quant")


def test_the_parallel_coordinates_are_the_swept_keys(definition: dict[str, Any]) -> None:
    (plot,) = panels(definition, "Parallel Coordinates Plot")
    assert [axis["accessor"] for axis in plot["columns"]] == [
        "config:optimizer.value.matrix_lr", "config:choices.value.codec", "summary:bytes/artifact",
        "summary:val_bpb/post_quant",
    ]  # fmt: skip


def test_the_library_reads_its_own_definition_back(definition: dict[str, Any]) -> None:
    from wandb_workspaces.workspaces import Workspace, internal

    built = Workspace._from_model(internal.View.model_validate(definition))
    assert [section.name for section in built.sections] == ["Curves", "The sweep", "Speed"]


def test_without_a_key_the_definition_is_a_file_and_how_to_publish_is_said(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dashboard.run([str(make()), "codec=zlib", "--name", "two words"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == "wandb_workspace.json"
    assert out[-2].endswith("codec=zlib --name 'two words'")
    assert "wandb login" in out[0]
    assert json.loads(Path(out[-1]).read_text())["displayName"] == "two words"


def test_runs_without_wandb_are_told_to_use_the_report(make: Make) -> None:
    with pytest.raises(GolfError, match=r"logger=wandb(.|\n)*golf report"):
        Place.of([one for one in find_runs(make()) if one.config.pop("logger")])


def test_runs_outside_a_group_are_not_filtered_away(make: Make) -> None:
    assert Place.of(find_runs(make(group=None)), entity="team") == Place("pg", "team", [])


def test_an_unknown_flag_is_told() -> None:
    with pytest.raises(ConfigError, match="--projekt"):
        dashboard.run(["--projekt=x"])


NAMES = {
    "golf: multirun/, recipe=quickstart": "golf: multirun/, recipe quickstart",
    "golf: runs, val_bpb.post_quant<1.3, seed>=2": "golf: runs, val_bpb.post_quant below 1.3, seed at least 2",
    "golf: a, recipe!=naive*": "golf: a, recipe not naive*",
    "golf: 🚀 lr+wd ~/$x|y `z` ©": "golf: lr wd / x y z",
    "golf: größe/模型 'a' \"b\"": "golf: größe/模型 'a' \"b\"",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_made_of_the_line_is_one_that_a_workspace_may_have(name: str, make: Make) -> None:
    assert plain_name(name) == NAMES[name]
    runs = find_runs(make())
    assert json.loads(serialised(workspace(runs, Place.of(runs), plain_name(name))))["displayName"] == NAMES[name]


def test_the_line_of_the_docs_is_a_workspace(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    assert dashboard.run([str(make()), "codec=zlib", "val_bpb.post_quant<2"]) == 0
    name = json.loads(Path("wandb_workspace.json").read_text())["displayName"]
    assert name.endswith("sweep, codec zlib, val_bpb.post_quant below 2")


MISTAKES = {
    "an emoji for a name": (["--name", "🚀"], 2, "--name '🚀': wandb-workspaces takes no 🚀"),
    "a sign in a name": (["--name=lr=0.1"], 2, "takes no = in a name"),
    "a blank name": (["--name", " "], 2, "--name"),
    "a path as a project": (["--project", "team/mine"], 2, "--project=team/mine: wandb takes no /"),
    "a path as an entity": (["--entity=team:mine"], 2, "--entity=team:mine: wandb takes no :"),
    "a long project": (["--project", "p" * 129], 2, "has 129 characters, wandb takes 128"),
    "no such figure": (["--metric", "nope"], 1, "--metric nope: choose from"),
    "no such run": (["codec=brotli"], 1, "no runs in"),
    "a folder to write into": (["--out", "."], 1, "cannot write"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_a_few_lines(mistake: str, make: Make) -> None:
    words, code, told = MISTAKES[mistake]
    with pytest.raises(GolfError, match=re.escape(told)) as caught:
        dashboard.run([str(make()), *words])
    assert caught.value.exit_code == code
    assert len(str(caught.value).splitlines()) <= 3


@pytest.mark.parametrize("group", ["it's", 'a"b', "a\\b", "lr=0.1", "a<b", "a' or State = 'x", "a\nb", "Ω", "[x]"])
def test_any_group_is_filtered_by_as_it_is(group: str, make: Make) -> None:
    view = json.loads(serialised(workspace(find_runs(make()), Place("pg", None, [group, "z"]), "n")))
    (found,) = view["spec"]["section"]["runSets"][0]["filters"]["filters"]
    assert (found["key"]["name"], found["value"]) == ("group", [group, "z"])


def test_what_the_config_left_open_is_read_from_the_record(make: Make) -> None:
    runs = find_runs(make(project=None, group=None))
    assert Place.of(runs).project == "golf"
    for run in runs:
        run.record["tracking"] = {"wandb": {"project": "theirs", "entity": "team", "group": "night", "mode": "offline"}}
    assert Place.of(runs) == Place("theirs", "team", ["night"])


def test_runs_that_wandb_never_saw_are_not_shown_there(make: Make) -> None:
    runs = find_runs(make())
    for run in runs:
        run.record["tracking"] = {"wandb": {"mode": "disabled"}}
    with pytest.raises(GolfError, match="none of these runs"):
        Place.of(runs)


def test_an_offline_process_publishes_nothing(
    make: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert dashboard.run([str(make())]) == 0
    assert capsys.readouterr().out.startswith("WANDB_MODE=offline, so nothing was published")
