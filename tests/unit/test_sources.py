"""Text sources: order, disjoint splits, every kind of file, and what damaged or missing input gets."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from golf.common.errors import ConfigError, DataError
from golf.data.encodings import decode, is_blank, mend, unmarked
from golf.data.sources import PyStdlib, ShardFolder, TextFiles
from golf.data.textfiles import FileHashes


def jsonl(*texts: str, field: str = "text") -> bytes:
    return "".join(json.dumps({field: text}) + "\n" for text in texts).encode()


def put(path: Path, data: bytes | str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return str(path)


def both(source: Any) -> tuple[list[str], list[str]]:
    return list(source.documents("train")), list(source.documents("val"))


@pytest.fixture(scope="module")
def stdlib() -> tuple[list[str], list[str]]:
    return both(PyStdlib())


def test_the_standard_library_is_split_into_disjoint_documents(stdlib: tuple[list[str], list[str]]) -> None:
    train, val = stdlib
    assert len({*train, *val}) == len(train) + len(val)
    assert 0.02 < len(val) / len(train) < 0.1
    assert sum(map(len, train)) > 3_000_000


def test_the_standard_library_comes_in_a_fixed_order(stdlib: tuple[list[str], list[str]]) -> None:
    again = PyStdlib()
    assert both(again) == stdlib
    assert again.content_hash() == PyStdlib().content_hash() != PyStdlib(val_fraction=0.1).content_hash()


def test_parts_that_distributions_drop_are_left_out() -> None:
    names = [name for _, name in PyStdlib()._files()]
    assert "json/decoder.py" in names
    assert not [name for name in names if {"test", "idlelib", "site-packages"} & set(name.split("/"))]


def test_every_kind_of_file_is_read_in_the_given_order(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"id": [1, 2], "text": ["p1", "p2"]}), tmp_path / "a.parquet")
    paths = [
        put(tmp_path / "z.txt", "whole\nfile"),
        str(tmp_path / "a.parquet"),
        put(tmp_path / "m.jsonl", jsonl("j1", "j2") + b"\n\n"),
        put(tmp_path / "s.jsonl.zst", zstandard.compress(jsonl("s1")) + zstandard.compress(jsonl("s2"))),
        put(tmp_path / "g.jsonl.gz", gzip.compress(jsonl("g1")) + gzip.compress(jsonl("g2"))),
        put(tmp_path / "r.md", "# title"),
    ]
    source = TextFiles(paths, val_paths=[put(tmp_path / "v.txt", "v")])
    expected = ["whole\nfile", "p1", "p2", "j1", "j2", "s1", "s2", "g1", "g2", "# title"]
    assert both(source) == (expected, ["v"])
    assert source.fraction_read() > 0.9


def test_folders_and_globs_are_sorted(tmp_path: Path) -> None:
    for name in ("b.txt", "a/c.md", "a/b.jsonl", "ignored.bin"):
        put(tmp_path / name, jsonl("x") if name.endswith("jsonl") else name)
    assert [p.relative_to(tmp_path).as_posix() for p in TextFiles([str(tmp_path)]).files] == [
        "a/b.jsonl",
        "a/c.md",
        "b.txt",
    ]
    assert [p.name for p in TextFiles([str(tmp_path / "**" / "*.md"), str(tmp_path / "*.txt")]).files] == [
        "c.md",
        "b.txt",
    ]


def test_the_field_is_configurable(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", jsonl("one", "two", "three", field="content"))
    assert both(TextFiles([path], field="content", val_docs=1)) == (["two", "three"], ["one"])


def test_the_first_documents_are_validation(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", jsonl("", "v1", "v2", "t1", "v1", "t2"))
    source = TextFiles([path], val_docs=2)
    assert both(source) == (["t1", "t2"], ["v1", "v2"])
    assert source.facts["splits"]["train"]["duplicate_documents"] == 1


def test_train_documents_equal_to_a_validation_document_are_left_out(tmp_path: Path) -> None:
    train, val = put(tmp_path / "t.jsonl", jsonl("a", "b", "a", "c")), put(tmp_path / "v.jsonl", jsonl("a", "d"))
    source = TextFiles([train], val_paths=[val])
    assert both(source) == (["b", "c"], ["a", "d"])
    assert source.facts["splits"]["train"]["duplicate_documents"] == 2
    assert source.facts["disjoint"].startswith("checked")


@settings(max_examples=25, deadline=None)
@given(
    texts=st.lists(st.text(max_size=4), min_size=1, max_size=40),
    rule=st.sampled_from([{"val_docs": 1}, {"val_docs": 3}, {"val_fraction": 0.3}, {"val_fraction": 0.7}]),
)
def test_splits_are_disjoint_and_lose_nothing_else(
    texts: list[str], rule: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = put(tmp_path_factory.mktemp("t") / "a.jsonl", jsonl(*texts))
    source = TextFiles([path], **rule)  # type: ignore[arg-type]
    expected = {mended for t in texts if not is_blank(mended := mend(unmarked(t))[0])}
    try:
        train, val = both(source)
    except DataError:
        assert len(expected) <= rule.get("val_docs", 1)
        return
    assert not set(train) & set(val)
    whole = {"".join((*train, *val))} if len(expected) == 1 else {*train, *val}
    assert whole == expected


def test_undecodable_bytes_are_replaced_and_counted(tmp_path: Path) -> None:
    path = put(tmp_path / "a.txt", b"caf\xe9 \xff\xfe and an honest \xef\xbf\xbd")
    source = TextFiles([path], val_paths=[put(tmp_path / "v.txt", "v")])
    assert both(source)[0] == ["caf\ufffd \ufffd\ufffd and an honest \ufffd"]
    assert source.facts["splits"]["train"]["replaced_characters"] == 3


def test_lone_surrogates_in_json_are_replaced_and_counted(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", rb'{"text": "a\ud800b \ud83d\ude00 \udc00"}')
    source = TextFiles([path], val_paths=[put(tmp_path / "v.txt", "v")])
    assert both(source)[0] == ["a\ufffdb 😀 \ufffd"]
    assert source.facts["splits"]["train"]["replaced_characters"] == 2


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=30))
def test_whatever_the_bytes_the_text_is_utf8(data: bytes) -> None:
    text, replaced = decode(data)
    assert text.encode() == data or replaced > 0


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(), max_size=10))
def test_mended_text_is_utf8(text: str) -> None:
    mended, replaced = mend(text)
    mended.encode()
    assert (mended == text) == (replaced == 0)


def test_empty_documents_are_skipped_and_counted(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", jsonl("", "a", " \n", "b") + b'{"text": null}\n')
    source = TextFiles([path], val_paths=[put(tmp_path / "v.txt", "v")])
    assert both(source)[0] == ["a", "b"]
    assert source.facts["splits"]["train"]["empty_documents"] == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n{"body": "b"}\n', r"a\.jsonl, line 2: no field 'text' \(it has: body\); set data\.field"),
        (b'["a"]\n', "line 1: no field 'text'"),
        (b'{"text": 3}\n', "line 1: field 'text' is int, not text"),
        (b'{"text": "a"\n', "line 1: not JSON"),
        (b"", "no train documents"),
        (b'{"text": " "}\n', "no train documents"),
    ],
)
def test_malformed_jsonl_is_named_by_line(tmp_path: Path, content: bytes, message: str) -> None:
    source = TextFiles([put(tmp_path / "a.jsonl", content)], val_paths=[put(tmp_path / "v.txt", "v")])
    with pytest.raises(DataError, match=message):
        list(source.documents("train"))


@pytest.mark.parametrize("kind", ["zst", "gz"])
@pytest.mark.parametrize("damage", ["cut", "noise"])
def test_damaged_compression_is_refused(tmp_path: Path, kind: str, damage: str) -> None:
    texts = jsonl(*(f"document {i * 7919}" for i in range(500)))
    data = zstandard.compress(texts) if kind == "zst" else gzip.compress(texts)
    data = data[:-20] if damage == "cut" else b"noise" + data
    path = put(tmp_path / f"a.jsonl.{kind}", data)
    with pytest.raises(DataError, match=rf"a\.jsonl\.{kind} is"):
        list(TextFiles([path], val_paths=[put(tmp_path / "v.txt", "v")]).documents("train"))


def test_a_parquet_file_without_the_field_or_damaged_is_refused(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"], "n": [1]}), tmp_path / "a.parquet")
    val = [put(tmp_path / "v.txt", "v")]
    with pytest.raises(DataError, match=r"no column 'text'.*body, n"):
        list(TextFiles([str(tmp_path / "a.parquet")], val_paths=val).documents("train"))
    with pytest.raises(DataError, match="row 1: column 'n' is not text"):
        list(TextFiles([str(tmp_path / "a.parquet")], val_paths=val, field="n").documents("train"))
    with pytest.raises(DataError, match="not a readable parquet file"):
        list(TextFiles([put(tmp_path / "b.parquet", b"PAR1 no")], val_paths=val).documents("train"))


def test_missing_and_unknown_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.txt does not exist"):
        TextFiles([str(tmp_path / "absent.txt")])
    with pytest.raises(DataError, match="no files match"):
        TextFiles([str(tmp_path / "*.txt")])
    with pytest.raises(DataError, match="holds no file"):
        TextFiles([str(tmp_path)])
    with pytest.raises(DataError, match=r"x\.csv.*choices: \.txt"):
        TextFiles([put(tmp_path / "x.csv", "a,b")])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"paths": []}, r"data\.paths"),
        ({"val_paths": []}, r"data\.val_paths"),
        ({"val_docs": 0}, "val_docs=0"),
        ({"val_fraction": 1.0}, "val_fraction=1.0"),
        ({"val_docs": 1, "val_fraction": 0.1}, "val_docs and data.val_fraction exclude"),
        ({"field": ""}, r"data\.field"),
    ],
)
def test_impossible_options_are_named(tmp_path: Path, arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        TextFiles(**{"paths": [put(tmp_path / "a.txt", "a")], **arguments})


def test_shards_need_both_globs() -> None:
    with pytest.raises(ConfigError, match=r"data\.val"):
        ShardFolder(train="a", val="")


def test_the_content_hash_follows_content_and_options(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", jsonl("a", "b"))
    first = TextFiles([path]).content_hash()
    assert TextFiles([path]).content_hash() == first
    assert TextFiles([path], val_docs=1).content_hash() != first
    put(tmp_path / "a.jsonl", jsonl("a", "c"))
    assert TextFiles([path]).content_hash() != first


def test_the_content_hash_is_of_content_not_of_the_place(tmp_path: Path) -> None:
    one, other = put(tmp_path / "a" / "x.txt", "same"), put(tmp_path / "b" / "y.txt", "same")
    assert TextFiles([one]).content_hash() == TextFiles([other]).content_hash()


def test_hashes_of_rested_files_are_remembered(tmp_path: Path) -> None:
    library = Path(json.__file__)  # has rested since Python was installed
    with FileHashes(tmp_path) as hashes:
        first = hashes.of(library)
    memo = json.loads((tmp_path / "file_hashes.json").read_text())
    assert memo[str(library)][3] == first
    memo[str(library)][3] = "remembered"
    (tmp_path / "file_hashes.json").write_text(json.dumps(memo))
    with FileHashes(tmp_path) as hashes:
        assert hashes.of(library) == "remembered"


def test_a_rewritten_file_is_hashed_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    put(path, "one")
    times = path.stat().st_mtime_ns
    with FileHashes(tmp_path) as hashes:
        first = hashes.of(path)
    put(path, "two")
    os.utime(path, ns=(times, times))
    with FileHashes(tmp_path) as hashes:
        assert hashes.of(path) != first


def test_a_damaged_memo_is_ignored(tmp_path: Path) -> None:
    put(tmp_path / "file_hashes.json", "{broken")
    with FileHashes(tmp_path) as hashes:
        assert len(hashes.of(Path(json.__file__))) == 64
