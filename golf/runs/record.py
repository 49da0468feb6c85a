"""`result.json`: the versioned schema of a run's outcome, and the one place that judges whether it is valid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from golf.common.errors import GolfError
from golf.common.files import read_json
from golf.runs import figures
from golf.runs.dotted import flatten
from golf.runs.folder import plain
from golf.runs.seal import write_sealed
from golf.runs.states import Status

SCHEMA_VERSION = 1

Stage = Literal["stop", "averaged", "quantized"]


def _finite_or_none(value: Any) -> Any:
    value = plain(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


MaybeNumber = Annotated[float | None, BeforeValidator(_finite_or_none)]
"""A figure that may be missing; JSON has no NaN, so a non-finite one is null (train.log says which it was)."""

Facts = Annotated[dict[str, Any], BeforeValidator(plain)]
"""Free facts as JSON types."""


class _Part(BaseModel):
    model_config = ConfigDict(protected_namespaces=(), populate_by_name=True)


class EvalRecord(_Part):
    """One evaluation: which weights, how, over what, and the score. Losses in nats per token, bpb in bits per byte."""

    stage: Stage
    method: str
    stride: int | None = None
    seq_len: int
    val_loss: MaybeNumber
    val_bpb: MaybeNumber
    targets: int
    bytes: int
    seconds: float
    coverage: str = "full"
    flops: MaybeNumber = None


class PhaseBegun(_Part):
    """Where a phase of the run began: steps and tokens done, training seconds and part of the run by then, and what
    its config set."""

    number: int
    step: int
    tokens: int
    train_time_s: float
    fraction: float
    set: Facts = Field(default_factory=dict)


class Resumed(_Part):
    """Where a run went on from a checkpoint: steps, tokens and training seconds by then, on how many workers, and the
    steps and training seconds after it that were done in vain, as far as rows of metrics tell."""

    step: int
    tokens: int
    train_time_s: float
    world: int
    lost_steps: int = 0
    lost_s: float = 0.0
    at: str


class ValBpb(_Part):
    """The bpb figures that people compare; see golf.runs.figures."""

    pre_quant: MaybeNumber = None
    post_quant: MaybeNumber = None
    sliding: MaybeNumber = None
    final: MaybeNumber = None
    by_method: dict[str, MaybeNumber] = Field(default_factory=dict)


PACKED, BOUND = "packed", "an upper bound"  # of the size of the packed file that an export of the run writes


class Bytes(_Part):
    """The byte ledger: `artifact` = `model` (the size of artifact.golf) + `code`; `by_group` splits `model`.

    `code_is` says what `code` counts: the packed file that an export of the run writes, or an upper bound of that.
    """

    model: int
    code: int
    code_is: str = BOUND
    artifact: int
    limit: int | None = None
    by_group: dict[str, int] = Field(default_factory=dict)

    @property
    def code_told(self) -> str:
        """The bytes of code, in words."""
        return f"{self.code:,}" + ("" if self.code_is == PACKED else f", {BOUND}")

    @classmethod
    def count(
        cls, model: int, code: int, limit: int | None, by_group: Mapping[str, int] | None = None, code_is: str = BOUND
    ) -> Bytes:
        """The ledger of an artifact; `artifact` is summed here and nowhere else."""
        groups = dict(by_group or {})
        return cls(model=model, code=code, code_is=code_is, artifact=model + code, limit=limit, by_group=groups)


class Proof(_Part):
    """What was proved of the figures, in a word or two each, and what was not looked at, each with the reason."""

    proved: list[str] = Field(default_factory=list)
    not_checked: list[str] = Field(default_factory=list)
    broken: dict[str, str] = Field(default_factory=dict)
    """What was found to be wrong, by the word that it would have been proved by."""

    def __str__(self) -> str:
        parts = ("proved", self.proved), ("not checked", self.not_checked)
        return "; ".join(f"{word}: {', '.join(found)}" for word, found in parts if found)


class ScaledSetting(_Part):
    """A setting at record scale, and as the budget's fraction made it."""

    record: float
    used: float


class Budget(_Part):
    """The limits a run was held to. `bound` is what ended training: its steps or the clock.

    `enforce` says when the limits of time make a run invalid: `wall` only when the clock bounds it (a run bound
    by steps is an experiment on whatever machine there is), `always`, or `never`.
    """

    name: str
    fraction: float = 1.0
    bound: Literal["steps", "wall"]
    enforce: Literal["wall", "always", "never"] = "wall"
    train_seconds: float | None = None
    eval_seconds: float | None = None
    artifact_bytes: int | None = None
    scaled: dict[str, ScaledSetting] = Field(default_factory=dict)

    @property
    def times_count(self) -> bool:
        """Whether the limits of time apply to this run."""
        return self.enforce == "always" or (self.enforce == "wall" and self.bound == "wall")


class Git(_Part):
    """The checkout that the code came from."""

    commit: str
    branch: str | None = None
    dirty: bool


class Gpu(_Part):
    """One GPU that the run could see."""

    name: str
    memory_bytes: int
    capability: str


class Hardware(_Part):
    """The machine: `cores` are those this process may use, `memory_bytes` the machine's."""

    host: str
    platform: str
    cpu: str
    cores: int
    memory_bytes: int | None = None
    gpus: list[Gpu] = Field(default_factory=list)


class PeakMemory(_Part):
    """Peaks in bytes: GPU memory by rank (allocated; reserved by the allocator), the main process's resident set."""

    gpu_allocated: list[int] = Field(default_factory=list)
    gpu_reserved: list[int] = Field(default_factory=list)
    host_rss: int | None = None


class Params(_Part):
    """Parameter counts by role (`matrix`, `embed`, `head`, `scalar`, `gate`)."""

    total: int
    by_role: dict[str, int] = Field(default_factory=dict)


class Result(_Part):
    """Everything that a run came to; build it with `from_parts`, which computes the derived fields."""

    schema_version: int = SCHEMA_VERSION
    name: str = ""
    recipe: str | None = None
    status: Status
    error: str | None = None
    trained: bool = False
    """Whether training came to its end and left its weights, whatever became of the run after that."""
    valid: bool
    violations: list[str]
    proof: Proof = Field(default_factory=Proof)
    checks: list[dict[str, str]] = Field(default_factory=list)
    val_bpb: ValBpb
    quant_gap: MaybeNumber
    evals: list[EvalRecord]
    bytes: Bytes | None
    budget: Budget | None
    steps: int
    iterations: int | None = None
    tokens: int = 0
    train_time_s: float
    train_loss: MaybeNumber = None
    started: str | None = None
    finished: str | None = None
    clocks: dict[str, float] = Field(default_factory=dict)
    seeds: dict[str, int] = Field(default_factory=dict)
    params: Params | None = None
    data: Facts = Field(default_factory=dict)
    kernels: dict[str, str] = Field(default_factory=dict)
    modules: list[str] = Field(default_factory=list)
    phases: list[PhaseBegun] = Field(default_factory=list)
    """Where each phase but the first began."""
    resumed: list[Resumed] = Field(default_factory=list)
    """Each time that the run went on from a checkpoint; nothing for one that ran through."""
    retried: list[Facts] = Field(default_factory=list)
    """Each attempt before this one that ran out of memory (golf.launch.work.retry)."""
    numerics: Facts = Field(default_factory=dict)
    quantization: Facts = Field(default_factory=dict)
    tracking: Facts = Field(default_factory=dict)
    peak_memory: PeakMemory | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    git: Git | None = None
    hardware: Hardware | None = None

    @classmethod
    def from_parts(
        cls,
        *,
        status: Status,
        steps: int,
        train_time_s: float,
        evals: Sequence[EvalRecord] = (),
        bytes: Bytes | None = None,
        budget: Budget | None = None,
        method: str | None = None,
        last_step_s: float = 0.0,
        error: str | None = None,
        violations: Sequence[str] = (),
        **facts: Any,
    ) -> Result:
        """The record of a run: aliases, gap and validity are computed here from the parts.

        `method` is the run's own, which `val_bpb.final` is by (None: the last of the evaluations).
        `train_time_s` includes calibration on training data; `last_step_s` is how long the last step took, for
        the step that reaches the limit may end. `violations` are a caller's own, added to those found; `facts`
        are the other fields. Raises TypeError for a field that the schema lacks.
        """
        if unknown := set(facts) - set(cls.model_fields):
            raise TypeError(f"result.json has no field {', '.join(sorted(unknown))}")
        val_bpb = ValBpb(**figures.val_bpb([one.model_dump() for one in evals], method))
        gap = None
        if val_bpb.pre_quant is not None and val_bpb.post_quant is not None:
            gap = val_bpb.post_quant - val_bpb.pre_quant
        found = [*find_violations(evals, bytes, budget, train_time_s, last_step_s), *violations]
        if status != "completed":
            found.insert(0, f"the run {'was interrupted' if status == 'interrupted' else 'failed'} after step {steps}")
        return cls(
            status=status, error=error, valid=not found, violations=found, val_bpb=val_bpb, quant_gap=gap,
            evals=list(evals), bytes=bytes, budget=budget, steps=steps, train_time_s=train_time_s, **facts,
        )  # fmt: skip

    @property
    def score(self) -> float | None:
        """The bpb to rank by: the first of golf.runs.figures.SCORES that there is."""
        found = (getattr(self.val_bpb, name.rpartition(".")[2]) for name in figures.SCORES)
        return next((figure for figure in found if figure is not None), None)

    def summary(self) -> dict[str, Any]:
        """The final figures, flat, with `/` between levels: what a tracker shows beside a run."""
        flat: dict[str, Any] = {
            name.replace(".", "/"): value for name, value in flatten(self.val_bpb.model_dump(), "val_bpb.")
        }
        record = self.model_dump(include={"val_bpb", "evals", "data"})
        of = next((found for name in figures.SCORES if (found := figures.basis(record, name))), None)
        flat |= {"scored_by": None if of is None else str(of)}
        flat |= {"quant_gap": self.quant_gap, "valid": self.valid, "violations": "; ".join(self.violations)}
        flat |= {"status": self.status, "steps": self.steps, "tokens": self.tokens, "train_time_s": self.train_time_s}
        if self.bytes is not None:
            ledger = self.bytes
            flat |= {"bytes/model": ledger.model, "bytes/code": ledger.code}
            flat |= {"bytes/artifact": ledger.artifact, "bytes/limit": ledger.limit}
        if self.params is not None:
            flat["params"] = self.params.total
        flat |= {f"clock_s/{name}": seconds for name, seconds in self.clocks.items()}
        return {name: value for name, value in flat.items() if value is not None}

    def write(self, path: Path | str) -> None:
        """Write result.json whole or not at all, after everything that it seals (golf.runs.seal).

        Raises GolfError when the disk is full.
        """
        write_sealed(Path(path), self.model_dump(mode="json"))

    @classmethod
    def read(cls, path: Path | str) -> Result:
        """Read a result.json; fields of a later minor addition are passed over.

        Raises GolfError when it is missing, broken, or of a newer schema.
        """
        try:
            record = read_json(Path(path))
            version = record["schema_version"]
        except FileNotFoundError:
            raise GolfError(f"{path} is missing: the run has not ended, or it died before its record") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise GolfError(f"{path} is not a golf result: {error}") from None
        if not isinstance(version, int) or version > SCHEMA_VERSION:
            raise GolfError(f"{path} has schema_version {version!r}; this golf reads up to {SCHEMA_VERSION}: update it")
        try:
            return cls.model_validate(figures.filled(record))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise GolfError(f"{path} is not a golf result: {where}: {first['msg']}") from None


def figure_names(model: type[BaseModel] = Result, prefix: str = "") -> list[str]:
    """Dotted names of the numbers in result.json; one that ends in a dot stands for whatever is below it."""
    names = []
    for name, told in model.model_fields.items():
        kinds = {get_origin(kind) or kind for kind in (told.annotation, *get_args(told.annotation))}
        inner = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if inner is not None and list not in kinds and dict not in kinds:
            names += figure_names(inner, f"{prefix}{name}.")
        elif dict in kinds:
            names.append(f"{prefix}{name}.")
        elif kinds & {int, float} and name != "schema_version":
            names.append(f"{prefix}{name}")
    return names


def find_violations(
    evals: Sequence[EvalRecord],
    bytes: Bytes | None,
    budget: Budget | None,
    train_time_s: float,
    last_step_s: float = 0.0,
) -> list[str]:
    """One sentence for each limit that was passed.

    Evaluation is held to its limit one scored evaluation of the quantized model at a time: a submission runs one.
    """
    found: list[str] = []
    limit = budget.artifact_bytes if budget is not None else None
    if bytes is not None and bytes.limit is not None:
        limit = bytes.limit
    if bytes is not None and limit is not None and bytes.artifact > limit:
        sentence = f"the artifact is {bytes.artifact:,} bytes, {bytes.artifact - limit:,} over the limit of {limit:,}"
        largest = sorted(bytes.by_group.items(), key=lambda item: -item[1])[:3]
        if largest:
            sentence += "; the largest places: " + ", ".join(f"{place} {size:,}" for place, size in largest)
        found.append(sentence)
    if budget is None or not budget.times_count:
        return found
    if budget.train_seconds is not None and train_time_s - last_step_s > budget.train_seconds:
        over = train_time_s - budget.train_seconds
        found.append(f"training took {train_time_s:.1f} s, {over:.1f} s over the limit of {budget.train_seconds:g} s")
    if budget.eval_seconds is not None:
        found.extend(
            f"the {one.method} evaluation took {one.seconds:.1f} s, {one.seconds - budget.eval_seconds:.1f} s"
            f" over the limit of {budget.eval_seconds:g} s"
            for one in evals
            if one.stage == "quantized" and one.seconds > budget.eval_seconds
        )
    return found
