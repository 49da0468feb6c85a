"""Runs read back: opened, found, filtered, ranked, tabulated, whatever state they are in."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console

from golf.common.errors import DataError, GolfError
from golf.runs.folder import RunFolder
from golf.runs.listing import runs_table
from golf.runs.record import EvalRecord, Result
from golf.runs.store import Run, best, filter_runs, find_runs, load_run, sorting


def make(directory: Path, lr: float = 0.02, seed: int = 1, bpb: float | None = 1.3, **changes: Any) -> Path:
    """A run folder with a config, overrides, three rows and (given a bpb) a completed result."""
    directory.mkdir(parents=True)
    config = {
        "seed": seed,
        "optimizer": {"_target_": "golf.learn.Muon", "matrix_lr": lr, "decay": None, "small": 1e-05},
        "model": {"num_layers": 9, "tied": True},
        "run": {"dir": str(directory)},
        "choices": {"optimizer": "adam", "model/attention": "gqa"},
    }
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    overrides = ["recipe=naive_baseline", f"optimizer.matrix_lr={lr}", f"seed={seed}", "optimizer=muon"]
    (directory / "overrides.yaml").write_text(yaml.safe_dump(overrides))
    rows = [{"step": 1, "train_loss": 3.0}, {"step": 2, "train_loss": None}, {"step": 2, "val_bpb": 1.4}]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if bpb is not None:
        scored = EvalRecord(
            stage="quantized", method="contiguous", seq_len=8, val_loss=1, val_bpb=bpb, targets=1, bytes=1, seconds=1
        )
        parts = {"status": "completed", "steps": 2, "train_time_s": 1.0, "evals": [scored]}
        Result.from_parts(**{**parts, **changes}).write(directory / "result.json")
    return directory


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    grid = [(0.02, 1, 1.30), (0.02, 2, 1.32), (0.04, 1, 1.28), (0.04, 2, 1.26)]
    for number, (lr, seed, bpb) in enumerate(grid):
        make(tmp_path / "multirun" / str(number), lr, seed, bpb)
    return tmp_path / "multirun"


def names(runs: list[Run]) -> list[str]:
    return [run.dir.name for run in runs]


def shown(runs: list[Run], **options: Any) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(runs_table(runs, **options))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# --- one run


def test_a_run_reads_back_every_part(tmp_path: Path) -> None:
    run = load_run(make(tmp_path / "run"))
    assert run.config["model"] == {"num_layers": 9, "tied": True}
    assert run.overrides[0] == "recipe=naive_baseline"
    assert run.result.val_bpb.post_quant == 1.3
    assert run.metrics[0] == {"step": 1, "train_loss": 3.0}
    assert (run.status, run.valid) == ("completed", True)


def test_later_evaluations_are_found_by_name(tmp_path: Path) -> None:
    directory = make(tmp_path / "run")
    (directory / "evals").mkdir()
    (directory / "evals" / "sliding_32.json").write_text('{"val_bpb": 1.1}')
    assert load_run(directory).evals == {"sliding_32": {"val_bpb": 1.1}}


def test_columns_are_arrays_with_nan_where_there_is_no_number(tmp_path: Path) -> None:
    columns = load_run(make(tmp_path / "run")).columns()
    np.testing.assert_array_equal(columns["step"], [1, 2])
    np.testing.assert_array_equal(columns["train_loss"], [3.0, np.nan])


def test_named_columns_keep_the_rows_that_have_them(tmp_path: Path) -> None:
    columns = load_run(make(tmp_path / "run")).columns("step", "val_bpb")
    np.testing.assert_array_equal(columns["step"], [2])
    np.testing.assert_array_equal(columns["val_bpb"], [1.4])


def test_a_run_shows_itself_in_a_notebook(tmp_path: Path) -> None:
    run = load_run(make(tmp_path / "a<b"))
    assert "post_quant 1.3" in repr(run)
    page = run._repr_html_()
    assert "val_bpb.post_quant" in page
    assert "a&lt;b" in page
    assert "a<b" not in page


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_without_a_run_is_a_clear_error(tmp_path: Path, there: bool) -> None:
    with pytest.raises(GolfError, match="holds no run" if there else "is not a folder"):
        load_run(tmp_path if there else tmp_path / "missing")


# --- broken and half runs


def test_a_run_without_a_record_is_running_while_its_owner_lives_and_failed_after(tmp_path: Path) -> None:
    folder = RunFolder.claim(tmp_path / "run")
    folder.metrics.write_text('{"step": 1}\n{"st')
    run = load_run(folder.path)
    assert (run.status, run.valid, len(run.metrics)) == ("running", False, 1)
    folder.release()
    assert load_run(folder.path).status == "failed"


def test_an_interrupted_run_says_so(tmp_path: Path) -> None:
    assert load_run(make(tmp_path / "run", status="interrupted")).status == "interrupted"


def test_broken_files_read_as_empty_in_a_listing_and_speak_when_asked(tmp_path: Path) -> None:
    directory = make(tmp_path / "run")
    (directory / "config.yaml").write_text("a: [1")
    (directory / "overrides.yaml").write_bytes(b"\xff\xfe\x00")
    (directory / "result.json").write_text('{"status": "comp')
    (directory / "metrics.jsonl").write_text("nonsense\n{}\n")
    run = load_run(directory)
    assert (run.config, run.overrides, run.record, run.status) == ({}, [], {}, "failed")
    with pytest.raises(GolfError, match="not a golf result"):
        _ = run.result
    with pytest.raises(DataError, match="line 1"):
        _ = run.metrics
    assert "failed" in shown([run])


def test_yaml_tags_build_nothing(tmp_path: Path) -> None:
    directory = make(tmp_path / "run")
    (directory / "config.yaml").write_text("!!python/object/apply:os.getcwd []\n")
    assert load_run(directory).config == {}


# --- many runs


def test_runs_are_found_at_any_depth_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 9, 1):
        make(tmp_path / "multirun" / "today" / str(number))
    make(tmp_path / "outputs" / "now")
    (tmp_path / "outputs" / "now" / ".hydra").mkdir()
    (tmp_path / "outputs" / "not_a_run").mkdir()
    (tmp_path / "outputs" / "not_a_run" / "config.yaml").write_text("")
    assert names(find_runs(tmp_path / "multirun", tmp_path / "outputs")) == ["1", "9", "10", "now"]


def test_the_usual_folders_are_looked_through_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_runs() == []
    make(tmp_path / "outputs" / "a")
    make(tmp_path / "multirun" / "b" / "0")
    assert names(find_runs()) == ["0", "a"]


def test_a_run_under_two_roots_is_listed_once(sweep: Path) -> None:
    assert len(find_runs(sweep, sweep / "0")) == 4


def test_a_root_that_is_missing_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(GolfError, match="missing is not a folder"):
        find_runs(tmp_path / "missing")


@pytest.mark.parametrize(
    ("expression", "kept"),
    [
        ("optimizer.matrix_lr=0.02", "01"),
        ("optimizer.matrix_lr = 2e-2", "01"),
        ("optimizer.matrix_lr==0.04", "23"),
        ("optimizer.matrix_lr!=0.02", "23"),
        ("val_bpb.post_quant<1.3", "23"),
        ("val_bpb.post_quant<=1.3", "023"),
        ("val_bpb.post_quant>1.31", "1"),
        ("seed>=2", "13"),
        ("seed=1,2", "0123"),
        ("seed!=1,2", ""),
        ("recipe=naive*", "0123"),
        ("recipe=seq4096", ""),
        ("optimizer=muon", "0123"),
        ("optimizer=adam", ""),
        ("model/attention=gqa", "0123"),
        ("optimizer.decay=null", "0123"),
        ("optimizer.small=1e-5", "0123"),
        ("model.tied=true", "0123"),
        ("status=completed", "0123"),
        ("valid=false", ""),
        ("val_bpb.sliding<2", ""),
    ],
)
def test_filters(sweep: Path, expression: str, kept: str) -> None:
    assert names(filter_runs(find_runs(sweep), expression)) == list(kept)


def test_several_filters_hold_together(sweep: Path) -> None:
    assert names(filter_runs(find_runs(sweep), ["seed=2", "val_bpb.post_quant<1.3"])) == ["3"]


@pytest.mark.parametrize("expression", ["", "seed", "seed=", "=1", "seed<", "seed<abc", "__import__('os')", "a b=1"])
def test_a_filter_that_cannot_be_read_is_a_clear_error(sweep: Path, expression: str) -> None:
    with pytest.raises(GolfError, match=r"is no filter|compares numbers"):
        filter_runs(find_runs(sweep), expression)


def test_a_misspelt_name_is_answered_with_the_nearest(sweep: Path) -> None:
    with pytest.raises(GolfError, match=r"no run has optimizer.matrix_rl .did you mean 'optimizer.matrix_lr'"):
        filter_runs(find_runs(sweep), "optimizer.matrix_rl=1")


def test_best_is_the_smallest_or_the_largest(sweep: Path) -> None:
    runs = find_runs(sweep)
    smallest, largest = best(runs), best(runs, largest=True)
    assert smallest is not None
    assert largest is not None
    assert (smallest.dir.name, largest.dir.name) == ("3", "1")


def test_best_passes_over_runs_that_are_not_valid(sweep: Path) -> None:
    make(sweep / "4", bpb=1.0, violations=["over the limit"])
    runs = find_runs(sweep)
    valid, anything = best(runs), best(runs, valid_only=False)
    assert valid is not None
    assert anything is not None
    assert (valid.dir.name, anything.dir.name) == ("3", "4")


def scored(bpb: float, **basis: Any) -> dict[str, Any]:
    """An evaluation of so many bytes and tokens."""
    facts = {"seq_len": 8, "val_loss": 1, "targets": 9, "bytes": 20, "seconds": 1, **basis}
    return {"evals": [EvalRecord(stage="quantized", method="contiguous", val_bpb=bpb, **facts)]}


def test_the_best_is_of_the_runs_that_are_scored_as_most_are(sweep: Path) -> None:
    for number, seq_len in enumerate((16, 32)):
        make(sweep / f"{4 + number}", bpb=0.9, **scored(0.9 + number / 100, seq_len=seq_len))
    runs = find_runs(sweep)
    chosen = best(runs)
    assert chosen is not None
    assert chosen.dir.name == "3"
    told = sorting(runs, "val_bpb.post_quant").left_out("val_bpb.post_quant")
    assert "1 contiguous, 16 tokens, 20 bytes of text; 1 contiguous, 32 tokens" in told
    assert sorting(runs, "steps").left_out("steps") == ""


def test_a_table_of_runs_says_what_each_is_scored_by_where_that_differs(sweep: Path) -> None:
    assert "scored by" not in shown(find_runs(sweep))
    make(sweep / "4", bpb=0.9, **scored(0.9, targets=5, bytes=10))
    assert "contiguous, 8 tokens, 10 bytes of text" in shown(find_runs(sweep))


def test_a_run_over_a_limit_is_called_invalid_wherever_it_is_shown(sweep: Path) -> None:
    run = load_run(make(sweep / "4", bpb=1.0, violations=["the artifact is 11 bytes, 1 over the limit of 10"]))
    assert (run.status, run.valid, run.state, run.verdict) == (
        "completed", False, "invalid", "invalid: over artifact bytes",
    )  # fmt: skip
    assert [one.dir.name for one in filter_runs(find_runs(sweep), "state=invalid")] == ["4"]
    assert ": invalid, " in repr(run)
    assert "invalid: over artifact bytes" in run._repr_html_()
    assert "invalid" in shown(find_runs(sweep))


def test_best_of_nothing_is_none_and_of_an_unknown_metric_an_error(sweep: Path) -> None:
    assert best([]) is None
    assert best(find_runs(sweep), "val_bpb.sliding") is None
    with pytest.raises(GolfError, match="no run has val_pbp"):
        best(find_runs(sweep), "val_pbp.sliding")


def test_the_table_shows_the_settings_that_differ_and_counts_the_rest(sweep: Path) -> None:
    text = shown(find_runs(sweep))
    header = next(line for line in text.splitlines() if "state" in line)
    assert "matrix_lr" in header
    assert "seed" in header
    assert "num_layers" not in text
    assert "dir" not in header, "a run's own folder differs always"
    assert "4 runs; 7 settings are the same in all" in text
    assert "1.26" in text


def test_a_table_too_wide_prefers_what_the_command_line_set(sweep: Path) -> None:
    for number in range(4):
        path = sweep / str(number) / "config.yaml"
        config = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump({"aaa": number, **config}))
    text = shown(find_runs(sweep), max_settings=2)
    assert "aaa" not in text
    assert "matrix_lr" in text
    assert "1 more differ" in text


def test_a_choice_of_an_option_is_a_column_and_what_follows_from_it_is_none(tmp_path: Path) -> None:
    for number, (option, bits) in enumerate([("int8", 8), ("int6", 6), ("int8", 8)]):
        run = make(tmp_path / str(number))
        config = yaml.safe_load((run / "config.yaml").read_text())
        config |= {"choices": {"quant": option}, "quant": {"_target_": f"a.{option}", "bits": bits}}
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        (run / "overrides.yaml").write_text(yaml.safe_dump([f"quant={option}"]))
    header = next(line for line in shown(find_runs(tmp_path)).splitlines() if "state" in line)
    assert "quant" in header
    assert "bits" not in header
    assert "_target_" not in header


def test_an_empty_table_is_a_table() -> None:
    assert "run" in shown([])


def test_runs_are_found_by_their_name_and_tags(tmp_path: Path) -> None:
    for folder, name, tags in (("a", "wide mlp", ["mlp", "night"]), ("b", None, ["night"]), ("c", None, [])):
        config = make(tmp_path / folder) / "config.yaml"
        config.write_text(yaml.safe_dump({"name": name, "tags": tags}))
    runs = find_runs(tmp_path)
    assert names(filter_runs(runs, "name=wide*")) == ["a"]
    assert names(filter_runs(runs, "tags=night")) == ["a", "b"]
    assert names(filter_runs(runs, "tags!=mlp")) == ["b", "c"]


@pytest.fixture
def opened() -> Iterator[list[Path]]:
    """The files that this process opens from here on."""
    files: list[Path] = []
    listening = True

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if listening and event == "open" and isinstance(arguments[0], str | Path):
            files.append(Path(arguments[0]))

    sys.addaudithook(hear)  # it cannot be taken away again
    yield files
    listening = False


def test_a_listing_reads_three_small_files_a_run_and_each_once(sweep: Path, opened: list[Path]) -> None:
    runs = find_runs(sweep)
    assert opened == []
    assert len(filter_runs(runs, ["seed>1", "val_bpb.post_quant<2"])) == 2
    runs_table(runs)
    best(runs)
    read = [path.relative_to(sweep) for path in opened if path.is_relative_to(sweep)]
    assert len(read) == len(set(read))
    assert {path.name for path in read} == {"config.yaml", "overrides.yaml", "result.json"}


def test_opening_the_store_loads_nothing_heavy() -> None:
    code = "import sys, golf.runs.store; print([m for m in ('torch', 'numpy', 'wandb', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
