"""Which tensors deserve more bits: those whose rounding the loss would feel most, by gradients seen in training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from golf.common.errors import ConfigError
from golf.nn.params import ParamSpec
from golf.quant.rounding import check_bits


def bits_by_rank(
    sensitivity: Mapping[str, float],
    *,
    low_fraction: float,
    mid_fraction: float,
    bits: tuple[int, int, int],
    weights: Mapping[str, float] | None = None,
) -> dict[str, int]:
    """Bits a tensor from its place in the ascending order of `sensitivity`; equal values keep alphabetical order.

    With f in [0, 1] the place, f < low_fraction gets bits[0], f < mid_fraction bits[1], the rest bits[2]. Without
    `weights` f = rank / (n − 1); with them (parameter counts) f is the fraction of the total weight that lies before
    the tensor's middle.
    """
    ranked = sorted(sorted(sensitivity), key=lambda name: sensitivity[name])
    total = sum(weights[name] for name in ranked) if weights else 0.0
    before = 0.0
    result = {}
    for rank, name in enumerate(ranked):
        if weights:
            place = (before + weights[name] / 2) / total
            before += weights[name]
        else:
            place = rank / max(len(ranked) - 1, 1)
        result[name] = bits[0] if place < low_fraction else bits[1] if place < mid_fraction else bits[2]
    return result


class GradientGuidedBits:
    """Gives each tensor one of three neighbouring widths by how much its rounding should cost.

    low_fraction, mid_fraction: the least sensitive `low_fraction` of the ranking gets middle − 1 bits, up to
    `mid_fraction` it gets `middle`, the rest middle + 1; kept within lowest … highest.
    sensitivity: `gradient_times_error` (default) is mean |gradient| times the rms rounding error of the tensor at the
    middle width, a first-order estimate of what rounding one value costs; `raw_gradient` leaves the error out.
    fraction_of: the fractions count `params` (default, so that they predict bytes) or `tensors`.
    rank_passthrough: whether tensors that the quantizer keeps whole take places in the ranking (default: no).
    warmdown_only: gather only while the learning rate is below its base (default), not from the first step.
    fallback_edge_bits: when nothing was gathered, blocks but the first and last get `middle`, everything else this.
    Raises ConfigError for values out of range. Source: the GradQuant 11-layer record (pull request 422), which is
    `raw_gradient`, `tensors` and `rank_passthrough`.
    """

    def __init__(
        self,
        low_fraction: float = 0.15,
        mid_fraction: float = 0.55,
        middle: int = 6,
        lowest: int = 4,
        highest: int = 8,
        sensitivity: Literal["gradient_times_error", "raw_gradient"] = "gradient_times_error",
        fraction_of: Literal["params", "tensors"] = "params",
        rank_passthrough: bool = False,
        warmdown_only: bool = True,
        fallback_edge_bits: int = 8,
    ) -> None:
        if not 0.0 <= low_fraction <= mid_fraction <= 1.0:
            raise ConfigError(
                f"quant.allocation.low_fraction={low_fraction}, mid_fraction={mid_fraction}: "
                "need 0 ≤ low_fraction ≤ mid_fraction ≤ 1"
            )
        key = "quant.allocation"
        check_bits(f"{key}.lowest", lowest)
        check_bits(f"{key}.highest", highest)
        if not lowest <= check_bits(f"{key}.middle", middle) <= highest:
            raise ConfigError(f"{key}.middle={middle}: must lie between lowest={lowest} and highest={highest}")
        if sensitivity not in ("gradient_times_error", "raw_gradient"):
            raise ConfigError(f"{key}.sensitivity={sensitivity} (choices: gradient_times_error, raw_gradient)")
        if fraction_of not in ("params", "tensors"):
            raise ConfigError(f"quant.allocation.fraction_of={fraction_of} (choices: params, tensors)")
        self.low_fraction, self.mid_fraction = low_fraction, mid_fraction
        self.middle = middle
        self.bits = (max(middle - 1, lowest), middle, min(middle + 1, highest))
        self.sensitivity, self.fraction_of = sensitivity, fraction_of
        self.rank_passthrough, self.warmdown_only = rank_passthrough, warmdown_only
        self.fallback_edge_bits = check_bits("quant.allocation.fallback_edge_bits", fallback_edge_bits)
        self._names: tuple[str, ...] = ()
        self._numel: list[int] = []
        self._sums: Tensor | None = None

    def observe(self, named_grads: Iterable[tuple[str, Tensor]], lr_multiplier: float) -> None:
        """Add Σ|gradient| of every tensor of two or more dimensions: float32, on its device, without a host sync.

        Call once a step, after gradients were averaged over the ranks and before they are clipped.
        Raises ValueError when the set of names changes between steps.
        """
        if self.warmdown_only and lr_multiplier >= 1.0:
            return
        grads = {name: grad for name, grad in named_grads if grad.ndim >= 2}
        if not grads:
            return
        if self._sums is None:
            self._names = tuple(grads)
            self._numel = [grad.numel() for grad in grads.values()]
        elif self._names != tuple(grads):
            changed = sorted(set(self._names) ^ set(grads))
            raise ValueError(f"gradients observed under other names or another order than before: {changed[:3]}")
        step = torch.stack(torch._foreach_norm([grad.detach() for grad in grads.values()], 1, dtype=torch.float32))
        self._sums = step if self._sums is None else self._sums.to(step.device).add_(step)

    def mean_gradients(self) -> dict[str, float]:
        """The sum over observed steps of mean |gradient| by name; empty when nothing was observed. Syncs the device."""
        if self._sums is None:
            return {}
        sums = self._sums.tolist()
        return {name: total / numel for name, total, numel in zip(self._names, sums, self._numel, strict=True)}

    def recall(self, mean_gradients: Mapping[str, float], numel: Mapping[str, int]) -> None:
        """Take what an earlier run's `mean_gradients` were for gathered; `numel`: elements by name."""
        self._names = tuple(mean_gradients)
        self._numel = [numel[name] for name in self._names]
        self._sums = torch.tensor([mean_gradients[name] * numel[name] for name in self._names], dtype=torch.float32)

    def allocate(self, specs: Mapping[str, ParamSpec], rounding_error: Mapping[str, float]) -> dict[str, int]:
        """Bits by name for the tensors that will be quantized.

        specs: every parameter's; rounding_error: the rms rounding error at `middle` bits of each tensor that the
        quantizer does not pass through. Tensors never observed, or all when nothing was, follow the fallback rule.
        """
        edges = {0, max((spec.layer for spec in specs.values() if spec.layer is not None), default=0)}
        bits = {
            name: self.fallback_edge_bits if specs[name].layer in edges | {None} else self.middle
            for name in rounding_error
        }
        gradients = self.mean_gradients()
        ranked = {
            name: gradient if self.sensitivity == "raw_gradient" else gradient * rounding_error.get(name, 0.0)
            for name, gradient in gradients.items()
            if self.rank_passthrough or name in rounding_error
        }
        sizes = dict(zip(self._names, self._numel, strict=True)) if self.fraction_of == "params" else None
        chosen = bits_by_rank(
            ranked, low_fraction=self.low_fraction, mid_fraction=self.mid_fraction, bits=self.bits, weights=sizes
        )
        return bits | {name: chosen[name] for name in rounding_error if name in chosen}

    def state_dict(self) -> dict[str, Any]:
        """What was gathered so far, for a checkpoint: names, sizes and float32 sums."""
        sums = None if self._sums is None else self._sums.detach().cpu().clone()
        return {"names": list(self._names), "numel": list(self._numel), "sums": sums}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up where `state_dict` left off."""
        self._names, self._numel = tuple(state["names"]), [int(n) for n in state["numel"]]
        self._sums = None if state["sums"] is None else state["sums"].clone()
