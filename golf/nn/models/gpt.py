"""The transformer: slots composed once, and one forward for training, every evaluator and calibration."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import nn

from golf.common.errors import ConfigError
from golf.common.progress import ActsOverTime, Progress
from golf.nn.attend import FLASH_TAKES, Attend, fits_flash
from golf.nn.context import Context, Documents, Note, Visit
from golf.nn.linear import Linear
from golf.nn.live import HOUSE, home
from golf.nn.models.block import Block
from golf.nn.numerics import Numerics
from golf.nn.params import ParamSpec, declare, param_specs
from golf.nn.shape import Shape
from golf.nn.slots import Build, Head, Initial, Plan, Position, Residual, fitted
from golf.nn.table import Table
from golf.nn.techniques.base import Technique, Techniques

Reduction = Literal["mean", "sum", "none"]
Loss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Reduction], torch.Tensor]


class Losses(NamedTuple):
    """What one training pass comes to: the nll, and by name what techniques add to the loss or report; scalars."""

    nll: torch.Tensor
    terms: dict[str, torch.Tensor]
    reports: dict[str, torch.Tensor]

    @classmethod
    def of(cls, nll: torch.Tensor, notes: list[Note]) -> Losses:
        """Terms of one name are summed, reports of one name averaged."""
        found: dict[str, dict[str, list[torch.Tensor]]] = {"loss": {}, "report": {}}
        for kind, name, value in notes:
            found[kind].setdefault(name, []).append(value)
        terms = {name: torch.stack(values).sum(0) for name, values in found["loss"].items()}
        return cls(nll, terms, {name: torch.stack(values).mean(0) for name, values in found["report"].items()})


class GPT(nn.Module):
    """A decoder-only transformer composed of slots; every slot is a callable that builds its part.

    plans: other plans that it may change to in the course of a run (`enter`); what depends on the number of visits is
    sized for the longest. Raises ConfigError for sizes, layers or techniques that do not fit together.
    """

    def __init__(
        self,
        vocab_size: int,
        model_dim: int,
        num_layers: int,
        num_heads: int,
        num_kv_heads: int,
        mlp_mult: float,
        max_seq_len: int,
        attention: Build,
        mlp: Build,
        position: Build,
        residual: Build,
        plan: Build,
        head: Build,
        init: Initial,
        numerics: Numerics,
        techniques: Mapping[str, functools.partial[Technique] | None] | None = None,
        compute: Literal["float32", "bfloat16"] = "float32",
        plans: Sequence[Build] = (),
    ) -> None:
        super().__init__()
        shape = Shape(vocab_size, model_dim, num_layers, num_heads, num_kv_heads, mlp_mult, max_seq_len)
        self.shape, self.init = shape, init
        self.numerics = replace(numerics, compute=compute)
        chosen = Techniques(techniques or {}, shape, self.numerics)
        self.technique_names = sorted(chosen.partials)
        self.plans: list[Plan] = [fitted("plan", one(num_layers=num_layers)) for one in (plan, *plans)]
        self.plan = self.plans[0]
        self.visits = numbered(self.plan.visits)
        self.position: Position = fitted("position", position(shape=shape, numerics=self.numerics))
        self.longest = max_seq_len
        self.embedding: nn.Parameter
        table = torch.empty(vocab_size, model_dim, dtype=self.numerics.embed_dtype)
        declare(self, "embedding", table, role="embed", place="embed")
        self.blocks = nn.ModuleList(
            Block(shape, self.numerics, i, attention, mlp, self.position, chosen) for i in range(num_layers)
        )
        longest = max((numbered(one.visits) for one in self.plans), key=len)
        self.residual: Residual = fitted("residual", residual(shape=shape, visits=longest))
        self.stream: Residual | None = None  # a fused kernel that stands for `residual`; its parameters stay there
        self.loss: Loss | None = None  # one that stands for `unfused_loss`: of h, the embedding, targets and reduction
        self.border_id: int | None = None
        """The token that begins a document, once a tokenizer is at hand."""
        self.served: dict[str, str] = {}
        self.fused: list[tuple[Any, Any]] = []
        """Each fused kernel that was put in, with the part that hosts it."""
        self.head: Head = fitted("head", head(shape=shape, numerics=self.numerics))
        self.table = Table(self, "embedding", self.numerics.dtype, cast=self.tied)
        self.at_post_embed = chosen.at("post_embed")
        self.at_pre_head = chosen.at("pre_head")
        self.at_logits = chosen.at("logits")
        if chosen.mixes_time_after(("logits",)):
            raise ConfigError("a technique at site logits may not mix time: move it to pre_head")
        self.prune_late = chosen.mixes_time_after(("pre_head",))
        self.looks_across = chosen.blind_to_documents()
        chosen.check_hosted()

    def enter(self, plan: int, techniques: Collection[str] | None = None) -> None:
        """From now on run by this one of its `plans`, with these of its techniques (None: all); the others leave their
        values as they are. The compiler makes a graph of its own for each combination that it meets."""
        self.plan = self.plans[plan]
        self.visits = numbered(self.plan.visits)
        for module in self.modules():
            if isinstance(module, Technique):
                module.on = techniques is None or module.called in techniques

    def at_step(self, progress: Progress) -> None:
        """Tell a plan that acts over time how far the run is, and follow it."""
        if isinstance(self.plan, ActsOverTime):
            self.plan.at_step(progress)
            self.visits = numbered(self.plan.visits)

    def off(self) -> list[Technique]:
        """The instances that take no part in the phase in force."""
        return [one for one in self.modules() if isinstance(one, Technique) and not one.on]

    def _resting(self) -> set[nn.Module]:
        """The modules of those."""
        return {module for one in self.off() for module in one.modules()}

    def techniques(self, name: str) -> list[Technique]:
        """The instances of a configured technique."""
        return [one for one in self.modules() if isinstance(one, Technique) and one.called == name]

    @property
    def tied(self) -> bool:
        """Whether the head multiplies by the token embedding."""
        return self.head.tied

    @property
    def attends(self) -> list[Attend]:
        """The attention backend of every layer that has one."""
        return [block.attn.attend for block in self.layers() if block.attn.attend is not None]

    @property
    def keeps_state(self) -> bool:
        """Whether a part that is not golf's own keeps tensors beside its parameters: each pass may put another in the
        place of one, and passes that were recorded would read it where it no longer is."""
        own = (m for m in self.modules() if home(m) not in (HOUSE, "torch"))
        return any(m._buffers or any(isinstance(value, torch.Tensor) for value in vars(m).values()) for m in own)

    def kernels(self) -> dict[str, str]:
        """What serves each op: a fused kernel, or torch's own."""
        return {"attention": ", ".join(sorted({attend.name for attend in self.attends})), **self.served}

    @property
    def cannot_pack(self) -> str | None:
        """Why documents cannot share a row where the model is; None: they can."""
        return self.cannot_pack_on(self.embedding.device.type)

    def cannot_pack_on(self, device: str) -> str | None:
        """Why documents cannot share a row on such a device, `cpu` or `cuda`."""
        if self.looks_across:
            return f"technique/{self.looks_across[0]} mixes time and doesn't read the borders of documents"
        if len(self.attends) < len(self.blocks) or any(attend.packed is None for attend in self.attends):
            return "its attention does not pack documents (model/attention=causal does)"
        if device == "cuda" and not fits_flash(self.numerics.dtype, self.shape.head_dim):
            return FLASH_TAKES
        return None

    def layers(self) -> list[Block]:
        """The physical layers."""
        return [cast(Block, block) for block in self.blocks]

    def specs(self) -> dict[str, ParamSpec]:
        """Role, place and layer of every parameter, by state_dict name."""
        return param_specs(self)

    def _outside(self) -> list[Linear]:
        """The matrices that techniques outside the layers have, of those that are on."""
        inside = self._resting().union(*(block.modules() for block in self.blocks))
        return [m for m in self.modules() if isinstance(m, Linear) and m not in inside]

    def flops_per_token(self, reach: float) -> float:
        """FLOPs of forward and backward for one training token: matrices, head and causal attention.

        reach: tokens that attention reads on average; of windows of T tokens, T/2.
        """
        shape = self.shape
        resting = self._resting()
        matrices = sum(m.weight.numel() for m in self._outside())
        for visit in self.visits:
            block = self.blocks[visit.layer]
            matrices += sum(m.weight.numel() for m in block.modules() if isinstance(m, Linear) and m not in resting)
        attention = 4 * reach * shape.model_dim * len(self.visits)
        return 3 * (2 * matrices + 2 * shape.vocab_size * shape.model_dim + attention)

    def prunes_in(self, visit: Visit) -> bool:
        """Whether a visit leaves out positions that are not scored: the last one does, if nothing mixes time later."""
        block = cast(Block, self.blocks[visit.layer])
        return visit.virtual == len(self.visits) - 1 and block.prunable and not self.prune_late

    def window_flops(self, seq_len: int, score_from: int = 0) -> float:
        """FLOPs of one window's forward: what `forward` does when it prunes the positions before `score_from`.

        Two per multiply-add of matrices, head and causal attention (query t reads t + 1 keys).
        """
        scored = seq_len - score_from
        total = 2 * self.shape.vocab_size * self.shape.model_dim * scored
        total += sum(2 * m.weight.numel() * seq_len for m in self._outside() if m.spec.stored)  # others train alone
        resting = self._resting()
        for visit in self.visits:
            block = self.layers()[visit.layer]
            pruned = self.prunes_in(visit)
            mixing, prunes = set(block.get_submodule("attn").modules()), block.attn.prunes
            for m in block.modules():
                if isinstance(m, Linear) and m not in resting:
                    early = pruned and (m not in mixing or m.spec.place in prunes)
                    total += 2 * m.weight.numel() * (scored if early else seq_len)
            unasked = score_from if pruned and prunes else 0
            total += 2 * self.shape.model_dim * (seq_len * (seq_len + 1) - unasked * (unasked + 1))
        return float(total)

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Draw the starting values on the CPU; the same seed gives the same model on every machine."""
        self.init(self.embedding, self, self.shape.num_layers, seed)
        if self.numerics.round_init:
            for module in self.modules():
                if isinstance(module, Linear):
                    module.weight.copy_(module.weight.to(self.numerics.dtype))

    @contextmanager
    def stretched(self, seq_len: int, ntk_from: int | None = None) -> Iterator[None]:
        """Within the block windows may have `seq_len` tokens, with positions as trained or NTK-scaled from `ntk_from`.

        Raises ConfigError where positions cannot be scaled.
        """
        own = self.longest
        with self.position.stretched(seq_len, ntk_from):
            self.longest = max(own, seq_len)
            try:
                yield
            finally:
                self.longest = own

    def forward(
        self,
        ids: torch.Tensor,
        targets: torch.Tensor | None = None,
        *,
        reduction: Reduction = "mean",
        score_from: int | None = None,
        borders: torch.Tensor | None = None,
        noting: bool = False,
    ) -> torch.Tensor | Losses:
        """ids [B, T] int64 → logits [B, T', V], or with `targets` the nll in nats: a scalar, or [B, T'] for "none".

        Only positions from `score_from` on are scored: T' = T − score_from. `targets` are [B, T], or those of the
        scored positions alone, [B, T'], which then say where to begin. `borders` int32 [S + 1], rising from 0 to T: ids
        are one row of documents (B = 1, all scored), none longer than a window; see Documents. Float32 out.

        noting: give `Losses` instead of the mean nll, with what techniques add to it; for training.
        """
        time = ids.shape[1]
        if score_from is None:
            score_from = 0 if targets is None else time - targets.shape[1]
        documents = None
        if borders is not None:
            if len(ids) != 1:
                raise ConfigError(f"documents are packed in one row, not in {len(ids)}")
            documents = Documents.of(borders, time, self.longest)
        elif time > self.longest:
            raise ConfigError(f"a window of {time} tokens is longer than the position tables ({self.longest})")
        ctx = Context(ids, score_from, documents=documents, border_id=self.border_id, carried={})
        if noting:
            ctx = ctx._replace(notes=[], targets=targets, to_logits=self._to_logits)
        e = self.table.looked_up(ids, self.embedding)
        if self.numerics.stream == "compute":
            e = e.to(self.numerics.dtype)  # of the rows alone; from here on dtypes follow the stream's
        for t in self.at_post_embed.values():
            e = t(e, ctx)
        x0 = self.numerics.norm(e)
        residual = self.residual if self.stream is None else self.stream
        stream = residual.start(x0)
        ctx = ctx._replace(x0=x0)
        for visit in self.visits:
            prune = score_from if self.prunes_in(visit) else 0
            stream = residual.skip_pop(stream, visit)
            stream = self.blocks[visit.layer](stream, residual, ctx, visit, prune)
            stream = residual.skip_push(stream, visit)
        x = residual.finish(stream)
        scored = ctx.since(score_from)
        pruned = x.shape[1] < time
        h = self.numerics.norm(x)
        for t in self.at_pre_head.values():
            h = t(h, scored if pruned else ctx)
        if not pruned:
            h = h[:, score_from:]
        if targets is None:
            return self._logits(h, scored)
        targets = targets[:, targets.shape[1] - h.shape[1] :]
        if self.loss is None:
            flat = self.unfused_loss(h, targets, scored, reduction)
        else:
            flat = self.loss(h, self._table(), targets, reduction)
        if ctx.notes is not None:
            return Losses.of(flat, ctx.notes)
        return flat.view(ids.shape[0], -1) if reduction == "none" else flat

    def unfused_loss(
        self, h: torch.Tensor, targets: torch.Tensor, scored: Context, reduction: Reduction
    ) -> torch.Tensor:
        """h [B, T, D], what the head reads, and targets [B, T] → the nll: a scalar, or [B T] for "none"."""
        return F.cross_entropy(self._logits(h, scored).flatten(0, 1), targets.flatten(), reduction=reduction)

    def _logits(self, h: torch.Tensor, scored: Context) -> torch.Tensor:
        logits = self._to_logits(h)
        for t in self.at_logits.values():
            logits = t(logits, scored)
        return logits

    def _to_logits(self, h: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(h, self._table())
        return logits

    def _table(self) -> torch.Tensor:
        """What a tied head multiplies by: the embedding, or what was made of it once a step."""
        made = self.table.effective
        return self.embedding if made is None else made


def numbered(visits: Sequence[Visit]) -> list[Visit]:
    """The visits of a plan, each told how many they are."""
    return [visit._replace(of=len(visits)) for visit in visits]
