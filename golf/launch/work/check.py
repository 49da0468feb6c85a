"""A finished run proved again, in a process that did not train it, from what its folder holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from golf.common.errors import ConfigError, GolfError
from golf.evals.evaluators import Score
from golf.launch.compose import build, phases
from golf.launch.compose.own_code import naming
from golf.launch.compose.rerun import Job
from golf.launch.work.loaded import LoadedRun, circumstances, keep
from golf.runs.record import Proof
from golf.runs.report.sides import is_figure
from golf.runs.rules import SEEN_THEN, Rule, compared, rules
from golf.runs.store import Run, find_runs
from golf.train import proof


@dataclass(frozen=True)
class Checked:
    """What a check came to, and the file that keeps it."""

    score: Score
    proof: Proof
    rules: list[Rule]
    violations: list[str]
    path: Path


def others_of(run: Run, against: str | None) -> tuple[str, list[Run], bool]:
    """What a run is compared with: words for it, the runs, and whether the line named them, as folders with commas
    between; else the runs of its sweep. Raises ConfigError for folders without runs."""
    if against is None:
        swept = (run.dir.parent / "multirun.yaml").exists()
        found = find_runs(run.dir.parent) if swept else []
        return "its sweep", [one for one in found if one.dir.absolute() != run.dir.absolute() and one.record], False
    runs: list[Run] = []
    for word in against.split(","):
        if is_figure(word):
            raise ConfigError(f"against={word}: nothing tells which text a published figure is of; folders of runs do")
        try:
            below = find_runs(word)
        except GolfError as error:
            raise ConfigError(f"against={error}") from error
        runs += (those := [one for one in below if one.dir.absolute() != run.dir.absolute()])
        if not those:
            raise ConfigError(f"against={word}: there is no other run")
    return against, runs, True


def check(job: Job, loaded: LoadedRun, others: tuple[str, list[Run], bool]) -> Checked:
    """Score the artifact without overlap, hold the figure against the record's, and prove what a run's end proves.
    others: see others_of.

    Raises ArtifactError for an artifact that cannot be read, DataError for data that is not there.
    """
    loaded.use("quantized")
    own = build.make(phases.last(loaded.run.config)["eval"], "eval")
    plain = own.contiguous()
    validation = loaded.validation(plain)
    score = loaded.score(plain, validation)
    found = proof.Proof()
    found.add("artifact alone", *_figure(loaded, plain, score))
    evaluators = [plain] if own.method == "contiguous" else [plain, own]
    prover = proof.Prover(
        loaded.model, loaded.forward, validation, loaded.fixed_shapes, loaded.exactly, seconds=None
    )  # fmt: skip
    with naming(loaded.config.get("code_paths") or []):
        found += prover.prove(evaluators, sorted(loaded.remembered))
    found += proof.of_data(loaded.prepared.facts)
    told = Proof(proved=found.proved, not_checked=found.not_checked, broken=found.broken)
    _seen_then(loaded.run.record, told)
    what, runs, named = others
    beside = compared(loaded.run.record, [one.record for one in runs], what, named)
    data = loaded.prepared.facts if loaded.same_data else loaded.run.record.get("data") or {}
    held = rules({**loaded.run.record, "proof": told.model_dump(), "data": data}, beside)
    record: dict[str, Any] = {
        "stage": "quantized", **score.as_dict(), "proof": told.model_dump(), "violations": found.violations,
        "checks": [one._asdict() for one in held], **circumstances(loaded, job, "check", ()),
    }  # fmt: skip
    return Checked(score, told, held, found.violations, keep(loaded.run, "check", record))


def _seen_then(record: Mapping[str, Any], told: Proof) -> None:
    """Add what the run alone could see, as its record has it."""
    then = record.get("proof") or {}
    told.proved += [word for word in then.get("proved") or () if word in SEEN_THEN]
    told.not_checked += [one for one in then.get("not_checked") or () if one.partition(" (")[0] in SEEN_THEN]
    told.broken |= {word: why for word, why in (then.get("broken") or {}).items() if word in SEEN_THEN}


def _figure(loaded: LoadedRun, plain: Any, score: Score) -> tuple[str | None, str | None]:
    """What is wrong with the record's figure of the artifact, and why it could not be held against this one."""
    if not loaded.same_data:
        return None, "the data has changed since"
    contradiction = loaded.contradiction(plain, "quantized", score)
    if contradiction is not None:
        return (
            f"artifact.golf scores {contradiction['found']:.4f} bpb, contiguous, where result.json says "
            f"{contradiction['recorded']:.4f}: that figure is not the artifact's"
        ), None
    recorded = [one for one in loaded.run.record.get("evals") or [] if one.get("stage") == "quantized"]
    known = any(one.get("method") == "contiguous" for one in recorded)
    return None, None if known else "the record has no such figure"
