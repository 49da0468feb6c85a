"""What of a user's folder golf looks at: not what is hidden, nor runs, caches and environments, which projects hold."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from golf.common.files import cache_dir

NOT_ENTERED = ("outputs", "multirun", "wandb", "node_modules", "__pycache__")
MARKS = ("pyvenv.cfg", "conda-meta", "multirun.yaml", "CACHEDIR.TAG")
"""What says of the folder that holds it that its files are no work of the user's."""


def files(root: Path) -> Iterator[Path]:
    """The plain files below a folder, each folder's sorted; links are followed, but to no folder that they lie in."""
    yield from _below(root, (root.resolve(),), cache_dir())


def _below(folder: Path, above: tuple[Path, ...], cache: Path) -> Iterator[Path]:
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError:
        return  # what cannot be listed cannot be read either
    inner = []
    for name in names:
        path = folder / name
        if path.is_file():
            yield path
        elif path.is_dir() and _is_entered(path, cache) and (place := path.resolve()) not in above:
            inner.append((path, place))
    for path, place in inner:
        yield from _below(path, (*above, place), cache)


def _is_entered(folder: Path, cache: Path) -> bool:
    a_run = (folder / "config.yaml").exists() and (folder / "overrides.yaml").exists()
    return not (
        folder.name in NOT_ENTERED or folder.absolute() == cache
        or a_run or any((folder / mark).exists() for mark in MARKS)
    )  # fmt: skip
