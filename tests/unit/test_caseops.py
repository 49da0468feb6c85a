"""CaseOps: exact on any text, counted to the byte, its tokens fewer where spaces and marks go together."""

from __future__ import annotations

import functools
import pickle
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from golf.common.errors import ConfigError, DataError
from golf.tokenizers.byte_table import prove
from golf.tokenizers.caseops import ALLCAPS, CAPNEXT, ESC, MARKS, TITLE, CaseOps, Space
from golf.tokenizers.sentencepiece import SentencePieceSpec, SentencePieceTokenizer
from golf.tokenizers.transform import Transformed

PUBLISHED = Path(__file__).parent / "data" / "sp1024.model"
SPACES: list[Space] = ["apart", "fused", "ahead"]
ANY = st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=30)
CASED = st.lists(
    st.sampled_from([*MARKS, *"aBcZ ", "\n", "É", "e\u0301", "E\u0301", "ẖ", "H\u0331", "İ", "ß", "ﬁ", "Ａ", "▁"])
)
TEXT = st.one_of(ANY, CASED.map("".join), st.from_regex(r"[A-Za-z \ue001-\ue004]{0,20}", fullmatch=True))


@functools.cache
def trained(space: Space) -> Transformed:
    words = ["The", "river", "NASA", "iPhone", "McDonald", "and", "É", "I", "walks", "12", "THEN", "London"]
    texts = [" ".join(words[(i * j + j) % len(words)] for j in range(1, 40)) for i in range(1, 60)]
    spec = SentencePieceSpec(name="toy", vocab_size=330, transform=CaseOps(space))
    with tempfile.TemporaryDirectory() as folder:
        made = spec.prepare(lambda: iter(texts), "toy", Path(folder))
    assert isinstance(made, Transformed)
    return made


@pytest.mark.parametrize("space", SPACES)
@settings(max_examples=150, deadline=None)
@given(TEXT)
def test_any_text_comes_back_whole_and_marks_cost_nothing(space: Space, text: str) -> None:
    ops = CaseOps(space)
    seen = ops.apply(text)
    assert ops.invert(seen) == text
    assert ops.sizes(seen).sum() == len(text.encode())
    assert not re.search("[A-Z]", seen)


@settings(max_examples=100, deadline=None)
@given(TEXT)
def test_whatever_a_model_writes_can_be_read(text: str) -> None:
    escaped = text.count(ESC)
    assert sum(CaseOps().invert(text).count(mark) for mark in MARKS) <= escaped


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("all lower 12", "all lower 12"),
        ("The NASA", f"{TITLE}the {ALLCAPS}nasa"),
        ("I am A", f"{TITLE}i am {TITLE}a"),
        ("iPhone McDonald HTMl", f"i{CAPNEXT}phone {TITLE}mc{CAPNEXT}donald {TITLE}h{CAPNEXT}t{CAPNEXT}ml"),
        ("É Ét ÉX", f"É Ét É{TITLE}x"),
        (f"{TITLE}X{ESC}", f"{ESC}{TITLE}{TITLE}x{ESC}{ESC}"),
    ],
)  # fmt: skip
def test_the_rules_are_the_records(text: str, seen: str) -> None:
    assert CaseOps("apart").apply(text) == CaseOps("fused").apply(text) == seen


def test_a_mark_may_stand_before_the_space() -> None:
    seen = f"{TITLE}the{ALLCAPS} nasa i{CAPNEXT}phone\n{TITLE}mr."
    assert CaseOps("ahead").apply("The NASA iPhone\nMr.") == seen


@pytest.mark.parametrize("space", SPACES)
@settings(max_examples=60, deadline=None)
@given(TEXT)
def test_any_text_is_counted_to_the_byte(space: Space, text: str) -> None:
    tokenizer = trained(space)
    assert prove(tokenizer, [text]).bytes == len(tokenizer.normalize(text).encode())


@pytest.mark.parametrize("space", SPACES)
def test_marks_are_whole_pieces_of_no_bytes_and_words_lose_their_case(space: Space) -> None:
    tokenizer = trained(space)
    (ids,) = tokenizer.encode_batch([f"The NASA {ALLCAPS}"])
    charged = tokenizer.charges(ids, lambda: f"The NASA {ALLCAPS}")
    told = [(tokenizer._inner.decode([int(i)]), int(n)) for i, n in zip(ids, charged, strict=True)]  # type: ignore[attr-defined]
    assert [n for piece, n in told if piece in (TITLE, ALLCAPS, ESC)][:2] == [0, 1 if space == "fused" else 0]
    assert told[-2:] == [(ESC, 0), (ALLCAPS, 3)]
    assert np.array_equal(tokenizer.encode_batch(["river"])[0], tokenizer.encode_batch(["RIVER"])[0][1:])


def test_fused_and_leading_marks_take_fewer_tokens() -> None:
    text = ["The London River and NASA walks THEN McDonald and I"]
    apart, fused, ahead = (len(trained(space).encode_batch(text)[0]) for space in SPACES)
    assert apart > fused
    assert apart > ahead


def test_the_transform_is_part_of_name_hash_and_cache() -> None:
    inner = SentencePieceTokenizer.load(PUBLISHED)
    made = [Transformed(inner, CaseOps(space)) for space in SPACES]
    assert len({one.hash for one in (inner, *made)}) == 4
    assert [one.name for one in made] == ["sp1024_caseops", "sp1024_caseops_fused", "sp1024_caseops_ahead"]


def test_it_can_be_sent_to_the_processes_that_tokenize() -> None:
    sent = pickle.loads(pickle.dumps(trained("ahead")))
    text = "The River NASA"
    assert np.array_equal(sent.encode_batch([text])[0], trained("ahead").encode_batch([text])[0])
    assert sent.hash == trained("ahead").hash


def test_a_model_without_the_marks_is_refused() -> None:
    spec = SentencePieceSpec("sp1024", 1024, str(PUBLISHED), transform=CaseOps())
    with pytest.raises(ConfigError, match=r"tokenizer/transform=caseops: .*sp1024\.model has no piece '\\ue001'"):
        spec.prepare(lambda: iter(()), "", Path("unused"))


class Lower:
    """A transform that forgets case."""

    name, version, symbols, escape = "lower", "lower 1", (), TITLE

    def apply(self, text: str) -> str:
        return text.lower()

    def invert(self, text: str) -> str:
        return text

    def sizes(self, text: str) -> np.ndarray:
        return np.ones(len(text.encode()), np.uint8)


def test_a_transform_that_loses_text_is_refused_by_the_proof() -> None:
    tokenizer = Transformed(SentencePieceTokenizer.load(PUBLISHED), Lower())
    prove(tokenizer, ["the river"])
    with pytest.raises(DataError, match="transform=lower loses text: 'River' comes back as 'river'"):
        prove(tokenizer, ["the river", "the River"])


def test_the_transform_that_the_page_shows_is_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "caseops.md").read_text(encoding="utf-8")
    scope: dict[str, Any] = {"__name__": "sentences"}
    exec(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0], scope)
    shown = scope["Sentences"]()
    tokenizer = Transformed(SentencePieceTokenizer.load(PUBLISHED), shown)
    text = "It rains. The river rises! why? Nobody knows. É"
    assert shown.apply(text) == "It rains. the river rises! Why? nobody knows. É"
    assert prove(tokenizer, [text, "A. A. a. ."]).bytes == len(text.encode()) + 10


def test_values_that_cannot_be_are_named() -> None:
    with pytest.raises(ConfigError, match=r"transform\.space=before: choices are apart, fused, ahead"):
        CaseOps("before")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="from 267"):
        SentencePieceSpec("toy", 266, transform=CaseOps("fused"))
    with pytest.raises(ConfigError, match=r"tokenizer\.transform: object has no name, version"):
        SentencePieceSpec("toy", 300, transform=object())  # type: ignore[arg-type]
