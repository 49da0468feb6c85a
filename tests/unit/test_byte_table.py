"""Bytes are counted in one place, and the count is proved on text meant to break it."""

from __future__ import annotations

import functools
import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from golf.common.errors import DataError
from golf.tokenizers.base import Tokenizer
from golf.tokenizers.byte260 import Byte260
from golf.tokenizers.byte_table import ByteProof, ByteTable, Prover, prove, prove_ids
from golf.tokenizers.sentencepiece import SentencePieceSpec, SentencePieceTokenizer

PUBLISHED = Path(__file__).parent / "data" / "sp1024.model"

HOSTILE = {
    "empty": "",
    "emoji": "👩‍👩‍👧‍👦 said 🏳️‍🌈!",
    "replacement": "a\ufffdb \ufffd",
    "only_replacement": "\ufffd",
    "nul": "x\0y \0",
    "tabs": "\tif x:\t\treturn\t",
    "crlf": "one\r\ntwo\r\n\r\nthree\r",
    "lone_space_symbol": "▁",
    "space_symbols": "▁▁a▁b ▁ c▁",
    "long_grapheme": "e" + "\u0301" * 100 + " Z" + "\u0363" * 100,
    "spaces_around": "   lead and trail \n\n ",
    "only_spaces": " \t\n\u3000\u200b ",
    "controls_as_text": "<s> </s> <unk> <pad> <0x41> <0x00>",
    "bom": "\ufeffstart",
    "ligatures": "ﬁne ½ ㍍ Å ｱﾞ",
    "right_to_left": "שלום \u202eabc\u202c مرحبا",
    "private_and_astral": "\ue001 \U000f0000 𝔘𝔫𝔦",
    "soft_hyphen": "co\u00adop\u2028line\u2029para\x85end",
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> SentencePieceTokenizer:
    words = ["water", "light", "was", "the", "naïve", "café", "☃", "12", "def", "return", "über"]
    text = [" ".join(words[(i * j) % len(words)] for j in range(1, 30)) for i in range(1, 40)]
    spec = SentencePieceSpec(name="toy", vocab_size=300)
    return spec.prepare(lambda: iter(text), "toy", tmp_path_factory.mktemp("cache"))


@pytest.fixture(params=["published", "toy", "byte260"])
def tokenizer(request: pytest.FixtureRequest, toy: SentencePieceTokenizer) -> Tokenizer:
    return {"toy": toy, "byte260": Byte260()}.get(request.param) or SentencePieceTokenizer.load(PUBLISHED)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_counted_to_the_byte(tokenizer: Tokenizer, name: str) -> None:
    text = HOSTILE[name]
    assert prove(tokenizer, [text]).bytes == len(tokenizer.normalize(text).encode())


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=40))
def test_any_text_is_counted_to_the_byte_by_the_published_tokenizer(text: str) -> None:
    prove(_published(), [text])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([*HOSTILE.values(), " ", "▁", "\n", "word"]), max_size=6))
def test_hostile_texts_stay_counted_when_joined(parts: list[str]) -> None:
    prove(_published(), ["".join(parts)])
    assert prove(Byte260(), ["".join(parts)]).bytes == len("".join(parts).encode())


def _published(_kept: list[SentencePieceTokenizer] = []) -> SentencePieceTokenizer:  # noqa: B006
    if not _kept:
        _kept.append(SentencePieceTokenizer.load(PUBLISHED))
    return _kept[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the water was light", 19),
        (" the water", 9),
        ("the  water\n\nwas\tlight", 19),
        ("naïve café ☃", 16),
        ("12345", 5),
    ],
)
def test_known_counts(text: str, expected: int) -> None:
    tokenizer = _published()
    stream = np.concatenate([[tokenizer.bos_id], tokenizer.encode_batch([text])[0]])
    assert tokenizer.byte_table().count(stream) == expected


def test_digits_are_one_token_each() -> None:
    assert len(_published().encode_batch(["12345"])[0]) == 5


def test_special_ids_cost_nothing_and_are_boundaries() -> None:
    table = _published().byte_table()
    assert table.boundary.nonzero()[0].tolist() == [0, 1, 2, 3]
    assert table.base[:4].tolist() == [0] * 4
    assert table.base[4:260].tolist() == [1] * 256


def test_leading_space_is_charged_except_after_a_boundary() -> None:
    table = ByteTable(np.array([0, 3]), np.array([False, True]), np.array([True, False]))
    charged = table.charge(torch.tensor([[0, 1]]), torch.tensor([[1, 1]]))
    assert charged.tolist() == [[3, 4]]
    assert not charged.is_floating_point()


def test_charge_and_count_agree() -> None:
    table = _published().byte_table()
    ids = np.random.default_rng(0).integers(0, 1024, 5000).astype(np.uint16)
    ids[::97] = 1
    tensor = torch.from_numpy(ids.astype(np.int64))
    assert int(table.charge(tensor[:-1], tensor[1:]).sum()) == table.count(ids)


@pytest.mark.parametrize("length", [0, 1])
def test_a_stream_without_targets_has_no_bytes(length: int) -> None:
    assert _published().byte_table().count(np.full(length, 300, np.uint16)) == 0


def test_counting_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = _published().encode_batch(["the water was light " * 50])[0]
    whole = _published().byte_table().count(ids)
    monkeypatch.setattr("golf.tokenizers.byte_table._CHUNK", 7)
    assert _published().byte_table().count(ids) == whole


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(DataError, match="one length"):
        ByteTable(np.zeros(3), np.zeros(4), np.zeros(3))


class _Miscounting(Byte260):
    def byte_table(self) -> ByteTable:
        table = super().byte_table()
        table.base[4 + ord("e")] = 2
        return table


class _Forgetful(Byte260):
    def decode(self, ids: object) -> str:
        return "something else"


def test_a_wrong_table_is_refused() -> None:
    with pytest.raises(DataError, match="bpb refused: byte260 counts 5 bytes where the text has 4"):
        prove(_Miscounting(), ["is", "fine"])


def test_lost_text_is_refused_even_when_the_sum_fits() -> None:
    with pytest.raises(DataError, match=r"bpb refused.*decode to something else"):
        prove(_Forgetful(), ["text"])


def test_a_tokenizer_without_byte_fallback_counts_unknown_characters_by_the_text() -> None:
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(["plain words only, nothing else here"] * 20),
        model_writer=model,
        vocab_size=40,
        model_type="bpe",
        bos_id=1,
        unk_id=3,
        eos_id=2,
        pad_id=0,
        minloglevel=2,
    )
    tokenizer = SentencePieceTokenizer(model.getvalue(), "lossy")
    prove(tokenizer, ["plain words", " nothing "])  # a dummy space before the first word is no text
    assert prove(tokenizer, ["plain ☃☃ words", "only"]) == ByteProof(2, 22)
    (ids,) = tokenizer.encode_batch(["plain ☃☃ words"])
    counted = tokenizer.charges(ids, lambda: "plain ☃☃ words")
    assert counted[list(ids).index(3)] == 6
    with pytest.raises(DataError, match=r"bpb refused.*\n.*\n.*byte side-car"):
        tokenizer.charges(ids)
    with pytest.raises(DataError, match="not those of its text, from character 15"):
        tokenizer.charges(ids, lambda: "plain ☃☃☃ words and more")


def test_a_proof_over_ids_needs_no_text() -> None:
    tokenizer = _published()
    ids = tokenizer.encode_batch(["the naïve ☃ café", ""])
    assert prove_ids(tokenizer, ids).bytes == len("the naïve ☃ café".encode())


def test_the_refusal_of_unknown_characters_names_document_character_and_remedy() -> None:
    tokenizer = trained()
    river, walks = tokenizer.encode_batch(["a river ", " walks"])
    with pytest.raises(DataError) as told:
        Prover(tokenizer).check([river, np.concatenate([river, [3], walks])], ["a river ", "a river ☃ walks"])
    assert "document 2" in str(told.value)
    assert "the first for '☃'" in str(told.value)
    assert "byte_fallback=true" in str(told.value)


def test_a_wrong_table_names_document_and_piece() -> None:
    with pytest.raises(DataError, match=r"document 3.*\nfirst at token 1, id 105, the piece 'e': it counts 2 bytes"):
        prove(_Miscounting(), ["is", "fin", "beta"])


def test_bytes_for_bos_are_refused() -> None:
    class Paid(Byte260):
        def byte_table(self) -> ByteTable:
            table = super().byte_table()
            table.base[self.bos_id] = 1
            return table

    with pytest.raises(DataError, match="counts bytes for BOS"):
        prove(Paid(), ["text"])


@functools.cache
def trained(**options: Any) -> SentencePieceTokenizer:
    """A model of a few hundred ids, by default of the Llama kind: every space kept, pieces of spaces alone."""
    from sentencepiece import SentencePieceTrainer

    drawn = random.Random(1)
    words, gaps = ["the", "a", "river", "stone", "walks", "green", "then", "if", "x:"], [" ", " ", "  ", "\n    "]
    texts = ["".join(drawn.choice(words) + drawn.choice(gaps) for _ in range(30)) for _ in range(150)]
    kind = {
        "model_type": "bpe", "vocab_size": 340, "byte_fallback": True, "hard_vocab_limit": False,
        "normalization_rule_name": "identity", "remove_extra_whitespaces": False, "allow_whitespace_only_pieces": True,
        "pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "minloglevel": 2,
    }  # fmt: skip
    model = io.BytesIO()
    SentencePieceTrainer.train(sentence_iterator=iter(texts), model_writer=model, **(kind | options))
    return SentencePieceTokenizer(model.getvalue(), "toy")


SPACES = {
    "code": "if x:\n        a river\n    home",
    "spaces": "a  b   c     d",
    "leading": "    the river",
    "trailing": "the river   ",
    "only_spaces": "      ",
    "symbols": "▁a▁▁river ▁",
    "bytes_first": "☃  the ☃",
    "tabs": "\ta\n\n river\t",
    "empty": "",
}


@pytest.mark.parametrize("model_type", ["bpe", "unigram", "char"])
@pytest.mark.parametrize("dummy", [False, True])
@pytest.mark.parametrize("suffix", [False, True])
def test_every_space_is_one_byte_where_spaces_are_kept(model_type: str, dummy: bool, suffix: bool) -> None:
    tokenizer = trained(model_type=model_type, add_dummy_prefix=dummy, treat_whitespace_as_suffix=suffix)
    for name, text in SPACES.items():
        assert prove(tokenizer, [text]).bytes == len(text.replace("▁", " ").encode()), name


def test_pieces_of_several_spaces_count_each_once() -> None:
    tokenizer = trained(add_dummy_prefix=False)
    [ids] = tokenizer.encode_batch(["a    river"])
    assert len(ids) < 5  # four spaces in fewer pieces
    assert tokenizer.byte_table().count(np.concatenate([[tokenizer.bos_id], ids])) == 10


def test_a_space_that_begins_a_document_counts_when_it_is_the_texts_own() -> None:
    kept, made = trained(add_dummy_prefix=False), trained(add_dummy_prefix=True)
    assert prove(kept, [" river"]).bytes == prove(made, [" river"]).bytes == 6
    assert prove(kept, ["river"]).bytes == prove(made, ["river"]).bytes == 5


@settings(max_examples=60, deadline=None)
@given(
    st.fixed_dictionaries(
        {
            "model_type": st.sampled_from(["bpe", "unigram"]),
            "normalization_rule_name": st.sampled_from(["identity", "nmt_nfkc", "nfkc_cf"]),
            "remove_extra_whitespaces": st.booleans(),
            "add_dummy_prefix": st.booleans(),
            "treat_whitespace_as_suffix": st.booleans(),
            "user_defined_symbols": st.sampled_from(["", "▁▁,<x y>,<x▁y>,▁the,é"]),
        }
    ),
    st.lists(st.sampled_from([*HOSTILE.values(), *SPACES.values(), " ", "▁", "<x y>", "The"]), max_size=6),
)
def test_models_of_any_options_are_counted_to_the_byte(options: dict[str, Any], parts: list[str]) -> None:
    tokenizer, text = trained(**options), "".join(parts)
    assert prove(tokenizer, [text, "a river"]).bytes == len(tokenizer.normalize(text).encode()) + 7


def test_without_escaped_spaces_a_true_u2581_is_three_bytes() -> None:
    unescaped = b"\x1a\x02\x28\x00"  # normalizer_spec {escape_whitespaces: false}, merged into the model's own
    model = trained(add_dummy_prefix=False)._processor.serialized_model_proto() + unescaped
    tokenizer = SentencePieceTokenizer(model, "unescaped")
    for text in ["a river", "▁a ▁▁ river", "  ", "▁"]:
        assert prove(tokenizer, [text]).bytes == len(text.encode())


def test_a_space_that_only_bytes_can_spell_is_refused() -> None:
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(["river", "stone"] * 20), model_writer=model, vocab_size=280, model_type="bpe",
        byte_fallback=True, add_dummy_prefix=False, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    tokenizer = SentencePieceTokenizer(model.getvalue(), "spaceless")
    prove(tokenizer, ["river"])
    with pytest.raises(DataError, match="counts 13 bytes where the text has 11"):  # U+2581 in three byte pieces
        prove(tokenizer, ["river stone"])


def test_a_last_space_is_charged_to_what_follows_except_a_boundary() -> None:
    table = ByteTable(np.array([0, 3]), np.array([False, False]), np.array([True, False]), np.array([False, True]))
    ids = np.array([0, 1, 1, 0, 1])
    assert table.charges(ids).tolist() == [0, 3, 4, 0, 3]
    stream = torch.from_numpy(ids)
    assert table.charge(stream[:-1], stream[1:]).tolist() == [3, 4, 0, 3]
    assert table.count(ids) == 10


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([*HOSTILE.values(), *SPACES.values()]), min_size=1, max_size=8), st.booleans())
def test_the_order_of_documents_does_not_matter(texts: list[str], suffix: bool) -> None:
    tokenizer = trained(add_dummy_prefix=True, treat_whitespace_as_suffix=suffix)
    assert prove(tokenizer, texts) == prove(tokenizer, texts[::-1])


def test_the_published_tokenizers_table_is_the_fields() -> None:
    tokenizer = _published()
    table, processor = tokenizer.byte_table(), tokenizer._processor
    for i in range(260, tokenizer.vocab_size):
        piece = processor.id_to_piece(i)
        assert table.leading_space[i] == piece.startswith("▁")
        assert table.base[i] == len(piece.removeprefix("▁").encode())
    assert not table.trailing_space.any()
