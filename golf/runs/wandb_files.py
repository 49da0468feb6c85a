"""What a wandb run keeps beside its numbers: tags, the source that ran, the config, the artifact."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from golf.runs.wandb_environment import LONGEST_NAME, LONGEST_TAG

TAGGED = ("recipe", "tokenizer", "quant")
"""The groups whose options become tags, `recipe=naive_baseline`."""
_EPOCH = (1980, 1, 1, 0, 0, 0)


def tags(config: Mapping[str, Any]) -> list[str]:
    """The run's own tags, and one for each of the groups that a run is usually looked up by."""
    choices = config.get("choices") or {}
    chosen = [(group, choices.get(group)) for group in TAGGED]
    own = [str(tag) for tag in config.get("tags") or ()]
    return own + [f"{group}={option}"[:LONGEST_TAG] for group, option in chosen if option not in (None, "none")]


def zip_source(target: Path, own: Path) -> Path:
    """Pack golf's Python files and a user's (the folder `own`, which need not exist) into `target`, and return it.

    The same source makes the same bytes, so that a server keeps one copy for all runs of a sweep.
    """
    root = Path(__file__).parents[1]
    files = {f"golf/{path.relative_to(root).as_posix()}": path for path in root.rglob("*.py")}
    files |= {f"code/{path.relative_to(own).as_posix()}": path for path in own.rglob("*.py")}
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), files[name].read_bytes(), zipfile.ZIP_DEFLATED)
    return target


def keep(run: Any, name: str, kind: str, *files: Path, metadata: Mapping[str, Any] | None = None) -> None:
    """Log those of the files that exist as one wandb Artifact; they are read where they lie, also by a later sync."""
    import wandb

    if not any(file.is_file() for file in files):
        return
    name = re.sub(r"[^\w.-]", "-", name, flags=re.ASCII)[:LONGEST_NAME]  # an id may hold more than an artifact's name
    artifact = wandb.Artifact(name, kind, metadata=dict(metadata or {}))
    for file in files:
        if file.is_file():
            artifact.add_file(str(file), policy="immutable", skip_cache=True)
    run.log_artifact(artifact)
