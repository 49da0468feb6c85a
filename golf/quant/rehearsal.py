"""Quantization-aware training on the grid of the run's own quantizer, whatever that is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import Tensor

from golf.common.errors import ConfigError
from golf.nn.params import ParamSpec, Role


@runtime_checkable
class Rehearsed(Protocol):
    """What a quantizer has whose rounding training can see."""

    def rounding(self, spec: ParamSpec, weight: Tensor, times: float = 1.0) -> Callable[[Tensor], Tensor] | None:
        """What makes of float32 matrices [n, rows, in] of this place and shape the values that the artifact will hold;
        None where it keeps them whole. Equal, and hashable alike, for parameters that may be rounded together.

        times: how many times as wide steps are to be.
        """
        ...


class AsQuantized:
    """The forward sees every weight as the run's quantizer will round it: bits, scales and clipping by place.

    Only the choice of integers is left out, where the quantizer makes one (GPTQ): rounding is to the nearest. Masters
    stay float32, and an average is one of masters. Gradients pass straight through, to values beyond the grid's end as
    well: they are few, or none where bits grow to hold them, and with none of its own a clipped value would never come
    back.

    roles: what is rounded of that, null: all that a forward multiplies by or looks up once a step (matrices, embedding,
    head). times: how many times as wide steps are as the quantizer's settings say: what `quant.fit` is to come to
    (`quantization.times` of an earlier run's result.json). Raises ConfigError.
    Source: Bengio et al. 2013 (straight-through).
    """

    compiles = True

    def __init__(self, roles: list[Role] | None = None, times: float = 1.0) -> None:
        if not 0 < times < math.inf:
            raise ConfigError(f"qat.times={times}: must be more than 0")
        self.roles, self.times = roles, times
        self._quantizer: Rehearsed | None = None
        self._found: dict[object, Callable[[Tensor], Tensor] | None] = {}

    def follow(self, quantizer: object) -> None:
        """Round as this quantizer does. Raises ConfigError for one that cannot say how."""
        if not isinstance(quantizer, Rehearsed):
            raise ConfigError(
                f"qat=quant: {type(quantizer).__name__} does not say how it rounds (a method `rounding`, as "
                "golf.quant.rehearsal.Rehearsed has it)\nqat=int6 or qat=none does without"
            )
        self._quantizer, self._found = quantizer, {}

    def covers(self, spec: ParamSpec, weight: Tensor) -> bool:
        """Whether the quantizer rounds this parameter."""
        return (self.roles is None or spec.role in self.roles) and self._of(spec, weight) is not None

    def rounding_of(self, spec: ParamSpec, weight: Tensor) -> Callable[[Tensor], Tensor]:
        """What rounds a parameter that is covered."""
        found = self._of(spec, weight)
        assert found is not None
        return found

    def _of(self, spec: ParamSpec, weight: Tensor) -> Callable[[Tensor], Tensor] | None:
        assert self._quantizer is not None, "follow comes first"
        if (key := (spec, weight.shape)) not in self._found:
            self._found[key] = self._quantizer.rounding(spec, weight, self.times)
        return self._found[key]
