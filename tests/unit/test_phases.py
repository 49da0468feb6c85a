"""What changes in the course of a run: phases, what is told of them, hooks, and a run that goes on from memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from golf.common.clock import Clocks, TrainClock
from golf.common.errors import ConfigError, GolfError
from golf.common.progress import Progress
from golf.common.ranks import Ranks
from golf.launch.compose import build, phases
from golf.launch.compose.configs import compose_job, composer, resolved
from golf.launch.compose.own_modules import use_code
from golf.quant.entry import dequantize
from golf.runs.folder import RunFolder
from golf.train.hooks import Hook
from golf.train.members import Hooks
from golf.train.trainer import Trainer

TINY = (
    "recipe=quickstart", "budget=smoke", "tokenizer=byte260", "model.num_layers=3", "model.model_dim=32",
    "model.num_heads=2", "model.num_kv_heads=1", "train_seq_len=16", "train_batch_tokens=256", "val_tokens=257",
    "schedule.iterations=8", "schedule.clock=steps", "logger=jsonl", "runtime=cpu", "runtime.threads=1", "data=text",
    "data.val_docs=4", "log_every=1", "keep_below=64", "eval=contiguous",
)  # fmt: skip
IDEAS = """
import torch
from golf.data.orders import Spans
from golf.learn.averaging import EMA
from golf.nn.models.mlp import SquaredMLP
from golf.nn.techniques.base import Technique


class ZLoss(Technique):
    site = "logits"
    changes = ("weight",)

    def __init__(self, shape, layer=None, weight=0.5):
        super().__init__(shape, layer)
        self.weight = weight
        self.register_buffer("fraction", torch.zeros(()), persistent=False)
        self.told = []

    def at_step(self, progress):
        self.fraction.fill_(progress.fraction)
        self.told.append((progress.step, progress.fraction, progress.phase))

    def forward(self, logits, ctx):
        ctx.add_loss("z_loss", self.weight * logits.logsumexp(-1).square().mean())
        ctx.report("fraction", self.fraction)
        return logits


class Gain(Technique):
    site = "mlp_out"

    def __init__(self, shape, layer=None):
        super().__init__(shape, layer)
        from golf.nn.params import declare
        declare(self, "gain", torch.full((shape.model_dim,), 0.5), role="scalar", place="gain", layer=layer)

    def forward(self, value, ctx):
        return value * self.gain.to(value.dtype)

class Decaying(EMA):
    changes = ("decay",)


class Ordered(Spans):
    changes = ("back",)

    def __init__(self, feed, back=0):
        super().__init__(feed)
        self.back = back

    def stretches(self, position, index):
        return [(1 if self.back else start, count) for start, count in super().stretches(position, index)]


class Leaky(SquaredMLP):
    changes = ("negative_slope",)


class Forgets(SquaredMLP):
    changes = ("unkept",)

    def __init__(self, *args, unkept=0.5, **more):
        super().__init__(*args, **more)


class Ahead(Technique):
    site = "attn_in"

    def __init__(self, shape, layer=None, numerics=None):
        super().__init__(shape, layer)
        from golf.nn.linear import Linear
        self.own = Linear(shape.model_dim, shape.model_dim, numerics, place="ahead", layer=layer)

    def forward(self, value, ctx):
        return value + self.own(value).mean(1, keepdim=True)


class Late(Technique):
    site = "mlp_out"

    def forward(self, value, ctx):
        if not hasattr(self, "seen"):
            self.register_buffer("seen", torch.zeros(3))
        return value
"""
LOOP = "{from: 0.5, set: {model.plan: loop, model.plan.first: 1, model.plan.last: 1}}"


class Watch(Hook):
    """Notes what it is told, and keeps the run as it was after some step."""

    def __init__(self, keep_after: int | None = None) -> None:
        self.keep_after, self.events = keep_after, list[tuple[str, int]]()
        self.kept: dict[str, Any] = {}
        self.weights: list[dict[str, torch.Tensor]] = []

    def attach(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.trainer.step}

    def before_step(self, progress: Progress) -> None:
        self.events.append(("before", progress.step))

    def at_phase(self, phase: Any, progress: Progress) -> None:
        self.events.append(("phase", phase.number))

    def after_step(self, progress: Progress, stop: bool) -> None:
        self.weights.append({name: w.clone() for name, w in self.trainer.parts.model.state_dict().items()})
        if progress.step == self.keep_after:
            self.kept = self.trainer.state_dict()


class Made:
    """A trainer of tiny parts, its rows, and the batches' shapes."""

    def __init__(self, parts: Any) -> None:
        self.parts, self.rows = parts, list[dict[str, Any]]()
        self.trainer = Trainer(parts, Clocks(), lambda metrics, step: self.rows.append(dict(metrics)))

    @property
    def losses(self) -> list[float]:
        return [row["train_loss"] for row in self.rows if "train_loss" in row]

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in self.parts.model.state_dict().items()}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., dict[str, Any]]]:
    """Compose a checked config of forty short documents; a user's two techniques are at hand."""
    corpus, mine = tmp_path / "corpus.jsonl", tmp_path / "mine"
    corpus.write_text("".join(json.dumps({"text": f"document {i}: " + "ab cd " * (20 + i)}) + "\n" for i in range(40)))
    (mine / "technique/z_loss").mkdir(parents=True)
    (mine / "technique/gain").mkdir()
    (mine / "technique/ahead").mkdir()
    (mine / "technique/ahead/mine.yaml").write_text("_target_: phase_ideas.Ahead\n_partial_: true\nlayers: all\n")
    (mine / "technique/late").mkdir()
    (mine / "technique/late/mine.yaml").write_text("_target_: phase_ideas.Late\n_partial_: true\n")
    (mine / "technique/z_loss/mine.yaml").write_text("_target_: phase_ideas.ZLoss\n_partial_: true\nweight: 0.5\n")
    (mine / "technique/gain/all.yaml").write_text("_target_: phase_ideas.Gain\n_partial_: true\nlayers: all\n")
    (mine / "phase_ideas.py").write_text(IDEAS)
    for place, text in {
        "averaging/mine": "_target_: phase_ideas.Decaying\ndecay: 0.99\n",
        "loader/mine": "_target_: phase_ideas.Ordered\n_partial_: true\nback: 0\n",
        "model/mlp/leaky": "_target_: phase_ideas.Leaky\n_partial_: true\nnegative_slope: 0.5\n",
        "model/mlp/forgets": "_target_: phase_ideas.Forgets\n_partial_: true\nunkept: 0.5\n",
    }.items():
        (mine / place).parent.mkdir(parents=True, exist_ok=True)
        (mine / f"{place}.yaml").write_text(text)
    monkeypatch.setenv("GOLF_CACHE", str(tmp_path / "cache"))

    def make(*words: str) -> dict[str, Any]:
        with composer([mine]):
            found = resolved(compose_job([*TINY, f"data.paths=[{corpus}]", *words], [mine]))
        found["code_paths"] = [str(mine)]
        build.check(found)
        return found

    yield make
    use_code([])


@pytest.fixture
def made(config: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., Made]:
    """Make a trainer from words, with callbacks."""

    def make(*words: str, callbacks: tuple[Hook, ...] = ()) -> Made:
        found, ranks = config(*words), Ranks()
        runtime = build.make(found["runtime"], "runtime")
        parts = build.build(found, ranks, runtime, RunFolder(tmp_path / "run"), build.prepare_data(found, ranks))
        parts.callbacks = callbacks
        return Made(parts)

    return make


def test_a_plan_that_begins_later_pairs_the_skips_anew(made: Callable[..., Made]) -> None:
    watch = Watch()
    one = made(f"phases=[{LOOP}]", callbacks=(watch,))
    model = one.parts.model
    assert [visit.layer for visit in model.visits] == [0, 1, 2]
    assert model.residual.skip_weights.shape[0] == 2
    unused = model.residual.skip_weights[1].detach().clone()
    one.trainer.train()
    assert [visit.layer for visit in model.visits] == [0, 1, 1, 2]
    assert all(torch.equal(weights["residual.skip_weights"][1], unused) for weights in watch.weights[:4])
    assert not torch.equal(watch.weights[-1]["residual.skip_weights"][1], unused)


def test_before_its_phase_a_run_is_bitwise_the_run_without(made: Callable[..., Made]) -> None:
    plain, later = made(), made("phases=[{from: 0.5, set: {train_seq_len: 8, qat: int6}}]")
    for one in (plain, later):
        one.trainer.train()
    assert later.losses[:4] == plain.losses[:4]
    assert later.losses[5:] != plain.losses[5:]


def test_late_rounding_is_the_quantizers_own_and_averages_go_on_through_it(made: Callable[..., Made]) -> None:
    class Reads(Watch):
        def before_step(self, progress: Progress) -> None:
            linear = self.trainer.parts.model.blocks[1].mlp.up
            entry = quantizer.quantize({"w": linear.weight}, {"w": linear.spec})["w"]
            self.events.append(("rounded", torch.equal(linear.multiplier(), dequantize(entry))))

    words = ("quant.bits={default: 3, embed: 4}", "averaging=ema", "model.head.softcap=8")
    plain = made(*words)
    one = made(*words, "phases=[{from: 0.5, set: {qat: quant}}]", callbacks=(watch := Reads(),))
    quantizer = one.parts.quantizer
    expected = {name: weight.double() for name, weight in one.weights.items()}
    for each in (plain, one):
        each.parts.averaging.decay = 0.7
        each.trainer.train()
    assert one.losses[:4] == plain.losses[:4]
    assert abs(one.losses[4] - plain.losses[4]) > 1e-3  # in the phase's first step
    assert [told for what, told in watch.events if what == "rounded"] == [False] * 4 + [True] * 4
    for weights in watch.weights:
        expected = {name: 0.7 * mean + 0.3 * weights[name].double() for name, mean in expected.items()}
    for name, mean in one.parts.averaging.average().items():
        torch.testing.assert_close(mean.double(), expected[name], rtol=1e-5, atol=1e-6)
    specs = one.parts.model.specs()
    stored = {name: dequantize(entry) for name, entry in quantizer.quantize(watch.weights[-1], specs).items()}
    rounded = [name for name, spec in specs.items() if spec.role in ("matrix", "embed")]
    assert not any(torch.equal(watch.weights[-1][name], stored[name]) for name in rounded)  # masters are not


@pytest.mark.slow
def test_compiled_training_rounds_from_its_phase_on(made: Callable[..., Made]) -> None:
    words = ("quant.bits={default: 3, embed: 4}", "model.head.softcap=8", "runtime.compile=model")
    late = "phases=[{from: 0.5, set: {qat: quant}}]"
    plain, one, eager = made(*words), made(*words, late), made(*words, late, "runtime.compile=none")
    for each in (plain, one, eager):
        torch._dynamo.reset()
        each.trainer.train()
    assert one.losses == pytest.approx(eager.losses, rel=1e-3)
    assert one.losses[:4] == pytest.approx(plain.losses[:4], rel=1e-3)
    assert abs(one.losses[4] - plain.losses[4]) > 1e-2


def test_each_phase_is_told_in_rows_record_and_hooks(made: Callable[..., Made]) -> None:
    watch = Watch()
    one = made("phases=[{from: 0.25, set: {train_seq_len: 8}}, {from_step: 1500, set: {train_batch_tokens: 512}}]",
               callbacks=(watch,))  # fmt: skip
    one.trainer.train()
    begun = one.trainer.timeline.begun
    assert [(at["number"], at["step"], at["tokens"], at["set"]) for at in begun] == [
        (1, 2, 512, {"train_seq_len": 8}), (2, 6, 1536, {"train_batch_tokens": 512}),
    ]  # fmt: skip
    assert [(row["phase"], row["step"]) for row in one.rows if "phase" in row] == [(1, 2), (2, 6)]
    assert one.rows[-1]["tokens"] == 6 * 256 + 2 * 512
    at = watch.events.index
    assert watch.events[0] == ("phase", 0)
    assert at(("before", 1)) < at(("phase", 1)) < at(("before", 2))


def test_a_shape_that_changes_reads_on_where_it_was(made: Callable[..., Made]) -> None:
    one = made("phases=[{from: 0.5, set: {train_seq_len: 32}}]")
    shapes: list[tuple[int, ...]] = []
    one.parts.model.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    one.trainer.train()
    assert shapes == [(16, 16)] * 4 + [(8, 32)] * 4
    assert one.parts.model.longest >= 32


def test_phases_go_by_the_clock_where_it_ends_the_run(
    made: Callable[..., Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = made("schedule.clock=wall", "schedule.iterations=1000", f"phases=[{LOOP}]")
    one.trainer.train_seconds = 10.0
    now = [0.0]
    one.trainer.clock = TrainClock(now=lambda: now[0])
    forward = one.trainer._forward_backward

    def one_second() -> torch.Tensor:
        now[0] += 1.0
        return forward()

    monkeypatch.setattr(one.trainer, "_forward_backward", one_second)
    one.trainer.train()
    assert (one.trainer.step, one.trainer.timeline.begun[0]["step"]) == (10, 5)


def test_a_technique_comes_in_with_its_phase(made: Callable[..., Made], config: Callable[..., Any]) -> None:
    plain = made()
    one = made("phases=[{from: 0.5, set: {technique/gain: all}}]")
    for each in (plain, one):
        each.trainer.train()
    assert one.losses[:4] == plain.losses[:4]
    assert one.losses[4] != plain.losses[4]
    fresh = one.parts.fresh()
    assert fresh.techniques("gain")
    assert not fresh.off()
    gain = next(tensor for name, tensor in one.weights.items() if "gain" in name)
    assert not torch.equal(gain, torch.full_like(gain, 0.5))


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_what_is_frozen_or_off_stays_as_it_is(made: Callable[..., Made], decay: float) -> None:
    one = made("frozen=[embed,attn.*]", "phases=[{from: 0.9, set: {technique/gain: all}}]", "schedule.iterations=4",
               f"optimizer.matrix_weight_decay={decay}", f"optimizer.adam_weight_decay={decay}")  # fmt: skip
    before = one.weights
    one.trainer.train()
    specs = one.parts.model.specs()
    still = {name for name, tensor in one.weights.items() if torch.equal(tensor, before[name])}
    assert {name for name, spec in specs.items() if spec.place.startswith(("embed", "attn.", "gain"))} <= still
    assert not {name for name, spec in specs.items() if spec.role == "matrix" and spec.place == "mlp.down"} & still


def test_a_weight_of_the_loss_changes_and_a_technique_knows_how_far_the_run_is(made: Callable[..., Made]) -> None:
    one = made("technique/z_loss=mine", "phases=[{from: 0.5, set: {technique.z_loss.weight: 0.0}}]")
    one.trainer.train()
    terms = [row["z_loss"] for row in one.rows if "z_loss" in row]
    assert all(term > 0 for term in terms[:4])
    assert terms[4:] == [0.0] * 4
    assert [row["fraction"] for row in one.rows if "fraction" in row] == [step / 8 for step in range(8)]
    [technique] = one.parts.model.techniques("z_loss")
    assert technique.told == [(step, step / 8, int(step >= 4)) for step in range(8)]


@pytest.mark.parametrize(("before", "after"), [("none", "mine"), ("mine", "none")])
def test_a_term_of_the_loss_comes_or_goes_with_its_phase(made: Callable[..., Made], before: str, after: str) -> None:
    one = made(f"technique/z_loss={before}", f"phases=[{{from_step: 11, set: {{technique/z_loss: {after}}}}}]",
               "budget.fraction=1", "schedule.iterations=12", "log_every=12")  # fmt: skip
    one.trainer.train()
    rows = [row for row in one.rows if "train_loss" in row]
    assert [row["step"] for row in rows] == [*range(1, 11), 12]
    assert ["z_loss" in row for row in rows] == [before == "mine"] * 10 + [after == "mine"]
    if after == "mine":  # of its one step; the loss beside it is of two
        assert rows[-1]["fraction"] == pytest.approx(11 / 12)


def test_the_rate_counts_the_tokens_of_every_phase(made: Callable[..., Made]) -> None:
    one = made("phases=[{from: 0.5, set: {train_batch_tokens: 512}}]")
    one.trainer.train()
    last = one.rows[-1]
    assert last["tokens_per_s"] == pytest.approx(last["tokens"] / last["train_time_s"])


class Shows(Hook):
    """Shows a value by a name, before each step."""

    def __init__(self, name: str, value: Any) -> None:
        self.name, self.value = name, value

    def attach(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def before_step(self, progress: Progress) -> None:
        self.trainer.show(self.name, self.value)
        if isinstance(self.value, torch.Tensor):
            self.value += 1


def test_what_is_shown_is_the_value_of_that_moment(made: Callable[..., Made]) -> None:
    one = made("schedule.iterations=12", "log_every=12", callbacks=(Shows("mine", torch.zeros(())),))
    one.trainer.train()
    assert [row["mine"] for row in one.rows] == [*range(10), 10.5]


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("mine", 1.5, "mine: what is shown is a scalar tensor, not 1.5"),
        ("mine", torch.ones(3), r"not a tensor \[3\]"),
        ("val_bpb", torch.ones(()), "golf reports a number of this name"),
        ("z_loss", torch.ones(()), "a technique reports a number of this name"),
    ],
)
def test_what_cannot_be_shown_is_refused(made: Callable[..., Made], name: str, value: Any, told: str) -> None:
    one = made("technique/z_loss=mine", callbacks=(Shows(name, value),))
    with pytest.raises(GolfError, match=told):
        one.trainer.train()


def test_a_phase_may_not_make_state_that_no_artifact_could_hold(made: Callable[..., Made]) -> None:
    one = made("phases=[{from: 0.5, set: {technique/late: mine}}]")
    with pytest.raises(GolfError, match=r"late.*was not there before"):
        one.trainer.train()


OWN = "averaging=mine", "loader=mine", "model/mlp=leaky"


def test_settings_change_in_whatever_part_says_so(made: Callable[..., Made]) -> None:
    sets = "{averaging.decay: 0.9, loader.back: 1, model.mlp.negative_slope: 0.0}"
    one = made(*OWN, f"phases=[{{from: 0.5, set: {sets}}}]")
    fast, slow = made("averaging=mine"), made("averaging=mine", "averaging.decay=0.9")
    seen = []
    rows: list[list[int]] = []

    class Reads(Hook):
        def before_step(self, progress: Progress) -> None:
            decay, slopes = one.parts.averaging.decay, {b.mlp.negative_slope for b in one.parts.model.layers()}
            seen.append((decay, one.parts.loader.back, slopes))

    one.trainer.hooks = Hooks([*one.trainer.hooks.members, Reads()])
    one.parts.model.register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0][:2, :4].tolist()))
    one.trainer.train()
    before, after = fast.parts.averaging.decay, slow.parts.averaging.decay
    assert before != 0.99  # the budget has scaled it
    assert seen == [(before, 0, {0.5})] * 4 + [(after, 1, {0.0})] * 4
    assert all(row == rows[4] for row in rows[4:])
    assert rows[3] != rows[4]


def test_a_callback_that_evaluates_leaves_training_as_it_is(made: Callable[..., Made]) -> None:
    class Evaluates(Watch):
        def before_step(self, progress: Progress) -> None:
            self.trainer.evaluate(self.trainer.parts.evaluator)

    words = ("qat=int6", "schedule.iterations=4")
    plain, one = made(*words), made(*words, callbacks=(Evaluates(),))
    for each in (plain, one):
        each.trainer.train()
    assert one.losses == plain.losses


def test_a_setting_that_nobody_keeps_is_refused(made: Callable[..., Made]) -> None:
    with pytest.raises(ConfigError, match=r"model\.mlp\.unkept cannot change: no attribute"):
        made("model/mlp=forgets", "phases=[{from: 0.5, set: {model.mlp.unkept: 0.1}}]")


def test_a_technique_that_comes_again_may_differ_in_what_may_change(made: Callable[..., Made]) -> None:
    one = made("technique/z_loss=mine", "phases=[{from: 0.25, set: {technique/z_loss: none}}, "
               "{from: 0.5, set: {technique/z_loss: mine, technique.z_loss.weight: 0.25}}]")  # fmt: skip
    [technique] = one.parts.model.techniques("z_loss")
    assert technique.weight == 0.5
    one.trainer.train()
    assert technique.weight == 0.25


def test_a_technique_is_tried_before_the_run_that_it_comes_into_late(config: Callable[..., Any]) -> None:
    build.try_out(config())
    with pytest.raises(ConfigError, match="technique/ahead: a later token changes an earlier prediction"):
        build.try_out(config("phases=[{from: 0.5, set: {technique/ahead: mine}}]"))


def test_what_a_phase_leaves_out_costs_nothing(made: Callable[..., Made]) -> None:
    plain, one = made(), made("phases=[{from: 0.5, set: {technique/ahead: mine}}]")
    assert one.trainer.flops_per_token == plain.trainer.flops_per_token
    assert one.parts.model.window_flops(16) == plain.parts.model.window_flops(16)
    one.trainer.train()
    assert one.trainer.flops_per_token > plain.trainer.flops_per_token


def test_a_fake_quantizer_that_keeps_something_is_put_back_too(made: Callable[..., Made]) -> None:
    class Counting:
        calls = 0

        def covers(self, spec: Any, weight: torch.Tensor) -> bool:
            return spec.role == "matrix"

        def __call__(self, weights: torch.Tensor) -> torch.Tensor:
            return weights

        def at_step(self, progress: Progress) -> None:
            self.calls += 1

        def state_dict(self) -> dict[str, Any]:
            return {"calls": self.calls}

        def load_state_dict(self, state: Mapping[str, Any]) -> None:
            self.calls = state["calls"]

    one = made()
    one.parts.phases = [replace(one.parts.phases[0], qat=(qat := Counting()))]
    one.parts.only(0)
    one.trainer.enter(one.parts.phase)
    state = one.trainer.state_dict()
    one.trainer.train()
    assert qat.calls == 8
    one.trainer.load_state_dict(state)
    assert qat.calls == 0


def test_a_phase_that_never_begins_serves_what_follows_training(
    made: Callable[..., Made], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("golf.common.log.logger.propagate", True)
    one = made("phases=[{from_step: 100000, set: {model.plan: loop, model.plan.first: 1, model.plan.last: 1}}]")
    one.trainer.train()
    assert len(one.parts.model.visits) == 4
    assert "never began" in caplog.text


ALL = (
    "averaging=ema", "quant=gradguided", "quant.allocation.warmdown_only=false", "optimizer=normuon",
    "technique/z_loss=mine", "loader=shuffled", "loader.packed=true",
    f"phases=[{{from: 0.4, set: {{qat: int6, technique/gain: all}}}}, {LOOP}, "
    "{from: 0.7, set: {train_seq_len: 8}}]",
)  # fmt: skip


@pytest.mark.parametrize("keep_after", [2, 5, 7])
def test_a_run_that_goes_on_from_memory_is_bitwise_the_one_that_never_stopped(
    made: Callable[..., Made], keep_after: int
) -> None:
    whole = made(*ALL, callbacks=(watch := Watch(keep_after),))
    whole.trainer.train()
    twin = made(*ALL, callbacks=(Watch(),))
    twin.trainer.train(watch.kept)
    assert twin.losses == whole.losses[keep_after:]
    assert twin.trainer.tokens == whole.trainer.tokens
    assert twin.trainer.timeline.begun == whole.trainer.timeline.begun or twin.trainer.step == 8
    for name, tensor in whole.weights.items():
        assert torch.equal(tensor, twin.weights[name]), name
    one, other = (each.parts.averaging.average() for each in (whole, twin))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert whole.parts.quantizer.facts() == twin.parts.quantizer.facts()


def test_a_warmed_up_run_with_phases_is_bitwise_the_run_without(
    made: Callable[..., Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = made(*ALL, "schedule.warmup_steps=0")
    plain.trainer.train()
    monkeypatch.setattr(Trainer, "compiled", property(lambda self: True))
    warmed = made(*ALL, "schedule.warmup_steps=3", callbacks=(Watch(),))
    warmed.trainer.train()
    assert warmed.losses == plain.losses
    assert all(torch.equal(tensor, warmed.weights[name]) for name, tensor in plain.weights.items())


@pytest.mark.parametrize(
    ("phases", "told"),
    [
        ("[{from: 0.5, set: {model.num_layers: 4}}]", r"model\.num_layers cannot change.*\nwhat can: .*model\.plan"),
        ("[{from: 0.5, set: {technique.xsa.layers: last:1}}]", r"technique\.xsa\.layers cannot change"),
        (
            "[{from: 0.5, set: {model.plan: spiral}}]",
            r"phases\[0\]\.set\.model\.plan=spiral.*\nchoices: loop, straight",
        ),
        ("[{from: 0.5, set: {modl.plan: loop}}]", r"no key 'modl\.plan'"),
        ("[{from: 1.5, set: {qat: int6}}]", r"phases\[0\]\.from=1\.5: a number from 0 to below 1"),
        (
            "[{from: 0.5, set: {qat: int6}}, {from: 0.5, set: {qat: none}}]",
            r"phases\[1\]\.from=0\.5: each phase begins",
        ),
        ("[{from: 0.5, until: 0.6, set: {qat: int6}}]", r"phases\[0\]\.until"),
        ("[{set: {qat: int6}}]", "either `from`"),
        ("[{from: nan, set: {qat: int6}}]", r"phases\[0\]\.from=nan: a number from 0"),
        ("[{from_step: inf, set: {qat: int6}}]", r"phases\[0\]\.from_step=inf: a whole number"),
        ("loop", "phases=loop: a list of"),
        ("[{from: 0.5, set: {phases: []}}]", "no key 'phases'"),
        ("[{from: 0.5, set: {frozen: embed}}]", r"frozen=embed: expected .*\n.*frozen=\[embed\]"),
        ("[{from: 0.5, set: {frozen: [atn.q]}}]", "frozen=atn.q: the model has no such place.*\nchoices: attn"),
        (
            "[{from: 0.2, set: {technique/xsa: none}}, "
            "{from: 0.5, set: {technique/xsa: all, technique.xsa.layers: last:1}}]",
            r"technique\.xsa\.layers cannot change",
        ),
        ("[{from: 0.5, set: {train_seq_len: 32}}]", "train_seq_len=32 is longer than .*model.max_seq_len=16"),
        ("[{from: 0.5, set: {runtime.threads: 2}}]", r"runtime\.threads cannot change"),
        ("[{from: 0.5, set: {train_seq_len: 24}}]", "train_batch_tokens=256: must be a multiple"),
        ("[{from: 0.5, set: {train_seq_len: long}}]", "train_seq_len=long"),
    ],
)
def test_what_cannot_change_is_refused(config: Callable[..., Any], phases: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        config("technique/xsa=all", "model.max_seq_len=16", f"phases={phases}")


def test_a_phase_holds_what_follows_from_it_and_settles_again_as_it_was(config: Callable[..., Any]) -> None:
    found: Mapping[str, Any] = config("phases=[{from: 0.5, set: {train_seq_len: 32}}]", "eval.seq_len=${train_seq_len}")
    values = found["phases"][0]["values"]
    assert values["train_seq_len"] == 32
    assert values["eval"]["seq_len"] == 32
    assert found["eval"]["seq_len"] == 16
    model = build.build_model(found, "float32")
    assert model.longest == 32


def test_a_run_goes_by_the_option_that_its_last_phase_has(config: Callable[..., Any]) -> None:
    found = config("phases=[{from: 0.2, set: {quant: int6, qat: int6}}, {from: 0.5, set: {quant: int8, codec: lzma}}]")
    assert phases.chosen(found) == {"quant": "int8", "codec": "lzma"}
    made = build.components(found)
    assert made["codec"].name == "lzma"
    assert made["quant"].bits["default"] == 8
