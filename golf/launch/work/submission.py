"""A submission's folder, whoever made it, held to the rules that can be seen from it alone.

Nothing of it is run but what the line allows: the file's own `--eval` on an artifact that the line names.
"""

from __future__ import annotations

import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from golf.common.bounded import read_bytes, read_json
from golf.common.errors import DataError
from golf.common.shown import plain_line
from golf.export.scanned import NEEDS, SCRIPT, TOLD, Scanned, Unreadable, scan
from golf.launch.compose.trust import is_listed
from golf.launch.work.loaded import SAME_FIGURE
from golf.runs.dotted import dig
from golf.runs.filters import number
from golf.runs.rules import Rule, State, unseen

MOST_BYTES, MOST_SECONDS = 16_000_000, 600.0
"""The challenge's limits: of artifact and code, of training and of evaluation."""
MOST_SCRIPT, MOST_LOG, MOST_LINE = 1 << 23, 1 << 26, 1 << 12
"""What is read of a file, and how long a log's line is that says anything."""
STRANGERS = frozenset(("golf", "hydra", "omegaconf", "wandb", "pydantic", "rich"))
BROUGHT = frozenset(("triton",))
"""What comes along with torch."""
_EXACT = re.compile(r"_exact val_loss:\S+ val_bpb:([\d.]+)")
_QUANTIZED = re.compile(r"quantized, \S+: val_bpb ([\d.]+) .*\(([\d.,]+) s, ")
_EVAL_MS = re.compile(r"_roundtrip\S* .*eval_time:(\d+)ms")
_TRAIN_MS = re.compile(r"step:(\d+)/\d+ .*train_time:(\d+)ms")
_PROVED = re.compile(r"^proved: ([^;\n]+)", re.MULTILINE)
_ALONE = "usage: train_gpt.py [--eval FILE]"
"""What is in files that golf exported: one that does not know `--eval` would train."""


def rules_of(folder: Path, artifacts: Sequence[Path] = (), trust: bool = False) -> list[Rule]:
    """Every rule's row. artifacts: those that the file is to score, in a process of its own. trust: the line allows
    to run it. Raises DataError for a folder that cannot be read, ArtifactError for no artifact of golf's."""
    return Submission(folder).rules(artifacts, trust or is_listed(folder))


@dataclass(frozen=True)
class Seed:
    """What submission.json says of one run, and its log."""

    name: str
    told: Mapping[str, Any]
    log: str | None

    @property
    def figure(self) -> tuple[float, float] | None:
        """The bpb in the log, and by how much it may be rounded."""
        for pattern, rounding in ((_EXACT, 1e-7), (_QUANTIZED, 5.1e-5)):
            if found := pattern.findall(self.log or ""):
                last = found[-1]
                return float(last if isinstance(last, str) else last[0]), rounding
        return None

    @property
    def eval_seconds(self) -> float | None:
        """The longest evaluation in the log."""
        log = self.log or ""
        times = [int(one) / 1000 for one in _EVAL_MS.findall(log)]
        times += [float(one.replace(",", "")) for _, one in _QUANTIZED.findall(log)]
        return max(times, default=None)

    @property
    def train_seconds(self) -> tuple[float, float] | None:
        """Seconds of training, and those of a mean step."""
        rows = _TRAIN_MS.findall(self.log or "")
        steps: Any = self.told.get("steps")
        seconds: Any = self.told.get("train_time_s")
        if rows:
            steps, seconds = int(rows[-1][0]), max(int(rows[-1][1]) / 1000, seconds if number(seconds) else 0.0)
        return (seconds, seconds / steps if number(steps) and steps > 0 else 0.0) if number(seconds) else None


class Submission:
    """One folder, read. Raises DataError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.script = read_bytes(folder / SCRIPT, MOST_SCRIPT)
            told = read_json(folder / TOLD)
        except (OSError, ValueError) as error:
            raise DataError(f"{folder}: {plain_line(str(error))}") from None
        self.told: dict[str, Any] = told if isinstance(told, dict) else {}

    @cached_property
    def seeds(self) -> list[Seed]:
        """The runs that submission.json tells of; where it names no seeds, one."""
        results = self.told.get("seed_results")
        given = {str(k): v for k, v in results.items() if isinstance(v, dict)} if isinstance(results, dict) else {}
        if not given:
            return [Seed("", self.told, self._log(["train.log"]))]
        return [Seed(seed, one, self._log([f"train_seed{seed}.log", f"train_seed{seed}.txt"])) for seed, one in
                given.items()]  # fmt: skip

    def _log(self, names: Sequence[str]) -> str | None:
        for name in names:
            try:
                if "/" not in name:
                    text = read_bytes(self.folder / name, MOST_LOG).decode("utf-8", errors="replace")
                    return "\n".join(line for line in text.splitlines() if len(line) <= MOST_LINE)
            except (OSError, ValueError):
                continue
        return None

    @cached_property
    def scanned(self) -> Scanned | str:
        """What the file is, or why it is no Python."""
        try:
            return scan(self.script)
        except Unreadable as error:
            return str(error)

    def rules(self, artifacts: Sequence[Path], trust: bool) -> list[Rule]:
        """Every row."""
        logs = [{word for part in _PROVED.findall(one.log or "") for word in part.split(", ")} for one in self.seeds]
        of_run = "from its run alone: golf check run=DIR"
        said = dict.fromkeys(set.intersection(*logs), "its log says so; proved from its run: golf check run=DIR")
        return [
            self._bytes(artifacts), self._training(), self._evaluation(), self._alone(), self._packages(),
            self._sums(), self._logged(), self._scored(artifacts, trust), *unseen(said, of_run),
        ]  # fmt: skip

    def _bytes(self, artifacts: Sequence[Path]) -> Rule:
        rule, own = "bytes of artifact and code", len(self.script)
        code: Any = self.told.get("bytes_code")
        total: Any = self.told.get("bytes_total")
        if not number(total):
            return Rule(rule, "not run", f"{TOLD} has no bytes_total")
        packed = isinstance(self.scanned, Scanned) and self.scanned.packed
        model = total - (code if number(code) else own)
        if artifacts:
            model = max(model, *(path.stat().st_size for path in artifacts))
            if number(code) and model + code > total:
                return Rule(
                    rule, "fail", f"{TOLD} has {total:,}: the artifact's {model:,} and {code:,} of code are more"
                )
        if own == code or not number(code) or model + own <= MOST_BYTES:
            if packed and number(code) and own != code:
                return Rule(rule, "fail", f"{SCRIPT} has {own:,} bytes, {TOLD} says {code:,}")
            which = "" if own == code else f", with {SCRIPT} as it lies"
            state: State = "pass" if model + own <= MOST_BYTES else "fail"
            return Rule(rule, state, f"{model + own:,} of {MOST_BYTES:,}{which}")
        return Rule(rule, "not run" if total <= MOST_BYTES else "fail",
                    f"{total:,} by the packed file, which this is not: golf export … export.form=packed")  # fmt: skip

    def _training(self) -> Rule:
        rule, found = "seconds of training and calibration", [one.train_seconds for one in self.seeds]
        times = [one for one in found if one is not None]
        if len(times) < len(found):
            return Rule(rule, "not run", "neither submission.json nor the log of each seed tells it")
        late = any(seconds - step > MOST_SECONDS for seconds, step in times)  # the last step may overrun the clock
        return Rule(rule, "fail" if late else "pass", f"{max(times)[0]:,.1f} of {MOST_SECONDS:g}, as it says")

    def _evaluation(self) -> Rule:
        rule, found = "seconds of evaluation", [one.eval_seconds for one in self.seeds]
        times = [one for one in found if one is not None]
        if len(times) < len(found):
            return Rule(rule, "not run", "the log of each seed tells it, with the line of its evaluation")
        state: State = "pass" if max(times) <= MOST_SECONDS else "fail"
        return Rule(rule, state, f"{max(times):,.1f} of {MOST_SECONDS:g}, as its log says")

    def _alone(self) -> Rule:
        rule, found = "the file stands alone", self.scanned
        if isinstance(found, str):
            return Rule(rule, "fail", f"{SCRIPT} is no Python: {plain_line(found)}")
        if found.hidden:
            return Rule(rule, "not run", f"{SCRIPT} runs a text that cannot be unpacked here")
        if strange := sorted(STRANGERS & (found.needed | found.optional)):
            return Rule(rule, "fail", f"{SCRIPT} imports {', '.join(strange)}")
        return Rule(rule, "pass", f"compiles; imports {_listed(found.needed)}, and Python's own")

    def _packages(self) -> Rule:
        rule, found = f"{NEEDS} names what it imports", self.scanned
        if isinstance(found, str) or found.hidden:
            return Rule(rule, "not run", f"{SCRIPT} cannot be read")
        try:
            lines = read_bytes(self.folder / NEEDS, MOST_SCRIPT).decode("utf-8", errors="replace").splitlines()
        except (OSError, ValueError):
            return Rule(rule, "not run", f"there is no {NEEDS}; it imports {_listed(found.needed)}")
        named = {_plain(re.split(r"[^\w.-]", line.strip(), maxsplit=1)[0]) for line in lines}
        known = metadata.packages_distributions()
        names = {root: {_plain(one) for one in (root, *known.get(root, ()))} for root in found.needed | found.optional}
        left = {root for root, those in names.items() if root not in BROUGHT | STRANGERS and not those & named}
        if lacking := sorted(left & found.needed):
            return Rule(rule, "fail", f"without {_listed(lacking)}")
        more = f"; where they are there: {_listed(left)}" if left else ""
        return Rule(rule, "pass", _listed(found.needed) + more)

    def _sums(self) -> Rule:
        rule = f"{TOLD} agrees with itself"
        bpb: list[Any] = [one.told.get("val_bpb") for one in self.seeds]
        sizes: list[Any] = [one.told.get("bytes_total") for one in self.seeds]
        if not self.seeds[0].name or not all(map(number, [*bpb, *sizes])):
            return Rule(rule, "not run", "it has no seed_results with val_bpb and bytes_total")
        mean: Any = self.told.get("val_bpb")
        total: Any = self.told.get("bytes_total")
        if not number(mean) or not math.isclose(statistics.fmean(bpb), mean, abs_tol=1e-6):
            return Rule(rule, "fail", f"val_bpb is {mean}, the seeds' mean {statistics.fmean(bpb):.8f}")
        if total != max(sizes):
            return Rule(rule, "fail", f"bytes_total is {total}, the largest seed's {max(sizes)}")
        return Rule(rule, "pass", f"val_bpb {mean:.5f} is the mean of {len(bpb)}, bytes_total the largest")

    def _logged(self) -> Rule:
        rule, unknown = "each seed's log has its figure", []
        for one in self.seeds:
            what = f"seed {plain_line(one.name)}" if one.name else "the run"
            told: Any = one.told.get("val_bpb")
            figure = one.figure
            if one.log is None or figure is None or not number(told):
                lacks = "has no log" if one.log is None else "has no such line in its log" if number(told) else \
                    f"has no val_bpb in {TOLD}"  # fmt: skip
                unknown.append(f"{what} {lacks}")
            elif abs(figure[0] - told) > figure[1]:
                return Rule(rule, "fail", f"{what}: {told} in {TOLD}, {figure[0]} in its log")
        if unknown:
            return Rule(rule, "not run", "; ".join(unknown[:3]))
        return Rule(rule, "pass", ", ".join(f"{one.told['val_bpb']:.5f}" for one in self.seeds[:8]))

    def _scored(self, artifacts: Sequence[Path], trust: bool) -> Rule:
        rule, found = "the artifact alone gives the figure", self.scanned
        if not artifacts:
            return Rule(rule, "not run", f"golf check run={self.folder} artifact=FILE --trust, with DATA_PATH and "
                        "TOKENIZER_PATH, lets the file score it")  # fmt: skip
        if not isinstance(found, Scanned) or found.hidden or _ALONE not in found.source:
            return Rule(rule, "not run", f"{SCRIPT} is not golf's, and may know no --eval")
        if not trust:
            return Rule(rule, "not run", f"it runs {SCRIPT}: look at it, then add --trust")
        told = []
        for path in artifacts:
            seed, figure = self._seed_of(path), self._run(path)
            known: Any = next((one.told.get("val_bpb") for one in self.seeds if one.name in ("", str(seed))), None)
            if not number(known):
                return Rule(rule, "fail", f"{path} is of seed {seed}, of which {TOLD} has no val_bpb")
            if not math.isclose(figure, known, rel_tol=SAME_FIGURE):
                return Rule(rule, "fail", f"{path} scores {figure:.5f}, {TOLD} says {known:.5f}")
            told.append(f"{figure:.5f}")
        left = len(self.seeds) - len(told)
        more = f"; {left} of {len(self.seeds)} seeds were not looked at" if left > 0 else ""
        return Rule(rule, "pass", f"{', '.join(told)} by the file in a process of its own{more}")

    def _seed_of(self, path: Path) -> Any:
        from golf.artifact.container import load_artifact

        return dig(load_artifact(path).header.meta, "seed")

    def _run(self, path: Path) -> float:
        """The figure that the file gives of an artifact, in an empty folder. Raises DataError."""
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        for name in ("DATA_PATH", "TOKENIZER_PATH"):
            if value := env.get(name):
                env[name] = os.path.abspath(value)
        with tempfile.TemporaryDirectory() as place:
            words = [sys.executable, str((self.folder / SCRIPT).absolute()), "--eval", str(path.absolute())]
            done = subprocess.run(
                words, cwd=place, env=env, capture_output=True, text=True, errors="replace", check=False
            )
        found = _EXACT.findall(done.stdout)
        if done.returncode or not found:
            *_, last = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()] or [
                "it said nothing"
            ]
            raise DataError(f"{SCRIPT} --eval {path} ended with {done.returncode}: {plain_line(last)}\n"
                            "(DATA_PATH names the folder of fineweb_val_*.bin, TOKENIZER_PATH the .model)")  # fmt: skip
        return float(found[-1])


def _listed(names: Any) -> str:
    return ", ".join(sorted(names)) or "nothing"


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
