"""GPTQ: a matrix is rounded input by input, and the inputs to come make good what those before have lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from golf.common.errors import ArtifactError, ConfigError
from golf.common.log import logger
from golf.nn.params import ParamSpec
from golf.quant.calibration import Trained
from golf.quant.entry import Entry, dequantize
from golf.quant.lqer import LowRank
from golf.quant.rounding import as_stored, levels, round_to_grid
from golf.quant.rowwise import KeptDtype, RowQuantizer
from golf.quant.spread import COARSER, costs, frequency_multipliers, multipliers

Nearest = Callable[[Tensor], tuple[Tensor, Tensor]]
"""The integers, int8, for a column [out, 1], and the values that they stand for."""


class GPTQ(RowQuantizer):
    """Rows on a grid as RowQuantizer has it, with integers that keep W X rather than W.

    What W loses at one input is spread over those still to come, by the inverse of H = XᵀX + damping · mean(diag) · I,
    where X are the inputs that each matrix reads in training text; for a tied embedding, what the head reads. Only the
    integers differ from rounding: scales, bits and what is kept whole are as there.

    windows: of training text, of train_seq_len tokens each, over all ranks; 0: rounding to the nearest, which is what
    training has seen that rounds (`qat=quant`). damping: a part of H's mean diagonal.
    block: inputs between two updates of all the rest. act_order: the inputs with most energy first. sequential: the
    matrices of a layer are given inputs from layers that are quantized already, which takes a pass a layer.
    spread: by `place` or by `tensor`, k follows what rounding costs (golf.quant.spread), tried on `spread_windows` of
    text, a forward each; the bytes stay as they are. None: k as it is given.
    by_frequency: the steps of a token's row, in the embedding and the head, go with how often training text has the
    token, to the power of minus this; their bits stay as they are. 0: the same for all.
    reserve_s: seconds of a record's training clock that are kept free for reading the text.
    Raises ConfigError for values out of range. Source: Frantar et al. 2022 (GPTQ); Parameter Golf from pull request
    1019 on.
    """

    def __init__(
        self,
        windows: int = 128,
        damping: float = 0.01,
        block: int = 128,
        act_order: bool = True,
        sequential: bool = False,
        spread: Literal["place", "tensor"] | None = None,
        spread_windows: int = 32,
        by_frequency: float = 0.0,
        reserve_s: float = 4.0,
        bits: int | dict[str, int] = 6,
        pack: bool = False,
        clip_percentile: float = 1.0,
        k: float | dict[str, float] | None = None,
        scale_floor: bool = False,
        passthrough_numel: int = 65_536,
        small: dict[str, KeptDtype] | None = None,
        keep: dict[str, KeptDtype] | None = None,
        fit: int | None = None,
        lqer: LowRank | None = None,
        trellis: int = 0,
    ) -> None:
        super().__init__(
            bits, pack, clip_percentile, scale_floor, passthrough_numel, small, keep, k=k, fit=fit, lqer=lqer,
            trellis=trellis,
        )  # fmt: skip
        for key, value, least in (
            ("windows", windows, 0), ("block", block, 1), ("reserve_s", reserve_s, 0),
            ("spread_windows", spread_windows, 1),
        ):  # fmt: skip
            if value < least:
                raise ConfigError(f"quant.{key}={value}: must be at least {least}")
        if not damping > 0:
            raise ConfigError(f"quant.damping={damping}: must be more than 0")
        self.windows, self.damping, self.block, self.act_order = windows, damping, block, act_order
        if not 0 <= by_frequency <= 1:
            raise ConfigError(f"quant.by_frequency={by_frequency}: must be from 0 to 1")
        self.by_frequency = by_frequency
        self.sequential, self.reserve_s = sequential, reserve_s if windows or spread or by_frequency else 0.0
        self.spread, self.spread_windows = spread, spread_windows
        if spread is not None and not self.k:
            raise ConfigError(f"quant.spread={spread}: needs quant.k, which it multiplies")
        if not windows and self.lqer.by == "inputs":
            raise ConfigError("quant.lqer.by=inputs: needs inputs that were seen, quant.windows=128")
        self.hessians: dict[str, Tensor] = {}

    def calibrate(self, trained: Trained) -> None:
        """Gather what each matrix reads. On every rank the same sums."""
        self.times_by_name = {}
        if self.spread is not None:
            coarsely = partial(self._coarsely, specs=trained.specs)
            self.times_by_name = multipliers(costs(trained, self.spread_windows, self.spread, coarsely))
        if self.by_frequency:
            times = frequency_multipliers(trained.counts(), self.by_frequency)
            for name, spec in trained.specs.items():
                if spec.role in ("embed", "head") and len(trained.model.get_parameter(name)) == len(times):
                    self.times_by_name = {**self.times_by_name, name: times * self.times_by_name.get(name, 1.0)}
        if not self.windows:
            return
        if not self.sequential:
            self.hessians = trained.hessians(trained.batches(self.windows))
            return
        specs = trained.specs
        parameters = dict(trained.model.named_parameters())
        stages: dict[int, list[str]] = {}
        for name, spec in specs.items():
            last = trained.model.shape.num_layers  # what lies outside the layers reads what comes out of them
            stages.setdefault(last if spec.layer is None else spec.layer, []).append(name)
        for _, names in sorted(stages.items()):
            found = trained.hessians(trained.batches(self.windows))
            self.hessians |= {name: found[name] for name in names if name in found}
            state = {name: parameters[name].detach() for name in names if name in found}
            with torch.no_grad():
                for name, entry in self.rounded(state, specs).items():
                    parameters[name].copy_(dequantize(entry))

    def _coarsely(self, state: Mapping[str, Tensor], specs: Mapping[str, ParamSpec]) -> dict[str, Entry]:
        own, self.times = self.times, self.times * COARSER
        try:
            with self._nearest():
                return self.rounded(state, specs)
        finally:
            self.times = own

    def facts(self) -> dict[str, Any]:
        """As RowQuantizer's, with `times_by_name` where k was spread."""
        times = {name: float(torch.as_tensor(one).log().mean().exp()) for name, one in self.times_by_name.items()}
        return {**super().facts(), **({"times_by_name": times} if times else {})}

    def moments(self, name: str) -> Tensor | None:
        """As RowQuantizer's: those that were gathered."""
        return self.hessians.get(name)

    def factor(self, name: str) -> Tensor:
        """As RowQuantizer's, damped as rounding has it. Raises ArtifactError for what has none."""
        return self._factor(name, act_order=False)[0]

    def _factor(self, name: str, act_order: bool) -> tuple[Tensor, Tensor]:
        try:
            return inverse_factor(self.hessians[name], self.damping, act_order)
        except ValueError as error:
            raise ArtifactError(
                f"tensor {name}: its inputs' second moments are not usable for GPTQ ({error})"
            ) from None

    def integers(self, name: str, values: Tensor, clip: Tensor, scale: Tensor, bits: int) -> Tensor:
        """int8 integers of a matrix that was calibrated; of any other tensor the nearest."""
        if self._drafting or not self._watched(name, values):
            return super().integers(name, values, clip, scale, bits)
        device = self.hessians[name].device
        clip, kept = clip.to(device), as_stored(scale).to(device)

        def nearest(column: Tensor) -> tuple[Tensor, Tensor]:
            q = round_to_grid(column, clip, kept, bits)
            return q, q * kept

        return self._made_good(name, values, nearest)

    def along_trellis(self, name: str, values: Tensor, scale: Tensor, bits: int) -> Tensor:
        """As RowQuantizer's, column by column where the matrix was calibrated."""
        from golf.quant.trellis import nearest_path  # its code counts where it is used

        if not self._watched(name, values):
            return super().along_trellis(name, values, scale, bits)
        scale = scale.to(self.hessians[name].device)

        def nearest(column: Tensor) -> tuple[Tensor, Tensor]:
            q, steps = nearest_path(column / scale, levels(bits), self.trellis)
            return q, steps * scale

        return self._made_good(name, values, nearest)

    def _watched(self, name: str, values: Tensor) -> bool:
        h = self.hessians.get(name)
        return h is not None and values.ndim == 2 and h.shape[0] == values.shape[1]

    def _made_good(self, name: str, values: Tensor, nearest: Nearest) -> Tensor:
        inverse, order = self._factor(name, self.act_order)
        return gptq(values.to(inverse.device), nearest, inverse, order, self.block).cpu()


def inverse_factor(h: Tensor, damping: float, act_order: bool) -> tuple[Tensor, Tensor]:
    """The upper Cholesky factor of H⁻¹, [in, in] float32, and the order in which inputs are rounded, [in].

    h: XᵀX float32. An input that was never seen counts as one of its own, with the mean of the others' energies, so
    that the unit of X does not matter. Worked out in float64; where H is singular in spite of the damping, with ten
    times as much, up to the mean itself. Raises ValueError.
    """
    wide = h.double()
    diagonal = wide.diagonal()
    dead = diagonal <= 0
    mean = diagonal.sum() / (~dead).sum() if not bool(dead.all()) else 1.0
    wide = wide + torch.diag(dead * mean)
    order = torch.argsort(wide.diagonal(), descending=True, stable=True)
    if not act_order:
        order = torch.arange(len(h), device=h.device)
    wide = wide[order][:, order]
    unit = wide.diagonal().mean() * torch.eye(len(h), device=h.device, dtype=torch.float64)
    part = damping
    while part <= max(1.0, damping):
        factor, failed = torch.linalg.cholesky_ex(wide + part * unit)
        if not bool(failed) and bool(factor.isfinite().all()):
            if part > damping:
                logger.info("GPTQ: a damping of %g was needed", part)
            return torch.linalg.cholesky(torch.cholesky_inverse(factor), upper=True).float(), order
        part *= 10
    raise ValueError("not positive definite, or not finite")


def gptq(values: Tensor, nearest: Nearest, inverse: Tensor, order: Tensor, block: int) -> Tensor:
    """int8 integers [out, in] for `values` float32 [out, in], each column by `nearest`.

    inverse: the upper factor U of H⁻¹ in `order`. For input j, e = (w_j − ŵ_j) / U_jj is taken off the inputs after it
    in proportion to U_j: within a block of inputs at once, beyond it block by block.
    """
    left, chosen = values[:, order].clone(), torch.empty_like(values, dtype=torch.int8)
    size = left.shape[1]
    for low in range(0, size, block):
        high = min(low + block, size)
        part, factor = left[:, low:high].clone(), inverse[low:high, low:high]
        lost = torch.empty_like(part)
        for j in range(high - low):
            column = part[:, j : j + 1]
            q, stored = nearest(column)
            chosen[:, low + j] = q[:, 0]
            lost[:, j : j + 1] = (column - stored) / factor[j, j]
            part[:, j + 1 :].addr_(lost[:, j], factor[j, j + 1 :], alpha=-1)
        left[:, high:].addmm_(lost, inverse[low:high, high:], alpha=-1)
    result = torch.empty_like(chosen)
    result[:, order] = chosen
    return result
