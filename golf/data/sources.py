"""Where documents come from: the standard library's source text, the user's own files, or existing shards.

A text source splits its documents into train and validation so that the two are disjoint by construction, and counts
what it had to change (`facts`). Every character it yields can be encoded as UTF-8.
"""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from golf.common.errors import ConfigError, DataError
from golf.common.files import sha256_json
from golf.data import sidecar, textfiles
from golf.data.blocks import LONGEST
from golf.data.division import Division, by_hash, digest, place
from golf.data.encodings import Document, decode, encoding_names, is_blank
from golf.data.hashes import FileHashes
from golf.tokenizers.base import OnProgress

Split = Literal["train", "val"]


class TextSource(Protocol):
    """Documents in a fixed order, by split."""

    def documents(self, split: Split) -> Iterator[str]:
        """The split's documents from the first on; none is empty. Raises DataError for files that cannot be read."""
        ...

    def content_hash(self, cache: Path | None = None) -> str:
        """Hex hash of everything that decides the documents; `cache` keeps hashes of files that did not change."""
        ...

    def fraction_read(self) -> float:
        """How far the pass that runs now has come through its input, in [0, 1]."""
        ...

    @property
    def facts(self) -> dict[str, Any]:
        """What the run record keeps: files, counts of the last pass over each split, how disjointness holds.

        `notes`, where there: sentences on what a user should know of how the text was read.
        """
        ...


@dataclass
class _Counts:
    """One pass over a split."""

    documents: int = 0
    skipped_documents: int = 0
    empty_documents: int = 0
    duplicate_documents: int = 0
    replaced_characters: int = 0
    null_characters: int = 0
    doubtful_documents: int = 0
    encodings: Counter[str] = field(default_factory=Counter)

    def take(self, document: Document, duplicate: bool = False) -> bool:
        """Count a document; whether it is one to be used."""
        if document.skipped:
            self.skipped_documents += 1
        elif is_blank(document.text):
            self.empty_documents += 1
        elif duplicate:
            self.duplicate_documents += 1
        else:
            self.documents += 1
            self.replaced_characters += document.replaced
            self.null_characters += document.text.count("\0")
            self.doubtful_documents += document.doubtful
            self.encodings[document.encoding] += 1
            return True
        return False

    def facts(self) -> dict[str, int]:
        """The counts that belong to a split's record."""
        return {name: value for name, value in vars(self).items() if name != "encodings"}


class PyStdlib:
    """`data=pystdlib`: the .py files of the running Python's standard library, one document a file; no download.

    Left out are tests and the parts that distributions drop or generate, so that machines agree (and because the
    generated pydoc_data alone would be a tenth of the text). Documents come in the order of the SHA-256 of their
    path, and those in the first `val_fraction` of the hash's range are validation. A file whose text an earlier one
    has already given is left out. Raises ConfigError for a val_fraction outside (0, 1).
    """

    DROPPED = (
        *("site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "tkinter"),
        *("distutils", "ensurepip", "pydoc_data", "__pycache__"),
    )

    def __init__(self, val_fraction: float = 0.05) -> None:
        _check_fraction(val_fraction)
        self.val_fraction = val_fraction
        self.root = Path(sysconfig.get_path("stdlib"))
        self._counts: dict[str, _Counts] = {}
        self._fraction = 0.0
        self._listed: list[tuple[str, str]] | None = None  # (SHA-256 of the relative path, relative path), sorted

    def documents(self, split: Split) -> Iterator[str]:
        """Source files of the split. Raises DataError when this Python comes without its sources."""
        counts = self._counts[split] = _Counts()
        files, seen = self._files(), set()
        for index, (key, name) in enumerate(files):
            text, replaced = decode(textfiles.read_bytes(self.root / name))
            self._fraction = (index + 1) / len(files)
            digest = hashlib.sha256(text.encode("utf-8")).digest()
            duplicate = digest in seen
            seen.add(digest)
            if split != ("val" if int(key[:8], 16) < self.val_fraction * 2**32 else "train"):
                continue
            if counts.take(Document(text, replaced), duplicate):
                yield text

    def content_hash(self, cache: Path | None = None) -> str:
        """Hash of every file's path and content, and of the split."""
        with FileHashes(cache) as hashes:
            files = [(name, hashes.of(self.root / name)) for _, name in self._files()]
        return sha256_json(["pystdlib", 1, self.val_fraction, files])

    def fraction_read(self) -> float:
        """Share of the files read in the pass that runs now."""
        return self._fraction

    @property
    def facts(self) -> dict[str, Any]:
        """Python's version, the number of files, counts by split."""
        return {
            "source": "pystdlib",
            "python": sysconfig.get_python_version(),
            "files": len(self._files()),
            "splits": {split: counts.facts() for split, counts in self._counts.items()},
            "disjoint": "by construction: each file's path decides its split, and a text seen before is left out",
        }

    def _files(self) -> list[tuple[str, str]]:
        if self._listed is None:
            names = list[Path]()
            for folder, inner, files in os.walk(self.root):
                inner[:] = set(inner).difference(self.DROPPED)  # what is installed there would take most of the time
                names += [Path(folder, file).relative_to(self.root) for file in files if file.endswith(".py")]
            kept = [
                name.as_posix()
                for name in names
                if not name.parts[0].startswith(("config-", "_sysconfigdata"))  # generated where Python was built
            ]
            if not kept:
                raise DataError(f"data=pystdlib: {self.root} holds no .py files\n(use data=text data.paths=[…])")
            self._listed = sorted((hashlib.sha256(name.encode()).hexdigest(), name) for name in kept)
        return self._listed


class TextFiles:
    """`data=text`: the user's .txt, .md, .jsonl, .jsonl.zst, .jsonl.gz and .parquet files, in the given order.

    paths, val_paths: files, folders (all readable files below, sorted) or globs (sorted). `field` names the text in
    .jsonl and .parquet. A .txt or .md file is one document, or many with a `separator` between them (\\n and \\t may be
    written so). encoding: auto, or how text without a byte order mark is encoded, or several names that are tried for
    each document (`Decoder`). longest_document: bytes beyond which a text is cut into documents and a line of .jsonl or
    a value of .parquet passed over; memory is a few times that. What else holds no text, a line that is not JSON or
    lacks the field, is passed over and counted too, unless most of a file's lines are so.

    Validation is val_paths when given; or else the first `val_docs` documents; or else the `val_fraction` (default
    0.05) of documents whose text's hash is lowest, which puts equal texts on one side: at least one text, and not all;
    a single text is divided by position. With val_paths and val_docs train documents equal to a validation document
    are left out. Raises ConfigError for options that exclude each other, DataError for missing files.
    """

    otherwise = "give fewer, leave it out, or give data.val_paths"

    def __init__(
        self,
        paths: list[str],
        val_paths: list[str] | None = None,
        field: str = "text",
        val_docs: int | None = None,
        val_fraction: float | None = None,
        encoding: str | list[str] = "auto",
        separator: str | None = None,
        longest_document: int = LONGEST,
    ) -> None:
        given = {"val_paths": val_paths, "val_docs": val_docs, "val_fraction": val_fraction}
        named = [f"data.{key}" for key, value in given.items() if value is not None]
        if len(named) > 1:
            raise ConfigError(f"{' and '.join(named)} exclude each other: give one of them")
        if not paths:
            raise ConfigError("data.paths is empty: give files, folders or globs, as data.paths=[corpus/]")
        if val_paths is not None and not val_paths:
            raise ConfigError("data.val_paths is empty: give files, or leave it out to take a part of data.paths")
        if val_docs is not None and val_docs < 1:
            raise ConfigError(f"data.val_docs={val_docs}: at least 1")
        self.val_fraction = 0.05 if val_fraction is None else val_fraction
        _check_fraction(self.val_fraction)
        if not field:
            raise ConfigError("data.field is empty: name the field that holds the text")
        self.encodings = encoding_names(encoding)
        self.separator = None if separator is None else separator.replace("\\n", "\n").replace("\\t", "\t")
        if self.separator is not None and not self.separator.strip("\r"):
            raise ConfigError("data.separator is empty: give what stands between documents, or null")
        if self.separator and not self.separator.isascii() and self.encodings not in ((), ("utf-8",)):
            raise ConfigError(f"data.separator={self.separator}: only ASCII beside data.encoding")
        self.field, self.val_docs = field, val_docs
        self.files = textfiles.expand(paths)
        self.val_files = textfiles.expand(val_paths) if val_paths is not None else None
        if self.separator and not any(textfiles.is_plain(path) for path in (*self.files, *(self.val_files or ()))):
            raise ConfigError("data.separator divides .txt and .md files, and there is none in data.paths")
        if not 1 << 10 <= longest_document < 1 << 31:
            raise ConfigError(f"data.longest_document={longest_document}: from 1024 to 2147483647 bytes")
        self._reader = textfiles.Reader(field, self.encodings, self.separator, longest_document)
        self._counts: dict[str, _Counts] = {}
        self._division: Division | None = None

    def documents(self, split: Split) -> Iterator[str]:
        """Documents of the split; before the first, every file's beginning is read and both splits are sought.

        Raises DataError for malformed files, and for a split that is empty.
        """
        division = self._division = self._division or self._divide()
        counts = self._counts[split] = _Counts()
        held_out = division.held_out if split == "train" else frozenset[bytes]()
        for document in self._of(split, division):
            if counts.take(document, duplicate=bool(held_out) and digest(document.text) in held_out):
                yield document.text
        if not counts.documents:
            raise self._nothing(split, counts)

    def content_hash(self, cache: Path | None = None) -> str:
        """Hash of every file's content, in order, and of the options."""
        with FileHashes(cache) as hashes:
            train = [(path.suffix, hashes.of(path)) for path in self.files]
            val = None if self.val_files is None else [(path.suffix, hashes.of(path)) for path in self.val_files]
        options = [self.field, self.val_docs, self.val_fraction, self.encodings, self.separator]
        options += [] if self._reader.longest == LONGEST else [self._reader.longest]
        return sha256_json(["text", 2, *options, train, val])

    def fraction_read(self) -> float:
        """Share of the (compressed) bytes read in the pass that runs now."""
        return self._reader.fraction

    @property
    def facts(self) -> dict[str, Any]:
        """Files, counts by split, the rule that keeps the splits disjoint, encodings by document, and notes."""
        if self.val_files is not None or self.val_docs is not None:
            disjoint = "checked: every train document whose text equals a validation document was left out"
        elif self._division is not None and self._division.cut is not None:
            disjoint = f"by position: of the one document, validation begins at character {self._division.cut}"
        else:
            disjoint = "by construction: a document's text decides its split"
        return {
            "source": "text",
            "files": [str(path) for path in self.files],
            "val_files": None if self.val_files is None else [str(path) for path in self.val_files],
            "splits": {split: counts.facts() for split, counts in self._counts.items()},
            "disjoint": disjoint,
            "encodings": dict(self._encodings()),
            "notes": self._notes(),
        }

    def _notes(self) -> list[str]:
        notes = [self._division.note] if self._division is not None and self._division.note else []
        other = {
            name: count for name, count in self._encodings().items() if (name,) not in (("utf-8",), self.encodings)
        }
        if other:
            named = ", ".join(f"{count:,} in {name}" for name, count in other.items())
            notes.append(f"documents that were not UTF-8: {named}")
        if doubtful := self._total("doubtful_documents"):
            both = f"data.encoding=[utf-8,{self.encodings[0]}]"
            notes.append(f"documents that are valid UTF-8 and were read as {self.encodings[0]}: {doubtful:,} ({both}?)")
        if skipped := self._total("skipped_documents"):
            notes.append(f"lines and rows that hold no text and were passed over: {skipped:,}, the first: "
                         f"{self._reader.first_skipped}")  # fmt: skip
        if self._reader.first_cut is not None:
            notes.append(f"{self._reader.first_cut}: longer than data.longest_document, and cut into documents")
        if replaced := self._total("replaced_characters"):
            where = self._reader.first_replaced
            notes.append(f"characters that could not be read and are now U+FFFD: {replaced:,}, the first in {where}")
        if nulls := self._total("null_characters"):
            notes.append(f"NUL characters in the text, which were kept: {nulls:,}")
        if self._reader.first_separated is not None:
            notes.append(
                f"{self._reader.first_separated} is one document with {textfiles.END_OF_TEXT} in it: "
                f"'data.separator=\"{textfiles.END_OF_TEXT}\"' makes documents of what stands between"
            )
        return notes

    def _total(self, name: str) -> int:
        return sum(counts.facts()[name] for counts in self._counts.values())

    def _encodings(self) -> Counter[str]:
        total = Counter[str]()
        for counts in self._counts.values():  # a divided document is in both
            whole = self._division is None or self._division.cut is None
            total = total + counts.encodings if whole else total | counts.encodings
        return total

    def _divide(self) -> Division:
        """Read every file's first document, then as much as shows that neither split is empty."""
        if len(self.files) + len(self.val_files or ()) > 1:
            for path in (*self.files, *(self.val_files or ())):
                next((one for one in self._reader.documents([path]) if not one.skipped), None)
        tally = _Counts()
        if self.val_files is None and self.val_docs is None:
            texts = (one.text for one in self._reader.documents(self.files) if tally.take(one))
            division = by_hash(texts, self.val_fraction)
            if division is None:
                raise self._nothing("train", tally)
            return division
        division = Division(
            held_out=frozenset(digest(one.text) for one in self._of("val", Division()) if tally.take(one))
        )
        if not division.held_out:
            raise self._nothing("val", tally)
        tally = _Counts()
        if not any(tally.take(one, digest(one.text) in division.held_out) for one in self._of("train", division)):
            raise self._nothing("train", tally)
        return division

    def _of(self, split: Split, division: Division) -> Iterator[Document]:
        """The split's documents, empty and duplicate ones too."""
        if self.val_files is not None:
            yield from self._reader.documents(self.val_files if split == "val" else self.files)
            return
        held = 0
        whole = division.cut is not None  # and has not come yet
        for document in self._reader.documents(self.files):
            if self.val_docs is not None:
                is_val = held < self.val_docs
                held += not is_blank(document.text)
                if split == "val" and not is_val:
                    return
            elif division.cut is None:
                is_val = place(document.text) < division.limit
            elif whole and not is_blank(document.text):
                whole = False
                yield _part(document, slice(division.cut, None) if split == "val" else slice(division.cut))
                continue
            else:
                is_val = False
            if is_val == (split == "val"):
                yield document

    def _nothing(self, split: Split, counts: _Counts) -> DataError:
        where = self.val_files if split == "val" and self.val_files else self.files
        remedy = ""
        if split == "train" and self.val_docs is not None:
            remedy = f"\n(data.val_docs={self.val_docs} leaves none: {self.otherwise})"
        return DataError(
            f"no {split} documents in {len(where)} file(s), first {where[0]}\n({counts.empty_documents} empty, "
            f"{counts.duplicate_documents} equal to a validation document){remedy}"
        )


@dataclass(frozen=True)
class ShardFolder:
    """`data=shards`: existing shards, no text to train on: files, folders, globs (`DIR/fineweb_train_*.bin`), in order.

    A folder's or a glob's files come in sorted order. docs: files of the documents that the shards were made of, in
    their order (validation's will do), of a tokenizer whose ids don't tell their bytes. Raises ConfigError when nothing
    is given, DataError on reading when a path gives none.
    """

    train: str | list[str]
    val: str | list[str]
    docs: str | list[str] | None = None

    def __post_init__(self) -> None:
        if not self.train or not self.val:
            raise ConfigError("data=shards needs data.train and data.val, globs such as DIR/fineweb_train_*.bin")

    def files(self, split: Split) -> list[Path]:
        """The split's shards. Raises DataError for a path that gives none."""
        return sidecar.without(textfiles.expand(self.train if split == "train" else self.val, suffixes=(".bin",)))

    def hashes(self, cache: Path | None = None, progress: OnProgress | None = None) -> dict[str, list[str]]:
        """SHA-256 of every shard and byte side-car, in order; `cache` keeps those of files that did not change."""
        files = {"train": self.files("train"), "val": (val := self.files("val")), sidecar.SPLIT: sidecar.beside(val)}
        with FileHashes(cache) as hashes:
            return {split: hashes.all(paths, progress) for split, paths in files.items() if paths}


def _part(document: Document, part: slice) -> Document:
    text = document.text[part]
    return document._replace(text=text, replaced=min(document.replaced, text.count("\ufffd")))


def _check_fraction(val_fraction: float) -> None:
    if not 0.0 < val_fraction < 1.0:
        raise ConfigError(f"data.val_fraction={val_fraction}: between 0 and 1, as 0.05")
