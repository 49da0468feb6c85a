"""The shard format: written exactly, read as one wrapping stream, refused when altered."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from golf.common.errors import DataError
from golf.data.shards import MOST_OPEN, Shards, write_shards


def write(folder: Path, tokens: np.ndarray, shard_tokens: int = 100, pieces: int = 7) -> list[Path]:
    return write_shards(folder, "train", np.array_split(tokens, pieces), shard_tokens)


def test_the_bytes_are_the_fields_format(tmp_path: Path) -> None:
    [path] = write(tmp_path, np.array([1, 2, 65535]))
    data = path.read_bytes()
    assert np.frombuffer(data[:1024], "<i4").tolist() == [20240520, 1, 3] + [0] * 253
    assert data[1024:] == b"\x01\x00\x02\x00\xff\xff"
    assert path.name == "golf_train_000000.bin"


def test_all_shards_but_the_last_are_full(tmp_path: Path) -> None:
    paths = write(tmp_path, np.arange(250))
    assert [(p.stat().st_size - 1024) // 2 for p in paths] == [100, 100, 50]


def test_an_exact_fit_leaves_no_empty_shard(tmp_path: Path) -> None:
    assert len(write(tmp_path, np.arange(200))) == 2


def test_a_document_longer_than_a_shard_straddles(tmp_path: Path) -> None:
    tokens = np.arange(1000)
    paths = write_shards(tmp_path, "train", [tokens], 64)
    np.testing.assert_array_equal(Shards.open(paths, 1000).read(0, 1000), tokens)


def test_no_tokens_give_no_shards(tmp_path: Path) -> None:
    assert write_shards(tmp_path, "train", [np.empty(0, np.uint16)]) == []


@settings(max_examples=60, deadline=None)
@given(data=st.data(), lengths=st.lists(st.integers(1, 30), min_size=1, max_size=5))
def test_reading_is_slicing_the_endless_stream(
    data: st.DataObject, lengths: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    total = sum(lengths)
    stream = np.arange(total)
    paths = [
        path
        for i, part in enumerate(np.split(stream, np.cumsum(lengths)[:-1]))
        for path in write_shards(folder, f"train{i}", [part])
    ]
    shards = Shards.open(paths, total)
    position, n = data.draw(st.integers(0, 3 * total)), data.draw(st.integers(0, 3 * total))
    np.testing.assert_array_equal(shards.read(position, n), np.resize(np.roll(stream, -(position % total)), n))
    assert len(shards) == total


def test_globs_are_sorted(tmp_path: Path) -> None:
    paths = write(tmp_path, np.arange(1200), 100)
    assert Shards.open(str(tmp_path / "golf_train_*.bin"), 1200).paths == paths


def _altered(word: int, value: int, path: Path) -> None:
    header = np.fromfile(path, "<i4", 256)
    header[word] = value
    path.write_bytes(header.tobytes() + path.read_bytes()[1024:])


@pytest.mark.parametrize(
    ("word", "value", "message"),
    [(0, 7, "magic"), (1, 2, "version 2"), (2, 9, "cut or altered"), (2, -1, "cut or altered")],
)
def test_a_wrong_header_is_refused(tmp_path: Path, word: int, value: int, message: str) -> None:
    [path] = write(tmp_path, np.arange(10))
    _altered(word, value, path)
    with pytest.raises(DataError, match=message):
        Shards.open([path], 100)


@pytest.mark.parametrize("size", [0, 1023, 1024, 1042, 1045])
def test_a_wrong_length_is_refused(tmp_path: Path, size: int) -> None:
    [path] = write(tmp_path, np.arange(10))
    data = path.read_bytes() + b"\0"
    path.write_bytes(data[:size])
    with pytest.raises(DataError, match=path.name):
        Shards.open([path], 100)


def test_an_id_out_of_the_vocabulary_is_refused_where_it_stands(tmp_path: Path) -> None:
    tokens = np.zeros(250, np.int64)
    tokens[130] = 99
    shards = Shards.open(write(tmp_path, tokens), 99)
    shards.read(0, 130)
    with pytest.raises(DataError, match=r"000001\.bin: token 30 is id 99.*vocabulary of\s+99"):
        shards.read(120, 20)


def test_a_part_of_one_shard_is_where_it_stands_in_the_stream(tmp_path: Path) -> None:
    shards = Shards.open(write(tmp_path, np.arange(250)), 250)
    assert [shards.size(index) for index in range(3)] == [100, 100, 50]
    assert [shards.index_of(position) for position in (-1, 0, 99, 100, 249)] == [0, 0, 0, 1, 2]
    np.testing.assert_array_equal(shards.part(2, 40, 99), np.arange(240, 250))


def test_an_id_out_of_the_vocabulary_in_a_part_is_refused(tmp_path: Path) -> None:
    shards = Shards.open(write(tmp_path, np.arange(250)), 249)
    with pytest.raises(DataError, match=r"000002\.bin: token 49 is id 249"):
        shards.part(2, 10, 99)


@pytest.mark.parametrize("bad", [[70000], [-1], [1.5]])
def test_ids_that_16_bits_cannot_hold_are_not_written(tmp_path: Path, bad: list[float]) -> None:
    with pytest.raises(DataError, match="16 bits"):
        write_shards(tmp_path, "train", [np.array([1, 2]), np.array(bad)])
    assert list(tmp_path.iterdir()) == []


def test_missing_and_empty_shards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no shards match"):
        Shards.open(str(tmp_path / "*.bin"), 10)
    with pytest.raises(DataError, match="absent"):
        Shards.open([tmp_path / "absent.bin"], 10)
    [path] = write(tmp_path, np.arange(1))
    _altered(2, 0, path)
    path.write_bytes(path.read_bytes()[:1024])
    with pytest.raises(DataError, match="no tokens"):
        Shards.open([path], 10)


@pytest.mark.skipif(os.name != "posix", reason="limits of file size are POSIX")
def test_a_full_disk_is_one_clear_line_and_leaves_nothing(tmp_path: Path) -> None:
    script = (
        "import resource, sys, numpy as np\n"
        "from golf.common.errors import GolfError\n"
        "from golf.data.shards import write_shards\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "try: write_shards(sys.argv[1], 'train', [np.arange(9000)])\n"
        "except GolfError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("cannot write")
    assert list(tmp_path.iterdir()) == []


def test_a_shard_that_is_cut_or_vanishes_in_use_is_an_error_of_the_data(tmp_path: Path) -> None:
    first, second = write(tmp_path, np.arange(200))
    shards = Shards.open([first, second], 200)
    os.truncate(first, 1024 + 20)
    np.testing.assert_array_equal(shards.read(0, 10), np.arange(10))
    with pytest.raises(DataError, match=r"000000\.bin was cut while it was in use"):
        shards.read(0, 11)
    second.unlink()
    with pytest.raises(DataError, match=r"000001\.bin: No such file"):
        shards.read(100, 1)


def test_more_shards_than_may_be_open_are_read(tmp_path: Path) -> None:
    tokens = np.arange(3 * MOST_OPEN)
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    shards = Shards.open(write(tmp_path, tokens, shard_tokens=2), tokens.size)
    for _ in range(2):
        np.testing.assert_array_equal(shards.read(0, tokens.size), tokens)
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + MOST_OPEN
