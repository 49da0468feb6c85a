"""Two sides compared: which runs count, what may be compared, margins, pairs; figures by hand or by scipy."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from scipy import stats

from golf.common.errors import ConfigError, GolfError
from golf.runs.report.sides import Comparison, Given, Margin, compare, is_figure, published
from golf.runs.statistics import Spread
from golf.runs.store import find_runs

SEEDS = (1.20143417, 1.19945102, 1.20319508)
"""What the Seq4096 record's three runs came to, with the bar that its authors tested them against."""
BAR = 1.21113611


def make(
    folder: Path, bpb: float, seed: int = 1, lr: float = 0.02, of: Any = None, tokenizer: str = "t", **more: Any
) -> None:
    """A run folder; `of` changes its evaluation, `more` its result.json."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed": seed, "optimizer": {"matrix_lr": lr}}))
    (folder / "overrides.yaml").write_text(yaml.safe_dump([f"seed={seed}"]))
    evaluated = {
        "stage": "quantized", "method": "contiguous", "stride": None, "seq_len": 64, "val_bpb": bpb, "targets": 1000,
        "bytes": 2440, **(of or {}),
    }  # fmt: skip
    data = {"source_hash": "s", "tokenizer_hash": tokenizer, "splits": {"val": {"text_sha256": "v"}}}
    scores = {"post_quant": bpb, "final": bpb, "by_method": {"contiguous": bpb}}
    record = {"status": "completed", "valid": True, "val_bpb": scores, "evals": [evaluated], "data": data, **more}
    (folder / "result.json").write_text(json.dumps(record))


def seeds(root: Path, values: Any, first: int = 1, **more: Any) -> Given:
    """A side of runs, the seeds counted from `first`."""
    for seed, bpb in enumerate(values, first):
        make(root / str(seed), bpb, seed, **more)
    return runs(root)


def runs(root: Path) -> Given:
    return Given(root.name, find_runs(root))


def figure(*words: str) -> Given:
    return Given(" ".join(words), figure=published(words))


def outcome(found: Comparison) -> tuple[float, float, float]:
    assert found.test is not None
    return found.test.t, found.test.freedom, found.test.p


def test_the_seq4096_record_against_its_bar(tmp_path: Path) -> None:
    """Its own note has t = 9.06, which its figures give only when the difference is rounded to 0.0098."""
    found = compare(seeds(tmp_path / "a", SEEDS), figure(str(BAR)))
    assert outcome(found) == pytest.approx((9.0397, 2, 0.0060086), rel=1e-4)
    assert 0.0098 / (found.lower_by / outcome(found)[0]) == pytest.approx(9.06, abs=5e-3)
    assert found.kind == "one-sample"
    assert found.interval == pytest.approx((0.00977602 - 0.00465311, 0.00977602 + 0.00465311), abs=1e-8)
    assert "no further seeds" in found.seeds


def test_two_samples_of_runs_are_tested_by_welch(tmp_path: Path) -> None:
    others = (1.2051, 1.2019, 1.2044, 1.2102)
    found = compare(seeds(tmp_path / "a", SEEDS), seeds(tmp_path / "b", others, lr=0.04))
    expected = stats.ttest_ind(others, SEEDS, equal_var=False, alternative="greater")
    assert outcome(found) == pytest.approx((expected.statistic, expected.df, expected.pvalue))
    assert (found.kind, found.grows, found.metric) == ("Welch", "each", "val_bpb.final")
    assert found.scored_by == "contiguous, 64 tokens, 2,440 bytes of text"


def test_a_published_mean_is_a_sample_and_gets_no_further_seeds(tmp_path: Path) -> None:
    found = compare(seeds(tmp_path / "a", SEEDS), figure("1.2049±0.0021,n=3"))
    expected = stats.ttest_ind_from_stats(1.2049, 0.0021, 3, 1.20136009, 0.00187313, 3, False, "greater")
    assert (outcome(found)[0], outcome(found)[2]) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-4)
    assert found.grows == "A"
    assert "B's seeds stay as many" in found.seeds
    turned = compare(figure("1.199±0.002,n=20"), runs(tmp_path / "a"))
    assert turned.grows == "B"
    assert turned.more is not None


def test_pairs_are_of_one_seed(tmp_path: Path) -> None:
    a, b = seeds(tmp_path / "a", (*SEEDS, 1.5)), seeds(tmp_path / "b", (1.1, 1.2046, 1.2032, 1.2071), first=0, lr=0.04)
    found = compare(a, b, paired=True)
    expected = stats.ttest_rel((1.2046, 1.2032, 1.2071), SEEDS, alternative="greater")
    assert outcome(found) == pytest.approx((expected.statistic, 2, expected.pvalue))
    assert [side.left_out for side in found.sides] == [
        {"a/4": "seed 4 has no partner"}, {"b/0": "seed 0 has no partner"},
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="both sides"):
        compare(a, figure("1.2"), paired=True)
    with pytest.raises(GolfError, match="no seed has run on both"):
        compare(runs(tmp_path / "a" / "1"), runs(tmp_path / "b" / "2"), paired=True)


def test_a_margin_in_nats_is_converted_by_the_bytes_of_a_token(tmp_path: Path) -> None:
    a = seeds(tmp_path / "a", SEEDS)
    found = compare(a, figure(str(BAR)), margin=Margin.parse("0.005nats"))
    assert found.bytes_per_token == 2.44
    assert found.margin == pytest.approx(0.005 / math.log(2) / 2.44)
    bar = BAR - found.margin
    assert outcome(found)[2] == pytest.approx(stats.ttest_1samp(SEEDS, bar, alternative="less").pvalue)
    assert compare(a, figure(str(bar))).test == pytest.approx(found.test)
    assert compare(a, figure(str(BAR)), margin=Margin.parse(f"{found.margin}bpb")).test == pytest.approx(found.test)


def test_nats_that_cannot_be_converted_are_refused(tmp_path: Path) -> None:
    nats = Margin.parse("0.005 nats")
    with pytest.raises(ConfigError, match="how many bytes a token has"):
        compare(figure("1.2", "1.3"), figure("1.4"), margin=nats)
    a = seeds(tmp_path / "a", SEEDS)
    b = seeds(tmp_path / "b", (1.21, 1.22), of={"targets": 800}, tokenizer="another")
    with pytest.raises(ConfigError, match=r"0\.00296bpb by 2\.4400 bytes a token, or 0\.00237bpb by 3\.0500"):
        compare(a, b, margin=nats)


def test_a_margin_is_of_bpb_alone(tmp_path: Path) -> None:
    a = seeds(tmp_path / "a", SEEDS, bytes={"artifact": 1000})
    with pytest.raises(ConfigError, match=r"bytes\.artifact is no bpb"):
        compare(a, figure("900"), metric="bytes.artifact", margin=Margin.parse("0.005bpb"))


def test_invalid_and_unfinished_runs_and_repeats_are_left_out_and_said(tmp_path: Path) -> None:
    a = tmp_path / "a"
    seeds(a, SEEDS)
    make(a / "big", 1.1, 4, valid=False, violations=["the artifact is 17,000,000 bytes"])
    make(a / "dead", 1.1, 5, status="failed", valid=False, error="train_loss is nan")
    make(a / "again", 1.1, 1, finished="")
    for seed in "123":
        file = a / seed / "result.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"finished": "2026-11-28T09:00:00"}))
    found = compare(runs(a), figure(str(BAR)))
    assert outcome(found)[0] == pytest.approx(9.0397, rel=1e-4)
    assert found.sides[0].left_out == {
        "a/big": "invalid: the artifact is 17,000,000 bytes", "a/dead": "failed: train_loss is nan",
        "a/again": "of seed 1 another run counts, the last",
    }  # fmt: skip
    with pytest.raises(GolfError, match=r"no valid run in big has .* invalid: the artifact is 17,000,000 bytes"):
        compare(runs(a / "big"), figure("1.2"))


def test_only_figures_of_one_text_and_rules_compare(tmp_path: Path) -> None:
    a, b = seeds(tmp_path / "a", SEEDS), seeds(tmp_path / "b", (1.1, 1.2), of={"bytes": 2500})
    with pytest.raises(GolfError, match="do not compare") as told:
        compare(a, b)
    assert str(told.value).splitlines()[1:] == [
        "A: contiguous, 64 tokens, 2,440 bytes of text", "B: contiguous, 64 tokens, 2,500 bytes of text",
    ]  # fmt: skip
    seeds(tmp_path / "b", (1.21, 1.22), first=3)
    found = compare(a, runs(tmp_path / "b"))
    assert found.sides[1].values == [1.21, 1.22]
    assert set(found.sides[1].left_out) == {"b/1", "b/2"}


def test_runs_of_one_side_are_equal_but_for_the_seed(tmp_path: Path) -> None:
    seeds(tmp_path / "a" / "x", SEEDS)
    seeds(tmp_path / "a" / "y", (1.3, 1.4), first=4, lr=0.04)
    with pytest.raises(ConfigError, match=r"optimizer\.matrix_lr=0\.0[24] .*--ignoring optimizer\.matrix_lr"):
        compare(runs(tmp_path / "a"), figure("1.2"))
    found = compare(runs(tmp_path / "a"), figure("1.2"), ignoring=["optimizer"])
    assert found.sides[0].values == [*SEEDS, 1.3, 1.4]


def test_a_run_stands_on_one_side(tmp_path: Path) -> None:
    a = seeds(tmp_path / "a", SEEDS)
    with pytest.raises(ConfigError, match="a/1 stands on both sides"):
        compare(a, a)


def test_where_no_test_is_possible(tmp_path: Path) -> None:
    a, b = seeds(tmp_path / "a", SEEDS), seeds(tmp_path / "b", (1.25,), lr=0.04)
    one = compare(a, b)
    assert (one.test, one.interval, one.more) == (None, None, None)
    assert one.why_not.startswith("no test is possible: B has one seed")
    assert "--against 1.25 asks" in one.why_not
    assert "A has one seed" in compare(b, figure("1.3")).why_not
    assert "do not vary" in compare(figure("1.2", "1.2"), figure("1.3")).why_not


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["1.2014±0.0019,n=3"], Spread(3, 1.2014, 0.0019)),
        (["1.2014 +- 1.9e-3, n = 3"], Spread(3, 1.2014, 0.0019)),
        (["1.2014+/-.0019,n=3"], Spread(3, 1.2014, 0.0019)),
        (["1.2014"], 1.2014),
        (["1", "2", "3"], Spread(3, 2.0, 1.0)),
    ],
)
def test_a_published_figure_is_read(words: list[str], expected: Any) -> None:
    assert all(map(is_figure, words))
    assert published(words) == expected


@pytest.mark.parametrize(
    "words", [["1.2±0.1"], ["1.2,n=3"], ["1.2±0.1,n=1"], ["1.2±x,n=3"], ["1e999"], ["1.2±0.1,n=3", "1.3"]], ids=str
)
def test_a_broken_figure_is_refused(words: list[str]) -> None:
    assert is_figure(words[0])
    with pytest.raises(ConfigError):
        published(words)


@pytest.mark.parametrize("word", ["2026-11-28", "multirun/", "1.2.3", "seed=1", "val_bpb<1.2"])
def test_folders_and_filters_are_no_figures(word: str) -> None:
    assert not is_figure(word)


@pytest.mark.parametrize("text", ["0.005", "nats", "-0.005nats", "0.005 bits", "1e999bpb"])
def test_a_margin_has_a_unit(text: str) -> None:
    with pytest.raises(ConfigError, match=r"0\.005nats"):
        Margin.parse(text)
