"""Where golf's own files are, in a checkout and in an installed wheel."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from golf.common.errors import GolfError


def is_option(path: Path) -> bool:
    """Whether a file of a folder that is laid out like conf/ is an option of a group; `path` is relative to it."""
    return path.suffix in (".yaml", ".yml") and path.parts[0] in _groups()


@cache
def _groups() -> frozenset[str]:
    """The folders of conf/, read once: whoever copies or counts a user's files asks for each."""
    return frozenset(child.name for child in conf_dir().iterdir() if child.is_dir())


def conf_dir() -> Path:
    """The folder of config groups: golf/conf in a wheel, conf/ beside the package in a checkout.

    Raises GolfError when neither is there.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise GolfError(f"golf's config folder is missing beside {package}: the installation is incomplete")
