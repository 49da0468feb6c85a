"""Manifests beside shards, golf's own and the challenge's: how training and validation were divided, with what proof.

golf's has the SHA-256 of every shard and of two files of hashes, one a document, by which the texts of both splits are
held against each other. The challenge's has counts, which are held against the shards'; nothing of it proves a text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from golf.common.errors import DataError
from golf.common.files import read_json, sha256_json
from golf.data.hashes import FileHashes, Memo
from golf.data.making import HASH_BYTES
from golf.data.sources import Split

NAME = "manifest.json"
BY_HASH = "of {train:,} training and {val:,} validation texts {both:,} are in both, by their hashes"
"""What `Apart` says, of its fields or of a record's `texts_apart`."""


class Apart(NamedTuple):
    """Documents of each split, how many texts are in both, and how many training texts came before in training."""

    train: int
    val: int
    both: int
    repeated: int

    def __str__(self) -> str:
        return BY_HASH.format(**self._asdict())


def golfs(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder that golf made, whatever it says."""
    try:
        manifest = read_json(folder / NAME)
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and "layout" in manifest and "splits" in manifest else None


def challenges(folder: Path) -> tuple[Path, dict[str, Any], dict[str, Any]] | None:
    """The root of the challenge's export that a folder of shards is in, its manifest, and the folder's entry in it."""
    root = folder.parent.parent
    try:
        manifest = read_json(root / NAME)
        entry = next(one for one in manifest["datasets"] if Path(one["path"]).name == folder.name)
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return None
    return (root, manifest, entry) if isinstance(entry, dict) else None


def apart(folder: Path, splits: Mapping[str, Any], cache: Path | None) -> Apart | None:
    """Training and validation held apart by the hashes of their texts; None where a file of hashes is not there.

    splits: of golf's manifest. What was found is remembered in `cache`. Raises DataError for a file that is not what
    golf wrote, KeyError or TypeError for a manifest that golf did not write.
    """
    told = {split: splits[split].get("document_hashes") for split in ("train", "val")}
    if not all(told.values()):
        return None
    paths = {split: folder / one["file"] for split, one in told.items()}
    try:
        if not all(path.is_file() for path in paths.values()):
            return None
    except OSError as error:  # no name of a file
        raise DataError(f"a file of hashes cannot be looked at: {error.strerror}") from None
    with FileHashes(cache) as hashes:
        for split, path in paths.items():
            whole = path.stat().st_size == HASH_BYTES * splits[split]["documents"]
            if not whole or hashes.of(path) != told[split]["sha256"]:
                raise DataError(f"{path.name} is not what golf wrote")
    memo = Memo(None if cache is None else cache / "texts_apart.json")
    key = sha256_json([one["sha256"] for one in told.values()])
    known = memo.load().get(key)
    if not isinstance(known, list) or len(known) != len(Apart._fields):
        with memo.held():
            known = list(_compared(*(np.fromfile(path, "<u8").reshape(-1, 2) for path in paths.values())))
            memo.add({key: known})
    return Apart(*(int(count) for count in known))


def _compared(train: np.ndarray, val: np.ndarray) -> Apart:
    firsts = np.sort(val[:, 0])  # looked up in, since millions of training documents would be sorted to join them
    at = np.minimum(np.searchsorted(firsts, train[:, 0]), len(firsts) - 1)
    likely = train[firsts[at] == train[:, 0]] if len(firsts) else train[:0]
    both = {one.tobytes() for one in likely} & {one.tobytes() for one in val}
    ordered = np.sort(train[:, 0])  # a hundred times as fast as np.unique, which hashes
    return Apart(len(train), len(val), len(both), int(np.count_nonzero(ordered[1:] == ordered[:-1])))


def proved(folder: Path, splits: Mapping[str, Any], cache: Path | None) -> dict[str, Any]:
    """`texts_apart` for the run's record, where the hashes of all texts are there; raises as `apart` does."""
    found = apart(folder, splits, cache)
    return {} if found is None else {"texts_apart": found._asdict()}


def beside(
    paths: Mapping[Split, Sequence[Path]], hashes: Mapping[str, Sequence[str]], val_documents: int, cache: Path
) -> dict[str, Any]:
    """What manifests beside shards that are read as they are say of their division: facts for the run's record.

    Of golf's, whose shards these are by SHA-256, the training ones or the first of them, all that it says. Of another,
    `disjoint` says what is not proved, and where its counts are not the shards'. Nothing where there is none.
    """
    folder = paths["train"][0].parent
    manifest = golfs(folder)
    if manifest is None:
        if (found := challenges(folder)) is None:
            return {}
        wrong = miscounted(found[2], val_documents)
        return {"validation": division(*found[1:]), **({"disjoint": f"not checked: {wrong}"} if wrong else {})}
    try:
        splits, source = manifest["splits"], manifest["source"]
        for split in paths:
            named = splits[split]["sha256"]
            for path, digest in zip(paths[split], hashes[split], strict=True):
                if path.parent != folder or named.get(path.name) != digest:
                    return {"disjoint": f"not checked: {path.name} is not what {folder / NAME} tells of"}
        if [path.name for path in paths["val"]] != splits["val"]["files"]:
            return {"disjoint": f"not checked: these are not all validation shards of {folder / NAME}"}
        told = {key: source[key] for key in ("validation", "disjoint") if key in source}
        return {**told, "manifest": str(folder / NAME), **proved(folder, splits, cache)}
    except DataError as error:
        return {"disjoint": f"not checked: {error}"}
    except (KeyError, TypeError, AttributeError):
        return {"disjoint": f"not checked: {folder / NAME} is not as golf writes it"}


def trained_on(folder: Path, tokenizer_hash: str) -> str | None:
    """What golf's manifest says of the training of the tokenizer that made its shards, if it is this one."""
    told = (golfs(folder) or {}).get("tokenizer")
    if not isinstance(told, dict) or told.get("hash") != tokenizer_hash:
        return None
    return str(told.get("training") or "") or None


def division(manifest: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    """What the challenge's manifest says of the split, which nothing proves."""
    val, every = stated(entry), manifest.get("num_docs")
    if val is None:
        return "its manifest does not say"
    of = f" of {every:,}" if isinstance(every, int) else ""
    return f"by its manifest: the first {val:,} documents{of} are validation"


def stated(entry: Mapping[str, Any]) -> int | None:
    """Validation documents by a dataset's entry in the challenge's manifest."""
    stats = entry.get("stats")
    count = stats.get("docs_val") if isinstance(stats, dict) else None
    return count if isinstance(count, int) and not isinstance(count, bool) else None


def miscounted(entry: Mapping[str, Any], documents: int) -> str | None:
    """What is wrong where shards have another number of validation documents than the challenge's manifest says."""
    told = stated(entry)
    if told in (None, documents):
        return None
    return f"its manifest has {told:,} validation documents, the shards {documents:,}"
