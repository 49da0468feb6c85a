"""CaseOps: upper case written as marks before lower-case words, so that a word is the same pieces however it is cased.

Source: the transform of the challenge's records from pull request 1729 on (`lossless_caps_caseops_v1`); marks fused
with spaces: pull request 2109. A mark before the space is golf's own.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

import numpy as np

from golf.common.errors import ConfigError

TITLE, ALLCAPS, CAPNEXT, ESC = "\ue001", "\ue002", "\ue003", "\ue004"
MARKS = TITLE + ALLCAPS + CAPNEXT + ESC
Space = Literal["apart", "fused", "ahead"]

_TO_DO = re.compile(f"( ?)(?<![A-Za-z])([A-Za-z]*[A-Z][A-Za-z]*)|[{MARKS}]")
_DONE = re.compile(f"{ESC}([{MARKS}])|{ALLCAPS}( ?[a-z]+)|[{TITLE}{CAPNEXT}]( ?[^{MARKS} ])|[{MARKS}]", re.DOTALL)
_UPPER = re.compile("[A-Z]")


class CaseOps:
    """Runs of ASCII letters in lower case, behind marks; every other character as it is.

    Of a maximal run: `Title` is ⟨TITLE⟩title, two or more upper-case letters `NASA` are ⟨ALLCAPS⟩nasa, and any other
    has ⟨TITLE⟩ for a first letter and ⟨CAPNEXT⟩ before each later one: `iPhone` is i⟨CAPNEXT⟩phone. The marks are
    U+E001…E004; where they stand in the text itself, ⟨ESC⟩ goes before them.

    space, of a marked word that follows one: `apart` is the records' transform, ` ⟨TITLE⟩title`, where the space is a
    token of its own, since a mark ends a piece. `fused`: the same text, and a piece for the space and the mark.
    `ahead`: `⟨TITLE⟩ title`, so that the word keeps the piece that holds its space. Raises ConfigError for another.
    """

    escape = ESC

    @classmethod
    def named(cls, name: str) -> CaseOps | None:
        """The transform of a name, as tokenizers and manifests have it; None for a name of another."""
        return next((one for one in map(cls, get_args(Space)) if one.name == name), None)

    def __init__(self, space: Space = "apart") -> None:
        if space not in get_args(Space):
            raise ConfigError(f"tokenizer.transform.space={space}: choices are {', '.join(get_args(Space))}")
        self._ahead = space == "ahead"
        self.name = "caseops" if space == "apart" else f"caseops_{space}"
        self.version = f"{self.name} 1"
        self.symbols = (*MARKS, *(("\u2581" + TITLE, "\u2581" + ALLCAPS) if space == "fused" else ()))

    def apply(self, text: str) -> str:
        """The text in lower case, with marks."""
        return _TO_DO.sub(self._marked, text)

    def invert(self, text: str) -> str:
        """The cased text. Marks that mark nothing, which only a model writes, are left out."""
        return _DONE.sub(_cased, text)

    def sizes(self, text: str) -> np.ndarray:
        """0 for the bytes of a mark, 1 for every other, uint8 [bytes]."""
        data = np.frombuffer(text.encode("utf-8"), np.uint8)
        sizes = np.ones(len(data), np.uint8)
        first, second, last = (int(byte) for byte in TITLE.encode("utf-8"))
        at = np.flatnonzero((data[:-2] == first) & (data[1:-1] == second) & (data[2:] - last < len(MARKS)))
        escapes, kept = set(at[data[at + 2] == last + MARKS.index(ESC)].tolist()), -1
        for mark in at.tolist():
            if mark != kept:
                sizes[mark : mark + 3] = 0
                kept = mark + 3 if mark in escapes else -1  # the mark behind it stands for itself
        return sizes

    def _marked(self, found: re.Match[str]) -> str:
        space, word = found.groups()
        if word is None:
            return ESC + found.group()
        if len(word) > 1 and word.isupper():
            mark, written = ALLCAPS, word.lower()
        else:
            mark = TITLE if word[0].isupper() else ""
            written = word[0].lower() + _UPPER.sub(_next, word[1:])
        return f"{mark}{space}{written}" if self._ahead else f"{space}{mark}{written}"


def _next(found: re.Match[str]) -> str:
    return CAPNEXT + found.group().lower()


def _cased(found: re.Match[str]) -> str:
    literal, word, letter = found.groups()
    if literal is not None:
        return str(literal)
    cased = (word or letter or "").upper()
    return cased if len(cased.encode("utf-8")) == len((word or letter or "").encode("utf-8")) else word or letter
