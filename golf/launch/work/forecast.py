"""How many bytes a run's artifact will take, before the run: its own quantizer and codec at work on noise.

Trained weights are hardly to be told from noise of their spread, which is why so little of them can be saved. So the
model's shapes are filled with noise, quantized as the run would, and given to the codec: all of it where that is quick,
else a sample of each kind of part. What the run will count as its code is counted as it would.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import golf.launch.work.worker  # noqa: F401 — it and the session import what a run imports, and counts as its code
from golf.artifact.codecs import Codec, Store
from golf.artifact.container import artifact_size
from golf.common.errors import ConfigError, GolfError, reason
from golf.common.process import usable_cores
from golf.launch.compose import build
from golf.launch.compose.own_code import counted, naming, targets, used_packages
from golf.launch.work import export, growth
from golf.launch.work.jobs import named_data, published
from golf.launch.work.session import modules
from golf.learn.budget import rescale_components
from golf.nn import kernels
from golf.nn.params import ParamSpec
from golf.quant.entry import LOW_RANK, Entry, payload_bytes, unpack_bits
from golf.quant.fit import fitted
from golf.quant.quantizer import Calibrates, Fits, Quantizer
from golf.quant.rowwise import RowQuantizer, match_place
from golf.runs.record import BOUND, PACKED
from golf.train.finish import Code, code_bytes
from golf.train.stages import unstored

SAMPLE = 1 << 19
"""Bytes of a kind of part that a general codec is tried on: more would change the ratio by a thousandth."""
MOST = 1 << 29
"""Values of a model that are tried: some gigabytes."""
SEED = 1
COLUMNS = 0.15
"""How far columns of a trained matrix differ in spread, by its logarithm: 0.05 to 0.5 in runs of five recipes. Rows
differ too, and have grids of their own."""
UNSURE = 0.02
"""The part of a model's bytes that a forecast may well be off by where weights are as large as foretold."""
META = {"steps": 10_000, "seed": 1337, "config": "0123456789abcdef"}
"""As long as a run's."""
HASH = "0123456789abcdef" * 2


@dataclass(frozen=True)
class Stored:
    """A tensor in the artifact: what it is, its bits a value (and k, where its grid goes by that), and its bytes."""

    name: str
    place: str
    role: str
    layer: int | None
    values: int
    bits: int
    k: float | None
    bytes: float


@dataclass(frozen=True)
class Forecast:
    """What a run's artifact will take, in bytes.

    code_is: whether `code` is a packed file's size or bounds it. least, most: what the model may well come to instead,
    by how much weights have grown. times: how many times as wide steps become so that it fits, where it is fitted.
    steps: the run's.
    """

    tensors: list[Stored]
    container: int
    code: int
    code_is: str
    limit: int
    steps: int
    times: float | None
    least: int = 0
    most: int = 0

    @property
    def model(self) -> int:
        """Of the file."""
        return self.container + round(sum(one.bytes for one in self.tensors))

    @property
    def artifact(self) -> int:
        """Of model and code."""
        return self.model + self.code

    @property
    def left(self) -> int:
        """Up to the limit; less than 0 where that is passed."""
        return self.limit - self.artifact

    def by(self, key: Callable[[Stored], str]) -> dict[str, list[Stored]]:
        """The tensors by what `key` says of them, in the model's order."""
        found: dict[str, list[Stored]] = {}
        for one in self.tensors:
            found.setdefault(key(one), []).append(one)
        return found

    def as_dict(self) -> dict[str, Any]:
        """Plain data: the totals, then every tensor."""
        totals = {name: getattr(self, name) for name in ("model", "code", "artifact", "limit", "left")}
        rest = {key: value for key, value in vars(self).items() if key not in (*totals, "tensors")}
        return {**totals, **rest, "tensors": [{**asdict(one), "bytes": round(one.bytes)} for one in self.tensors]}


def forecast(config: Mapping[str, Any]) -> Forecast:
    """The bytes of a checked config's artifact; nothing is trained, and nothing written.

    Raises GolfError where the quantizer or the codec cannot work on weights that nobody has trained.
    """
    with naming(config.get("code_paths") or []):
        return _forecast(dict(config))


def _forecast(config: dict[str, Any]) -> Forecast:
    made = build.components(config, data=False)
    code = code_of(config, made["quant"])
    rescale_components([made[name] for name in ("optimizer", "schedule", "averaging")], made["budget"],
                       made["runtime"].nproc)  # fmt: skip
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in build.build_model(config, "float32").parameters())
    if size > MOST:
        raise GolfError(f"a model of {size:,} values is more than a forecast fills with noise ({MOST:,})")
    model = build.build_model(config, "float32")
    model.initialize(config["seed"])
    specs = {name: spec for name, spec in model.specs().items() if spec.stored}
    left_out = unstored(model)
    first = {name: tensor for name, tensor in model.state_dict().items() if name not in left_out}
    steps = steps_of(config, made)
    quantizer, codec = made["quant"], made["codec"]
    measure = Measure(codec, json.dumps(config["codec"], sort_keys=True, default=str))
    spreads = growth.spreads(made["optimizer"], made["schedule"], steps, specs, first, model.tied)
    try:
        rank_evenly(quantizer, specs, first)
        weights = drawn(first, {name: spread.likely for name, spread in spreads.items()})
        if fits := isinstance(quantizer, Fits) and quantizer.fit is not None:
            room = quantizer.fit - code.bytes
            entries = fitted(quantizer, weights, specs, room, partial(file_bytes, measure=measure), drafts=True)
            least = most = 1.0
        else:
            entries = roughly(quantizer, weights, specs)
            least, most = how_sure(quantizer, entries, specs, first, spreads)
        sizes = measure(entries)
    except ConfigError:
        raise
    except Exception as error:  # a quantizer or a codec of a user's own may raise anything
        raise GolfError(f"{type(quantizer).__name__} and {type(codec).__name__} make nothing of weights that were not "
                        f"trained: {reason(error)}\nthe bytes are known after a run") from error  # fmt: skip
    found = Forecast(
        tensors=[stored(entry, specs, quantizer, size) for entry, size in zip(entries.values(), sizes)],
        container=container_bytes(entries), code=code.bytes, code_is=code.what, limit=made["budget"].artifact_bytes,
        steps=steps, times=quantizer.times if fits else None,
    )  # fmt: skip
    return replace(found, least=round(found.model * least), most=round(found.model * most))


def roughly(
    quantizer: Quantizer, weights: Mapping[str, Tensor], specs: Mapping[str, ParamSpec]
) -> dict[str, Entry]:  # fmt: skip
    """Entries that take as many bytes as the quantizer's, by the quickest way that it has."""
    return (quantizer.draft if isinstance(quantizer, Fits) else quantizer.quantize)(weights, specs)


def how_sure(
    quantizer: Quantizer, entries: Mapping[str, Entry], specs: Mapping[str, ParamSpec], first: Mapping[str, Tensor],
    spreads: Mapping[str, growth.Spread],
) -> tuple[float, float]:  # fmt: skip
    """Which parts of the forecast the model may well take at least and at most."""
    least, most = 1.0 - UNSURE, 1.0 + UNSURE
    if not getattr(quantizer, "scale_floor", True):  # grids go with the weights, however large they are
        return least, most
    smaller, larger = (
        total_entropy(roughly(quantizer, drawn(first, dict(zip(spreads, end))), specs))
        for end in ([one.least for one in spreads.values()], [one.most for one in spreads.values()])
    )
    bits = total_entropy(entries)
    return min(least, smaller / bits), max(most, larger / bits)


def steps_of(config: Mapping[str, Any], made: Mapping[str, Any]) -> int:
    """The steps that a run is taken to train: those that are planned, or before, at the clock's end, as many as the
    author of a record printed."""
    schedule, budget = made["schedule"], made["budget"]
    planned = int(schedule.iterations)
    record = published((config.get("choices") or {}).get("recipe"), config["seed"])
    if schedule.clock != "wall" or budget.train_seconds is None or record is None:
        return planned
    return max(1, min(planned, round(record["steps"] * budget.fraction)))


_CODE: dict[str, Code] = {}
"""Code by what tells which definitions it takes: to pack it takes seconds, and a sweep has many jobs."""


def code_of(config: dict[str, Any], quantizer: Quantizer) -> Code:
    """What a run's code will count: its packed file, with the kernels that its model has a place for unless it is to
    run on a CPU; or where it cannot be exported, what bounds that."""
    with torch.device("meta"):
        model = build.build_model(config, "float32")
    on_cpu = config["runtime"]["device"] == "cpu" or config["runtime"]["kernels"] == "reference"
    fused = [] if on_cpu else [one.name for one in kernels.KERNELS if one.hosts(model)]
    fits = isinstance(quantizer, Fits) and quantizer.fit is not None
    left_out = {"golf.quant.fit": fits, "golf.quant.calibration": isinstance(quantizer, Calibrates)}
    key = json.dumps([build.packages(config), sorted(targets(config)), fused, *left_out.values()], default=str)
    if key not in _CODE:
        used = [*(f"golf.nn.kernels.{name}" for name in fused), *(one for one in modules() if left_out.get(one, True))]
        found = export.count(config, {"kernels": {name: name for name in fused}, "modules": used})
        _CODE[key] = found if found.what == PACKED else Code(code_bytes(more_code(config)), BOUND)
    return _CODE[key]


def more_code(config: dict[str, Any]) -> list[Path]:
    """What a run that cannot be exported would count as its code beyond what has been imported here: kernels, which are
    for GPUs, and a user's own, of which it keeps a copy."""
    fused = [] if config["runtime"]["device"] == "cpu" else Path(kernels.__file__).parent.glob("*.py")
    packages = used_packages(name.removesuffix(".*") for name in build.packages(config))
    own = counted([Path(path) for path in config.get("code_paths") or []], named_data(config), packages)
    return [*fused, *own]


def rank_evenly(quantizer: Quantizer, specs: Mapping[str, ParamSpec], first: Mapping[str, Tensor]) -> None:
    """Let bits be chosen as by gradients that rank the tensors of each place evenly: each has its share of widths."""
    if not quantizer.observes_gradients:
        return
    places: dict[str, list[str]] = {}
    for name, spec in specs.items():
        if first[name].ndim >= 2:
            places.setdefault(spec.place, []).append(name)
    gradients = {name: (i + 0.5) / len(names) for names in places.values() for i, name in enumerate(names)}
    quantizer.recall({"mean_gradient": gradients}, first)


def drawn(first: Mapping[str, Tensor], spreads: Mapping[str, float]) -> dict[str, Tensor]:
    """Noise of these spreads in place of parameters, the same each time; buffers as they begin."""
    random = torch.Generator().manual_seed(SEED)
    weights = dict(first)
    for name, spread in spreads.items():
        values = torch.randn(first[name].shape, generator=random) * spread
        if values.ndim == 2:
            columns = torch.exp(COLUMNS * torch.randn(values.shape[1], generator=random))
            values *= columns / columns.square().mean().sqrt()
        weights[name] = values.to(first[name].dtype)
    return weights


_KNOWN: dict[tuple[str, bytes], int] = {}
"""What codecs made of samples: jobs of a sweep have most of them in common."""


@dataclass(frozen=True)
class Measure:
    """A codec's bytes of entries, each by itself. settings: what tells it from the same codec otherwise set."""

    codec: Codec
    settings: str

    def __call__(self, entries: Mapping[str, Entry]) -> list[float]:
        """In the entries' order. Parts of a kind are taken to be alike."""
        kinds: dict[tuple[Any, ...], list[Tensor]] = {}
        for entry in entries.values():
            for name, part in entry.parts.items():
                kinds.setdefault(_kind(entry, name), []).append(part)
        with ThreadPoolExecutor(min(8, usable_cores())) as pool:
            ratios = dict(zip(kinds, pool.map(self._ratio, kinds.values())))
        return [
            sum(part.numel() * part.element_size() * ratios[_kind(entry, name)] for name, part in entry.parts.items())
            for entry in entries.values()
        ]

    def _ratio(self, parts: Sequence[Tensor]) -> float:
        """Bytes stored for each byte of these parts."""
        size = sum(part.numel() * part.element_size() for part in parts)
        quick = self.codec.reads_values or isinstance(self.codec, Store)
        share = 1.0 if quick else min(1.0, SAMPLE / max(size, 1))
        sample = [part[: math.ceil(len(part) * share)] if part.ndim else part for part in parts]
        if not (taken := sum(part.numel() * part.element_size() for part in sample)):
            return 0.0
        digest = blake2b(digest_size=16)
        for part in sample:
            digest.update(str((part.dtype, tuple(part.shape))).encode())
            digest.update(part.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        key = self.settings, digest.digest()
        if key not in _KNOWN:
            _KNOWN[key] = len(self.codec.store(sample))
        return _KNOWN[key] / taken


def _kind(entry: Entry, part: str) -> tuple[Any, ...]:
    """What parts have in common that a codec makes the same of."""
    dtype = entry.parts[part].dtype
    if dtype in (torch.int8, torch.uint8):
        return part, entry.place, entry.bits, entry.packed, dtype
    return part, dtype


def container_bytes(entries: Mapping[str, Entry]) -> int:
    """Of preamble and header, about."""
    return artifact_size(entries, Store(), META, HASH) - payload_bytes(entries)


def file_bytes(entries: Mapping[str, Entry], measure: Measure) -> int:
    """Of the whole file with these entries."""
    return container_bytes(entries) + round(sum(measure(entries)))


def total_entropy(entries: Mapping[str, Entry]) -> float:
    """Bits of all entries if integers took their entropy, tensor by tensor, and all else its bits as they are."""
    bits = 0.0
    for entry in entries.values():
        for part in entry.parts.values():
            if part.dtype == torch.int8 or (entry.packed and part.dtype == torch.uint8):
                integers = (
                    part.reshape(-1)
                    if part.dtype == torch.int8
                    else unpack_bits(part.reshape(-1), entry.bits, entry.numel)
                )
                counts = np.bincount(integers.numpy().view(np.uint8), minlength=256)
                counts = counts[counts > 0]
                bits += float((counts * np.log2(counts.sum() / counts)).sum())
            else:
                bits += 8 * part.numel() * part.element_size()
    return bits


def stored(entry: Entry, specs: Mapping[str, ParamSpec], quantizer: Quantizer, size: float) -> Stored:
    """An entry as the forecast has it."""
    spec, k = specs.get(entry.name), None
    if entry.scheme in ("per_row", LOW_RANK) and isinstance(quantizer, RowQuantizer):
        k = match_place(quantizer.k, entry.place) or quantizer.k.get("default")
        k = None if k is None else k * quantizer.times
    layer = None if spec is None else spec.layer
    return Stored(entry.name, entry.place, entry.role, layer, entry.numel, entry.bits, k, size)
