"""Tables laid out for a width: columns go by importance, and a figure that stands is never cut.

A column says how soon it may be left out. What then is still too wide gets shorter names, and last of all its columns
stand in several blocks, one below the other, each beginning with the first column.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from golf.common.errors import ConfigError, did_you_mean
from golf.common.shown import plain_text

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table as RichTable
    from rich.text import Text

WIDE = 100_000
"""Cells in a line of a file or a pipe: nothing has to go."""
SHORTEST = 12
"""No name is made shorter than this many cells."""
PROSE = 24
"""Sentences are folded between words, to no fewer cells than these."""
ALL = "all"
"""`--columns all`."""
ELSEWHERE = "a wider terminal or a pipe shows them"


@dataclass
class Column:
    """One column: its header and, from top to bottom, its cells.

    drop: 0 is never left out; of the others the largest goes first. shorten: long texts may lose their middle when
    nothing else helps. prose: sentences, which may be folded between words. name: what --columns calls it, by default
    its header. style: rich's.
    """

    header: str
    drop: int = 0
    right: bool = True
    shorten: bool = False
    prose: bool = False
    name: str = ""
    style: str | None = None
    cells: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.header = plain_text(self.header)
        self.name = plain_text(self.name or self.header)

    @property
    def width(self) -> int:
        """Of its widest cell, without the header."""
        return max(map(cells, self.cells), default=0)


@dataclass(frozen=True)
class Placed:
    """A column as it is drawn: its header's lines, its cells, so many cells wide."""

    column: Column
    header: str
    texts: Sequence[str]
    width: int


@dataclass(frozen=True)
class Layout:
    """What is drawn: blocks of columns, between lines or without, and the names of the columns left out."""

    blocks: list[list[Placed]]
    boxed: bool
    left_out: list[str]


class Table:
    """Columns, a title, a caption and notes; rich's console draws it for the width that it has.

    notes: whole lines below the table, never folded or cut: they may hold paths. `elsewhere` says where columns that
    were left out can be seen. header: whether the columns' headers are drawn.
    """

    def __init__(
        self, *columns: Column, title: str = "", caption: str = "", elsewhere: str = ELSEWHERE, header: bool = True
    ) -> None:
        self.columns = list(columns)
        self.title, self.caption, self.elsewhere, self.header = title, caption, elsewhere, header
        self.notes: list[str] = []
        self.styles: list[str | None] = []
        self.sections: set[int] = set()

    def add_section(self) -> None:
        """A line, or a blank one, before the next row."""
        self.sections.add(len(self.styles))

    def add_row(self, *texts: str, style: str | None = None) -> None:
        """One cell a column; cells that are not given are empty."""
        for number, column in enumerate(self.columns):
            column.cells.append(plain_text(texts[number]) if number < len(texts) else "")
        self.styles.append(style)

    def choose(self, wanted: str) -> None:
        """Keep the columns that `--columns` names, in its order, and leave none of them out; `all` keeps every one.

        A column goes by its name, its header or the last part of either; the first part (`bpb`, `optimizer`) stands for
        all that begin so. Raises ConfigError for a name that is none.
        """
        names = [name for one in wanted.split(",") if (name := one.strip())]
        if names != [ALL]:
            chosen = [column for name in names for column in self._named(name)]
            self.columns = list({id(column): column for column in chosen}.values())
        self.columns = [replace(column, drop=0) for column in self.columns]

    def _named(self, name: str) -> list[Column]:
        for fits in (
            lambda told: told == name,
            lambda told: tail(told) == name,
            lambda told: told.startswith((f"{name}.", f"{name} ")),
        ):
            if found := [one for one in self.columns if fits(one.name) or fits(one.header)]:
                return found
        known = [column.name for column in self.columns]
        near = did_you_mean(name, known)
        raise ConfigError(
            f"--columns: {name} is no column here{f' {near}' if near.startswith('(did') else ''}\n"
            f"choose from {', '.join(known)}, or {ALL}"
        )

    def layout(self, width: int) -> Layout:
        """What to draw where a line holds `width` cells."""
        columns = list(self.columns)
        for boxed, fold in ((True, False), (False, False), (False, True)):
            placed = [self._place(column, fold) for column in columns]
            if extent(placed, boxed) <= width:
                return Layout([placed], boxed, [])
        left_out = []
        while extent(placed, boxed) > width and (most := max((one.column.drop for one in placed), default=0)):
            goes = max(n for n, one in enumerate(placed) if one.column.drop == most)
            left_out.append(placed.pop(goes).column.name)
        left_out = [column.name for column in columns if column.name in left_out]
        over = extent(placed, boxed) - width
        for number in sorted(range(len(placed)), key=lambda n: -placed[n].width):
            if over > 0:
                before = placed[number]
                placed[number] = narrowed(before, max(0, before.width - over))
                over -= before.width - placed[number].width
        blocks = [placed] if over <= 0 else _blocks(placed, width)
        return Layout(blocks, boxed, left_out)

    def _place(self, column: Column, fold: bool) -> Placed:
        width = column.width
        header = (folded(column.header, width) if fold else column.header) if self.header else ""
        return Placed(column, header, column.cells, max([width, *map(cells, header.split("\n"))]))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        from rich.text import Text

        layout = self.layout(options.max_width)
        if self.title:
            yield Text(plain_text(self.title), style="table.title")
        for number, block in enumerate(layout.blocks):
            if number:
                yield Text()
            if layout.boxed:
                yield self._boxed(block)
            else:
                yield from self._plain(block)
        if self.caption:
            yield Text(plain_text(self.caption), style="table.caption")
        if layout.left_out:
            yield Text(f"left out for want of width: {', '.join(layout.left_out)} ({self.elsewhere})", style="dim")
        for note in self.notes:
            yield Text(plain_text(note), no_wrap=True, overflow="ignore")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Any:
        from rich.measure import Measurement

        return Measurement(1, options.max_width)

    def _repr_mimebundle_(self, include: Sequence[str], exclude: Sequence[str], **more: Any) -> dict[str, str]:
        """In a notebook."""
        from rich.jupyter import JupyterMixin

        return JupyterMixin._repr_mimebundle_(self, include, exclude, **more)  # type: ignore[arg-type]

    def _boxed(self, block: Sequence[Placed]) -> RichTable:
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(show_header=self.header, box=box.HEAVY_HEAD if self.header else box.SQUARE)
        for one in block:
            justify: Any = "right" if one.column.right else "left"
            table.add_column(Text(one.header), justify=justify, style=one.column.style, no_wrap=True)
        for number, style in enumerate(self.styles):
            texts = [Text(one.texts[number]) for one in block]
            table.add_row(*texts, style=style, end_section=number + 1 in self.sections)
        return table

    def _plain(self, block: Sequence[Placed]) -> Iterator[Text]:
        """Columns with blanks between them; a word longer than its column, such as a path, runs over the edge whole."""
        from rich.text import Text

        if self.header:
            yield from _lines(block, [one.header for one in block], "table.header")
            yield Text("─" * extent(block, False), no_wrap=True)
        for number, style in enumerate(self.styles):
            if number and number in self.sections:
                yield Text()
            yield from _lines(block, [one.texts[number] for one in block], style)


def _lines(block: Sequence[Placed], texts: Sequence[str], style: str | None) -> Iterator[Text]:
    """One row; its texts may have several lines, of which a header's stand at the bottom."""
    from rich.text import Text

    header = style == "table.header"
    told = [text.split("\n") for text in texts]
    height = max(map(len, told))
    for number in range(height):
        line = Text(no_wrap=True, overflow="ignore")
        for one, parts in zip(block, told):
            at = number - height + len(parts) if header else number
            part = parts[at] if 0 <= at < len(parts) else ""
            blank = " " * (one.width - cells(part))
            line.append(blank + part if one.column.right else part + blank, None if header else one.column.style)
            line.append("  ")
        line.rstrip()
        line.stylize(style or "")
        yield line


def print_table(table: Table) -> None:
    """Print to standard output: as wide as the terminal or $COLUMNS; in a pipe or a file nothing is left out."""
    from rich.console import Console

    console = Console(markup=False, emoji=False, highlight=False)  # cells are names and paths, not markup
    if (width := line_width()) is not None:
        console.width = width
    console.print(table, crop=False)


def line_width() -> int | None:
    """Cells in a line of standard output: $COLUMNS, or WIDE where there is no terminal; None leaves it to rich."""
    asked = os.environ.get("COLUMNS", "")
    if asked.isdigit() and int(asked):
        return int(asked)
    return None if sys.stdout.isatty() else WIDE


def cells(text: str) -> int:
    """How many cells of a terminal a line of text takes: two for many characters of East Asia."""
    from rich.cells import cell_len

    return len(text) if text.isascii() else cell_len(text)


def tail(name: str) -> str:
    """The last part of a dotted name."""
    return name.rsplit(".", 1)[-1]


def extent(placed: Sequence[Placed], boxed: bool) -> int:
    """Cells in a line of a table of these columns."""
    between = 3 if boxed else 2
    return sum(one.width for one in placed) + between * (len(placed) - 1) + (4 if boxed else 0)


def folded(header: str, width: int) -> str:
    """A header over several lines, cut behind dots, slashes and blanks alone; as wide as its cells if that will do."""
    parts = re.findall(r"[^./ ]+[./ ]*|[./ ]+", header)
    most = max([width, *(cells(part.rstrip()) for part in parts)])
    lines = [""]
    for part in parts:
        if lines[-1] and cells(lines[-1] + part.rstrip()) > most:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


def narrowed(placed: Placed, wanted: int) -> Placed:
    """The column in `wanted` cells, or as near to that as it can come: different texts stay different."""
    column = placed.column
    least = max(map(cells, placed.header.split("\n")))
    if column.prose:
        width = max(wanted, least, PROSE)
        return replace(placed, texts=[filled(text, width) for text in placed.texts], width=min(placed.width, width))
    if not column.shorten:
        return placed
    for width in range(max(wanted, least, SHORTEST), placed.width):
        texts = [shortened(text, width) for text in placed.texts]
        if len(set(texts)) == len(set(placed.texts)):
            return replace(placed, texts=texts, width=max([least, *map(cells, texts)]))
    return placed


def filled(text: str, width: int) -> str:
    """A text over several lines, folded between words alone."""
    lines = [""]
    for word in text.split(" "):
        if lines[-1] and cells(lines[-1]) + 1 + cells(word) > width:
            lines.append(word)
        else:
            lines[-1] += f" {word}" if lines[-1] else word
    return "\n".join(lines)


def shortened(text: str, width: int) -> str:
    """A text in at most `width` cells, its middle left out: the end of a run's name tells it apart."""
    if cells(text) <= width:
        return text
    head, end = (width - 1) // 3, width - 1 - (width - 1) // 3
    return f"{_first(text, head)}…{_first(text[::-1], end)[::-1]}"


def _first(text: str, width: int) -> str:
    """As many of the first characters as fit into `width` cells."""
    taken = 0
    for number, character in enumerate(text):
        taken += cells(character)
        if taken > width:
            return text[:number]
    return text


def _blocks(placed: Sequence[Placed], width: int) -> list[list[Placed]]:
    """The columns in blocks that fit, the first one at the head of each; a column wider than a line stands as it is."""
    first = narrowed(placed[0], width // 3)
    blocks = [[first]]
    for one in placed[1:]:
        if len(blocks[-1]) > 1 and extent([*blocks[-1], one], False) > width:
            blocks.append([first])
        room = width - extent([*blocks[-1], replace(one, width=0)], False)
        blocks[-1].append(narrowed(one, max(0, room)) if one.width > room else one)
    return blocks
