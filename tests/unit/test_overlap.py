"""What training has of validation: copies that tokenizers cannot tell, copied shards, near copies; and their marks."""

from __future__ import annotations

import io
import json
import logging
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from golf.common.errors import DataError
from golf.data import overlap
from golf.data.prepare import Prepared, prepare
from golf.data.shards import write_shards
from golf.data.sources import ShardFolder, TextFiles
from golf.tokenizers.byte260 import Byte260, Byte260Spec
from golf.tokenizers.sentencepiece import SentencePieceSpec, SentencePieceTokenizer

PUBLISHED = Path(__file__).parent / "data" / "sp1024.model"
SP1024 = SentencePieceSpec(name="sp1024", vocab_size=1024, model_path=str(PUBLISHED))


def prose(n: int, seed: int = 0, words: int = 60) -> list[str]:
    """Documents of random words, no two alike."""
    draw = random.Random(seed)
    return [" ".join("".join(draw.choices("abcdefghij", k=5)) for _ in range(words)) for _ in range(n)]


def texts(folder: Path, train: Sequence[str], val: Sequence[str]) -> TextFiles:
    for name, documents in (("train", train), ("val", val)):
        lines = (json.dumps({"text": text}) + "\n" for text in documents)
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return TextFiles([str(folder / "train.jsonl")], val_paths=[str(folder / "val.jsonl")])


def shards(folder: Path, train: Sequence[str], val: Sequence[str]) -> ShardFolder:
    paths = {}
    for name, documents in (("train", train), ("val", val)):
        ids = [np.concatenate([[1], one]) for one in Byte260().encode_batch(documents)]
        paths[name] = [str(path) for path in write_shards(folder, name, ids)]
    return ShardFolder(paths["train"], paths["val"])


COPIES = [
    lambda text: text.replace(" ", "  "), lambda text: text.replace(" ", "\n"), lambda text: f" {text}\n",
    lambda text: text.replace(" ", "\u00a0"),
]  # fmt: skip


@pytest.mark.parametrize("spec", [SP1024, Byte260Spec()], ids=lambda spec: spec.name)
def test_copies_that_differ_in_white_space_are_left_out(tmp_path: Path, spec: SentencePieceSpec) -> None:
    own, val = prose(6), prose(4, seed=1)
    train = [*own, *(change(text) for change, text in zip(COPIES, val, strict=True))]
    data = prepare(texts(tmp_path, train, val), spec, cache=tmp_path / "cache")
    assert data.facts["splits"]["train"]["documents"] == 6
    assert data.facts["splits"]["train"]["copies_left_out"] == 4
    assert "4 more train documents" in data.facts["disjoint"]


def test_copies_that_the_tokenizer_cannot_tell_are_left_out(tmp_path: Path) -> None:
    val = prose(2, seed=1)
    wide = [text.translate({ord(letter): ord(letter) + 0xFEE0 for letter in "abcdefghij"}) for text in val]
    data = prepare(texts(tmp_path, [*prose(3), *wide], val), SP1024, cache=tmp_path / "cache")
    assert data.facts["splits"]["train"]["copies_left_out"] == 2


def test_a_tokenizer_is_not_trained_on_copies_of_validation(tmp_path: Path) -> None:
    val = ["zyzzyva  quux " * 40]
    train = [*prose(40), *[val[0].replace("  ", " ").strip()] * 40]
    spec = SentencePieceSpec(name="toy", vocab_size=300)
    with_copies = prepare(texts(tmp_path, train, val), spec, cache=tmp_path / "a")
    without = prepare(texts(tmp_path, train[:40], val), spec, cache=tmp_path / "b")
    assert with_copies.tokenizer.hash == without.tokenizer.hash


def near(data: Prepared) -> float:
    share = data.facts["overlap"]["share"]
    assert isinstance(share, float)
    return share


def test_near_copies_are_a_figure_of_texts_and_of_shards(tmp_path: Path) -> None:
    val = prose(10, seed=1)
    edited = [text[:150] + "a word of its own" + text[190:] for text in val[:3]]
    train = [*prose(20), *edited]
    for name, source in (("texts", texts(tmp_path, train, val)), ("shards", shards(tmp_path, train, val))):
        data = prepare(source, Byte260Spec(), cache=tmp_path / name)
        assert near(data) == pytest.approx(0.3)
        assert any("30.0% of 10 validation documents" in line for line in overlap.told(data.facts))
    assert near(prepare(texts(tmp_path, prose(20), val), Byte260Spec(), cache=tmp_path / "none")) == 0.0


def test_a_copy_of_the_validation_shard_is_refused(tmp_path: Path) -> None:
    source = shards(tmp_path, prose(5), prose(5, seed=1))
    copy = tmp_path / "golf_train_000001.bin"
    shutil.copy(source.files("val")[0], copy)
    with pytest.raises(DataError, match=f"{copy} is a copy of the validation shard"):
        prepare(ShardFolder([*map(str, source.files("train")), str(copy)], source.val), Byte260Spec(), cache=tmp_path)


def test_validation_documents_within_training_shards_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    val = prose(9, seed=1)
    data = prepare(shards(tmp_path, [*prose(5), *val[2:5], *prose(3, seed=2)], val), Byte260Spec(), cache=tmp_path)
    assert data.facts["copies_in_training"] == 3
    assert "3 training documents are validation documents, token for token" in caplog.text


def test_what_was_validated_has_one_hash_in_any_tokens(tmp_path: Path) -> None:
    train, val = prose(5), [*prose(4, seed=1), "two\n\nparagraphs ﬁne " * 9]
    of = [
        prepare(source, spec, cache=tmp_path / "cache").facts["splits"]["val"]["text_sha256"]
        for source in (texts(tmp_path, train, val), shards(tmp_path, train, val))
        for spec in ((SP1024, Byte260Spec()) if isinstance(source, TextFiles) else (Byte260Spec(),))
    ]
    assert len(set(of)) == 1
    other = prepare(texts(tmp_path, train, [*val[:-1], "else"]), SP1024, cache=tmp_path / "cache")
    assert other.facts["splits"]["val"]["text_sha256"] not in of


def test_what_a_tokenizer_was_trained_on_is_in_the_record(tmp_path: Path) -> None:
    source = texts(tmp_path, prose(40), prose(2, seed=1))
    given = prepare(source, SP1024, cache=tmp_path / "cache").facts
    own = prepare(source, SentencePieceSpec(name="toy", vocab_size=300), cache=tmp_path / "cache").facts
    assert given["tokenizer_training"].startswith("unknown: loaded from")
    assert any("tokenizer's own training text is unknown" in line for line in overlap.told(given))
    assert own["tokenizer_training"] == "training documents alone: all 40 of them, 14,360 bytes"
    assert prepare(source, Byte260Spec(), cache=tmp_path).facts["tokenizer_training"].startswith("none")


@pytest.mark.parametrize("lost", [2, 60])
def test_shards_whose_tokenizer_loses_text_are_told_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, lost: int
) -> None:
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(prose(200)), model_writer=model, vocab_size=200, model_type="bpe", pad_id=0, bos_id=1,
        add_dummy_prefix=False, hard_vocab_limit=False, eos_id=2, unk_id=3, minloglevel=2,
    )  # fmt: skip
    path = tmp_path / "lossy.model"
    path.write_bytes(model.getvalue())
    tokenizer = SentencePieceTokenizer.load(path)
    documents = [text + " ☃" * (number < lost) for number, text in enumerate(prose(60, seed=3))]
    ids = [np.concatenate([[1], one]) for one in tokenizer.encode_batch(documents)]
    train, val = write_shards(tmp_path, "train", ids[:-1])[0], write_shards(tmp_path, "val", ids)[0]
    spec = SentencePieceSpec("lossy", tokenizer.vocab_size, str(path))
    with caplog.at_level(logging.WARNING), pytest.raises(DataError) as told:
        prepare(ShardFolder(str(train), str(val)), spec, cache=tmp_path / "cache")
    assert "has one id for whatever it has no piece for" in str(told.value)
    assert "side-car" in str(told.value)
    assert "not written with" not in str(told.value)
