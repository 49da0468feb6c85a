"""The field's rules, one row each: what was done, whether it held, and the figure; read from a record and its proof.

A rule that was not looked at is not held: its row says how it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from golf.data.manifests import BY_HASH
from golf.runs.figures import FINAL, basis
from golf.runs.record import BOUND

State = Literal["pass", "fail", "not run"]


class Rule(NamedTuple):
    """One row."""

    rule: str
    state: State
    told: str


PROVED = {
    "artifact alone": ("the artifact alone gives the figure", "read back into a model that did not train"),
    "causal": ("no prediction sees later text", "later tokens and other documents changed, through the evaluator"),
    "sums to one": ("probabilities sum to 1", "summed over the whole vocabulary at sampled positions"),
    "once each": ("every target is scored once", "counted over a passage, with the bytes of the byte table"),
    "one pass": ("one left-to-right pass", "the order in which losses are told; a model that stays the same has none"),
    "nothing remembered": ("nothing is remembered of scored text", "the model before and after, the same text twice"),
    "validation unread": (
        "training reads no validation tokens",
        "its files and tokens watched until the artifact was made",
    ),
    "bytes counted": ("the code reads nothing uncounted", "files and modules that own code opens"),
}
"""What a proof says by a word, as rules, and how it is looked at."""
COMPARED = "the text is that of what it is compared with"
LOOKS = {"validation unread": "golf train watches, and puts it into the record"}
"""Where that is to be had which no later command can look at."""
SEEN_THEN = ("validation unread", "bytes counted")
"""What a run alone can see, as it goes."""


def rules(record: Mapping[str, Any], beside: Rule | None = None) -> list[Rule]:
    """Every rule's row. record: a result.json's fields, `proof` and `violations` as they were found last. beside: the
    last row, of what it is `compared` with."""
    proof, data = record.get("proof") or {}, record.get("data") or {}
    last = beside or Rule(COMPARED, "not run", "golf check run=DIR against=DIR looks")
    return [*_limits(record), *_proved(proof), *_of_text(data), last]


def compared(record: Mapping[str, Any], others: Sequence[Mapping[str, Any]], what: str, named: bool) -> Rule | None:
    """Whether a run's figure is of the text, and by the rules, of other runs' (their records). what: says who they are.
    named: they were asked for, so that a difference is a failure. None: there is nothing to compare."""
    own = basis(record, FINAL)
    kinds = [one for one in (basis(other, FINAL) for other in others) if one is not None]
    if own is None or not kinds:
        return Rule(COMPARED, "not run", f"{what}: the records do not say it") if named else None
    strange = [one for one in kinds if not own.compares(one)]
    if not strange:
        more = f", {len(others) - len(kinds)} unknown" if len(kinds) < len(others) else ""
        return Rule(COMPARED, "pass", f"{what}: {len(kinds)} scored as this one is: {own}{more}")
    told = f"{what}: {len(strange)} of {len(kinds)} are of other text or rules: {strange[0]}; this one: {own}"
    return Rule(COMPARED, "fail" if named else "not run", told)


def unseen(told: Mapping[str, str], otherwise: str) -> list[Rule]:
    """The rows that a run's record alone can fill, not run. told: what says more of one, by its word in `PROVED`."""
    rows = [Rule(rule, "not run", told.get(word, otherwise)) for word, (rule, _) in PROVED.items() if word not in
            ("artifact alone", "bytes counted")]  # fmt: skip
    return [*rows, *(Rule(one, "not run", otherwise) for one in (*(row.rule for row in _of_text({})), COMPARED))]


def _limits(record: Mapping[str, Any]) -> list[Rule]:
    counted, budget = record.get("bytes") or {}, record.get("budget") or {}
    scored = [one["seconds"] for one in record.get("evals") or [] if one["stage"] == "quantized"]
    found = []
    if counted.get("limit") is None:
        found.append(Rule("bytes of artifact and code", "not run", "the run has no limit: budget.artifact_bytes"))
    else:
        which = ", the code's an upper bound" if str(counted.get("code_is", BOUND)).startswith(BOUND) else ""
        found.append(_within("bytes of artifact and code", counted["artifact"], counted["limit"], which))
    for rule, seconds, key in (
        ("seconds of training and calibration", record.get("train_time_s"), "train_seconds"),
        ("seconds of evaluation", max(scored, default=None), "eval_seconds"),
    ):
        limit = budget.get(key)
        if seconds is None or limit is None:
            what = "nothing was scored" if seconds is None else f"the run has no limit: budget.{key}"
            found.append(Rule(rule, "not run", what))
        else:  # the last step may overrun the clock, so that what the run's end said counts
            late = [one for one in record.get("violations") or [] if f" over the limit of {limit:g} s" in one]
            wrong = any(("training" in one) == (key == "train_seconds") for one in late)
            found.append(Rule(rule, "fail" if wrong else "pass", f"{seconds:,.1f} of {limit:,g}"))
    return found


def _within(rule: str, value: int, limit: int, more: str) -> Rule:
    return Rule(rule, "pass" if value <= limit else "fail", f"{value:,} of {limit:,}{more}")


def _proved(proof: Mapping[str, Any]) -> list[Rule]:
    found, broken = [], proof.get("broken") or {}
    for word, (rule, how) in PROVED.items():
        unknown = next((one for one in proof.get("not_checked") or [] if one.partition(" (")[0] == word), None)
        if word in broken:
            found.append(Rule(rule, "fail", broken[word]))
        elif word in (proof.get("proved") or []):
            found.append(Rule(rule, "pass", how))
        elif word != "bytes counted":  # which golf's own code alone has no need of
            looks = LOOKS.get(word, "golf check run=DIR looks")
            told = unknown.partition(" (")[2].rstrip(")") if unknown else looks
            found.append(Rule(rule, "not run", told))
    return found


def _of_text(data: Mapping[str, Any]) -> list[Rule]:
    bytes_, trained = data.get("byte_proof") or {}, str(data.get("tokenizer_training") or "unknown")
    seen: State = "not run" if trained.startswith("unknown") else "pass"
    return [
        Rule("the byte table counts the text's bytes", "pass" if bytes_.get("proved") else "not run",
             f"over {bytes_['documents']:,} validation documents" if bytes_.get("proved") else
             "shards without text: data=text or data=fineweb proves it"),
        Rule("no validation document is training text", *_apart(data)),
        Rule("the tokenizer saw no validation text", seen, trained),
    ]  # fmt: skip


def _apart(data: Mapping[str, Any]) -> tuple[State, str]:
    """Whether training and validation are apart, as manifest and shards have it, and what proves it."""
    told, overlap = str(data.get("disjoint") or "not checked"), data.get("overlap") or {}
    texts, copies = data.get("texts_apart") or {}, int(data.get("copies_in_training") or 0)
    hashed = BY_HASH.format(**texts) if texts else ""
    if texts.get("both"):
        return "fail", hashed
    counted = f"{copies:,} training documents are validation documents, token for token"
    published = data.get("source") == "fineweb"  # what is in it twice is so for every run of the challenge
    if copies and not published:
        return "fail", counted
    share = f"near copies: {overlap['share']:.1%} of a sample" if overlap.get("share") is not None else ""
    parts = [told.partition(": ")[2], hashed, counted if copies else "", share]
    return "not run" if told.startswith("not checked") else "pass", "; ".join(filter(None, parts))
