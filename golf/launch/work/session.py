"""One run in this process, from its built parts to its record."""

from __future__ import annotations

import signal
import sys
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from golf.common.clock import Clocks
from golf.common.errors import GolfError, GolfInterrupted, LostWorker, NonFiniteLoss, told_of
from golf.common.log import FILE_ONLY, logger
from golf.common.reads import Reads
from golf.data import overlap
from golf.export.closure import ABOVE
from golf.launch.compose import build
from golf.launch.compose.own_code import naming
from golf.launch.compose.own_reads import packages
from golf.launch.work import retry
from golf.launch.work.early_end import among_others, last_words
from golf.launch.work.unread import WORD, Unread
from golf.runs import environment, record
from golf.runs.folder import read_metrics, rewind
from golf.runs.loggers import Loggers, RunInfo
from golf.runs.rules import rules
from golf.runs.screen import Screen, final_table
from golf.runs.seal import identity
from golf.runs.states import Status
from golf.train import checkpoint
from golf.train.control import Interrupt
from golf.train.finish import Code, Finish, save_weights
from golf.train.out_of_memory import OutOfMemory, explained
from golf.train.parts import Parts
from golf.train.saving import Checkpoints, Found, Saving
from golf.train.timeline import Phase
from golf.train.trainer import Trainer


class Session:
    """A run from its built parts to its record: loggers and progress around trainer and finish."""

    def __init__(
        self, config: dict[str, Any], parts: Parts, clocks: Clocks, interrupt: Interrupt, screen: Screen | None = None,
        reads: Reads | None = None, found: Found | None = None, unread: Unread | None = None,
    ) -> None:  # fmt: skip
        """found: the checkpoint from which the run goes on. unread: what watches the validation text."""
        self.config, self.parts, self.clocks, self.reads, self.found = config, parts, clocks, reads, found
        self.started = now()
        self.name = config.get("name") or parts.folder.path.name
        self.resumed: list[dict[str, Any]] = []
        self.retried = retry.attempts(parts.folder.path)
        self.saving = Saving(parts.checkpoint or Checkpoints(), parts.folder.checkpoints, self._beside)
        self.trainer = Trainer(parts, clocks, self.report, interrupt, self.saving)
        self.unread = Unread(parts.prepared, () if found is None else None) if unread is None else unread
        self.finish = Finish(self.trainer, self._code, lambda: self.unread.over(parts.ranks.gather_objects))
        bound_by_clock = parts.schedule.clock == "wall"
        self.screen = screen or Screen(clocks=clocks)
        self.screen.follow(
            lambda: (self.trainer.step, self.trainer.clock.elapsed_s), parts.schedule.iterations,
            self.trainer.train_seconds if bound_by_clock else None, parts.lines_every, self.trainer.compiled,
        )  # fmt: skip
        chosen = build.make(config["logger"], "logger") if parts.ranks.is_main else None
        self.loggers = Loggers(chosen, parts.ranks.rank)
        info = RunInfo(parts.folder.path.absolute(), self.name)
        self.loggers.start(info if found is None else self._take_up(info, found), config)

    def _beside(self) -> dict[str, Any]:
        """What a checkpoint holds besides the trainer's state."""
        return {
            "identity": identity(self.config), "started": self.started, "resumed": self.resumed,
            "metrics_bytes": self.loggers.settled(), "tracking": self.loggers.facts(), "unread": self.unread.found,
            "clocks": {name: s for name, s in self.clocks.seconds.items() if name != "train"},
        }  # fmt: skip

    def _take_up(self, info: RunInfo, found: Found) -> RunInfo:
        """Go on where the checkpoint was made: rows that came after it are cut off, and what they cost is put down."""
        parts, told, beside = self.parts, found.told, found.beside
        if not parts.ranks.is_main:
            return info
        last = rewind(parts.folder.metrics, beside["metrics_bytes"])
        lost_s = max(0.0, last.get("train_time_s", 0.0) - told["train_time_s"])
        lost_steps = max(0, last.get("step", 0) - found.step)
        self.started = beside["started"]
        self.clocks.add(beside["clocks"])
        if lost_s:
            self.clocks.add({"lost": lost_s})
        self.resumed = [*beside["resumed"], {
            "step": found.step, "tokens": told["tokens"], "train_time_s": told["train_time_s"],
            "world": parts.ranks.world, "lost_steps": lost_steps, "lost_s": lost_s, "at": now(),
        }]  # fmt: skip
        logger.info("goes on from %s, after step %d and %.1f s of training; %d steps and %.1f s after it were lost",
                    found.path.name, found.step, told["train_time_s"], lost_steps, lost_s)  # fmt: skip
        return replace(info, known=beside["tracking"], rows=read_metrics(parts.folder.metrics))

    def _code(self) -> Code:
        """The bytes of this run's code."""
        from golf.launch.work import export  # what a run has no other need of

        return export.count(self.config, {"kernels": self.parts.model.kernels(), "modules": modules()})

    def report(self, metrics: dict[str, Any], step: int) -> None:
        """A row of metrics, to the loggers and the screen."""
        self.loggers.log(metrics, step)
        self.screen.log(metrics, step, last=step >= self.parts.schedule.iterations)

    def run(self) -> None:
        """Train, finish and record; the record is written for an interrupted or failed run too. Raises GolfError."""
        parts, trainer = self.parts, self.trainer
        self._introduce()
        status: Status = "completed"
        error: GolfError | None = None
        try:
            with naming(self.config.get("code_paths") or []):
                with self.screen, self.unread.training(parts):
                    trainer.train(None if self.found is None else self.found.state(parts))
                    if not trainer.interrupted:
                        made = identity(self.config)
                        self.finish.run({"steps": trainer.step, "seed": parts.settings.seed, "config": made})
                if trainer.interrupted:
                    status, error = "interrupted", self._interrupted()
                    self._keep_weights("stop", trainer.step)
        except NonFiniteLoss as caught:
            status, error = "failed", caught
            self._keep_weights("last good", caught.good_step)
        except KeyboardInterrupt:
            self.trainer.interrupt.ending()
            status, error = self._stopped()
            if not parts.folder.weights.exists():
                self._keep_weights("interrupted", trainer.step)
        except Exception as caught:
            self.trainer.interrupt.ending()
            try:
                with among_others(parts.folder.path, parts.ranks):
                    found = explained(caught, parts)
                    if isinstance(found, OutOfMemory) and parts.runtime.retry_out_of_memory:
                        retry.note(parts.folder.path, found)
                    raise found
            except Exception as told:
                self._record("failed", told)
                raise
        finally:
            parts.loader.close()
            self.saving.close()
        self._record(status, error)
        if status == "completed" and parts.ranks.is_main:
            checkpoint.clear(parts.folder.checkpoints)
        if error is not None:
            raise error

    def _stopped(self) -> tuple[Status, GolfError]:
        """What became of a run that a signal stopped at once: torch's agent sends one when another worker has died,
        which left word of it."""
        if self.trainer.interrupt.by == signal.SIGTERM and (told := last_words(self.parts.folder.path, 0.0, "")):
            self.saving.close()
            return "failed", LostWorker(told)
        return "interrupted", self._interrupted()

    def _interrupted(self) -> GolfInterrupted:
        self.saving.close()
        kept = checkpoint.found(self.parts.folder.checkpoints)
        saved = (str(self.parts.folder.path), checkpoint.step_of(kept[0])) if kept else None
        return GolfInterrupted(self.trainer.step, self.trainer.interrupt.by, saved)

    def _introduce(self) -> None:
        parts, facts = self.parts, self.parts.prepared.facts
        model = parts.model
        total = sum(p.numel() for p in model.parameters())
        logger.info("run %s", parts.folder.path)
        logger.info("data: %s train and %s validation tokens, %s (%d ids)",
                    f"{len(parts.prepared.train):,}", f"{len(parts.validation.tokens):,}",
                    facts.get("tokenizer", "tokenizer"), model.shape.vocab_size)  # fmt: skip
        for one in self.retried:
            logger.warning("an attempt with %s tokens a pass ran out of memory; runtime.micro_tokens=%s since",
                           f"{one['tokens']:,}", one["micro_tokens"])  # fmt: skip
        for note in facts.get("notes", ()):
            logger.warning("data: %s", note)
        for known in overlap.told(facts):
            logger.info("data: %s", known)
        logger.info("model: %s parameters, %d layers of %d, techniques: %s", f"{total:,}", model.shape.num_layers,
                    model.shape.model_dim, ", ".join(model.technique_names) or "none")  # fmt: skip
        fused = any(serves != "torch" for op, serves in model.kernels().items() if op != "attention")
        graphs = ", CUDA graphs" if self.trainer.records_graphs else ""
        logger.info("runtime: %s x %d, %s, compile %s%s%s", parts.device.type, parts.ranks.world, parts.runtime.compute,
                    parts.runtime.compile_scope, graphs, "" if fused else ", no fused kernels")  # fmt: skip

        for before, phase in zip((None, *parts.phases), parts.phases, strict=False):
            if phase.qat is not None and (before is None or phase.qat is not before.qat):
                self._introduce_rounding(phase)

    def _introduce_rounding(self, phase: Phase) -> None:
        assert phase.qat is not None
        places, others = self.trainer.weights.rounded(phase.qat)
        when = f" from {phase.start} on" if phase.number else ""
        if not places:
            logger.warning("qat%s rounds nothing: each weight is kept whole, or of a role that it leaves out", when)
            return
        beside = f"; the artifact also {', '.join(others)}" if others else ""
        logger.info("training%s rounds %s%s", when, ", ".join(places), beside)

    def _keep_weights(self, stage: str, step: int) -> None:
        if self.parts.ranks.is_main and self.trainer.step:
            try:
                save_weights(self.parts.folder.weights, self.parts.model, {"stage": stage, "step": str(step)})
            except GolfError as error:
                logger.warning("the weights are not kept: %s", error)

    def _record(self, status: Status, error: BaseException | None) -> None:
        """Write result.json and close the loggers (rank 0)."""
        parts, trainer = self.parts, self.trainer
        if not parts.ranks.is_main:
            return
        wrong = [*self._count(), *self._watched()]
        result = record.Result.from_parts(
            status=status, error=_told(error), trained=self.finish.kept, steps=trainer.step,
            train_time_s=trainer.clock.elapsed_s + self.clocks.seconds.get("calibrate", 0.0),
            evals=self.finish.evals, bytes=self.finish.bytes, method=parts.evaluator.method,
            last_step_s=trainer.last_step_s, violations=[*self.finish.violations, *wrong],
            proof=self.finish.proof, **self._facts(),
        )  # fmt: skip
        result.checks = [one._asdict() for one in rules(result.model_dump())]
        result.write(parts.folder.result)
        if result.bytes is not None:
            self.loggers.ledger(result.bytes.by_group)
        self.loggers.finish(result.summary(), result.status)
        table = final_table(result, parts.folder.path, self.config.get("published"))
        logger.info("\n%s", table.rstrip(), extra=FILE_ONLY)
        print(table, flush=True)

    def _count(self) -> list[str]:
        """Add to the proof whether all that the user's own code needs was counted; a sentence for what was not."""
        proof, own = self.finish.proof, self.config.get("code_paths")
        found = [] if self.reads is None else self.reads.violations()
        if not own or found or not proof.proved:
            return found
        if extra := packages(own):
            listed = ", ".join(f"{name} {version}" for name, version in extra.items())
            proof.not_checked.append(f"bytes counted (the code imports {listed})")
        else:
            proof.proved.append("bytes counted")
        return []

    def _watched(self) -> list[str]:
        """Add to the proof whether training took none of the validation text; a sentence for each line that did."""
        proof, found, unknown = self.finish.proof, self.unread.found, self.unread.unknown
        if found:
            proof.broken[WORD] = found[0]
        elif proof.proved and unknown is not None:
            proof.not_checked.append(f"{WORD} ({unknown})")
        elif proof.proved:
            proof.proved.append(WORD)
        return found

    def _facts(self) -> dict[str, Any]:
        parts, config, trainer = self.parts, self.config, self.trainer
        specs, roles = parts.model.specs(), dict[str, int]()
        for name, parameter in parts.model.named_parameters():
            roles[specs[name].role] = roles.get(specs[name].role, 0) + parameter.numel()
        scaled = parts.scaled
        clock = parts.schedule.clock
        pairs = {
            key: record.ScaledSetting(record=value, used=used)
            for key, value in scaled.record.items()
            if value is not None and (used := scaled.scaled[key]) is not None
        }
        numerics = parts.model.numerics
        return {
            "name": self.name,
            "recipe": (config.get("choices") or {}).get("recipe"),
            "iterations": parts.schedule.iterations,
            "tokens": trainer.tokens,
            "train_loss": trainer.last_loss,
            "started": self.started,
            "finished": now(),
            "clocks": self.clocks.seconds,
            "seeds": {"seed": parts.settings.seed},
            "params": record.Params(total=sum(roles.values()), by_role=roles),
            "data": parts.prepared.facts,
            "kernels": parts.model.kernels(),
            "resumed": [record.Resumed(**one) for one in self.resumed],
            "retried": self.retried,
            "modules": modules(),
            "phases": [record.PhaseBegun(**begun) for begun in trainer.timeline.begun],
            "numerics": {
                "compute": numerics.compute, "stream": numerics.stream, "embed": str(numerics.embed_dtype),
                "norm_eps": numerics.norm_eps, "norm_eps_low": numerics.norm_eps_low,
                "compile": parts.runtime.compile_scope, "nproc": parts.ranks.world,
            },
            "budget": record.Budget(
                name=(config.get("choices") or {}).get("budget", "budget"), fraction=parts.budget.fraction,
                bound="wall" if clock == "wall" and trainer.train_seconds is not None else "steps", enforce="always",
                train_seconds=scaled.scaled["train_seconds"], eval_seconds=parts.budget.eval_seconds,
                artifact_bytes=parts.budget.artifact_bytes, scaled=pairs,
            ),
            "quantization": self.finish.quantization,
            "tracking": self.loggers.facts(),
            "peak_memory": environment.peak_memory(),
            "versions": {**packages(config.get("code_paths") or []), **environment.versions()},
            "git": environment.git_state(),
            "hardware": environment.hardware(),
        }  # fmt: skip


def now() -> str:
    """The present moment in UTC, as records have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _told(error: BaseException | None) -> str | None:
    """What a record says of an end: nothing of one that was asked for at the keyboard."""
    return None if error is None or (isinstance(error, GolfInterrupted) and not error.by_system) else told_of(error)


def modules() -> list[str]:
    """golf's modules that this process has loaded, but for those that no computation needs."""
    return sorted(name for name in sys.modules if name.startswith("golf.") and not name.startswith(ABOVE))
