"""One logger, `golf`: rank 0 speaks on the console and in train.log, every other rank in a file of its own.

Components call `logging.getLogger("golf")` (here: `logger`) and know nothing of handlers; a command calls
`setup` once per run.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from golf.common.errors import GolfError
from golf.common.secret import without_keys
from golf.common.shown import plain_text

if TYPE_CHECKING:
    from rich.console import Console

logger = logging.getLogger("golf")

FILE_ONLY = {"file_only": True}
"""`extra=FILE_ONLY` keeps a line out of the console, where a live display already shows it."""

_current: RunLog | None = None


class RunLog:
    """The handlers of one run; `close` (or leaving its `with` block) removes them."""

    def __init__(self, handlers: list[logging.Handler]) -> None:
        self._handlers = handlers
        self._propagate = logger.propagate
        logger.propagate = False  # Hydra's root handlers would print every line a second time
        for handler in handlers:
            logger.addHandler(handler)

    def close(self) -> None:
        """Remove and close this run's handlers; later calls do nothing."""
        global _current
        for handler in self._handlers:
            logger.removeHandler(handler)
            handler.close()
        self._handlers = []
        if _current is self:
            logger.propagate = self._propagate
            _current = None

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def setup(rank: int, file: Path | None, console: bool = True, level: int = logging.INFO) -> RunLog:
    """Point the `golf` logger at one run and return its handlers.

    Rank 0 writes to the console (colours on a terminal, plain lines in a pipe) and appends to `file`; rank r > 0
    appends to `rank<r>.log` beside it and never speaks. A process serves one run at a time: a new call replaces
    the handlers of the last one, so that calling twice repeats no line. Raises GolfError when the file cannot be
    opened.
    """
    global _current
    if _current is not None:
        _current.close()
    handlers: list[logging.Handler] = []
    if file is not None:
        handlers.append(_file_handler(Path(file) if rank == 0 else Path(file).with_name(f"rank{rank}.log")))
    if console and rank == 0:
        handlers.append(_console_handler())
    if not handlers:
        handlers.append(logging.NullHandler())
    logger.setLevel(level)
    _current = RunLog(handlers)
    return _current


def interactive(stream: TextIO | None = None) -> bool:
    """Whether standard output, or another stream, is a terminal that can redraw a line."""
    return (stream or sys.stdout).isatty() and os.environ.get("TERM", "") not in ("", "dumb")


@functools.cache
def screen(stderr: bool = False) -> Console:
    """The one console of a stream: what is printed there stands above its live display."""
    from rich import get_console
    from rich.console import Console

    return Console(stderr=True) if stderr else get_console()


def stderr_handler() -> logging.Handler:
    """Plain lines on standard error."""
    if interactive(sys.stderr):
        return ScreenHandler(screen(stderr=True), stamped=False)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(message)s"))
    return handler


def _file_handler(path: Path) -> logging.Handler:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise GolfError(f"cannot write the log {path}: {error.strerror}") from error
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(message)s"))
    return handler


def _console_handler() -> logging.Handler:
    handler: logging.Handler
    if interactive():
        handler = ScreenHandler(screen())
    else:
        handler = _StdoutHandler()
        handler.setFormatter(_PlainFormatter("%(message)s"))
    handler.addFilter(lambda record: not getattr(record, "file_only", False))
    return handler


class _FileHandler(logging.FileHandler):
    """A file that may cease to be writable: that is said once, and nothing ends for it."""

    _told = False

    def handleError(self, record: logging.LogRecord) -> None:
        """One line, where logging has a traceback for each."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._told:
            self._told = True
            print(f"golf: cannot write {self.baseFilename}: {error.strerror}; lines are lost", file=sys.stderr)

    def close(self) -> None:
        """Close it, with what could be written."""
        with suppress(OSError):
            super().close()


class ScreenHandler(logging.Handler):
    """Lines on a terminal, above a live display; none is folded, so that a path in it can be copied whole."""

    def __init__(self, console: Console, stamped: bool = True) -> None:
        """`stamped`: with the time of day before each."""
        from rich.highlighter import ReprHighlighter

        super().__init__()
        self.console, self.stamped, self._highlight = console, stamped, ReprHighlighter()
        self.setFormatter(_Formatter("%(message)s", "%H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        from rich.text import Text

        try:
            message = self._highlight(Text(self.format(record)))
            if record.levelno >= logging.WARNING:
                message.stylize("red" if record.levelno >= logging.ERROR else "yellow")
            stamp = time.strftime("%H:%M:%S ", time.localtime(record.created)) if self.stamped else ""
            self.console.print(Text.assemble((stamp, "log.time"), message), soft_wrap=True)
        except Exception:
            self.handleError(record)


class _StdoutHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to whatever `sys.stdout` is when the line is emitted."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stdout
        super().emit(record)


class _Formatter(logging.Formatter):
    """Without keys, and without what would steer a terminal: a message may quote a record, a path or a command."""

    def format(self, record: logging.LogRecord) -> str:
        return plain_text(without_keys(super().format(record)))


class _PlainFormatter(_Formatter):
    """The message alone; a warning or worse says what it is."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f"{record.levelname.lower()}: {text}" if record.levelno >= logging.WARNING else text
