"""The count of bytes over whole data sets: every document of any order, shards of another tokenizer, changed shards."""

from __future__ import annotations

import io
import json
import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from golf.common.errors import DataError
from golf.data.prepare import prepare
from golf.data.shards import write_shards
from golf.data.sources import ShardFolder, TextFiles
from golf.tokenizers.byte260 import Byte260, Byte260Spec
from golf.tokenizers.byte_table import ByteTable
from golf.tokenizers.sentencepiece import SentencePieceSpec, SentencePieceTokenizer

PUBLISHED = Path(__file__).parent / "data" / "sp1024.model"
SP1024 = SentencePieceSpec(name="sp1024", vocab_size=1024, model_path=str(PUBLISHED))


def stream(tokenizer: SentencePieceTokenizer, texts: list[str]) -> np.ndarray:
    return np.concatenate([[tokenizer.bos_id, *ids] for ids in tokenizer.encode_batch(texts)])


def write_texts(folder: Path, train: Sequence[str], val: Sequence[str]) -> TextFiles:
    folder.mkdir(exist_ok=True)
    for name, texts in (("train", train), ("val", val)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return TextFiles([str(folder / "train.jsonl")], val_paths=[str(folder / "val.jsonl")])


class WrongOnZ(Byte260):
    """Counts two bytes for a z."""

    def byte_table(self) -> ByteTable:
        table = super().byte_table()
        table.base[4 + ord("z")] = 2
        return table


@dataclass
class Spec:
    """Any tokenizer as an option, ready made."""

    tokenizer: Any
    vocab_size: int = 260
    name: str = "byte260"
    needs_text: bool = False

    def prepare(self, *_: Any) -> Any:
        return self.tokenizer


@pytest.mark.parametrize("place", [0, 250, 499])
def test_a_wrong_count_in_any_document_is_refused_and_nothing_is_kept(tmp_path: Path, place: int) -> None:
    val = [f"plain text {i}" for i in range(500)]
    val[place] += " z"
    source = write_texts(tmp_path, ["train"], val)
    with pytest.raises(DataError, match=rf"bpb refused.*\(document {place + 1}, .*\nfirst at .* the piece 'z'"):
        prepare(source, Spec(WrongOnZ()), cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("manifest.json"))


@pytest.fixture(scope="module")
def llamalike(tmp_path_factory: pytest.TempPathFactory) -> SentencePieceSpec:
    """A model that keeps every space and has pieces of spaces alone."""
    from sentencepiece import SentencePieceTrainer

    texts, model = [*prose(40), *code(80)], io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=400, minloglevel=2, pad_id=-1, unk_id=0,
        bos_id=1, eos_id=2, model_type="bpe", byte_fallback=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, hard_vocab_limit=False,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("model") / "llamalike.model"
    path.write_bytes(model.getvalue())
    return SentencePieceSpec("llamalike", SentencePieceTokenizer.load(path).vocab_size, str(path))


def prose(n: int, seed: int = 0) -> list[str]:
    drawn = random.Random(seed)
    words = ["the", "river", "stone", "walks", "over", "green", "field", "slowly", "home"]
    return [" ".join(drawn.choice(words) for _ in range(drawn.randint(20, 60))) + ".\n" for _ in range(n)]


def code(n: int, seed: int = 0) -> list[str]:
    drawn = random.Random(seed)
    lines = ["x = y + 1", "return x", "for i in z:", "if a == b:"]
    return ["\n".join("    " * drawn.randint(1, 4) + drawn.choice(lines) for _ in range(8)) + "\n" for _ in range(n)]


def test_indented_code_behind_prose_counts_as_its_text_in_any_order(
    tmp_path: Path, llamalike: SentencePieceSpec
) -> None:
    val = [*prose(100, 1), *code(100, 1)]
    for name, texts in (("one", val), ("other", val[::-1])):
        data = prepare(write_texts(tmp_path / name, prose(9), texts), llamalike, cache=tmp_path / "cache")
        assert data.facts["splits"]["val"]["bytes"] == sum(len(text.encode()) for text in val)
        assert data.facts["byte_proof"]["documents"] == 200
        assert data.tokenizer.byte_table().count(data.val.read(0, len(data.val))) == data.facts["byte_proof"]["bytes"]


def test_shards_of_such_a_model_count_the_same_without_their_text(tmp_path: Path, llamalike: SentencePieceSpec) -> None:
    val = [*prose(100, 1), *code(100, 1)]
    data = prepare(write_texts(tmp_path / "text", prose(50), val), llamalike, cache=tmp_path / "cache")
    train, shards = ([str(path) for path in split.paths] for split in (data.train, data.val))
    again = prepare(ShardFolder(train, shards), llamalike, cache=tmp_path / "cache")
    assert again.facts["splits"]["val"]["bytes"] == data.facts["splits"]["val"]["bytes"]
    assert again.facts["byte_proof"]["documents_that_encode_to_the_same_ids"] == 200
    assert again.facts["train_sample"]["documents"] > 0


def test_unknown_characters_in_training_text_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from sentencepiece import SentencePieceTrainer

    SentencePieceTrainer.train(
        sentence_iterator=iter(prose(9)), model_prefix=str(tmp_path / "char"), vocab_size=40, model_type="char",
        pad_id=0, bos_id=1, eos_id=2, unk_id=3, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    size = SentencePieceTokenizer.load(tmp_path / "char.model").vocab_size
    spec = SentencePieceSpec("char", size, str(tmp_path / "char.model"))
    with caplog.at_level(logging.WARNING, "golf"):
        data = prepare(write_texts(tmp_path, ["the ☃ river ☃☃"], ["the river"]), spec, cache=tmp_path / "cache")
    assert data.facts["splits"]["train"]["unknown_tokens"] == 2  # the model takes neighbours for one
    assert "2 of the training tokens are characters that char has no piece for" in caplog.text


def test_a_normaliser_that_makes_text_longer_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = write_texts(tmp_path, ["the water"], ["½ ㍍ " * 10])
    with caplog.at_level(logging.WARNING, "golf"):
        data = prepare(source, SP1024, cache=tmp_path / "cache")
    assert data.facts["splits"]["val"]["bytes"] > data.facts["splits"]["val"]["text_bytes"]
    assert "makes the validation text longer" in caplog.text


class Counting(Byte260):
    """Tells how many documents were encoded and decoded."""

    def __init__(self) -> None:
        self.encoded = self.decoded = 0

    def encode_batch(self, texts: Sequence[str], num_threads: int | None = None) -> list[np.ndarray]:
        self.encoded += len(texts)
        return super().encode_batch(texts, num_threads)

    def decode(self, ids: Any) -> str:
        self.decoded += 1
        return super().decode(ids)


def byte_shards(folder: Path, split: str, texts: Sequence[str], tail: Sequence[int] = ()) -> list[str]:
    folder.mkdir(exist_ok=True, parents=True)
    texts = [*texts, *["of training alone"] * (split == "train")]  # a copy of the validation shard would be refused
    ids = [np.concatenate([[1], one]) for one in Byte260().encode_batch(texts)]
    return [str(path) for path in write_shards(folder, split, [*ids, np.array(tail, int)], prefix="elsewhere")]


def test_existing_shards_are_looked_through_once(tmp_path: Path) -> None:
    train, val = (byte_shards(tmp_path, split, prose(30)) for split in ("train", "val"))
    tokenizer = Counting()
    first = prepare(ShardFolder(train, val), Spec(tokenizer), cache=tmp_path / "cache")
    assert tokenizer.encoded >= 30
    tokenizer.encoded = tokenizer.decoded = 0
    assert prepare(ShardFolder(train, val), Spec(tokenizer), cache=tmp_path / "cache").facts == first.facts
    assert (tokenizer.encoded, tokenizer.decoded) == (0, 0)


def test_facts_told_by_another_process_are_believed(tmp_path: Path) -> None:
    train, val = (byte_shards(tmp_path, split, prose(30)) for split in ("train", "val"))
    first = prepare(ShardFolder(train, val), Byte260Spec(), cache=tmp_path / "cache")
    tokenizer = Counting()
    again = prepare(ShardFolder(train, val), Spec(tokenizer), cache=tmp_path / "empty", believed=first.facts)
    assert again.facts == first.facts
    assert tokenizer.encoded == 0
    assert not (tmp_path / "empty").exists()


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_shard_changed_anywhere_is_other_data(tmp_path: Path, split: str) -> None:
    texts = prose(30)
    paths = {name: byte_shards(tmp_path, name, texts * 120) for name in ("train", "val")}
    source = ShardFolder(paths["train"], paths["val"])
    first = prepare(source, Byte260Spec(), cache=tmp_path / "cache").facts
    changed = Path(paths[split][0])
    content = bytearray(changed.read_bytes())
    assert len(content) > 1 << 20
    content[-4] ^= 1  # another letter near the end; as long as before
    changed.write_bytes(content)
    assert prepare(source, Byte260Spec(), cache=tmp_path / "cache").facts["source_hash"] != first["source_hash"]


def test_the_same_shards_elsewhere_are_the_same_data(tmp_path: Path) -> None:
    hashes = []
    for name in ("one", "other"):
        train, val = (byte_shards(tmp_path / name, split, prose(9)) for split in ("train", "val"))
        hashes.append(prepare(ShardFolder(train, val), Byte260Spec(), cache=tmp_path).facts["source_hash"])
    assert hashes[0] == hashes[1]


@dataclass
class Pair:
    """Two tokenizers of one size and kind, and shards of a text by each."""

    folder: Path
    specs: dict[str, SentencePieceSpec] = field(default_factory=dict)

    def shard(self, name: str, parts: Sequence[tuple[str, list[str]]]) -> str:
        streams = [stream(SentencePieceTokenizer.load(str(self.specs[by].model_path)), texts) for by, texts in parts]
        return str(write_shards(self.folder, name, streams, prefix="pair")[0])


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    from sentencepiece import SentencePieceTrainer

    made = Pair(tmp_path)
    for name, texts in (("a", prose(200)), ("b", [text[::-1] for text in prose(200)])):
        model = io.BytesIO()
        SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=model, vocab_size=300, model_type="bpe", byte_fallback=True,
            add_dummy_prefix=False, hard_vocab_limit=False, pad_id=0, bos_id=1, eos_id=2, unk_id=3, minloglevel=2,
        )  # fmt: skip
        (tmp_path / f"{name}.model").write_bytes(model.getvalue())
        size = SentencePieceTokenizer.load(tmp_path / f"{name}.model").vocab_size
        made.specs[name] = SentencePieceSpec(name, size, str(tmp_path / f"{name}.model"))
    assert made.specs["a"].vocab_size == made.specs["b"].vocab_size
    return made


@pytest.mark.parametrize("place", ["beginning", "middle", "end", "second shard"])
def test_training_shards_of_another_tokenizer_are_refused(pair: Pair, tmp_path: Path, place: str) -> None:
    val, mine, alien = pair.shard("val", [("a", prose(20, 9))]), ("a", prose(1200)), ("b", prose(200))
    good = pair.shard("good", [mine])
    prepare(ShardFolder(good, val), pair.specs["a"], cache=tmp_path / "cache")
    parts = {"beginning": [alien, mine, mine], "middle": [mine, alien, mine], "end": [mine, mine, alien]}
    bad = pair.shard("bad", parts.get(place, [alien]))
    with pytest.raises(DataError, match=r"pair_bad_000000\.bin were not written with a"):
        prepare(ShardFolder([good, bad], val), pair.specs["a"], cache=tmp_path / "cache")


def test_validation_shards_of_two_tokenizers_are_refused(pair: Pair, tmp_path: Path) -> None:
    train, mine = pair.shard("train", [("a", prose(99))]), pair.shard("mine", [("a", prose(300, 2))])
    alien = pair.shard("alien", [("b", prose(30, 3))])
    for val in ([mine, alien], [alien, mine]):
        with pytest.raises(DataError, match=r"pair_alien_000000\.bin were not written with a"):
            prepare(ShardFolder(train, val), pair.specs["a"], cache=tmp_path / "cache")


def test_one_shard_of_two_tokenizers_is_refused(pair: Pair, tmp_path: Path) -> None:
    train = pair.shard("train", [("a", prose(99))])
    val = pair.shard("val", [("a", prose(300, 2)), ("b", prose(20, 3))])
    with pytest.raises(DataError, match=r"pair_val_000000\.bin were not written with a"):
        prepare(ShardFolder(train, val), pair.specs["a"], cache=tmp_path / "cache")


@pytest.mark.parametrize("at", [0, 70_000, 139_999])
def test_an_id_out_of_the_vocabulary_anywhere_in_training_is_refused(tmp_path: Path, at: int) -> None:
    ids = np.resize(np.concatenate([[1, *one] for one in Byte260().encode_batch(prose(30))]), 140_000)
    ids[at] = 260
    [train] = write_shards(tmp_path, "train", [ids])
    val = byte_shards(tmp_path, "val", prose(9))
    with pytest.raises(DataError, match=f"token {at} is id 260, out of a vocabulary"):
        prepare(ShardFolder(str(train), val), Byte260Spec(), cache=tmp_path / "cache")


def test_training_documents_longer_than_what_is_looked_at_are_compared_in_part(pair: Pair, tmp_path: Path) -> None:
    val, long = pair.shard("val", [("a", prose(20, 9))]), [" ".join(prose(4000))]
    facts = prepare(ShardFolder(pair.shard("long", [("a", long)]), val), pair.specs["a"], cache=tmp_path).facts
    assert facts["train_sample"] == {"documents": 3, "documents_that_encode_to_the_same_ids": 3}
    with pytest.raises(DataError, match="were not written with a"):
        prepare(ShardFolder(pair.shard("alien", [("b", long)]), val), pair.specs["a"], cache=tmp_path)


def test_documents_that_end_in_eos_count_as_their_text(pair: Pair, tmp_path: Path) -> None:
    tokenizer, texts = SentencePieceTokenizer.load(str(pair.specs["a"].model_path)), prose(20)
    ids = np.concatenate([[1, *one, 2] for one in tokenizer.encode_batch(texts)])
    shards = [
        str(write_shards(tmp_path, split, [part])[0]) for split, part in (("train", np.tile(ids, 2)), ("val", ids))
    ]
    facts = prepare(ShardFolder(*shards), pair.specs["a"], cache=tmp_path / "cache").facts
    assert facts["splits"]["val"]["bytes"] == sum(len(text.strip().encode()) for text in texts)
    assert facts["byte_proof"]["documents_that_encode_to_the_same_ids"] == 20


def test_unknown_pieces_in_validation_shards_are_refused(tmp_path: Path, pair: Pair) -> None:
    tokenizer = SentencePieceTokenizer.load(str(pair.specs["a"].model_path))
    ids = [[1, *one] for one in tokenizer.encode_batch(prose(200))]
    train = write_shards(tmp_path, "train", [np.concatenate(ids)])[0]
    ids[150][5] = 3
    val = write_shards(tmp_path, "val", [np.concatenate(ids)])[0]
    with pytest.raises(DataError, match=r"document 151.*\n1 of its tokens stand for no text"):
        prepare(ShardFolder(str(train), str(val)), pair.specs["a"], cache=tmp_path / "cache")


def test_a_stream_that_begins_within_a_document_and_a_character_is_proved(tmp_path: Path) -> None:
    ids = np.concatenate([[1, *one] for one in Byte260().encode_batch(["☃ the snowman", *prose(5), "the end ☃"])])
    [val] = write_shards(tmp_path, "val", [ids[2:-1]])
    facts = prepare(
        ShardFolder(byte_shards(tmp_path, "train", prose(9)), str(val)), Byte260Spec(), cache=tmp_path
    ).facts
    assert facts["byte_proof"]["documents"] == 7
    assert facts["byte_proof"]["bytes"] == facts["splits"]["val"]["bytes"] - 3  # of the two snowmen's remains


def test_shards_are_usable_where_nothing_can_be_remembered(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    shards = ShardFolder(*(byte_shards(tmp_path, split, prose(9)) for split in ("train", "val")))
    assert prepare(shards, Byte260Spec(), cache=tmp_path / "file" / "cache").facts["byte_proof"]["documents"] == 9
