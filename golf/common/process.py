"""A golf process: what it settles before torch is loaded, for itself and all that it starts, and its cores."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from golf.common.errors import GolfError
from golf.common.files import use_cache


class NotStarted(GolfError):
    """A program that the system did not start."""

    def __init__(self, command: Sequence[str], error: OSError) -> None:
        what = "the Python that golf runs in" if command[0] == sys.executable else "the program"
        super().__init__(f"cannot start {command[0]}, {what}: {error.strerror or error}")


def settle() -> None:
    """Set the environment up; call it before torch is imported, which reads it once. What the user has set stays.

    Threads that wait sleep: spinning ones starve neighbours, and each other where cores are few. No Python started
    from here imports from the working folder, where a user's queue.py would stand in the library's place.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    if (places := os.environ.get("PYTHONPATH", "").split(os.pathsep)) != [""]:
        # `PYTHONPATH=$PYTHONPATH:/x` where none was set: the empty place before the colon is the working folder
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, places))
    use_cache()


def usable_cores() -> int:
    """CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def python_command(module: str, *words: str) -> list[str]:
    """The command that runs a module in a Python of its own, which imports nothing from the working folder."""
    return [sys.executable, "-P", "-m", module, *words]


def started(command: Sequence[str], **how: Any) -> subprocess.Popen[bytes]:
    """A process that runs a command; how: as Popen takes it. Raises NotStarted."""
    try:
        return subprocess.Popen(command, **how)
    except OSError as error:
        raise NotStarted(command, error) from error
