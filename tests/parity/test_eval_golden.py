"""The original systems' evaluators: loss, bits per byte, target counts and byte sums over a recorded token stream."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from golf.common.ranks import Ranks
from golf.evals.evaluators import Score, Validation
from golf.launch.compose.build import make
from golf.tokenizers.byte_table import ByteTable

RUNS = [
    ("naive_baseline", "contiguous"), ("sp2048_normuon_int6", "contiguous"), ("sp2048_normuon_int6", "sliding"),
    ("gradquant_11l", "contiguous"), ("gradquant_11l", "sliding"),
]  # fmt: skip


@pytest.fixture(scope="module", params=RUNS, ids="-".join)
def scored(request: pytest.FixtureRequest, originals: Any) -> tuple[Score, float, float, int]:
    """golf's score, and the original's loss, bpb and targets."""
    system, method = request.param
    golden = originals.golden(system)
    key = next(k for k in golden.facts if k.startswith(f"eval_{method}"))
    expected_loss, expected_bpb = golden.facts[key]
    window = golden.sizes["seq_len"]
    usable = (len(golden.tensors["val_tokens"]) - 1) // window * window
    evaluator, targets = make(golden.config["eval"], "eval"), usable
    if method == "contiguous":
        evaluator = evaluator.contiguous()
    else:
        stride = int(key.rpartition("stride")[2])
        evaluator.stride = stride
        end = usable - window + (1 if system == "sp2048_normuon_int6" else 0)  # + 1: flush at the end
        targets = len(range(0, end, stride)) * stride
    columns = [golden.tensors[f"bytes/{name}"].numpy() for name in ("base", "leading_space", "boundary")]
    validation = Validation(golden.tensors["val_tokens"], ByteTable(*columns))
    score = evaluator.evaluate(golden.model().eval(), validation, Ranks())
    return score, expected_loss, expected_bpb, targets


def test_loss(scored):
    score, loss, _, _ = scored
    assert score.val_loss == pytest.approx(loss, rel=2e-6, abs=0)


def test_bits_per_byte(scored):
    score, _, bpb, _ = scored
    assert score.val_bpb == pytest.approx(bpb, rel=2e-6, abs=0)


def test_targets(scored):
    score, _, _, targets = scored
    assert score.targets == targets


def test_bytes(scored):
    score, loss, bpb, targets = scored
    recorded = loss / math.log(2) * targets / bpb  # what the original divided by
    assert recorded == pytest.approx(round(recorded), abs=1e-6)
    assert score.bytes == round(recorded)


@pytest.mark.parametrize("system", ["naive_baseline", "sp2048_normuon_int6", "gradquant_11l"])
@pytest.mark.parametrize("seq_len", [40, 48, 64, 96])
def test_goldens_of_any_length_of_sequence_have_a_config(originals: Any, system: str, seq_len: int) -> None:
    config = originals.config(system, *originals.size_overrides({**originals.golden(system).sizes, "seq_len": seq_len}))
    evaluator = make(config["eval"], "eval")
    assert evaluator.seq_len == seq_len
    assert 0 < evaluator.stride <= seq_len


def test_ranks_share_the_stream(originals):
    """The shares of three ranks, scored apart, sum to one rank's result."""
    golden = originals.golden("gradquant_11l")
    evaluator = make(golden.config["eval"], "eval").contiguous()
    columns = [golden.tensors[f"bytes/{name}"].numpy() for name in ("base", "leading_space", "boundary")]
    validation = Validation(golden.tensors["val_tokens"], ByteTable(*columns))
    model = golden.model().eval()

    class Alone(Ranks):
        """A rank whose sum stays its own."""

        def sum(self, tensor: torch.Tensor) -> torch.Tensor:
            return tensor

    shares = [evaluator.evaluate(model, validation, Alone(rank, 3)) for rank in range(3)]
    whole = evaluator.evaluate(model, validation, Ranks())
    assert sum(s.targets for s in shares) == whole.targets
    assert sum(s.bytes for s in shares) == whole.bytes
    assert sum(s.val_loss * s.targets for s in shares) == pytest.approx(whole.val_loss * whole.targets, rel=1e-12)
