"""The words for what becomes of a run or of a sweep's job: one vocabulary, wherever it is kept, shown or asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

Status = Literal["completed", "interrupted", "failed"]
"""How a run ended, as result.json has it; whether it is valid stands beside it."""

State = Literal[
    "completed", "invalid", "waiting", "prepared", "running", "pruned", "interrupted", "failed", "skipped"
]  # fmt: skip
"""Status and validity in one word.

`completed` is within every limit, `invalid` completed but over one. Before its end a run is `prepared` or `running`, a
sweep's job `waiting`; a search leaves jobs `pruned`, and one whose result is known is `skipped`.
"""

STATES: tuple[State, ...] = get_args(State)
SCORED: tuple[State, ...] = ("completed", "invalid")
"""States of a run that came to its end, so that its figures are final."""
ENDED: tuple[State, ...] = (*SCORED, "pruned", "interrupted", "failed", "skipped")

_LIMITS = {"artifact bytes": "the artifact is ", "training time": "training took ", "evaluation time": " evaluation "}
"""The limits, and words of the sentence that says that one was passed (`golf.runs.record.find_violations`)."""


PRUNED = "pruned: "
"""How the error of an interrupted run begins that a search gave up."""


def state_of(status: str, valid: bool, error: str = "") -> State:
    """The word for a record's status, validity and error; a status that is none of them is a failure."""
    if status == "completed":
        return "completed" if valid else "invalid"
    if status == "interrupted" and error.startswith(PRUNED):
        return "pruned"
    return next((state for state in STATES if state == status and state != "invalid"), "failed")


def over(violations: Sequence[str]) -> str:
    """What `invalid` is about: `over artifact bytes, training time`; nothing for sentences about no limit."""
    passed = [limit for limit, words in _LIMITS.items() if any(words in sentence for sentence in violations)]
    return f"over {', '.join(passed)}" if passed else ""


def verdict(state: State, violations: Sequence[str]) -> str:
    """A state as a line says it: `invalid: over artifact bytes`, and the others as they are."""
    if state != "invalid":
        return state
    return f"invalid: {over(violations) or '; '.join(violations) or 'over a limit'}"
