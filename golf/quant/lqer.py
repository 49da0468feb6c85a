"""The settings of LQER, which gives the matrices that rounding cost most a part of it back (golf.quant.correction)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from golf.common.errors import ConfigError
from golf.quant.rounding import check_bits


@dataclass(frozen=True)
class LowRank:
    """For the `tensors` matrices with the largest ‖W − Ŵ‖, Ŵ + A B in place of Ŵ: the best A [out, rank], B [rank, in].

    A's integers have one scale, B's one for each `group` inputs of a row (or somewhat fewer, all alike); each scale is
    the largest magnitude by 2^(bits−1) − ½, so that the lowest integer has no counterpart. by: `values` measures W − Ŵ;
    `inputs` (W − Ŵ) X, where a quantizer has watched inputs X: what GPTQ leaves over is largest where X is small, and a
    correction by values spends itself there. A matrix that is not brought nearer stays as it was: in what it makes of X
    wherever that is known.
    Raises ConfigError for values out of range. Source: Zhang et al. 2024 (LQER; by inputs, their L²QER); this form, by
    values, from pull request 1797.
    """

    tensors: int = 0
    rank: int = 4
    group: int = 64
    a_bits: int = 2
    b_bits: int = 4
    by: Literal["values", "inputs"] = "values"

    def __post_init__(self) -> None:
        for key, value, least in (("tensors", self.tensors, 0), ("rank", self.rank, 1), ("group", self.group, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(f"quant.lqer.{key}={value}: must be a whole number of at least {least}")
        check_bits("quant.lqer.a_bits", self.a_bits)
        check_bits("quant.lqer.b_bits", self.b_bits)
        if self.by not in ("values", "inputs"):
            raise ConfigError(f"quant.lqer.by={self.by} (choices: values, inputs)")
