"""From a source and a tokenizer to shards on disk, made once and kept by content hash, their bytes proved."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from golf.common.errors import ConfigError, DataError
from golf.common.files import cache_dir, locked, read_json, sha256_file, sha256_json, write_json
from golf.common.log import logger
from golf.data.existing import check_shards
from golf.data.fineweb import FineWeb
from golf.data.hashes import FileHashes
from golf.data.overlap import BEGINNING, Copies, TextHash, near_copies, tokenizer_training
from golf.data.shards import Shards, write_shards
from golf.data.sources import ShardFolder, Split, TextSource
from golf.tokenizers.base import OnProgress, Tokenizer, TokenizerSpec
from golf.tokenizers.byte_table import Prover

_LAYOUT = 3  # of the cache folder, its proof included; a change makes old folders invisible
_SHARD_TOKENS = 10**8
_BATCH_CHARACTERS = 1 << 22  # text tokenized at once: bounds memory, and feeds every core
_SPLITS: tuple[Split, ...] = ("val", "train")  # so that a byte count that is refused is refused early


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
    on_progress: OnProgress | None = None,
    believed: Mapping[str, Any] | None = None,
) -> Prepared:
    """Tokenize a source into shards of `shard_tokens`, or find them in `cache` (default: golf's cache folder).

    The tokenizer sees training documents only. Shards lie under the hashes of source and tokenizer, made under a
    lock and renamed into place whole: processes that ask for the same data wait for the first and share its work,
    and an interrupted one leaves nothing. The byte table is proved on every validation document when the shards are
    made, or first seen; a cached shard that is no longer what golf wrote is made anew. `believed`: the facts of a
    process of this machine that has just prepared the same, taken as they are: nothing is hashed or proved again.
    Raises ConfigError for options that don't fit, DataError for unusable data or an unusable cache folder, GolfError
    when the disk is full.
    """
    if shard_tokens < 1:
        raise ConfigError(f"data.shard_tokens={shard_tokens}: at least 1")
    cache = cache_dir() if cache is None else Path(cache)
    try:
        if isinstance(source, FineWeb):
            shards, published = source.find(tokenizer_spec, cache)
            found = _existing(shards, published, cache, on_progress, believed)
            return replace(found, facts={**found.facts, **source.facts(tokenizer_spec)})
        if isinstance(source, ShardFolder):
            return _existing(source, tokenizer_spec, cache, on_progress, believed)
        return _from_text(source, tokenizer_spec, cache, shard_tokens, on_progress, believed)
    except OSError as error:
        raise DataError(
            f"cannot prepare data in {cache}: {error.strerror or error} ({error.filename or 'no file named'})\n"
            "(GOLF_CACHE chooses another folder)"
        ) from error


def find_prepared(
    source: TextSource | ShardFolder | FineWeb,
    tokenizer_spec: TokenizerSpec,
    cache: Path | None = None,
    *,
    on_progress: OnProgress | None = None,
    believed: Mapping[str, Any] | None = None,
) -> Prepared | None:
    """What `prepare` would return, if it is there already: nothing is downloaded, trained or tokenized for it."""
    cache = cache_dir() if cache is None else Path(cache)

    def nothing() -> Iterator[str]:
        raise DataError("the tokenizer is not trained yet")

    try:
        if not isinstance(source, FineWeb | ShardFolder) and believed is None:
            source_hash = source.content_hash(cache)
            tokenizer = tokenizer_spec.prepare(nothing, source_hash, cache, None)
            if _made(_folder(cache, source_hash, tokenizer, _SHARD_TOKENS), cache, on_progress) is None:
                return None
        return prepare(source, tokenizer_spec, cache=cache, on_progress=on_progress, believed=believed)
    except (DataError, OSError):
        return None


def _folder(cache: Path, source_hash: str, tokenizer: Tokenizer, shard_tokens: int) -> Path:
    key = sha256_json([_LAYOUT, source_hash, tokenizer.hash, shard_tokens])
    return cache / "datasets" / f"{tokenizer.name}-{key[:20]}"


def _made(folder: Path, cache: Path, progress: OnProgress | None) -> dict[str, Any] | None:
    """The manifest of a folder whose shards are what golf wrote; None when there is none, or they have changed."""
    try:
        manifest: dict[str, Any] = read_json(folder / "manifest.json")
        files = {name: hash for one in manifest["splits"].values() for name, hash in one["sha256"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    with FileHashes(cache) as hashes:
        try:
            found = hashes.all([folder / name for name in files], progress)
        except DataError:  # one of them is gone
            found = []
    return manifest if found == list(files.values()) else None


def _from_text(
    source: TextSource,
    tokenizer_spec: TokenizerSpec,
    cache: Path,
    shard_tokens: int,
    on_progress: OnProgress | None,
    believed: Mapping[str, Any] | None,
) -> Prepared:
    source_hash = source.content_hash(cache) if believed is None else str(believed["source_hash"])
    copies = Copies()

    def train_documents() -> Iterator[str]:
        for text in () if copies else source.documents("val"):
            copies.hold(text)
        return copies.apart(source.documents("train"))

    tokenizer = tokenizer_spec.prepare(train_documents, source_hash, cache, on_progress)
    folder = _folder(cache, source_hash, tokenizer, shard_tokens)
    cached = True
    if believed is None:
        with locked(folder):
            manifest = _made(folder, cache, on_progress)
            cached = manifest is not None
            if manifest is None:
                if (folder / "manifest.json").exists():
                    logger.warning("%s has changed since golf wrote it: made anew from the text", folder)
                _write(source, tokenizer, folder, shard_tokens, copies, on_progress)
    manifest = read_json(folder / "manifest.json")
    splits = {name: {key: n for key, n in one.items() if key != "sha256"} for name, one in manifest["splits"].items()}
    opened = {
        split: Shards.open([folder / name for name in splits[split]["files"]], tokenizer.vocab_size)
        for split in _SPLITS
    }
    facts = {
        **manifest["source"],
        "source_hash": source_hash,
        "tokenizer": tokenizer.name,
        "tokenizer_hash": tokenizer.hash,
        "tokenizer_training": tokenizer_training(tokenizer_spec),
        "vocab_size": tokenizer.vocab_size,
        "splits": splits,
        "byte_proof": manifest["byte_proof"],
        "folder": str(folder),
        "cached": cached,
    }
    val, unknown = splits["val"], splits["train"]["unknown_tokens"]
    if believed is None and unknown:
        logger.warning(
            "%s of the training tokens are characters that %s has no piece for: their text is lost",
            f"{unknown:,}", tokenizer.name,
        )  # fmt: skip
    if believed is None and val["bytes"] > val["text_bytes"]:
        logger.warning(
            "%s makes the validation text longer (%s bytes, %s after its normaliser): bpb counts the longer text",
            tokenizer.name, f"{val['text_bytes']:,}", f"{val['bytes']:,}",
        )  # fmt: skip
    return Prepared(tokenizer, opened["train"], opened["val"], facts)


def _write(
    source: TextSource,
    tokenizer: Tokenizer,
    folder: Path,
    shard_tokens: int,
    copies: Copies,
    progress: OnProgress | None,
) -> None:
    """Make `folder`, whole or not at all; the caller holds its lock."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left_by_a_killed_process in folder.parent.glob(f".{folder.name}.*.part"):
        shutil.rmtree(left_by_a_killed_process, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        splits: dict[str, Any] = {}
        made: dict[Split, list[Path]] = {}
        prover = Prover(tokenizer)
        for split in _SPLITS:
            tally = _Tally()
            stream = _tokenize(source, split, tokenizer, tally, prover if split == "val" else None, copies, progress)
            paths = made[split] = write_shards(temporary, split, stream, shard_tokens)
            if not tally.documents:
                raise DataError(f"the data has no {split} documents")
            splits[split] = {
                "files": [path.name for path in paths],
                "documents": tally.documents,
                "tokens": tally.tokens,
                "bytes": tally.bytes,
                "text_bytes": tally.text_bytes,
                "unknown_tokens": tally.unknown_tokens,
                "bytes_per_token": tally.bytes / tally.tokens,
                "tokens_per_byte": tally.tokens / max(tally.bytes, 1),
                **{key: n for key, n in source.facts["splits"][split].items() if key != "documents"},
                **({"text_sha256": tally.text.hexdigest()} if split == "val" else {"copies_left_out": copies.left_out}),
                "sha256": {path.name: sha256_file(path) for path in paths},
            }
        if prover.proof.bytes != splits["val"]["bytes"]:
            raise DataError(
                f"bpb refused: {tokenizer.name} counts {splits['val']['bytes']} bytes over the validation stream, "
                f"{prover.proof.bytes} over its documents"
            )
        facts = {key: value for key, value in source.facts.items() if key != "splits"}
        if copies.left_out:
            facts["disjoint"] += (
                f"; {copies.left_out} more train documents that differ from a validation document in white space alone,"
                " or in nothing that the tokenizer sees, were left out"
            )
        train, val = (Shards.open(made[split], tokenizer.vocab_size) for split in ("train", "val"))
        facts["overlap"] = near_copies(train, val, tokenizer.bos_id, splits["val"]["bytes_per_token"])
        del train, val
        told = {"layout": _LAYOUT, "source": facts, "splits": splits, "byte_proof": prover.proof.facts()}
        write_json(temporary / "manifest.json", told)
        temporary.chmod(0o755)
        shutil.rmtree(folder, ignore_errors=True)  # a folder that is not whole is nobody's
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@dataclass
class _Tally:
    """What went through: counts, tokens that stand for no text, bytes of the text before and after normalisation."""

    documents: int = 0
    tokens: int = 0
    unknown_tokens: int = 0
    text_bytes: int = 0
    bytes: int = 0
    text: TextHash = field(default_factory=TextHash)


def _tokenize(
    source: TextSource,
    split: Split,
    tokenizer: Tokenizer,
    tally: _Tally,
    prover: Prover | None,
    copies: Copies,
    progress: OnProgress | None,
) -> Iterator[np.ndarray]:
    """[BOS] + ids of every document of the split, many documents an array; `prover` compares each with its text.

    Of validation `copies` remembers every document, and of training it leaves out what it knows.
    """
    table = tokenizer.byte_table()
    bos = np.array([tokenizer.bos_id], np.uint16)
    documents = source.documents(split)
    for texts in _batches(copies.apart(documents) if split == "train" else documents):
        encoded = tokenizer.encode_batch(texts)
        if split == "val":
            tally.text.add(texts)
            for text, one in zip(texts, encoded, strict=True):
                copies.hold(text, one)
        else:
            kept = [(text, one) for text, one in zip(texts, encoded, strict=True) if not copies.has(one)]
            texts, encoded = [text for text, _ in kept], [one for _, one in kept]
        if not texts:
            continue
        if prover is not None:
            prover.check(encoded, [tokenizer.normalize(text) for text in texts])
        ids = np.concatenate([part for one in encoded for part in (bos, one)])
        tally.documents += len(texts)
        tally.tokens += ids.size
        tally.unknown_tokens += int(np.count_nonzero(table.boundary[ids])) - len(texts)  # without each one's BOS
        tally.text_bytes += sum(len(text.encode("utf-8")) for text in texts)
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


def _existing(
    source: ShardFolder,
    tokenizer_spec: TokenizerSpec,
    cache: Path,
    on_progress: OnProgress | None,
    believed: Mapping[str, Any] | None,
) -> Prepared:
    """Open shards that were made elsewhere, with the tokenizer that made them."""
    if tokenizer_spec.needs_text:
        raise ConfigError(
            "data=shards has no text to train a tokenizer on: set tokenizer.model_path to the .model file\n"
            "that the shards were written with"
        )
    hashes = source.hashes(cache, on_progress) if believed is None else {}
    source_hash = sha256_json(["shards", 2, hashes]) if believed is None else str(believed["source_hash"])
    tokenizer = tokenizer_spec.prepare(lambda: iter(()), source_hash, cache, None)
    train, val = (Shards.open(source.files(split), tokenizer.vocab_size) for split in ("train", "val"))
    if believed is not None:
        return Prepared(tokenizer, train, val, dict(believed))
    both = {path.resolve() for path in train.paths} & {path.resolve() for path in val.paths}
    if both:
        raise DataError(
            f"{min(both)} is both a train and a validation shard (data.train, data.val)\n"
            "(globs divide a folder: data.train=DIR/*_train_*.bin data.val=DIR/*_val_*.bin)"
        )
    if alike := set(hashes["train"]) & set(hashes["val"]):
        first, second = (
            shards.paths[next(i for i, one in enumerate(of) if one in alike)]
            for shards, of in ((train, hashes["train"]), (val, hashes["val"]))
        )
        raise DataError(
            f"{first} is a copy of the validation shard {second}: a model would train on what it is scored by\n"
            "(data.train names other shards)"
        )
    found = check_shards(train, val, hashes, tokenizer, cache, on_progress)
    checked, sampled = found["val"], found["train"]
    if sampled["copies"]:
        logger.warning(
            "%s training documents are validation documents, token for token: the model trains on what it is scored by",
            f"{sampled['copies']:,}",
        )  # fmt: skip
    facts = {
        "source": "shards",
        "source_hash": source_hash,
        "tokenizer": tokenizer.name,
        "tokenizer_hash": tokenizer.hash,
        "tokenizer_training": tokenizer_training(tokenizer_spec),
        "vocab_size": tokenizer.vocab_size,
        "splits": {
            "train": {
                "files": [path.name for path in train.paths],
                "documents": sampled["documents"],
                "tokens": len(train),
            },
            "val": {
                "files": [path.name for path in val.paths],
                "documents": checked["documents"],
                "tokens": len(val),
                "bytes": checked["bytes"],
                "text_sha256": checked["text_sha256"],
                "bytes_per_token": checked["bytes"] / len(val),
                "tokens_per_byte": len(val) / max(checked["bytes"], 1),
            },
        },
        "disjoint": (
            "not checked as text: these shards were made elsewhere; no file is in both splits, and of "
            f"{sampled['documents']:,} training documents {sampled['copies']:,} of {BEGINNING} tokens or more are "
            "validation documents, token for token"
        ),
        "copies_in_training": sampled["copies"],
        "overlap": sampled["overlap"],
        "byte_proof": {
            "proved": True,
            "documents": checked["documents"],
            "bytes": checked["proved_bytes"],
            "documents_that_encode_to_the_same_ids": checked["same"],
        },
        "train_sample": {
            "documents": sampled["sampled"],
            "documents_that_encode_to_the_same_ids": sampled["same"],
        },
        "cached": True,
    }
    return Prepared(tokenizer, train, val, facts)
