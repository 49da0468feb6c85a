"""Files of one kind each: what compressors write, what JSON lets stand in a line, what parquet calls text."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from golf.common.errors import DataError
from golf.data.blocks import pieces, split
from golf.data.textfiles import Reader


def jsonl(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def texts(path: Path, data: bytes | None = None, field: str = "text") -> list[str]:
    if data is not None:
        path.write_bytes(data)
    return [document.text for document in Reader(field).documents([path])]


A, B = jsonl(*(f"document {i * 7919}" for i in range(300))), jsonl("b1", "b2")
EXPECTED = [f"document {i * 7919}" for i in range(300)], ["b1", "b2"]
COMPRESS: dict[str, Callable[[bytes], bytes]] = {"zst": zstandard.compress, "gz": gzip.compress}
SKIPPABLE = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"hello"
MARK = b"\xef\xbb\xbf"


@given(
    st.lists(st.binary(max_size=12).map(lambda data: data.replace(b"c", b"a")), max_size=8),
    st.sampled_from([b"a", b"ab", b"aab"]),
)
def test_parts_are_what_stands_between_separators_whatever_the_blocks(blocks: list[bytes], separator: bytes) -> None:
    assert list(split(blocks, separator)) == b"".join(blocks).split(separator)


@given(st.lists(st.binary(max_size=40).map(lambda data: data.replace(b"c", b"a")), max_size=8), st.integers(2, 30))
def test_what_is_longer_than_allowed_has_its_place_and_is_not_held(blocks: list[bytes], longest: int) -> None:
    whole = [part if len(part) <= longest else None for part in b"".join(blocks).split(b"ab")]
    assert list(split(blocks, b"ab", longest)) == whole


@given(st.text("é \n☃a", max_size=200), st.integers(1, 50), st.integers(8, 30), st.booleans())
def test_pieces_are_the_text_and_none_is_longer_than_allowed(text: str, size: int, longest: int, lines: bool) -> None:
    data = text.encode()
    blocks = [data[at : at + size] for at in range(0, len(data), size)]
    found = list(pieces(blocks, b"\n" if lines else None, longest))
    assert all(len(part) <= longest for part, _ in found)
    assert [part.decode() for part, whole in found if whole] == [
        part for part in (text.split("\n") if lines else [text]) if len(part.encode()) <= longest
    ]
    joined = "".join(part.decode() for part, _ in found)
    assert joined == (text.replace("\n", "") if lines else text)


@pytest.mark.parametrize("kind", COMPRESS)
@pytest.mark.parametrize("between", [b"", b"\0" * 600], ids=["nothing", "zeros"])
def test_frames_may_follow_one_another_and_zeros_the_last(tmp_path: Path, kind: str, between: bytes) -> None:
    a, empty, b = (COMPRESS[kind](data) for data in (A, b"", B))
    assert texts(tmp_path / f"a.jsonl.{kind}", empty + a + between + empty + b + between) == [
        *EXPECTED[0],
        *EXPECTED[1],
    ]


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.zst", "jsonl.gz"])
@pytest.mark.parametrize("name", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_mark_at_the_head_of_any_part_is_no_text(tmp_path: Path, kind: str, name: str) -> None:
    compress = COMPRESS.get(kind.rpartition(".")[2], lambda data: data)
    data = b"".join(compress(part.decode().encode(name)) for part in (A, B))
    assert texts(tmp_path / f"a.{kind}", data) == [*EXPECTED[0], *EXPECTED[1]]


@pytest.mark.parametrize("window_log", [28, 31])
def test_frames_with_long_windows_are_read(tmp_path: Path, window_log: int) -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=window_log, enable_ldm=True)
    buffer = io.BytesIO()
    with zstandard.ZstdCompressor(compression_params=parameters).stream_writer(buffer, closefd=False) as writer:
        writer.write(A)  # of unknown size, so that the frame asks for its whole window
    assert zstandard.get_frame_parameters(buffer.getvalue()).window_size == 1 << window_log
    assert texts(tmp_path / "a.jsonl.zst", buffer.getvalue()) == EXPECTED[0]
    with pytest.raises(DataError, match="damaged"):
        texts(tmp_path / "a.jsonl.zst", buffer.getvalue()[:-5])


def test_skippable_frames_are_skipped(tmp_path: Path) -> None:
    a, b = zstandard.compress(A), zstandard.compress(B)
    assert texts(tmp_path / "a.jsonl.zst", SKIPPABLE + a + SKIPPABLE + b + SKIPPABLE) == [*EXPECTED[0], *EXPECTED[1]]


def test_a_dictionary_is_not_called_damage(tmp_path: Path) -> None:
    samples = [f"document {i} of many, each a little different {i * i}".encode() for i in range(2000)]
    compressor = zstandard.ZstdCompressor(dict_data=zstandard.train_dictionary(4096, samples))
    with pytest.raises(DataError, match="compressed with a dictionary"):
        texts(tmp_path / "a.jsonl.zst", compressor.compress(A))


@pytest.mark.parametrize("kind", COMPRESS)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-20], "damaged"),
        (lambda data: data[:3], "damaged"),
        (lambda data: data + data[:5], "damaged"),
        (lambda data: b"noise" + data, "damaged"),
        (lambda data: bytes(99), "damaged"),
        (lambda data: data + b"noise at the end", "damaged: .* behind 1 whole frame"),
        (lambda data: data[:-6] + bytes([data[-6] ^ 255]) + data[-5:], "damaged"),
    ],
    ids=["cut", "only a head", "cut second frame", "noise first", "zeros alone", "noise behind", "one byte"],
)
def test_damage_is_called_so(tmp_path: Path, kind: str, damage: Callable[[bytes], bytes], message: str) -> None:
    data = COMPRESS[kind](A) if kind == "gz" else zstandard.ZstdCompressor(write_checksum=True).compress(A)
    with pytest.raises(DataError, match=rf"a\.jsonl\.{kind} is {message}"):
        texts(tmp_path / f"a.jsonl.{kind}", damage(data))


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ('{"text": "a", "m": %s}' % ("[" * 500 + "]" * 500), "a"),
        ('{"text": "a", "m": %s}' % ("9" * 10_000), "a"),
        ('{"text": "a", "m": NaN, "n": -Infinity, "e": 1e999}', "a"),
        ('{"text": "one", "text": "two"}', "two"),
        ('{"text": "a\u2028b\u2029c\x85d"}', "a\u2028b\u2029c\x85d"),
        ('{"text": "a\\r\\nb\\u0000"}', "a\r\nb\0"),
        ('{"text": "\\ud83d\\ude00 \\ud800"}', "😀 \ufffd"),
        ('{"text": "\\ufeffmarked"}', "marked"),
        ('\ufeff {"text": "a"}', "a"),
        ('{"te\\u0078t": "a"}\r', "a"),
    ],
)
def test_sound_lines_are_read(tmp_path: Path, line: str, text: str) -> None:
    data = jsonl("first") + b"\r\n \t\n" + line.encode() + b"\n\n" + jsonl("last")
    assert texts(tmp_path / "a.jsonl", data) == ["first", text, "last"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"text": "x", "m": %s}' % ("[" * 100_000 + "]" * 100_000),
            r"not JSON that golf can read \(nested too deeply\)",
        ),
        ('{"m":' * 100_000 + "1" + "}" * 100_000, r"not JSON that golf can read \(nested too deeply"),
        ('{"text": %s}' % ("9" * 10_000), "field 'text' is int, not text"),
        ('{"text": NaN}', "field 'text' is float, not text"),
        ('{"text": {"a": 1}}', "field 'text' is dict, not text"),
        ('"a bare text"', r"no field 'text' \(the line is a text, not an object\)"),
        ('["a"]', r"no field 'text' \(the line is a list"),
        ("17", r"no field 'text' \(the line is a number"),
        ("null", r"no field 'text' \(the line is null"),
        ("true", r"no field 'text' \(the line is true or false"),
        ("{}", r"no field 'text' \(it has: none\)"),
        ('{"\\ud800": 1, "a\\nb": 2}', r"no field 'text' \(it has: '\\ud800', 'a\\nb'\)"),
        (json.dumps({f"k{i}": i for i in range(1000)}), r"no field .*it has: k0, .* and 988 more\)"),
        ('{"text": "a"}{"text": "b"}', "not JSON"),
        ('{"text": "a\0b"}', "not JSON"),
        ('{"text": "cut', "not JSON"),
    ],
)
def test_unsound_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(DataError, match=rf"a\.jsonl, line 2: {message}") as caught:
        texts(tmp_path / "a.jsonl", b"\n" + line.encode() + b"\n")
    assert str(caught.value).isprintable()


def test_lines_without_text_are_passed_over_and_the_first_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl("a") + b'{"text": cut\n{"other": 1}\n{"text": null}\n' + jsonl("x" * 2000, "b"))
    reader = Reader("text", longest=1024)
    found = list(reader.documents([path]))
    assert [(one.text, one.skipped) for one in found] == [
        ("a", False), ("", True), ("", True), ("", False), ("", True), ("b", False)
    ]  # fmt: skip
    assert str(reader.first_skipped).startswith(f"{path}, line 2: not JSON (")


def test_a_file_of_which_most_lines_have_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: no field 'text' .*\n\(and 10 more, where 1 lines are"):
        texts(tmp_path / "a.jsonl", jsonl("a") + b'{"body": "b"}\n' * 12)


def test_a_field_within_another_is_read(tmp_path: Path) -> None:
    rows = [{"meta": {"text": "a"}}, {"meta": None}, {"meta.text": "b", "meta": {}}, {"meta": {"text": "c", "n": 1}}]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    assert texts(tmp_path / "a.jsonl", lines, "meta.text") == ["a", "", "b", "c"]
    table = pa.table({"n": [1, 2, 3], "meta": [{"text": "a", "n": 1}, None, {"text": "c", "n": 2}]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert texts(tmp_path / "a.parquet", field="meta.text") == ["a", "", "c"]
    with pytest.raises(DataError, match=r"no column 'meta\.body' .*set data.field"):
        texts(tmp_path / "a.parquet", field="meta.body")


def test_a_text_longer_than_allowed_is_cut_and_all_there(tmp_path: Path) -> None:
    text = "one paragraph of words.\n\n" * 200
    path = tmp_path / "a.txt"
    path.write_text(text)
    reader = Reader("text", longest=1024)
    found = [one.text for one in reader.documents([path])]
    assert len(found) > 4
    assert "".join(found) == text
    assert all(one.startswith("one") for one in found)
    assert reader.first_cut == str(path)


WORDS = ["one", "zwei ü", None, "", "one"]
BYTES = [word if word is None else word.encode() for word in WORDS]
KINDS: dict[str, Callable[[], Any]] = {
    "string": lambda: pa.array(WORDS),
    "large_string": lambda: pa.array(WORDS, pa.large_string()),
    "string_view": lambda: pa.array(WORDS, pa.string_view()),
    "binary": lambda: pa.array(BYTES, pa.binary()),
    "large_binary": lambda: pa.array(BYTES, pa.large_binary()),
    "binary_view": lambda: pa.array(BYTES, pa.binary_view()),
    "dictionary": lambda: pa.array(WORDS).dictionary_encode(),
    "dictionary of large_string": lambda: pa.array(WORDS, pa.large_string()).dictionary_encode(),
    "dictionary of binary": lambda: pa.array(BYTES, pa.binary()).dictionary_encode(),
    "dictionary with a small index": lambda: (
        pa.array(WORDS).dictionary_encode().cast(pa.dictionary(pa.int8(), pa.string()))
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_text_column_is_read(tmp_path: Path, kind: str) -> None:
    column = KINDS[kind]()
    pq.write_table(pa.table({"n": range(5), "text": column}), tmp_path / "a.parquet", row_group_size=2)
    assert texts(tmp_path / "a.parquet") == [word or "" for word in WORDS]


def test_text_of_a_fixed_width_and_of_no_type_is_read(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": pa.array([b"abc", b"def"], pa.binary(3)), "b": pa.nulls(2)}), tmp_path / "a.parquet")
    assert texts(tmp_path / "a.parquet", field="a") == ["abc", "def"]
    assert texts(tmp_path / "a.parquet", field="b") == ["", ""]


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ([["a"]], "list<"),
        ([{"a": "b"}], "struct<"),
        ([1], "int64"),
        ([1.5], "double"),
        ([True], "bool"),
    ],
)
def test_a_column_that_is_no_text_is_refused_by_its_type(tmp_path: Path, column: list[Any], kind: str) -> None:
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=rf"a\.parquet, row 1: column 'text' is not text but {kind}"):
        texts(tmp_path / "a.parquet")


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="two columns 'text'"):
        texts(tmp_path / "a.parquet")


def test_values_of_a_binary_column_are_what_their_bytes_say(tmp_path: Path) -> None:
    values = [MARK + b"one", "\ufeffzwölf".encode("utf-16-le"), "drei ü".encode()]
    pq.write_table(pa.table({"text": pa.array(values, pa.binary())}), tmp_path / "a.parquet")
    assert texts(tmp_path / "a.parquet") == ["one", "zwölf", "drei ü"]


def test_a_value_in_another_encoding_is_refused_by_its_row(tmp_path: Path) -> None:
    values = [b"plain", "été à la plage, naïve".encode("cp1252")]
    pq.write_table(pa.table({"text": pa.array(values, pa.binary())}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet, row 2: not UTF-8 .*cp1252"):
        texts(tmp_path / "a.parquet")
