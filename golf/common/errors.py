"""The errors golf raises on purpose; everything else is a bug and keeps its traceback.

A `GolfError` is shown to the user as its message alone (at most three lines: what is wrong, the value, the
choices or the command that helps), and the process ends with its `exit_code`.

Every command ends with 0 (done), 1 (failed: the work, or a file that it needed), 2 (a mistake on the line: nothing was
begun), 3 (done, but over a limit, or with a figure that is not what it seems), 75 (a run that a signal of the system's
stopped; what it had come to is kept) or 130 (interrupted at the keyboard). A sweep is done
when no job failed, whatever their limits; a worker that was killed hands on 128 and its signal's number, 137 for
SIGKILL.
"""

from __future__ import annotations

import difflib
import shlex
import signal
from collections.abc import Iterable


class GolfError(Exception):
    """Something the user can mend: the message says how. Ends the process with `exit_code`."""

    exit_code = 1


class ConfigError(GolfError):
    """A key, option, type or combination that cannot be run; raised before any work starts."""

    exit_code = 2


class DataError(GolfError):
    """Missing, empty or malformed data: shards, text files, tokenizer models."""


class ArtifactError(GolfError):
    """An artifact that is truncated, altered, of another version, or does not fit the model."""


class NonFiniteLoss(GolfError):
    """Training met a loss that is not a finite number; the last good state was kept."""

    def __init__(self, step: int, value: float, good_step: int) -> None:
        super().__init__(f"train_loss is {value} at step {step}: stopped; the state after step {good_step} was kept")
        self.step, self.good_step = step, good_step


class EvaluationTooLong(GolfError):
    """An evaluation that would overrun its limit of time was stopped; `projected_s` is what it would have taken."""

    def __init__(self, what: str, projected_s: float, limit_s: float, elapsed_s: float) -> None:
        super().__init__(
            f"the {what} evaluation would take about {projected_s:.1f} s, over the limit of {limit_s:g} s "
            f"(budget.eval_seconds): stopped after {elapsed_s:.1f} s\n"
            "a larger eval.stride, or fewer tokens, takes less"
        )
        self.what, self.projected_s, self.limit_s = what, projected_s, limit_s


class WorkerFailed(GolfError):
    """A worker process ended with an error that it has already printed."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class LostWorker(GolfError):
    """Another worker of this run is gone; the message says why, when it left word."""


STOPPED = 75
"""Exit code of a run that was told to stop by the system: sysexits.h has it for what may be tried again later."""
BY_SYSTEM = {
    signal.SIGTERM: "SIGTERM, a scheduler's or because what started it is gone,",
    signal.SIGHUP: "SIGHUP, a closed terminal,",
    signal.SIGQUIT: r"SIGQUIT, Ctrl-\,",
    signal.SIGUSR1: "SIGUSR1",
    signal.SIGUSR2: "SIGUSR2",
}
"""The signals by which the system, or who runs it, tells a run to stop; what each may mean."""


def stopping() -> list[int]:
    """Those of them that this process was not started to ignore, as it is by nohup."""
    return [number for number in BY_SYSTEM if signal.getsignal(number) is not signal.SIG_IGN]


class GolfInterrupted(GolfError):
    """Ctrl-C or a signal of the system's ended the run; its record says so. `saved`: the run's folder and the step of
    its last checkpoint, if it has one."""

    def __init__(self, step: int, by: int | None, saved: tuple[str, int] | None = None) -> None:
        told = BY_SYSTEM.get(by)  # type: ignore[call-overload]
        self.by_system = told is not None
        self.exit_code = STOPPED if self.by_system else 130
        how = f"stopped by {told}" if self.by_system else "interrupted"
        super().__init__(
            f"{how} after step {step}: the record and the weights so far were kept"
            + (f"\ngolf train resume={shlex.quote(saved[0])} goes on after step {saved[1]}" if saved else "")
        )


def told_of(error: BaseException) -> str:
    """What an error says of itself, or its type where it says nothing, as a MemoryError may."""
    return str(error) or type(error).__name__


def reason(error: BaseException, where: bool = True) -> str:
    """The line of a foreign error that tells what is wrong, its first line often being a heading.

    Of pydantic's error it is the first field's, with the field's name unless `where` is false; of an error that quotes
    a traceback the last line; of one that says nothing its type.
    """
    if callable(listed := getattr(error, "errors", None)) and (found := listed()):
        first = found[0]
        field = ".".join(str(part) for part in first["loc"]) if where else ""
        message = str(first["msg"]).removeprefix("Value error, ")
        return f"{field}: {message}" if field else message
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if any(line.startswith("Traceback (most recent call last)") for line in lines):
        return lines[-1]
    if lines[0].endswith(":") and len(lines) > 1:
        return f"{lines[0]} {lines[1]}"
    return f"{type(error).__name__}: {lines[0]}" if isinstance(error, LookupError) else lines[0]


def at_rest(code: int) -> int:
    """The exit code as it is; if it tells of Ctrl-C, one more does not tear what is registered to run at the exit."""
    if code == 130:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return code


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """A clause that names the nearest choice, or all of a few: `(did you mean 'x'?)` or `(choices: a, b)`."""
    known = sorted(set(choices))
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f"(did you mean '{near[0]}'?)"
    if 0 < len(known) <= 12:
        return f"(choices: {', '.join(known)})"
    return ""
