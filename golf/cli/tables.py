"""Printing rich tables, as wide as the terminal, and in a pipe as wide as they are; and bytes as people say them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def print_table(table: Table) -> None:
    """Print to stdout; nothing is cut or folded where there is no terminal to fit."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(markup=False, emoji=False, highlight=False)  # cells are names and paths, not markup
    if not console.is_terminal:
        wanted = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
        console.width = max(80, wanted)
    console.print(table)


def size(count: float) -> str:
    """Bytes as people say them, in powers of 1,024."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
