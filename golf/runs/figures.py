"""The figures that runs are compared by: their names in result.json, their order, and which may be compared."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from golf.runs.dotted import dig

PRE_QUANT, POST_QUANT, SLIDING = "val_bpb.pre_quant", "val_bpb.post_quant", "val_bpb.sliding"
FINAL = "val_bpb.final"
"""Of the quantized model by the run's own method, the eval group's: what a submission would claim."""
BY_METHOD = "val_bpb.by_method."
"""Before a method's name, a user's own included: of the quantized model by that method."""
SCORES = (FINAL, SLIDING, POST_QUANT, PRE_QUANT)
"""Bits per byte that runs may be ranked by; the first that a run has is its score."""
FIGURES = (*SCORES, "quant_gap", "bytes.artifact", "steps", "tokens", "train_time_s")

STAGES = {PRE_QUANT: (("averaged", "stop"), "contiguous"), POST_QUANT: (("quantized",), "contiguous"),
          SLIDING: (("quantized",), "sliding")}  # fmt: skip
"""Which evaluation a figure is of: its stage, the first that there is, and its method."""


def is_score(name: str) -> bool:
    """Whether a name is one of a run's bpb."""
    return name.startswith("val_bpb")


def named(record: Mapping[str, Any]) -> list[str]:
    """The figures of a record by methods that have no name among `FIGURES`."""
    methods = dig(record, BY_METHOD.rstrip("."))
    known = {method for _, method in STAGES.values()}
    return [f"{BY_METHOD}{one}" for one in methods if one not in known] if isinstance(methods, dict) else []


def val_bpb(evals: Sequence[Mapping[str, Any]], method: str | None = None) -> dict[str, Any]:
    """The named bpb figures of a run's evaluations; of several of a kind the last counts.

    `pre_quant` is the contiguous score of the weights that were then quantized: the averaged ones, or those at stop
    when nothing was averaged. `method` is the run's own; None: that of the last evaluation of the quantized model.
    """
    scores = {(one["stage"], one["method"]): one["val_bpb"] for one in evals}
    quantized = {by: score for (stage, by), score in scores.items() if stage == "quantized"}
    own = method or next((one["method"] for one in reversed(evals) if one["stage"] == "quantized"), None)
    averaged = any(stage == "averaged" for stage, _ in scores)
    return {
        "pre_quant": scores.get(("averaged" if averaged else "stop", "contiguous")),
        "post_quant": quantized.get("contiguous"),
        "sliding": quantized.get("sliding"),
        "final": quantized.get(own),
        "by_method": quantized,
    }


def filled(record: dict[str, Any]) -> dict[str, Any]:
    """A record from before `final` and `by_method`, with them; any other as it is."""
    given, evals = record.get("val_bpb"), record.get("evals")
    if not isinstance(given, dict) or "final" in given or not isinstance(evals, list) or not evals:
        return record
    try:
        found = val_bpb(evals)
    except (KeyError, TypeError):
        return record
    stopped = any("evaluation would take" in str(one) for one in record.get("violations") or ())
    more = {"final": None if stopped else found["final"], "by_method": found["by_method"]}
    return {**record, "val_bpb": {**more, **given}}


@dataclass(frozen=True)
class Basis:
    """A bpb's identity: of which text, how much of it in which tokens, by which rules, and of which weights.

    `source` is the hash of all data, `text` that of the validation text (of an older record, how many documents and
    bytes it is): the same where the sources differ in training text, or are exports of one text for two tokenizers.
    """

    method: str
    stride: Any
    seq_len: Any
    coverage: Any
    source: Any
    text: Any
    tokenizer: Any
    targets: int
    bytes: int
    stage: str = "quantized"

    def compares(self, other: Basis) -> bool:
        """Whether the two are of the same text by the same rules. Of two tokenizers the same bytes must be scored, but
        for what falls out at the stream's ends."""
        if self.rules != other.rules or (self.source != other.source and self.text != other.text):
            return False
        if self.tokenizer == other.tokenizer:
            return (self.targets, self.bytes) == (other.targets, other.bytes)
        return math.isclose(self.bytes, other.bytes, rel_tol=0.01)

    @property
    def rules(self) -> tuple[Any, ...]:
        """How it is scored, and of weights before or after quantization (averaged ones or not: that is compared)."""
        return self.method, self.stride, self.seq_len, self.coverage, self.stage == "quantized"

    def __str__(self) -> str:
        stride = "" if self.stride in (None, self.seq_len) else f", stride {self.stride}"
        told = f"{self.method}, {self.seq_len} tokens{stride}, {self.bytes:,} bytes of text"
        return told if self.coverage in (None, "full") else f"{told} ({self.coverage})"


def basis(record: Mapping[str, Any], name: str) -> Basis | None:
    """What a run's figure is of; None where its record doesn't say."""
    one, data = evaluation(record, name), record.get("data")
    if one is None:
        return None
    text = dig(data, "splits.val.text_sha256") or (dig(data, "splits.val.documents"), dig(data, "splits.val.bytes"))
    try:
        return Basis(
            str(one["method"]), one.get("stride"), one["seq_len"], one.get("coverage"), dig(data, "source_hash"),
            text, dig(data, "tokenizer_hash"), int(one["targets"]), int(one["bytes"]), str(one["stage"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError):
        return None


def evaluation(record: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """The evaluation in a record that gave one of its bpb; None where there is none."""
    given = record.get("evals")
    evals = [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []
    stages, method = STAGES.get(name, (("quantized",), name.removeprefix(BY_METHOD)))
    score = dig(record, name)
    of = [
        one for stage in stages for one in reversed(evals)
        if one.get("stage") == stage and (one.get("val_bpb") == score if name == FINAL else one.get("method") == method)
    ]  # fmt: skip
    return of[0] if of and is_score(name) else None


def kinds(bases: Iterable[Basis | None]) -> list[int | None]:
    """For each figure the number of its kind: those of one kind may be compared. None is of no kind that is known."""
    firsts: list[Basis] = []
    found: list[int | None] = []
    for one in bases:
        if one is None:
            found.append(None)
            continue
        number = next((number for number, first in enumerate(firsts) if first.compares(one)), len(firsts))
        firsts += [one] if number == len(firsts) else []
        found.append(number)
    return found


SCORED_BY = "scored by"
"""The column that says what a run's bpb is of, where the runs' are not alike."""


@dataclass(frozen=True)
class Sorting:
    """Figures by kind: `numbers` from 0, the kind of most of them, to that of which nothing is known; `labels` say of
    each what it is of. Only figures of one number may be compared."""

    numbers: list[int]
    labels: list[str]

    @property
    def differ(self) -> bool:
        """Whether there is more than one kind."""
        return len(set(self.numbers)) > 1

    def left_out(self, name: str) -> str:
        """What to say where only the first kind is compared; empty where there is no other."""
        others = [label for number, label in zip(self.numbers, self.labels) if number]
        if not others:
            return ""
        told = "; ".join(f"{others.count(label)} {label}" for label in dict.fromkeys(others))
        return f"not compared, as their {name} is of other text or by other rules: {told}"


def sort_out(bases: Sequence[Basis | None]) -> Sorting:
    """Number and name the kinds of these figures."""
    found = kinds(bases)
    order = sorted(set(found), key=lambda number: (number is None, -found.count(number), number or 0))
    first = {number: next(told for told, one in zip(bases, found) if one == number) for number in order}
    labels = {number: "unknown" if told is None else str(told) for number, told in first.items()}
    alike = list(labels.values())
    for place, number in enumerate(order):
        if alike.count(labels[number]) > 1:  # alike in words, of another text
            labels[number] = f"{labels[number]}, {place + 1}"
    return Sorting([order.index(number) for number in found], [labels[number] for number in found])


def says_more(values: Mapping[str, Sequence[Any]], than: Sequence[str] = (SLIDING, POST_QUANT)) -> bool:
    """Whether `final` is worth a column: in some run it is another figure than each of the others (values by name)."""
    return all(list(values.get(name, ())) != list(values.get(FINAL, ())) for name in than)
