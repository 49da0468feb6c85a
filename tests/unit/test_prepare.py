"""Preparing data: whole or not at all, once for all processes, proved at load, and told in the run record."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from golf.common.errors import ConfigError, DataError
from golf.data.prepare import prepare
from golf.data.shards import write_shards
from golf.data.sources import PyStdlib, ShardFolder, TextFiles
from golf.tokenizers.byte260 import Byte260Spec
from golf.tokenizers.sentencepiece import SentencePieceSpec, SentencePieceTokenizer

PUBLISHED = Path(__file__).parent / "data" / "sp1024.model"
SP1024 = SentencePieceSpec(name="sp1024", vocab_size=1024, model_path=str(PUBLISHED))
TRAIN = ["the water was light", "naïve café ☃ \r\n 12345", "▁lone \0 \ufffd", "x" * 700] * 5
VAL = ["held out text", "👩‍👩‍👧 and\tmore"]


@pytest.fixture
def source(tmp_path: Path) -> TextFiles:
    for name, texts in (("train", TRAIN), ("val", VAL)):
        lines = (json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    return TextFiles([str(tmp_path / "train.jsonl")], val_paths=[str(tmp_path / "val.jsonl")])


def stream(tokenizer: SentencePieceTokenizer, texts: list[str]) -> np.ndarray:
    return np.concatenate([[tokenizer.bos_id, *ids] for ids in tokenizer.encode_batch(texts)])


def test_shards_hold_bos_and_ids_of_every_document(source: TextFiles, tmp_path: Path) -> None:
    data = prepare(source, SP1024, cache=tmp_path / "cache", shard_tokens=100)
    tokenizer = SentencePieceTokenizer.load(PUBLISHED)
    np.testing.assert_array_equal(data.train.read(0, len(data.train)), stream(tokenizer, TRAIN))
    np.testing.assert_array_equal(data.val.read(0, len(data.val)), stream(tokenizer, VAL))
    assert len(data.train.paths) > 1  # also a document longer than a shard


def test_the_facts_are_true(source: TextFiles, tmp_path: Path) -> None:
    data = prepare(source, SP1024, cache=tmp_path / "cache")
    train, val = data.facts["splits"]["train"], data.facts["splits"]["val"]
    assert (train["documents"], val["documents"]) == (20, 2)
    assert (train["tokens"], val["tokens"]) == (len(data.train), len(data.val))
    assert val["bytes"] == sum(len(data.tokenizer.normalize(text).encode()) for text in VAL)
    assert val["bytes_per_token"] == pytest.approx(val["bytes"] / len(data.val))
    assert data.facts["byte_proof"] == {"proved": True, "documents": 2, "bytes": val["bytes"]}
    assert data.facts["disjoint"].startswith("checked")
    assert data.facts["tokenizer_hash"] == data.tokenizer.hash
    assert data.facts["cached"] is False
    json.dumps(data.facts)


def test_the_second_call_reads_no_text(source: TextFiles, tmp_path: Path) -> None:
    first = prepare(source, SP1024, cache=tmp_path / "cache")

    class Unread(TextFiles):
        def documents(self, split: str) -> Iterator[str]:
            raise AssertionError("the text was read again")

    again = prepare(
        Unread([str(source.files[0])], val_paths=[str(tmp_path / "val.jsonl")]), SP1024, cache=tmp_path / "cache"
    )
    assert again.facts == {**first.facts, "cached": True}


def test_what_is_there_needs_no_lock_as_in_a_cache_that_others_own(source: TextFiles, tmp_path: Path) -> None:
    made = prepare(source, Byte260Spec(), cache=tmp_path)
    for lock in tmp_path.rglob("*.lock"):
        lock.unlink()
        lock.mkdir()  # which nobody can take
    again = prepare(source, Byte260Spec(), cache=tmp_path)
    assert (again.facts["cached"], again.facts["folder"]) == (True, made.facts["folder"])


def test_other_text_gets_other_shards(source: TextFiles, tmp_path: Path) -> None:
    first = prepare(source, SP1024, cache=tmp_path / "cache")
    with open(tmp_path / "train.jsonl", "a") as file:
        file.write('{"text": "one more"}\n')
    assert len(prepare(source, SP1024, cache=tmp_path / "cache").train) > len(first.train)


def test_the_tokenizer_never_sees_validation_text(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(" ".join(f"common words number {i}" for i in range(400)))
    (tmp_path / "v.txt").write_text("ⰆⰆⰆ " * 400)
    source = TextFiles([str(tmp_path / "t.txt")], val_paths=[str(tmp_path / "v.txt")])
    data = prepare(source, SentencePieceSpec(name="toy", vocab_size=300), cache=tmp_path / "cache")
    assert data.tokenizer.encode_batch(["Ⰶ"])[0].size == 3  # bytes only


def test_the_default_source_is_ready_for_bytes(tmp_path: Path) -> None:
    seen: list[tuple[str, float]] = []
    data = prepare(PyStdlib(), Byte260Spec(), cache=tmp_path, on_progress=lambda what, done: seen.append((what, done)))
    assert data.facts["byte_proof"]["proved"]
    assert len(data.val) > 100_000
    assert seen[-1][1] == 1.0
    assert all(0 <= done <= 1 for _, done in seen)


def test_an_interrupted_preparation_leaves_nothing(source: TextFiles, tmp_path: Path) -> None:
    class Interrupted(TextFiles):
        def documents(self, split: str) -> Iterator[str]:
            if split == "val":
                raise KeyboardInterrupt
            yield from super().documents("train")

    args = [str(source.files[0])], [str(tmp_path / "val.jsonl")]
    with pytest.raises(KeyboardInterrupt):
        prepare(Interrupted(*args), SP1024, cache=tmp_path / "cache")
    assert [p.name for p in (tmp_path / "cache" / "datasets").iterdir() if p.suffix != ".lock"] == []
    assert len(prepare(source, SP1024, cache=tmp_path / "cache").val) > 0


def test_what_a_killed_process_left_is_cleared_away(source: TextFiles, tmp_path: Path) -> None:
    folder = Path(prepare(source, SP1024, cache=tmp_path / "cache").facts["folder"])
    shutil.rmtree(folder)
    (folder.parent / f".{folder.name}.part").mkdir()
    (folder.parent / f".{folder.name}.part" / "golf_val_000007.bin").write_text("cut")  # and no journal
    folder.mkdir()  # no manifest: not whole
    prepare(source, SP1024, cache=tmp_path / "cache")
    assert sorted(p.name for p in folder.parent.iterdir()) == [folder.name, f"{folder.name}.lock"]
    assert "golf_val_000007.bin" not in [p.name for p in folder.iterdir()]


def test_two_processes_share_one_preparation(source: TextFiles, tmp_path: Path) -> None:
    script = (
        "import sys, pathlib\n"
        "from golf.data.prepare import prepare\n"
        "from golf.data.sources import TextFiles\n"
        "from golf.tokenizers.sentencepiece import SentencePieceSpec\n"
        "train, val, cache = sys.argv[1:]\n"
        "spec = SentencePieceSpec(name='toy', vocab_size=290)\n"
        "sys.stdin.readline()\n"
        "data = prepare(TextFiles([train], val_paths=[val]), spec, cache=pathlib.Path(cache))\n"
        "print(data.facts['cached'], data.tokenizer.hash, len(data.train), data.train.read(0, 999).sum())\n"
    )
    arguments = [str(source.files[0]), str(tmp_path / "val.jsonl"), str(tmp_path / "cache")]
    workers = [
        subprocess.Popen([sys.executable, "-c", script, *arguments], stdin=-1, stdout=-1, stderr=-1, text=True)
        for _ in range(2)
    ]
    for worker in workers:  # both have started: let them go at once
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    results = []
    for worker in workers:
        out, err = worker.communicate(timeout=240)
        assert worker.returncode == 0, err
        results.append(out.split())
    assert sorted(result[0] for result in results) == ["False", "True"]
    assert results[0][1:] == results[1][1:]
    assert len(list((tmp_path / "cache" / "datasets").glob("toy-*/manifest.json"))) == 1
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_an_unusable_cache_folder_is_one_clear_line(source: TextFiles, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="GOLF_CACHE"):
        prepare(source, SP1024, cache=tmp_path / "file" / "cache")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_the_shards_are_those_of_the_text_whatever_its_encoding(tmp_path: Path, encoding: str) -> None:
    made = []
    for name in ("utf-8", encoding):
        for i in range(9):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{i}.txt").write_bytes(f"naïve text, number {i}".encode(name))
        made.append(prepare(TextFiles([str(tmp_path / name)], val_docs=2), SP1024, cache=tmp_path / "cache"))
    for one, other in ((made[0].train, made[1].train), (made[0].val, made[1].val)):
        np.testing.assert_array_equal(one.read(0, len(one)), other.read(0, len(other)))
    assert made[0].facts["splits"]["val"]["bytes"] == made[1].facts["splits"]["val"]["bytes"]


def test_what_was_done_to_the_text_is_told_of_cached_shards_too(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(b"one text with a stray \xff in it")
    first, again = (prepare(TextFiles([str(tmp_path / "t.txt")]), SP1024, cache=tmp_path / "cache") for _ in range(2))
    assert again.facts["cached"]
    assert again.facts["notes"] == first.facts["notes"] != []


@pytest.mark.parametrize("rule", [{"val_docs": 5}, {"val_paths": ["t.txt"]}])
def test_an_empty_split_is_refused_before_a_tokenizer_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.txt").write_text("many words " * 1000)
    with pytest.raises(DataError, match="no train documents"):
        prepare(TextFiles(["t.txt"], **rule), SentencePieceSpec(name="toy", vocab_size=300), cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.model"))


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("text")
    (tmp_path / "v.txt").write_text("  \n")
    source = TextFiles([str(tmp_path / "t.txt")], val_paths=[str(tmp_path / "v.txt")])
    with pytest.raises(DataError, match="no val documents"):
        prepare(source, SP1024, cache=tmp_path / "cache")


@pytest.fixture
def shards(tmp_path: Path) -> ShardFolder:
    tokenizer = SentencePieceTokenizer.load(PUBLISHED)
    for split, texts in (("train", TRAIN), ("val", VAL * 4)):
        write_shards(tmp_path / "existing", split, [stream(tokenizer, texts)], 300, prefix="fineweb")
    folder = tmp_path / "existing"
    return ShardFolder(train=f"{folder}/fineweb_train_*.bin", val=f"{folder}/fineweb_val_*.bin")


def test_existing_shards_are_proved_on_their_decoded_text(shards: ShardFolder, tmp_path: Path) -> None:
    data = prepare(shards, SP1024, cache=tmp_path / "cache")
    assert data.facts["splits"]["val"]["documents"] == 8
    normalized = [data.tokenizer.normalize(text) for text in VAL * 4]
    assert data.facts["splits"]["val"]["bytes"] == sum(len(text.encode()) for text in normalized)
    assert data.facts["byte_proof"]["documents"] == 8
    assert data.facts["byte_proof"]["documents_that_encode_to_the_same_ids"] == 8
    assert data.facts["disjoint"].startswith("not checked")


def test_existing_shards_are_the_same_as_folders_and_globs_in_a_list(shards: ShardFolder, tmp_path: Path) -> None:
    expected = prepare(shards, SP1024, cache=tmp_path / "cache")
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for path in (tmp_path / "existing").glob(f"*_{split}_*"):
            shutil.copy(path, tmp_path / split)
    given = ShardFolder(train=f"{tmp_path}/train", val=[f"{tmp_path}/val/*.bin"])
    assert prepare(given, SP1024, cache=tmp_path / "cache").facts == expected.facts
    with pytest.raises(DataError, match=r"both a train and a validation shard .*\n.*data\.train=DIR/\*_train_"):
        prepare(ShardFolder(f"{tmp_path}/existing", [f"{tmp_path}/existing"]), SP1024, cache=tmp_path / "cache")


def test_existing_shards_cannot_train_a_tokenizer(shards: ShardFolder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.model_path"):
        prepare(shards, SentencePieceSpec(name="sp1024", vocab_size=1024), cache=tmp_path)


def test_shards_of_another_tokenizer_are_refused(shards: ShardFolder, tmp_path: Path) -> None:
    document = Path(json.__file__).read_text()  # long enough that no other vocabulary cuts it alike
    write_shards(tmp_path / "existing", "val", [stream(SentencePieceTokenizer.load(PUBLISHED), [document] * 3)])
    words = [f"{a}{b}{c}{d}er" for a in "bcdfghklm" for b in "aeiou" for c in "npqrstvwxz" for d in "aeou"]
    trained = SentencePieceSpec(name="other", vocab_size=1024)
    trained.prepare(lambda: iter([" ".join(words)] * 3), "s", tmp_path)
    other = SentencePieceSpec("other", 1024, str(next((tmp_path / "tokenizers").glob("other-*.model"))))
    val = f"{tmp_path}/existing/golf_val_*.bin"
    assert prepare(ShardFolder(shards.train, val), SP1024, cache=tmp_path).facts["byte_proof"]["documents"] == 3
    with pytest.raises(DataError, match="were not written with"):
        prepare(ShardFolder(shards.train, val), other, cache=tmp_path)


def test_shards_out_of_the_vocabulary_are_refused(shards: ShardFolder, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="out of a vocabulary of 260"):
        prepare(shards, Byte260Spec(), cache=tmp_path)


def test_one_file_in_both_splits_is_refused(shards: ShardFolder, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="both a train and a validation shard"):
        prepare(ShardFolder(train=shards.val, val=shards.val), SP1024, cache=tmp_path)


def test_shards_without_documents_cannot_be_proved(tmp_path: Path) -> None:
    for split, tokens in (("train", 501), ("val", 500)):
        write_shards(tmp_path, split, [np.full(tokens, 300)])
    with pytest.raises(DataError, match="no BOS"):
        prepare(ShardFolder(train=f"{tmp_path}/*_train_*", val=f"{tmp_path}/*_val_*"), SP1024, cache=tmp_path)


def test_one_endless_document_cut_inside_a_character_is_proved(tmp_path: Path) -> None:
    tokenizer = SentencePieceTokenizer.load(PUBLISHED)
    for split, times in (("train", 60), ("val", 50)):
        write_shards(tmp_path, split, [stream(tokenizer, ["the ☃" * times])[:-1]])
    data = prepare(ShardFolder(train=f"{tmp_path}/*_train_*", val=f"{tmp_path}/*_val_*"), SP1024, cache=tmp_path)
    assert data.facts["byte_proof"]["documents"] == 1


def test_a_cached_shard_that_was_edited_is_made_anew(
    source: TextFiles, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = prepare(source, SP1024, cache=tmp_path / "cache")
    ids = first.val.read(0, len(first.val))
    shard = first.val.paths[0]
    for edit, path in (
        (lambda path: path.write_bytes(path.read_bytes()[:-2] + b"\x05\x00"), shard),
        (Path.unlink, shard),
        (Path.unlink, shard.with_name("val_documents.hashes")),
    ):
        edit(path)
        caplog.clear()
        again = prepare(source, SP1024, cache=tmp_path / "cache")
        np.testing.assert_array_equal(again.val.read(0, len(again.val)), ids)
        assert again.facts["cached"] is False
        assert "has changed since golf wrote it: made anew" in caplog.text


def test_text_told_by_another_process_is_not_hashed(source: TextFiles, tmp_path: Path) -> None:
    first = prepare(source, SP1024, cache=tmp_path / "cache")
    Path(source.files[0]).unlink()
    again = prepare(source, SP1024, cache=tmp_path / "cache", believed=first.facts)
    assert again.facts == {**first.facts, "cached": True}
    assert len(again.train) == len(first.train)
