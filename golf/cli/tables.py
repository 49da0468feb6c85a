"""What commands print: tables (laid out by golf.runs.tables), and bytes as people say them."""

from __future__ import annotations

from golf.runs.tables import Column, Table, print_table

__all__ = ["Column", "Table", "print_table", "size"]


def size(count: float) -> str:
    """Bytes as people say them, in powers of 1,024."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
