"""One line at the foot of a terminal that says what goes on, redrawn whatever the main thread waits for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from golf.common.log import screen
from golf.runs.tables import cells

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.text import Text

REDRAWS_A_SECOND = 2
"""A redraw takes a millisecond of a core, and nothing of a GPU."""
BAR = (8, 24)
"""Cells of the bar, at least and at most."""


@dataclass(frozen=True)
class Said:
    """What the line says: what goes on, how far it is (a fraction, None where nobody knows), and texts.

    parts: texts with how soon each may be left out: 0 never, of the others the largest first.
    """

    what: str
    fraction: float | None = None
    parts: Sequence[tuple[int, str]] = field(default_factory=list)


class LiveLine:
    """Shows what `say` answers, from `start` to `stop`; nothing where it answers None.

    A thread asks twice a second, so that the line moves while a step, a compiler or an evaluation takes its time. `say`
    must be quick and touch no device.
    """

    def __init__(self, say: Callable[[], Said | None], stderr: bool = False) -> None:
        self.say, self.stderr = say, stderr
        self._display: Any = None

    @property
    def running(self) -> bool:
        """Whether the line is there."""
        return self._display is not None

    def start(self) -> None:
        """Show it; does nothing when it is there already."""
        if self._display is not None:
            return
        from rich.live import Live

        self._display = Live(
            self,
            console=screen(self.stderr),
            refresh_per_second=REDRAWS_A_SECOND,
            transient=True,
            redirect_stdout=not self.stderr,
        )
        self._display.start()

    def stop(self) -> None:
        """Take it away; safe to call twice."""
        display, self._display = self._display, None
        if display is not None:
            display.stop()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        from rich.text import Text

        said = self.say()
        turn = int(time.monotonic() * REDRAWS_A_SECOND)
        yield Text("") if said is None else line(said, options.max_width - 1, turn, options.ascii_only)


def line(said: Said, width: int, turn: int = 0, ascii_only: bool = False) -> Text:
    """The line in at most `width` cells: a turning sign, what goes on, a bar, and as many of the parts as fit."""
    from rich.text import Text

    parts = list(said.parts)
    bar = said.fraction is not None

    def taken() -> int:
        return 2 + sum(cells(text) + 2 for text in (said.what, *(text for _, text in parts))) + (BAR[0] + 2) * bar

    while taken() > width and (most := max((drop for drop, _ in parts), default=0)):
        del parts[max(n for n, (drop, _) in enumerate(parts) if drop == most)]
    signs = "|/-\\" if ascii_only else "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
    text = Text.assemble(signs[turn % len(signs)], " ", (said.what, "bold"), no_wrap=True)
    if said.fraction is not None:
        length = max(BAR[0], min(BAR[1], BAR[0] + width - taken()))
        full = round(min(1.0, max(0.0, said.fraction)) * length)
        done, rest = ("#", "-") if ascii_only else ("━", "━")
        text.append("  ").append(done * full, "bar.complete").append(rest * (length - full), "bar.back")
    for _, part in parts:
        text.append(f"  {part}")
    text.truncate(width, overflow="ellipsis")
    return text
