"""Files of a dataset repository on the Hugging Face hub, fetched with huggingface_hub (the extra `hub`)."""

from __future__ import annotations

import hashlib
import importlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from golf.common.errors import ConfigError, DataError, GolfError, reason
from golf.tokenizers.base import OnProgress

_ATTEMPTS = 3  # at a file whose connection was reset; the library itself resumes connections that only ended early


@dataclass(frozen=True)
class RemoteFile:
    """What the hub states of a file: its path, its size in bytes, and for a large file the SHA-256 of its content."""

    path: str
    size: int
    sha256: str | None


class Hub:
    """One dataset repository at one commit. $HF_ENDPOINT and the user's token are huggingface_hub's own matters.

    `anchor`: a file of the repository; the commit it is found at is used for every other file. None: that of the
    revision, whose files are then `files`.
    Raises ConfigError when huggingface_hub is not installed, DataError when the repository cannot be read.
    """

    def __init__(self, repo: str, revision: str, anchor: str | None) -> None:
        try:
            library = importlib.import_module("huggingface_hub")
            self._errors = importlib.import_module("huggingface_hub.errors")
        except ImportError as error:
            raise ConfigError(
                f"the hub's files are fetched with huggingface_hub, which cannot be imported ({error})\n"
                "pip install 'golf[hub]'"
            ) from error
        self.repo = repo
        # Read here: the library takes its default from the environment once, when it is first imported.
        endpoint = os.environ.get("HF_ENDPOINT") or None
        self._api = library.HfApi(endpoint=endpoint, library_name="golf")
        self.files: list[str] = []
        if anchor is None:
            with self._told("the list of files"):
                info = self._api.dataset_info(repo, revision=revision)
            self.commit: str = info.sha or revision
            self.files = sorted(file.rfilename for file in info.siblings or ())
            return
        with self._told(anchor):
            url = library.hf_hub_url(repo, anchor, repo_type="dataset", revision=revision, endpoint=endpoint)
            self.commit = self._api.get_hf_file_metadata(url=url).commit_hash or revision

    def look_up(self, paths: Sequence[str], also: Sequence[str] = ()) -> list[RemoteFile]:
        """What the hub states of each file, and of those of `also` that it has. Raises DataError for what it lacks."""
        with self._told(f"the sizes of {len(paths)} files"):
            found = self._api.get_paths_info(self.repo, [*paths, *also], repo_type="dataset", revision=self.commit)
        stated = {
            info.path: RemoteFile(info.path, info.size, info.lfs.sha256 if info.lfs else None)
            for info in found
            if hasattr(info, "size")  # a folder has none
        }
        if lacking := [path for path in paths if path not in stated]:
            raise DataError(f"{self.repo} on the hub lacks {len(lacking)} of {len(paths)} files: {listed(lacking)}")
        return [stated[path] for path in (*paths, *also) if path in stated]

    def fetch(self, path: str, folder: Path, on_bytes: Callable[[int], None] | None = None) -> Path:
        """Fetch one file to `folder`/`path`, which appears whole or not at all; `on_bytes` is told what came.

        A connection that ends early is resumed where it ended. Raises DataError when the file cannot be had.
        """
        bar = {} if on_bytes is None else {"tqdm_class": _counting(on_bytes)}
        transport = self._errors.HfHubHTTPError.__bases__[0]  # the HTTP library's error, whichever library it is
        for attempt in range(1, _ATTEMPTS + 1):
            with self._told(path):
                try:
                    return Path(
                        self._api.hf_hub_download(
                            self.repo, path, repo_type="dataset", revision=self.commit, local_dir=folder, **bar
                        )
                    )
                except transport as error:
                    if attempt == _ATTEMPTS or isinstance(error, self._errors.HfHubHTTPError):
                        raise
        raise AssertionError("unreachable")

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Turn the library's errors into one clear DataError."""
        errors = self._errors
        transport = errors.HfHubHTTPError.__bases__[0]
        others = (OSError, RuntimeError, transport, getattr(errors, "XetDownloadError", OSError))
        try:
            yield
        except GolfError:
            raise
        except errors.GatedRepoError as error:
            raise DataError(
                f"{self.repo} on the hub is gated: accept its terms there, and set HF_TOKEN to a token of that account"
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise DataError(
                f"the hub has no public dataset repository {self.repo} (data.repo; HF_TOKEN for a private one)"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise DataError(f"{self.repo} on the hub has no such revision (data.revision)") from error
        except errors.RemoteEntryNotFoundError as error:
            raise DataError(f"{self.repo} on the hub has no file {what}") from error
        except others as error:
            raise DataError(f"cannot fetch {what} from {self.repo} on the hub\n{reason(error)[:200]}") from error


def bring(
    hub: Hub,
    files: Sequence[tuple[RemoteFile, Path]],
    staging: Path,
    what: str,
    progress: OnProgress | None = None,
    check: Callable[[Path], None] = lambda path: None,
) -> None:
    """Fetch each file by way of the folder `staging`, verify it, `check` it, and put it in its place whole.

    What has come stays when the rest fails. Raises DataError, also when the disk has too little room.
    """
    total, come, done = sum(file.size for file, _ in files), 0, 0
    check_room(staging.parent, total)

    def report(count: int) -> None:
        nonlocal come
        come += count
        if progress is not None:
            progress(f"fetch {what}, {total / 1e9:.2f} GB", min(come / max(total, 1), 1.0))

    report(0)
    for file, place in files:
        fetched = hub.fetch(file.path, staging, report)
        verify(fetched, file)
        check(fetched)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(fetched, place)
        done += file.size
        come = done  # exact again after a file that was resumed, or taken from the library's own cache
        report(0)


def verify(path: Path, stated: RemoteFile) -> None:
    """Raises DataError unless the file at `path` has the size, and the content's hash, that the hub states."""
    size = path.stat().st_size
    if size != stated.size:
        raise DataError(f"{stated.path} came with {size} bytes; the hub states {stated.size}")
    if stated.sha256 is not None:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != stated.sha256:
            raise DataError(f"{stated.path} came altered: its SHA-256 is not the one that the hub states")


def check_room(folder: Path, needed: int) -> None:
    """Raises DataError when the disk of `folder` has less than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(f"{folder} has {free / 1e9:.1f} GB free; {needed / 1e9:.1f} GB are to be fetched")


def listed(names: Sequence[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _counting(on_bytes: Callable[[int], None]) -> type:
    """A silent progress bar of the kind that huggingface_hub takes, which passes its counts on."""
    from tqdm.auto import tqdm  # type: ignore[import-untyped, unused-ignore]

    class Counting(tqdm):  # type: ignore[misc, type-arg, unused-ignore]
        def __init__(self, *args: Any, name: str | None = None, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            on_bytes(int(n or 0))
            return None

    return Counting
