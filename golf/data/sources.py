"""Where documents come from: the standard library's source text, the user's own files, or existing shards.

A text source splits its documents into train and validation so that the two are disjoint by construction, and counts
what it had to change (`facts`). Every character it yields can be encoded as UTF-8.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from golf.common.errors import ConfigError, DataError
from golf.common.files import sha256_json
from golf.data import textfiles
from golf.data.hashes import FileHashes
from golf.tokenizers.base import Progress

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
        """What the run record keeps: files, counts of the last pass over each split, how disjointness holds."""
        ...


@dataclass
class _Counts:
    """One pass over a split."""

    documents: int = 0
    empty_documents: int = 0
    duplicate_documents: int = 0
    replaced_characters: int = 0


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
            text, replaced = textfiles.decode(textfiles.read_bytes(self.root / name))
            self._fraction = (index + 1) / len(files)
            digest = hashlib.sha256(text.encode("utf-8")).digest()
            duplicate = digest in seen
            seen.add(digest)
            if split != ("val" if int(key[:8], 16) < self.val_fraction * 2**32 else "train"):
                continue
            if not text.strip():
                counts.empty_documents += 1
            elif duplicate:
                counts.duplicate_documents += 1
            else:
                counts.documents += 1
                counts.replaced_characters += replaced
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
            "splits": {split: dict(vars(counts)) for split, counts in self._counts.items()},
            "disjoint": "by construction: each file's path decides its split, and a text seen before is left out",
        }

    def _files(self) -> list[tuple[str, str]]:
        if self._listed is None:
            names = (path.relative_to(self.root) for path in self.root.rglob("*.py"))
            kept = [
                name.as_posix()
                for name in names
                if not set(self.DROPPED).intersection(name.parts)
                and not name.parts[0].startswith(("config-", "_sysconfigdata"))  # generated where Python was built
            ]
            if not kept:
                raise DataError(f"data=pystdlib: {self.root} holds no .py files\n(use data=text data.paths=[…])")
            self._listed = sorted((hashlib.sha256(name.encode()).hexdigest(), name) for name in kept)
        return self._listed


class TextFiles:
    """`data=text`: the user's .txt, .md, .jsonl, .jsonl.zst, .jsonl.gz and .parquet files, in the given order.

    paths, val_paths: files, folders (all readable files below, sorted) or globs (sorted). `field` names the text in
    .jsonl and .parquet; a .txt or .md file is one document. Validation is val_paths when given; or else the first
    `val_docs` documents; or else the `val_fraction` (default 0.05) of documents whose text's hash is lowest, which
    puts equal texts on one side. In the first two cases train documents equal to a validation document are left out.
    Raises ConfigError for options that exclude each other, DataError for missing files and empty splits.
    """

    def __init__(
        self,
        paths: list[str],
        val_paths: list[str] | None = None,
        field: str = "text",
        val_docs: int | None = None,
        val_fraction: float | None = None,
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
        self.field, self.val_docs = field, val_docs
        self.files = textfiles.expand(paths)
        self.val_files = textfiles.expand(val_paths) if val_paths is not None else None
        self._reader = textfiles.Reader(field)
        self._counts: dict[str, _Counts] = {}

    def documents(self, split: Split) -> Iterator[str]:
        """Documents of the split. Raises DataError for malformed files, or at the end when there was none."""
        counts = self._counts[split] = _Counts()
        held_out = self._held_out() if split == "train" else frozenset()
        for text, replaced in self._of(split):
            if not text.strip():
                counts.empty_documents += 1
            elif held_out and _digest(text) in held_out:
                counts.duplicate_documents += 1
            else:
                counts.documents += 1
                counts.replaced_characters += replaced
                yield text
        if not counts.documents:
            where = self.val_files if split == "val" and self.val_files else self.files
            raise DataError(
                f"no {split} documents in {len(where)} file(s), first {where[0]}\n({counts.empty_documents} empty, "
                f"{counts.duplicate_documents} equal to a validation document)"
            )

    def content_hash(self, cache: Path | None = None) -> str:
        """Hash of every file's content, in order, and of the options."""
        with FileHashes(cache) as hashes:
            train = [(path.suffix, hashes.of(path)) for path in self.files]
            val = None if self.val_files is None else [(path.suffix, hashes.of(path)) for path in self.val_files]
        return sha256_json(["text", 1, self.field, self.val_docs, self.val_fraction, train, val])

    def fraction_read(self) -> float:
        """Share of the (compressed) bytes read in the pass that runs now."""
        return self._reader.fraction

    @property
    def facts(self) -> dict[str, Any]:
        """Files, counts by split, and the rule that keeps the splits disjoint."""
        if self.val_files is not None or self.val_docs is not None:
            disjoint = "checked: every train document whose text equals a validation document was left out"
        else:
            disjoint = "by construction: a document's text decides its split"
        return {
            "source": "text",
            "files": [str(path) for path in self.files],
            "val_files": None if self.val_files is None else [str(path) for path in self.val_files],
            "splits": {split: dict(vars(counts)) for split, counts in self._counts.items()},
            "disjoint": disjoint,
        }

    def _of(self, split: Split) -> Iterator[tuple[str, int]]:
        """The split's documents, empty and duplicate ones too, each with its number of replaced characters."""
        if self.val_files is not None:
            yield from self._reader.documents(self.val_files if split == "val" else self.files)
            return
        held = 0
        for text, replaced in self._reader.documents(self.files):
            if self.val_docs is None:
                is_val = int.from_bytes(_digest(text)[:8], "big") < self.val_fraction * 2**64
            else:
                is_val = held < self.val_docs
                held += bool(text.strip())
                if split == "val" and not is_val:
                    return
            if is_val == (split == "val"):
                yield text, replaced

    def _held_out(self) -> frozenset[bytes]:
        if self.val_files is None and self.val_docs is None:
            return frozenset()  # equal texts have one hash, so they are on one side already
        return frozenset(_digest(text) for text, _ in self._of("val") if text.strip())


@dataclass(frozen=True)
class ShardFolder:
    """`data=shards`: existing shards, no text to train on: a glob (`DIR/fineweb_train_*.bin`), or files in order.

    A glob's files come in sorted order. Raises ConfigError when nothing is given, DataError on reading when a glob
    matches nothing.
    """

    train: str | list[str]
    val: str | list[str]

    def __post_init__(self) -> None:
        if not self.train or not self.val:
            raise ConfigError("data=shards needs data.train and data.val, globs such as DIR/fineweb_train_*.bin")

    def files(self) -> dict[Split, list[Path]]:
        """The shards of each split, in order. Raises DataError when a glob matches nothing."""
        given: dict[Split, str | list[str]] = {"train": self.train, "val": self.val}
        return {
            split: textfiles.expand([paths] if isinstance(paths, str) else paths, suffixes=(".bin",))
            for split, paths in given.items()
        }

    def hashes(self, cache: Path | None = None, progress: Progress | None = None) -> dict[Split, list[str]]:
        """SHA-256 of every shard, whole, in order; `cache` keeps those of files that did not change."""
        with FileHashes(cache) as hashes:
            return {split: hashes.all(paths, progress) for split, paths in self.files().items()}


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()


def _check_fraction(val_fraction: float) -> None:
    if not 0.0 < val_fraction < 1.0:
        raise ConfigError(f"data.val_fraction={val_fraction}: between 0 and 1, as 0.05")
