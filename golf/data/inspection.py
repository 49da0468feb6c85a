"""What a folder of shards holds, what can be proved of it, and what cannot: golf's own by its manifest, and others'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from golf.common.errors import ConfigError, DataError
from golf.common.files import cache_dir
from golf.data import manifests, sidecar
from golf.data.existing import check_shards
from golf.data.hashes import FileHashes
from golf.data.making import SPLITS
from golf.data.neighbours import Document, Neighbours, blocks, nearest
from golf.data.overlap import BEGINNING, Beginnings
from golf.data.shards import Shards
from golf.data.sources import Split
from golf.tokenizers.base import OnProgress, Tokenizer, counts_apart
from golf.tokenizers.byte260 import Byte260
from golf.tokenizers.caseops import CaseOps
from golf.tokenizers.files import load
from golf.tokenizers.transform import Transformed

_FIELDS_BOS = 1  # of the challenge's tokenizers
_SHOWN = 160  # characters of a sample
_SCAN = 1 << 24


@dataclass
class Inspection:
    """What was found: `facts` by name, what is `proved`, `wrong` or `unproved`, in sentences, and texts to look at.

    samples, pairs: (what it is, text); of pairs two texts each.
    """

    folder: Path
    facts: dict[str, str] = field(default_factory=dict)
    proved: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    unproved: list[str] = field(default_factory=list)
    samples: list[tuple[str, str]] = field(default_factory=list)
    pairs: list[tuple[str, str, str]] = field(default_factory=list)


def inspect(
    folder: Path,
    tokenizer_path: str | None = None,
    transform: str | None = None,
    *,
    samples: int = 3,
    near: bool = True,
    most: int = 5,
    cache: Path | None = None,
    progress: OnProgress | None = None,
) -> Inspection:
    """Look at a folder of shards (`*_train_*.bin`, `*_val_*.bin`) in the challenge's format.

    tokenizer_path: a .model or tokenizer.json, or `byte260`; None: the one that lies with the shards or that a manifest
    names. transform: the name of one of golf's that stands before it; None: what the manifest says. samples: documents
    shown of each split. near, most: whether near copies are looked for, and pairs shown.
    Raises DataError for a folder without shards, for shards that are damaged, and for a tokenizer that did not write
    them; ConfigError where what reads the tokenizer is not installed.
    """
    found = Inspection(folder.expanduser().absolute())
    paths = _shards_in(found.folder)
    found.folder = paths["train"][0].parent
    cache = cache_dir() if cache is None else cache
    manifest = manifests.golfs(found.folder)
    tokenizer = _tokenizer(found, tokenizer_path, transform, manifest)
    vocab = tokenizer.vocab_size if tokenizer is not None else 1 << 16
    shards = {split: Shards.open(paths[split], vocab) for split in SPLITS}
    bos = tokenizer.bos_id if tokenizer is not None else _FIELDS_BOS
    with FileHashes(cache) as files:
        hashes: dict[str, list[str]] = {split: files.all(paths[split], progress) for split in SPLITS}
        if beside := sidecar.beside(paths["val"]):
            hashes[sidecar.SPLIT] = files.all(beside, progress)
    counts = sidecar.open_beside(beside, shards["val"]) if beside else None
    if counts is not None:
        found.facts["side-car"] = f"{sidecar.total(counts):,} bytes by it"
    for split in SPLITS:
        count = _documents(shards[split], bos)
        found.facts[f"{split} shards"] = f"{len(paths[split]):,}, {len(shards[split]):,} tokens, {count:,} documents"
    if manifest is not None:
        _by_manifest(found, manifest, paths, hashes, cache)
    else:
        _without_golfs(found, _documents(shards["val"], bos))
    if alike := set(hashes["train"]) & set(hashes["val"]):
        found.wrong.append(f"{len(alike)} training shards are copies of validation shards")
    _copies(found, shards, bos)
    per_token = None
    if tokenizer is not None:
        apart = counts if counts_apart(tokenizer) else None
        checked = check_shards(shards["train"], shards["val"], hashes, tokenizer, cache, progress, apart)
        val = checked["val"]
        size = val["bytes"] if apart is None else sidecar.total(apart)
        per_token = size / max(len(shards["val"]), 1)
        found.facts["validation bytes"] = f"{size:,}, {per_token:.4f} a token"
        found.proved.append(
            f"the byte count: {val['proved_bytes']:,} bytes over {val['proved_documents']:,} validation documents; of "
            f"all {val['documents']:,} {val['same']:,} encode to their own ids again"
        )
        if lost := val["lost"]:
            found.unproved.append(
                f"{lost['lost_bytes']:,} bytes of {lost['lost_tokens']:,} tokens that do not say which text they stand "
                "for: the side-car alone tells them"
            )
    if near:
        try:
            _near(found, nearest(shards["train"], shards["val"], bos, most, per_token, progress), tokenizer)
        except ConfigError as error:  # the rest is worth telling all the same
            found.unproved.append(str(error).replace("\n", ": "))
    for split in SPLITS:
        for one in _spread(shards[split], bos, samples):
            found.samples.append((f"{split}, token {one.position:,}", _text(one, tokenizer)))
    return found


def _shards_in(folder: Path) -> dict[Split, list[Path]]:
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder")

    def within(place: Path) -> dict[Split, list[Path]]:
        return {split: sidecar.without(sorted(place.glob(f"*_{split}_*.bin"))) for split in SPLITS}

    places = [place for place in (folder, *sorted(folder.glob("**/"))) if all(within(place).values())]
    if not places:
        raise DataError(f"{folder} holds no shards of training and validation (*_train_*.bin and *_val_*.bin)")
    if len(set(places)) > 1 and places[0] != folder:
        names = ", ".join(str(place.relative_to(folder)) for place in places[:4])
        raise DataError(f"{folder} holds shards in {len(places)} folders: name one of them ({names})")
    return within(places[0])


def _tokenizer(
    found: Inspection, given: str | None, transform: str | None, manifest: dict[str, Any] | None
) -> Tokenizer | None:
    """The tokenizer that was given, that lies with the shards, or that the challenge's manifest names."""
    told = manifest.get("tokenizer", {}) if manifest else {}
    path = given or (told.get("file") and str(found.folder / told["file"])) or _fields_model(found.folder)
    if path is None and told.get("hash") == Byte260.hash:
        path = Byte260.name
    if path is None:
        found.facts["tokenizer"] = "not known"
        found.unproved.append(
            "the byte count, and so any bpb: no tokenizer lies with the shards (tokenizer.model_path=FILE names it)"
        )
        return None
    tokenizer: Tokenizer = Byte260() if path == Byte260.name else load(path)
    if (name := transform or told.get("transform")) is not None:
        stands_before = CaseOps.named(name)
        if stands_before is None:
            found.facts["tokenizer"] = f"{tokenizer.name} behind {name}"
            found.unproved.append(f"the byte count, and so any bpb: the text transform {name} is not golf's")
            return None
        tokenizer = Transformed(tokenizer, stands_before)
    found.facts["tokenizer"] = f"{tokenizer.name}, {tokenizer.vocab_size:,} ids, SHA-256 {tokenizer.hash[:16]}…"
    if told and told.get("hash") != tokenizer.hash:
        found.wrong.append("the tokenizer is not the one that the manifest names")
    return tokenizer


def _fields_model(folder: Path) -> str | None:
    """The model that the challenge's export names for this folder: manifest.json two folders up."""
    if (export := manifests.challenges(folder)) is None:
        return None
    root, manifest, entry = export
    try:
        tokenizer = next(one for one in manifest["tokenizers"] if one["name"] == entry["tokenizer_name"])
        model = root / tokenizer["model_path"]
    except (KeyError, TypeError, StopIteration):
        return None
    return str(model) if model.is_file() else None


def _by_manifest(
    found: Inspection,
    manifest: dict[str, Any],
    paths: dict[Split, list[Path]],
    hashes: dict[str, list[str]],
    cache: Path,
) -> None:
    """Hold the files against what golf said of them when it made them."""
    try:
        source, splits = manifest["source"], manifest["splits"]
        found.facts["made by"] = f"golf, from {source['source']}"
        found.facts["split"] = str(source.get("validation") or source["disjoint"])
        found.facts["the tokenizer's training"] = manifest.get("tokenizer", {}).get("training") or "not told"
        for split in SPLITS:
            there = dict(zip((path.name for path in paths[split]), hashes[split], strict=True))
            if split == "val" and (beside := sidecar.beside(paths[split])):
                there |= zip((path.name for path in beside), hashes[sidecar.SPLIT], strict=True)
            if list(splits[split]["sha256"].items()) == list(there.items()):
                found.proved.append(f"the {split} shards are what golf wrote, by SHA-256")
            else:
                found.wrong.append(f"the {split} shards are not what golf wrote: other files, or changed ones")
        _by_hashes(found, splits, cache)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{found.folder / 'manifest.json'} is not as golf writes it ({error})") from None
    found.proved.append(f"when it was made: {source['disjoint']}")


def _by_hashes(found: Inspection, splits: dict[str, Any], cache: Path) -> None:
    """Training and validation apart, document by document, by the hashes of their texts."""
    try:
        apart = manifests.apart(found.folder, splits, cache)
    except DataError as error:
        found.wrong.append(str(error))
        return
    if apart is None:
        found.unproved.append("which texts are in training and in validation: their hashes are not there")
        return
    found.facts["repeated training texts"] = f"{apart.repeated:,} of {apart.train:,}"
    (found.wrong if apart.both else found.proved).append(str(apart))


def _without_golfs(found: Inspection, val_documents: int) -> None:
    export = manifests.challenges(found.folder)
    found.facts["made by"] = "not golf: there is no manifest of its"
    if export is not None:
        found.facts["split"] = manifests.division(*export[1:])
        found.wrong += filter(None, [manifests.miscounted(export[2], val_documents)])
    found.unproved += [
        "how the split was made, and from which documents",
        "that no validation text is in training in another form: there are no hashes of the documents' texts",
        "what the tokenizer was trained on: it may have seen validation text",
    ]


def _documents(shards: Shards, bos: int) -> int:
    return sum(
        int(np.count_nonzero(shards.read(at, min(_SCAN, len(shards) - at)) == bos))
        for at in range(0, len(shards), _SCAN)
    )


def _copies(found: Inspection, shards: dict[Split, Shards], bos: int) -> None:
    beginnings, train = Beginnings(shards["val"], bos), shards["train"]
    copies = sum(
        beginnings.copies(train, index, at, _SCAN)
        for index in range(len(train.paths))
        for at in range(0, train.size(index), _SCAN)
    )
    told = (
        f"of the training documents of {BEGINNING} tokens or more {copies:,} are validation documents, token for token"
    )
    (found.wrong if copies else found.proved).append(told)


def _near(found: Inspection, near: Neighbours, tokenizer: Tokenizer | None) -> None:
    counts = ", ".join(f"{count:,} with at least {share:.0%}" for share, count in near.alike.items())
    part = near.train_tokens_read / max(near.train_tokens, 1)
    where = f"{near.train_looked_through:,} training documents" + (f" (a sample of {part:.0%})" if part < 0.99 else "")
    found.facts["near copies"] = (
        f"of {near.val_looked_for:,} validation documents, by common shingles of {near.shingle_tokens} tokens: "
        f"{counts}; looked for in {where} by MinHash"
    )
    for share, val, train in near.pairs:
        place = f"{share:.0%} in common: validation token {val.position:,}, training token {train.position:,}"
        found.pairs.append((place, _text(val, tokenizer), _text(train, tokenizer)))


def _spread(shards: Shards, bos: int, count: int) -> Sequence[Document]:
    """So many documents of the first block, evenly."""
    block = next(blocks(shards, bos), [])
    return [block[i * len(block) // count] for i in range(min(count, len(block)))]


def _text(document: Document, tokenizer: Tokenizer | None) -> str:
    if tokenizer is None:
        return f"ids {document.ids[:24].tolist()}…"
    text = " ".join(tokenizer.decode(document.ids[: 4 * _SHOWN]).split())
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
