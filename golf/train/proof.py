"""What can be proved of a figure on the model that is scored: that it looks at nothing it must not see.

A passage of real validation text, with a border between documents in it, is scored by the evaluators themselves. The
first forward of each shape is run again with later inputs changed: what was predicted before them must not move. Then
the passage is scored again with its later part changed, which the scores before it must not notice.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from golf.common.ranks import Ranks
from golf.evals.evaluators import Score, Scorer, Validation
from golf.evals.protocol import Evaluates
from golf.nn.live import same
from golf.nn.models.gpt import GPT
from golf.train.altered import Moved, Tried
from golf.train.memory import put_back, told
from golf.train.told_order import Order
from golf.train.vocabulary import OFF, summed

ROUNDING = 1e-4, 4.0
"""Root mean square of nats by which float32 sums of other lengths may differ; or so many times that between two lengths
of window."""
PROBE_S = 5.0
"""How long a run's end looks; what is not begun by then is not checked."""
WINDOWS = 2
"""Strides of the passage beyond its first window."""


@dataclass
class Proof:
    """What was proved, what could not be looked at and why, and what was found to be wrong; sentences for a record."""

    proved: list[str] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)
    """The violations, by what they are of."""

    def add(self, what: str, wrong: str | None, unknown: str | None = None) -> None:
        """One matter: wrong, not looked at, or proved."""
        if wrong is not None:
            self.violations.append(wrong)
            self.broken[what] = wrong
        elif unknown is not None:
            self.not_checked.append(f"{what} ({unknown})")
        else:
            self.proved.append(what)

    def __iadd__(self, other: Proof) -> Proof:
        self.proved += other.proved
        self.not_checked += other.not_checked
        self.violations += other.violations
        self.broken |= other.broken
        return self


def of_data(facts: Mapping[str, Any]) -> Proof:
    """Whether training read none of the validation text, as the record's facts of the data have it."""
    proof, told = Proof(), str(facts.get("disjoint") or "not checked: nothing says so")
    unknown = told.removeprefix("not checked").strip(" :") if told.startswith("not checked") else None
    proof.add("disjoint", None, unknown)
    return proof


@dataclass
class Found:
    """What one evaluator's passage came to."""

    moved: Moved
    changed: list[str]
    once: str | None
    blind: bool
    order: Order | None = None
    """Of one that adapts: the order in which it told its losses."""


class Prover:
    """Looks at one model, in evaluation mode with its weights in place, and at the evaluators that score it.

    forward: the model's, compiled or not; `fixed_shapes` as in Evaluator.evaluate. exact: builds the same model, with
    the same state, computing in float32 (None: the model does): in bfloat16 kernels for other lengths differ by more
    than what is looked for. seconds: when to begin nothing more (None: never). Every rank does the same.
    """

    def __init__(
        self, model: GPT, forward: Scorer, validation: Validation, fixed_shapes: bool = False,
        exact: Callable[[], GPT] | None = None, seconds: float | None = PROBE_S,
    ) -> None:  # fmt: skip
        self.model, self.forward, self.validation, self.fixed_shapes = model, forward, validation, fixed_shapes
        self.exact, self.seconds = exact, seconds
        self._until = math.inf

    def late(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() > self._until

    def prove(self, evaluators: Sequence[Evaluates], remembered: Sequence[str] = ()) -> Proof:
        """What the evaluators may rely on, the plain one first. remembered: what has changed in evaluations before."""
        proof = Proof()
        self._until = math.inf if self.seconds is None else time.monotonic() + self.seconds
        proof.add("pruned = whole", self.pruning(evaluators[0]))
        proof.add("sums to one", *self.sums())
        names, unknown, wrong, once = set(remembered), list[str](), list[str](), list[str]()
        orders = dict[str, Order]()
        for evaluator in evaluators:
            if wrong:
                break
            if self.late() and evaluator is not evaluators[0]:
                unknown.append(f"{evaluator.method}: over {self.seconds:g} s; golf check takes its time")
                continue
            try:
                found = self.look(evaluator)
            except Exception as error:  # a user's own evaluator may raise anything on so short a text
                unknown.append(f"{evaluator.method}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
                continue
            if not getattr(evaluator, "adapts", False):
                names |= set(found.changed)
            if found.blind:
                unknown.append(f"{evaluator.method} tells no token's loss")
            elif sentence := self._judged(evaluator, found.moved):
                wrong.append(sentence)
            if found.order is not None:
                orders[evaluator.method] = found.order
            if found.once is not None:
                once.append(f"{evaluator.method} {found.once}")
        names -= self._of_no_text(evaluators[0], names)
        proof.add("nothing remembered", None if not names else
                  f"an evaluation changed {told(names)}: what is remembered of the text that is scored is no part of "
                  "the artifact (an evaluator that adapts says adapts = True)")  # fmt: skip
        proof.add("causal", wrong[0] if wrong else None, "; ".join(unknown) or ("it remembers" if names else None))
        proof.add("once each", None, "; ".join(once) or ("; ".join(unknown) or None))
        at_once = [f"{method}: it tells its losses at once" for method, one in orders.items() if one.tellings < 2]
        turned = [f"eval ({method}) {one.wrong}: one that adapts makes one pass, from left to right, within each "
                  "document where `documents` says so" for method, one in orders.items() if one.wrong]  # fmt: skip
        proof.add("one pass", turned[0] if turned else None,
                  "; ".join([*unknown, *at_once]) or ("it remembers" if names else None))  # fmt: skip
        return proof

    def look(self, evaluator: Evaluates, forward: Scorer | None = None) -> Found:
        """Score the passage, every first forward tried, then again with its later part changed."""
        passage, bos = self._passage(evaluator), self.validation.bos_id
        text = passage.tokens
        tried = Tried(forward or self.forward, self._alter, self.late)
        score, nll, changed = self._scored(evaluator, tried, passage)
        moved, scored, window = tried.moved, ~nll.isnan(), evaluator.seq_len
        for last in {window // 2, window + getattr(evaluator, "stride", window) // 2}:  # in a window's midst
            if self.late() or not 0 < last < len(text) - 1:
                continue
            other = text.clone()
            other[last + 1 :] = self._alter(text[last + 1 :])
            _, again, more = self._scored(evaluator, forward or self.forward, replace(passage, tokens=other))
            by, before, changed = (again - nll)[scored], int(scored[: last + 1].sum()), changed | more
            if bool(by.isfinite().all()):
                moved.note(by[:before], by[before:])
        if getattr(evaluator, "documents", False) and bos is not None and not self.late():
            self._alone(evaluator, forward or self.forward, passage, nll, moved, bos)
        order = self._order(evaluator, passage) if getattr(evaluator, "adapts", False) else None
        return Found(moved, sorted(changed), self._once(score, nll, passage), tried.blind, order)

    def _order(self, evaluator: Evaluates, passage: Validation) -> Order:
        """Score the passage and see in which order its losses are told."""
        text, bos = passage.tokens, self.validation.bos_id
        losses, groups = torch.full(text.shape, torch.nan, device=text.device), torch.zeros_like(text)
        if getattr(evaluator, "documents", False) and bos is not None:
            groups = text.eq(bos).cumsum(0).roll(1)  # the border itself tells that the one before has ended
            groups[0] = 0
        order = Order(losses, groups)
        self._scored(evaluator, self.forward, passage, order.tensor)
        return order

    def _alone(
        self, evaluator: Evaluates, forward: Scorer, passage: Validation, nll: torch.Tensor, moved: Moved, bos: int
    ) -> None:
        """Change the first document of the passage: no later one may notice."""
        text = passage.tokens
        borders = torch.nonzero(torch.eq(text, bos))[:, 0]
        if not len(inner := borders[borders > 0]):
            return
        other, border = text.clone(), int(inner[0])
        other[:border] = self._alter(text[:border])
        by = self._scored(evaluator, forward, replace(passage, tokens=other))[1] - nll
        moved.note(by[border + 1 :].nan_to_num(), by[: border + 1].nan_to_num())

    def pruning(self, evaluator: Evaluates) -> str | None:
        """What is wrong where positions that are not scored are left out; None: it changes nothing."""
        window = min(evaluator.seq_len, self.model.longest, len(self.validation.tokens) - 1)
        text = self._passage(evaluator).tokens[None, : window + 1]
        x, y = text[:, :-1], text[:, 1:]
        starts = sorted({start for start in (window // 2, window - max(1, window // 8)) if 0 < start < window})
        cut = 3 * window // 4
        model = self.model if self.exact is None else self.exact()

        def holds() -> bool:
            whole = model(x, y, reduction="none")
            if not starts or not bool(whole.isfinite().all()):
                return True
            rounding = _rms(model(x[:, :cut], y[:, :cut], reduction="none") - whole[:, :cut]) if cut else 0.0
            most = max(ROUNDING[0], ROUNDING[1] * rounding)
            return all(_rms(model(x, y[:, start:], reduction="none") - whole[:, start:]) <= most for start in starts)

        with torch.no_grad(), put_back(model), self._eager():
            if holds():
                return None
            who = _blamed(holds, model)
        return f"{who}: a position's output depends on other positions, which are left out where only the last are " \
               "scored: it must say mixes_time = True"  # fmt: skip

    def sums(self) -> tuple[str | None, str | None]:
        """What is wrong with the probabilities of all tokens at some positions, and why it was not looked at."""
        model = self.model if self.exact is None else self.exact()
        with torch.no_grad(), put_back(model), self._eager():
            total = summed(model, self.validation.tokens, self.late)
        if total is None or not bool(total.isfinite().all()):
            late = f"over {self.seconds:g} s; golf check takes its time"
            return None, late if total is None else "the loss is not finite"
        worst = float(total[(total - 1).abs().argmax()])
        wrong = f"the model's loss is no probability's: over the vocabulary they sum to {worst:.4f} at a position"
        return None if abs(worst - 1) <= OFF else wrong, None

    def _judged(self, evaluator: Evaluates, moved: Moved) -> str | None:
        """What is wrong with the evaluator's figures, naming what does it; None: nothing."""
        for wrong, sentence in (
            ("unsteady", "the same text has another score each time: it draws, or remembers what it has read"),
            ("ahead", "text that comes later changes an earlier prediction: it looks ahead, or across a border"),
        ):
            if getattr(moved, wrong):
                self._until = math.inf  # who it is must be told

                def holds(wrong: str = wrong) -> bool:
                    return not getattr(self.look(evaluator, self.model).moved, wrong)

                with self._eager():
                    who = _blamed(holds, self.model)
                own = not type(evaluator).__module__.startswith("golf.") and evaluator.method != "contiguous"
                return f"{f'eval ({type(evaluator).__name__})' if own and who == 'model' else who}: {sentence}"
        return None

    def _of_no_text(self, evaluator: Evaluates, names: set[str]) -> set[str]:
        """Which of these come to the same whatever text was read: caches, such as a mask of some length."""
        if not names:
            return set()
        passage = self._passage(evaluator)
        came = []
        for one in (passage, replace(passage, tokens=self._alter(passage.tokens))):
            with put_back(self.model) as changed:
                evaluator.score(self.model, self.model, one, Ranks())
            came.append(dict(changed))
        free = names - set(self.model.state_dict())
        return {name for name in free if all(name in one for one in came) and same(came[0][name], came[1][name])}

    def _eager(self) -> AbstractContextManager[Any]:
        """Within the block nothing is compiled: what is tried here once has shapes and parts of its own."""
        return torch.compiler.set_stance("force_eager") if self.fixed_shapes else nullcontext()

    def _scored(
        self, evaluator: Evaluates, forward: Scorer, passage: Validation, nll: torch.Tensor | None = None
    ) -> tuple[Score, torch.Tensor, dict[str, Any]]:
        if nll is None:
            nll = torch.full(passage.tokens.shape, torch.nan, device=passage.tokens.device)
        with put_back(self.model) as changed:
            score = evaluator.score(
                self.model, forward, passage, Ranks(), self.fixed_shapes, limit_s=self.seconds, nll=nll,
            )  # fmt: skip
        return score, nll, changed

    def _once(self, score: Score, nll: torch.Tensor, passage: Validation) -> str | None:
        """Why not every target of the passage was counted exactly once, with the bytes that it stands for."""
        scored = ~nll.isnan()
        if not bool(scored.any()):
            return "tells no token's loss"
        if int(scored.sum()) < len(nll) - 1 or score.targets != len(nll) - 1:
            return f"leaves targets out: coverage {score.coverage}"
        whole = float(nll[scored].double().sum())
        counted = int(passage.charges().sum())
        if not math.isclose(score.val_loss * score.targets, whole, rel_tol=1e-4) or score.bytes != counted:
            return "has another sum than its tokens' losses and bytes come to"
        return None

    def _passage(self, evaluator: Evaluates) -> Validation:
        """Some windows of the stream, with a border a third of the way in where there is one."""
        tokens, window = self.validation.tokens, evaluator.seq_len
        more = min(window, WINDOWS * getattr(evaluator, "stride", window))
        if getattr(evaluator, "coverage", "full") != "full":
            more = window
        length, third = min(len(tokens), window + more + 1), window // 3
        start = 0
        if self.validation.bos_id is not None:
            borders = (tokens == self.validation.bos_id).nonzero()[:, 0]
            fit = borders[(borders >= third) & (borders - third + length <= len(tokens))]
            start = int(fit[len(fit) // 2]) - third if len(fit) else 0
        return self.validation.part(start, length)

    def _alter(self, ids: torch.Tensor) -> torch.Tensor:
        """Other tokens in place of these; borders stay, and none is made, so that documents are the same."""
        vocabulary, border = self.model.shape.vocab_size, self.validation.bos_id
        generator = torch.Generator().manual_seed(ids.numel())
        by = torch.randint(1, max(2, vocabulary), ids.shape, generator=generator).to(ids.device)
        other = (ids + by) % vocabulary
        if border is None:
            return other
        other = torch.where(other == border, (other + 1) % vocabulary, other)
        return torch.where(ids == border, ids, other)


def _blamed(holds: Callable[[], bool], model: GPT) -> str:
    """The technique without which it holds; several where it takes them together; else the model."""
    names = [name for name in model.technique_names if any(one.on for one in model.techniques(name))]
    for group in ([name] for name in names):
        with _off(model, group):
            if _quietly(holds):
                return f"technique/{group[0]}"
    with _off(model, names):
        return f"techniques {', '.join(names)}" if len(names) > 1 and _quietly(holds) else "model"


@contextmanager
def _off(model: GPT, names: Sequence[str]) -> Iterator[None]:
    """Within the block these techniques take no part."""
    instances = [one for name in names for one in model.techniques(name) if one.on]
    for one in instances:
        one.on = False
    try:
        yield
    finally:
        for one in instances:
            one.on = True


def _quietly(holds: Callable[[], bool]) -> bool:
    try:
        return holds()
    except Exception:  # another one cannot do without it
        return False


def _rms(by: torch.Tensor) -> float:
    return float(by.double().square().mean().sqrt())
