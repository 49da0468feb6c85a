"""What a person reads: plain lines at sensible intervals, and the closing table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from golf.common import log
from golf.common.clock import Clocks
from golf.runs.live import Said, line
from golf.runs.record import Budget, Bytes, EvalRecord, Result
from golf.runs.screen import COMPILING, Screen, duration, final_table


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    with log.setup(0, None):
        yield


def row(step: int, **more: float) -> dict[str, float]:
    return {"train_loss": 3.0, "train_time_s": 0.5 * step, **more}


def test_plain_lines_come_for_the_first_ten_every_nth_and_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    with Screen(iterations=47, train_log_every=20, live=False) as progress:
        for step in range(1, 48):
            progress.log(row(step), step, last=step == 47)
    steps = [int(line.split()[1].split("/")[0]) for line in capsys.readouterr().out.splitlines()]
    assert steps == [*range(1, 11), 20, 40, 47]


def test_every_validation_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Screen(iterations=100, train_log_every=50, live=False)
    progress.log({"val_loss": 2.0, "val_bpb": 1.25}, 33)
    assert capsys.readouterr().out == "step 33/100  val_loss 2.0000  val_bpb 1.2500\n"


def test_a_line_says_loss_speed_and_the_time_left() -> None:
    progress = Screen(iterations=100, live=False)
    metrics = row(20, tokens_per_s=12_345.6, step_ms=500.0, train_time_s=10.0)
    progress.log(metrics, 20)
    expected = "step 20/100  train_loss 3.0000  12,346 tokens/s  500.0 ms  train_time 10.0 s  left 40 s"
    assert progress.line(metrics, 20) == expected


def test_the_time_left_is_the_shorter_of_budget_and_steps() -> None:
    progress = Screen(iterations=10_000, train_seconds=75.0, live=False)
    assert progress.seconds_left(0) is None
    progress.log({"train_time_s": 70.0}, 100)
    assert progress.seconds_left(100) == 5.0


def test_the_live_line_keeps_plain_lines_out_of_the_console(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log.setup(0, tmp_path / "train.log")
    with Screen(iterations=3, live=True) as progress:
        progress.phase("compiling")
        for step in (1, 2, 3):
            progress.log(row(step), step, last=step == 3)
    assert "step 2/3" in (tmp_path / "train.log").read_text()
    assert "step 2/3" not in capsys.readouterr().out


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_the_live_line_fits_and_keeps_bar_step_and_time_left(width: int) -> None:
    with Screen(live=False) as progress:
        progress.follow(lambda: (12_345, 301.0), 20_000, 600.0, 100)
        progress.log({"val_bpb": 1.2345, "val_loss": 2.1}, 10_000)
        progress.log(row(12_000, train_time_s=300.0, tokens_per_s=6_543_210.0, step_ms=48.7, mfu=0.41), 12_000)
        said = progress.said()
    assert said is not None
    text = line(said, width).plain
    assert len(text) <= width
    assert text.count("━") >= 8
    assert "step 12345/20000" in text
    assert text.endswith("left 3 min 19 s")
    assert ("bpb 1.2345" in text) == (width >= 80)
    assert ("6,543,210 tokens/s" in text) == (width >= 120)


def test_the_live_line_follows_the_steps_between_rows_and_shows_the_mean_loss() -> None:
    at = [100, 10.0]
    progress = Screen(live=False)
    progress.follow(lambda: (int(at[0]), at[1]), 1000, None, 100)
    progress.log({"train_loss": 3.0, "train_loss_mean": 2.5, "train_time_s": 10.0}, 100)
    texts = []
    for at[0], at[1] in ((100, 10.0), (110, 11.0), (110, 12.0)):
        said = progress.said()
        assert said is not None
        texts.append(line(said, 80).plain)
    assert [text.split("step ")[1] for text in texts] == [
        "100/1000  loss 2.5000  left 1 min 30 s",
        "110/1000  loss 2.5000  left 1 min 29 s",
        "110/1000  loss 2.5000  left 1 min 28 s",
    ]


@pytest.mark.parametrize(
    ("phase", "compiles", "words"),
    [
        ("data", False, "preparing the data"),
        ("compile", True, "compiling the model: the first time takes half a minute or more"),
        ("compile", False, "warming up"),
        ("eval", False, "evaluating"),
        ("eval", True, "evaluating (compiles the model's forward first)"),
        ("quantize", True, "quantizing"),
    ],
)
def test_a_phase_that_lasts_is_named_with_its_seconds(phase: str, compiles: bool, words: str) -> None:
    now = [0.0]
    clocks = Clocks(now=lambda: now[0])
    progress = Screen(live=False, clocks=clocks)
    progress.follow(lambda: (5, 1.0), 10, None, 100, compiles)
    with clocks.phase(phase):
        now[0] += 0.5
        said = progress.said()
        assert said is not None
        assert said.what == "training", "what is over at once is not worth a word"
        now[0] += 25
        said = progress.said()
    assert said is not None
    assert line(said, 100).plain.endswith(f"{words}  26 s")


def test_a_model_that_is_compiled_by_the_first_step_says_so() -> None:
    at = [0]
    progress = Screen(live=False)
    progress.follow(lambda: (at[0], 12.0), 10, None, 100, compiles=True)
    assert progress.said() == Said(COMPILING, None, [(0, "12 s")])
    at[0] = 1
    said = progress.said()
    assert said is not None
    assert said.what == "training"


def test_before_a_run_there_is_nothing_to_say_for_a_second() -> None:
    assert Screen(live=False).said() is None


def test_no_sign_that_a_plain_terminal_lacks() -> None:
    assert line(Said("training", 0.5, [(0, "step 1/2")]), 80, ascii_only=True).plain.isascii()


def result(**changes: object) -> Result:
    def one(stage: str, method: str, bpb: float, stride: int | None = None) -> EvalRecord:
        return EvalRecord.model_validate(
            {"stage": stage, "method": method, "stride": stride, "seq_len": 8, "val_loss": 1.0, "val_bpb": bpb}
            | {"targets": 1, "bytes": 1, "seconds": 2.0}
        )

    evals = [one("stop", "contiguous", 1.3), one("quantized", "contiguous", 1.31), one("quantized", "sliding", 1.2, 64)]
    parts = {"status": "completed", "steps": 1500, "train_time_s": 75.0, "evals": evals, "tokens": 6_144_000}
    parts |= {"bytes": Bytes.count(1_000_000, 50_000, 16_000_000), "budget": Budget(name="proxy", bound="steps")}
    return Result.from_parts(**{**parts, **changes})  # type: ignore[arg-type]


def test_the_closing_table_holds_the_figures_and_ends_with_the_path(tmp_path: Path) -> None:
    lines = final_table(result(), tmp_path).splitlines()
    text = "\n".join(lines)
    for figure in (
        "1.3000",
        "1.3100  (+0.0100)",
        "1.2000",
        "stride 64",
        "1,050,000 of 16,000,000",
        "1,500",
        "1 min 15 s",
    ):
        assert figure in text
    assert lines[-1] == str(tmp_path)


def test_published_figures_name_their_seed_and_dataset(tmp_path: Path) -> None:
    text = final_table(result(), tmp_path, {"val_bpb.sliding": 1.159, "seed": 1337, "dataset": "FineWeb"})
    assert "published: seed 1337, FineWeb" in text.splitlines()
    assert text.splitlines()[-1] == str(tmp_path)


def test_published_figures_stand_beside_our_own(tmp_path: Path) -> None:
    text = final_table(result(), tmp_path, {"val_bpb.sliding": 1.1426, "bytes.model": 15_026_145, "steps": "11,520"})
    sliding = next(line for line in text.splitlines() if "sliding" in line)
    assert sliding.split()[-2:] == ["1.2000", "1.1426"]
    assert "15,026,145" in text
    assert "published" in text


def test_an_invalid_run_names_its_violations(tmp_path: Path) -> None:
    text = final_table(result(bytes=Bytes.count(17_000_000, 0, 16_000_000)), tmp_path)
    assert "invalid: the artifact is 17,000,000 bytes" in text
    assert f"golf quantize run={tmp_path} -m quant.bits=4,5,6" in text


def test_an_interrupted_run_without_scores_still_has_a_table(tmp_path: Path) -> None:
    broken = Result.from_parts(status="interrupted", steps=3, train_time_s=1.0)
    lines = final_table(broken, tmp_path).splitlines()
    assert "interrupted: the run was interrupted after step 3" in lines
    assert lines[-1] == str(tmp_path)


@pytest.mark.parametrize(("seconds", "text"), [(7.6, "8 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")])
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
