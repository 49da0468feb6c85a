"""Standard output into a pipe whose reader has gone, as in `golf train | head -1`: the work goes on, in silence."""

from __future__ import annotations

import io
import os
import sys

from golf.common.errors import GolfError


class _Outliving(io.FileIO):
    """A descriptor that takes what nobody reads any more for written."""

    def write(self, data: bytes) -> int:  # type: ignore[override]
        """The bytes taken; all of them once the reader has gone. Raises GolfError, once, where it cannot be written."""
        try:
            return super().write(data)
        except OSError as error:
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, self.fileno())  # for the processes that are started later, too
            os.close(silence)
            if not isinstance(error, BrokenPipeError):
                raise GolfError(f"cannot write the output: {error.strerror}") from error
            return len(data)


def outlive_readers() -> None:
    """Let this process go on when the reader of its standard output or error goes away; call it once, at the start.

    Terminals and files are left as they are.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper) or stream.isatty():
            continue
        try:
            raw = _Outliving(stream.fileno(), "wb", closefd=False)
        except (OSError, ValueError):  # closed, or no descriptor at all
            continue
        stream.flush()
        setattr(sys, name, io.TextIOWrapper(
            io.BufferedWriter(raw), encoding=stream.encoding, errors=stream.errors,
            line_buffering=stream.line_buffering, write_through=stream.write_through,
        ))  # fmt: skip
