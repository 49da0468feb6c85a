"""Dividing documents into training and validation: by hash, at least one on each side, and one text by position."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from golf.common.errors import DataError
from golf.data.division import by_hash, by_position, digest, place

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
FRACTIONS = st.floats(0.01, 0.99)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(WORDS), min_size=2), FRACTIONS)
def test_both_sides_get_a_text(texts: list[str], fraction: float) -> None:
    division = by_hash(texts, fraction)
    assert division is not None
    if len(set(texts)) == 1:
        assert division.cut is not None
    else:
        assert {place(text) < division.limit for text in texts} == {True, False}


def test_reading_ends_when_both_sides_have_one() -> None:
    texts = iter(str(i) for i in range(10**9))
    assert by_hash(texts, 0.5) is not None
    assert int(next(texts)) < 1000


def test_a_moved_limit_is_told() -> None:
    low, high = sorted(WORDS, key=place)[:: len(WORDS) - 1]
    none, every = by_hash([low, high], 1e-9), by_hash([low, high], 1 - 1e-9)
    assert none is not None
    assert every is not None
    assert place(low) < none.limit <= place(high)
    assert place(low) < every.limit <= place(high)
    assert "would be none" in str(none.note)
    assert "would be all" in str(every.note)


def test_nothing_gives_nothing() -> None:
    assert by_hash([], 0.5) is None


@settings(max_examples=80, deadline=None)
@given(st.text(st.sampled_from("ab \n\r"), max_size=200).filter(lambda text: len(text.strip()) > 1), FRACTIONS)
def test_one_text_is_cut_into_two_that_are_not_blank(text: str, fraction: float) -> None:
    cut = by_position(text, fraction).cut
    assert text[:cut].strip()
    assert text[cut:].strip()


@pytest.mark.parametrize("border", ["\n\n", "\r\n\r\n", "\n", "\r\n", " "])
def test_the_cut_is_at_a_border_near_the_fraction(border: str) -> None:
    text = border.join(f"{i:03}.{'x' * 40}" for i in range(200))
    cut = by_position(text, 0.1).cut
    assert cut is not None
    assert text[:cut].endswith(border)
    assert text[cut:][:3].isdigit()
    assert 0.09 < 1 - cut / len(text) < 0.11


def test_a_paragraph_is_preferred_to_a_line_and_a_line_to_a_word() -> None:
    text = "some words here\n" * 50 + "\n" + "some words here\n" * 5
    assert by_position(text, 0.1).cut == text.index("\n\n") + 2
    text = text.replace("\n\n", "\n")
    cut = by_position(text, 0.1).cut
    assert cut is not None
    assert text[cut - 1] == "\n"


def test_a_text_without_borders_is_cut_where_it_is_due() -> None:
    assert by_position("x" * 100, 0.25).cut == 75


def test_no_document_may_be_equal_to_the_divided_one() -> None:
    assert by_position("a text", 0.5).held_out == {digest("a text")}


@pytest.mark.parametrize("text", ["x", " x \n", "\n\nx"])
def test_a_text_of_one_character_is_refused(text: str) -> None:
    with pytest.raises(DataError, match=r"too short .*\n.*data\.val_paths"):
        by_position(text, 0.5)
