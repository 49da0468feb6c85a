"""The field's documents: which are validation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from golf.common.errors import ConfigError, DataError
from golf.data.docs import VAL_DOCS, Docs


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "docs_selected.jsonl"
    path.write_text("".join(json.dumps({"text": f"document {i}"}) + "\n" for i in range(20)))
    return path


def test_the_first_documents_are_validation(path: Path) -> None:
    source = Docs(str(path), val_docs=3)
    assert list(source.documents("val")) == [f"document {i}" for i in range(3)]
    assert list(source.documents("train")) == [f"document {i}" for i in range(3, 20)]
    assert source.facts["validation"] == "the first 3 documents"


def test_a_manifest_beside_the_documents_says_how_many(path: Path) -> None:
    beside = path.with_name("docs_selected.source_manifest.json")
    for content, count in (('{"docs_val": 7}', 7), ("{}", VAL_DOCS)):
        beside.write_text(content)
        assert Docs(str(path)).val_docs == count
        assert Docs(str(path), val_docs=2).val_docs == 2
    for content in ('{"docs_val": "many"}', "[]", "{"):
        beside.write_text(content)
        with pytest.raises(DataError, match="source_manifest"):
            Docs(str(path))


def test_fewer_documents_than_validation_has_are_refused_with_the_remedy(path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.val_docs=50000 leaves none: give fewer, or data\.val_fraction"):
        list(Docs(str(path)).documents("train"))


def test_a_part_by_hash_takes_the_place_of_the_first(path: Path) -> None:
    source = Docs([str(path)], val_fraction=0.3)
    val, train = (list(source.documents(split)) for split in ("val", "train"))
    assert sorted(val + train) == sorted(f"document {i}" for i in range(20))
    assert val != [f"document {i}" for i in range(len(val))]
    with pytest.raises(ConfigError, match=r"data\.docs is empty"):
        Docs([])
