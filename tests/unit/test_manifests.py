"""What manifests beside shards prove of training and validation, where golf reads the shards as they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from golf.common.files import read_json, sha256_file, write_json
from golf.data.inspection import inspect
from golf.data.prepare import prepare
from golf.data.sources import ShardFolder, TextFiles
from golf.runs.rules import rules
from golf.tokenizers.sentencepiece import SentencePieceSpec

TEXTS = [f"document {i} of words that are common to read, and then some {i * 7}" for i in range(60)]
APART = "no validation document is training text"
SEEN = "the tokenizer saw no validation text"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    (folder / "docs.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    source = TextFiles([str(folder / "docs.jsonl")], val_docs=9)
    return Path(prepare(source, SentencePieceSpec("toy", 300), cache=folder / "cache").facts["folder"])


def read(folder: Path, cache: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The facts of a folder's shards as they are, and the states of the rules."""
    (model,) = folder.glob("*.model")
    shards = ShardFolder(str(folder / "*_train_*.bin"), str(folder / "*_val_*.bin"))
    facts = prepare(shards, SentencePieceSpec("toy", 300, str(model)), cache=cache).facts
    return facts, {one.rule: one.state for one in rules({"data": facts})}


def test_shards_of_golfs_are_apart_by_the_manifest_beside_them(made: Path, tmp_path: Path) -> None:
    facts, states = read(made, tmp_path)
    assert states[APART] == states[SEEN] == "pass"
    assert facts["texts_apart"] == {"train": 51, "val": 9, "both": 0, "repeated": 0}
    assert facts["tokenizer_training"] == "training documents alone: all 51 of them, 3,206 bytes"
    assert facts["disjoint"].startswith("checked: ")


@pytest.mark.parametrize("name", ["golf_train_000000.bin", "train_documents.hashes"])
def test_what_is_not_the_manifests_proves_nothing(made: Path, tmp_path: Path, name: str) -> None:
    changed = Path(shutil.copytree(made, tmp_path / "changed"))
    data = bytearray((changed / name).read_bytes())
    data[-2:] = data[-4:-2]
    (changed / name).write_bytes(bytes(data))
    facts, states = read(changed, tmp_path)
    assert states[APART] == "not run"
    assert f"{name} is not what" in facts["disjoint"]
    assert "texts_apart" not in facts


def test_a_text_in_both_breaks_the_rule_whatever_the_manifest_says(made: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(made, tmp_path / "copied"))
    train, val = ((copied / f"{split}_documents.hashes").read_bytes() for split in ("train", "val"))
    (copied / "train_documents.hashes").write_bytes(val[:16] + train[16:])
    manifest = read_json(copied / "manifest.json")
    manifest["splits"]["train"]["document_hashes"]["sha256"] = sha256_file(copied / "train_documents.hashes")
    write_json(copied / "manifest.json", manifest)
    facts, states = read(copied, tmp_path)
    assert facts["texts_apart"]["both"] == 1
    assert states[APART] == "fail"


def test_the_challenges_manifest_tells_of_the_split_and_proves_none(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "datasets" / "fineweb10B_toy"
    folder.mkdir(parents=True)
    for split in ("train", "val"):
        shutil.copy(made / f"golf_{split}_000000.bin", folder / f"fineweb_{split}_000000.bin")
    shutil.copy(next(made.glob("*.model")), folder)
    entry = {"name": "fineweb10B_toy", "path": "datasets/fineweb10B_toy", "stats": {"docs_val": 9}}
    write_json(tmp_path / "manifest.json", {"num_docs": 60, "datasets": [entry]})
    facts, states = read(folder, tmp_path)
    assert states[APART] == states[SEEN] == "not run"
    assert facts["validation"] == "by its manifest: the first 9 documents of 60 are validation"
    assert inspect(folder, near=False, cache=tmp_path).wrong == []
    entry["stats"] = {"docs_val": 10}
    write_json(tmp_path / "manifest.json", {"num_docs": 60, "datasets": [entry]})
    assert "has 10 validation documents, the shards 9" in read(folder, tmp_path)[0]["disjoint"]
    assert inspect(folder, near=False, cache=tmp_path).wrong == [
        "its manifest has 10 validation documents, the shards 9"
    ]
