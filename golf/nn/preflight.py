"""A tiny forward and backward before a run starts: it names the technique that is wrong, and the site where.

What is checked: what a technique returns and reads, its parameters, devices; then, with random weights, that nothing
looks ahead, that leaving positions out changes nothing for the others, and that packed documents do not see each other.
"""

from __future__ import annotations

import copy
import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from golf.common.errors import ConfigError
from golf.nn.context import READABLE, Context
from golf.nn.live import within
from golf.nn.models.gpt import GPT, Losses
from golf.nn.params import param_specs
from golf.nn.techniques.base import AtSite, Technique

TOKENS = 64
LONGER = 1024
"""Windows that are tried: short ones, and where a part takes no such ones, those of its own length, up to this."""
TAKEN = (
    "step", "tokens", "phase", "train_time_s", "train_loss", "train_loss_mean", "val_loss", "val_bpb", "lr_multiplier",
    "step_ms", "tokens_per_s", "data_wait_ms", "mfu",
)  # fmt: skip
"""What metrics.jsonl calls golf's own numbers."""
AT_SITE = re.compile(r"(?:blocks\.(\d+)\..*?)?at_(\w+)\.([^.]+)$")
LEFT_BEHIND = (
    "a tensor of its own stays behind when the model moves: register it as a buffer, or make it where it is used"
)
ALLOWED = 1e-4
"""By how much of its largest value a figure may differ that should not: sums of other lengths round differently."""


class Stand(NamedTuple):
    """A technique at one site of one layer."""

    name: str
    site: str
    layer: int | None
    module: nn.Module

    def __str__(self) -> str:
        where = "" if self.layer is None else f" in layer {self.layer}"
        return f"technique/{self.name} at {self.site}{where}"

    @property
    def technique(self) -> Technique:
        """The technique itself."""
        found = self.module.served_by[0] if isinstance(self.module, AtSite) else self.module
        assert isinstance(found, Technique)
        return found


class Watched:
    """A context that lets a technique read what it declared. Raises ConfigError for any other field."""

    def __init__(self, ctx: Context, stand: Stand) -> None:
        self._ctx, self._stand = ctx, stand

    def __getattr__(self, field: str) -> Any:
        needed = "carried" if field in ("carry", "fetch") else field
        if needed in READABLE and needed not in self._stand.technique.reads:
            raise ConfigError(f"{self._stand}: it uses ctx.{field}: `reads` of {type(self._stand.technique).__name__} "
                              f"must name {needed}")  # fmt: skip
        return getattr(self._ctx, field)


def check(model: GPT, seed: int = 0) -> list[str]:
    """Try a model, built on the CPU with float32 compute; its weights are drawn anew and lost.

    A line for what could not be tried. Raises ConfigError for what is wrong.
    """
    model.border_id = 0 if model.border_id is None else model.border_id
    trial = Trial(model, list(_stands(model)), min(TOKENS, model.longest))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _check_parameters(model, trial.stands)
        model.initialize(seed)
        try:
            trial.train_step()
        except ConfigError:
            if model.longest <= TOKENS:
                raise
            trial.tokens = min(LONGER, model.longest)  # what works in blocks may need whole ones
            trial.train_step()
        trial.on_another_device()
        if trial.tokens > TOKENS:
            return [
                f"the model takes no windows of {TOKENS} tokens: it was tried with {trial.tokens}, in training alone"
            ]
        _scatter(model)
        return trial.meaning()


class Trial:
    """A model and its techniques at work on random tokens [2, `tokens`]."""

    def __init__(self, model: GPT, stands: list[Stand], tokens: int) -> None:
        self.model, self.stands, self.tokens = model, stands, tokens

    def ids(self) -> torch.Tensor:
        """[2, tokens + 1]: inputs, and behind each its target."""
        return torch.randint(0, self.model.shape.vocab_size, (2, self.tokens + 1))

    def train_step(self) -> None:
        """A forward and backward in training, every technique watched."""
        ids = self.ids()
        self.model.train()
        with _named(self.stands):
            found = self.model(ids[:, :-1], ids[:, 1:], noting=True)
            assert isinstance(found, Losses)
            for name, term in {**found.terms, **found.reports}.items():
                if name in TAKEN:
                    raise ConfigError(f"{name}: golf reports a number of this name itself; choose another")
                if term.ndim:
                    raise ConfigError(f"{name}: terms of the loss and reports are scalars, not {list(term.shape)}")
            total = found.nll + sum(found.terms.values())
            if not bool(total.isfinite()):
                raise ConfigError(f"the loss is {float(total)} before the first step")
            total.backward()
        self.model.zero_grad()

    def on_another_device(self) -> None:
        """Constants that a technique keeps to itself stay behind when its model moves. What cannot be told without
        numbers is passed over."""
        parameters = {id(parameter) for parameter in self.model.parameters()}
        held = (vars(stand.technique).values() for stand in self.stands)
        if any(id(one) in parameters for values in held for value in values for one in within(value)):
            return  # a second name of a parameter would stay behind here, and moves with it elsewhere
        ids = self.ids().to("meta")
        with _named(self.stands, passing=True):
            moved = copy.deepcopy(self.model).to("meta")
            moved(ids[:, :-1], ids[:, 1:], noting=True)

    def meaning(self) -> list[str]:
        """What later tokens, positions left out and other documents may not change; a line where it cannot be told."""
        self.model.eval()
        ids = self.ids()
        with _named(self.stands, evaluating=True), torch.no_grad():
            first = self.model(ids[:, :-1])
        if not bool(first.isfinite().all()):
            return ["the model's outputs are not finite with random weights: whether it looks ahead was not tried"]
        for holds, told in (
            (_repeats, "the same input gives another output: it draws or changes state in evaluation, too"),
            (_looks_back_only, "a later token changes an earlier prediction: it looks ahead"),
            (_prunes, "a position's output depends on other positions: it must say mixes_time = True"),
            (_packs, "documents that share a row see each other: it must heed ctx.documents"),
            (_needs_no_unstored, "what is not stored in the artifact changes the output"),
        ):
            with _named(self.stands, evaluating=True), torch.no_grad():
                if holds(self.model, ids):
                    continue
            for name in dict.fromkeys(stand.name for stand in self.stands):
                with _switched_off([stand for stand in self.stands if stand.name == name]), torch.no_grad():
                    try:
                        blamed = holds(self.model, ids)
                    except Exception:  # another one cannot do without it
                        blamed = False
                if blamed:
                    raise ConfigError(f"technique/{name}: {told}")
            raise ConfigError(f"model: {told}")
        return []


def _stands(model: GPT) -> Iterator[Stand]:
    for name, module in model.named_modules():
        if isinstance(module, Technique | AtSite) and (found := AT_SITE.search(name)):
            layer, site, technique = found.groups()
            yield Stand(technique, site, None if layer is None else int(layer), module)


@contextmanager
def _named(stands: Sequence[Stand], passing: bool = False, evaluating: bool = False) -> Iterator[None]:
    """Within the block techniques are watched, and any error becomes a ConfigError that names the one that ran.

    passing: errors are passed over, but for a tensor on the wrong device. evaluating: an evaluation runs, which has no
    targets.
    """
    running: list[Stand] = []
    try:
        with _watching(stands) as running:
            yield
    except ConfigError:
        if not passing:
            raise
    except Exception as error:  # a user's own code may raise anything
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
        if passing:
            if not ("meta" in reason and re.search(r"same device|two devices|on device", reason)):
                return
            reason = LEFT_BEHIND
        elif evaluating and running and {"targets", "to_logits"} & set(running[-1].technique.reads):
            reason += " (ctx.targets and ctx.to_logits are None in evaluation)"
        raise ConfigError(f"{running[-1] if running else 'model'}: {reason}{_place(error)}") from error


def _place(error: BaseException) -> str:
    """The innermost line of the user's own code, where an error passed through it."""
    ours = (str(Path(__file__).parents[1]), str(Path(torch.__file__).parent))
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(ours)]
    return f"\n{frames[-1].filename}, line {frames[-1].lineno}: {frames[-1].line}" if frames else ""


@contextmanager
def _watching(stands: Sequence[Stand]) -> Iterator[list[Stand]]:
    """Within the block every technique is handed a Watched context and what it returns is checked; the list holds those
    that are running."""
    running: list[Stand] = []
    hooks = []
    for stand in stands:

        def before(module: nn.Module, args: tuple[Any, ...], stand: Stand = stand) -> tuple[Any, ...]:
            running.append(stand)
            return args[0], Watched(args[1], stand)

        def after(module: nn.Module, args: tuple[Any, ...], out: Any, stand: Stand = stand) -> None:
            _check_value(args[0], out, stand)
            running.pop()

        hooks += [stand.module.register_forward_pre_hook(before), stand.module.register_forward_hook(after)]
    try:
        yield running
    finally:
        for hook in hooks:
            hook.remove()


def _check_value(given: Any, out: Any, stand: Stand) -> None:
    if isinstance(given, tuple) and (not isinstance(out, tuple) or len(out) != len(given)):
        raise ConfigError(f"{stand}: it must return the pair (queries, keys), not {type(out).__name__}")
    for before, after in zip(given, out, strict=True) if isinstance(given, tuple) else ((given, out),):
        if not isinstance(after, torch.Tensor):
            raise ConfigError(f"{stand}: it must return the new value, not {type(after).__name__}")
        if after.shape != before.shape:
            raise ConfigError(f"{stand}: it must return {list(before.shape)}, not {list(after.shape)}")
        if not after.is_floating_point():
            raise ConfigError(f"{stand}: it must return floating point numbers, not {after.dtype}")


def _check_parameters(model: GPT, stands: Sequence[Stand]) -> None:
    try:
        specs = param_specs(model)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    for name, parameter in model.named_parameters():
        if specs[name].role in ("matrix", "embed", "head") and parameter.ndim != 2:
            raise ConfigError(f"{name}: a parameter of the role {specs[name].role} has two dimensions, "
                              f"not {list(parameter.shape)}")  # fmt: skip
    for stand in stands:
        for name, value in vars(stand.technique).items():
            held = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
            if not name.startswith("_") and any(isinstance(one, nn.Parameter | nn.Module) for one in held):
                raise ConfigError(f"{stand}: {name} holds parameters that torch does not know of: they would neither "
                                  "train nor be stored\nuse nn.ModuleList, or declare each")  # fmt: skip


def _scatter(model: GPT) -> None:
    """Random weights: a zero or a one hides nothing. What is not zero keeps its sign and nearly its size, but for
    embedding and head, which make logits of some size."""
    specs = model.specs()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape)
            fresh = noise / parameter.shape[-1] ** 0.5 if parameter.ndim == 2 else 0.3 * noise
            moved = parameter * (1 + 0.1 * noise.clamp(-2, 2))
            new = (parameter == 0) | (specs[name].role in ("embed", "head"))
            parameter.copy_(torch.where(new, fresh.to(parameter.dtype), moved.to(parameter.dtype)))


@contextmanager
def _switched_off(stands: Sequence[Stand]) -> Iterator[None]:
    """Within the block these change nothing."""
    for stand in stands:
        stand.module.forward = lambda value, ctx: value  # type: ignore[method-assign]
    try:
        yield
    finally:
        for stand in stands:
            del stand.module.forward


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() <= ALLOWED * one.abs().max())


def _repeats(model: GPT, ids: torch.Tensor) -> bool:
    x = ids[:, :-1]
    return _same(model(x), model(x))


def _looks_back_only(model: GPT, ids: torch.Tensor) -> bool:
    x = ids[:, :-1]
    before, time = model(x), x.shape[1]
    for border in {border for border in (0, time // 3, time - 2) if 0 <= border < time - 1}:
        changed = x.clone()
        changed[:, border + 1 :] = (x[:, border + 1 :] + 1) % model.shape.vocab_size
        if not _same(before[:, : border + 1], model(changed)[:, : border + 1]):
            return False
    return True


def _prunes(model: GPT, ids: torch.Tensor) -> bool:
    x, y = ids[:, :-1], ids[:, 1:]
    whole, time = model(x, y, reduction="none"), x.shape[1]
    starts = {start for start in (1, time // 2, time - 1) if 0 < start < time}
    return all(_same(whole[:, start:], model(x, y, reduction="none", score_from=start)) for start in starts)


def _packs(model: GPT, ids: torch.Tensor) -> bool:
    x, y = ids[:1, :-1], ids[:1, 1:]
    if model.cannot_pack is not None or x.shape[1] < 2:
        return True
    cut = max(1, x.shape[1] // 3)
    borders = torch.tensor([0, cut, x.shape[1]], dtype=torch.int32)
    packed = model(x, y, reduction="none", borders=borders)
    alone = [model(x[:, part], y[:, part], reduction="none") for part in (slice(0, cut), slice(cut, None))]
    return _same(torch.cat(alone, 1), packed)


def _needs_no_unstored(model: GPT, ids: torch.Tensor) -> bool:
    x = ids[:, :-1]
    before = model(x)
    for name, spec in model.specs().items():
        if not spec.stored:
            model.get_parameter(name).normal_()
    return _same(before, model(x))
