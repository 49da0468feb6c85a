"""From a source and a tokenizer to shards on disk, made once and kept by content hash, their bytes proved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from golf.common.errors import ConfigError, DataError
from golf.common.files import cache_dir, locked, read_json, sha256_json
from golf.common.log import logger
from golf.data import manifests, sidecar, textfiles
from golf.data.existing import check_shards
from golf.data.fineweb import FineWeb
from golf.data.hashes import FileHashes
from golf.data.making import SPLITS, Making
from golf.data.overlap import BEGINNING, Copies, tokenizer_training
from golf.data.shards import Shards
from golf.data.sources import ShardFolder, TextSource
from golf.tokenizers.base import OnProgress, Tokenizer, TokenizerSpec, counts_apart

_LAYOUT = 4  # of the cache folder, its proof included; a change makes old folders invisible
_SHARD_TOKENS = 10**8


@dataclass(frozen=True)
class Prepared:
    """Everything a run needs of its data; `facts` goes into the run record.

    val_bytes: the byte side-car of `val`, of a tokenizer whose bytes are counted apart.
    """

    tokenizer: Tokenizer
    train: Shards
    val: Shards
    facts: dict[str, Any]
    val_bytes: Shards | None = None


def prepare(
    source: TextSource | ShardFolder | FineWeb,
    tokenizer_spec: TokenizerSpec,
    *,
    cache: Path | None = None,
    shard_tokens: int = _SHARD_TOKENS,
    on_progress: OnProgress | None = None,
    believed: Mapping[str, Any] | None = None,
    processes: int | None = None,
) -> Prepared:
    """Tokenize a source into shards of `shard_tokens`, or find them in `cache` (default: golf's cache folder).

    The tokenizer sees training documents only. Shards lie under the hashes of source and tokenizer, made under a
    lock and renamed into place whole: processes that ask for the same data wait for the first and share its work, and
    one that was stopped is gone on with from its last whole shard. `processes` tokenize (None: one a core); the bytes
    are the same for any number. The byte table is proved on every validation document when the shards are
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
            return replace(found, facts={**found.facts, **source.facts(tokenizer_spec, found.facts, cache)})
        if isinstance(source, ShardFolder):
            return _existing(source, tokenizer_spec, cache, on_progress, believed)
        return _from_text(source, tokenizer_spec, cache, shard_tokens, on_progress, believed, processes)
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
    key = sha256_json([_LAYOUT, source_hash, tokenizer.hash, shard_tokens, *_apart(tokenizer)])
    return cache / "datasets" / f"{tokenizer.name}-{key[:20]}"


def _apart(tokenizer: Tokenizer) -> list[str]:
    return ["side-car 1"] if counts_apart(tokenizer) else []


def _made(folder: Path, cache: Path, progress: OnProgress | None) -> dict[str, Any] | None:
    """The manifest of a folder whose shards are what golf wrote; None when there is none, or they have changed."""
    try:
        manifest: dict[str, Any] = read_json(folder / "manifest.json")
        splits = manifest["splits"].values()
        files = {folder / name: hash for one in splits for name, hash in one["sha256"].items()}
        files |= {folder / told["file"]: told["sha256"] for one in splits if (told := one.get("document_hashes"))}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    with FileHashes(cache) as hashes:
        try:
            found = hashes.all(list(files), progress)
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
    processes: int | None,
) -> Prepared:
    source_hash = source.content_hash(cache) if believed is None else str(believed["source_hash"])

    def train_documents() -> Iterator[str]:
        copies = Copies()
        copies.hold(Copies.key(text) for text in source.documents("val"))
        return copies.apart(source.documents("train"))

    tokenizer = tokenizer_spec.prepare(train_documents, source_hash, cache, on_progress)
    folder = _folder(cache, source_hash, tokenizer, shard_tokens)
    cached = believed is not None or _made(folder, cache, on_progress) is not None
    if not cached:  # what is there already needs no lock: the cache may be another's
        with locked(folder):
            cached = _made(folder, cache, on_progress) is not None
            if not cached:
                if (folder / "manifest.json").exists():
                    logger.warning("%s has changed since golf wrote it: made anew from the text", folder)
                training = tokenizer_training(tokenizer_spec, tokenizer)
                making = Making(
                    source, tokenizer, folder, shard_tokens, on_progress, processes=processes, training=training
                )
                making.make(_LAYOUT)
    manifest = read_json(folder / "manifest.json")
    splits = {
        name: {key: n for key, n in one.items() if key not in ("sha256", "document_hashes")}
        for name, one in manifest["splits"].items()
    }
    opened = {
        split: Shards.open([folder / name for name in splits[split]["files"]], tokenizer.vocab_size) for split in SPLITS
    }
    val_bytes = None
    if names := splits["val"].get("side_car"):
        val_bytes = sidecar.open_beside([folder / name for name in names], opened["val"])
    if believed is None:
        apart = manifests.proved(folder, manifest["splits"], cache).get("texts_apart")
    else:
        apart = believed.get("texts_apart")
    facts = {
        **manifest["source"],
        "source_hash": source_hash,
        "tokenizer": tokenizer.name,
        "tokenizer_hash": tokenizer.hash,
        "tokenizer_training": tokenizer_training(tokenizer_spec, tokenizer),
        "vocab_size": tokenizer.vocab_size,
        "splits": splits,
        "byte_proof": manifest["byte_proof"],
        **({"texts_apart": apart} if apart is not None else {}),
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
    if believed is None:
        _tell_lost(tokenizer, facts)
    return Prepared(tokenizer, opened["train"], opened["val"], facts, val_bytes)


def _tell_lost(tokenizer: Tokenizer, facts: Mapping[str, Any]) -> None:
    if lost := facts["splits"]["val"].get("lost_bytes"):
        logger.warning(
            "%.2f %% of the validation bytes are characters that %s has no piece for: they are counted, and the model "
            "need not tell which they are, so bpb flatters it",
            100 * lost / facts["splits"]["val"]["bytes"], tokenizer.name,
        )  # fmt: skip


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
    counter = counts_apart(tokenizer)
    if believed is not None:
        names = believed["splits"]["val"].get("side_car")
        counts = sidecar.open_beside([Path(name) for name in names], val) if names else None
        return Prepared(tokenizer, train, val, dict(believed), counts)
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
    beside = sidecar.beside(val.paths) if counter is not None else []
    counts = sidecar.open_beside(beside, val) if beside else None
    if counter is not None and counts is None and (docs := textfiles.expand(source.docs or [])):
        counts = sidecar.kept(cache, sha256_json([*hashes["val"], tokenizer.hash]), counter, val, docs)
        with FileHashes(cache) as files:
            hashes |= {sidecar.SPLIT: files.all(counts.paths)}
    found = check_shards(train, val, hashes, tokenizer, cache, on_progress, counts)
    checked, sampled = found["val"], found["train"]
    apart: dict[str, Any] = {}
    if counter is not None:
        counts = counts or sidecar.kept(cache, sha256_json([*hashes["val"], tokenizer.hash]), counter, val)
        checked |= {"bytes": sidecar.total(counts)}
        apart = {"side_car": [str(path) for path in counts.paths], **checked["lost"]}
    if sampled["copies"]:
        logger.warning(
            "%s training documents are validation documents, token for token: the model trains on what it is scored by",
            f"{sampled['copies']:,}",
        )  # fmt: skip
    told = manifests.beside({"train": train.paths, "val": val.paths}, hashes, checked["documents"], cache)
    trained_on = manifests.trained_on(train.paths[0].parent, tokenizer.hash) if "manifest" in told else None
    facts = {
        "source": "shards",
        "source_hash": source_hash,
        "tokenizer": tokenizer.name,
        "tokenizer_hash": tokenizer.hash,
        "tokenizer_training": trained_on or tokenizer_training(tokenizer_spec),
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
                **apart,
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
            "documents": checked["proved_documents"],
            "bytes": checked["proved_bytes"],
            "documents_that_encode_to_the_same_ids": checked["same"],
        },
        "train_sample": {
            "documents": sampled["sampled"],
            "documents_that_encode_to_the_same_ids": sampled["same"],
        },
        "cached": True,
        **told,
    }
    _tell_lost(tokenizer, facts)
    return Prepared(tokenizer, train, val, facts, counts)
