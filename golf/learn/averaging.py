"""Averages of the weights along training: none, SWA (a mean of checkpoints) and EMA (an exponential mean)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from operator import is_not
from typing import Literal, Protocol

import torch
from torch import Tensor

from golf.common.errors import ArtifactError
from golf.common.progress import Progress
from golf.learn.budget import Horizons
from golf.learn.checks import require
from golf.nn.live import alike


class Averaging(Protocol):
    """What the trainer asks of an averaging component."""

    reason: str | None
    """Why `average` gave None: a line to log, or None when there is nothing to say."""

    def horizons(self) -> Horizons:
        """Its record-scale settings that count steps."""

    def rescale(self, scaled: Horizons) -> None:
        """Adopt the scaled settings."""

    def attach(self, named_tensors: Mapping[str, Tensor]) -> None:
        """Follow these live tensors from now on; call it once the compile warm-up has been undone.

        Ask for them by name at each update: a module may have put another tensor in the place of one.
        """

    def update(self, step: int, lr_multiplier: float) -> None:
        """Look at the weights after an update; `step` counts completed steps, the multiplier is the one it used."""

    def average(self) -> dict[str, Tensor] | None:
        """The average as new tensors of the weights' dtypes, or None (then `reason` says why): use the raw weights.

        What is no floating-point number is the present one, as is a tensor that has come or changed its kind meanwhile.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """The live state as flat named tensors."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` gave. Raises ArtifactError if it does not fit."""


class NoAveraging:
    """The raw weights are the result."""

    reason: str | None = None

    def horizons(self) -> Horizons:
        """None."""
        return {}

    def rescale(self, scaled: Horizons) -> None:
        """Nothing to scale."""

    def attach(self, named_tensors: Mapping[str, Tensor]) -> None:
        """Nothing to follow."""

    def update(self, step: int, lr_multiplier: float) -> None:
        """Nothing to collect."""

    def average(self) -> dict[str, Tensor] | None:
        """None."""
        return None

    def state_dict(self) -> dict[str, Tensor]:
        """Empty."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Accepts the empty state only."""
        _fitting("", state, {})


class _Late:
    """When collecting begins: from a fraction of the run on, or once the lr multiplier is below a number."""

    start_multiplier: float | None
    start_frac: float | None
    fraction = 0.0
    """Of the run, before the step whose update is looked at; told anew before each, so that no state keeps it."""

    def at_step(self, progress: Progress) -> None:
        """Note how far the run is."""
        self.fraction = progress.fraction

    def _has_begun(self, lr_multiplier: float) -> bool:
        """Whether to collect after an update that used this multiplier."""
        if self.start_frac is not None:
            return self.fraction >= self.start_frac
        return self.start_multiplier is None or lr_multiplier < self.start_multiplier

    @property
    def awaited(self) -> str:
        """What collecting waits for, in words."""
        if self.start_frac is not None:
            return f"{100 * self.start_frac:g} % of the run"
        return f"an lr multiplier below {self.start_multiplier}"


class SWA(_Late):
    """The plain mean of the weights at every `every`-th step whose multiplier was below `start_multiplier`.

    start_frac: collect from this fraction of the run on instead, whatever the multiplier is.
    min_collected: with fewer checkpoints the raw weights are used. native_dtypes: sum and divide in each weight's own
    dtype, as the record did (its bf16 embedding loses late checkpoints to rounding); False sums in fp32.
    store: where the sums are held; `cpu` saves device memory, at the price of waiting for the device at each copy.
    Raises ConfigError for settings out of range. Source: sp2048 NorMuon int6 record; Izmailov et al. 2018.
    """

    def __init__(
        self,
        start_multiplier: float = 0.5,
        every: int = 200,
        min_collected: int = 2,
        native_dtypes: bool = True,
        store: Literal["device", "cpu"] = "device",
        start_frac: float | None = None,
    ) -> None:
        _require_fraction(start_frac)
        require(start_multiplier > 0.0, "averaging.start_multiplier", start_multiplier, "more than 0")
        require(every >= 1, "averaging.every", every, "at least 1")
        require(min_collected >= 1, "averaging.min_collected", min_collected, "at least 1")
        require(store in ("device", "cpu"), "averaging.store", store, "device or cpu")
        self.start_multiplier, self.start_frac = start_multiplier, start_frac
        self.every = every
        self.min_collected = min_collected
        self.native_dtypes = native_dtypes
        self.store = store
        self.count = 0
        self.reason: str | None = None
        self._weights: Mapping[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}

    def horizons(self) -> Horizons:
        """The record-scale interval."""
        return {"swa_every": self.every}

    def rescale(self, scaled: Horizons) -> None:
        """Adopt the scaled interval."""
        self.every = int(scaled["swa_every"] or 1)

    def attach(self, named_tensors: Mapping[str, Tensor]) -> None:
        """Follow these live tensors; nothing is collected yet."""
        self._weights = named_tensors
        self._sums = {}
        self.count = 0

    @torch.no_grad()
    def update(self, step: int, lr_multiplier: float) -> None:
        """Add the weights to the sums if `step` (completed steps) is one to collect."""
        if not self._has_begun(lr_multiplier) or step % self.every:
            return
        now = {name: self._held(weight, self.count == 0) for name, weight in _averaged(self._weights).items()}
        if self.count:  # what has come or changed its kind since the first is not averaged
            now = {name: w for name, w in now.items() if name in self._sums and alike(w, self._sums[name])}
            self._sums = {name: self._sums[name] for name in now}
            torch._foreach_add_(list(self._sums.values()), list(now.values()))
        else:
            self._sums = now
        self.count += 1

    def _held(self, weight: Tensor, copy: bool) -> Tensor:
        """A weight in the dtype and on the device of its sum."""
        dtype = weight.dtype if self.native_dtypes else torch.float32
        device = torch.device("cpu") if self.store == "cpu" else weight.device
        return weight.detach().to(device, dtype, copy=copy)

    @torch.no_grad()
    def average(self) -> dict[str, Tensor] | None:
        """The mean, in the weights' dtypes and on their devices; None below `min_collected`."""
        if self.count < self.min_collected:
            self.reason = (
                f"SWA collected {self.count} checkpoints, fewer than min_collected={self.min_collected}: "
                f"the raw weights are used (it takes every {self.every}th step from {self.awaited} on)"
            )
            return None
        self.reason = None
        return {
            name: (self._sums[name] / self.count).to(weight.device, weight.dtype)
            if name in self._sums and weight.shape == self._sums[name].shape
            else weight.detach().clone()
            for name, weight in self._weights.items()
        }

    def state_dict(self) -> dict[str, Tensor]:
        """`count` (int64, 0-dim) and `sum/NAME`."""
        return {"count": torch.tensor(self.count), **{f"sum/{name}": total for name, total in self._sums.items()}}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy sums and count in. Raises ArtifactError if they don't fit the weights."""
        sums = {key: tensor for key, tensor in state.items() if key != "count"}
        fit = _fitting("sum/", sums, self._weights)
        if "count" not in state or bool(sums) != bool(int(state["count"])):
            raise ArtifactError("averaging state does not fit the weights: it has no count, or one without its sums")
        self.count = int(state["count"])
        self._sums = {name: self._held(self._weights[name], copy=True).copy_(total) for name, total in fit.items()}


class EMA(_Late):
    """An fp32 shadow of the weights, s ← decay·s + (1 − decay)·w after every step; no bias correction.

    update_every: only after each such step, with decay^update_every: the same memory for fewer passes over the weights.
    start_multiplier: None starts at the weights when attached; a number starts at the weights of the first step whose
    multiplier is below it. start_frac: of the first step at or behind this fraction of the run instead.
    Raises ConfigError for a decay outside (0, 1) and other settings out of range. Source: GradQuant 11L record.
    """

    def __init__(
        self,
        decay: float = 0.997,
        start_multiplier: float | None = None,
        start_frac: float | None = None,
        update_every: int = 1,
    ) -> None:
        _require_fraction(start_frac)
        require(update_every >= 1, "averaging.update_every", update_every, "at least 1")
        require(0.0 < decay < 1.0, "averaging.decay", decay, "between 0 and 1, both excluded")
        if start_multiplier is not None:
            require(start_multiplier > 0.0, "averaging.start_multiplier", start_multiplier, "more than 0, or null")
        self.decay, self.update_every = decay, update_every
        self.start_multiplier, self.start_frac = start_multiplier, start_frac
        self.reason: str | None = None
        self._weights: Mapping[str, Tensor] = {}
        self._shadow: dict[str, Tensor] = {}
        self._followed: list[Tensor | None] = []
        self._getters: list[Callable[[], Tensor | None]] = []
        self._by_dtype: list[tuple[list[Tensor], list[Tensor]]] = []

    def horizons(self) -> Horizons:
        """The record-scale decay and interval."""
        return {"ema_decay": self.decay, "ema_update_every": self.update_every}

    def rescale(self, scaled: Horizons) -> None:
        """Adopt the scaled decay and interval."""
        decay = scaled["ema_decay"]
        assert decay is not None
        self.decay = decay  # 0, the weights themselves, is what a long memory shrinks to in a very short run
        self.update_every = int(scaled["ema_update_every"] or 1)

    def attach(self, named_tensors: Mapping[str, Tensor]) -> None:
        """Follow these live tensors; unless it starts later the shadow begins as a copy of them."""
        self._weights = named_tensors
        self._shadow, self._followed, self._by_dtype = {}, [], []
        if self.start_multiplier is None and self.start_frac is None:
            self._start()

    def _start(self) -> None:
        self._shadow = {name: _wide(weight) for name, weight in _averaged(self._weights).items()}
        self._follow([self._weights.get(name) for name in self._shadow])

    def _follow(self, now: list[Tensor | None]) -> None:
        """From now on these tensors, in the shadow's order: one of another kind begins anew, one that is gone is left
        out."""
        known = {name: w for name, w in zip(self._shadow, now, strict=True) if w is not None and w.is_floating_point()}
        self._shadow = {
            name: s if (s := self._shadow[name]).shape == w.shape and s.device == w.device else _wide(w)
            for name, w in known.items()
        }
        self._followed = list(known.values())
        getter = getattr(self._weights, "getter", None) or (lambda name: partial(self._weights.get, name))
        self._getters = [getter(name) for name in known]
        groups: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for name, weight in known.items():
            # one mixed dtype in a list would send all of it down foreach's slow path
            shadows, weights = groups.setdefault(weight.dtype, ([], []))
            shadows.append(self._shadow[name])
            weights.append(weight)
        self._by_dtype = list(groups.values())

    @torch.no_grad()
    def update(self, step: int, lr_multiplier: float) -> None:
        """Move the shadow toward the weights."""
        if not self._shadow:
            if self._has_begun(lr_multiplier):
                self._start()
            return
        if step % self.update_every:
            return
        now = [get() for get in self._getters]
        if any(map(is_not, now, self._followed)):
            self._follow(now)
        decay = self.decay**self.update_every
        for shadows, weights in self._by_dtype:
            torch._foreach_mul_(shadows, decay)
            torch._foreach_add_(shadows, weights, alpha=1.0 - decay)

    def average(self) -> dict[str, Tensor] | None:
        """The shadow in the weights' dtypes; None if it never started."""
        if not self._shadow:
            self.reason = f"EMA never started (it waits for {self.awaited}): the raw weights are used"
            return None
        self.reason = None
        return {
            name: self._shadow[name].to(weight.dtype, copy=True)
            if name in self._shadow and weight.shape == self._shadow[name].shape
            else weight.detach().clone()
            for name, weight in self._weights.items()
        }

    def state_dict(self) -> dict[str, Tensor]:
        """`shadow/NAME`, fp32; empty before the start."""
        return {f"shadow/{name}": shadow for name, shadow in self._shadow.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy the shadow in. Raises ArtifactError if it does not fit the weights."""
        fit = _fitting("shadow/", state, self._weights)
        self._shadow = {name: _wide(self._weights[name]).copy_(shadow) for name, shadow in fit.items()}
        self._follow([self._weights.get(name) for name in self._shadow])


def _require_fraction(start_frac: float | None) -> None:
    require(start_frac is None or 0.0 <= start_frac < 1.0, "averaging.start_frac", start_frac, "in [0, 1), or null")


def _averaged(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those that have a mean: counts and flags have none."""
    return {name: weight for name, weight in weights.items() if weight.is_floating_point()}


def _wide(weight: Tensor) -> Tensor:
    return weight.detach().to(torch.float32, copy=True)


def _fitting(kind: str, state: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state's tensors by the weights' names: of all parameters, or none; buffers may have come since it was taken.

    Raises ArtifactError for others, and for other shapes.
    """
    present = {f"{kind}{name}": name for name in _averaged(weights)}
    needed = {key for key, name in present.items() if state and isinstance(weights[name], torch.nn.Parameter)}
    odd = sorted((state.keys() - present.keys()) | (needed - state.keys()))
    odd += sorted(key for key in state.keys() & present.keys() if state[key].shape != weights[present[key]].shape)
    if odd:
        raise ArtifactError(f"averaging state does not fit the weights: {len(odd)} entries differ, first {odd[0]}")
    return {name: state[key] for key, name in present.items() if key in state}
