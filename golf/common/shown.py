"""Text from files as it is shown: nothing in it moves a terminal's cursor, sets its title or writes its clipboard."""

from __future__ import annotations

import re

from golf.common.secret import without_keys

_LONGEST = 1000
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""C0 and C1 controls but tab and newline, marks that turn the direction of writing, halves of characters."""


def plain_text(text: str) -> str:
    """A text whose control characters are shown as what they are, `\\x1b`; lines and tabs stay."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def told(error: BaseException) -> str:
    """An error's message as it is shown, whatever it quotes: no line of it is endless, and no key is in it."""
    lines = (line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…" for line in without_keys(str(error)).splitlines())
    return plain_text("\n".join(lines))


def plain_line(text: str) -> str:
    """The same on one line: line ends and tabs are shown too."""
    return plain_text(text).replace("\n", "\\n").replace("\t", "\\t")
