"""A run's state on disk: safetensors and JSON, whole or absent, checksummed, and read back as data alone.

A checkpoint is a folder, `checkpoints/step-00000500/`: `state.safetensors` has the tensors, `state.json` all else.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import tempfile
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from golf.common.errors import DataError, GolfError, reason
from golf.common.files import read_json, sha256_file, sha256_json, sync_folder

FORMAT = 1
TENSORS, STATE = "state.safetensors", "state.json"
_NAME = re.compile(r"step-(\d{8,})")
_ASIDE = "."
"""How the name of a folder begins that is being written or removed."""


class Unsavable(GolfError):
    """A part keeps what no file can hold."""


@dataclass
class Packed:
    """A state in the host's memory: `tree` for JSON, in which tensors stand by name."""

    tree: Any = None
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    arrived: torch.cuda.Event | None = None
    """When copies from a device are complete."""


def pack(state: Any, model: nn.Module, copy: bool = True) -> Packed:
    """Copy a state of plain values and tensors for a file; the device's queue goes on, and no host waits for it.

    What is the model's own stands by its name, and what appears twice is kept once. copy=False only tries whether all
    can be packed. Raises Unsavable, naming the place.
    """
    packer = _Packer(_named(model), copy)
    packer.packed.tree = packer.encode(state, ())
    if packer.from_device:
        packer.packed.arrived = torch.cuda.Event()
        packer.packed.arrived.record()
    return packer.packed


def unpack(tree: Any, tensors: Mapping[str, torch.Tensor], model: nn.Module, device: torch.device) -> Any:
    """What `pack` was given, with tensors where they were: on the CPU, or on this device. Raises DataError."""
    try:
        return _Unpacker(tensors, {name: one for one, name in _named(model).values()}, device).decode(tree)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"its state cannot be read: {type(error).__name__} {error}") from error


def _named(model: nn.Module) -> dict[int, tuple[Any, str]]:
    """A model's modules, parameters and buffers, by their ids: each with its name."""
    found: dict[int, tuple[Any, str]] = {}
    for kind, items in (
        ("module", model.named_modules()), ("parameter", model.named_parameters()), ("buffer", model.named_buffers()),
    ):  # fmt: skip
        found |= {id(one): (one, f"{kind} {name}") for name, one in items}
    return found


class _Packer:
    """Encodes one state: scalars as they are, anything else as an object of one or two keys that tell its kind."""

    def __init__(self, named: Mapping[int, tuple[Any, str]], copy: bool) -> None:
        self.named, self.copy = named, copy
        self.packed = Packed()
        self.from_device = False
        self.tensors: dict[int, dict[str, Any]] = {}
        self.containers: dict[int, int] = {}
        self.kept: list[Any] = []  # an id is another's once its object is gone

    def encode(self, value: Any, path: tuple[str, ...]) -> Any:
        value = value.item() if isinstance(value, np.generic) else value
        if value is None or type(value) in (bool, int, str):
            return value
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else {"float": str(float(value))}
        if isinstance(value, torch.Tensor) and id(value) in self.named and path[0] != "model":
            return {"named": self.named[id(value)][1]}
        if isinstance(value, torch.Tensor):
            return self._tensor(value, path)
        if isinstance(value, nn.Module) and id(value) in self.named:
            return {"named": self.named[id(value)][1]}
        if type(value) in (tuple, torch.Size):
            return {"tuple": [self.encode(one, (*path, str(at))) for at, one in enumerate(value)]}
        if type(value) not in (list, dict, OrderedDict, set, deque):
            place = "/".join(path)
            raise Unsavable(f"{place} keeps a {type(value).__name__}: a checkpoint holds tensors and plain values")
        if id(value) in self.containers:
            return {"same": self.containers[id(value)]}
        self.containers[id(value)] = len(self.containers)
        self.kept.append(value)
        if isinstance(value, dict):
            return {"dict": [
                [self.encode(key, (*path, "key")), self.encode(one, (*path, str(key)))] for key, one in value.items()
            ]}  # fmt: skip
        items = [self.encode(one, (*path, str(at))) for at, one in enumerate(value)]
        return {type(value).__name__: items, **({"maxlen": value.maxlen} if isinstance(value, deque) else {})}

    def _tensor(self, tensor: torch.Tensor, path: tuple[str, ...]) -> dict[str, Any]:
        if (known := self.tensors.get(id(tensor))) is not None:
            return known
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise Unsavable(f"{'/'.join(path)} keeps a tensor of layout {tensor.layout}: dense ones can be saved")
        name = "/".join(path)
        while name in self.packed.tensors:
            name += "+"
        here = tensor.device.type == "cpu"
        told = self.tensors[id(tensor)] = {"tensor": name} | ({} if here else {"device": tensor.device.type})
        self.kept.append(tensor)
        self.packed.tensors[name] = self._host(tensor.detach()) if self.copy else tensor
        self.from_device |= self.copy and not here
        return told

    @staticmethod
    def _host(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device.type == "cpu":
            return tensor.clone(memory_format=torch.contiguous_format)
        pinned = tensor.device.type == "cuda"
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
        return host.copy_(tensor, non_blocking=pinned)


class _Unpacker:
    def __init__(self, tensors: Mapping[str, torch.Tensor], named: Mapping[str, Any], device: torch.device) -> None:
        self.tensors, self.named, self.device = tensors, named, device
        self.placed: dict[str, torch.Tensor] = {}
        self.containers: list[Any] = []

    def decode(self, told: Any) -> Any:
        if not isinstance(told, dict):
            if isinstance(told, list):
                raise ValueError("a bare list")
            return told
        match told:
            case {"float": str(text)}:
                return float(text)
            case {"tensor": name}:
                if name not in self.placed:
                    self.placed[name] = self.tensors[name].to(self.device if "device" in told else "cpu")
                return self.placed[name]
            case {"named": name}:
                return self.named[name]
            case {"same": index}:
                return self.containers[index]
            case {"tuple": items}:
                return tuple(map(self.decode, items))
            case {"dict": pairs}:
                made: Any = self._new({})
                for key, one in pairs:
                    name = self.decode(key)
                    made[name] = self.decode(one)
                return made
            case {"list": items}:
                made = self._new([])
                made.extend(map(self.decode, items))
                return made
            case {"set": items}:
                made = self._new(set())
                made.update(map(self.decode, items))
                return made
            case {"deque": items, "maxlen": maxlen}:
                made = self._new(deque(maxlen=maxlen))
                made.extend(map(self.decode, items))
                return made
        raise ValueError(f"an object of {', '.join(map(str, told))}")

    def _new(self, container: Any) -> Any:
        self.containers.append(container)
        return container


def write(folder: Path, step: int, packed: Packed, about: Mapping[str, Any]) -> int:
    """Write a checkpoint into `folder`, whole or not at all; its bytes. `about`: what state.json tells besides.

    Raises OSError, or safetensors' error, where it cannot be written; nothing is left then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if packed.arrived is not None:
        packed.arrived.synchronize()
    part = Path(tempfile.mkdtemp(prefix=f"{_ASIDE}writing-", dir=folder))
    try:
        part.chmod(folder.stat().st_mode & 0o777)  # mkdtemp's 0700 would hide it from colleagues
        tensors = part / TENSORS
        save_file(packed.tensors, tensors)
        _sync(tensors)
        told = {
            "format": FORMAT, "step": step, **about, "tensors": {"bytes": tensors.stat().st_size,
            "sha256": sha256_file(tensors)}, "state": packed.tree,
        }  # fmt: skip
        text = json.dumps({**told, "seal": sha256_json(told)}, allow_nan=False)
        (part / STATE).write_text(text, encoding="utf-8")
        _sync(part / STATE)
        sync_folder(part)
        target = folder / f"step-{step:08d}"
        if target.exists():  # of an earlier attempt, damaged or the same
            remove(target)
        os.rename(part, target)
        sync_folder(folder)
    finally:
        if part.exists():
            shutil.rmtree(part, ignore_errors=True)
    return int(told["tensors"]["bytes"]) + len(text)


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def found(folder: Path) -> list[Path]:
    """The checkpoints in `folder` that were written whole, the newest first; whether they still are is not checked."""
    try:
        paths = [path for path in folder.iterdir() if _NAME.fullmatch(path.name) and (path / STATE).is_file()]
    except OSError:
        return []
    return sorted(paths, key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """The step after which a checkpoint was made."""
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def verified(path: Path) -> dict[str, Any]:
    """What a checkpoint's state.json tells, once all of it was found to be what was written. Raises DataError."""
    try:
        told = read_json(path / STATE)
        size = (path / TENSORS).stat().st_size
        digest = sha256_file(path / TENSORS)
    except FileNotFoundError as error:
        raise DataError(f"{path}: {Path(str(error.filename)).name} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: {STATE} is not readable ({reason(error)})") from None
    if not isinstance(told, dict) or told.pop("seal", None) != sha256_json(told):
        raise DataError(f"{path}: {STATE} has changed since it was written")
    if told.get("format") != FORMAT:
        raise DataError(f"{path} has format {told.get('format')!r}; this golf reads {FORMAT}")
    if told.get("tensors") != {"bytes": size, "sha256": digest}:
        raise DataError(f"{path}: {TENSORS} is damaged ({size:,} bytes, its checksum is another)")
    return told


def newest(folder: Path) -> Iterator[tuple[Path, dict[str, Any] | DataError]]:
    """Every checkpoint of `folder`, the newest first, with what it tells or why it is no use."""
    for path in found(folder):
        try:
            yield path, verified(path)
        except DataError as error:
            yield path, error


def read(path: Path, told: Mapping[str, Any], model: nn.Module, device: torch.device) -> dict[str, Any]:
    """The state of a checkpoint that was `verified`. Raises DataError."""
    try:
        tensors = load_file(path / TENSORS)
    except Exception as error:  # safetensors has an error type of its own
        raise DataError(f"{path}: {TENSORS} is not readable ({reason(error)})") from None
    state = unpack(told["state"], tensors, model, device)
    if not isinstance(state, dict):
        raise DataError(f"{path}: {STATE} holds no state")
    return state


def remove(path: Path) -> None:
    """Take a checkpoint away; whatever happens meanwhile, what is left is not taken for one."""
    aside = path.with_name(f"{_ASIDE}removed-{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(path, aside)
    shutil.rmtree(aside, ignore_errors=True)


def prune(folder: Path, keep: int, newest_step: int) -> None:
    """Leave the last `keep` of those up to `newest_step`; later ones, of an attempt that was given up, go too."""
    kept = [path for path in found(folder) if step_of(path) <= newest_step][:keep]
    for path in found(folder):
        if path not in kept:
            remove(path)
    for path in folder.glob(f"{_ASIDE}*"):
        if path.name.startswith((f"{_ASIDE}writing-", f"{_ASIDE}removed-")):
            shutil.rmtree(path, ignore_errors=True)


def clear(folder: Path) -> None:
    """Take all checkpoints of a run away, and the folder with them: it has come to its end."""
    for path in found(folder):
        remove(path)
    shutil.rmtree(folder, ignore_errors=True)


def by_rank(own: Sequence[Mapping[str, Any]], rank: int, world: int) -> Mapping[str, Any]:
    """A rank's own part of a state, of those that each rank had: its own, or where there were more or fewer of them,
    rank 0's generators and everyone's means."""
    if len(own) == world:
        return own[rank]
    rows = [one["rows"] for one in own]
    shown = {
        name: [torch.stack(each).mean(0) for each in zip(*(one["shown"][name] for one in rows), strict=True)]
        for name in rows[0]["shown"]
    }
    return {**own[0], "rows": {"summed": torch.stack([one["summed"] for one in rows]).mean(0), "shown": shown}}
