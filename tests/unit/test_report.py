"""Reports from run folders: states, columns, groups, correlations, curves, escaping; broken folders included."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from golf.common.errors import GolfError
from golf.runs.listing import runs_table
from golf.runs.report import Report, gather, markdown, page, tables
from golf.runs.report.curves import read_curves, thin
from golf.runs.report.links import link_to
from golf.runs.report.page import page_data
from golf.runs.report.text import ablation_rows, grid_rows, headline
from golf.runs.store import find_runs


def make(folder: Path, bpb: float | None = 1.3, words: tuple[str, ...] = (), config: Any = None, **record: Any) -> Path:
    """A run folder; `words` are its overrides, `record` changes its result.json."""
    folder.mkdir(parents=True)
    settings: dict[str, Any] = {"seed": 1, "model": {"num_layers": 9}, "budget": {"fraction": 1.0}}
    for key, value in (config or {}).items():
        place = settings
        *outer, last = key.split("/")[0].split(".")
        for part in outer:
            place = place.setdefault(part, {})
        place[last] = value
    (folder / "config.yaml").write_text(yaml.safe_dump({**settings, "log": {"dir": str(folder.absolute())}}))
    (folder / "overrides.yaml").write_text(yaml.safe_dump(list(words)))
    rows = [{"step": i, "tokens": 8 * i, "train_time_s": i / 2, "train_loss": 4.0 - i / 10} for i in range(1, 6)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = {
        "status": "completed", "valid": True, "val_bpb": {"post_quant": bpb}, "steps": 5,
        "bytes": {"artifact": 15_000_000, "limit": 16_000_000},
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps({**result, **record}))
    return folder


def sweep(root: Path, key: str, values: dict[Any, list[float]]) -> Path:
    """Runs of one swept key, each value with several seeds."""
    for number, (value, scores) in enumerate(values.items()):
        for seed, bpb in enumerate(scores):
            make(root / f"{number}_{seed}", bpb, (f"{key}={value}", f"seed={seed}"), {key: value, "seed": seed})
    return root


def report(*roots: Path, metric: str | None = None) -> Report:
    return gather(find_runs(*roots), metric)


def shown(told: Report) -> str:
    console = Console(file=io.StringIO(), width=250)
    for table in tables(told):
        console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# --- columns


def test_only_settings_that_differ_are_columns_the_seed_last(tmp_path: Path) -> None:
    told = report(sweep(tmp_path, "model.num_layers", {4: [1.3, 1.31], 6: [1.2, 1.21]}))
    assert told.columns == ["model.num_layers", "seed"]
    assert told.swept == ["model.num_layers"]
    assert told.shared["budget.fraction"] == 1.0


def test_a_setting_that_follows_from_a_swept_one_is_set_aside(tmp_path: Path) -> None:
    for number, size in enumerate((1024, 2048, 2048)):
        config = {"vocab": size, "model.vocab_size": size, "model.num_layers": number}
        make(tmp_path / str(number), 1.0, (f"vocab={size}", f"model.num_layers={number}"), config)
    told = report(tmp_path)
    assert told.columns == ["vocab", "model.num_layers"]
    assert told.implied == ["model.vocab_size"]


def test_runs_are_ranked_valid_first_and_scoreless_last(tmp_path: Path) -> None:
    make(tmp_path / "a", 1.3)
    make(tmp_path / "b", 1.1, valid=False, violations=["the artifact is too large"])
    make(tmp_path / "c", 1.2)
    make(tmp_path / "d", None, status="failed", valid=False, error="loss is nan\nand more")
    told = report(tmp_path)
    assert [run.name for run in told.runs] == ["c", "a", "b", "d"]
    assert [run.note for run in told.runs] == ["", "", "the artifact is too large", "loss is nan"]
    assert told.count() == {"completed": 2, "invalid": 1, "failed": 1}


def test_the_metric_is_the_one_most_runs_have_or_the_one_named(tmp_path: Path) -> None:
    make(tmp_path / "a", 1.3, val_bpb={"post_quant": 1.3, "sliding": 1.25})
    make(tmp_path / "b", 1.2)
    assert report(tmp_path).metric == "val_bpb.post_quant"
    assert report(tmp_path, metric="val_bpb.sliding").runs[0].name == "a"
    with pytest.raises(GolfError, match="choose from"):
        report(tmp_path, metric="val_bpb.slidng")
    with pytest.raises(GolfError, match="no completed run"):
        report(tmp_path, metric="quant_gap")


def scored(bpb: float, **basis: Any) -> dict[str, Any]:
    """What a record says of a run with a method of the user's own."""
    one = {"stage": "quantized", "method": "lora_ttt", "val_bpb": bpb, "seq_len": 64, "targets": 9, "bytes": 9, **basis}
    return {"val_bpb": {"post_quant": 1.3}, "evals": [one]}


def test_runs_are_ranked_by_their_own_method_and_other_text_apart(tmp_path: Path) -> None:
    for seed, bpb in enumerate((1.2, 1.21, 1.15)):
        make(tmp_path / f"a{seed}", words=(f"seed={seed}",), config={"seed": seed}, **scored(bpb))
    for seed, bpb in enumerate((0.9, 0.91)):
        make(tmp_path / f"b{seed}", config={"seed": seed}, **scored(bpb, bytes=5, targets=5))
    told = report(tmp_path)
    assert told.metric == "val_bpb.final"
    assert [run.name for run in told.runs] == ["a2", "a0", "a1", "b0", "b1"]
    assert "Best val_bpb.final: 1.1500 (a2" in headline(told)
    assert "2 scored on other text" in headline(told)
    assert [(one.spread.n, one.p) for one in told.groups] == [(3, None), (2, None)]
    assert "lora_ttt, 64 tokens, 5 bytes of text" in shown(told)
    assert report(tmp_path, metric="val_bpb.by_method.lora_ttt").runs[0].name == "a2"


def test_a_fixed_bar_is_tested_one_sided(tmp_path: Path) -> None:
    for seed, bpb in enumerate((1.20143417, 1.19945102, 1.20319508)):
        make(tmp_path / str(seed), bpb, (f"seed={seed}",), {"seed": seed})
    told = gather(find_runs(tmp_path), bar=1.21113611)
    assert told.groups[0].below == pytest.approx(0.0060, abs=5e-5)
    assert "p below 1.21114" in shown(told)
    assert "one-sided" in shown(told)


def test_a_fraction_s_order_is_of_runs_that_compare(tmp_path: Path) -> None:
    for fraction in (0.125, 1.0):
        for layers in range(6):
            config = {"model.num_layers": layers, "budget.fraction": fraction}
            other = {"bytes": 4, "targets": 4} if layers > 3 else {}
            make(tmp_path / f"{layers}_{fraction}", config=config, **scored(1.3 - layers / 100, **other))
    (found,) = report(tmp_path).correlations
    assert found.settings == 4


def test_the_best_run_is_a_valid_one(tmp_path: Path) -> None:
    make(tmp_path / "a", 1.3)
    make(tmp_path / "b", 1.1, valid=False)
    assert "Best val_bpb.post_quant: 1.3000 (a)" in headline(report(tmp_path))


def test_where_no_run_is_valid_none_is_called_the_best(tmp_path: Path) -> None:
    make(tmp_path / "a", 1.3, valid=False)
    make(tmp_path / "b", 1.1, valid=False)
    told = headline(report(tmp_path))
    assert "2 invalid. None is valid" in told
    assert "an invalid run's: 1.1000 (b)" in told
    assert "Best" not in told


# --- what tells runs apart


def test_runs_are_labelled_by_what_differs(tmp_path: Path) -> None:
    told = report(sweep(tmp_path, "optimizer.matrix_lr", {0.02: [1.3, 1.31], 0.04: [1.2]}))
    assert [run.label for run in told.runs] == [
        "matrix_lr=0.04 seed=0",
        "matrix_lr=0.02 seed=0",
        "matrix_lr=0.02 seed=1",
    ]


def test_labels_that_would_be_equal_are_told_apart_by_the_folder(tmp_path: Path) -> None:
    for name, rate in (("a", 0.02), ("b", 0.02), ("c", 0.04)):
        make(tmp_path / name, 1.2, (f"lr={rate}",), {"lr": rate})
    assert [run.label for run in report(tmp_path).runs] == ["lr=0.02 (a)", "lr=0.02 (b)", "lr=0.04"]


def test_a_name_that_was_given_is_part_of_the_label_and_makes_no_other_run(tmp_path: Path) -> None:
    for seed, name in enumerate(("first", "second")):
        make(tmp_path / str(seed), 1.2 + seed, (), {"seed": seed, "name": name, "tags": [name]})
    told = report(tmp_path)
    assert [run.label for run in told.runs] == ["first seed=0", "second seed=1"]
    assert [len(group.runs) for group in told.groups] == [2]


def test_runs_that_differ_in_nothing_are_called_by_their_folders(tmp_path: Path) -> None:
    make(tmp_path / "a", 1.2)
    make(tmp_path / "b", 1.3)
    assert [run.label for run in report(tmp_path).runs] == ["a", "b"]


# --- ablations


def ablation(root: Path, bpb: dict[str, list[float]], **more: Any) -> Path:
    """Runs with the techniques xsa and gate and an average, all on or the one named off, with several seeds."""
    for off, scores in bpb.items():
        for seed, score in enumerate(scores):
            choices = {"technique/xsa": "last4", "technique/gate": "v1", "averaging": "ema", "recipe": "r", **more}
            config: dict[str, Any] = {"seed": seed, "averaging": {"decay": 0.99}, "technique.xsa": {"layers": "last:4"}}
            if off:
                choices[off] = "none"
                config[off.replace("/", ".")] = {"_target_": "x.Nothing"} if off == "averaging" else None
            make(
                root / f"{off.replace('/', '_')}_{seed}",
                score,
                (f"{off}=none",) if off else (),
                {"choices": choices, **config},
            )
    return root


def test_an_ablation_names_the_baseline_and_what_each_technique_is_worth(tmp_path: Path) -> None:
    bpb = {"": [1.2, 1.21], "technique/xsa": [1.25, 1.26], "averaging": [1.3, 1.31]}
    told = report(ablation(tmp_path, bpb))
    header, rows = ablation_rows(told)
    assert [row[0] for row in rows] == ["baseline (all on)", "averaging off", "xsa off"]
    assert [row[header.index("Δ ± 95 %")].split(" ")[0] for row in rows] == ["–", "+0.1000", "+0.0500"]
    assert all(" ± " in row[header.index("Δ ± 95 %")] for row in rows[1:])
    assert {run.label for run in told.runs if "seed=0" in run.label} == {
        "baseline seed=0", "xsa off seed=0", "averaging off seed=0",
    }  # fmt: skip
    for text in (shown(told), markdown(told, tmp_path, "t"), page(told, tmp_path, "t")):
        assert "baseline (all on)" in text


def test_one_seed_gives_a_difference_without_an_interval(tmp_path: Path) -> None:
    header, rows = ablation_rows(report(ablation(tmp_path, {"": [1.2], "technique/xsa": [1.19]})))
    assert rows[1][header.index("Δ ± 95 %")] == "-0.0100"
    assert rows[1][header.index("p")] == "–"


def test_two_techniques_off_are_no_ablation_of_the_whole(tmp_path: Path) -> None:
    ablation(tmp_path / "whole", {"": [1.2]})
    ablation(tmp_path / "half", {"technique/xsa": [1.3]}, averaging="none")
    assert report(tmp_path).ablations == []


def test_every_baseline_has_its_own_ablation(tmp_path: Path) -> None:
    for recipe, shift in (("small", 0.1), ("large", 0.0)):
        ablation(tmp_path / recipe, {"": [1.2 + shift], "technique/xsa": [1.25 + shift]}, recipe=recipe)
    header, rows = ablation_rows(report(tmp_path))
    assert header[:2] == ["recipe", "technique"]
    assert [row[:2] for row in rows] == [
        ["large", "baseline (all on)"], ["large", "xsa off"], ["small", "baseline (all on)"], ["small", "xsa off"],
    ]  # fmt: skip


def test_an_invalid_arm_of_an_ablation_says_so(tmp_path: Path) -> None:
    folder = ablation(tmp_path, {"": [1.2], "averaging": [1.3]}) / "averaging_0"
    (folder / "result.json").write_text(
        json.dumps({**json.loads((folder / "result.json").read_text()), "valid": False})
    )
    assert [row[-1] for row in ablation_rows(report(tmp_path))[1]] == ["", "invalid"]


# --- seeds and fractions


def test_a_group_that_is_invalid_stands_behind_the_valid_ones(tmp_path: Path) -> None:
    for number, (rate, bpb, valid) in enumerate(((1, 1.0, False), (1, 1.1, False), (2, 1.3, True), (2, 1.4, True))):
        make(tmp_path / str(number), bpb, (f"lr={rate}",), {"lr": rate, "seed": number}, valid=valid)
    assert [(group.valid, group.best) for group in report(tmp_path).groups] == [(True, True), (False, False)]


def test_groups_are_runs_equal_but_for_the_seed(tmp_path: Path) -> None:
    told = report(sweep(tmp_path, "lr", {0.02: [1.20, 1.21, 1.22], 0.04: [1.30, 1.31, 1.32], 0.08: [1.1]}))
    assert [(group.spread.n, group.best, group.mark) for group in told.groups] == [
        (1, False, ""),  # one seed is no group to compare with, however good
        (3, True, ""),
        (3, False, "***"),
    ]
    assert "1.2100" in shown(told)


def test_what_was_published_for_a_seed_makes_it_no_other_run(tmp_path: Path) -> None:
    for seed, bpb in enumerate((1.2, 1.21)):
        config = {"seed": seed, "published": {"seed": seed, "val_bpb.post_quant": 1.1 + seed}}
        make(tmp_path / str(seed), bpb, (f"seed={seed}",), config)
    told = report(tmp_path)
    assert (told.columns, [one.spread.n for one in told.groups]) == (["seed"], [2])
    assert [column.name for column in runs_table(find_runs(tmp_path)).columns if "published" in column.name] == []


def test_a_repeated_seed_is_no_new_sample(tmp_path: Path) -> None:
    for name, bpb, finished in (("a", 1.0, "2026-01-01"), ("b", 1.2, "2026-01-02")):
        make(tmp_path / name, bpb, finished=finished)
    make(tmp_path / "c", 1.4, config={"seed": 2})
    (group,) = report(tmp_path).groups
    assert (group.spread.n, group.spread.mean) == (2, pytest.approx(1.3))


def test_no_groups_without_a_second_seed(tmp_path: Path) -> None:
    assert report(sweep(tmp_path, "lr", {0.02: [1.2], 0.04: [1.3]})).groups == []


def test_fractions_are_compared_by_rank(tmp_path: Path) -> None:
    scores = {0.125: (1.5, 1.4, 1.6, 1.7), 1.0: (1.2, 1.1, 1.3, 1.0)}
    for fraction, of_lr in scores.items():
        for lr, bpb in enumerate(of_lr):
            make(tmp_path / f"{fraction}_{lr}", bpb, config={"lr": lr, "budget.fraction": fraction})
    (told,) = report(tmp_path).correlations
    assert (told.low, told.high, told.settings, told.place) == (0.125, 1.0, 4, 2)
    assert told.rho == pytest.approx(-0.2)


def test_a_correlation_of_few_settings_says_so(tmp_path: Path) -> None:
    for fraction, of_lr in {0.125: (1.5, 1.4, 1.6, 1.7), 1.0: (1.2, 1.1, 1.3, 1.0)}.items():
        for lr, bpb in enumerate(of_lr):
            make(tmp_path / f"{fraction}_{lr}", bpb, config={"lr": lr, "budget.fraction": fraction})
    told = report(tmp_path)
    assert "With n below 10 (1 of 1 rows)" in markdown(told, tmp_path, "x")
    assert told.correlations[0].interval is not None
    low, high = told.correlations[0].interval
    assert f"{low:+.2f} to {high:+.2f}" in shown(told)


def test_the_front_holds_valid_runs_only(tmp_path: Path) -> None:
    for name, bpb, size, valid in (
        ("a", 1.3, 10, True),
        ("b", 1.2, 20, True),
        ("c", 1.25, 30, True),
        ("d", 1, 5, False),
    ):
        make(tmp_path / name, bpb, bytes={"artifact": size, "limit": 16_000_000}, valid=valid)
    told = report(tmp_path)
    assert [told.runs[i].name for i in told.front] == ["a", "b"]


# --- broken folders


@pytest.mark.parametrize("file", ["config.yaml", "overrides.yaml", "metrics.jsonl", "result.json"])
@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe\x00", b"[1, 2", b"[]", b"null", b'"text"', b"[" * 3_000,
     b'{"val_bpb": 3, "bytes": [], "status": []}',
     b'{"val_bpb": {"post_quant": NaN}, "status": "completed", "violations": 3, "choices": 4}'],
    ids=["empty", "binary", "cut", "list", "null", "text", "deep", "odd", "nan"],
)  # fmt: skip
def test_a_broken_file_costs_no_more_than_its_run(tmp_path: Path, file: str, content: bytes) -> None:
    make(tmp_path / "a" / "good", 1.3)
    (make(tmp_path / "a" / "bad", 1.2) / file).write_bytes(content)
    told = report(tmp_path / "a")
    assert {run.name for run in told.runs} == {"good", "bad"}
    assert next(run for run in told.runs if run.name == "good").score == 1.3
    assert markdown(told, tmp_path, "t")
    assert page(told, tmp_path, "t")
    assert shown(told)


def test_a_run_that_died_silently_shows_the_last_line_of_its_log(tmp_path: Path) -> None:
    folder = make(tmp_path / "a")
    (folder / "result.json").unlink()
    (folder / "train.log").write_text("step 1\nKilled by the kernel\n\n")
    (run,) = report(tmp_path).runs
    assert (run.state, run.note) == ("failed", "Killed by the kernel")


def test_nothing_to_report_on_is_said() -> None:
    with pytest.raises(GolfError, match="no runs"):
        gather([])


# --- curves


def test_a_long_curve_is_thinned_and_keeps_its_spike(tmp_path: Path) -> None:
    rows = [
        {"step": i, "tokens": i, "train_time_s": i, "train_loss": 9.0 if i == 777 else 1 + 1 / i}
        for i in range(1, 2001)
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    curve = read_curves(path, 500)["train_loss"]
    assert len(curve["y"]) <= 500
    assert 9.0 in curve["y"]
    assert (curve["step"][0], curve["step"][-1]) == (1, 2000)


@pytest.mark.parametrize("n", [1, 4, 5, 6, 7, 100])
def test_thinning_keeps_the_ends_and_the_bound(n: int) -> None:
    kept = thin([float((7 * i) % 11) for i in range(n)], 5)
    assert kept == sorted(set(kept))
    assert (kept[0], kept[-1]) == (0, n - 1)
    assert len(kept) <= 5


def test_broken_rows_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "train_loss": 2}\nnot json\n[]\n{"step": 2, "train_loss": null}\n{"step": 3, "tra')
    assert read_curves(path, 100)["train_loss"]["y"] == [2]
    assert read_curves(tmp_path / "none", 100) == {}


def test_the_mean_since_the_last_row_is_drawn_where_there_is_one(tmp_path: Path) -> None:
    rows = [
        {"step": 1, "train_loss": 4.0},
        {"step": 2, "train_loss": 3.5, "train_loss_mean": 3.0},
        {"step": 3, "train_loss": 2.5, "train_loss_mean": None},
        {"step": 4, "train_loss": None, "train_loss_mean": 2.0},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_curves(path, 100)["train_loss"]["y"] == [4.0, 3.0, 2.5, 2.0]


# --- escaping

EVIL = "</script><img src=x onerror=alert(1)>|`{{DATA}}`<!--"


class Tags(HTMLParser):
    """The start tags of a document, scripts' contents left out."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)


def test_what_runs_say_never_becomes_markup(tmp_path: Path) -> None:
    plain, evil = tmp_path / "plain", tmp_path / "evil"
    for root, text in ((plain, "text"), (evil, EVIL)):
        make(root / "a", 1.2, (f"note={text}",), {"note": text, text.replace("/", "").replace(".", ""): 1})
        make(root / "b", None, status="failed", error=text)
    quiet, loud = (page(report(root), root, title) for root, title in ((plain, "t"), (evil, EVIL)))
    assert Tags(loud).tags == Tags(quiet).tags
    assert "<img" not in markdown(report(evil), evil, EVIL)


def test_the_data_survives_the_page(tmp_path: Path) -> None:
    make(tmp_path / "a", 1.2, (), {"note": EVIL})
    make(tmp_path / "b", 1.3)
    told = report(tmp_path)
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page(told, tmp_path, "t"), re.DOTALL)
    assert found
    assert json.loads(found.group(1)) == json.loads(json.dumps(page_data(told, tmp_path)))


def test_the_page_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    make(tmp_path / "a", 1.2)
    text = page(report(tmp_path), tmp_path, "t")
    links = re.findall(r'(?:src|href)="([^"]*)"', text.split("<script>", 1)[0])
    assert all(link.startswith("data:") for link in links)
    assert "<script src" not in text
    assert "default-src 'none'" in text


def test_two_swept_settings_make_a_grid_of_mean_scores(tmp_path: Path) -> None:
    for layers in (7, 11):
        for rate in (0.1, 0.02):
            for seed in (1, 2):
                bpb, valid = layers + rate + seed / 1000, (layers, rate) != (11, 0.1)
                words = (f"model.num_layers={layers}", f"rate={rate}", f"seed={seed}")
                config = {"model.num_layers": layers, "rate": rate, "seed": seed}
                make(tmp_path / f"{layers}_{rate}_{seed}", bpb, words, config, valid=valid)
    header, rows = grid_rows(report(tmp_path))
    assert header[1:] == ["0.02", "0.1"]  # numbers by size
    assert rows == [["7", "7.0215", "7.1015"], ["11", "11.0215", "(11.1015)"]]


def test_one_swept_setting_makes_no_grid(tmp_path: Path) -> None:
    assert grid_rows(report(sweep(tmp_path, "model.num_layers", {7: [1.2], 9: [1.1]}))) is None


@pytest.mark.parametrize("name", ["javascript:alert(1)", "a b", "50%", "a#b?c", "ü"])
def test_links_are_relative_and_quoted(tmp_path: Path, name: str) -> None:
    from urllib.parse import unquote, urlsplit

    url = urlsplit(link_to(tmp_path / "runs" / name, tmp_path / "report"))
    assert (url.scheme, url.query, url.fragment) == ("", "", "")
    assert (tmp_path / "report" / unquote(url.path)).resolve() == (tmp_path / "runs" / name).resolve()


def test_markdown_rows_have_one_number_of_cells(tmp_path: Path) -> None:
    make(tmp_path / "a", 1.2, ("note=a|b",), {"note": "a|b\nc"})
    make(tmp_path / "b", 1.3, ("note=x",), {"note": "x"})
    table = [line for line in markdown(report(tmp_path), tmp_path, "t").splitlines() if line.startswith("|")]
    cells = {len(re.findall(r"(?<!\\)\|", line)) for line in table[:4]}
    assert len(cells) == 1
