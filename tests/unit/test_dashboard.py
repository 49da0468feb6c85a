"""`golf dashboard`: the workspace's definition, built and read back offline, and what the command says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from golf.cli import dashboard
from golf.common.errors import ConfigError, GolfError
from golf.runs.dashboard import Place, serialised, workspace
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
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
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
    assert {("tokens", "val_bpb"), ("train_time_s", "val_bpb"), ("tokens", "train_loss")} <= plotted


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
