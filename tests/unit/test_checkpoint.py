"""A run that goes on from a checkpoint is the run that was never interrupted; damaged ones are passed over."""

from __future__ import annotations

import json
import os
import random
import signal
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from golf.common.clock import Clocks
from golf.common.errors import ConfigError, DataError, GolfInterrupted
from golf.common.ranks import Ranks
from golf.launch.compose import build
from golf.launch.compose.configs import compose_job, composer, resolved
from golf.launch.work.session import Session
from golf.runs.folder import RunFolder, deterministic_part, read_metrics
from golf.runs.record import Result
from golf.train import checkpoint
from golf.train.control import Interrupt
from golf.train.hooks import Hook
from golf.train.parts import Parts
from golf.train.saving import Checkpoints, Found, Saving, find
from golf.train.trainer import Trainer

TINY = (
    "budget=smoke", "tokenizer=byte260", "model.model_dim=32", "model.num_heads=2", "model.num_kv_heads=1",
    "train_seq_len=16", "train_batch_tokens=256", "val_tokens=257", "schedule.iterations=6", "logger=jsonl",
    "runtime=cpu", "runtime.threads=1", "data=text", "data.val_docs=4", "val_every=3", "keep_below=64",
)  # fmt: skip
QUICK = ("recipe=quickstart", "model.num_layers=2", "eval.stride=8")
BY_THE_MACHINE = {
    "clock", "clocks", "seen_s", "recent_s", "last_step_s", "renewed", "_began", "_waited_ms", "_waited_ms_total",
    "since_s", "waited_s", "train_time_s",
}  # fmt: skip
"""Attributes that tell of time, which two equal runs need not share."""
OF_A_PROCESS = {
    "folder", "interrupt", "report", "saving", "begun", "first", "prepared", "_pending", "_thread", "_on_device",
}  # fmt: skip
"""What each process has anew: files, threads, caches, where it began; `begun` is compared without its times."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty short documents."""
    path = tmp_path_factory.mktemp("text") / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": f"document {i}: " + "ab cd " * (20 + i)}) + "\n" for i in range(40)))
    return path


class Counts(Hook):
    """A callback that draws at random, and remembers what it drew."""

    def __init__(self, saves: bool) -> None:
        self.saves, self.drawn = saves, list[float]()

    def after_step(self, progress: Any, stop: bool) -> None:
        self.drawn += [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn} if self.saves else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.drawn = state.get("drawn", self.drawn)


class Bench:
    """A trainer of tiny parts that keeps a checkpoint of every step, and the rows it reported."""

    def __init__(self, config: dict[str, Any], folder: Path, saves: bool = True) -> None:
        self.rows: list[dict[str, Any]] = []
        self.folder = RunFolder(folder)
        self.parts = parts_of(config, self.folder)
        self.saving = Saving(Checkpoints(every=1, keep_last=99), self.folder.checkpoints)
        self.parts.callbacks = [*self.parts.callbacks, Counts(saves), Waits(self.saving)]
        self.trainer = Trainer(self.parts, Clocks(), lambda row, step: self.rows.append(dict(row)), saving=self.saving)

    def train(self, at: Path | None = None) -> None:
        state = None if at is None else Found(at, checkpoint.verified(at)).state(self.parts)
        self.trainer.train(state)
        self.saving.close()
        self.parts.loader.close()


class Waits(Hook):
    """A callback for which each checkpoint is on the disk before the next step."""

    def __init__(self, saving: Saving) -> None:
        self.saving = saving

    def before_step(self, progress: Any) -> None:
        self.saving.close()


def parts_of(config: dict[str, Any], folder: RunFolder) -> Parts:
    ranks, runtime = Ranks(), build.make(config["runtime"], "runtime")
    return build.build(config, ranks, runtime, folder, build.prepare_data(config, ranks))


@pytest.fixture
def composed(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Make a config from overrides."""
    monkeypatch.setenv("GOLF_CACHE", str(corpus.parent / "cache"))

    def make(*overrides: str) -> dict[str, Any]:
        with composer():
            config = resolved(compose_job([*TINY, f"data.paths=[{corpus}]", *overrides]))
        build.check(config)
        return config

    return make


def different(one: Any, other: Any, path: str = "", seen: set[int] | None = None) -> Iterator[str]:
    """Every place in which two objects and all that they hold differ, down to the bits of tensors."""
    seen = set() if seen is None else seen
    if id(one) in seen or one is other:
        return
    seen.add(id(one))
    if type(one) is not type(other):
        yield f"{path}: {type(one).__name__}, {type(other).__name__}"
    elif isinstance(one, torch.Tensor):
        if one.shape != other.shape or one.dtype != other.dtype:
            yield f"{path}: {one.dtype} {list(one.shape)}, {other.dtype} {list(other.shape)}"
        elif not torch.equal(torch.nan_to_num(one.detach()), torch.nan_to_num(other.detach())):
            yield path
        yield from different(one.grad, other.grad, f"{path}.grad", seen) if one.is_leaf else ()
    elif isinstance(one, bool | int | float | str | bytes | set | frozenset | np.ndarray):
        if not np.array_equal(one, other) if isinstance(one, np.ndarray) else one != other:
            yield f"{path}: {one!r}, {other!r}"
    elif isinstance(one, Mapping):
        keys, others = ([k for k in each if isinstance(k, str)] for each in (one, other))  # others are ids, or tensors
        if keys != others or len(one) != len(other):
            yield f"{path}: {keys}, {others}"
        for (key, value), twin in zip(one.items(), other.values(), strict=False):
            if str(key) not in BY_THE_MACHINE | OF_A_PROCESS:
                yield from different(value, twin, f"{path}[{key if isinstance(key, str) else '…'}]", seen)
    elif isinstance(one, list | tuple | deque):
        if len(one) != len(other):
            yield f"{path}: {len(one)}, {len(other)} entries"
        for at, (value, twin) in enumerate(zip(one, other, strict=False)):
            yield from different(value, twin, f"{path}[{at}]", seen)
    elif type(one).__module__.partition(".")[0] in ("golf", "torch") or isinstance(one, Hook | torch.nn.Module):
        held = getattr(one, "__dict__", {})
        yield from different(held, getattr(other, "__dict__", {}), f"{path}.{type(one).__name__}", seen)


CONFIGS = {
    "ema, bits by gradients, phases": [
        *QUICK, "averaging=ema", "quant=gradguided", "quant.allocation.warmdown_only=false", "qat=int6",
        "phases=[{from: 0.5, set: {train_seq_len: 32, frozen: [embed]}}]", "callbacks/gradient_norms=by_role",
        "callbacks.gradient_norms.every=2",
    ],
    "swa, shuffled windows": [
        *QUICK, "optimizer=normuon", "averaging=swa", "averaging.every=1", "averaging.start_multiplier=2.0",
        "loader=shuffled", "log_every=4",
    ],
    "soap, packed documents": [*QUICK, "optimizer=soap", "loader=packed", "runtime.dtype=bfloat16"],
}  # fmt: skip
RECIPES = [path.stem for path in sorted(Path(__file__).parents[2].glob("conf/recipe/*.yaml")) if path.stem != "none"]


def one_run_and_twins(config: dict[str, Any], folder: Path) -> None:
    whole = Bench(config, folder)
    whole.train()
    steps = whole.trainer.step
    kept = {checkpoint.step_of(path): path for path in checkpoint.found(whole.folder.checkpoints)}
    assert list(kept) == list(range(steps, 0, -1))
    for step in (1, steps // 2, steps - 1, steps):
        twin = Bench(config, folder.with_name(f"twin{step}"))
        twin.train(kept[step])
        pair: tuple[Any, Any] = (whole.trainer, twin.trainer)
        if step == steps:  # parts are told how far the run is before a step, and none followed
            pair = (whole.trainer.live_state(), twin.trainer.live_state())
        assert list(different(*pair)) == [], step
        since = [row for row in whole.rows if row["step"] > step or ("val_loss" in row and row["step"] == step)]
        if whole.trainer.timeline.begun:
            twin.rows, since = ([row for row in rows if "phase" not in row] for rows in (twin.rows, since))
        assert deterministic_part(twin.rows) == deterministic_part(since)
        begun = [[{**one, "train_time_s": 0} for one in each.trainer.timeline.begun] for each in (whole, twin)]
        assert begun[0] == begun[1]


@pytest.mark.parametrize("name", CONFIGS)
def test_what_goes_on_from_a_checkpoint_is_bitwise_the_run_that_ran_through(
    name: str, composed: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    one_run_and_twins(composed(*CONFIGS[name]), tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_goes_on_bitwise(recipe: str, composed: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    one_run_and_twins(composed(f"recipe={recipe}", "train_seq_len=64", "train_batch_tokens=512"), tmp_path / "whole")


def test_what_a_part_keeps_and_does_not_save_is_found(composed: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    config = composed(*QUICK, "schedule.iterations=2")
    whole, twin = Bench(config, tmp_path / "a", saves=False), Bench(config, tmp_path / "b", saves=False)
    whole.train()
    twin.train(checkpoint.found(whole.folder.checkpoints)[-1])
    found = list(different(whole.trainer, twin.trainer))
    assert any("Counts[drawn]" in place for place in found), found
    assert all("Counts" in place for place in found), found


def test_a_state_of_any_plain_values_comes_back_as_it_was(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    shared, weight = torch.arange(3), model[0].weight
    held: list[Any] = [1, 0.1 + 0.2, float("inf"), None, True, "ü/\x00", (), {3: (1, 2)}, {"b", "a"}, deque([1, 2], 5)]
    held += [shared, held, weight, model[0], torch.tensor(1.5, dtype=torch.bfloat16), np.float32(0.5), torch.zeros(0)]
    packed = checkpoint.pack({"beside": {"held": held, "again": shared, "twice": held}}, model)
    shared += 1  # what is written is a copy
    checkpoint.write(tmp_path, 7, packed, {})
    (path,) = checkpoint.found(tmp_path)
    beside = checkpoint.read(path, checkpoint.verified(path), model, torch.device("cpu"))["beside"]
    back = beside["held"]
    assert back[:10] == held[:10]
    assert back[9].maxlen == 5
    assert back[10].tolist() == [0, 1, 2]
    assert beside["again"] is back[10]
    assert beside["twice"] is back
    assert back[11] is back
    assert back[12] is weight
    assert back[13] is model[0]
    assert (back[14].dtype, float(back[14]), back[15], back[16].shape) == (torch.bfloat16, 1.5, 0.5, (0,))
    with pytest.raises(checkpoint.Unsavable, match="beside/x/1 keeps a function"):
        checkpoint.pack({"beside": {"x": [1, lambda: 0]}}, model)


def damage_tensors(path: Path) -> None:
    file = path / checkpoint.TENSORS
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "is damaged": damage_tensors,
    "has changed": lambda path: (path / checkpoint.STATE).write_text(
        (path / checkpoint.STATE).read_text().replace('"step": 3', '"step": 9')
    ),
    "not readable": lambda path: os.truncate(path / checkpoint.STATE, 50),
    "is missing": lambda path: (path / checkpoint.TENSORS).unlink(),
}


@pytest.mark.parametrize("words", DAMAGE)
def test_a_damaged_checkpoint_is_told_of_and_the_one_before_serves(words: str, tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    for step in (1, 2, 3):
        checkpoint.write(tmp_path, step, checkpoint.pack({"a": torch.ones(step)}, model), {})
    DAMAGE[words](tmp_path / "step-00000003")
    found, notes = find(tmp_path, Ranks())
    assert found is not None
    assert found.step == 2
    (note,) = notes
    assert "step-00000003" in note
    assert words in note
    assert "the one before" in note


def test_the_last_are_kept_and_what_was_given_up_goes(tmp_path: Path) -> None:
    packed = checkpoint.pack({"a": torch.ones(1)}, torch.nn.Linear(1, 1))
    for step in (1, 2, 3, 9):
        checkpoint.write(tmp_path, step, packed, {})
    (tmp_path / ".writing-x").mkdir()
    checkpoint.write(tmp_path, 3, packed, {})  # once more, by an attempt that began before it
    checkpoint.prune(tmp_path, 2, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


def test_a_checkpoint_that_cannot_be_written_costs_the_run_nothing(
    composed: Callable[..., dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("in the way")
    one = Bench(composed(*QUICK), tmp_path / "run")
    with caplog.at_level("WARNING", "golf"):
        one.train()
    assert one.trainer.step == 6
    assert "no checkpoint after step 1: " in caplog.text
    assert "training goes on" in caplog.text


def test_when_one_is_due() -> None:
    auto = Checkpoints()
    assert (auto.regular(None), auto.regular(600.0), auto.regular(601.0)) == (False, False, True)
    assert (auto.taken(7, 299.0, 0.0), auto.taken(7, 300.0, 0.0), auto.taken(7, 599.0, 300.0)) == (False, True, False)
    assert [step for step in range(1, 10) if Checkpoints(3).taken(step, 0.0, 0.0)] == [3, 6, 9]
    assert [Checkpoints(text).seconds for text in ("90s", "1.5min", "2 h")] == [90.0, 90.0, 7200.0]
    assert not Checkpoints(None).regular(9e9)
    for every in (0, -1, "5", "5 days"):
        with pytest.raises(ConfigError, match=r"checkpoint\.every"):
            Checkpoints(every)
    with pytest.raises(ConfigError, match=r"checkpoint\.keep"):
        Checkpoints(keep_last=-1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT])
def test_a_run_that_is_told_to_stop_goes_on_without_a_gap_or_a_double_row(
    number: signal.Signals, composed: Callable[..., dict[str, Any]], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    before = signal.signal(number, signal.default_int_handler)  # tests may have been started by nohup
    request.addfinalizer(lambda: signal.signal(number, before))
    config = composed(*QUICK, "codec=zlib")

    def session(folder: RunFolder, found: Found | None = None) -> Session:
        return Session(config, parts_of(config, folder), Clocks(), interrupt, found=found)

    with Interrupt() as interrupt:
        session(whole := RunFolder.claim(tmp_path / "whole")).run()
        assert not whole.checkpoints.exists()
        stopped = session(folder := RunFolder.claim(tmp_path / "stopped"))
        report = stopped.trainer.report

        def told(metrics: dict[str, Any], step: int) -> None:
            report(metrics, step)
            if step == 2:  # the clock has been looked at after this step
                os.kill(os.getpid(), number)

        stopped.trainer.report = told
        with pytest.raises(GolfInterrupted, match=r"step 3(.|\n)*golf train resume=.* goes on after step 3") as caught:
            stopped.run()
    assert caught.value.exit_code == (130 if number == signal.SIGINT else 75)
    with folder.metrics.open("a") as file:
        file.write('{"step": 5, "tokens": 1, "train_time_s": 99.0}\n{"st')  # of a process that was killed later
    found, _ = find(folder.checkpoints, Ranks())
    assert found is not None
    assert found.step == 3
    with Interrupt() as interrupt:
        session(folder, found).run()
    one, other = (deterministic_part(read_metrics(each.metrics)) for each in (whole, folder))
    assert one == other
    first, second = Result.read(whole.result), Result.read(folder.result)
    assert (first.val_bpb, first.bytes, first.resumed) == (second.val_bpb, second.bytes, [])
    assert [(part.step, part.lost_steps) for part in second.resumed] == [(3, 2)]
    assert second.clocks["lost"] == pytest.approx(99.0 - found.told["train_time_s"])
    assert second.train_time_s < 90
    assert whole.artifact.read_bytes() == folder.artifact.read_bytes()
    assert not folder.checkpoints.exists()


def test_ctrl_c_after_the_last_look_saves_too(composed: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    one = Bench(composed(*QUICK, "schedule.iterations=2"), tmp_path / "run")
    one.saving.settings = Checkpoints(None)

    def pressed(metrics: dict[str, Any], step: int) -> None:
        one.trainer.interrupt.raised = step == 2

    one.trainer.report = pressed
    one.train()
    assert one.trainer.interrupted
    assert [checkpoint.step_of(path) for path in checkpoint.found(one.folder.checkpoints)] == [2]


def test_a_state_of_another_model_is_refused(composed: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    one = Bench(composed(*QUICK, "schedule.iterations=1"), tmp_path / "a")
    checkpoint.write(one.folder.checkpoints, 1, checkpoint.pack({"beside": {}}, one.parts.model), {"world": 1})
    (path,) = checkpoint.found(one.folder.checkpoints)
    with pytest.raises(DataError, match="its state is not a run's"):
        Found(path, checkpoint.verified(path)).state(one.parts)
    one.parts.loader.close()
