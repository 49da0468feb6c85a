"""How long `golf runs` and `golf report` take over many runs: `python benchmarks/bench_report.py [RUNS] [ROWS] [DIR]`.

Writes synthetic run folders (a grid over vocabulary, layers, learning rate and seed; some failed, interrupted, or
over the limit), lists and reports on them, each in a fresh process, and prints seconds and the page's size. Listing 500
runs should take less than 8 s: one that takes long is not used.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from golf.runs.record import Budget, Bytes, EvalRecord, Result

VOCABULARIES, LAYERS, RATES = (1024, 2048, 4096, 8192), (7, 9, 11), (0.02, 0.03, 0.04)


def config(vocabulary: int, layers: int, rate: float, seed: int) -> dict[str, Any]:
    """A config of about the length of a real one."""
    filler = {f"part{i}": {f"setting{j}": i * j / 8 for j in range(8)} for i in range(12)}
    return {
        "seed": seed,
        "tokenizer": {"_target_": "golf.tokenizers.sentencepiece.SentencePieceSpec", "vocab_size": vocabulary},
        "model": {"num_layers": layers, "vocab_size": vocabulary, "model_dim": 512},
        "optimizer": {"matrix_lr": rate, "momentum": 0.95},
        "budget": {"fraction": 0.125, "artifact_bytes": 16_000_000},
        **filler,
        "choices": {"tokenizer": f"sp{vocabulary}", "model": "gpt", "recipe": "naive_baseline", "budget": "proxy"},
    }


def score_of(vocabulary: int, layers: int, rate: float, rng: random.Random) -> float:
    """A smooth landscape with its best inside the grid, and seed noise."""
    bend = 0.01 * (math.log2(vocabulary) - 12) ** 2 + 0.004 * (layers - 10) ** 2 / 4 + 25 * (rate - 0.031) ** 2
    return 1.22 + bend + rng.gauss(0, 0.0015)


def write_run(folder: Path, number: int, point: tuple[int, int, float, int], rows: int) -> None:
    """One run folder; every 25th failed, every 40th was interrupted."""
    vocabulary, layers, rate, seed = point
    rng = random.Random(number)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config(*point), sort_keys=False))
    words = [f"tokenizer=sp{vocabulary}", f"model.num_layers={layers}", f"optimizer.matrix_lr={rate}", f"seed={seed}"]
    (folder / "overrides.yaml").write_text(yaml.safe_dump(words))
    score = score_of(vocabulary, layers, rate, rng)
    failed, interrupted = number % 25 == 24, number % 40 == 39
    steps = rows // 3 if failed or interrupted else rows
    step_s = 0.04 + 0.002 * layers + vocabulary / 1e6
    with open(folder / "metrics.jsonl", "w", encoding="utf-8") as file:
        for step in range(1, steps + 1):
            share = step / rows
            loss = 2.3 * score + (9.2 - 2.3 * score) * math.exp(-9 * share) + rng.gauss(0, 0.03)
            row = {"step": step, "tokens": step * 524288, "train_time_s": step * step_s, "train_loss": loss}
            row |= {"lr_multiplier": min(1.0, 3 - 3 * share), "step_ms": 1e3 * step_s, "tokens_per_s": 524288 / step_s}
            file.write(json.dumps(row) + "\n")
            if step % max(1, rows // 8) == 0:
                axes = {name: row[name] for name in ("step", "tokens", "train_time_s")}
                bpb = score + 0.8 * math.exp(-7 * share)
                file.write(json.dumps({**axes, "val_loss": bpb * 1.7, "val_bpb": bpb}) + "\n")
    figures = (
        ("stop", "contiguous", score - 0.007),
        ("quantized", "contiguous", score),
        ("quantized", "sliding", score - 0.033),
    )
    counts: dict[str, Any] = {"stride": 64, "seq_len": 1024, "targets": 1_000_000, "bytes": 2_400_000, "seconds": 9.0}
    evals = [
        EvalRecord.model_validate({"stage": s, "method": m, "val_loss": b * 1.7, "val_bpb": b, **counts})
        for s, m, b in figures
    ]
    model = int(1_350_000 * layers + 410 * vocabulary + rng.randint(-20_000, 20_000))
    Result.from_parts(
        status="failed" if failed else "interrupted" if interrupted else "completed",
        error="train_loss is nan at step 341: stopped; the state after step 340 was kept" if failed else None,
        steps=steps,
        tokens=steps * 524288,
        train_time_s=steps * step_s,
        evals=[] if failed or interrupted else evals,
        bytes=None if failed or interrupted else Bytes.count(model, 48_000, 16_000_000),
        budget=Budget(name="proxy", fraction=0.125, bound="steps", artifact_bytes=16_000_000),
        finished=f"2026-01-01T00:00:{number % 60:02d}+00:00",
    ).write(folder / "result.json")


def write_sweep(folder: Path, runs: int, rows: int) -> None:
    """`runs` folders 0, 1, … with `rows` rows of training metrics each."""
    points = ((*point, seed) for seed in itertools.count(1) for point in itertools.product(VOCABULARIES, LAYERS, RATES))
    for number, point in enumerate(itertools.islice(points, runs)):
        write_run(folder / str(number), number, point, rows)


def main(runs: int, rows: int, folder: Path) -> None:
    """Write, list, report, print."""
    write_sweep(folder, runs, rows)
    listing = seconds_of("runs", str(folder), "seed>1")
    report = seconds_of("report", str(folder))
    size = (folder / "report.html").stat().st_size
    print(f"{runs} runs of {rows} rows: listed in {listing:.2f} s, report {report:.2f} s, {size / 1e6:.1f} MB")


def seconds_of(*words: str) -> float:
    """A golf command's wall-clock time."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "golf.cli.main", *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


if __name__ == "__main__":
    given = sys.argv[1:]
    with tempfile.TemporaryDirectory() as temporary:
        where = Path(given[2]) if len(given) > 2 else Path(temporary) / "sweep"
        main(int(given[0]) if given else 500, int(given[1]) if len(given) > 1 else 1000, where)
