"""Where golf's own files are, in a checkout and in an installed wheel."""

from __future__ import annotations

from pathlib import Path

from golf.common.errors import GolfError


def conf_dir() -> Path:
    """The folder of config groups: golf/conf in a wheel, conf/ beside the package in a checkout.

    Raises GolfError when neither is there.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "train.yaml").is_file():
            return folder
    raise GolfError(f"golf's config folder is missing beside {package}: the installation is incomplete")
