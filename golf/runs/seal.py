"""A record's seal: digests of what belongs together in a run folder, and whether they still agree.

It is a seal against mistakes (an edited figure, a file of another run in its place), not against an author: whoever
can write the folder can write a seal.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from golf.common.errors import GolfError
from golf.common.files import is_full, read_json, sha256_file, sha256_json, write_json
from golf.common.secret import kept_without_keys
from golf.runs.dotted import dig
from golf.runs.figures import FINAL, SCORES, named, val_bpb
from golf.runs.folder import RunFolder

FIELD = "seal"
"""Its name in result.json: the SHA-256 of the other fields as `record`, and of each file."""
_ASIDE = ("logger", "code_paths", "choices", "published", "sweep", "name", "tags", "log_every",
          "checkpoint")  # fmt: skip
_ASIDE_OF_RUNTIME = ("nproc", "threads", "check_every", "micro_tokens", "compile_eval", "cuda_graphs", "hang_seconds",
                     "retry_out_of_memory")  # fmt: skip


def identity(config: Mapping[str, Any]) -> str:
    """What a run is, as a hash of its config without logging, folders, and the share of the machine it had."""
    kept = {name: value for name, value in config.items() if name not in _ASIDE}
    kept["runtime"] = {k: v for k, v in (config.get("runtime") or {}).items() if k not in _ASIDE_OF_RUNTIME}
    return sha256_json(kept)


def write_sealed(path: Path, record: Mapping[str, Any]) -> None:
    """Write a result.json with a seal over itself and over what lies beside it by now; it is written last.

    Raises GolfError when the disk is full, and no room was kept for it.
    """
    folder = RunFolder(path.parent)
    sealed = (folder.artifact, folder.config, folder.metrics)
    plain = kept_without_keys({name: value for name, value in record.items() if name != FIELD})
    files = {one.name: sha256_file(one) for one in sealed if one.is_file()}
    whole = {**plain, FIELD: {"record": _digest(plain), **files}}
    try:
        write_json(path, whole)
    except GolfError as error:
        if not is_full(error) or not folder.give_room():
            raise
        write_json(path, whole)


def amend(path: Path, changes: Mapping[str, Any]) -> None:
    """Change fields of a result.json that golf wrote, as golf: its seal is made anew, those of the files stay.

    A record that does not agree with its own seal keeps it. Raises OSError and ValueError for one that cannot be read,
    GolfError when the disk is full.
    """
    record = read_json(path)
    plain = {name: value for name, value in record.items() if name != FIELD}
    seal = record.get(FIELD)
    whole = isinstance(seal, dict) and seal.get("record") == _digest(plain)
    plain |= kept_without_keys(dict(changes))
    write_json(path, {**plain, **({FIELD: {**seal, "record": _digest(plain)} if whole else seal} if seal else {})})


def is_sealed(record: Mapping[str, Any]) -> bool:
    """Whether a record has a seal; older ones have none, and nothing is wrong with them."""
    return isinstance(record.get(FIELD), dict)


def disagreements(
    folder: RunFolder, record: Mapping[str, Any], config: bytes | None, *, whole: bool = False
) -> list[str]:
    """What in a run's folder does not agree with its record as it was written, a sentence each; empty: nothing.

    `record` and `config` are result.json and config.yaml as they stand. Metrics and artifact, which may be large, are
    read only where a size or a time says that they are others; `whole`: always.
    """
    return [*_unbacked(record), *_broken(folder, record, config, whole)]


def _unbacked(record: Mapping[str, Any]) -> list[str]:
    """Figures that no evaluation in the record gave."""
    evals = record.get("evals")
    if not isinstance(evals, list):
        return []
    try:
        due = val_bpb(evals)
    except (KeyError, TypeError):
        return []
    finals = [one["val_bpb"] for one in evals if one["stage"] == "quantized"]
    told = []
    for name in (*SCORES, *named(record)):
        value, backing = dig(record, name), finals if name == FINAL else [dig({"val_bpb": due}, name)]
        if value is not None and value not in backing:
            told.append(f"result.json: no evaluation in it gave {name} ({value})")
    return told


def _broken(folder: RunFolder, record: Mapping[str, Any], config: bytes | None, whole: bool) -> list[str]:
    seal = record.get(FIELD)
    if not isinstance(seal, dict):
        return []
    told = []
    if seal.get("record") != _digest({name: value for name, value in record.items() if name != FIELD}):
        told.append("result.json: has changed since golf wrote it")
    for path in (folder.config, folder.metrics, folder.artifact):
        if (expected := seal.get(path.name)) is None:
            continue
        try:
            if path == folder.config:
                found = None if config is None else hashlib.sha256(config).hexdigest()
            else:
                found = expected if not whole and _untouched(path, folder, record) else sha256_file(path)
        except OSError:
            found = None
        if found != expected:
            told.append(f"{path.name}: is {'gone' if found is None else 'not the one that result.json speaks of'}")
    return told


def _untouched(path: Path, folder: RunFolder, record: Mapping[str, Any]) -> bool:
    """Whether a file is as large as it was, where that is known, and older than its record, which was written last."""
    now = path.stat()
    size = dig(record, "bytes.model") if path == folder.artifact else now.st_size
    return now.st_size == size and now.st_mtime_ns <= folder.result.stat().st_mtime_ns


def _digest(record: Mapping[str, Any]) -> str:
    return sha256_json(record)
