"""The training loop: warm-up undone, the clock obeyed, validation and averaging in place, the last good state."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from golf.common.clock import Clocks, TrainClock
from golf.common.errors import GolfError, GolfInterrupted, NonFiniteLoss
from golf.common.ranks import Ranks
from golf.launch.compose import build
from golf.launch.compose.configs import compose_job, composer, resolved
from golf.launch.work.session import Session
from golf.runs.folder import RunFolder
from golf.runs.loggers import Loggers
from golf.train.bench import measure
from golf.train.control import Control, Interrupt
from golf.train.finish import Finish
from golf.train.parts import Parts, round_down
from golf.train.trainer import Trainer

TINY = (
    "recipe=quickstart", "budget=smoke", "tokenizer=byte260", "model.num_layers=2", "model.model_dim=32",
    "model.num_heads=2", "model.num_kv_heads=1", "train_seq_len=16", "train_batch_tokens=256", "val_tokens=257",
    "schedule.iterations=6", "eval.stride=8", "logger=jsonl", "runtime=cpu", "runtime.threads=1", "data=text",
    "data.val_docs=4",
)  # fmt: skip
Row = dict[str, Any]


class Bench:
    """A trainer of tiny parts, and the rows it reported."""

    def __init__(self, parts: Parts) -> None:
        self.rows: list[Row] = []
        self.parts = parts
        self.trainer = Trainer(parts, Clocks(), lambda metrics, step: self.rows.append(dict(metrics)))

    @property
    def losses(self) -> list[float]:
        return [row["train_loss"] for row in self.rows if "train_loss" in row]

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in self.parts.model.state_dict().items()}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty short documents."""
    path = tmp_path_factory.mktemp("text") / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": f"document {i}: " + "ab cd " * (20 + i)}) + "\n" for i in range(40)))
    return path


@pytest.fixture
def bench(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Bench]:
    """Make a bench from overrides."""
    monkeypatch.setenv("GOLF_CACHE", str(corpus.parent / "cache"))

    def make(*overrides: str) -> Bench:
        return Bench(parts_of(composed(corpus, *overrides), RunFolder(tmp_path / "run")))

    return make


def composed(corpus: Path, *overrides: str) -> dict[str, Any]:
    with composer():
        config = resolved(compose_job([*TINY, f"data.paths=[{corpus}]", *overrides]))
    build.check(config)
    return config


def parts_of(config: dict[str, Any], folder: RunFolder) -> Parts:
    ranks, runtime = Ranks(), build.make(config["runtime"], "runtime")
    return build.build(config, ranks, runtime, folder, build.prepare_data(config, ranks))


def as_if_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The warm-up takes place, though nothing is compiled."""
    monkeypatch.setattr(Trainer, "compiled", property(lambda self: True))


@pytest.mark.parametrize(
    "extra",
    [
        [],
        ["runtime.dtype=bfloat16", "qat=int6", "averaging=ema"],
        ["optimizer=normuon", "quant=gradguided", "quant.allocation.warmdown_only=false"],
    ],
)
def test_a_warmed_up_run_is_bitwise_the_run_without(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, extra: list[str]
) -> None:
    plain = bench("schedule.warmup_steps=0", *extra)
    plain.trainer.train()
    as_if_compiled(monkeypatch)
    warmed = bench("schedule.warmup_steps=3", *extra)
    random_state = torch.get_rng_state()
    warmed.trainer.train()
    assert torch.equal(torch.get_rng_state(), random_state)
    assert warmed.losses == plain.losses
    assert len(plain.losses) == 6
    for name, tensor in plain.weights.items():
        assert torch.equal(tensor, warmed.weights[name]), name
    first, second = plain.parts.averaging.average(), warmed.parts.averaging.average()
    for name, tensor in (first or {}).items():
        assert second is not None
        assert torch.equal(tensor, second[name]), name
    allocation = getattr(plain.parts.quantizer, "allocation", None)
    if allocation is not None:
        assert allocation.mean_gradients() == warmed.parts.quantizer.allocation.mean_gradients()  # type: ignore[attr-defined]
        assert allocation.mean_gradients()


def test_buffers_are_put_back_after_the_warm_up(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_compiled(monkeypatch)
    one = bench("schedule.warmup_steps=3")
    model = one.parts.model
    model.register_buffer("calls", torch.zeros((), dtype=torch.int64))
    model.register_forward_hook(lambda *_: model.calls.add_(1) and None)
    one.trainer.warm_up()
    assert model.calls == 0


@pytest.mark.slow
def test_compiled_blocks_train_as_eager_ones(bench: Callable[..., Bench]) -> None:
    # Sums in another order, hence float32 rounding, which bf16 Newton–Schulz amplifies from step to step.
    eager = bench("runtime.compile=none")
    eager.trainer.train()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    blocks = bench("runtime.compile=block")
    blocks.trainer.train()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= len(blocks.parts.model.blocks)
    assert len(blocks.losses) == 6
    assert blocks.losses == pytest.approx(eager.losses, rel=1e-4)


@pytest.mark.parametrize(("asked", "compiled"), [("auto", True), ("false", False)])
def test_what_is_read_back_is_evaluated_compiled_where_training_was_unless_it_is_not_to(
    bench: Callable[..., Bench], asked: str, compiled: bool
) -> None:
    """On a CPU no kernel serves."""
    one = bench("runtime.compile=model", f"runtime.compile_eval={asked}")
    model = one.parts.fresh()
    one.trainer.adopt(model)
    assert one.trainer.fixed_shapes == compiled
    assert (one.trainer.run_model is model) != compiled


class Ticking:
    """A clock's `now` that advances by hand."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


class OneOfTwo(Ranks):
    """The first of two ranks, whose broadcasts are heard by nobody."""

    def __init__(self) -> None:
        super().__init__(0, 2)

    def broadcast(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


def simulate(
    seconds_per_step: Callable[[int], float],
    interval: int,
    limit: float | None,
    lags: bool = False,
    phase: int | None = None,
) -> tuple[int, float, int]:
    """Steps done, seconds spent, and looks taken by a Control until it says stop (at most 10,000 steps)."""
    now = Ticking()
    clock = TrainClock(now=now)
    clock.start()
    control = Control(clock, OneOfTwo() if lags else Ranks(), Interrupt(), interval, limit, limit is not None)
    control.lags = lags
    looks = 0
    for step in range(10_000):
        if step == phase:
            control.renew(step)
        now.time += seconds_per_step(step)
        if control.due(step + 1):
            looks += 1
            if control.look(step + 1):
                return step + 1, now.time, looks
    return 10_000, now.time, looks


@pytest.mark.parametrize("lags", [False, True])
@pytest.mark.parametrize("interval", [1, 8, 50])
def test_the_clock_stops_the_run_within_one_step(interval: int, lags: bool) -> None:
    steps, spent, looks = simulate(lambda step: 0.1, interval, 60.0, lags)
    assert 60.0 <= spent < 60.0 + 0.1 + 1e-6
    assert steps in (600, 601)
    assert looks <= steps / interval + (6 if lags else 2) * interval + 4


@pytest.mark.parametrize("lags", [False, True])
def test_a_slow_first_step_or_a_slow_end_does_not_overrun_the_clock(lags: bool) -> None:
    assert simulate(lambda step: 10.0 if step == 0 else 0.1, 8, 60.0, lags)[1] < 60.11
    assert simulate(lambda step: 0.1 if step < 300 else 0.25, 8, 60.0, lags)[1] < 60.26
    for begins in (540, 582):
        slow = simulate(lambda step: 0.1 if step < begins else 0.8, 8, 60.0, lags, phase=begins)  # noqa: B023
        assert slow[1] < 60.81


def test_without_a_limit_only_ctrl_c_stops() -> None:
    clock = TrainClock()
    clock.start()
    interrupt = Interrupt()
    control = Control(clock, Ranks(), interrupt, 4, 1e-9, bound_by_clock=False)
    assert not control.look(4)
    interrupt.raised = True
    assert control.look(8)
    assert control.interrupted


def test_a_look_that_lags_is_answered_by_the_next() -> None:
    now = Ticking()
    clock = TrainClock(now=now)
    clock.start()
    interrupt = Interrupt()
    control = Control(clock, OneOfTwo(), interrupt, 4, 600.0, True)
    control.lags = True
    now.time, interrupt.raised = 4.0, True
    assert not control.look(4)
    assert (control.seen_step, control.seen_s) == (0, 0.0)
    now.time = 8.0
    assert control.look(8)
    assert (control.seen_step, control.seen_s) == (4, 4.0)


def test_the_last_look_waits_for_its_answer() -> None:
    clock = TrainClock()
    clock.start()
    interrupt = Interrupt()
    control = Control(clock, OneOfTwo(), interrupt, 4, 600.0, bound_by_clock=False)
    control.lags = True
    assert not control.look(4)
    interrupt.raised = True
    assert control.look(7, wait=True)


def test_between_looks_the_elapsed_time_is_extrapolated() -> None:
    now = Ticking()
    clock = TrainClock(now=now)
    clock.start()
    control = Control(clock, Ranks(), Interrupt(), 8, 600.0, True)
    assert control.elapsed_s(0) == 0.0
    now.time = 2.0
    control.look(8)
    now.time = 99.0
    assert control.elapsed_s(8) == 2.0
    assert control.elapsed_s(12) == pytest.approx(3.0)


def test_a_run_bound_by_the_clock_decays_to_its_end(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = bench("schedule.clock=wall", "schedule.iterations=1000", "log_every=1", "schedule.warmdown_frac=0.5")
    one.trainer.train_seconds = 10.0
    now = Ticking()
    one.trainer.clock = TrainClock(now=now)
    forward = one.trainer._forward_backward

    def one_second() -> torch.Tensor:
        now.time += 1.0
        return forward()

    monkeypatch.setattr(one.trainer, "_forward_backward", one_second)
    one.trainer.train()
    multipliers = [row["lr_multiplier"] for row in one.rows]
    assert one.trainer.step == 10
    assert multipliers == pytest.approx([1.0] * 5 + [1.0, 0.8, 0.6, 0.4, 0.2])


def test_a_row_holds_the_mean_loss_of_the_steps_since_the_last(bench: Callable[..., Bench]) -> None:
    each = bench("schedule.iterations=25", "log_every=1", "val_every=7")
    each.trainer.train()
    few = bench("schedule.iterations=25", "log_every=20", "val_every=7")
    few.trainer.train()
    rows = [row for row in few.rows if "train_loss" in row]
    assert [row["step"] for row in rows] == [*range(1, 11), 20, 25]
    assert [row["train_loss"] for row in rows] == [each.losses[row["step"] - 1] for row in rows]
    for before, row in pairwise([{"step": 0}, *rows]):
        losses = each.losses[before["step"] : row["step"]]
        assert row["train_loss_mean"] == pytest.approx(sum(losses) / len(losses), rel=1e-6)


@pytest.mark.parametrize(
    ("words", "rows", "lines"),
    [
        (["schedule.iterations=800"], 5, 50),
        (["schedule.iterations=30"], 1, 10),
        (["schedule.iterations=20000"], 200, 2000),
        (["schedule.iterations=20000", "schedule.clock=wall", "budget.train_seconds=600"], 1, 10),  # 0.004 of them
        (["schedule.iterations=800", "log_every=7"], 7, 7),
    ],
)
def test_rows_are_as_many_as_the_planned_run_needs(
    bench: Callable[..., Bench], words: list[str], rows: int, lines: int
) -> None:
    parts = bench(*words).parts
    assert (parts.rows_every, parts.lines_every) == (rows, lines)


@pytest.mark.parametrize("planned", [100, 333, 999, 1000, 13_800, 20_000, 99_999])
def test_a_run_of_any_length_has_100_to_250_rows(planned: int) -> None:
    assert 100 <= planned / round_down(planned / 100) <= 250


def test_validation_comes_every_so_many_steps_and_changes_nothing(bench: Callable[..., Bench]) -> None:
    without = bench("runtime.dtype=bfloat16", "qat=int6")
    without.trainer.train()
    validated = bench("runtime.dtype=bfloat16", "qat=int6", "val_every=2")
    validated.trainer.train()
    assert [row["step"] for row in validated.rows if "val_bpb" in row] == [0, 2, 4]
    assert validated.losses == without.losses
    assert validated.parts.model.training


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_evaluation_never_sees_weights_rounded_for_training(bench: Callable[..., Bench], dtype: str) -> None:
    rounded = bench("qat=int6", "qat.bits=2", f"runtime.dtype={dtype}")
    rounded.trainer.train()
    assert rounded.parts.qat is not None
    plain = bench(f"runtime.dtype={dtype}")
    plain.parts.model.load_state_dict(rounded.weights)
    rounded.trainer.weights.refresh(rounded.parts.qat)  # as after a step
    contiguous = plain.parts.evaluator.contiguous()
    expected = plain.trainer.evaluate(contiguous).val_loss
    assert rounded.trainer.evaluate(contiguous).val_loss == expected
    assert rounded.trainer.validate().val_loss == expected


def test_validation_time_is_not_training_time(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    one = bench("val_every=1")
    now = Ticking()
    one.trainer.clock = TrainClock(now=now)
    evaluate = one.trainer.evaluate

    def slow(evaluator: Any) -> Any:
        now.time += 100.0
        return evaluate(evaluator)

    forward = one.trainer._forward_backward

    def one_second() -> torch.Tensor:
        now.time += 1.0
        return forward()

    monkeypatch.setattr(one.trainer, "evaluate", slow)
    monkeypatch.setattr(one.trainer, "_forward_backward", one_second)
    one.trainer.train()
    assert one.trainer.clock.elapsed_s == 6.0


def test_averaging_sees_each_update_with_the_multiplier_it_used(bench: Callable[..., Bench]) -> None:
    class Spy:
        reason = None

        def __init__(self) -> None:
            self.seen: list[tuple[int, float, float]] = []

        def attach(self, tensors: Any) -> None:
            self.tensors = tensors
            self.seen.append((0, 1.0, self.total()))

        def total(self) -> float:
            return float(sum(t.double().sum() for t in self.tensors.values()))

        def update(self, step: int, lr_multiplier: float) -> None:
            self.seen.append((step, lr_multiplier, self.total()))

    one = bench("schedule.warmdown_iters=4", "budget.fraction=1.0")
    start = float(sum(t.double().sum() for t in one.weights.values()))
    spy = Spy()
    one.parts.averaging = spy  # type: ignore[assignment]
    one.trainer.train()
    assert [step for step, _, _ in spy.seen] == list(range(7))
    assert [multiplier for _, multiplier, _ in spy.seen[1:]] == pytest.approx([1, 1, 1, 0.75, 0.5, 0.25])
    assert spy.seen[0][2] == start
    assert len({total for _, _, total in spy.seen}) == 7


@pytest.mark.parametrize(("interval", "lags"), [(1, False), (4, False), (4, True)])
def test_a_non_finite_loss_brings_back_the_last_weights_that_gave_a_finite_one(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, interval: int, lags: bool
) -> None:
    if lags:
        monkeypatch.setattr(Control, "waits", lambda self, step: False)
    one = bench("schedule.iterations=40", f"runtime.check_every={interval}", "log_every=1000")
    trainer, model = one.trainer, one.parts.model
    history: list[dict[str, torch.Tensor]] = []
    forward = trainer._forward_backward

    def spoiled() -> torch.Tensor:
        history.append(one.weights)
        if len(history) == 14:  # the 14th step sees weights that the 13th update ruined
            with torch.no_grad():
                model.embedding.fill_(float("nan"))
        return forward()

    monkeypatch.setattr(trainer, "_forward_backward", spoiled)
    with pytest.raises(NonFiniteLoss) as raised:
        trainer.train()
    noticed, last_looked = (14, 13) if interval == 1 else (16, 12)
    assert (raised.value.step, raised.value.good_step) == (noticed, last_looked - 1)
    assert len(history) == noticed + (interval if lags else 0)
    assert not trainer.clock.running
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, history[last_looked - 1][name]), name


def test_outside_training_ctrl_c_acts_at_once() -> None:
    with Interrupt(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_run_that_stops_with_a_loss_on_its_way_has_judged_it(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Control, "waits", lambda self, step: False)
    one = bench("schedule.iterations=40", "runtime.check_every=4", "log_every=1000")
    losses: list[float] = []
    forward = one.trainer._forward_backward

    def pressed() -> torch.Tensor:
        if one.trainer.step == 15:
            one.trainer.interrupt.raised = True
        losses.append(float(loss := forward()))
        return loss

    monkeypatch.setattr(one.trainer, "_forward_backward", pressed)
    one.trainer.train()
    assert (one.trainer.step, one.trainer.interrupted) == (16, True)
    assert one.trainer.last_loss == losses[15]


def test_ctrl_c_after_the_last_look_is_heard(bench: Callable[..., Bench]) -> None:
    one = bench()

    def pressed(metrics: Row, step: int) -> None:
        one.trainer.interrupt.raised = step == 6

    one.trainer.report = pressed
    one.trainer.train()
    assert (one.trainer.step, one.trainer.interrupted) == (6, True)


def test_ctrl_c_while_steps_are_measured_is_no_failure(bench: Callable[..., Bench]) -> None:
    one = bench()
    one.trainer.interrupt.raised = True
    with pytest.raises(KeyboardInterrupt):
        measure(one.trainer, 3)


def test_passes_without_an_update_change_nothing(bench: Callable[..., Bench]) -> None:
    one = bench()
    before = one.weights
    one.trainer.rehearse(update=False)
    assert all(parameter.grad is None for parameter in one.parts.model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in one.weights.items())


def test_a_run_interrupted_at_its_end_keeps_its_record(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM repeats until a worker has ended; the record is not to be cut off."""

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    def late(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setenv("GOLF_CACHE", str(corpus.parent / "cache"))
    monkeypatch.setattr(Finish, "run", interrupted)
    monkeypatch.setattr(Loggers, "finish", late)
    config, folder = composed(corpus), RunFolder.claim(tmp_path / "run")
    with Interrupt() as interrupt, pytest.raises(GolfInterrupted):
        Session(config, parts_of(config, folder), Clocks(), interrupt).run()
    assert json.loads(folder.result.read_text())["status"] == "interrupted"


def test_ctrl_c_ends_training_after_the_step(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    one = bench("schedule.iterations=40")
    before = signal.getsignal(signal.SIGINT)
    forward = one.trainer._forward_backward

    def pressed() -> torch.Tensor:
        if one.trainer.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return forward()

    monkeypatch.setattr(one.trainer, "_forward_backward", pressed)
    with one.trainer.interrupt:
        one.trainer.train()
    assert one.trainer.interrupted
    assert one.trainer.step == 4
    assert signal.getsignal(signal.SIGINT) is before


TERMS = """
from golf.nn.techniques.base import Technique

class Terms(Technique):
    site = "logits"

    def __init__(self, shape, layer=None, weight=0.1):
        super().__init__(shape, layer)
        self.weight = weight

    def forward(self, logits, ctx):
        log_z = logits.logsumexp(-1)
        ctx.add_loss("z_loss", self.weight * log_z.square().mean())
        ctx.report("log_z", log_z.mean())
        return logits
"""


@pytest.fixture
def with_terms(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Bench]:
    """A bench whose model adds a term to the loss."""
    monkeypatch.setenv("GOLF_CACHE", str(corpus.parent / "cache"))
    (tmp_path / "terms_of_a_test.py").write_text(TERMS)
    monkeypatch.syspath_prepend(tmp_path)

    def make(weight: float, *overrides: str) -> Bench:
        config = composed(corpus, *overrides)
        node = {"_target_": "terms_of_a_test.Terms", "_partial_": True, "weight": weight}
        return Bench(parts_of({**config, "technique": {"terms": node}}, RunFolder(tmp_path / "run")))

    return make


def test_a_term_of_the_loss_weighs_the_same_for_any_number_of_passes(with_terms: Callable[..., Bench]) -> None:
    whole, cut = with_terms(0.1, "runtime.micro_tokens=256"), with_terms(0.1, "runtime.micro_tokens=32")
    assert (whole.parts.loader.micro_steps, cut.parts.loader.micro_steps) == (1, 8)
    for one in (whole, cut):
        one.trainer.train()
    for a, b in zip(whole.rows, cut.rows, strict=True):
        for name in ("train_loss", "train_loss_mean", "z_loss", "log_z"):
            assert a[name] == pytest.approx(b[name], rel=2e-4), name


def test_train_loss_stays_the_nll_and_the_term_is_trained(with_terms: Callable[..., Bench]) -> None:
    free, heavy = with_terms(0.0), with_terms(3.0)
    for one in (free, heavy):
        one.trainer.train()
    assert heavy.losses[0] == free.losses[0]
    assert heavy.rows[0]["z_loss"] == pytest.approx(3.0 * math.log(260) ** 2, rel=0.1)
    assert heavy.losses[1] != free.losses[1]


def test_what_is_noted_in_some_passes_only_is_refused(with_terms: Callable[..., Bench]) -> None:
    bench = with_terms(0.1, "runtime.micro_tokens=32")
    bench.trainer.rows.names = ("another",)
    with pytest.raises(GolfError, match="names must be the same"):
        bench.trainer.rehearse()


def test_the_model_knows_the_token_that_begins_a_document(bench: Callable[..., Bench]) -> None:
    parts = bench().parts
    assert parts.model.border_id == parts.fresh().border_id == parts.prepared.tokenizer.bos_id
