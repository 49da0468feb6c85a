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
from golf.data.encodings import is_blank, mend, unmarked
from golf.data.hashes import FileHashes
from golf.data.sources import PyStdlib, ShardFolder, Split, TextFiles


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


def test_empty_documents_are_skipped_and_counted(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", jsonl("", "a", " \n", "b") + b'{"text": null}\n')
    source = TextFiles([path], val_paths=[put(tmp_path / "v.txt", "v")])
    assert both(source)[0] == ["a", "b"]
    assert source.facts["splits"]["train"]["empty_documents"] == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"body": "b"}\n', r"a\.jsonl, line 1: no field 'text' \(it has: body\); set data\.field"),
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


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_one_text_is_divided_by_position(tmp_path: Path, end: str) -> None:
    text = end.join(f"line {i} of a play" for i in range(2000))
    source = TextFiles([put(tmp_path / "input.txt", text)])
    train, val = both(source)
    assert len(train) == len(val) == 1
    assert train[0] + val[0] == text
    assert train[0].endswith(end)
    assert 0.04 < len(val[0]) / len(text) < 0.06
    assert source.facts["disjoint"].startswith("by position")
    assert f"the last {len(val[0]):,} of {len(text):,} characters are validation" in source.facts["notes"][0]
    assert source.facts["encodings"] == {"utf-8": 1}


def test_one_text_is_divided_by_the_given_fraction(tmp_path: Path) -> None:
    path = put(tmp_path / "input.txt", "words and words " * 1000)
    assert [len(texts[0]) // 1000 for texts in both(TextFiles([path], val_fraction=0.25))] == [12, 4]


def test_one_text_many_times_is_one_text(tmp_path: Path) -> None:
    source = TextFiles([put(tmp_path / "a.jsonl", jsonl("", *["all the same"] * 5))])
    train, val = both(source)
    assert train[0] + val[0] == "all the same"
    assert (len(train), len(val)) == (1, 1)
    assert source.facts["splits"]["train"]["duplicate_documents"] == 4


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_of_few_texts_one_is_on_each_side_at_least(tmp_path: Path, fraction: float) -> None:
    texts = ["one", "two", "three"]
    source = TextFiles([put(tmp_path / f"{text}.txt", text) for text in texts], val_fraction=fraction)
    train, val = both(source)
    assert sorted(train + val) == sorted(texts)
    assert sorted((len(train), len(val))) == [1, 2]
    assert "of these 3 documents" in source.facts["notes"][0]


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"val_docs": 1}, r"no train documents.*\n.*\n\(data\.val_docs=1 leaves none"),
        ({"val_docs": 9}, r"data\.val_docs=9 leaves none"),
        ({"val_paths": "same"}, r"no train documents.*\n\(0 empty, 1 equal to a validation"),
        ({"val_paths": "empty"}, r"no val documents .*empty\.txt"),
    ],
)
def test_an_empty_side_is_refused_before_either_is_read(
    tmp_path: Path, rule: dict[str, Any], message: str, split: Split
) -> None:
    path = put(tmp_path / "a.jsonl", jsonl("the only one"))
    if "val_paths" in rule:
        rule = {"val_paths": [path if rule["val_paths"] == "same" else put(tmp_path / "empty.txt", " \n")]}
    with pytest.raises(DataError, match=message):
        next(TextFiles([path], **rule).documents(split))


def test_a_file_that_cannot_be_read_is_refused_before_the_others_are(tmp_path: Path) -> None:
    good = put(tmp_path / "a.jsonl", jsonl(*map(str, range(100))))
    bad = put(tmp_path / "b.jsonl", jsonl("x", field="body"))
    with pytest.raises(DataError, match=r"b\.jsonl, line 1: no field 'text'"):
        next(TextFiles([good, bad]).documents("train"))


@pytest.mark.parametrize("name", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_separator_makes_documents_of_a_file(tmp_path: Path, name: str, end: str) -> None:
    text = end.join(
        ["one", "", "still one", "<|endoftext|>", "", "two é", "<|endoftext|>", "three", "<|endoftext|>", ""]
    )
    put(tmp_path / "a.txt", text.encode(name))
    source = TextFiles([str(tmp_path)], separator="<|endoftext|>", val_docs=1)
    assert both(source) == (["two é", "three"], [f"one{end}{end}still one"])


def test_line_ends_may_be_written_in_a_separator(tmp_path: Path) -> None:
    path = put(tmp_path / "a.txt", "one\ntoo\n\n\ntwo\n\nthree")
    assert both(TextFiles([path], separator=r"\n\n", val_docs=1)) == (["two", "three"], ["one\ntoo"])


def test_a_separator_that_stands_in_one_document_is_told(tmp_path: Path) -> None:
    source = TextFiles([put(tmp_path / "a.txt", "one\n<|endoftext|>\ntwo\n<|endoftext|>\nthree")])
    both(source)
    assert "'data.separator=\"<|endoftext|>\"'" in source.facts["notes"][1]


def test_files_of_one_folder_may_differ_in_encoding(tmp_path: Path) -> None:
    names = ["utf-8", "utf-16", "utf-8-sig", "utf-32", "utf-8"]
    texts = [f"numéro {i}, naïve" for i in range(len(names))]
    for i, (text, name) in enumerate(zip(texts, names, strict=True)):
        put(tmp_path / f"{i}.txt", text.encode(name))
    source = TextFiles([str(tmp_path)], val_docs=1)
    assert both(source) == (texts[1:], texts[:1])
    assert source.facts["encodings"] == {"utf-8": 3, "utf-16-le": 1, "utf-32-le": 1}
    assert source.facts["notes"] == ["documents that were not UTF-8: 1 in utf-16-le, 1 in utf-32-le"]


def test_a_name_that_does_not_fit_all_files_is_told(tmp_path: Path) -> None:
    for i in range(6):
        put(tmp_path / f"{i}.txt", f"déjà vu, numéro {i}".encode("cp1252" if i % 2 else "utf-8"))
    one, two = (TextFiles([str(tmp_path)], val_docs=1, encoding=names) for names in ("cp1252", ["utf-8", "cp1252"]))
    assert both(one) != both(two)
    assert one.facts["notes"][0].endswith("read as cp1252: 3 (data.encoding=[utf-8,cp1252]?)")
    assert two.facts["encodings"] == {"utf-8": 3, "cp1252": 3}


def test_what_was_changed_in_the_text_is_noted(tmp_path: Path) -> None:
    lines = [jsonl("fine"), b'{"text": "a\xffb"}\n', rb'{"text": "a\ud800b"}' + b"\n", rb'{"text": "a\u0000b"}']
    source = TextFiles([put(tmp_path / "a.jsonl", b"".join(lines))], val_docs=1)
    assert both(source)[0] == ["a\ufffdb", "a\ufffdb", "a\0b"]
    replaced, nulls = source.facts["notes"]
    assert "U+FFFD: 2, the first in" in replaced
    assert replaced.endswith("a.jsonl, line 2")
    assert nulls.endswith(": 1")


def test_a_document_of_nothing_but_nulls_is_empty(tmp_path: Path) -> None:
    source = TextFiles([put(tmp_path / "a.txt", bytes(99)), put(tmp_path / "b.txt", "text")], val_fraction=0.5)
    both(source)
    assert source.facts["splits"]["train"]["empty_documents"] == 1


def test_text_that_needs_no_word_gets_none(tmp_path: Path) -> None:
    source = TextFiles([put(tmp_path / "a.jsonl", jsonl("é", "two", "three"))], val_docs=1)
    both(source)
    assert source.facts["notes"] == []


def test_files_named_in_capitals_are_read(tmp_path: Path) -> None:
    put(tmp_path / "A.TXT", "one")
    put(tmp_path / "B.JSONL", jsonl("two"))
    assert both(TextFiles([str(tmp_path)], val_docs=1)) == (["two"], ["one"])


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
        ({"encoding": "nope"}, r"data\.encoding=nope"),
        ({"separator": ""}, r"data\.separator is empty"),
        ({"separator": "§", "encoding": "cp1252"}, r"data\.separator=§: only ASCII"),
        ({"separator": "x", "paths": ["a.jsonl"]}, r"data\.separator divides \.txt and \.md"),
    ],
)
def test_impossible_options_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "a.jsonl", jsonl("a"))
    with pytest.raises(ConfigError, match=named):
        TextFiles(**{"paths": [put(tmp_path / "a.txt", "a")], **arguments})


def test_shards_need_both_globs() -> None:
    with pytest.raises(ConfigError, match=r"data\.val"):
        ShardFolder(train="a", val="")


def test_shards_may_be_given_as_files_folders_and_globs(tmp_path: Path) -> None:
    paths = [put(tmp_path / "s" / f"x_{i}.bin", "") for i in range(3)]
    other = put(tmp_path / "o.bin", "")
    for place in (str(tmp_path / "s"), str(tmp_path / "s" / "*.bin"), [str(tmp_path / "s" / "x_*.bin")], paths):
        folder = ShardFolder(train=place, val=[other])
        assert [str(path) for path in folder.files("train")] == paths
    assert [path.name for path in ShardFolder(train=[other, *paths[::-1]], val=other).files("train")] == [
        "o.bin", "x_2.bin", "x_1.bin", "x_0.bin",
    ]  # fmt: skip


def test_the_content_hash_follows_content_and_options(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", jsonl("a", "b"))
    first = TextFiles([path]).content_hash()
    assert TextFiles([path]).content_hash() == first
    assert TextFiles([path], val_docs=1).content_hash() != first
    assert TextFiles([path], encoding="cp1252").content_hash() != first
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
