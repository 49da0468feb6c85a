"""Documents of any dataset on the Hugging Face hub: its parquet and jsonl files, fetched once, then read as text."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from golf.common.errors import ConfigError, DataError
from golf.common.files import cache_dir, locked, read_json, sha256_json, write_json
from golf.data.blocks import LONGEST
from golf.data.hub import Hub, bring, listed
from golf.data.sources import Split, TextFiles
from golf.data.textfiles import SUFFIXES
from golf.tokenizers.base import OnProgress, TokenizerSpec

_CONVERTED = "refs/convert/parquet"  # where the hub keeps what it made of repositories in other formats


@dataclass
class HubText:
    """`data=hf`: a dataset repository's documents, a TextSource once they are fetched.

    repo: OWNER/NAME. split: its files have that word in their path, as data/train-00000-of-00002.parquet has, and where
    none does, those that the hub itself converted to parquet; config: a word that is in it too (a subset); files: a
    glob of paths instead of both. max_files: the first so many (None: all). field: what holds the text, meta.text
    within another. val_split: the split that is validation; or else val_docs or val_fraction of `split`, as TextFiles
    has them. folder: where the files lie (None: in golf's cache). `fetch` is the only part that needs a network.
    Raises ConfigError for values that cannot be.
    """

    repo: str
    split: str = "train"
    field: str = "text"
    config: str | None = None
    files: str | None = None
    max_files: int | None = 10
    val_split: str | None = None
    val_docs: int | None = None
    val_fraction: float | None = None
    encoding: str | list[str] = "auto"
    longest_document: int = LONGEST
    folder: str | None = None
    revision: str = "main"

    def __post_init__(self) -> None:
        if self.repo.count("/") != 1 or not all(self.repo.split("/")):
            raise ConfigError(f"data.repo={self.repo}: expected OWNER/NAME")
        if self.max_files is not None and self.max_files < 1:
            raise ConfigError(f"data.max_files={self.max_files}: at least 1, or null for all")
        if not self.split or not self.revision:
            raise ConfigError("data.split and data.revision must not be empty")
        if self.val_split is not None and self.files is not None:
            raise ConfigError("data.files names the files of training: data.val_split cannot stand beside it")
        self._read: TextFiles | None = None

    @property
    def home(self) -> Path:
        """The folder of the files: `folder`, or one by repository in golf's cache."""
        if self.folder is not None:
            return Path(self.folder).expanduser().absolute()
        return cache_dir() / "hub" / self.repo.replace("/", "--")

    def fetch(
        self, spec: TokenizerSpec | None = None, cache: Path | None = None, progress: OnProgress | None = None
    ) -> int:
        """Fetch what is missing, and return how many files came; 0 needs no network.

        One process fetches at a time. Each file is checked (the size and hash that the hub states) and then put in
        place whole, so what has come is kept when the rest fails. Raises DataError for what cannot be had.
        """
        if self._found() is not None:
            return 0
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            with locked(self.home / ".fetch"):
                return self._fetch(progress)
        except OSError as error:
            raise DataError(f"cannot write to {self.home}: {error.strerror or error} (data.folder)") from error

    def documents(self, split: Split) -> Iterator[str]:
        """Documents of the split. Raises DataError, with the command that fetches them, where they are not there."""
        return self._text().documents(split)

    def content_hash(self, cache: Path | None = None) -> str:
        """Hash of every file's content, in order, and of the options."""
        return self._text().content_hash(cache)

    def fraction_read(self) -> float:
        """Share of the bytes read in the pass that runs now."""
        return self._text().fraction_read()

    @property
    def facts(self) -> dict[str, Any]:
        """Those of the files, and where on the hub they are from."""
        listing = self._found() or {}
        notes = list(self._text().facts["notes"])
        if more := listing.get("more"):
            notes.append(f"{self.repo} has {more:,} more files of this split (data.max_files={self.max_files})")
        told = {key: listing.get(key) for key in ("commit", "revision")}
        return {**self._text().facts, "source": "hf", "repo": self.repo, "split": self.split, **told, "notes": notes}

    def _text(self) -> TextFiles:
        if self._read is None:
            listing = self._found()
            if listing is None:
                raise DataError(
                    f"data=hf: the files of {self.repo} are not in {self.home}\nfetch them: {self._command()}"
                )
            within = self.home / listing["commit"]
            self._read = TextFiles(
                [str(within / path) for path in listing["train"]],
                val_paths=[str(within / path) for path in listing["val"]] or None,
                field=self.field,
                val_docs=self.val_docs,
                val_fraction=self.val_fraction,
                encoding=self.encoding,
                longest_document=self.longest_document,
            )
        return self._read

    def _listing(self) -> Path:
        key = sha256_json([self.split, self.config, self.files, self.max_files, self.val_split, self.revision])
        return self.home / f"files-{key[:16]}.json"

    def _found(self) -> dict[str, Any] | None:
        """What an earlier fetch wrote of these options, where all of its files are there, whole."""
        try:
            listing: dict[str, Any] = read_json(self._listing())
            within = self.home / listing["commit"]
            whole = all((within / path).stat().st_size == size for path, size in listing["sizes"].items())
            return listing if whole and listing["train"] else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def _fetch(self, progress: OnProgress | None) -> int:
        if self._found() is not None:  # another process was here first
            return 0
        staging = self.home / ".fetching"
        shutil.rmtree(staging, ignore_errors=True)  # left by a process that was killed
        try:
            hub, train, more = self._chosen()
            val = [] if self.val_split is None else self._of_split(hub.files, self.val_split)
            if self.val_split is not None and not val:
                raise DataError(f"{self.repo} has no files of data.val_split={self.val_split}")
            val = val[: self.max_files]
            stated = hub.look_up([*train, *val])
            within = self.home / hub.commit
            missing = [
                (file, within / file.path)
                for file in stated
                if not (within / file.path).is_file() or (within / file.path).stat().st_size != file.size
            ]
            bring(hub, missing, staging, f"{len(missing)} files of {self.repo}", progress)
            told = {"repo": self.repo, "revision": self.revision, "commit": hub.commit, "train": train, "val": val}
            write_json(self._listing(), {**told, "more": more, "sizes": {file.path: file.size for file in stated}})
            return len(missing)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _chosen(self) -> tuple[Hub, list[str], int]:
        """The repository where the split's files are, those, and how many more there are. Raises DataError."""
        hub = Hub(self.repo, self.revision, None)
        paths = self._of_split(hub.files, self.split)
        if not paths and self.files is None and self.revision == "main":
            try:
                converted = Hub(self.repo, _CONVERTED, None)
            except DataError:  # it has made none
                converted = hub
            if found := self._of_split(converted.files, self.split):
                hub, paths = converted, found
        if not paths:
            readable = [path for path in hub.files if _is_readable(path)]
            wanted = f"data.files={self.files}" if self.files else f"data.split={self.split}"
            if self.files is None and self.config is not None:
                wanted += f" data.config={self.config}"
            raise DataError(
                f"{self.repo} has no file of {wanted} that golf reads ({', '.join(SUFFIXES)})\n"
                f"it has: {listed(readable or hub.files, 4) or 'no files'}\n"
                "(data.files takes a glob, as 'data.files=sample/10BT/*.parquet')"
            )
        chosen = paths[: self.max_files]
        return hub, chosen, len(paths) - len(chosen)

    def _of_split(self, files: Sequence[str], split: str) -> list[str]:
        readable = [path for path in files if _is_readable(path)]
        if self.files is not None:
            return [path for path in readable if fnmatch.fnmatchcase(path, self.files)]
        words = [split] if self.config is None else [split, self.config]
        return [path for path in readable if all(_has_word(path, word) for word in words)]

    def _command(self) -> str:
        words = ["golf", "data", "data=hf"]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                words.append(f"data.{field.name}={'null' if value is None else value}")
        return shlex.join(words)


def _is_readable(path: str) -> bool:
    pure = PurePosixPath(path)
    return path.lower().endswith(SUFFIXES) and pure.name.lower() != "readme.md" and ".." not in pure.parts


def _has_word(path: str, word: str) -> bool:
    """Whether a word stands in a path between separators: train in data/train-00000.parquet, not in training.txt."""
    return re.search(rf"(^|[/_.-]){re.escape(word)}([/_.-]|$)", path) is not None
