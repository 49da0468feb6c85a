"""Kinds of documents by their characters."""

from __future__ import annotations

import pytest

from golf.data.classes import document_class


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("The water was light, and it moved quickly.\n\nThen it returned.", "prose"),
        ("for i in range(10): print(i * 2 + x[3])", "figures and code"),
        ("1914-1918: 12,345 and 67,890", "figures and code"),
        ("Вода была светлой", "beyond ASCII"),
        ("naïve café, a word of French in a text that is English in every other respect", "prose"),
    ],
)
def test_a_document_is_of_one_kind(text: str, kind: str) -> None:
    assert document_class(text) == kind
