"""The challenge's published FineWeb shards: fetched once from the Hugging Face hub, then found on disk.

Repository and folder have one layout: manifest.json, datasets/fineweb10B_NAME/fineweb_{train,val}_NNNNNN.bin and
tokenizers/…, with NAME the tokenizer's (sp1024, byte260). Documents stand in one frozen shuffled order, so the first
so many training shards are a sample; the first 50,000 documents are validation.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from golf.common.bounded import read_json
from golf.common.errors import ConfigError, DataError
from golf.common.files import cache_dir, locked
from golf.common.paths import conf_dir
from golf.data import manifests, sidecar
from golf.data.hub import Hub, bring, listed
from golf.data.shards import Shards
from golf.data.sources import ShardFolder
from golf.tokenizers.base import OnProgress, TokenizerSpec
from golf.tokenizers.sentencepiece import SentencePieceSpec

REPO = "willdepueoai/parameter-golf"
_PREFIX = "fineweb10B_"
_DOCS = "docs_selected.jsonl"


@dataclass(frozen=True)
class Export:
    """One published tokenization. Paths are relative to the export's root; `model` is the SentencePiece model's."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    tokenizer: tuple[str, ...]
    model: str | None

    @property
    def files(self) -> tuple[str, ...]:
        """Everything that a run needs, the small files first."""
        return (*self.tokenizer, *self.val, *self.train)


@dataclass(frozen=True)
class FineWeb:
    """`data=fineweb`: the first `train_shards` training shards (None: all) and every validation shard of an export.

    The export is that of the config's tokenizer, and its published model is used unless tokenizer.model_path names
    another. folder: where the files lie (None: in golf's cache); a `data/` folder that the challenge's own downloader
    filled serves as it is. repo, root, revision: the dataset repository, the folder in it, and its branch or commit.
    docs: as ShardFolder has it (None: docs_selected.jsonl, where it lies in the folder). Published byte side-cars come
    with the shards. `fetch` is the only part that needs a network. Raises ConfigError for values that cannot be.
    """

    train_shards: int | None = 80
    folder: str | None = None
    repo: str = REPO
    root: str = "datasets"
    revision: str = "main"
    docs: str | list[str] | None = None

    def __post_init__(self) -> None:
        if self.train_shards is not None and self.train_shards < 1:
            raise ConfigError(f"data.train_shards={self.train_shards}: at least 1, or null for all")
        if self.repo.count("/") != 1 or not all(self.repo.split("/")):
            raise ConfigError(f"data.repo={self.repo}: expected OWNER/NAME")
        if not self.revision:
            raise ConfigError("data.revision is empty: give a branch, a tag or a commit, as main")

    def home(self, cache: Path | None = None) -> Path:
        """The folder of the files: `folder`, or one by repository in `cache` (default: golf's cache folder)."""
        if self.folder is not None:
            return Path(self.folder).expanduser().absolute()
        return (cache or cache_dir()) / "fineweb" / self.repo.replace("/", "--")

    def find(self, spec: TokenizerSpec, cache: Path | None = None) -> tuple[ShardFolder, TokenizerSpec]:
        """The shards on disk as a source, and the tokenizer they were written with.

        Raises DataError naming what is missing and the command that fetches it, ConfigError for an export that is not
        in the manifest or has fewer training shards.
        """
        home = self.home(cache)
        command = self.command(spec)
        manifest = _read_manifest(home / "manifest.json")
        if manifest is None:
            raise DataError(f"data=fineweb: there are no published shards in {home}\nfetch them: {command}")
        export = self._export(manifest, spec)
        if missing := _missing(home, export.files):
            first = next((i for i, path in enumerate(export.train) if path in missing), 0)
            enough = first > 0 and set(missing) <= set(export.train)
            raise DataError(
                f"data=fineweb: {len(missing)} of {len(export.files)} files are missing or cut in {home}: "
                f"{listed(missing, 2)}\nfetch them: {command}"
                + (f"\nor do with the first ones, which are there: data.train_shards={first}" if enough else "")
            )
        docs = self.docs or (str(home / _DOCS) if (home / _DOCS).is_file() else None)
        train, val = ([str(home / path) for path in paths] for paths in (export.train, export.val))
        shards = ShardFolder(train, val, docs)
        if isinstance(spec, SentencePieceSpec) and spec.model_path is None and export.model is not None:
            spec = dataclasses.replace(spec, model_path=str(home / export.model))
        return shards, spec

    def fetch(self, spec: TokenizerSpec, cache: Path | None = None, progress: OnProgress | None = None) -> int:
        """Fetch what is missing, and return how many files came; 0 needs no network.

        One process fetches at a time, the others wait and find its files. Each file is fetched beside the others,
        checked (the size and hash that the hub states, a shard's length against its header) and then put in place
        whole, so what has come is kept when the rest fails: the same call goes on from there.
        Raises DataError for what cannot be had, ConfigError for an export that is not published.
        """
        home = self.home(cache)
        if self._complete(home, spec):
            return 0
        try:
            home.mkdir(parents=True, exist_ok=True)
            with locked(home / ".fetch"):
                return self._fetch(home, spec, progress)
        except OSError as error:
            raise DataError(f"cannot write to {home}: {error.strerror or error} (data.folder)") from error

    def facts(self, spec: TokenizerSpec, found: Mapping[str, Any], cache: Path | None = None) -> dict[str, Any]:
        """What the run record keeps besides `found`, the facts of the shards."""
        entry = _entry(_read_manifest(self.home(cache) / "manifest.json") or {}, spec)
        wrong = manifests.miscounted(entry, found["splits"]["val"]["documents"])
        disjoint = "by the export's construction: the first documents are validation; no file is in both splits"
        disjoint = f"not checked: {wrong}" if wrong else disjoint
        told = {"source": "fineweb", "repo": self.repo, "export": f"{_PREFIX}{spec.name}", "disjoint": disjoint}
        if isinstance(spec, SentencePieceSpec) and spec.model_path is None:
            told["tokenizer_training"] = (
                "unknown: the export's own model; the challenge's exporter trains on the first documents, which "
                "validation's are"
            )
        return told

    def command(self, spec: TokenizerSpec) -> str:
        """The command that fetches this data for this tokenizer."""
        words = ["golf", "data", "source=fineweb"]
        if (conf_dir() / "tokenizer" / f"{spec.name}.yaml").is_file():
            words.append(f"tokenizer={spec.name}")
        else:
            words += ["tokenizer=sp1024", f"tokenizer.vocab_size={spec.vocab_size}"]
            words += [] if spec.name == f"sp{spec.vocab_size}" else [f"tokenizer.name={spec.name}"]
        default = FineWeb()
        transform = getattr(spec, "transform", None)
        words += [] if transform is None else [f"tokenizer/transform={transform.name}"]
        words.append(f"data.train_shards={'null' if self.train_shards is None else self.train_shards}")
        for key in ("folder", "repo", "root", "revision", "docs"):
            if (value := getattr(self, key)) != getattr(default, key):
                words.append(f"data.{key}={value if isinstance(value, str) else '[' + ','.join(value) + ']'}")
        return shlex.join(words)

    def _fetch(self, home: Path, spec: TokenizerSpec, progress: OnProgress | None) -> int:
        if self._complete(home, spec):  # another process was here first
            return 0
        staging = home / ".fetching"
        shutil.rmtree(staging, ignore_errors=True)  # left by a process that was killed
        try:
            hub = Hub(self.repo, self.revision, self._remote("manifest.json"))
            fetched = hub.fetch(self._remote("manifest.json"), staging)
            manifest = _read_manifest(fetched)
            export = self._export(manifest or {}, spec)
            os.replace(fetched, home / "manifest.json")
            missing = _missing(home, export.files)
            counts = [path.replace("_val_", f"_{sidecar.SPLIT}_") for path in export.val]
            places = {self._remote(path): path for path in (*missing, *_missing(home, counts))}
            stated = hub.look_up([self._remote(path) for path in missing], [self._remote(path) for path in counts])
            files = [(file, home / places[file.path]) for file in stated if file.path in places]
            bring(hub, files, staging, f"{_PREFIX}{spec.name}", progress, _check_shard)
            return len(files)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _complete(self, home: Path, spec: TokenizerSpec) -> bool:
        manifest = _read_manifest(home / "manifest.json")
        try:
            export = self._export(manifest, spec) if manifest is not None else None
        except ConfigError:  # the manifest may have grown since
            return False
        return export is not None and not _missing(home, export.files)

    def _remote(self, path: str) -> str:
        return "/".join(part for part in (self.root.strip("/"), path) if part)

    def _export(self, manifest: dict[str, Any], spec: TokenizerSpec) -> Export:
        """The files of the tokenizer's export. Raises ConfigError when there is none such, or it has fewer shards."""
        try:
            entry = _entry(manifest, spec)
            if not entry:
                known = sorted(one["name"].removeprefix(_PREFIX) for one in manifest["datasets"])
                raise ConfigError(
                    f"tokenizer.name={spec.name}: {self.repo} has no {_PREFIX}{spec.name}\nchoices: {', '.join(known)}"
                )
            train, val = int(entry["stats"]["files_train"]), int(entry["stats"]["files_val"])
            tokenizer = next(one for one in manifest["tokenizers"] if one["name"] == entry["tokenizer_name"])
            files = [_safe(tokenizer[key]) for key in ("model_path", "vocab_path", "path") if tokenizer.get(key)]
        except (KeyError, TypeError, ValueError, StopIteration) as error:
            reason = f"{type(error).__name__}: {error}"
            raise DataError(f"the manifest of {self.repo} is not as expected ({reason})") from error
        wanted = train if self.train_shards is None else self.train_shards
        if wanted > train:
            raise ConfigError(f"data.train_shards={wanted}: {_PREFIX}{spec.name} has {train} training shards")
        shard = f"datasets/{_PREFIX}{spec.name}/fineweb_{{}}_{{:06d}}.bin"
        return Export(
            train=tuple(shard.format("train", i) for i in range(wanted)),
            val=tuple(shard.format("val", i) for i in range(val)),
            tokenizer=tuple(files),
            model=next((path for path in files if path.endswith(".model")), None),
        )


def _entry(manifest: Mapping[str, Any], spec: TokenizerSpec) -> dict[str, Any]:
    """The tokenizer's dataset in a manifest; empty where it has none. Raises KeyError or TypeError for no manifest."""
    return next((dict(one) for one in manifest["datasets"] if one["name"] == f"{_PREFIX}{spec.name}"), {})


def _missing(home: Path, paths: Sequence[str]) -> list[str]:
    """The files that are not there, or are shards that were cut."""

    def whole(path: Path) -> bool:
        try:
            _check_shard(path)
        except DataError:
            return False
        return path.is_file()

    return [path for path in paths if not whole(home / path)]


def _check_shard(path: Path) -> None:
    """Raises DataError for a shard without the format's magic, version, and 1024 + 2 · count bytes."""
    if path.suffix == ".bin":
        Shards.open([path], vocab_size=1 << 16)


def _safe(path: Any) -> str:
    """A manifest's path, if it stays below its root. Raises ValueError otherwise."""
    pure = PurePosixPath(str(path))
    if pure.is_absolute() or ".." in pure.parts:
        raise ValueError(f"the path {path} leads out of the export")
    return pure.as_posix()


def _read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest, or None when there is none. Raises DataError when it is not JSON."""
    try:
        content = read_json(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read the manifest {path}: {error}") from None
    if not isinstance(content, dict):
        raise DataError(f"the manifest {path} is not as expected (no object)")
    return content
