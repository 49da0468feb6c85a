"""The main job, whole: `golf train` with nothing given, against a trigram fitted on the same training split."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from golf.data.prepare import prepare
from golf.data.sources import PyStdlib
from golf.tokenizers.byte260 import Byte260Spec

README = Path(__file__).parents[2] / "README.md"
Ids = np.ndarray
BUCKETS = 16


class Trigram:
    """An interpolated trigram: λ(context count) mixes four orders; λ by EM on held-out text."""

    def __init__(self, train: Ids, vocab_size: int) -> None:
        self.v = vocab_size
        held_out = int(len(train) * 0.95)
        self._count(train[:held_out])
        self.weights = np.full((BUCKETS, 4), 0.25)
        parts, bucket = self._parts(train[held_out:])
        for _ in range(40):
            share = self.weights[bucket] * parts
            share /= share.sum(1, keepdims=True)
            for index in range(BUCKETS):
                if (bucket == index).any():
                    self.weights[index] = share[bucket == index].mean(0)
        self._count(train)

    def nats_per_token(self, ids: Ids) -> float:
        """Mean nll of ids[2:]."""
        parts, bucket = self._parts(ids)
        return float(-np.log((self.weights[bucket] * parts).sum(1)).mean())

    def _count(self, ids: Ids) -> None:
        v = self.v
        self.unigram = np.bincount(ids, minlength=v) + 1e-3
        self.bigram = np.unique(ids[:-1] * v + ids[1:], return_counts=True)
        self.trigram = np.unique((ids[:-2] * v + ids[1:-1]) * v + ids[2:], return_counts=True)
        self.one = np.bincount(ids[:-1], minlength=v)
        self.two = np.unique(ids[:-2] * v + ids[1:-1], return_counts=True)

    def _parts(self, ids: Ids) -> tuple[np.ndarray, np.ndarray]:
        a, b, c, v = ids[:-2], ids[1:-1], ids[2:], self.v
        context = _looked_up(self.two, a * v + b)
        parts = np.stack(
            [
                np.full(len(c), 1 / v),
                self.unigram[c] / self.unigram.sum(),
                _looked_up(self.bigram, b * v + c) / np.maximum(self.one[b], 1),
                _looked_up(self.trigram, (a * v + b) * v + c) / np.maximum(context, 1),
            ],
            axis=1,
        )
        return parts, np.minimum(np.log2(context + 1).astype(int), BUCKETS - 1)


def _looked_up(table: tuple[np.ndarray, np.ndarray], keys: Ids) -> np.ndarray:
    known, counts = table
    at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return np.where(known[at] == keys, counts[at], 0)


def test_a_trigram_knows_a_repeating_text() -> None:
    ids = np.tile(np.arange(4, 20), 2000)
    assert Trigram(ids, 32).nats_per_token(ids[:4000]) < 0.01


@pytest.mark.slow
def test_quickstart_beats_an_interpolated_trigram(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    command = [sys.executable, "-m", "golf.cli.main", "train", "logger=jsonl", f"hydra.run.dir={directory}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads((directory / "result.json").read_text())
    data = prepare(PyStdlib(), Byte260Spec())
    train, val = (shards.read(0, len(shards)).astype(np.int64) for shards in (data.train, data.val))
    trigram = Trigram(train, data.tokenizer.vocab_size).nats_per_token(val[:65537])
    ours = next(one for one in result["evals"] if (one["stage"], one["method"]) == ("quantized", "contiguous"))
    ahead = (trigram - ours["val_loss"]) / math.log(2)
    print(f"trigram {trigram:.4f} nats a byte, quickstart {ours['val_loss']:.4f}: {ahead:.3f} bits a byte ahead")
    assert ahead > 0.1
    assert result["valid"]
    told = re.search(
        r"\| bpb before .* \| ([\d.]+), ([\d.]+) \|\n\| bpb sliding.* \| ([\d.]+) \|", README.read_text("utf-8")
    )
    assert told
    expected = dict(zip(("pre_quant", "post_quant", "sliding"), map(float, told.groups())))
    found = {name: result["val_bpb"][name] for name in expected}
    assert found == pytest.approx(expected, abs=0.03)  # Python's library is the text
