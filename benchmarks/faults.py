"""Runs killed on purpose, and what is lost: `python benchmarks/faults.py [KILLS] [--signals] [--only KIND] [--seed N]`.

Tiny runs on a CPU are killed with SIGKILL at random moments, in set-up, training, checkpoints and evaluation, then the
same line is given again (`resume=auto`; of a sweep `sweep.skip_done=true`). What it comes to is held against a run that
nobody disturbed: the rows of metrics.jsonl and the bytes of the artifact must be equal, and no process, lock or part of
a file may be left. With `--signals` they are told to end instead, and must leave a record within 30 s. A line for each,
a table at the end; exit code 1 where anything was lost.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from golf.runs.folder import deterministic_part, read_metrics
from golf.runs.store import Run

TINY = (
    "recipe=quickstart", "budget=smoke", "tokenizer=byte260", "model.num_layers=2", "schedule.iterations=16",
    "val_tokens=4097", "logger=jsonl", "runtime=cpu", "runtime.threads=1", "checkpoint.every=2", "log_every=1",
)  # fmt: skip
MARK = "GOLF_FAULTS"
"""The variable by which the processes of one try are known."""
HANGS_S = 300.0
LEFT = (".running", ".starting.lock", ".died.rank*", ".beat.rank*", ".*.part", "checkpoints/.*")
"""What no run that has ended may have in its folder."""


@dataclass(frozen=True)
class Kind:
    """What is killed: a line of `golf train`, and which of its processes."""

    name: str
    target: str
    words: tuple[str, ...] = ()
    sweep: bool = False
    rank: int | None = None
    number: signal.Signals = signal.SIGKILL


KINDS = (
    Kind("the only worker", "worker"),
    Kind("rank 1 of 2", "worker", ("runtime.nproc=2",), rank=1),
    Kind("rank 0 of 2", "worker", ("runtime.nproc=2",), rank=0),
    Kind("golf train", "parent"),
    Kind("golf train of 2 ranks", "parent", ("runtime.nproc=2",)),
    Kind("a sweep's job", "worker", ("-m", "seed=1,2", "hydra.launcher.jobs=1"), sweep=True),
    Kind("the sweep", "parent", ("-m", "seed=1,2", "hydra.launcher.jobs=1"), sweep=True),
)

TOLD = tuple(
    Kind(f"{number.name}{of}", "parent", words, number=number)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
    for of, words in (("", ()), (" to 2 ranks", ("runtime.nproc=2",)))
)
"""What is not killed but told to end: `--signals`."""
GRACE_S = 30.0
"""How long what is told to end may take."""


@dataclass
class Try:
    """One kill, and what came of it."""

    kind: Kind
    moment: str
    status: str = ""
    lost_steps: int = 0
    lost_s: float = 0.0
    ended_s: float = 0.0
    """How long after the kill the last process was gone."""
    wrong: list[str] = field(default_factory=list)


class Campaign:
    """Kills runs below `place`, each in a folder of its own."""

    def __init__(self, place: Path, seed: int) -> None:
        self.place, self.random = place, random.Random(seed)
        self.number = 0
        self.whole: dict[tuple[str, ...], tuple[Path, float]] = {}

    def run(self, kills: int, kinds: Sequence[Kind]) -> list[Try]:
        """So many, in turn of each kind."""
        done = []
        for number in range(kills):
            done.append(one := self.kill(kinds[number % len(kinds)]))
            lost = f"{one.lost_steps} steps done again ({one.lost_s:.1f} s)"
            told = "; ".join(one.wrong) or "as undisturbed"
            print(
                f"{number + 1:>3} {one.kind.name:<22} {one.moment:<34} {one.status:<11} {lost:<30} {told}", flush=True
            )
        return done

    def undisturbed(self, kind: Kind) -> tuple[Path, float]:
        """The folder of such a run that nothing happened to, and the seconds it took."""
        if kind.words not in self.whole:
            folder, began = self.place / f"whole{len(self.whole)}", time.monotonic()
            process = self.start(kind, folder, "whole")
            output = process.communicate(timeout=HANGS_S)[0]
            if process.returncode:
                raise SystemExit(f"the undisturbed run failed:\n{output}")
            self.whole[kind.words] = folder, time.monotonic() - began
        return self.whole[kind.words]

    def kill(self, kind: Kind) -> Try:
        """Kill one, give its line again, and look."""
        whole, seconds = self.undisturbed(kind)
        self.number += 1
        mark, folder = f"{os.getpid()}-{self.number}", self.place / f"run{self.number}"
        process = self.start(kind, folder, mark)
        one = Try(kind, self.strike(kind, process, mark, seconds))
        killed = time.monotonic()
        process.communicate(timeout=HANGS_S)
        gone = wait_for(lambda: all_gone(mark))
        one.ended_s = time.monotonic() - killed
        if not gone:
            one.wrong.append(f"{len(list(marked(mark)))} processes live on")
        runs = sorted(path.parent for at in ("", "*/") for path in folder.glob(f"{at}config.yaml"))
        one.status = "/".join(Run(run).status for run in runs) or "none yet"
        if "running" in one.status:
            one.wrong.append("reads as running")
        if kind.number != signal.SIGKILL:
            if one.ended_s > GRACE_S:
                one.wrong.append(f"took {one.ended_s:.0f} s to end")
            if runs and not (runs[0] / "result.json").exists():
                one.wrong.append("no record")
        again = self.start(kind, folder, mark, again=True)
        output = again.communicate(timeout=HANGS_S)[0]
        if again.returncode:
            one.wrong.append(f"going on ended with {again.returncode}: {output.strip().splitlines()[-1:]}")
        else:
            compare(whole, folder, one)
        if not one.wrong:
            shutil.rmtree(folder)
        return one

    def start(self, kind: Kind, folder: Path, mark: str, again: bool = False) -> subprocess.Popen[str]:
        """The line of such a run into a folder, to go on there where it is given `again`."""
        words = [f"hydra.sweep.dir={folder}" if kind.sweep else f"hydra.run.dir={folder}"]
        if again:
            words.append("sweep.skip_done=true" if kind.sweep else "resume=auto")
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "golf.cli.main", "train", *TINY, *kind.words, *words], cwd=self.place,
            env={**os.environ, MARK: mark, "GOLF_CACHE": str(self.place / "cache")},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def strike(self, kind: Kind, process: subprocess.Popen[str], mark: str, seconds: float) -> str:
        """Wait for a random moment, and kill; when it was. Half of them lie in training, which is short."""
        began = time.monotonic()
        if self.random.random() < 0.5:
            wait = self.random.uniform(0, seconds)
            wait_for(lambda: time.monotonic() - began >= wait or process.poll() is not None)
        else:
            step, rows = self.random.randrange(1, 16), self.place / f"run{self.number}"
            wait_for(lambda: steps(rows) >= step or process.poll() is not None)
            time.sleep(self.random.uniform(0, 0.1))
        victim: psutil.Process | None = None
        if kind.target == "parent":
            victim = psutil.Process(process.pid) if process.poll() is None else None
        else:
            wait_for(lambda: worker(mark, kind.rank) is not None or process.poll() is not None)
            time.sleep(self.random.uniform(0, 0.1))
            victim = worker(mark, kind.rank)
        reached = steps(self.place / f"run{self.number}")
        if victim is None or process.poll() is not None:
            return "too late: it had ended"
        victim.send_signal(kind.number)
        return f"after {time.monotonic() - began:5.1f} s, {reached} rows written"


def wait_for(what: Callable[[], Any], seconds: float = 60.0) -> bool:
    """Wait until something is so; whether it came to be."""
    until = time.monotonic() + seconds
    while not what():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def steps(folder: Path) -> int:
    """Rows of metrics in a run's folder, or in all of a sweep's."""
    found = [folder / "metrics.jsonl", *folder.glob("*/metrics.jsonl")]
    return sum(path.read_bytes().count(b"\n") for path in found if path.is_file())


def marked(mark: str) -> Iterator[psutil.Process]:
    """The processes of one try that live."""
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except (psutil.Error, OSError):
            continue


def all_gone(mark: str) -> bool:
    """Whether no process of a try lives: looked at twice, for one that has just been started has no environment yet."""
    if list(marked(mark)):
        return False
    time.sleep(0.5)
    return not list(marked(mark))


def worker(mark: str, rank: int | None) -> psutil.Process | None:
    """The worker of a try that has this rank, or the only one."""
    for process in marked(mark):
        try:
            if "golf.launch.work.worker" in process.cmdline() and process.environ().get("RANK", "0") == str(rank or 0):
                return process
        except (psutil.Error, OSError):
            continue
    return None


def compare(whole: Path, folder: Path, one: Try) -> None:
    """Put down in what a run, or each of a sweep's, differs from the undisturbed, what it cost, and what was left."""
    for expected in sorted(path.parent for path in whole.rglob("result.json")):
        run = folder / expected.relative_to(whole)
        others = sorted(run.parent.glob(f"{run.name}.*")) if run != folder else []
        run = next((path for path in others if Run(path).status == "completed"), run)  # where a sweep begins it anew
        record = Run(run).record
        if record.get("status") != "completed":
            one.wrong.append(f"{run.name}: {record.get('status')}: {record.get('error')}")
            continue
        rows = [deterministic_part(read_metrics(path / "metrics.jsonl")) for path in (expected, run)]
        if rows[0] != rows[1]:
            one.wrong.append(f"{run.name}: other rows")
        if (run / "artifact.golf").read_bytes() != (expected / "artifact.golf").read_bytes():
            one.wrong.append(f"{run.name}: another artifact")
        one.lost_steps += sum(resumed["lost_steps"] for resumed in record["resumed"])
        one.lost_s += sum(resumed["lost_s"] for resumed in record["resumed"])
        left = [path.name for pattern in LEFT for path in run.glob(pattern)]
        if left or (run / "checkpoints").exists():
            one.wrong.append(f"{run.name}: left {', '.join(left) or 'checkpoints'}")


def table(done: Sequence[Try]) -> str:
    """A line for each kind, as markdown."""
    rows = ["| killed | times | in set-up or too late | most steps done again | gone after, at most | lost |",
            "| --- | ---: | ---: | ---: | ---: | --- |"]  # fmt: skip
    for kind in dict.fromkeys(one.kind for one in done):
        own = [one for one in done if one.kind is kind]
        early = sum(" 0 rows" in one.moment or "too late" in one.moment for one in own)
        wrong = [told for one in own for told in one.wrong]
        rows.append(f"| {kind.name} | {len(own)} | {early} | {max(one.lost_steps for one in own)} "
                    f"| {max(one.ended_s for one in own):.1f} s | {'; '.join(wrong) or 'nothing'} |")  # fmt: skip
    return "\n".join(rows)


def main() -> int:
    """Kill, print, and say whether anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kills", type=int, nargs="?", default=len(KINDS))
    parser.add_argument("--signals", action="store_true", help="tell runs to end, by the signals that they answer")
    parser.add_argument("--only", default="", help="kinds whose name has this in it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="a file for what came of each")
    chosen = parser.parse_args()
    kinds = [one for one in (TOLD if chosen.signals else KINDS) if chosen.only in one.name]
    with tempfile.TemporaryDirectory(prefix="golf-faults-") as place:
        done = Campaign(Path(place), chosen.seed).run(chosen.kills, kinds)
    print(table(done))
    if chosen.json is not None:
        told = [{**vars(one), "kind": one.kind.name} for one in done]
        chosen.json.write_text(json.dumps(told, indent=1), encoding="utf-8")
    return int(any(one.wrong for one in done))


if __name__ == "__main__":
    sys.exit(main())
