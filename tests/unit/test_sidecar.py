"""The byte side-car: made beside shards, hashed with them, and what every figure's bytes are counted by."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from golf.common.errors import DataError
from golf.common.files import read_json
from golf.common.ranks import Ranks
from golf.data import sidecar
from golf.data.inspection import inspect
from golf.data.prepare import Prepared, prepare
from golf.data.shards import write_shards
from golf.data.sources import ShardFolder, TextFiles
from golf.evals.detail import Detail
from golf.evals.evaluators import Evaluator, Validation
from golf.tokenizers.caseops import TITLE, CaseOps
from golf.tokenizers.sentencepiece import SentencePieceSpec, SentencePieceTokenizer

TRAIN = [f"The River {i} walks by London and NASA {i * i} then" for i in range(60)]
VAL = [f"A Stone {i} in THE River, {'☃☃ ' * (i % 2)}{TITLE} said" for i in range(20)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> TextFiles:
    folder = tmp_path_factory.mktemp("text")
    for name, texts in (("train", TRAIN), ("val", VAL)):
        for i, text in enumerate(texts):
            (folder / name).mkdir(exist_ok=True)
            (folder / name / f"{i:03d}.txt").write_text(text, encoding="utf-8")
    return TextFiles([str(folder / "train")], val_paths=[str(folder / "val")])


@pytest.fixture(scope="module")
def caseops(source: TextFiles, tmp_path_factory: pytest.TempPathFactory) -> tuple[Prepared, Path]:
    cache = tmp_path_factory.mktemp("cache")
    return prepare(source, SentencePieceSpec("toy", 300, transform=CaseOps()), cache=cache, shard_tokens=300), cache


@pytest.fixture(scope="module")
def without_bytes(tmp_path_factory: pytest.TempPathFactory) -> SentencePieceSpec:
    from sentencepiece import SentencePieceTrainer

    path = tmp_path_factory.mktemp("model") / "lossy.model"
    with open(path, "wb") as file:
        SentencePieceTrainer.train(
            sentence_iterator=iter(TRAIN), model_writer=file, vocab_size=90, model_type="bpe", pad_id=0, bos_id=1,
            eos_id=2, unk_id=3, hard_vocab_limit=False, add_dummy_prefix=False, minloglevel=2,
        )  # fmt: skip
    return SentencePieceSpec("lossy", SentencePieceTokenizer.load(path).vocab_size, str(path))


def test_it_lies_beside_the_shards_with_their_layout_and_sums_to_the_documents(caseops: tuple[Prepared, Path]) -> None:
    made, _ = caseops
    assert made.val_bytes is not None
    assert [path.name for path in made.val_bytes.paths] == [
        path.name.replace("_val_", "_val_bytes_") for path in made.val.paths
    ]
    assert [made.val_bytes.size(i) for i in range(len(made.val.paths))] == [
        made.val.size(i) for i in range(len(made.val.paths))
    ]
    ids, counts = made.val.read(0, len(made.val)), made.val_bytes.read(0, len(made.val))
    assert len(made.val.paths) > 1
    assert not counts[ids == made.tokenizer.bos_id].any()
    starts = np.flatnonzero(ids == made.tokenizer.bos_id)
    assert np.add.reduceat(counts, starts).tolist() == [len(made.tokenizer.normalize(text).encode()) for text in VAL]
    assert made.facts["byte_proof"]["bytes"] == counts.sum() == made.facts["splits"]["val"]["bytes"]
    assert made.tokenizer.byte_table().count(ids) < counts.sum()  # which no table of ids can: marks in the text itself


def test_it_is_hashed_in_the_manifest_and_made_anew_when_changed(
    source: TextFiles, caseops: tuple[Prepared, Path], tmp_path: Path
) -> None:
    made, cache = caseops
    shutil.copytree(cache, tmp_path, dirs_exist_ok=True)
    spec = SentencePieceSpec("toy", 300, transform=CaseOps())
    (path,) = tmp_path.rglob("golf_val_bytes_000000.bin")
    assert path.name in read_json(path.parent / "manifest.json")["splits"]["val"]["sha256"]
    whole = path.read_bytes()
    path.write_bytes(whole[:-2] + b"\7\7")
    assert prepare(source, spec, cache=tmp_path, shard_tokens=300).facts["cached"] is False
    assert path.read_bytes() == whole
    assert prepare(source, spec, cache=tmp_path, shard_tokens=300, believed=made.facts).val_bytes is not None


def test_evaluators_and_reports_count_by_it(caseops: tuple[Prepared, Path]) -> None:
    made, _ = caseops
    validation = Validation.of(made, 16, None, torch.device("cpu"))
    counted = int(validation.charges().sum())

    def scorer(ids: torch.Tensor, targets: torch.Tensor, **_: object) -> torch.Tensor:
        return torch.ones(targets.shape)

    for evaluator in (Evaluator(16), Evaluator(16, 5, batch_tokens=64), Evaluator(16, documents=True)):
        assert evaluator.evaluate(scorer, validation, Ranks()).bytes == counted == made.facts["byte_proof"]["bytes"]
    part = validation.part(30, 50)
    assert Evaluator(16).evaluate(scorer, part, Ranks()).bytes == validation.charges()[31:80].sum()
    ids = validation.tokens.numpy()
    detail = Detail.of(ids, np.ones(len(ids), np.float32), None, made.tokenizer, charged=validation.charges())
    assert sum(row.bytes for row in detail.by_class()) == counted
    with pytest.raises(DataError, match="a side-car of 2 counts beside 3 tokens"):
        Validation(torch.zeros(3), validation.table, counted=torch.zeros(2))


def test_tokens_without_text_are_counted_by_the_documents_and_told(
    source: TextFiles, without_bytes: SentencePieceSpec, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        made = prepare(source, without_bytes, cache=tmp_path)
    told = made.facts["splits"]["val"]
    assert made.facts["byte_proof"]["bytes"] == told["bytes"]
    assert told["bytes"] == sum(len(text.encode()) for text in VAL) - sum(text.endswith(" ") for text in VAL)
    assert told["lost_bytes"] == 20 * 3 + 10 * 6 + 20 * len(",HE")
    assert "flatters" in caplog.text


def test_shards_of_others_are_counted_by_the_side_car_beside_them(
    source: TextFiles, without_bytes: SentencePieceSpec, tmp_path: Path
) -> None:
    made = prepare(source, without_bytes, cache=tmp_path / "a")
    theirs = tmp_path / "theirs"
    shutil.copytree(made.val.paths[0].parent, theirs)
    spec = ShardFolder(str(theirs / "golf_train_*.bin"), str(theirs / "golf_val_*.bin"))
    found = prepare(spec, without_bytes, cache=tmp_path / "b")
    assert found.val_bytes is not None
    assert found.facts["splits"]["val"]["bytes"] == made.facts["splits"]["val"]["bytes"]
    assert found.facts["splits"]["val"]["lost_bytes"] == made.facts["splits"]["val"]["lost_bytes"]
    assert prepare(spec, without_bytes, cache=tmp_path / "b", believed=found.facts).val_bytes is not None
    (theirs / "golf_val_bytes_000000.bin").unlink()
    counts = found.val_bytes.read(0, len(found.val_bytes)) * 2
    write_shards(theirs, sidecar.SPLIT, [counts])
    with pytest.raises(DataError, match="it is no side-car of these shards"):
        prepare(spec, without_bytes, cache=tmp_path / "b")
    write_shards(theirs, sidecar.SPLIT, [counts[1:]])
    with pytest.raises(DataError, match="it is no side-car of that shard"):
        prepare(spec, without_bytes, cache=tmp_path / "b")


@pytest.mark.parametrize("kind", ["without bytes", "caseops"])
def test_shards_of_others_are_counted_by_the_documents_that_they_were_made_of(
    source: TextFiles, without_bytes: SentencePieceSpec, caseops: tuple[Prepared, Path], tmp_path: Path, kind: str
) -> None:
    made, spec = prepare(source, without_bytes, cache=tmp_path / "a"), without_bytes
    if kind == "caseops":
        made, spec = (
            caseops[0],
            SentencePieceSpec("toy", 300, str(next(caseops[1].rglob("*.model"))), transform=CaseOps()),
        )
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for path in (*made.train.paths, *made.val.paths):
        shutil.copy(path, theirs)
    docs, cache = tmp_path / "docs.jsonl", tmp_path / "b"
    lines = [json.dumps({"text": text}) for text in (*VAL[:3], " \n", *VAL[3:], *TRAIN)]
    docs.write_text("\n".join(lines[:21]) + "\n")  # the rest need not be there
    shards = ShardFolder(str(theirs / "golf_train_*.bin"), str(theirs / "golf_val_*.bin"), str(docs))
    found = prepare(shards, spec, cache=cache)
    assert found.val_bytes is not None
    assert made.val_bytes is not None
    assert np.array_equal(found.val_bytes.read(0, len(found.val)), made.val_bytes.read(0, len(made.val)))
    assert found.facts["splits"]["val"].get("lost_bytes") == made.facts["splits"]["val"].get("lost_bytes")
    docs.write_text("\n".join([*lines[1:21], *lines[:1]]) + "\n")
    with pytest.raises(
        DataError, match=r"document 1 of the validation shards is not that of docs.jsonl, 'A Stone 1 in"
    ):
        prepare(shards, spec, cache=cache)


def test_shards_of_others_without_one_are_counted_from_their_ids(
    caseops: tuple[Prepared, Path], tmp_path: Path
) -> None:
    made, cache = caseops
    (model,) = (cache / "tokenizers").glob("*.model")
    for path in (*made.train.paths, *made.val.paths):
        shutil.copy(path, tmp_path)
    spec = SentencePieceSpec("toy", 300, str(model), transform=CaseOps())
    found = prepare(ShardFolder(str(tmp_path / "golf_train_*"), str(tmp_path / "golf_val_*")), spec, cache=tmp_path)
    assert found.val_bytes is not None
    assert made.val_bytes is not None
    assert np.array_equal(found.val_bytes.read(0, len(found.val)), made.val_bytes.read(0, len(made.val)))
    (kept,) = (tmp_path / "side_cars").rglob("golf_val_bytes_000000.bin")
    whole = kept.read_bytes()
    kept.unlink()
    kept.write_bytes(whole[:-2] + b"\7\7")
    prepare(ShardFolder(str(tmp_path / "golf_train_*"), str(tmp_path / "golf_val_*")), spec, cache=tmp_path)
    assert kept.read_bytes() == whole


def test_a_folder_is_inspected_by_its_side_car_and_transform(
    source: TextFiles, caseops: tuple[Prepared, Path], without_bytes: SentencePieceSpec, tmp_path: Path
) -> None:
    made, cache = caseops
    found = inspect(made.val.paths[0].parent, near=False, cache=cache)
    assert not found.wrong
    assert f"the byte count: {made.facts['byte_proof']['bytes']:,} bytes over 20 " in " ".join(found.proved)
    assert ("val, token 0", VAL[0].strip()) in [(place, text) for place, text in found.samples]
    lossy = prepare(source, without_bytes, cache=tmp_path)
    found = inspect(lossy.val.paths[0].parent, near=False, cache=tmp_path)
    assert not found.wrong
    assert any(one.startswith("180 bytes of ") for one in found.unproved)
