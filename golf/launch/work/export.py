"""A finished run as one file that runs alone."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from golf.export.bundle import Bundle
from golf.export.closure import Closure
from golf.export.module import Module
from golf.export.root import root_source
from golf.launch.compose import build, phases
from golf.launch.compose.own_code import use_code
from golf.runs.seal import identity


def script(config: Mapping[str, Any], title: str) -> str:
    """The source of a file that trains, quantizes and scores as this config's runs do. Raises GolfError."""
    folders = [Path(one) for one in config.get("code_paths") or []]
    use_code([str(one) for one in folders])
    made = build.components(dict(config), data=False)
    with torch.device("meta"):
        build.build_model(dict(config), "float32")  # imports what its parts import when they are built
    stages, every = made["phases"], list(phases.configs(config))
    nodes = {**config, **{name: phases.last(config)[name] for name in phases.AFTER}}
    spanned = phases.spanned(config)
    nodes |= {"model": spanned["model"], "technique": spanned["technique"]}
    nodes["loader"] = config.get("loader") or build.SPANS_LOADER
    rounding = {
        id(stage.qat): one.get("qat") for stage, one in zip(stages, every, strict=True) if stage.qat is not None
    }
    house = frozenset({"golf", *(name for folder in folders for name in packages_in(folder))})
    source = root_source(nodes, stages, rounding, identity(config), title)
    root = Module("train_gpt", source.encode(), "train_gpt.py", house)
    loaded = {name for name in sys.modules if name.partition(".")[0] in house}
    return Bundle(Closure(root, loaded)).text()


def packages_in(folder: Path) -> list[str]:
    """The modules and packages that lie in a folder, by name."""
    inner = [one for one in folder.iterdir() if one.is_dir() and any(one.rglob("*.py"))]
    return [one.stem for one in folder.glob("*.py")] + [one.name for one in inner]
