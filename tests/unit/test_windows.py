"""The window planner: what each coverage rule scores, for any stream, window, stride and number of ranks."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from golf.common.errors import ConfigError, DataError
from golf.evals.windows import Windows, plan_windows


def targets(windows: Windows) -> Counter[int]:
    """How often each target of the stream is scored."""
    counts: Counter[int] = Counter()
    for start, first in zip(windows.start.tolist(), windows.first.tolist(), strict=True):
        counts.update(range(start + first + 1, start + windows.seq_len + 1))
    return counts


@st.composite
def streams(draw: st.DrawFn) -> tuple[int, int, int]:
    """(tokens, seq_len, stride) with at least one window."""
    seq_len = draw(st.integers(1, 40))
    return draw(st.integers(seq_len + 1, 400)), seq_len, draw(st.integers(1, seq_len))


@given(streams())
def test_full_coverage_scores_every_target_once(stream):
    tokens, seq_len, stride = stream
    assert targets(plan_windows(tokens, seq_len, stride)) == Counter(range(1, tokens))


@given(streams())
def test_full_coverage_gives_all_but_the_first_targets_their_context(stream):
    tokens, seq_len, stride = stream
    plan = plan_windows(tokens, seq_len, stride)
    assert plan.first[0] == 0
    assert (plan.first[1:] >= seq_len - stride).all()


@given(streams())
def test_windows_stay_inside_the_stream(stream):
    tokens, seq_len, stride = stream
    plan = plan_windows(tokens, seq_len, stride)
    assert plan.start.min() >= 0
    assert plan.start.max() + seq_len <= tokens - 1
    assert plan.targets == tokens - 1


@given(streams(), st.integers(1, 9), st.sampled_from(["full", "seed_s2"]))
def test_shares_of_the_ranks_make_the_whole(stream, world, coverage):
    plan = plan_windows(*stream, coverage)
    shares = [plan.share(rank, world) for rank in range(world)]
    assert sum((targets(share) for share in shares), Counter()) == targets(plan)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(streams())
def test_seed_s2_leaves_out_the_first_targets_and_the_tail(stream):
    tokens, seq_len, stride = stream
    usable = (tokens - 1) // seq_len * seq_len
    last = seq_len + (usable - seq_len) // stride * stride
    assert targets(plan_windows(tokens, seq_len, stride, "seed_s2")) == Counter(range(seq_len - stride + 1, last + 1))


@given(streams())
def test_seed_s3_has_one_window_less_where_windows_end_flush(stream):
    tokens, seq_len, stride = stream
    usable = (tokens - 1) // seq_len * seq_len
    if stride == seq_len or usable == seq_len or (usable - seq_len) % stride:
        return
    longer, shorter = (plan_windows(tokens, seq_len, stride, rule) for rule in ("seed_s2", "seed_s3"))
    assert targets(longer) - targets(shorter) == Counter(range(usable - stride + 1, usable + 1))


@pytest.mark.parametrize("tokens", [513, 576])
@pytest.mark.parametrize(
    ("rule", "windows", "last_start", "last_target"), [("seed_s2", 29, 448, 512), ("seed_s3", 28, 432, 496)]
)
def test_the_records_rules_on_a_toy_stream(tokens, rule, windows, last_start, last_target):
    plan = plan_windows(tokens, 64, 16, rule)
    assert len(plan) == windows
    assert plan.start.tolist() == list(range(0, last_start + 1, 16))
    assert targets(plan) == Counter(range(49, last_target + 1))


@pytest.mark.parametrize(
    ("rule", "tokens", "seq_len", "windows", "scored"),
    [("seed_s2", 50_905_089, 4096, 795_329, 50_901_056), ("seed_s3", 62_021_633, 2048, 969_056, 62_019_584)],
)
def test_the_records_rules_at_full_size(rule, tokens, seq_len, windows, scored):
    plan = plan_windows(tokens, seq_len, 64, rule)
    assert (len(plan), plan.targets) == (windows, scored)


@pytest.mark.parametrize("rule", ["seed_s2", "seed_s3"])
def test_without_overlap_the_records_rules_drop_the_tail_alone(rule):
    assert targets(plan_windows(300, 64, 64, rule)) == Counter(range(1, 257))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((100, 10, 0), "eval.stride=0"), ((100, 10, 11), "eval.stride=11"), ((100, 10, 5, "half"), "eval.coverage=half")],
)
def test_impossible_plans_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        plan_windows(*arguments)


def test_a_stream_shorter_than_a_window_is_refused():
    with pytest.raises(DataError, match=r"has 10 tokens.*eval\.seq_len \+ 1 = 11"):
        plan_windows(10, 10, 5)


def test_a_rule_that_scores_nothing_is_refused():
    with pytest.raises(DataError, match=r"eval\.coverage=seed_s3 scores nothing"):
        plan_windows(65, 64, 16, "seed_s3")
