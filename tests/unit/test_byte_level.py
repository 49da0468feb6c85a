"""Byte-level BPE: trained by golf or a user's own, its bytes counted, its text kept, what cannot be counted refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from golf.common.errors import ConfigError, DataError
from golf.data.prepare import prepare
from golf.data.sources import TextFiles
from golf.tokenizers import byte_level
from golf.tokenizers.byte_level import ByteLevelSpec, ByteLevelTokenizer, load
from golf.tokenizers.byte_table import prove
from golf.tokenizers.sentencepiece import SentencePieceSpec

TEXTS = ["naïve café ☃ \r\n 12345", "<s>a special token's name</s>", "\0 \ufffd e\u0301", " it's  the   water\n\n"]


def trained(folder: Path, size: int = 320) -> ByteLevelTokenizer:
    documents = [f"common words number {i}, and the water was light" for i in range(50)]
    return ByteLevelSpec("bl", size).prepare(lambda: iter(documents), "hash", folder)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> ByteLevelTokenizer:
    return trained(tmp_path_factory.mktemp("own"))


def foreign(
    folder: Path, prefix: bool = False, normalizer: Any = None, pre: Any = None, special: tuple[str, ...] = ("<s>",)
) -> Path:
    """A tokenizer.json with three merges, as others write them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: i for i, piece in enumerate([*alphabet, "Ġt", "Ġth", "Ġthe"])}
    tokenizer = Tokenizer(models.BPE(vocab, [("Ġ", "t"), ("Ġt", "h"), ("Ġth", "e")]))
    tokenizer.pre_tokenizer = pre or pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.add_special_tokens(list(special))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def test_the_id_layout_is_the_fields_and_the_sample_is_told(own: ByteLevelTokenizer) -> None:
    assert (own.vocab_size, own.bos_id) == (320, 1)
    assert own.trained_on == "all 50 of them, 2,340 bytes"
    assert [own.decode([i]) for i in range(4)] == [""] * 4


def test_the_same_text_gives_the_same_tokenizer(own: ByteLevelTokenizer, tmp_path: Path) -> None:
    assert trained(tmp_path).hash == own.hash


@given(text=st.text(max_size=60))
def test_any_text_is_kept_and_counted(own: ByteLevelTokenizer, text: str) -> None:
    (ids,) = own.encode_batch([text])
    assert own.decode(ids) == text
    assert own.byte_table().count(np.array([1, *ids])) == len(text.encode())


def test_another_process_gets_the_same(own: ByteLevelTokenizer) -> None:
    sent = pickle.loads(pickle.dumps(own))
    assert (sent.hash, sent.trained_on) == (own.hash, own.trained_on)
    np.testing.assert_array_equal(sent.encode_batch(TEXTS)[1], own.encode_batch(TEXTS)[1])


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("normalizer", [None, normalizers.NFC()], ids=["as it is", "NFC"])
def test_a_users_tokenizer_is_proved(tmp_path: Path, prefix: bool, normalizer: Any) -> None:
    tokenizer = load(foreign(tmp_path, prefix, normalizer))
    assert tokenizer.name == tmp_path.name
    assert prove(tokenizer, [*TEXTS, "the end", " the end"]).documents == 6


def test_the_table_is_what_each_piece_adds(own: ByteLevelTokenizer) -> None:
    table = own.byte_table()
    (ids,) = own.encode_batch(["the water ☃"])
    texts = [own.decode(ids[: n + 1]) for n in range(len(ids))]
    assert texts[-1] == "the water ☃"
    assert sum(table.base[ids]) == len("the water ☃".encode())
    assert own.fragments[ids].sum() == 3


def test_a_long_document_encodes_in_parts_as_it_does_whole(
    own: ByteLevelTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "the water was light, it's 12 words\n\n number  one and two a b c " * 20
    (whole,) = own.encode_batch([text])
    monkeypatch.setattr(byte_level, "_PART", 40)
    assert len(own._cuts(text)) > 10
    np.testing.assert_array_equal(own.encode_batch([text])[0], whole)


def test_shards_are_prepared_and_found_again(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"document {i} and the water was light {TEXTS[i % 4]}"}) + "\n" for i in range(40)]
    (tmp_path / "t.jsonl").write_text("".join(lines))
    for cached in (False, True):
        data = prepare(
            TextFiles([str(tmp_path / "t.jsonl")], val_docs=5), ByteLevelSpec("bl", 300), cache=tmp_path / "cache"
        )
        assert data.facts["cached"] is cached
        assert data.facts["byte_proof"]["documents"] == 5
        assert data.facts["tokenizer_training"].startswith("training documents alone: all 35 of them")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pre": pre_tokenizers.Metaspace()}, "is not byte-level"),
        ({"special": ("<extra>",)}, r"no special token <s> or .*\n\(tokenizer.bos names"),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(foreign(tmp_path, **options))


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    for content, message in (("{}", "is no tokenizer.json"), ("no JSON", "is no tokenizer.json")):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(DataError, match=message):
            load(tmp_path / "x.json")
    with pytest.raises(DataError, match="cannot read the tokenizer"):
        load(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="tokenizer=sp1024 reads"):
        ByteLevelSpec("bl", 300, model_path="x/sp.model")
    with pytest.raises(ConfigError, match="tokenizer=bytelevel reads"):
        SentencePieceSpec("sp", 300, model_path="x/tokenizer.json")


def test_a_token_of_the_users_own_begins_documents(tmp_path: Path) -> None:
    path = foreign(tmp_path, special=("<extra>", "<s>"))
    assert load(path, bos="<extra>").bos_id != load(path).bos_id


@pytest.mark.parametrize("size", [100, 70_000])
def test_impossible_sizes_are_named(size: int) -> None:
    with pytest.raises(ConfigError, match=f"tokenizer.vocab_size={size}"):
        ByteLevelSpec("bl", size)


def test_too_little_text_is_told_with_the_size_that_it_gives(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"too little for tokenizer.vocab_size=5000: it gives \d+ ids"):
        trained(tmp_path, 5000)
