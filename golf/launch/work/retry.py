"""Runs that ran out of memory, started again with passes that are expected to fit: `runtime.retry_out_of_memory=true`.

A worker that meets the end of its memory puts down what would fit, in the run's folder. Whoever started the workers
looks there once they are gone, sets it in config.yaml, and starts a fresh set of them, which goes on from a checkpoint
where there is one. What the attempt left is kept under attempts/, and the record of the next tells of it.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from golf.common.errors import GolfError
from golf.common.files import atomic_writer, read_json, write_json
from golf.runs.folder import RunFolder
from golf.runs.store import Run

if TYPE_CHECKING:
    from golf.train.out_of_memory import OutOfMemory

FILE = "retried.json"
"""In a run's folder: a list of the attempts that ran out of memory."""


def attempts(directory: Path) -> list[dict[str, Any]]:
    """The attempts so far that ran out of memory: `tokens` of a pass, the `micro_tokens` that are expected to fit, what
    was told (`error`), and when (`at`); what is none of golf's reads as nothing."""
    with suppress(OSError, ValueError):
        found = read_json(directory / FILE)
        if isinstance(found, list) and all(map(_is_one, found)):
            return found
    return []


def _is_one(value: Any) -> bool:
    numbers = [value.get(name) for name in ("tokens", "micro_tokens")] if isinstance(value, dict) else []
    return bool(numbers) and all(type(one) is int and one > 0 for one in numbers)


def note(directory: Path, error: OutOfMemory) -> None:
    """Put down an attempt's end, so that its run is started again; nothing where no smaller pass would fit."""
    known = attempts(directory)
    if error.fits is None or (known and known[-1]["tokens"] <= error.tokens):  # another worker was quicker
        return
    at = datetime.now(UTC).isoformat(timespec="seconds")
    one = {"tokens": error.tokens, "micro_tokens": error.fits, "error": str(error).splitlines()[0], "at": at}
    with suppress(OSError, GolfError):
        write_json(directory / FILE, [*known, one])


def follow(directory: Path) -> str | None:
    """Set in a run's config what its last attempt said would fit; the line to tell, None where there is nothing to do.
    Raises GolfError for a config that cannot be written."""
    if not (known := attempts(directory)):
        return None
    runtime = (config := Run(directory).config).get("runtime")
    if not isinstance(runtime, dict) or runtime.get("retry_out_of_memory") is not True:
        return None
    tokens, fits = known[-1]["tokens"], known[-1]["micro_tokens"]
    if not fits < tokens or runtime.get("micro_tokens") == fits:
        return None
    runtime["micro_tokens"] = fits
    with atomic_writer(RunFolder(directory).config, "w") as file:
        yaml.safe_dump(config, file, sort_keys=False, allow_unicode=True)
    return f"{tokens:,} tokens a pass did not fit into memory: starts again with runtime.micro_tokens={fits}"
