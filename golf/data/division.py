"""Which documents are validation: by a hash of their text, by position in a single text, or as they were given."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from golf.common.errors import DataError

_BORDERS = (("\n\n", "\n\r\n"), ("\n",), (" ",))  # where to divide a text: at a paragraph, a line, a word


@dataclass(frozen=True)
class Division:
    """How documents are divided. By default none is validation.

    limit: texts whose `place` is below it are validation. cut: of a single text, the character at which validation
    begins. held_out: digests of texts that are validation, or held in part by it, so that no other train document
    may be equal to one. note: what a user should be told.
    """

    limit: int = 0
    cut: int | None = None
    held_out: frozenset[bytes] = frozenset()
    note: str | None = None


def digest(text: str) -> bytes:
    """16 bytes that stand for a text."""
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()


def place(text: str) -> int:
    """The place of a text in [0, 2^64), even over texts: equal texts share it."""
    return int.from_bytes(digest(text)[:8], "big")


def by_hash(texts: Iterable[str], fraction: float) -> Division | None:
    """The `fraction` of texts with the lowest places is validation, but one at least, and not all; None for no text.

    Reads on only until both sides have a text. A single text is divided by position. Raises DataError when it is too
    short for that.
    """
    limit, count = int(fraction * 2**64), 0
    lowest, highest, last = 2**64, -1, ""
    for text in texts:
        at = place(text)
        lowest, highest, last, count = min(lowest, at), max(highest, at), text, count + 1
        if lowest < limit <= highest:
            return Division(limit)
    if not count:
        return None
    if lowest == highest:
        return by_position(last, fraction)
    would = f"data.val_fraction={fraction} of these {count:,} documents would be"
    if highest < limit:
        return Division(highest, note=f"{would} all: the one with the highest hash is left to training")
    return Division(lowest + 1, note=f"{would} none: the one with the lowest hash is validation")


def by_position(text: str, fraction: float) -> Division:
    """Validation is about the last `fraction` of one text, from a paragraph's, a line's or a word's start on.

    Raises DataError when one of the two parts would be blank.
    """
    cut = _cut(text, fraction)
    if not text[:cut].strip() or not text[cut:].strip():
        raise DataError(
            f"the data is one document of {len(text)} characters: too short for training and validation\n"
            "(give more text, or data.val_paths=[…])"
        )
    note = f"one document, divided by position: the last {len(text) - cut:,} of {len(text):,} characters are validation"
    return Division(cut=cut, held_out=frozenset((digest(text),)), note=note)


def _cut(text: str, fraction: float) -> int:
    start, end = len(text) - len(text.lstrip()), len(text.rstrip())
    goal = end - min(max(1, round((end - start) * fraction)), max(1, end - start - 1))
    reach = min(goal - start, end - goal) // 2
    for borders in _BORDERS:
        near = [
            at + len(border)
            for border in borders
            for at in (text.rfind(border, goal - reach, goal), text.find(border, goal, goal + reach))
            if at >= 0
        ]
        if near:
            return min(near, key=lambda at: abs(at - goal))
    return goal
