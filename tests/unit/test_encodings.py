"""Bytes as text: marks, encodings by name, and what is refused by name rather than read as something else."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from golf.common.errors import ConfigError, DataError
from golf.data.encodings import Decoder, Document, decode, encoding_names, mend

PATH = Path("a.txt")
LINES = {
    "english": "It was a bright cold day in April,\nand the clocks were striking thirteen.\n",
    "french": "Il était une fois, dans un café,\r\nune fille qui dînait déjà.\r\n",
    "russian": "Обычный русский текст, в котором\nнесколько слов.\n",
    "hindi": "यह एक हिन्दी पाठ है।\nनमस्ते दुनिया\n",  # its high bytes in UTF-16 are tabs
    "chinese": "这是一个普通的中文文本，\n第二行一一一一。\n",
    "emoji": "smile 😀, family 👩‍👩‍👧\n",
}
UNMARKED = ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")


def read(data: bytes, encoding: str | list[str] = "auto") -> Document:
    return Decoder(encoding_names(encoding)).whole(data, PATH)


@pytest.mark.parametrize("encoding", ["auto", "cp1252", "utf-16-be"])
@pytest.mark.parametrize("name", ["utf-8", *UNMARKED])
@pytest.mark.parametrize("text", LINES.values(), ids=LINES)
def test_a_mark_says_what_the_text_is_and_goes(text: str, name: str, encoding: str) -> None:
    assert read(("\ufeff" + text).encode(name), encoding) == Document(text, 0, name)


@pytest.mark.parametrize("name", UNMARKED)
@pytest.mark.parametrize("text", LINES.values(), ids=LINES)
def test_utf16_and_utf32_without_a_mark_are_refused_by_name_and_read_by_it(text: str, name: str) -> None:
    with pytest.raises(DataError, match=rf"data\.encoding={name}"):
        read(text.encode(name))
    assert read(text.encode(name), name).text == text


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60))
def test_utf8_is_read_as_it_is(text: str) -> None:
    assert read(text.encode(), "utf-8").text == text.removeprefix("\ufeff")


@pytest.mark.parametrize(
    "text", ["a\nb\nc\n" * 30, "1\t2\t3\t4\n" * 30, "\n" * 40 + "x", "one NUL \0 in it, and then some", "x\0"]
)
def test_control_characters_alone_are_no_sign_of_utf16(text: str) -> None:
    assert read(text.encode()).text == text


@pytest.mark.parametrize(
    ("language", "name"),
    [("french", "cp1252"), ("french", "latin-1"), ("russian", "koi8-r"), ("chinese", "gb18030"), ("french", "cp037")],
)
def test_other_encodings_are_refused_and_read_by_their_name(language: str, name: str) -> None:
    text = LINES[language].replace("\r", "")
    with pytest.raises(DataError, match=r"a\.txt, line 1: not UTF-8 \(byte 0x"):
        read(text.encode(name))
    assert read(text.encode(name), name).text == text


def test_the_refusal_shows_how_it_would_read() -> None:
    with pytest.raises(DataError, match=r"line 2: not UTF-8 \(byte 0xe9; in cp1252 it reads .*café"):
        read("plain\nun café noir, été, dîné, là".encode("cp1252"))


@pytest.mark.parametrize(
    "data", [b"caf\xe9, once", "caf\u00e9s \u00e0 part, ".encode() * 20 + b"\xe9 \xe9 \xe9 \xe9 \xe9"]
)
def test_a_few_invalid_bytes_are_replaced_and_counted(data: bytes) -> None:
    document = read(data)
    assert document.replaced == data.count(b"\xe9 ") + data.count(b"\xe9,") + data.endswith(b"\xe9")
    assert document.text.count("\ufffd") == document.replaced


def test_a_rare_invalid_byte_in_much_text_is_replaced() -> None:
    assert read((b"plain text " * 2000 + b"\xff") * 5).replaced == 5


@pytest.mark.parametrize("others", [b"", "cafés à Paris ".encode() * 9], ids=["alone", "between others in UTF-8"])
def test_a_few_in_each_of_many_documents_are_another_encoding(others: bytes) -> None:
    decoder = Decoder()
    documents = (decoder.whole(data, PATH) for _ in range(5) for data in (others, b"one caf\xe9 in each"))
    with pytest.raises(DataError, match=r"set data\.encoding=cp1252"):
        list(documents)


def test_a_named_encoding_is_not_judged() -> None:
    data = LINES["french"].encode("cp1252")
    assert read(data, "utf-8").replaced == 5
    assert read(b"a\x81b" * 10, "cp1252") == Document("a\ufffdb" * 10, 10, "cp1252")


def test_documents_in_several_encodings_are_tried_in_order() -> None:
    decoder = Decoder(encoding_names(["utf-8", "cp1252"]))
    texts = [LINES["french"], LINES["russian"], "café"]
    read = [
        decoder.whole(text.encode(name), PATH) for text, name in zip(texts, ("cp1252", "utf-8", "cp1252"), strict=True)
    ]
    assert [document.text for document in read] == texts
    assert [document.encoding for document in read] == ["cp1252", "utf-8", "cp1252"]


@pytest.mark.parametrize("name", UNMARKED)
@pytest.mark.parametrize("text", LINES.values(), ids=LINES)
def test_utf16_and_utf32_without_a_mark_are_told_from_utf8_by_file(text: str, name: str) -> None:
    assert read(text.encode(name), ["utf-8", name]) == Document(text, 0, name)
    assert read(text.encode(), ["utf-8", name]) == Document(text, 0, "utf-8")
    with pytest.raises(DataError, match=rf"is not {name.upper()} but UTF-8\n\(data\.encoding=\[utf-8,{name}\]"):
        read(text.encode(), name)


def test_utf8_that_is_read_by_another_name_is_doubtful() -> None:
    decoder = Decoder(encoding_names("cp1252"))
    texts = ["déjà vu, encore".encode(), "déjà vu, encore".encode("cp1252"), b"never seen in any way"]
    assert [decoder.whole(data, PATH).doubtful for data in texts] == [True, False, False]


def test_lone_surrogates_in_utf16_are_replaced_and_counted() -> None:
    data = "\ufeffa\ud800b 😀".encode("utf-16-le", "surrogatepass")
    assert read(data) == Document("a\ufffdb 😀", 1, "utf-16-le")


@pytest.mark.parametrize("data", ["\ufefftext".encode("utf-16-le")[:-1], b"\xff\xfe\0\0\xff\xff\xff\xff"])
def test_damaged_utf16_and_utf32_are_refused(data: bytes) -> None:
    with pytest.raises(DataError, match=r"damaged, or not UTF-(16|32)-LE"):
        read(data)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("name", ["utf-8", *UNMARKED])
def test_blocks_may_divide_a_character_or_the_mark(name: str, size: int) -> None:
    data = ("\ufeff" + LINES["emoji"]).encode(name)
    blocks, read, codec = Decoder().open((data[i : i + size] for i in range(0, len(data), size)), PATH)
    assert codec == "utf-8"
    assert read(b"".join(blocks), None).text == LINES["emoji"]


@pytest.mark.parametrize(
    "encoding",
    [
        "rot13",
        "base64",
        "nope",
        "idna",
        "",
        [],
        ["utf-16-le", "utf-8"],
        ["utf-8", "cp1252", "utf-16-le"],
        ["auto", "cp1252"],
    ],
)
def test_what_is_no_encoding_is_named(encoding: str | list[str]) -> None:
    with pytest.raises(ConfigError, match=r"data\.encoding"):
        encoding_names(encoding)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=30))
def test_whatever_the_bytes_the_text_is_utf8(data: bytes) -> None:
    text, replaced = decode(data)
    assert text.encode() == data or replaced > 0


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80), st.sampled_from(["auto", "utf-8", "cp1252", "utf-16-le", "gb18030"]))
def test_whatever_the_bytes_they_are_text_or_refused(data: bytes, encoding: str) -> None:
    try:
        document = read(data, encoding)
    except DataError:
        return
    document.text.encode()
    assert document.replaced <= document.text.count("\ufffd")


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(), max_size=10))
def test_mended_text_is_utf8(text: str) -> None:
    mended, replaced = mend(text)
    mended.encode()
    assert (mended == text) == (replaced == 0)
