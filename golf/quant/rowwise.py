"""Rounding to 2–8 bits by row, with a policy by each parameter's declared place, role and size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from golf.common.errors import ArtifactError, ConfigError
from golf.nn.params import ParamSpec, Role
from golf.quant.allocation import GradientGuidedBits
from golf.quant.entry import TRELLIS, Entry, dequantize, pack_bits
from golf.quant.grid import Grid, bits_of
from golf.quant.lqer import LowRank
from golf.quant.quantizer import Calibrates, Quantizer
from golf.quant.rounding import (
    CLIP_PERCENTILE,
    as_stored,
    check_bits,
    check_percentile,
    clip_values,
    levels,
    round_to_grid,
)

KeptDtype = Literal["float16", "bfloat16", "float32"]
_DTYPES: dict[str, torch.dtype] = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def match_place(policy: Mapping[str, Any], place: str) -> Any | None:
    """The policy's value for a place: an exact key, else the longest matching pattern (`mlp.*`), else None."""
    if place in policy:
        return policy[place]
    patterns = [pattern for pattern in policy if fnmatchcase(place, pattern)]
    return policy[max(patterns, key=len)] if patterns else None


class RowQuantizer(Quantizer):
    """Symmetric rounding with one scale a row (2-D) or a tensor (other shapes); small or chosen tensors are kept whole.

    bits: 2–8, one number or by place (`{default: 6, embed: 8, mlp.*: 5}`): an exact place, else the longest pattern.
    pack: store a true bit stream of `bits` a value (below 8) instead of a byte a value.
    clip_percentile: quantile of |w| in a row that becomes the largest level.
    k: instead, the largest level is k standard deviations of the row, one number or by place (`{attn.*: 13}`; places
        that it leaves out, with no `default`, go by clip_percentile). A row's integers then have a spread of
        (2^(bits−1) − 1) / k steps whatever its scale, which settles what a codec makes of them (`coded_bits`); values
        beyond the grid take a tensor more bits, up to 8, and a row that a byte does not reach wider steps, unless it is
        packed.
    fit: bytes that artifact and code may take together: k, which it needs, is multiplied by what fills them
        (golf.quant.fit). Packed bits would take the same at any k, and cannot be fitted.
    scale_floor: without k, no row's scale is below 1 / (2^(bits−1) − 1), so rows whose largest value is under 1 share
        one grid: coarser than it could be, and much more compressible, as the records have it.
    passthrough_numel: tensors of at most so many values are kept whole, in the dtype that `small` gives their role.
    small: dtype by role of those, `default` for the other roles; scalars stay float32 and the rest becomes float16.
    keep: places or patterns kept whole whatever their size: `{embed: float16}`.
    allocation: chooses bits by tensor from gradients seen in training; it then takes the place of `bits`.
    lqer: gives some of what rounding lost back to the matrices that it cost most.
    trellis: states of a code that moves each value's grid by half a step or not (golf.quant.trellis): as many bits, and
        squared errors of matrices 1.0 to 1.1 dB smaller. 0: none.

    `integers` are computed with the float32 scale, and stored next to its float16 rounding. Raises ConfigError for
    values out of range. Source: the naive baseline's int8 export; pull requests 122 (int6, packed), 422 (5 to 7 bits),
    1394 (k).
    """

    def __init__(
        self,
        bits: int | dict[str, int] = 8,
        pack: bool = False,
        clip_percentile: float = CLIP_PERCENTILE,
        scale_floor: bool = True,
        passthrough_numel: int = 65_536,
        small: dict[str, KeptDtype] | None = None,
        keep: dict[str, KeptDtype] | None = None,
        allocation: GradientGuidedBits | None = None,
        k: float | dict[str, float] | None = None,
        fit: int | None = None,
        lqer: LowRank | None = None,
        trellis: int = 0,
    ) -> None:
        policy = dict(bits) if isinstance(bits, Mapping) else {"default": bits}
        if "default" not in policy:
            raise ConfigError(f"quant.bits={policy}: a table of bits by place needs the key 'default'")
        for place, width in policy.items():
            check_bits(f"bits.{place}" if isinstance(bits, Mapping) else "bits", width)
        if fit is not None and not k:
            raise ConfigError(
                f"quant.fit={fit}: needs quant.k, which it multiplies (quant.k=12.85, as quant=int6_gptq has), "
                "or quant.fit=null"
            )
        if fit is not None and pack:
            raise ConfigError(
                f"quant.fit={fit}: needs quant.pack=false, since packed bits take the same at any k, or quant.fit=null"
            )
        if fit is not None and fit <= 0:
            raise ConfigError(f"quant.fit={fit}: must be more than 0 bytes, or null")
        self.fit, self.times = fit, 1.0
        self.times_by_name: Mapping[str, float | Tensor] = {}
        """Of matrices whose steps are wider than their place's, or narrower: one number, or one for each row."""
        if trellis:
            from golf.quant.trellis import ready  # its code counts where it is used

            ready(trellis)
        self.trellis, self._drafting = trellis, False
        if passthrough_numel < 0:
            raise ConfigError(f"quant.passthrough_numel={passthrough_numel}: must not be negative")
        self.bits: dict[str, int] = policy
        self.pack, self.scale_floor, self.passthrough_numel = pack, scale_floor, passthrough_numel
        self.k: dict[str, float] = dict(k) if isinstance(k, Mapping) else {} if k is None else {"default": k}
        for place, sigmas in self.k.items():
            if not 0 < sigmas < math.inf:
                raise ConfigError(f"quant.k={sigmas} ({place}): must be more than 0 standard deviations")
        self.clip_percentile = check_percentile("quant.clip_percentile", clip_percentile)
        self.small: dict[str, KeptDtype] = {"default": "float16", "scalar": "float32", **(small or {})}
        self.keep: dict[str, KeptDtype] = dict(keep or {})
        if isinstance(allocation, Mapping):
            raise ConfigError(
                f"quant.allocation={dict(allocation)}: settings of an allocation that the chosen option leaves out "
                "(quant=gradguided has one; quant.allocation=null drops them)"
            )
        self.allocation = allocation
        self.lqer = lqer or LowRank()
        if self.lqer.tensors:
            from golf.quant.correction import corrected  # its code counts where it is used

            self.corrected = corrected
        self.left: dict[str, float] = {}
        """Of the squared errors that were corrected, by name, the part that is left."""
        if self.lqer.by == "inputs" and not isinstance(self, Calibrates):
            raise ConfigError(
                "quant.lqer.by=inputs: needs a quantizer that watches inputs (quant=int6_gptq); "
                "quant.lqer.by=values does without"
            )
        for key, table in (("small", self.small), ("keep", self.keep)):
            for name, dtype in table.items():
                if dtype not in _DTYPES:
                    raise ConfigError(f"quant.{key}.{name}={dtype} (choices: {', '.join(_DTYPES)})")
        for role in self.small:
            if role not in ("default", *get_args(Role)):
                raise ConfigError(f"quant.small.{role}: not a role (choices: default, {', '.join(get_args(Role))})")

    @property
    def observes_gradients(self) -> bool:
        """Whether training should call `observe` each step."""
        return self.allocation is not None

    def observe(self, named_grads: Iterable[tuple[str, Tensor]], lr_multiplier: float) -> None:
        """Pass the step's gradients (averaged over ranks, not yet clipped) to the bit allocation, if there is one."""
        if self.allocation is not None:
            self.allocation.observe(named_grads, lr_multiplier)

    def facts(self) -> dict[str, Any]:
        """What the bits were chosen by, for the run record: `mean_gradient` by name, where gradients chose them; and
        by name, under `lqer`, the part of the squared error that a correction leaves."""
        gradients = {} if self.allocation is None else {"mean_gradient": self.allocation.mean_gradients()}
        fitted = {} if self.fit is None else {"times": self.times}
        return {**gradients, **fitted, **({"lqer": self.left} if self.left else {})}

    def recall(self, facts: Mapping[str, Any], state: Mapping[str, Tensor]) -> bool:
        """Choose bits by the `facts` of the run that trained `state`; false when they don't say what gradients did."""
        gradients = facts.get("mean_gradient") or {}
        if self.allocation is None or not gradients or not gradients.keys() <= state.keys():
            return False
        self.allocation.recall(gradients, {name: state[name].numel() for name in gradients})
        return True

    def kept_dtype(self, tensor: Tensor, spec: ParamSpec) -> torch.dtype | None:
        """The dtype that a tensor is kept whole in, or None when it is quantized. Float16 is never widened."""
        name = match_place(self.keep, spec.place)
        if name is None and tensor.numel() <= self.passthrough_numel:
            name = self.small.get(spec.role, self.small["default"])
        if name is None:
            return None
        return torch.float16 if tensor.dtype == torch.float16 else _DTYPES[name]

    def quantize(
        self, state: Mapping[str, Tensor], specs: Mapping[str, ParamSpec], bits: Mapping[str, int] | None = None
    ) -> dict[str, Entry]:
        """Store every tensor of `state`, in its order, and correct those that `lqer` is for.

        state: tensors by state_dict name; those without a spec (buffers) and those that are not floating are stored as
        they are. specs: each parameter's place and role. bits: widths by name that replace the policy's.
        Raises ArtifactError for values that are not finite, or that float16 cannot hold.
        """
        entries = self.rounded(state, specs, bits)
        self.left = {}
        if self.lqer.tensors:
            entries, self.left = self.corrected(self.lqer, entries, state, self.moments, self.factor)
        return entries

    def rounded(
        self, state: Mapping[str, Tensor], specs: Mapping[str, ParamSpec], bits: Mapping[str, int] | None = None
    ) -> dict[str, Entry]:
        """As `quantize`, without corrections."""
        if bits is None and self.allocation is not None:
            bits = self.allocation.allocate(specs, self.rounding_errors(state, specs, self.allocation.middle))
        entries = {}
        for name, tensor in state.items():
            spec = specs.get(name)
            if spec is None or not tensor.is_floating_point():
                place, role = (spec.place, spec.role) if spec else ("buffer", "buffer")
                entries[name] = _whole(name, place, role, tensor, tensor.dtype)
            elif (dtype := self.kept_dtype(tensor, spec)) is not None:
                entries[name] = _whole(name, spec.place, spec.role, tensor, dtype)
            else:
                width = self.width(spec)
                if bits is not None and name in bits:
                    width = check_bits(f"bits of {name}", bits[name])
                entries[name] = self._round(name, spec, tensor, width)
        return entries

    def rounding_errors(
        self, state: Mapping[str, Tensor], specs: Mapping[str, ParamSpec], bits: int
    ) -> dict[str, float]:
        """Root mean square of (stored − original) at `bits`, for each tensor of `state` that is not kept whole."""
        errors = {}
        for name, tensor in state.items():
            spec = specs.get(name)
            if spec is not None and tensor.is_floating_point() and self.kept_dtype(tensor, spec) is None:
                stored = dequantize(self._round(name, spec, tensor, bits))
                errors[name] = float((stored.float() - tensor.detach().float().cpu()).square().mean().sqrt())
        return errors

    def width(self, spec: ParamSpec) -> int:
        """The bits that the policy has for a place."""
        return int(match_place(self.bits, spec.place) or self.bits["default"])

    def draft(self, state: Mapping[str, Tensor], specs: Mapping[str, ParamSpec]) -> dict[str, Entry]:
        """As `quantize`, by rounding to the nearest."""
        with self._nearest():
            return self.quantize(state, specs)

    @contextmanager
    def _nearest(self) -> Iterator[None]:
        self._drafting = True
        try:
            yield
        finally:
            self._drafting = False

    def moments(self, name: str) -> Tensor | None:
        """XᵀX [in, in] of what a matrix was seen to multiply; None where it was not watched."""
        return None

    def factor(self, name: str) -> Tensor:
        """The upper triangular U of H⁻¹ = UᵀU, for that H."""
        raise NotImplementedError

    def integers(self, name: str, values: Tensor, clip: Tensor, scale: Tensor, bits: int) -> Tensor:
        """int8 integers that stand for `values` on the grid of `scale`: the nearest. A subclass may choose others.

        values: float32 on the CPU, of the tensor `name`; clip and scale broadcast with it. No integer is beyond
        ±(2^(bits−1) − 1).
        """
        return round_to_grid(values, clip, scale, bits)

    def along_trellis(self, name: str, values: Tensor, scale: Tensor, bits: int) -> Tensor:
        """As `integers`, of a matrix and with half steps where the path says so; scale: as it is stored."""
        from golf.quant.trellis import nearest_path  # its code counts where it is used

        return nearest_path(values / scale, levels(bits), self.trellis)[0]

    def _round(self, name: str, spec: ParamSpec, tensor: Tensor, bits: int) -> Entry:
        wide = tensor.detach().cpu().float()  # on the CPU, so that the bytes do not depend on the device
        _require_finite(name, wide)
        parts: dict[str, Tensor] = {}
        if wide.ndim == 2:
            scheme = "per_row"
            clip, step, top = self.grid_of(spec, bits).steps(wide, self.times_by_name.get(name, 1.0))
            bits = bits_of(int(top))
            scale = step.half()
            if not torch.isfinite(scale).all():
                raise ArtifactError(
                    f"tensor {name}: a row's scale is beyond float16 (values up to {wide.abs().max():g})"
                )
            if self.trellis and not self._drafting:
                q = self.along_trellis(name, wide, as_stored(step)[:, None], bits)
                parts[TRELLIS] = torch.tensor(self.trellis, dtype=torch.int16)
            else:
                q = self.integers(name, wide, clip[:, None], step[:, None], bits)
        else:
            scheme = "per_tensor"
            clip = clip_values(wide.abs().reshape(-1), self.clip_percentile)
            scale = torch.where(clip > 0, clip / levels(bits), torch.ones_like(clip))
            q = self.integers(name, wide, clip, scale, bits)
        packed = self.pack and bits < 8
        q = pack_bits(q, bits) if packed else q.contiguous()
        parts = {"q": q, "scale": scale, **parts}
        return Entry(name, spec.place, spec.role, tuple(tensor.shape), tensor.dtype, scheme, bits, packed, parts)

    def grid_of(self, spec: ParamSpec, bits: int, times: float = 1.0) -> Grid:
        """What the rows of a matrix of this place are rounded to. times: how many times as wide the steps are."""
        sigmas = match_place(self.k, spec.place) or self.k.get("default")
        if sigmas is not None:
            sigmas *= self.times * times
        return Grid(bits, sigmas, self.clip_percentile, self.scale_floor, self.pack)

    def rounding(self, spec: ParamSpec, weight: Tensor, times: float = 1.0) -> Grid | None:
        """As Rehearsed. Where gradients choose the bits, training sees the middle width."""
        if weight.ndim != 2 or not spec.stored or self.kept_dtype(weight, spec) is not None:
            return None
        if self.allocation is not None:
            return self.grid_of(spec, self.allocation.middle, times)
        return self.grid_of(spec, self.width(spec), times)

    def state_dict(self) -> dict[str, Any]:
        """What was gathered during training, for a checkpoint."""
        return {} if self.allocation is None else {"allocation": self.allocation.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        if self.allocation is not None and "allocation" in state:
            self.allocation.load_state_dict(state["allocation"])


def _require_finite(name: str, tensor: Tensor) -> None:
    if not torch.isfinite(tensor).all():
        raise ArtifactError(f"tensor {name} holds values that are not finite: nothing to quantize")


def _whole(name: str, place: str, role: str, tensor: Tensor, dtype: torch.dtype) -> Entry:
    data = tensor.detach().to(dtype).contiguous().cpu().clone()
    if dtype.is_floating_point:
        _require_finite(name, tensor)
        if not torch.isfinite(data).all():
            raise ArtifactError(
                f"tensor {name}: {dtype} cannot hold its values (up to {tensor.abs().max():g}); keep float32"
            )
    bits = 8 * data.element_size()
    return Entry(name, place, role, tuple(tensor.shape), tensor.dtype, "raw", bits, False, {"data": data})
