"""The original systems' forward and backward passes on a GPU, with every fast path on and with none."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from golf.launch.compose.build import make
from golf.nn import kernels
from golf.nn.attend import preferred_sdpa_kernels
from golf.nn.linear import EffectiveWeights

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
SYSTEMS = ["naive_baseline", "sp2048_normuon_int6", "gradquant_11l"]


def losses(golden: Any, compute: str, mode: kernels.Mode, compiled: bool) -> tuple[float, dict[str, float], list[str]]:
    """The loss of a training pass, each gradient's relative error against the original's, and what served the ops."""
    model = golden.model(compute).cuda()
    kernels.install(model, mode)
    weights = EffectiveWeights(model)
    weights.refresh(make(golden.config["qat"], "qat"))
    ids = golden.tensors["ids"].cuda()
    forward = torch.compile(model, fullgraph=True, dynamic=False) if compiled else model
    with preferred_sdpa_kernels(ids.device):
        loss = forward(ids[:, :-1], ids[:, 1:])
        loss.backward()
    weights.collect_gradients()
    grads = {name: p.grad.float().cpu() for name, p in model.named_parameters() if p.grad is not None}
    expected = golden.renamed("grad_train/")
    assert grads.keys() == expected.keys()
    errors = {name: float((grads[name] - g).norm() / g.norm()) for name, g in expected.items()}
    served = [name for op, name in model.kernels().items() if op != "attention"]
    torch._dynamo.reset()
    return float(loss.detach()), errors, served


@pytest.mark.parametrize("system", SYSTEMS)
def test_in_float32(originals: Any, system: str) -> None:
    golden = originals.golden(system)
    loss, errors, served = losses(golden, "float32", "auto", compiled=False)
    assert set(served) == {"torch"}
    assert loss == pytest.approx(golden.facts["loss_train"], rel=1e-5, abs=0)
    assert max(errors.values()) <= 1e-4, errors


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("mode", ["auto", "reference"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_in_bfloat16(originals: Any, system: str, mode: kernels.Mode, compiled: bool) -> None:
    """The yardstick of a gradient is what bfloat16 costs the same kind of parameter without any fast path: one that is
    a small difference of large sums has a large error in any order of them."""
    golden = originals.golden(system)
    loss, errors, served = losses(golden, "bfloat16", mode, compiled)
    own_loss, own, _ = losses(golden, "bfloat16", "reference", compiled=False)
    assert all((name != "torch") == (mode == "auto") for name in served)
    expected = golden.facts["loss_train"]
    assert abs(loss - expected) <= 2 * abs(own_loss - expected) + 1e-3 * expected
    for name, error in errors.items():
        yardstick = max(one for other, one in own.items() if kind(other) == kind(name))
        assert error <= 2 * yardstick + 0.02, name


def kind(name: str) -> str:
    """What a parameter is, whatever its layer."""
    return re.sub(r"\d+", "N", name)
