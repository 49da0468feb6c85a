"""The optimizer: parameters by role, a matrix rule beside Adam, learning rates and momentum by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from golf.common.errors import ArtifactError, ConfigError
from golf.common.progress import Progress
from golf.common.ranks import Ranks
from golf.learn.budget import Horizons
from golf.learn.checks import require
from golf.learn.gradients import MeanGradients
from golf.learn.muon import Muon
from golf.learn.rule import Arrive, MatrixRule
from golf.learn.schedule import momentum_at
from golf.nn.params import ParamSpec

ADAM_STATE = ("exp_avg", "exp_avg_sq", "step")


class Optimizer:
    """A matrix rule for role `matrix`, Adam for `embed`, `head`, `scalar` and `gate`; one step drives them all.

    matrix: makes the rule (a class or partial of it: Muon, NorMuon). matrix_lr, embed_lr, tied_embed_lr (embedding that
    is the head too), head_lr, scalar_lr (scalars and gates): base learning rates, which the schedule multiplies.
    momentum, momentum_start, momentum_warmup_steps: the rule's momentum rises linearly, then stays.
    matrix_weight_decay, adam_weight_decay: decoupled, p ← p(1 − lr·wd) with the scheduled lr.
    matrix_decay_taper_from: from this fraction of the run on, the matrices' decay changes linearly to
    `matrix_decay_taper_to` times itself at the end (None: it stays).
    embed_, head_, scalar_weight_decay and embed_, head_, scalar_betas ([β₁, β₂]): Adam's for that part of the
    parameters, divided as its rates are (None: adam_weight_decay; adam_beta1 and adam_beta2).
    grad_clip, grad_clip_scope: limit of the L2 norm over all gradients, of their mean over ranks (`global`) or of each
    rank's own before the mean (`local`); None: no clipping.
    Adam's moments have the parameter's dtype; its kernel computes in fp32. No call synchronizes the device.
    Raises ConfigError for settings out of range. Source: naive baseline record; AdamW, clipping: GradQuant 11L record;
    decay by part of the parameters: PR 1218; its taper: PR 1729.
    """

    def __init__(
        self,
        matrix: Callable[[], MatrixRule] = Muon,
        matrix_lr: float = 0.04,
        embed_lr: float = 0.6,
        tied_embed_lr: float = 0.05,
        head_lr: float = 0.008,
        scalar_lr: float = 0.04,
        momentum: float = 0.95,
        momentum_start: float = 0.85,
        momentum_warmup_steps: int = 500,
        matrix_weight_decay: float = 0.0,
        matrix_decay_taper_from: float | None = None,
        matrix_decay_taper_to: float = 0.5,
        adam_beta1: float = 0.9,
        adam_beta2: float = 0.95,
        adam_eps: float = 1e-8,
        adam_weight_decay: float = 0.0,
        embed_weight_decay: float | None = None,
        head_weight_decay: float | None = None,
        scalar_weight_decay: float | None = None,
        embed_betas: list[float] | None = None,
        head_betas: list[float] | None = None,
        scalar_betas: list[float] | None = None,
        grad_clip: float | None = None,
        grad_clip_scope: Literal["global", "local"] = "global",
    ) -> None:
        rates = {
            "matrix_lr": matrix_lr,
            "embed_lr": embed_lr,
            "tied_embed_lr": tied_embed_lr,
            "head_lr": head_lr,
            "scalar_lr": scalar_lr,
        }
        decays = {"matrix_weight_decay": matrix_weight_decay, "adam_weight_decay": adam_weight_decay}
        own_decays = {"embed": embed_weight_decay, "head": head_weight_decay, "scalar": scalar_weight_decay}
        own_betas = {"embed": embed_betas, "head": head_betas, "scalar": scalar_betas}
        for key, value in {**rates, **decays, "matrix_decay_taper_to": matrix_decay_taper_to}.items():
            require(value >= 0.0, f"optimizer.{key}", value, "at least 0")
        for part, decay in own_decays.items():
            require(decay is None or decay >= 0.0, f"optimizer.{part}_weight_decay", decay, "at least 0, or null")
        for part, betas in own_betas.items():
            fits = betas is None or (len(betas) == 2 and all(0.0 <= beta < 1.0 for beta in betas))
            require(fits, f"optimizer.{part}_betas", betas, "two numbers from 0 to below 1, or null")
        begins = matrix_decay_taper_from
        require(
            begins is None or 0.0 <= begins < 1.0, "optimizer.matrix_decay_taper_from", begins, "in [0, 1), or null"
        )
        for key, value in {
            "momentum": momentum,
            "momentum_start": momentum_start,
            "adam_beta1": adam_beta1,
            "adam_beta2": adam_beta2,
        }.items():
            require(0.0 <= value < 1.0, f"optimizer.{key}", value, "from 0 to below 1")
        require(momentum_warmup_steps >= 0, "optimizer.momentum_warmup_steps", momentum_warmup_steps, "at least 0")
        require(adam_eps > 0.0, "optimizer.adam_eps", adam_eps, "more than 0")
        require(grad_clip is None or grad_clip > 0.0, "optimizer.grad_clip", grad_clip, "more than 0, or null")
        require(grad_clip_scope in ("global", "local"), "optimizer.grad_clip_scope", grad_clip_scope, "global or local")
        self.matrix = matrix()
        self.rates = rates
        self.momentum = momentum
        self.momentum_start = momentum_start
        self.momentum_warmup_steps = momentum_warmup_steps
        self.matrix_weight_decay = matrix_weight_decay
        self.matrix_decay_taper_from = matrix_decay_taper_from
        self.matrix_decay_taper_to = matrix_decay_taper_to
        self.fraction = 0.0
        """Of the run that is behind the coming step, as `at_step` was told."""
        self.adam_weight_decay, self.adam_eps = adam_weight_decay, adam_eps
        self.adam_beta1, self.adam_beta2 = adam_beta1, adam_beta2
        self.embed_weight_decay, self.embed_betas = embed_weight_decay, embed_betas
        self.head_weight_decay, self.head_betas = head_weight_decay, head_betas
        self.scalar_weight_decay, self.scalar_betas = scalar_weight_decay, scalar_betas
        self.grad_clip = grad_clip
        self.grad_clip_scope = grad_clip_scope
        self.grad_norm: Tensor | None = None
        """Norm before the last clipping, 0-dim on the device (with scope `local`: this rank's own)."""
        self.params: dict[str, nn.Parameter] = {}
        self.adam: torch.optim.Optimizer | None = None
        self._adam_names: list[str] = []
        self._means = MeanGradients((), (), 1)
        self._arrive: dict[str, Arrive] = {}
        """What the rule's step is handed: how to wait for gradients, where it lets them come as they do."""

    def horizons(self) -> Horizons:
        """The record-scale momentum warm-up, for `scale_by_fraction`."""
        return {"momentum_warmup_steps": self.momentum_warmup_steps}

    def rescale(self, scaled: Horizons) -> None:
        """Adopt the scaled momentum warm-up."""
        self.momentum_warmup_steps = int(scaled["momentum_warmup_steps"] or 0)

    def attach(
        self, named_params: Mapping[str, nn.Parameter], specs: Mapping[str, ParamSpec], ranks: Ranks, tied: bool
    ) -> None:
        """Take charge of a model's parameters, each by its spec's role; state starts empty.

        tied: whether the embedding is the output head too. Raises ConfigError for a parameter without a spec, a spec
        without a parameter, or one parameter under two names.
        """
        odd = sorted(named_params.keys() ^ specs.keys())
        if odd:
            raise ConfigError(f"{odd[0]} has no role, or is no parameter: every parameter is in exactly one group")
        if len({id(parameter) for parameter in named_params.values()}) != len(named_params):
            raise ConfigError("one parameter stands under two names: every parameter is in exactly one group")
        by_rate: dict[str, dict[str, nn.Parameter]] = {}
        for name, parameter in named_params.items():
            by_rate.setdefault(self.rate_of(specs[name], tied), {})[name] = parameter
        self.params = dict(named_params)
        matrices = by_rate.pop("matrix_lr", {})
        self._means = MeanGradients(
            [parameter for group in by_rate.values() for parameter in group.values()], matrices.values(), ranks.world
        )
        self.matrix.attach(matrices, ranks)
        self._arrive = {"arrive": self._means.arrive} if getattr(self.matrix, "as_they_arrive", False) else {}
        self._adam_names = [name for group in by_rate.values() for name in group]
        self.adam = None
        if by_rate:
            groups = [{"params": list(group.values()), "rate": rate} for rate, group in by_rate.items()]
            # fused on a CPU too: it computes in fp32 what foreach would round to bf16 at every operation
            self.adam = torch.optim.AdamW(groups, lr=0.0, fused=True)

    @staticmethod
    def rate_of(spec: ParamSpec, tied: bool) -> str:
        """The learning rate that a parameter's role picks."""
        if spec.role == "embed":
            return "tied_embed_lr" if tied else "embed_lr"
        return {"matrix": "matrix_lr", "head": "head_lr", "scalar": "scalar_lr", "gate": "scalar_lr"}[spec.role]

    def adam_settings(self, rate: str) -> dict[str, Any]:
        """Adam's for the parameters of a rate; looked up at each step, since a phase may set others."""
        part = "embed" if rate == "tied_embed_lr" else rate.removesuffix("_lr")
        decay, betas = getattr(self, f"{part}_weight_decay"), getattr(self, f"{part}_betas")
        return {
            "weight_decay": self.adam_weight_decay if decay is None else decay,
            "betas": (self.adam_beta1, self.adam_beta2) if betas is None else tuple(betas),
            "eps": self.adam_eps,
        }

    def at_step(self, progress: Progress) -> None:
        """Note how far the run is, for the decay's taper."""
        self.fraction = progress.fraction

    def matrix_decay(self) -> float:
        """The matrices' weight decay in the coming step."""
        begins = self.matrix_decay_taper_from
        if begins is None or self.fraction <= begins:
            return self.matrix_weight_decay
        done = (self.fraction - begins) / (1.0 - begins)
        return self.matrix_weight_decay * (1.0 + (self.matrix_decay_taper_to - 1.0) * done)

    def momentum_in(self, step: int) -> float:
        """The matrices' momentum in the 0-based `step`."""
        return momentum_at(step, self.momentum_start, self.momentum, self.momentum_warmup_steps)

    def zero_grad(self) -> None:
        """Drop all gradients; the next backward allocates them anew, which saves an addition."""
        for parameter in self.params.values():
            parameter.grad = None

    @torch.no_grad()
    def reduce_gradients(self, wait: bool = True) -> None:
        """Replace every gradient by its mean over ranks, in its own dtype; call it once, after the last micro-step.

        wait=False: only `step` may read the gradients afterwards; it works on some while others are on their way.
        Deterministic, and equal on all ranks to the bit. A parameter must have a gradient on all ranks or on none.
        """
        self._clip("local")
        self._means.send()
        self._means.arrive(None if wait else [self.params[name] for name in self._adam_names])

    def _clip(self, scope: Literal["global", "local"]) -> None:
        """Limit the norm of all gradients where `scope` is the one to be limited."""
        if self.grad_clip is not None and self.grad_clip_scope == scope:
            self._means.arrive()
            self.grad_norm = nn.utils.clip_grad_norm_(self.params.values(), self.grad_clip)

    @torch.no_grad()
    def step(self, step: int, lr_multiplier: float) -> None:
        """Update all parameters for the 0-based `step`, from gradients that are equal on all ranks."""
        if not self._arrive:
            self._means.arrive()
        self._clip("global")
        if self.adam is not None:
            for group in self.adam.param_groups:
                group.update(self.adam_settings(group["rate"]), lr=self.rates[group["rate"]] * lr_multiplier)
            self.adam.step()
        self.matrix.step(
            lr=self.rates["matrix_lr"] * lr_multiplier,
            momentum=self.momentum_in(step),
            weight_decay=self.matrix_decay(),
            **self._arrive,
        )
        self._means.arrive()  # also those that the rule had no use for: their memory is about to be another's

    def state_dict(self) -> dict[str, Tensor]:
        """The live state as flat named tensors, equal on every rank: `matrix/…`, and `adam/{moment}/NAME`.

        Complete between two steps: what a copy of it is loaded into goes on to the same bits.
        """
        state = {f"matrix/{key}": tensor for key, tensor in self.matrix.state_dict().items()}
        if self.adam is not None:
            for name in self._adam_names:
                for key, tensor in self.adam.state.get(self.params[name], {}).items():
                    state[f"adam/{key}/{name}"] = tensor
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy in a state of this or another number of ranks; what it lacks (Adam's before the first step) is dropped.

        Raises ArtifactError if it does not fit.
        """
        adam: dict[str, dict[str, Tensor]] = {}
        matrix: dict[str, Tensor] = {}
        for key, tensor in state.items():
            kind, _, rest = key.partition("/")
            moment, _, name = rest.partition("/")
            if kind == "matrix":
                matrix[rest] = tensor
            elif kind == "adam" and moment in ADAM_STATE and name in self._adam_names:
                adam.setdefault(name, {})[moment] = tensor
            else:
                raise ArtifactError(f"optimizer state has an entry that this optimizer lacks: {key}")
        for name, moments in adam.items():
            shape = self.params[name].shape
            if len(moments) != len(ADAM_STATE) or any(moments[key].shape != shape for key in ADAM_STATE[:2]):
                raise ArtifactError(f"optimizer state of {name} is incomplete or has another shape than {list(shape)}")
        self.matrix.load_state_dict(matrix)
        if self.adam is not None:
            self.adam.state.clear()
            for name, moments in adam.items():
                parameter = self.params[name]
                self.adam.state[parameter] = {
                    "step": moments["step"].to(parameter.device, torch.float32, copy=True),
                    "exp_avg": moments["exp_avg"].to(parameter.device, parameter.dtype, copy=True),
                    "exp_avg_sq": moments["exp_avg_sq"].to(parameter.device, parameter.dtype, copy=True),
                }
