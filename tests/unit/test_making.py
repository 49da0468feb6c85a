"""Shards from text: the same bytes for any number of processes, and after any stop; a process that dies is named."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from golf.common.errors import GolfError
from golf.data.division import digest
from golf.data.encoder import Work, encode
from golf.data.making import HASH_BYTES, Making, hashes_name
from golf.data.overlap import Copies
from golf.data.sources import TextFiles
from golf.tokenizers.byte260 import Byte260

TEXTS = [f"document {i}: " + "word " * (i % 40) for i in range(300)]


class Stopped(TextFiles):
    """A source whose training text ends in a Ctrl-C after so many documents."""

    after: int | None = None

    def documents(self, split: str) -> Iterator[str]:
        for number, text in enumerate(super().documents(split)):
            if split == "train" and number == self.after:
                raise KeyboardInterrupt
            yield text


DEADLY = """
import os, signal
from golf.tokenizers.byte260 import Byte260
class Deadly(Byte260):
    def encode_batch(self, texts, num_threads=None):
        if num_threads == 1 and any("290:" in text for text in texts):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode_batch(texts, num_threads)
"""


@pytest.fixture
def source(tmp_path: Path) -> Stopped:
    lines = [json.dumps({"text": text}) + "\n" for text in TEXTS]
    (tmp_path / "t.jsonl").write_text("".join([*lines, lines[3].replace("word ", "word  ")]))
    return Stopped([str(tmp_path / "t.jsonl")], val_docs=20)


def made(source: TextFiles, folder: Path, processes: int = 1, shard_tokens: int = 3000) -> dict[str, bytes]:
    making = Making(source, Byte260(), folder, shard_tokens, processes=processes, batch=400)
    making.make(layout=0)
    assert list(folder.parent.glob(".*.part")) == []
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_any_number_of_processes_makes_the_same_bytes(source: Stopped, tmp_path: Path) -> None:
    alone = made(source, tmp_path / "1")
    assert len(alone) > 9
    assert made(source, tmp_path / "2", processes=2) == alone


def test_every_document_is_in_the_file_of_hashes(source: Stopped, tmp_path: Path) -> None:
    files = made(source, tmp_path / "made")
    told = json.loads(files["manifest.json"])["splits"]
    assert told["train"]["copies_left_out"] == 1
    for split, texts in (("val", TEXTS[:20]), ("train", TEXTS[20:])):
        assert files[hashes_name(split)] == b"".join(digest(text) for text in texts)
        assert told[split]["documents"] * HASH_BYTES == len(files[hashes_name(split)])


@pytest.mark.parametrize("after", [150, 279])
def test_what_was_stopped_goes_on_to_the_same_bytes(source: Stopped, tmp_path: Path, after: int) -> None:
    whole = made(source, tmp_path / "whole")
    source.after = after
    with pytest.raises(KeyboardInterrupt):
        made(source, tmp_path / "made")
    kept = tmp_path / ".made.part"
    (kept / ".golf_train_000099.bin.x.part").write_text("of a process that was killed")
    times = {path.name: path.stat().st_mtime_ns for path in kept.glob("golf_train_*")}
    assert len(times) > 1
    source.after = None
    assert made(source, tmp_path / "made") == whole
    assert {name: (tmp_path / "made" / name).stat().st_mtime_ns for name in times} == times


@pytest.mark.parametrize(
    "damaged",
    ["golf_train_000000.bin", "golf_val_000000.bin", "pending_*", "copies", "journal.json", "val_documents.hashes"],
)
def test_what_is_left_damaged_is_made_anew(source: Stopped, tmp_path: Path, damaged: str) -> None:
    whole = made(source, tmp_path / "whole")
    source.after = 200
    with pytest.raises(KeyboardInterrupt):
        made(source, tmp_path / "made")
    (path,) = (tmp_path / ".made.part").glob(damaged)
    path.write_bytes(path.read_bytes()[:-3] + b"x")
    source.after = None
    assert made(source, tmp_path / "made") == whole


@pytest.mark.skipif(os.name != "posix", reason="limits of file size are POSIX")
def test_a_disk_that_is_full_half_way_keeps_whole_shards_for_the_next_time(source: Stopped, tmp_path: Path) -> None:
    import resource

    class Filling(TextFiles):
        def documents(self, split: str) -> Iterator[str]:
            for number, text in enumerate(super().documents(split)):
                if split == "train" and number == 150:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, before[1]))  # a shard has 7,024 bytes
                yield text

    whole, before = made(source, tmp_path / "whole"), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(GolfError, match=r"cannot write .*golf_train_00000\d\.bin"):
            made(Filling([str(tmp_path / "t.jsonl")], val_docs=20), tmp_path / "made")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / ".made.part").glob("golf_train_*")}
    assert len(times) > 1
    assert made(source, tmp_path / "made") == whole
    assert {name: (tmp_path / "made" / name).stat().st_mtime_ns for name in times} == times


def test_before_the_first_training_shard_nothing_is_left(source: Stopped, tmp_path: Path) -> None:
    source.after = 1
    with pytest.raises(KeyboardInterrupt):
        made(source, tmp_path / "made")
    assert list(tmp_path.glob(".*.part")) == []


def test_a_process_that_is_killed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By some text, as one is that takes all the memory."""
    (tmp_path / "deadly_tokenizer.py").write_text(DEADLY)
    monkeypatch.syspath_prepend(str(tmp_path))
    from deadly_tokenizer import Deadly

    with pytest.raises(GolfError, match="signal 9"):
        list(encode(Work(Deadly(), Copies()), iter(TEXTS), processes=2, batch=400))


def test_copies_are_the_same_after_a_stop() -> None:
    copies = Copies()
    copies.hold([digest("a"), digest("b")], [digest("c")])
    again = Copies.from_bytes(copies.to_bytes())
    assert (again.known(digest("b")), again.known(digest("c")), again.known_ids(digest("c"))) == (True, False, True)
