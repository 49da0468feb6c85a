"""A submission's folder beside its script: README, submission.json, requirements and logs, from the runs' records."""

from __future__ import annotations

import ast
import json
import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from golf.common.errors import GolfError
from golf.export.scanned import NEEDS, SCRIPT, TOLD, imported
from golf.runs.statistics import Spread, significance


@dataclass(frozen=True)
class Seed:
    """One run of the submission: its record and where its log lies."""

    record: Mapping[str, Any]
    log: Path

    @property
    def seed(self) -> int:
        """Its seed."""
        return int(self.record["seeds"]["seed"])

    @property
    def score(self) -> Mapping[str, Any]:
        """The evaluation that counts: the last of what the artifact gives. Raises GolfError where there is none."""
        found = [one for one in self.record.get("evals") or [] if one["stage"] == "quantized"]
        if not found:
            raise GolfError(f"{self.log.parent}: the run has no figure of its artifact (golf eval scores it)")
        return found[-1]  # type: ignore[no-any-return]


def write_folder(
    out: Path, script: bytes, code: int, readable: str, seeds: Sequence[Seed], title: str, settings: Sequence[str],
    better: str = "",
) -> None:  # fmt: skip
    """Write the whole folder. code: bytes of the packed script, which count. settings: the command line's, for the
    README, and better: its sentence on other figures. Raises GolfError when it exists."""
    try:
        out.mkdir(parents=True)
    except FileExistsError:
        raise GolfError(f"{out} exists: name another folder (out=…), an export overwrites nothing") from None
    (out / SCRIPT).write_bytes(script)
    (out / NEEDS).write_text("".join(f"{one}\n" for one in requirements(readable, seeds[0].record)))
    (out / TOLD).write_text(json.dumps(submission(seeds, code, title), indent=2) + "\n")
    (out / "README.md").write_text(readme(seeds, code, title, settings, better), encoding="utf-8")
    for one in seeds:
        if one.log.is_file():
            shutil.copyfile(one.log, out / f"train_seed{one.seed}.log")


def requirements(readable: str, record: Mapping[str, Any]) -> list[str]:
    """The packages that a script imports, in the versions that the run had."""
    known, versions = metadata.packages_distributions(), record.get("versions") or {}
    found = set()
    for root in imported(ast.parse(readable)):
        for package in known.get(root, [])[:1]:
            version = versions.get(package) or metadata.version(package)
            found.add(f"{package}=={str(version).partition('+')[0]}")
    return sorted(found)


def submission(seeds: Sequence[Seed], code: int, title: str) -> dict[str, Any]:
    """The fields of a record's submission.json; who submits fills in the first two."""
    scores, sizes = [one.score for one in seeds], [one.record["bytes"]["model"] for one in seeds]
    return {
        "author": "",
        "github_id": "",
        "name": title,
        "blurb": "",
        "date": max(str(one.record.get("finished") or "") for one in seeds),
        "val_loss": round(statistics.fmean(one["val_loss"] for one in scores), 8),
        "val_bpb": round(statistics.fmean(one["val_bpb"] for one in scores), 8),
        "bytes_total": max(sizes) + code,
        "bytes_code": code,
        "seed_results": {
            str(one.seed): {
                "val_loss": round(one.score["val_loss"], 8), "val_bpb": round(one.score["val_bpb"], 8),
                "bytes_total": one.record["bytes"]["model"] + code, "steps": one.record["steps"],
                "train_time_s": round(one.record["train_time_s"], 1),
            }
            for one in seeds
        },
    }  # fmt: skip


def significance_of(seeds: Sequence[Seed], told: str, than: Spread | float) -> str:
    """Whether the seeds' bpb is below a published figure, in a sentence."""
    found = significance([one.score["val_bpb"] for one in seeds], than, "less")
    if found is None:
        return f"\nAgainst {told} no test is possible: two seeds are the least, and they must differ.\n"
    kind = "Welch's" if isinstance(than, Spread) else "one-sample"
    return f"\nAgainst {told}: {kind} t-test, one-sided, t = {-found.t:.2f}, df = {found.freedom:.3g}, " \
           f"p = {found.p:.2g}.\n"  # fmt: skip


def readme(seeds: Sequence[Seed], code: int, title: str, settings: Sequence[str], better: str = "") -> str:
    """What was trained, what came of it, and how to do it again."""
    first, rows = seeds[0].record, []
    for one in seeds:
        record, score = one.record, one.score
        rows.append(
            f"| {one.seed} | {record['steps']:,} | {record['train_time_s']:.1f} | {score['val_loss']:.8f} "
            f"| {score['val_bpb']:.8f} | {record['bytes']['model'] + code:,} |\n"
        )
    bpb = [one.score["val_bpb"] for one in seeds]
    spread = f" ± {statistics.stdev(bpb):.5f} (s.d.)" if len(bpb) > 1 else ""
    hardware = first.get("hardware") or {}
    gpus = [str(one.get("name", one)) if isinstance(one, Mapping) else str(one) for one in hardware.get("gpus") or []]
    machine = f"{len(gpus)} × {gpus[0]}" if gpus else str(hardware.get("cpu"))
    limit, total = first["bytes"].get("limit"), max(one.record["bytes"]["model"] for one in seeds) + code
    over = f"\n**Invalid: {total - limit:,} bytes over the limit of {limit:,}.**\n" if limit and total > limit else ""
    workers = (first.get("numerics") or {}).get("nproc", 1)
    return f"""# {title}

val_bpb {statistics.fmean(bpb):.5f}{spread}, {len(seeds)} {"seed" if len(seeds) == 1 else "seeds"}.
{better}{over}
| seed | steps | training s | val_loss | val_bpb | bytes |
| --- | --- | --- | --- | --- | --- |
{"".join(rows)}
Scored {seeds[0].score["method"]}, windows of {seeds[0].score["seq_len"]} tokens, over {seeds[0].score["targets"]:,} \
targets. {first["params"]["total"]:,} parameters; {first["tokens"]:,} training tokens. The script counts {code:,} \
bytes (packed). Trained on {machine}.

## Again

```sh
DATA_PATH=… TOKENIZER_PATH=… SEED={seeds[0].seed} \
torchrun --standalone --nproc_per_node={workers} train_gpt.py
python train_gpt.py --eval artifact.golf
```

## Configuration

```
{chr(10).join(settings)}
```
"""
