"""Tokenizers: training is deterministic, on the given text only, cached; loading checks what it loads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from golf.common.errors import ConfigError, DataError
from golf.tokenizers import sentencepiece
from golf.tokenizers.byte260 import Byte260, Byte260Spec
from golf.tokenizers.byte_table import prove
from golf.tokenizers.sentencepiece import SentencePieceSpec, SentencePieceTokenizer

PUBLISHED = Path(__file__).parent / "data" / "sp1024.model"
SPEC = SentencePieceSpec(name="toy", vocab_size=320)


def text() -> Iterator[str]:
    words = ["water", "light", "was", "the", "naïve", "café", "under", "over", "moving", "quickly", "returned", "a"]
    for i in range(1, 60):
        yield " ".join(words[(i * j + j * j) % len(words)] + str(i * j) for j in range(1, 40))


def test_the_same_text_gives_the_same_model(tmp_path: Path) -> None:
    first = SPEC.prepare(text, "source", tmp_path / "a")
    assert SPEC.prepare(text, "source", tmp_path / "b").hash == first.hash


def test_training_is_cached_by_source_and_options(tmp_path: Path) -> None:
    first = SPEC.prepare(text, "source", tmp_path)

    def unread() -> Iterator[str]:
        raise AssertionError("the text was read again")

    assert SPEC.prepare(unread, "source", tmp_path).hash == first.hash
    with pytest.raises(AssertionError):
        SPEC.prepare(unread, "another source", tmp_path)
    with pytest.raises(AssertionError):
        SentencePieceSpec(name="toy", vocab_size=321).prepare(unread, "source", tmp_path)


def test_an_error_in_the_text_keeps_its_message(tmp_path: Path) -> None:
    def broken() -> Iterator[str]:
        yield "some text"
        raise DataError("line 7 is not JSON")

    with pytest.raises(DataError, match="line 7 is not JSON"):
        SPEC.prepare(broken, "source", tmp_path)


def test_the_cache_holds_nothing_after_a_failed_training(tmp_path: Path) -> None:
    def broken() -> Iterator[str]:
        yield "some text"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SPEC.prepare(broken, "source", tmp_path)
    assert [p.suffix for p in (tmp_path / "tokenizers").iterdir()] in ([], [".lock"])


def test_the_id_layout_is_the_fields(tmp_path: Path) -> None:
    tokenizer = SPEC.prepare(text, "source", tmp_path)
    pieces = [tokenizer._processor.id_to_piece(i) for i in range(260)]
    assert pieces == ["<pad>", "<s>", "</s>", "<unk>", *(f"<0x{b:02X}>" for b in range(256))]
    assert (tokenizer.vocab_size, tokenizer.bos_id) == (320, 1)


def test_only_the_capped_prefix_is_trained_on(tmp_path: Path) -> None:
    def first_then_fail() -> Iterator[str]:
        yield from text()
        raise AssertionError("read beyond train_bytes")

    size = sum(len(t.encode()) for t in text())
    SentencePieceSpec(name="toy", vocab_size=320, train_bytes=size).prepare(first_then_fail, "s", tmp_path)


def test_long_documents_are_trained_on(tmp_path: Path) -> None:
    assert SPEC.prepare(lambda: iter([" ".join(text())]), "one long", tmp_path).vocab_size == 320


def test_the_fields_own_limit_leaves_long_documents_out(tmp_path: Path) -> None:
    spec = SentencePieceSpec(name="toy", vocab_size=320, longest_document=4192)
    with pytest.raises(DataError, match="vocab_size=320"):
        spec.prepare(lambda: iter([" ".join(text())]), "one long", tmp_path)


@pytest.mark.parametrize("documents", [[], ["", " \n\0"]])
def test_no_text_is_an_error(tmp_path: Path, documents: list[str]) -> None:
    with pytest.raises(DataError, match="no training text"):
        SPEC.prepare(lambda: iter(documents), "empty", tmp_path)


def test_too_little_text_for_the_vocabulary_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tokenizer\.vocab_size=5000"):
        SentencePieceSpec(name="big", vocab_size=5000).prepare(lambda: iter(["a few words"]), "s", tmp_path)


def test_a_model_of_another_size_is_refused_with_both_sizes() -> None:
    spec = SentencePieceSpec(name="sp2048", vocab_size=2048, model_path=str(PUBLISHED))
    with pytest.raises(ConfigError, match=r"vocab_size=2048.*sp1024\.model has 1024"):
        spec.prepare(text, "s", Path("unused"))


@pytest.fixture(scope="module")
def characters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of single characters, without byte pieces."""
    from sentencepiece import SentencePieceTrainer

    path = tmp_path_factory.mktemp("models") / "char.model"
    SentencePieceTrainer.train(
        sentence_iterator=iter(["a river walks over the stone"] * 9), model_prefix=str(path.with_suffix("")),
        vocab_size=40, model_type="char", pad_id=0, bos_id=1, eos_id=2, unk_id=3, add_dummy_prefix=False,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return path


def test_a_small_model_without_byte_pieces_can_be_loaded(characters: Path) -> None:
    size = SentencePieceTokenizer.load(characters).vocab_size
    assert size < 261
    loaded = SentencePieceSpec("char", size, str(characters)).prepare(text, "s", Path("unused"))
    assert prove(loaded, ["the river", "a stone"]).bytes == 16
    assert prove(loaded, ["the river??"]).bytes == 11


def test_a_small_model_of_another_size_is_refused_with_both_sizes(characters: Path) -> None:
    size = SentencePieceTokenizer.load(characters).vocab_size
    with pytest.raises(ConfigError, match=rf"vocab_size=64.*char\.model has {size} ids"):
        SentencePieceSpec("char", 64, str(characters)).prepare(text, "s", Path("unused"))


@pytest.mark.parametrize("size", [0, -1, 65537])
def test_impossible_sizes_of_loaded_models_are_named(size: int) -> None:
    with pytest.raises(ConfigError, match=f"vocab_size={size}: from 1 to 65536"):
        SentencePieceSpec("char", size, "any.model")


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x0a" * 400])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.model"
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a SentencePiece model"):
        SentencePieceTokenizer.load(path)


def test_a_truncated_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cut.model"
    path.write_bytes(PUBLISHED.read_bytes()[:5001])
    with pytest.raises(DataError):
        SentencePieceTokenizer.load(path)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.model"):
        SentencePieceTokenizer.load(tmp_path / "absent.model")


def test_the_hash_is_the_files() -> None:
    tokenizer = SentencePieceTokenizer.load(PUBLISHED)
    assert tokenizer.hash == hashlib.sha256(PUBLISHED.read_bytes()).hexdigest()
    assert (tokenizer.name, tokenizer.vocab_size) == ("sp1024", 1024)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_do_not_change_ids(threads: int) -> None:
    tokenizer = SentencePieceTokenizer.load(PUBLISHED)
    texts = [*text(), "", "☃"]
    for one, many in zip(
        tokenizer.encode_batch(texts), tokenizer.encode_batch(texts, num_threads=threads), strict=True
    ):
        assert one.dtype == np.uint16
        np.testing.assert_array_equal(one, many)


def unigram(folder: Path) -> SentencePieceTokenizer:
    return SentencePieceSpec(name="uni", vocab_size=310, model_type="unigram").prepare(text, "source", folder)


def test_a_unigram_model_is_trained_and_proved(tmp_path: Path) -> None:
    tokenizer = unigram(tmp_path)
    assert tokenizer.vocab_size == 310
    assert tokenizer.hash != SPEC.prepare(text, "source", tmp_path).hash
    assert prove(tokenizer, [*text(), "naïve ☃ \n 12\0 x"]).documents == 60


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_long_document_encodes_and_normalises_in_parts_as_it_does_whole(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
) -> None:
    tokenizer = SentencePieceTokenizer.load(PUBLISHED) if kind == "bpe" else unigram(tmp_path)
    document = "\n".join("".join(c for c in t if not c.isdigit()) for t in text()) + " naïve  é \u0301x\t\tend ﬁ 12"
    whole, normalized = tokenizer.encode_batch([document])[0], tokenizer.normalize(document)
    for size in (10, 57, 400):
        monkeypatch.setattr(sentencepiece, "_PART", size)
        assert len(tokenizer._cuts(document)) > 2
        np.testing.assert_array_equal(tokenizer.encode_batch(["a", document, "b"])[1], whole)
        assert tokenizer.normalize(document) == normalized


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"vocab_size": 260}, "vocab_size=260"),
        ({"vocab_size": 65537}, "vocab_size=65537"),
        ({"train_bytes": 0}, "train_bytes=0"),
        ({"character_coverage": 0.0}, "character_coverage"),
        ({"longest_document": 3}, "longest_document=3"),
        ({"name": "a/b"}, "name"),
        ({"model_type": "word"}, "model_type=word: one of bpe, unigram"),
    ],
)
def test_impossible_options_are_named(arguments: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        SentencePieceSpec(**{"name": "sp", "vocab_size": 1024, **arguments})  # type: ignore[arg-type]


def test_byte260_is_an_offset_of_four() -> None:
    tokenizer = Byte260Spec().prepare(text, "s", Path("unused"))
    assert tokenizer.encode_batch(["A\0ÿ"])[0].tolist() == [69, 4, 0xC3 + 4, 0xBF + 4]
    assert tokenizer.decode([1, 69, 4, 0xC3 + 4, 0xBF + 4, 2]) == "A\0ÿ"
    assert (Byte260.vocab_size, Byte260.bos_id) == (260, 1)


def test_byte260_has_one_size() -> None:
    with pytest.raises(ConfigError, match="vocab_size=512"):
        Byte260Spec(vocab_size=512)
