"""From a source and a tokenizer to shards on disk, made once and kept by content hash; and the byte proof at load."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from golf.common.errors import ConfigError, DataError
from golf.common.files import cache_dir, locked, read_json, sha256_json, write_json
from golf.data.fineweb import FineWeb
from golf.data.shards import Shards, write_shards
from golf.data.sources import ShardFolder, Split, TextSource
from golf.tokenizers.base import Progress, Tokenizer, TokenizerSpec
from golf.tokenizers.byte_table import prove, prove_ids

_LAYOUT = 1  # of the cache folder; a change makes old folders invisible
_SHARD_TOKENS = 10**8
_BATCH_CHARACTERS = 1 << 22  # text tokenized at once: bounds memory, and feeds every core
_SAMPLE_DOCUMENTS, _SAMPLE_CHARACTERS = 64, 1 << 18  # of validation text, for the byte proof
_CUT_TAIL = 64  # ids at the end of a document that may be cut
_SPLITS: tuple[Split, ...] = ("train", "val")


@dataclass(frozen=True)
class Prepared:
    """Everything a run needs of its data; `facts` goes into the run record."""

    tokenizer: Tokenizer
    train: Shards
    val: Shards
    facts: dict[str, Any]


def prepare(
    source: TextSource | ShardFolder | FineWeb,
    tokenizer_spec: TokenizerSpec,
    *,
    cache: Path | None = None,
    shard_tokens: int = _SHARD_TOKENS,
    on_progress: Progress | None = None,
) -> Prepared:
    """Tokenize a source into shards of `shard_tokens`, or find them in `cache` (default: golf's cache folder).

    The tokenizer sees training documents only. Shards lie under the hashes of source and tokenizer, made under a
    lock and renamed into place whole: processes that ask for the same data wait for the first and share its work,
    and an interrupted one leaves nothing. The byte table is proved on validation text each time.
    Raises ConfigError for options that don't fit, DataError for unusable data or an unusable cache folder, GolfError
    when the disk is full.
    """
    if shard_tokens < 1:
        raise ConfigError(f"data.shard_tokens={shard_tokens}: at least 1")
    cache = cache_dir() if cache is None else Path(cache)
    try:
        if isinstance(source, FineWeb):
            shards, published = source.find(tokenizer_spec, cache)
            found = _existing(shards, published, cache)
            return replace(found, facts={**found.facts, **source.facts(tokenizer_spec)})
        if isinstance(source, ShardFolder):
            return _existing(source, tokenizer_spec, cache)
        return _from_text(source, tokenizer_spec, cache, shard_tokens, on_progress)
    except OSError as error:
        raise DataError(
            f"cannot prepare data in {cache}: {error.strerror or error} ({error.filename or 'no file named'})\n"
            "(GOLF_CACHE chooses another folder)"
        ) from error


def find_prepared(
    source: TextSource | ShardFolder | FineWeb, tokenizer_spec: TokenizerSpec, cache: Path | None = None
) -> Prepared | None:
    """What `prepare` would return, if it is there already: nothing is downloaded, trained or tokenized for it."""
    cache = cache_dir() if cache is None else Path(cache)

    def nothing() -> Iterator[str]:
        raise DataError("the tokenizer is not trained yet")

    try:
        if not isinstance(source, FineWeb | ShardFolder):
            source_hash = source.content_hash(cache)
            tokenizer = tokenizer_spec.prepare(nothing, source_hash, cache, None)
            if not (_folder(cache, source_hash, tokenizer, _SHARD_TOKENS) / "manifest.json").exists():
                return None
        return prepare(source, tokenizer_spec, cache=cache)
    except (DataError, OSError):
        return None


def _folder(cache: Path, source_hash: str, tokenizer: Tokenizer, shard_tokens: int) -> Path:
    key = sha256_json([_LAYOUT, source_hash, tokenizer.hash, shard_tokens])
    return cache / "datasets" / f"{tokenizer.name}-{key[:20]}"


def _from_text(
    source: TextSource, tokenizer_spec: TokenizerSpec, cache: Path, shard_tokens: int, on_progress: Progress | None
) -> Prepared:
    source_hash = source.content_hash(cache)
    tokenizer = tokenizer_spec.prepare(lambda: source.documents("train"), source_hash, cache, on_progress)
    folder = _folder(cache, source_hash, tokenizer, shard_tokens)
    with locked(folder):
        cached = (folder / "manifest.json").exists()
        if not cached:
            _write(source, tokenizer, folder, shard_tokens, on_progress)
    manifest = read_json(folder / "manifest.json")
    proof = prove(tokenizer, read_json(folder / "sample.json"))
    opened = {
        split: Shards.open([folder / name for name in manifest["splits"][split]["files"]], tokenizer.vocab_size)
        for split in _SPLITS
    }
    facts = {
        **manifest["source"],
        "source_hash": source_hash,
        "tokenizer": tokenizer.name,
        "tokenizer_hash": tokenizer.hash,
        "vocab_size": tokenizer.vocab_size,
        "splits": manifest["splits"],
        "byte_proof": proof.facts(),
        "folder": str(folder),
        "cached": cached,
    }
    return Prepared(tokenizer, opened["train"], opened["val"], facts)


def _write(
    source: TextSource, tokenizer: Tokenizer, folder: Path, shard_tokens: int, progress: Progress | None
) -> None:
    """Make `folder`, whole or not at all; the caller holds its lock."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left_by_a_killed_process in folder.parent.glob(f".{folder.name}.*.part"):
        shutil.rmtree(left_by_a_killed_process, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        splits: dict[str, Any] = {}
        for split in _SPLITS:
            tally = _Tally()
            stream = _tokenize(source, split, tokenizer, tally, progress)
            paths = write_shards(temporary, split, stream, shard_tokens)
            if not tally.documents:
                raise DataError(f"the data has no {split} documents")
            splits[split] = {
                "files": [path.name for path in paths],
                "documents": tally.documents,
                "tokens": tally.tokens,
                "bytes": tally.bytes,
                "bytes_per_token": tally.bytes / tally.tokens,
                "tokens_per_byte": tally.tokens / max(tally.bytes, 1),
                **{key: n for key, n in source.facts["splits"][split].items() if key != "documents"},
            }
            if split == "val":
                write_json(temporary / "sample.json", tally.sample)
        facts = {key: value for key, value in source.facts.items() if key != "splits"}
        write_json(temporary / "manifest.json", {"layout": _LAYOUT, "source": facts, "splits": splits})
        temporary.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)  # a folder without its manifest is nobody's
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@dataclass
class _Tally:
    """What went through: counts, bytes of normalised text, and the first documents."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    sample: list[str] = field(default_factory=list)
    sampled: int = 0


def _tokenize(
    source: TextSource, split: Split, tokenizer: Tokenizer, tally: _Tally, progress: Progress | None
) -> Iterator[np.ndarray]:
    """[BOS] + ids of every document of the split, many documents an array."""
    table = tokenizer.byte_table()
    bos = np.array([tokenizer.bos_id], np.uint16)
    for texts in _batches(source.documents(split)):
        for text in texts:
            if len(tally.sample) < _SAMPLE_DOCUMENTS and tally.sampled < _SAMPLE_CHARACTERS:
                tally.sample.append(text)
                tally.sampled += len(text)
        ids = np.concatenate([part for encoded in tokenizer.encode_batch(texts) for part in (bos, encoded)])
        tally.documents += len(texts)
        tally.tokens += ids.size
        tally.bytes += table.count(ids)  # ids[0] is BOS, 0 bytes: nothing is lost between arrays
        yield ids
        if progress is not None:
            progress(f"tokenize {split} text with {tokenizer.name}", source.fraction_read())
    if progress is not None:
        progress(f"tokenize {split} text with {tokenizer.name}", 1.0)


def _batches(documents: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in documents:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _existing(source: ShardFolder, tokenizer_spec: TokenizerSpec, cache: Path) -> Prepared:
    """Open shards that were made elsewhere, with the tokenizer that made them."""
    if tokenizer_spec.needs_text:
        raise ConfigError(
            "data=shards has no text to train a tokenizer on: set tokenizer.model_path to the .model file\n"
            "that the shards were written with"
        )
    fingerprint = source.fingerprint()
    tokenizer = tokenizer_spec.prepare(lambda: iter(()), fingerprint, cache, None)
    train = Shards.open(source.files("train"), tokenizer.vocab_size)
    val = Shards.open(source.files("val"), tokenizer.vocab_size)
    both = {path.resolve() for path in train.paths} & {path.resolve() for path in val.paths}
    if both:
        raise DataError(
            f"{min(both)} is both a train and a validation shard (data.train, data.val)\n"
            "(globs divide a folder: data.train=DIR/*_train_*.bin data.val=DIR/*_val_*.bin)"
        )
    sample = _first_documents(val, tokenizer)
    texts = [tokenizer.decode(piece) for piece in sample]
    again = tokenizer.encode_batch(texts)
    slack = _CUT_TAIL if len(sample) == 1 else 0
    same = sum(_agree(piece, encoded, slack) for piece, encoded in zip(sample, again, strict=True))
    if 2 * same < len(sample):
        raise DataError(
            f"the shards in {val.paths[0].parent} were not written with {tokenizer.name}: of their first {len(sample)} "
            f"documents, {same} encode to their own ids again"
        )
    proof = prove_ids(tokenizer, sample)
    prove(tokenizer, texts)
    ids = val.read(0, len(val))
    val_bytes = tokenizer.byte_table().count(ids)
    documents = int(np.count_nonzero(ids == tokenizer.bos_id))
    facts = {
        "source": "shards",
        "source_hash": fingerprint,
        "tokenizer": tokenizer.name,
        "tokenizer_hash": tokenizer.hash,
        "vocab_size": tokenizer.vocab_size,
        "splits": {
            "train": {"files": [path.name for path in train.paths], "tokens": len(train)},
            "val": {
                "files": [path.name for path in val.paths],
                "documents": documents,
                "tokens": len(val),
                "bytes": val_bytes,
                "bytes_per_token": val_bytes / len(val),
                "tokens_per_byte": len(val) / max(val_bytes, 1),
            },
        },
        "disjoint": "not checked: these shards were made elsewhere; no file is in both splits",
        "byte_proof": {**proof.facts(), "documents_that_encode_to_the_same_ids": same},
        "cached": True,
    }
    return Prepared(tokenizer, train, val, facts)


def _agree(ids: np.ndarray, others: np.ndarray, slack: int) -> bool:
    """Whether the two begin alike, up to `slack` ids from the end (a word cut short encodes differently)."""
    end = max(1, len(ids) - slack)
    return np.array_equal(ids[:end], others[:end])


def _first_documents(val: Shards, tokenizer: Tokenizer) -> list[np.ndarray]:
    """Ids of the first validation documents, without BOS; the last, which may be cut, only if it is the only one."""
    ids = val.read(0, min(len(val), _SAMPLE_CHARACTERS))
    starts = np.flatnonzero(ids == tokenizer.bos_id)
    if starts.size == 0:
        raise DataError(
            f"{val.paths[0]} has no BOS (id {tokenizer.bos_id}) in its first {ids.size} tokens: bpb cannot be proved"
        )
    if starts.size > 1:
        bounds = starts[: _SAMPLE_DOCUMENTS + 1].tolist()
        return [ids[start + 1 : end] for start, end in pairwise(bounds)]
    only = ids[starts[0] + 1 :]
    for _ in range(3):  # a character of several byte pieces may have lost its end
        if tokenizer.decode(only).endswith("\ufffd"):
            only = only[:-1]
    return [only]
