"""The byte side-car of validation shards: uint16 bytes of text for every token, in files of the shards' own layout.

A shard NAME_val_000000.bin has NAME_val_bytes_000000.bin beside it, as in the challenge's exports. What counts bytes
reads it in place of the byte table, whatever it is that the table cannot count.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from golf.common.errors import DataError
from golf.common.files import locked, read_json, sha256_file, sha256_json, write_json
from golf.data import textfiles
from golf.data.hashes import FileHashes
from golf.data.shards import Shards, write_shards
from golf.tokenizers.base import CountsApart
from golf.tokenizers.byte_table import lost_ids

SPLIT = "val_bytes"
_MOST = np.iinfo(np.uint16).max
_BLOCK = 1 << 22
_ENCODED = 500  # documents at a time


@dataclass
class Written:
    """A side-car's files, and what it counts for ids that do not say which text they stand for."""

    paths: list[Path]
    lost_tokens: int = 0
    lost_bytes: int = 0

    @property
    def lost(self) -> dict[str, int]:
        """The facts of what is lost, where something is."""
        return {"lost_tokens": self.lost_tokens, "lost_bytes": self.lost_bytes} if self.lost_tokens else {}


def is_sidecar(path: Path) -> bool:
    """Whether a file is a side-car by its name, and no shard of tokens."""
    return f"_{SPLIT}_" in path.name


def without(paths: Sequence[Path]) -> list[Path]:
    """The paths that are no side-cars."""
    return [path for path in paths if not is_sidecar(path)]


def beside(shards: Sequence[Path]) -> list[Path]:
    """The side-cars of validation shards; none where none has one. Raises DataError when some have and others not."""
    paths = [path.with_name(path.name.replace("_val_", f"_{SPLIT}_", 1)) for path in shards]
    there = [path != shard and path.is_file() for path, shard in zip(paths, shards, strict=True)]
    if any(there) and not all(there):
        raise DataError(f"{shards[there.index(False)]} has no byte side-car {paths[there.index(False)].name} beside it")
    return paths if any(there) else []


def open_beside(paths: Sequence[Path], val: Shards) -> Shards:
    """The side-car of `val`, which has as many counts in each file. Raises DataError otherwise."""
    opened = Shards.open(paths, 1 << 16)
    for index, path in enumerate(paths):
        if opened.size(index) != val.size(index):
            raise DataError(
                f"{path} counts {opened.size(index)} tokens, {val.paths[index].name} has {val.size(index)}: "
                "it is no side-car of that shard"
            )
    return opened


def write(folder: Path, tokenizer: CountsApart, val: Shards, texts: Iterable[str] | None) -> Written:
    """Count every document of validation shards and write their side-car into `folder`, file for file.

    texts: the documents as they were encoded; None: their ids must tell. Raises DataError where they do not.
    """
    sizes = [val.size(index) for index in range(len(val.paths))]
    if len(sizes) > 1 and len(set(sizes[:-1])) > 1:
        raise DataError(f"{val.paths[0]} and the others differ in length: only the last may, for a side-car to be made")
    told = Written([])
    told.paths += write_shards(folder, SPLIT, _charges(tokenizer, val, texts, told), max(sizes[0], 1))
    return told


def kept(cache: Path, key: str, tokenizer: CountsApart, val: Shards, docs: Sequence[Path] = ()) -> Shards:
    """The side-car of shards that were made elsewhere without one, counted once and kept in `cache`.

    docs: files of the documents that the shards were made of, in their order, which more may follow; without them the
    ids must tell. Raises DataError for a document that is not the shards', or where its text is needed and not there.
    """
    states = [(str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns) for path in docs]
    folder = cache / "side_cars" / sha256_json([key, *states])[:20]
    with locked(folder), FileHashes(cache) as hashes:
        try:
            made = {folder / name: str(digest) for name, digest in read_json(folder / "manifest.json").items()}
            whole = hashes.all(list(made)) == list(made.values())
        except (OSError, ValueError, AttributeError, DataError):
            whole = False
        if not whole:  # there is none, or somebody changed it
            folder.mkdir(parents=True, exist_ok=True)
            texts = _texts(tokenizer, val, docs) if docs else None
            made = {path: sha256_file(path) for path in write(folder, tokenizer, val, texts).paths}
            write_json(folder / "manifest.json", {path.name: digest for path, digest in made.items()})
    return open_beside(list(made), val)


def facts(written: Written, val: Shards, told: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest says of a split with a side-car, in place of what it said before (`told`)."""
    paths = written.paths
    size = total(open_beside(paths, val))
    return {
        "bytes": size,
        "bytes_per_token": size / len(val),
        "tokens_per_byte": len(val) / max(size, 1),
        "side_car": [path.name for path in paths],
        **written.lost,
        "sha256": {**told["sha256"], **{path.name: sha256_file(path) for path in paths}},
    }


def total(counts: Shards) -> int:
    """Bytes of the whole stream; the first token is context only."""
    starts = range(1, len(counts), _BLOCK)
    return sum(int(counts.read(at, min(_BLOCK, len(counts) - at)).sum(dtype=np.int64)) for at in starts)


def _charges(tokenizer: CountsApart, val: Shards, texts: Iterable[str] | None, told: Written) -> Iterator[np.ndarray]:
    losing = lost_ids(tokenizer, tokenizer.byte_table())
    given = None if texts is None else iter(texts)
    for number, (opened, ids) in enumerate(documents(val, tokenizer.bos_id)):
        text = None if given is None else next(given)
        charged = tokenizer.charges(ids, None if text is None else partial(tokenizer.normalize, text))
        if charged.max(initial=0) > _MOST:
            raise DataError(
                f"bpb refused: document {number} has {int(charged.max())} bytes in a row that {tokenizer.name} has no "
                f"piece for, and a side-car counts at most {_MOST} a token"
            )
        lost = np.isin(ids, losing)
        told.lost_tokens += int(lost.sum())
        told.lost_bytes += int(charged[lost].sum())
        yield np.concatenate([np.zeros(int(opened), np.uint16), charged.astype(np.uint16)])


def _texts(tokenizer: CountsApart, val: Shards, docs: Sequence[Path]) -> Iterator[str]:
    """The text of every validation document, each of which must encode to its ids, or be what they decode to."""
    told = (one.text for one in textfiles.Reader("text").documents(list(docs)) if not one.skipped)
    given = _encoded(tokenizer, told)
    for number, (_, ids) in enumerate(documents(val, tokenizer.bos_id), start=1):
        text, again = next(given, ("", ids[:0])) if len(ids) else ("", ids)
        if not np.array_equal(ids, again) and tokenizer.decode(ids) != tokenizer.normalize(text):
            raise DataError(
                f"document {number} of the validation shards is not that of {docs[0].name}, {text[:60]!r}\n"
                "(data.docs names the documents that the shards were made of, in their order)"
            )
        yield text


def _encoded(tokenizer: CountsApart, texts: Iterator[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Texts with their ids, without those that have none."""
    while some := list(itertools.islice(texts, _ENCODED)):
        yield from ((text, ids) for text, ids in zip(some, tokenizer.encode_batch(some), strict=True) if len(ids))


def documents(shards: Shards, bos_id: int) -> Iterator[tuple[bool, np.ndarray]]:
    """Every document of a stream in order: whether a BOS opens it (the first may have none), and the ids behind it."""
    held: list[np.ndarray] = []
    opened = False
    for at in range(0, len(shards), _BLOCK):
        block = shards.read(at, min(_BLOCK, len(shards) - at))
        start = 0
        for mark in np.flatnonzero(block == bos_id).tolist():
            held.append(block[start:mark])
            if opened or any(part.size for part in held):
                yield opened, np.concatenate(held)
            held, opened, start = [], True, mark + 1
        held.append(block[start:])
    yield opened, np.concatenate(held)
