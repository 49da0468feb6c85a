"""Finished runs as a folder with one file that runs alone."""

from __future__ import annotations

import gc
import importlib
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from golf.common.errors import ConfigError, GolfError, reason
from golf.common.log import FILE_ONLY, logger
from golf.export.bundle import Bundle
from golf.export.closure import Closure
from golf.export.folder import Seed, significance_of, write_folder
from golf.export.module import Module
from golf.export.packed import packed
from golf.export.remembered import remembered
from golf.export.root import root_source
from golf.launch.compose import build, own_modules, phases
from golf.launch.compose.options import primary
from golf.launch.compose.trust import admit
from golf.quant.quantizer import Fits
from golf.runs.dotted import flatten
from golf.runs.record import BOUND
from golf.runs.report.sides import published
from golf.runs.seal import identity
from golf.runs.store import Run
from golf.train.finish import Code, code_bytes, code_files

SPARE = "GOLF_CODE"
"""The environment's word, `bound`, by which runs take the bound at once: packing takes seconds, as a smoke run does."""
Form = Literal["readable", "packed"]
_APART = ("seed", "name", "tags", "logger", "code_paths", "sweep", "choices", "published")
"""In what runs of one submission may differ."""


@dataclass(frozen=True)
class Script:
    """A file that runs alone, in its two forms."""

    readable: str
    packed: bytes


def export(
    runs: Sequence[Run], out: Path, form: Form, against: str | None = None, trust: bool = False
) -> tuple[Script, int]:
    """Write the folder of a submission; its script, and by how many bytes it is over the limit. against: a published
    figure that the README tests the runs' against. trust: the line allows the code that the run brings.

    Raises ConfigError for runs of different configs, GolfError for what cannot be exported, for a record that is broken
    or newer, and for a folder that exists.
    """
    first, than = runs[0], None if against is None else published([against])
    for other in runs[1:]:
        if different := differ(first.config, other.config):
            raise ConfigError(f"run={first.dir},{other.dir}: not the same but for the seed: {', '.join(different[:6])}")
    if len({run.config["seed"] for run in runs}) < len(runs):
        raise ConfigError("run=: two of these runs have the same seed")
    if out.exists():
        raise GolfError(f"{out} exists: name another folder (out=…), an export overwrites nothing")
    for run in runs:
        if not run.folder.artifact.is_file():
            raise GolfError(
                f"{run.folder.artifact} is missing: a submission is what a run made (golf quantize makes one)"
            )
        whole = run.result
        if whole.bytes is None or whole.params is None or "seed" not in whole.seeds:
            raise GolfError(
                f"{run.folder.result}: does not say the run's bytes, parameters and seed, as it did not end"
            )
    title = str(first.config.get("name") or out.name)
    made = script(runnable(first, trust), f"{title}: trains, quantizes and scores; see README.md.", first.record)
    seeds = [Seed(run.record, run.folder.log) for run in runs]
    overrides = first.folder.overrides
    lines = overrides.read_text(encoding="utf-8").splitlines() if overrides.is_file() else []
    settings = [line for line in lines if not line.startswith("- seed=")]
    chosen = made.readable.encode() if form == "readable" else made.packed
    better = "" if against is None or than is None else significance_of(seeds, against, than)
    write_folder(out, chosen, len(made.packed), made.readable, seeds, title, settings, better)
    limit = first.record["bytes"].get("limit")
    total = max(run.record["bytes"]["model"] for run in runs) + len(made.packed)
    return made, 0 if limit is None else max(0, total - limit)


def differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The settings, by key, in which two configs of one submission must not differ and do."""
    mine, its = (dict(flatten({k: v for k, v in each.items() if k not in _APART})) for each in (one, other))
    return sorted(key for key in mine.keys() | its.keys() if mine.get(key, ...) != its.get(key, ...))


def runnable(run: Run, trust: bool = False) -> dict[str, Any]:
    """A run's config with the code that it kept, and what golf had no key for when it was made. Raises ConfigError for
    code that nobody has allowed; trust: the line has."""
    config = deepcopy(run.config)
    config["code_paths"] = admit(run.dir, run.config, f"run={run.dir}", trust=trust)
    for key, value in primary().values.items():
        config.setdefault(key, deepcopy(value))
    return config


def script(config: Mapping[str, Any], title: str, record: Mapping[str, Any] | None = None) -> Script:
    """A file that trains, quantizes and scores as this config's runs do. record: of one that ended, which says what it
    used, and by how many bytes of code it went. Raises GolfError."""
    own_modules.use_code(config.get("code_paths") or [])
    whole = packed_file(config, record)
    went_by = ((record or {}).get("bytes") or {}).get("code", len(whole))
    quantizer = build.make(phases.last(config)["quant"], "quant")
    if went_by != len(whole) and isinstance(quantizer, Fits) and quantizer.fit is not None:
        whole = packed_file(config, record, went_by)  # the run was packed by another release of golf, or not at all
    return Script(Bundle(closed(config, title, record, went_by)).text(), whole)


def count(config: Mapping[str, Any], record: Mapping[str, Any] | None = None) -> Code:
    """The bytes of a run's code: those of its packed file, or what bounds them where it cannot be exported."""
    if os.environ.get(SPARE) == "bound":
        return Code(code_bytes(), f"{BOUND}, since {SPARE}=bound")
    beside = [path.name for path in code_files() if path.suffix != ".py"]
    if beside:
        return Code(code_bytes(), f"{BOUND}: what lies beside your code ({beside[0]}) cannot be exported")
    try:
        return Code(len(packed_file(config, record)))
    except GolfError as error:
        return Code(code_bytes(), f"{BOUND}: {str(error).splitlines()[0]}")
    except Exception as error:  # a run is worth more than its count
        logger.info("%s", "".join(traceback.format_exception(error)), extra=FILE_ONLY)
        return Code(code_bytes(), f"{BOUND}: an export fails ({type(error).__name__}: {reason(error)})")


def packed_file(config: Mapping[str, Any], record: Mapping[str, Any] | None, code: int | None = None) -> bytes:
    """The packed file of a config's runs. Raises GolfError."""
    with uncollected():
        return remembered(Bundle(closed(config, "", record, code), bare=True).text(), packed)


@contextmanager
def uncollected() -> Iterator[None]:
    """Within the block cycles stay in memory: syntax trees are many small objects, all of them in use, and looking
    through them time and again takes a fifth of the time."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def closed(config: Mapping[str, Any], title: str, record: Mapping[str, Any] | None, code: int | None) -> Closure:
    """What a config's run needs. record: what is known of one, its modules and kernels; without, the components are
    built to find out. code: bytes that count beside the artifact (None: the file's own). Raises GolfError."""
    config, record = dict(config), record or {}
    if not record.get("modules"):
        build.components(config, data=False)
        with torch.device("meta"):
            build.build_model(config, "float32")  # imports what its parts import when they are built
    for name in record.get("modules") or ():
        with suppress(ImportError):
            importlib.import_module(name)
    stages, every = build.phases_of(config), list(phases.configs(config))
    spanned, after = phases.spanned(config), phases.last(config)
    nodes = {
        **config, **{name: after[name] for name in phases.AFTER}, "model": spanned["model"],
        "technique": spanned["technique"], "loader": config.get("loader") or build.SPANS_LOADER,
    }  # fmt: skip
    served = {by.partition(" ")[0] for op, by in (record.get("kernels") or {}).items() if op != "attention"}
    rounding = {id(stage.qat): one.get("qat") for stage, one in zip(stages, every, strict=True) if stage.qat}
    house = frozenset({"golf", own_modules.PACKAGE})
    source = root_source(nodes, stages, rounding, served, identity(config), title, code, own_modules.located)
    root = Module("train_gpt", source.encode(), "train_gpt.py", house)
    loaded = {name for name in sys.modules if name.partition(".")[0] in house}
    if used := record.get("modules"):  # this process may have loaded more of golf's than the run did
        loaded = {name for name in loaded if not name.startswith("golf.")} | set(used)
    return Closure(root, loaded, own_modules.located)
