"""Reading what anybody may have written: how large it may be, how deep, and how often it may refer to itself.

Everything here raises OSError for what cannot be read and ValueError for what is too large, too deep or not of its
kind, and nothing else.
"""

from __future__ import annotations

import io
import json
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

MOST_JSON = 1 << 24
MOST_YAML = 1 << 22
"""Bytes of a file; what is parsed from it takes some thirty times as many."""
MOST_LINE = 1 << 22
MOST_DEPTH = 100
MOST_VALUES = 1_000_000
"""Values of a yaml file, each as often as it is referred to."""


def open_plain(path: Path | str) -> io.BufferedReader:
    """Open a file for reading; not a pipe, which may never end, nor a device."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(22, "not a plain file", str(path))
    return os.fdopen(handle, "rb")


def read_bytes(path: Path | str, most: int) -> bytes:
    """A file's bytes, `most` of them or fewer."""
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(min(size, most) + 1)  # a read takes the memory that it asks for
    if len(data) > most:
        raise ValueError(f"over {most:,} bytes")
    return data


def read_json(path: Path | str, most: int = MOST_JSON) -> Any:
    """A JSON file in UTF-8."""
    return parse_json(read_bytes(path, most))


def parse_json(text: bytes | str) -> Any:
    """A JSON value of MOST_DEPTH levels or fewer; whole numbers beyond 64 bits are floats."""
    try:
        whole = text if isinstance(text, str) else text.decode("utf-8")
        value = json.loads(whole, parse_int=_whole_number, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if isinstance(value, dict | list):
        _check_depth(value)
    return value


def _whole_number(digits: str) -> int | float:
    return int(digits) if len(digits) < 20 else float(digits)  # no figure of golf's needs more than 64 bits


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MOST_DEPTH):
        level = [
            item for one in level for item in (one.values() if isinstance(one, dict) else one)
            if isinstance(item, dict | list)
        ]  # fmt: skip
        if not level:
            return
    raise ValueError("nested too deeply")


def parse_yaml(text: bytes | str) -> Any:
    """A yaml document of plain data, MOST_DEPTH levels deep at most, MOST_VALUES values in all."""
    import yaml

    if len(text) > MOST_YAML:
        raise ValueError(f"over {MOST_YAML:,} bytes")
    try:
        value = yaml.load(text, _loader())
        _size(value, {}, 0)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    except (ValueError, KeyError, IndexError, AttributeError, TypeError, OverflowError, RecursionError) as error:
        # an explicit tag's scalar may be anything
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return value


def _loader() -> Any:
    """libyaml's safe loader, ten times as quick as the one in Python, without keys that merge mappings: chains of them
    double with every link."""
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        def flatten_mapping(self, node: Any) -> None:
            if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
                raise yaml.MarkedYAMLError(problem="keys << are not taken", problem_mark=node.start_mark)

    return Loader


def _size(value: Any, known: dict[int, int | None], depth: int) -> int:
    """How many values there are, one that is referred to twice counted twice."""
    if depth > MOST_DEPTH:
        raise ValueError("nested too deeply")
    if not isinstance(value, dict | list):
        if isinstance(value, set | tuple | bytes):
            raise ValueError(f"holds a {type(value).__name__}")
        return 1
    if id(value) in known:
        if (size := known[id(value)]) is None:
            raise ValueError("a value holds itself")
        return size
    known[id(value)] = None
    size = 1 + sum(_size(one, known, depth + 1) for one in (value.values() if isinstance(value, dict) else value))
    if size > MOST_VALUES:
        raise ValueError("refers to its own parts too often")
    known[id(value)] = size
    return size


def lines_of(file: IO[bytes], most: int = MOST_LINE) -> Iterator[bytes]:
    """The lines of a file, each of `most` bytes or fewer."""
    while line := file.readline(most + 1):
        if len(line) > most:
            raise ValueError(f"a line is over {most:,} bytes")
        yield line


def inflated(stream: Any, data: bytes, most: int) -> Iterator[bytes]:
    """What zlib's `stream` makes of `data`, in pieces of `most` bytes or fewer. Raises zlib.error."""
    while data and not stream.eof:
        yield stream.decompress(data, most)
        data = stream.unconsumed_tail


def raw_inflate(data: bytes, most: int) -> bytes:
    """`most` bytes or fewer of a raw deflate stream that ends where the data ends, if it is no longer.

    Raises zlib.error, and ValueError for bytes behind the stream or one that is cut.
    """
    stream = zlib.decompressobj(-15)
    found = stream.decompress(data, most)
    if len(found) < most and (not stream.eof or stream.unused_data):
        raise ValueError("bytes follow its end" if stream.eof else "it has no end")
    return found
