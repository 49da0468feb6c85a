"""Text from files as it is shown: nothing in it moves a terminal's cursor, sets its title or writes its clipboard."""

from __future__ import annotations

import re

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""C0 and C1 controls but tab and newline, marks that turn the direction of writing, halves of characters."""


def plain_text(text: str) -> str:
    """A text whose control characters are shown as what they are, `\\x1b`; lines and tabs stay."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def plain_line(text: str) -> str:
    """The same on one line: line ends and tabs are shown too."""
    return plain_text(text).replace("\n", "\\n").replace("\t", "\\t")
