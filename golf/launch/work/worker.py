"""One worker of one run: `python -P -m golf.launch.work.worker run=DIR`, alone or under torchrun.

It reads DIR/config.yaml, which is complete, and knows nothing of Hydra's command line.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import yaml

from golf.common.errors import ConfigError, GolfError, LostWorker, NonFiniteLoss, at_rest
from golf.common.log import FILE_ONLY, logger, setup
from golf.common.pipes import outlive_readers
from golf.common.process import settle
from golf.launch.compose.own_code import naming, use_code
from golf.launch.work.workers import end_with_parent

if TYPE_CHECKING:
    from golf.common.clock import Clocks
    from golf.common.ranks import Ranks
    from golf.common.runtime import Runtime
    from golf.runs.folder import RunFolder
    from golf.runs.screen import Screen
    from golf.runs.states import Status
    from golf.train.control import Interrupt
    from golf.train.parts import Parts


def main(argv: list[str] | None = None, work: Callable[[Path], None] | None = None) -> int:
    """Train the run in DIR, or do other `work` in it; the exit code is 0 even for an invalid run, whose record says
    so."""
    words = dict(word.partition("=")[::2] for word in (sys.argv[1:] if argv is None else argv))
    rank = int(os.environ.get("RANK", "0"))
    end_with_parent()
    try:
        if set(words) != {"run"}:
            raise ConfigError("usage: python -m golf.launch.work.worker run=DIR")
        settle()
        (work or train)(Path(words["run"]))
    except GolfError as error:
        if rank and isinstance(error, NonFiniteLoss | GolfInterrupted):
            return 0  # every rank meets these; a worker that fails ends the others, also rank 0 at its record
        prefix = f"[rank {rank}] " if rank else ""
        if logger.handlers:
            logger.error("%s%s", prefix, error)
        else:
            print(f"golf: {prefix}{error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        if rank:
            return 0
        print("golf: interrupted", file=sys.stderr)
        return 130
    except Exception:
        sys.excepthook(*sys.exc_info())  # now: leaving the process group may wait for those that wait for this worker
        return 1
    return 0


DEATH = ".died.rank*"
"""Where a worker of several leaves its last words for rank 0's record."""


@contextmanager
def among_others(directory: Path, ranks: Ranks) -> Iterator[None]:
    """Within the block an error that follows from another worker's death becomes a LostWorker, which names the cause;
    any other is noted for those that will meet it so."""
    from golf.common.ranks import lost_another

    try:
        yield
    except (NonFiniteLoss, GolfInterrupted, LostWorker):
        raise
    except Exception as error:
        if ranks.world > 1 and lost_another(error):
            raise LostWorker(last_words(directory)) from None
        if ranks.world > 1:
            kind = "" if isinstance(error, GolfError) else f"{type(error).__name__}: "
            note = directory / DEATH.replace("*", str(ranks.rank))
            with suppress(OSError):
                note.write_text(f"worker {ranks.rank} failed: {kind}{error}", encoding="utf-8")
        raise


def last_words(directory: Path, wait_s: float = 2.0) -> str:
    """Why another worker died, as it left it in the run's folder within `wait_s`."""
    until = time.monotonic() + wait_s
    while not (notes := sorted(directory.glob(DEATH), key=lambda path: path.stat().st_mtime)):
        if time.monotonic() > until:
            return "another worker ended without a word (killed, or out of memory?)"
        time.sleep(0.05)
    return notes[0].read_text(encoding="utf-8")


def train(directory: Path) -> None:
    """Build the run from its config, train, finish, and leave the record. Raises GolfError."""
    from golf.common import ranks as rank_module
    from golf.common.clock import Clocks
    from golf.launch.compose import build
    from golf.runs.folder import RunFolder
    from golf.runs.screen import Screen
    from golf.train.control import Interrupt

    config_file = directory / "config.yaml"
    if not config_file.is_file():
        raise GolfError(f"{config_file} is missing: golf writes it when it starts a run")
    config: dict[str, Any] = yaml.safe_load(config_file.read_text(encoding="utf-8"))
    use_code(config.get("code_paths") or [])
    runtime = build.make(config["runtime"], "runtime")
    ranks = rank_module.join(runtime.device_type)
    folder = RunFolder.claim(directory) if ranks.is_main else RunFolder(directory)
    clocks = Clocks()
    session: Session | None = None

    def stuck(number: int) -> None:
        error: BaseException = KeyboardInterrupt()
        if number == signal.SIGTERM:
            error = LostWorker(last_words(directory, wait_s=0.5))
            logger.error("%s", error)
        if ranks.is_main:
            steps, train_time_s = (session.trainer.step, session.trainer.clock.elapsed_s) if session else (0, 0.0)
            _record_early(folder, error, clocks.seconds, steps, train_time_s)
            folder.release()

    try:
        with (
            setup(ranks.rank, folder.log),
            Interrupt(stuck if ranks.world > 1 else None) as interrupt,
            among_others(directory, ranks),
            Screen(live=None if ranks.is_main else False, clocks=clocks) as screen,
        ):
            set_up(runtime, ranks, config["seed"])
            if ranks.world != runtime.nproc:
                logger.info("runtime.nproc=%d: %d workers were started, and count", runtime.nproc, ranks.world)
            try:
                with naming(config.get("code_paths") or []):
                    with clocks.phase("data"):
                        prepared = build.prepare_data(config, ranks)
                    parts = build.build(config, ranks, runtime, folder, prepared)
                    session = Session(config, parts, clocks, interrupt, screen)
            except (GolfError, KeyboardInterrupt) as error:
                if ranks.is_main:
                    _record_early(folder, error, clocks.seconds)
                raise
            session.run()
    finally:
        if ranks.is_main:
            folder.release()
            for note in directory.glob(DEATH):
                note.unlink(missing_ok=True)
    rank_module.leave()


def set_up(runtime: Runtime, ranks: Ranks, seed: int) -> None:
    """What of torch is this process's own: threads, TF32, determinism, seeds."""
    import torch

    from golf.common.seeding import deterministic, seed_all

    torch.set_num_threads(runtime.cpu_threads(int(os.environ.get("LOCAL_WORLD_SIZE", ranks.world))))
    if runtime.device_type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
    deterministic(runtime.deterministic)
    seed_all(seed)


def _record_early(
    folder: RunFolder, error: BaseException, clocks: dict[str, float], steps: int = 0, train_time_s: float = 0.0
) -> None:
    """The record of a run that ended before its first step, or that can tell no more of itself."""
    from golf.runs import environment
    from golf.runs.record import Result

    interrupted = isinstance(error, KeyboardInterrupt)
    Result.from_parts(
        status="interrupted" if interrupted else "failed", error=str(error) or None, steps=steps,
        train_time_s=train_time_s, name=folder.path.name, clocks=clocks, versions=environment.versions(),
        git=environment.git_state(), hardware=environment.hardware(),
    ).write(folder.result)  # fmt: skip


def record_death(directory: Path, told: str) -> None:
    """The record of a run whose worker 0 was killed: it could write none. One that is there stays."""
    from golf.runs.folder import RunFolder, read_metrics

    folder = RunFolder(directory)
    if folder.result.exists():
        return
    rows: list[dict[str, Any]] = []
    with suppress(GolfError, OSError):
        rows = read_metrics(folder.metrics)
    last = rows[-1] if rows else {}
    _record_early(folder, LostWorker(told), {}, last.get("step", 0), last.get("train_time_s", 0.0))
    folder.release()


class Session:
    """A run from its built parts to its record: loggers and progress around trainer and finish."""

    def __init__(
        self, config: dict[str, Any], parts: Parts, clocks: Clocks, interrupt: Interrupt, screen: Screen | None = None
    ) -> None:
        from golf.launch.compose import build
        from golf.runs.loggers import Loggers, RunInfo
        from golf.runs.screen import Screen
        from golf.train.finish import Finish
        from golf.train.trainer import Trainer

        self.config, self.parts, self.clocks = config, parts, clocks
        self.started = datetime.now(UTC)
        self.name = config.get("name") or parts.folder.path.name
        self.trainer = Trainer(parts, clocks, self.report, interrupt)
        self.finish = Finish(self.trainer)
        bound_by_clock = parts.schedule.clock == "wall"
        self.screen = screen or Screen(clocks=clocks)
        self.screen.follow(
            lambda: (self.trainer.step, self.trainer.clock.elapsed_s), parts.schedule.iterations,
            self.trainer.train_seconds if bound_by_clock else None, parts.lines_every, self.trainer.compiled,
        )  # fmt: skip
        chosen = build.make(config["logger"], "logger") if parts.ranks.is_main else None
        self.loggers = Loggers(chosen, parts.ranks.rank)
        self.loggers.start(RunInfo(parts.folder.path.absolute(), self.name), config)

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
                with self.screen:
                    trainer.train()
                    if not trainer.interrupted:
                        self.finish.run({"steps": trainer.step, "seed": parts.settings.seed})
                if trainer.interrupted:
                    status, error = "interrupted", GolfInterrupted(trainer.step, trainer.interrupt.by)
                    self._keep_weights("stop", trainer.step)
        except NonFiniteLoss as caught:
            status, error = "failed", caught
            self._keep_weights("last good", caught.good_step)
        except KeyboardInterrupt:
            self.trainer.interrupt.ending()
            status, error = "interrupted", GolfInterrupted(trainer.step, trainer.interrupt.by)
            if not parts.folder.weights.exists():
                self._keep_weights("interrupted", trainer.step)
        except Exception:
            self.trainer.interrupt.ending()
            try:
                with among_others(parts.folder.path, parts.ranks):
                    raise
            except Exception as told:
                self._record("failed", told)
                raise
        finally:
            parts.loader.close()
        self._record(status, error)
        if error is not None:
            raise error

    def _introduce(self) -> None:
        parts, facts = self.parts, self.parts.prepared.facts
        model = parts.model
        total = sum(p.numel() for p in model.parameters())
        logger.info("run %s", parts.folder.path)
        logger.info("data: %s train and %s validation tokens, %s (%d ids)",
                    f"{len(parts.prepared.train):,}", f"{len(parts.validation.tokens):,}",
                    facts.get("tokenizer", "tokenizer"), model.shape.vocab_size)  # fmt: skip
        for note in facts.get("notes", ()):
            logger.warning("data: %s", note)
        logger.info("model: %s parameters, %d layers of %d, techniques: %s", f"{total:,}", model.shape.num_layers,
                    model.shape.model_dim, ", ".join(model.technique_names) or "none")  # fmt: skip
        fused = any("Triton" in serves for serves in model.kernels().values())
        graphs = ", CUDA graphs" if self.trainer.records_graphs else ""
        logger.info("runtime: %s x %d, %s, compile %s%s%s", parts.device.type, parts.ranks.world, parts.runtime.compute,
                    parts.runtime.compile_scope, graphs, "" if fused else ", no fused kernels")  # fmt: skip

    def _keep_weights(self, stage: str, step: int) -> None:
        from golf.train.finish import save_weights

        if self.parts.ranks.is_main and self.trainer.step:
            save_weights(self.parts.folder.weights, self.parts.model, {"stage": stage, "step": str(step)})

    def _record(self, status: Status, error: BaseException | None) -> None:
        """Write result.json and close the loggers (rank 0)."""
        from golf.runs.record import Result
        from golf.runs.screen import final_table

        parts, trainer = self.parts, self.trainer
        if not parts.ranks.is_main:
            return
        result = Result.from_parts(
            status=status, error=_told(error), steps=trainer.step,
            train_time_s=trainer.clock.elapsed_s, evals=self.finish.evals, bytes=self.finish.bytes,
            method=parts.evaluator.method, last_step_s=trainer.last_step_s, violations=self.finish.violations,
            **self._facts(),
        )  # fmt: skip
        result.write(parts.folder.result)
        if result.bytes is not None:
            self.loggers.ledger(result.bytes.by_group)
        self.loggers.finish(result.summary(), result.status)
        table = final_table(result, parts.folder.path, self.config.get("published"))
        logger.info("\n%s", table.rstrip(), extra=FILE_ONLY)
        print(table, flush=True)

    def _facts(self) -> dict[str, Any]:
        from golf.runs import environment, record

        parts, config, trainer = self.parts, self.config, self.trainer
        specs, roles = parts.model.specs(), dict[str, int]()
        for name, parameter in parts.model.named_parameters():
            roles[specs[name].role] = roles.get(specs[name].role, 0) + parameter.numel()
        scaled = parts.scaled
        clock = parts.schedule.clock
        pairs = {
            key: record.Scaled(record=value, used=used)
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
            "started": self.started.isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "clocks": self.clocks.seconds,
            "seeds": {"seed": parts.settings.seed},
            "params": record.Params(total=sum(roles.values()), by_role=roles),
            "data": parts.prepared.facts,
            "kernels": parts.model.kernels(),
            "numerics": {
                "compute": numerics.compute, "stream": numerics.stream, "embed": str(numerics.embed_dtype),
                "norm_eps": numerics.norm_eps, "norm_eps_low": numerics.norm_eps_low,
                "compile": parts.runtime.compile_scope, "nproc": parts.ranks.world,
            },
            "budget": record.Budget(
                name=(config.get("choices") or {}).get("budget", "budget"), fraction=parts.budget.fraction,
                bound="wall" if clock == "wall" and trainer.train_seconds is not None else "steps", enforce="always",
                train_seconds=trainer.train_seconds, eval_seconds=parts.budget.eval_seconds,
                artifact_bytes=parts.budget.artifact_bytes, scaled=pairs,
            ),
            "quantization": self.finish.quantization,
            "tracking": self.loggers.facts(),
            "peak_memory": environment.peak_memory(),
            "versions": environment.versions(),
            "git": environment.git_state(),
            "hardware": environment.hardware(),
        }  # fmt: skip


class GolfInterrupted(GolfError):
    """Ctrl-C or SIGTERM ended the run; its record says so."""

    exit_code = 130

    def __init__(self, step: int, by: int | None) -> None:
        self.by_system = by == signal.SIGTERM
        how = (
            "stopped by SIGTERM, a scheduler's or because what started it is gone," if self.by_system else "interrupted"
        )
        super().__init__(f"{how} after step {step}: the record and the weights so far were kept")


def _told(error: BaseException | None) -> str | None:
    """What a record says of an end: nothing of one that was asked for at the keyboard."""
    return None if error is None or (isinstance(error, GolfInterrupted) and not error.by_system) else str(error)


def leave_process(code: int) -> NoReturn:
    """End the process; one that could not leave its process group in order does not wait for the others there."""
    at_rest(code)
    sys.stdout.flush()
    sys.stderr.flush()
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_initialized():
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    outlive_readers()
    leave_process(main())
