"""Kinds of documents that tokenizers treat differently, told apart by their characters alone."""

from __future__ import annotations

CLASSES = ("prose", "figures and code", "beyond ASCII")
_LETTERS = bytes(byte for byte in range(128) if chr(byte).isalpha() or chr(byte).isspace())
_BEYOND, _OTHER = 0.05, 0.1  # of the characters


def document_class(text: str) -> str:
    """One of CLASSES: at least a twentieth of the characters is not ASCII; or a tenth is neither letters nor white
    space; or neither, which is prose."""
    ascii_part = text.encode("ascii", "ignore")
    if len(text) - len(ascii_part) >= _BEYOND * len(text):
        return CLASSES[2]
    return CLASSES[1] if len(ascii_part.translate(None, _LETTERS)) >= _OTHER * len(text) else CLASSES[0]
