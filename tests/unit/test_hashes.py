"""Hashes of whole files: right after any change, and not computed twice."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from golf.common.errors import DataError
from golf.common.files import sha256_file
from golf.data.hashes import FileHashes, Memo


def rested(path: Path, content: bytes) -> Path:
    """A file whose times look old, as far as a program can set them."""
    path.write_bytes(content)
    os.utime(path, ns=(10**18, 10**18))
    return path


def test_a_hash_is_of_the_whole_file(tmp_path: Path) -> None:
    path = rested(tmp_path / "a.bin", bytes(9_000_000) + b"end")
    with FileHashes(tmp_path) as hashes:
        assert hashes.all([path, path]) == [sha256_file(path)] * 2


def test_a_file_put_in_place_of_another_is_noticed(tmp_path: Path) -> None:
    path, other = rested(tmp_path / "a.bin", b"one"), rested(tmp_path / "b.bin", b"two")
    with FileHashes(tmp_path) as hashes:
        first = hashes.of(path)
    os.replace(other, path)
    with FileHashes(tmp_path) as hashes:
        assert hashes.of(path) != first


def test_what_older_golf_remembered_is_not_taken(tmp_path: Path) -> None:
    library, cache = Path(os.__file__), tmp_path / "cache"
    stat = library.stat()
    memo = Memo(cache / "file_hashes.json")
    with memo.held():
        memo.add({str(library): [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, "without an inode"]})
    with FileHashes(cache) as hashes:
        assert hashes.of(library) == sha256_file(library)
    assert memo.load()[str(library)][3:] == [sha256_file(library), stat.st_ino]


def test_a_file_that_cannot_be_read_is_named_and_costs_no_others_hash(tmp_path: Path) -> None:
    library = Path(os.__file__)
    with FileHashes(tmp_path) as hashes:
        hashes.of(library)
        with pytest.raises(DataError, match="absent"):
            hashes.of(tmp_path / "absent.bin")
    assert str(library) in Memo(tmp_path / "file_hashes.json").load()


def test_only_one_at_a_time_hashes(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "file_hashes.json.lock")
    with FileHashes(tmp_path) as hashes:
        with lock.acquire(timeout=0):
            pass  # nothing to be read yet
        hashes.of(Path(os.__file__))
        with pytest.raises(Timeout):
            lock.acquire(timeout=0)
    lock.acquire(timeout=0)
    lock.release()


def test_those_that_waited_find_what_was_found(tmp_path: Path) -> None:
    library, found = Path(os.__file__), []

    def wait() -> None:
        with FileHashes(tmp_path) as hashes:
            found.append(hashes.of(library))

    memo = Memo(tmp_path / "file_hashes.json")
    waiting = threading.Thread(target=wait)
    with memo.held():
        waiting.start()
        stat = library.stat()
        memo.add({str(library): [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, "found", stat.st_ino]})
    waiting.join()
    assert found == ["found"]


def test_where_it_cannot_be_kept_it_is_hashed_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for cache in (None, tmp_path / "file"):
        with FileHashes(cache) as hashes:
            assert hashes.of(Path(os.__file__)) == sha256_file(Path(os.__file__))
