"""One worker of one run: `python -P -m golf.launch.work.worker run=DIR`, alone or under torchrun.

It reads DIR/config.yaml, which is complete, and knows nothing of Hydra's command line. With `resume=must` the run
goes on from its newest checkpoint, with `resume=auto` if it has one.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from golf.common.errors import (
    BY_SYSTEM,
    ConfigError,
    GolfError,
    GolfInterrupted,
    LostWorker,
    NonFiniteLoss,
    at_rest,
    stopping,
)
from golf.common.log import logger, setup
from golf.common.pipes import outlive_readers
from golf.common.process import settle
from golf.common.secret import without_keys
from golf.common.shown import plain_text, told
from golf.launch.compose.own_code import naming
from golf.launch.compose.own_modules import use_code
from golf.launch.work.attempts import AUTO, MUST, NEVER
from golf.launch.work.early_end import DEATH, among_others, clear, last_words, record_death, record_early
from golf.launch.work.heartbeat import Heartbeat, fatal_errors_to, log_of
from golf.launch.work.workers import end_with_parent

if TYPE_CHECKING:
    from golf.common.ranks import Ranks
    from golf.common.runtime import Runtime
    from golf.runs.folder import RunFolder
    from golf.train.saving import Found


def main(argv: list[str] | None = None, work: Callable[[Path], None] | None = None) -> int:
    """Train the run in DIR, or do other `work` in it; the exit code is 0 even for an invalid run, whose record says
    so."""
    given = sys.argv[1:] if argv is None else argv
    words = dict(word.partition("=")[::2] for word in given if word != "--trust")
    rank = int(os.environ.get("RANK", "0"))

    def stopped_early(error: GolfInterrupted) -> None:
        """It may have come before the run had taken its folder."""
        if not rank and work is None and "run" in words:
            record_death(Path(words["run"]), error)

    try:
        if not end_with_parent():
            raise GolfInterrupted(0, signal.SIGTERM)
        resume = words.pop("resume", NEVER)
        if set(words) != {"run"} or resume not in (NEVER, MUST, AUTO):
            raise ConfigError("usage: python -m golf.launch.work.worker run=DIR [resume=auto|must] [--trust]")
        with interrupts_as_errors():
            settle()
            (work or partial(train, resume=resume, trust="--trust" in given))(Path(words["run"]))
    except GolfError as error:
        if isinstance(error, GolfInterrupted):
            stopped_early(error)
        if rank and isinstance(error, NonFiniteLoss | GolfInterrupted):
            return 0  # every rank meets these; a worker that fails ends the others, also rank 0 at its record
        prefix = f"[rank {rank}] " if rank else ""
        if logger.handlers:
            logger.error("%s%s", prefix, error)
        else:
            print(f"golf: {prefix}{told(error)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        if rank:
            return 0
        stopped_early(GolfInterrupted(0, None))
        print("golf: interrupted", file=sys.stderr)
        return 130
    except Exception:
        print(
            plain_text(without_keys(traceback.format_exc())), end="", file=sys.stderr, flush=True
        )  # now: leaving the process group may wait for those that wait for this worker
        return 1
    return 0


@contextmanager
def interrupts_as_errors() -> Iterator[None]:
    """Within the block a signal of the system's raises GolfInterrupted, until a run answers it better."""

    def handle(number: int, frame: FrameType | None) -> None:
        raise GolfInterrupted(0, number)

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, handle) for number in stopping()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(directory: Path, resume: str = NEVER, trust: bool = False) -> None:
    """Build the run from its config, train, finish, and leave the record. trust: with code that another user or machine
    has put there. Raises GolfError."""
    from golf.launch.compose import build
    from golf.launch.compose.trust import admit
    from golf.runs.store import Run

    config_file = directory / "config.yaml"
    if not config_file.is_file():
        raise GolfError(f"{config_file} is missing: golf writes it when it starts a run")
    config = Run(directory).config
    if not {"model", "data", "tokenizer", "runtime"} <= config.keys():
        raise GolfError(f"{config_file} is broken: golf writes it when it starts a run")
    config["code_paths"] = admit(directory, config, f"run={directory}", trust=trust)
    use_code(config["code_paths"])
    runtime = build.make(config["runtime"], "runtime")
    rank, world = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    with Heartbeat(directory, rank, world, runtime.hang_seconds):
        _train(directory, config, runtime, resume)


def _train(directory: Path, config: dict[str, Any], runtime: Runtime, resume: str) -> None:
    from golf.common import ranks as rank_module
    from golf.common.clock import Clocks
    from golf.common.reads import watching
    from golf.common.runtime import set_up
    from golf.launch.compose import build
    from golf.launch.compose.own_reads import reads_of
    from golf.launch.work.session import Session
    from golf.launch.work.unread import Unread
    from golf.runs.screen import Screen
    from golf.train.control import Interrupt

    ranks = rank_module.join(runtime.device_type)
    folder, found, notes = claimed(directory, ranks, resume, config)
    clocks = Clocks()
    session: Session | None = None

    def stuck(number: int) -> None:
        error: BaseException = KeyboardInterrupt()
        if number == signal.SIGTERM:
            error = LostWorker(last_words(directory, wait_s=0.5))
            logger.error("%s", error)
        if ranks.is_main:
            steps, train_time_s = (session.trainer.step, session.trainer.clock.elapsed_s) if session else (0, 0.0)
            record_early(folder, error, clocks.seconds, steps, train_time_s)
            folder.release()

    try:
        with (
            setup(ranks.rank, folder.log),
            fatal_errors_to(log_of(directory, ranks.rank)),
            Interrupt(stuck if ranks.world > 1 else None) as interrupt,
            among_others(directory, ranks),
            Screen(live=None if ranks.is_main else False, clocks=clocks) as screen,
        ):
            for line in notes:
                logger.warning("%s", line)
            try:
                set_up(runtime, ranks.world, config["seed"])
                if ranks.world != runtime.nproc:
                    logger.info("runtime.nproc=%d: %d workers were started, and count", runtime.nproc, ranks.world)
                with naming(config.get("code_paths") or []):
                    with clocks.phase("data"):
                        prepared = build.prepare_data(config, ranks)
                    unread = Unread(prepared, () if found is None else found.beside.get("unread"))
                    with watching(reads := reads_of(config, [str(directory)])), unread.building():
                        parts = build.build(config, ranks, runtime, folder, prepared)
                    session = Session(config, parts, clocks, interrupt, screen, reads, found, unread)
            except (GolfError, KeyboardInterrupt) as error:
                told: BaseException = error
                if isinstance(error, KeyboardInterrupt) and interrupt.by in BY_SYSTEM:
                    kept = None if found is None else (str(directory), found.step)
                    told = GolfInterrupted(0 if found is None else found.step, interrupt.by, kept)
                if ranks.is_main:
                    record_early(folder, told, clocks.seconds, *(() if found is None else found.reached))
                raise told from None
            reads.refuses = False  # what comes this late costs no run, but its validity
            with watching(reads):
                session.run()
    finally:
        if ranks.is_main:
            folder.release()
            clear(directory)
    rank_module.leave()


def claimed(
    directory: Path, ranks: Ranks, resume: str, config: dict[str, Any]
) -> tuple[RunFolder, Found | None, list[str]]:
    """The run's folder, claimed by rank 0, the checkpoint to go on from, and what is to be told of others.

    resume: `must` raises GolfError where there is none; `auto` then sets aside what an earlier attempt left.
    """
    from golf.launch.work.attempts import set_aside
    from golf.runs.folder import RunFolder
    from golf.runs.seal import identity
    from golf.train.saving import find

    folder = RunFolder(directory)
    if resume == NEVER:
        return (RunFolder.claim(directory) if ranks.is_main else folder), None, []
    if ranks.is_main:
        RunFolder.claim(directory, resume=True)
        for note in directory.glob(DEATH):  # an attempt's whose machine died with it
            note.unlink(missing_ok=True)
    try:
        found, notes = find(folder.checkpoints, ranks)
        if found is None and resume == MUST:
            raise GolfError("\n".join([f"{directory} has no checkpoint to go on from", *notes[:2]]))
        if found is not None and found.beside.get("identity") != identity(config):
            raise GolfError(f"{folder.config} is not the config of {found.path}: a run goes on as it began")
        if ranks.is_main:
            if found is None:
                set_aside(folder)
            folder.result.unlink(missing_ok=True)  # it speaks of the attempt that ended early
    except GolfError:
        if ranks.is_main:
            folder.release()
        raise
    return folder, found, notes


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
