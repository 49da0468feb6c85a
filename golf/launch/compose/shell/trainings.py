"""Which trainings a pasted shell text starts, each with the environment variables that its script would see."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from golf.common.errors import ConfigError
from golf.launch.compose.shell.launchers import stem
from golf.launch.compose.shell.text import Scope, cleaned
from golf.launch.compose.shell.walk import Training, Walk, shortened


@dataclass
class Reading:
    """A text's trainings in order, and notes for the user: what was read and is not used."""

    trainings: list[Training]
    notes: list[str]


def read(text: str, known: frozenset[str] = frozenset()) -> Reading:
    """The trainings of a text. Without any, what its variables and the commands behind them say is one.

    `known` are variables that count though they were set without `export`. Raises ConfigError for what is no shell
    command, and for a condition or a loop that decides about a training.
    """
    plain, notes = cleaned(text)
    walk = Walk(known)
    scope = Scope()
    walk.text(plain, scope)
    chosen = _chosen(walk)
    served = (scope.used | walk.looped) - known
    for one in chosen:
        _without_shells_own(one, served, known)
        if both := [name for name in one.variables if name in served]:
            notes.append(f"{', '.join(both)}: used in the text itself, and read by no script of the records")
        one.variables = {name: text for name, text in one.variables.items() if name not in served}
    if not chosen:
        free = {name for name in scope.variables if name in scope.exported | known or name not in scope.used}
        variables = {name: text for name, text in scope.variables.items() if name in free - walk.looped}
        for shown, given in walk.with_variables:
            variables |= given
            walk.ignored.append(f"{shown} (but for its variables)")
        chosen = [Training(variables, "")] if variables else []
    else:
        walk.ignored += [shown for shown, _ in walk.with_variables]
    return Reading(chosen, [*dict.fromkeys(notes), *_told(walk, scope, chosen)])


def _without_shells_own(training: Training, served: set[str], known: frozenset[str]) -> None:
    """Leave out variables that the shell keeps to itself.

    Those set without export are taken for the script's where one of them is known to be, as in a list of settings
    above the command; what only served another word (`--nproc_per_node=$N`) is not.
    """
    plain = training.unexported
    taken = [name for name in plain if name not in served] if known.intersection(plain) else []
    training.unexported = taken
    for name in set(plain) - set(taken):
        del training.variables[name]


def _chosen(walk: Walk) -> list[Training]:
    """The starts of train_gpt.py, else of other scripts that train."""
    for wanted in (r"train_gpt", r".*"):
        found = [one for one in walk.started if re.match(wanted, stem(one.script))]
        if found:
            walk.ignored += [one.script for one in walk.started if one not in found]
            return found
    return []


def _told(walk: Walk, scope: Scope, chosen: Sequence[Training]) -> Iterator[str]:
    """What was read and not used, a line each. Raises ConfigError where that is a variable golf would translate."""
    yield from dict.fromkeys(walk.notes)
    if chosen and chosen[0].script:
        last = chosen[-1].variables
        late = {name for name, when in walk.assigned.items() if when >= len(walk.started) and name in scope.variables}
        late = {name for name in late - walk.looped if scope.variables[name] != last.get(name)}
        seen = {name for one in chosen for name in one.variables} | scope.used
        lost = [name for name in walk.assigned if name in (late - scope.used) or name not in seen]
        told = f"{', '.join(lost)}: set, but not before the command that trains, which does not see it"
        if walk.known.intersection(lost):
            raise ConfigError(f"{told}\nput the assignments before that command, or leave them out")
        if lost:
            yield told
    if plain := list(dict.fromkeys(name for one in chosen for name in one.unexported)):
        yield f"{', '.join(plain)}: set without export, so that a shell keeps it to itself; taken all the same"
    if walk.ignored:
        yield f"not used: {'; '.join(dict.fromkeys(map(shortened, walk.ignored)))}"
