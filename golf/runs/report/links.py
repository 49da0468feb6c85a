"""Links from a report to run folders."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote


def link_to(folder: Path, out: Path) -> str:
    """A URL of `folder` relative to the folder `out`, so that both can be moved or copied together."""
    try:
        relative = Path(os.path.relpath(folder.absolute(), out.absolute())).as_posix()
    except ValueError:  # on another drive
        return folder.absolute().as_uri()
    # ./ first, for a folder called `javascript:…` is a folder; quoted, for a folder may be called anything
    return "./" + quote(relative) + "/" if relative != "." else "./"
