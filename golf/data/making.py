"""Shards from text, made beside their place one by one, so that a preparation that was stopped goes on from the last.

What is there when a shard is done is told by a journal: the shards with their hashes, the counts, and the tokens that
were read for the next one. It is valid for one folder's name, which stands for text, tokenizer and options.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from golf.common.errors import DataError
from golf.common.files import atomic_writer, read_json, sha256_file, write_json
from golf.common.log import logger
from golf.data import sidecar
from golf.data.encoder import BATCH, Encoded, Work, encode
from golf.data.overlap import Copies, TextHash, near_copies
from golf.data.shards import Shards, each_shard
from golf.data.sources import Split, TextSource
from golf.tokenizers.base import OnProgress, Tokenizer, counts_apart
from golf.tokenizers.byte_table import Prover

SPLITS: tuple[Split, ...] = ("val", "train")  # so that a byte count that is refused is refused early
HASH_BYTES = 16  # of a document, in a split's file of hashes


def hashes_name(split: str) -> str:
    """The file that has `HASH_BYTES` for each document of a split, in the shards' order: BLAKE2b of its UTF-8 text."""
    return f"{split}_documents.hashes"


@dataclass
class Tally:
    """What went through: counts, tokens that stand for no text, bytes of the text before and after normalisation.

    read: documents that came, copies too. copies_left_out: training documents that are validation's. The others are as
    Encoded has them.
    """

    read: int = 0
    documents: int = 0
    tokens: int = 0
    unknown_tokens: int = 0
    text_bytes: int = 0
    bytes: int = 0
    fragments: int = 0
    copies_left_out: int = 0
    classes: dict[str, list[int]] = field(default_factory=dict)

    def add(self, texts: list[str], one: Encoded) -> None:
        """The next documents."""
        self.read += len(texts)
        self.documents += one.documents
        self.tokens += one.ids.size
        self.unknown_tokens += one.unknown_tokens
        self.text_bytes += one.text_bytes
        self.bytes += one.counted_bytes
        self.fragments += one.fragments
        self.copies_left_out += one.left_out
        for kind, counts in one.classes.items():
            self.classes[kind] = [a + b for a, b in zip(self.classes.get(kind, [0] * len(counts)), counts, strict=True)]


class Making:
    """The making of one folder of shards; the caller holds its lock.

    source, tokenizer, shard_tokens, progress: as `prepare` has them; processes, batch: as `encode` takes them.
    training: what the tokenizer was trained on, for the manifest.
    """

    def __init__(
        self,
        source: TextSource,
        tokenizer: Tokenizer,
        folder: Path,
        shard_tokens: int,
        progress: OnProgress | None = None,
        processes: int | None = None,
        batch: int = BATCH,
        training: str = "",
    ) -> None:
        self.source, self.tokenizer, self.folder, self.shard_tokens = source, tokenizer, folder, shard_tokens
        self.progress, self.processes, self.batch, self.training = progress, processes, batch, training
        self.beside = folder.parent / f".{folder.name}.part"
        self.copies = Copies()
        self.prover = Prover(tokenizer)

    def make(self, layout: int) -> None:
        """Make the folder, whole or not at all; `layout` is its manifest's.

        What was made stays beside it, for the next call to go on from, when at least one training shard is done and
        what ended the work is not the data itself.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        journal = self._journal()
        try:
            self.beside.mkdir(exist_ok=True)
            splits = {split: self._split(split, journal) for split in SPLITS}
            if (file := getattr(self.tokenizer, "file", None)) is not None:
                (self.beside / file[0]).write_bytes(file[1])
            write_json(self.beside / "manifest.json", {"layout": layout, **self._told(splits)})
            shutil.rmtree(self.folder, ignore_errors=True)  # a folder that is not whole is nobody's
            os.replace(self.beside, self.folder)
            for name in ("journal.json", "copies", *(path.name for path in self.folder.glob("pending_*"))):
                (self.folder / name).unlink(missing_ok=True)  # no longer needed
        except BaseException as error:
            shards = self._shards_done()
            if shards and not isinstance(error, DataError):
                logger.warning("%d training shards are kept in %s: the same command goes on", shards, self.beside)
            else:
                shutil.rmtree(self.beside, ignore_errors=True)
            raise

    def _journal(self) -> dict[str, Any]:
        """What an earlier process left that can be gone on with: `val`, done; `train`, so far."""
        try:
            journal: dict[str, Any] = read_json(self.beside / "journal.json")
            files = journal["val"]["sha256"] | journal["train"]["sha256"] | journal["train"]["pending"]
            if any(sha256_file(self.beside / name) != sha256 for name, sha256 in files.items()):
                raise ValueError
            self.copies = Copies.from_bytes((self.beside / "copies").read_bytes())
            train, told = self.beside / hashes_name("train"), journal["val"]["document_hashes"]
            if train.stat().st_size < HASH_BYTES * journal["train"]["tally"]["documents"]:
                raise ValueError
            if sha256_file(self.beside / told["file"]) != told["sha256"]:
                raise ValueError
            for being_written in self.beside.glob(".*.part"):
                being_written.unlink()
        except (OSError, ValueError, KeyError, TypeError):
            shutil.rmtree(self.beside, ignore_errors=True)
            return {}
        for _ in self.source.documents("val"):  # for the source's own counts, and to be where it would be
            pass
        self.prover.believe(journal["proof"]["documents"], journal["proof"]["bytes"])
        return journal

    def _shards_done(self) -> int:
        try:
            return len(read_json(self.beside / "journal.json")["train"]["sha256"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def _split(self, split: Split, journal: dict[str, Any]) -> dict[str, Any]:
        """Write a split's shards; its part of the manifest."""
        if split == "val" and "val" in journal:
            return journal["val"]
        known = journal.get(split, {})
        tally, text = Tally(**known.get("tally", {})), TextHash()
        made: dict[str, str] = dict(known.get("sha256", {}))
        left = [np.fromfile(self.beside / name, "<u2") for name in known.get("pending", ())]
        with open(self.beside / hashes_name(split), "ab") as hashes:
            hashes.truncate(tally.documents * HASH_BYTES)
            stream = self._stream(split, tally, hashes, text, left)
            for one in each_shard(self.beside, split, stream, self.shard_tokens, first=len(made)):
                made[one.path.name] = sha256_file(one.path)
                if split == "train":
                    hashes.flush()
                    os.fsync(hashes.fileno())
                    self._keep(journal, tally, made, one.pending)
        if not tally.documents:
            raise DataError(f"the data has no {split} documents")
        told = self._facts(split, tally, made)
        if split == "val":
            if (counter := counts_apart(self.tokenizer)) is not None:
                shards = Shards.open([self.beside / name for name in made], self.tokenizer.vocab_size)
                written = sidecar.write(self.beside, counter, shards, self.source.documents("val"))
                told |= sidecar.facts(written, shards, told)
            told["text_sha256"] = text.hexdigest()
            with atomic_writer(self.beside / "copies") as file:
                file.write(self.copies.to_bytes())
            proof = self.prover.proof
            journal |= {"val": told, "proof": {"documents": proof.documents, "bytes": proof.bytes}}
        return told

    def _keep(self, journal: dict[str, Any], tally: Tally, made: dict[str, str], pending: np.ndarray) -> None:
        """Have the journal know the training shards so far. What it knew holds until it is replaced."""
        left = self.beside / f"pending_{len(made):06d}"
        with atomic_writer(left) as file:
            file.write(pending.astype("<u2").tobytes())
        so_far = {"tally": dataclasses.asdict(tally), "sha256": made, "pending": {left.name: sha256_file(left)}}
        write_json(self.beside / "journal.json", {**journal, "train": so_far})
        for older in self.beside.glob("pending_*"):
            if older != left:
                older.unlink()

    def _stream(
        self, split: Split, tally: Tally, hashes: IO[bytes], text: TextHash, left: list[np.ndarray]
    ) -> Iterator[np.ndarray]:
        """[BOS] + ids of every document of the split that is not made yet, many documents an array.

        Of validation every document is remembered and proved; of training those that it has are left out.
        """
        is_val = split == "val"
        what = f"tokenize {split} text with {self.tokenizer.name}"
        yield from left
        documents, drawn = self.source.documents(split), 0

        def rest() -> Iterator[str]:
            nonlocal drawn
            for drawn, document in enumerate(documents, start=1):
                if drawn > already:
                    yield document

        already = tally.read
        work = Work(self.tokenizer, None if is_val else self.copies)
        for texts, one in encode(work, rest(), self.processes, self.batch):
            if is_val:
                self.copies.hold(one.keys, one.id_keys)
                text.add(one.plain)
                self._prove(texts, one)
            hashes.write(one.hashes)
            tally.add(texts, one)
            if one.documents:
                yield one.ids
            if self.progress is not None:  # what is read is ahead of what is done
                self.progress(what, self.source.fraction_read() * tally.read / drawn)
        if self.progress is not None:
            self.progress(what, 1.0)

    def _prove(self, texts: list[str], one: Encoded) -> None:
        if one.proved is None:  # look again, to tell of the document
            ids = np.split(one.ids, np.cumsum(one.lengths)[:-1])
            self.prover.check([part[1:] for part in ids], [self.tokenizer.normalize(text) for text in texts])
        self.prover.believe(one.documents, one.proved or 0)

    def _facts(self, split: Split, tally: Tally, made: dict[str, str]) -> dict[str, Any]:
        counts = dataclasses.asdict(tally)
        left_out, classes = counts.pop("copies_left_out"), counts.pop("classes")
        del counts["read"]
        names = ("documents", "tokens", "bytes")
        return {
            "files": list(made),
            **counts,
            "bytes_per_token": tally.bytes / tally.tokens,
            "tokens_per_byte": tally.tokens / max(tally.bytes, 1),
            **{key: n for key, n in self.source.facts["splits"][split].items() if key != "documents"},
            **({"copies_left_out": left_out} if split == "train" else {}),
            **({"classes": {kind: dict(zip(names, each)) for kind, each in classes.items()}} if classes else {}),
            "sha256": made,
            "document_hashes": {"file": hashes_name(split), "sha256": sha256_file(self.beside / hashes_name(split))},
        }

    def _told(self, splits: dict[Split, dict[str, Any]]) -> dict[str, Any]:
        """The manifest. Raises DataError when the byte table does not count the validation stream as its documents."""
        proof = self.prover.proof
        if proof.bytes != splits["val"]["bytes"]:
            raise DataError(
                f"bpb refused: {self.tokenizer.name} counts {splits['val']['bytes']} bytes over the validation stream, "
                f"{proof.bytes} over its documents"
            )
        facts = {key: value for key, value in self.source.facts.items() if key != "splits"}
        if left_out := splits["train"]["copies_left_out"]:
            facts["disjoint"] += (
                f"; {left_out} more train documents that differ from a validation document in white space alone,"
                " or in nothing that the tokenizer sees, were left out"
            )
        train, val = (
            Shards.open([self.beside / name for name in splits[split]["files"]], self.tokenizer.vocab_size)
            for split in ("train", "val")
        )
        facts["overlap"] = near_copies(train, val, self.tokenizer.bos_id, splits["val"]["bytes_per_token"])
        return {
            "source": facts,
            "tokenizer": {
                "name": self.tokenizer.name,
                "hash": self.tokenizer.hash,
                "vocab_size": self.tokenizer.vocab_size,
                "bos_id": self.tokenizer.bos_id,
                "training": self.training,
                "file": getattr(self.tokenizer, "file", (None,))[0],
                "transform": getattr(self.tokenizer, "transform", None),
            },
            "splits": splits,
            "byte_proof": proof.facts(),
        }
