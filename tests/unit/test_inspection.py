"""What is said of a folder of shards: what its files prove, what they contradict, what nobody can know of them."""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from golf.common.errors import DataError
from golf.data.inspection import Inspection, inspect
from golf.data.prepare import prepare
from golf.data.shards import write_shards
from golf.data.sources import TextFiles
from golf.tokenizers.byte260 import Byte260, Byte260Spec


def prose(n: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join("".join(draw.choices("abcdefghij", k=5)) for _ in range(60)) for _ in range(n)]


OWN, VAL = prose(30, 0), prose(8, 1)
NEAR = VAL[2][:-24] + "and its end is another one"


def look(folder: Path, **options: object) -> Inspection:
    return inspect(folder, cache=folder.parent / "looked", **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    for name, documents in (("train", [*OWN, NEAR]), ("val", VAL)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    source = TextFiles([str(folder / "train.jsonl")], val_paths=[str(folder / "val.jsonl")])
    return Path(prepare(source, Byte260Spec(), cache=folder / "cache").facts["folder"])


def shards(folder: Path, train: list[str], val: list[str], bos: int = 1) -> Path:
    for name, documents in (("train", train), ("val", val)):
        write_shards(folder, name, [np.concatenate([[bos], one]) for one in Byte260().encode_batch(documents)])
    return folder


def test_what_golf_made_is_proved_by_its_manifest(made: Path) -> None:
    found = look(made)
    assert (found.wrong, found.unproved) == ([], [])
    assert "of 31 training and 8 validation texts 0 are in both, by their hashes" in found.proved
    assert any(line.startswith("the byte count") for line in found.proved)
    assert found.facts["the tokenizer's training"] == "none: its tokens are bytes"
    assert next(text for place, text in found.samples if place == "val, token 0").startswith(VAL[0][:100])


def test_the_nearest_documents_are_shown(made: Path) -> None:
    (place, val, train), *others = look(made).pairs
    assert (val[:80], train[:80]) == (VAL[2][:80], NEAR[:80])
    assert 75 <= int(place.split("%")[0]) <= 95
    assert not others
    assert "1 with at least 50%" in look(made).facts["near copies"]


def test_without_what_finds_near_copies_the_rest_is_told(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)
    found = look(made)
    assert any("pip install 'golf[near]'" in line for line in found.unproved)
    assert not found.wrong


@pytest.mark.parametrize("name", ["golf_train_000000.bin", "train_documents.hashes", "val_documents.hashes"])
def test_a_changed_file_is_named(made: Path, tmp_path: Path, name: str) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(made, changed)
    data = bytearray((changed / name).read_bytes())
    data[-2:] = data[-2] ^ 1, data[-1]
    (changed / name).write_bytes(bytes(data))
    assert len(look(changed, near=False).wrong) == 1


def test_of_others_shards_is_told_what_cannot_be_known(tmp_path: Path) -> None:
    folder = shards(tmp_path / "theirs", [*OWN, VAL[3]], VAL)
    found = look(folder, near=False)
    assert found.wrong == ["of the training documents of 16 tokens or more 1 are validation documents, token for token"]
    assert len(found.unproved) == 4
    with_tokenizer = look(folder, near=False, tokenizer_path="byte260")
    assert any(line.startswith("the byte count") for line in with_tokenizer.proved)
    assert len(with_tokenizer.unproved) == 3


def test_a_folder_without_shards_and_one_with_several_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no shards"):
        look(tmp_path)
    for name in ("a", "b"):
        shards(tmp_path / name, OWN, VAL)
    with pytest.raises(DataError, match=r"holds shards in 2 folders: name one of them \(a, b\)"):
        look(tmp_path)
    shutil.rmtree(tmp_path / "b")
    assert look(tmp_path, near=False).folder == tmp_path / "a"
