"""Matrix rules and averages on a CUDA device: what a CPU's arithmetic gives, without waiting for the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from golf.common.ranks import Ranks
from golf.learn.averaging import EMA
from golf.learn.muon import Muon
from golf.learn.optimizer import Optimizer
from golf.learn.soap import SOAP
from golf.nn.params import ParamSpec

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
SHAPES = {"a": (128, 128), "b": (128, 320), "c": (320, 128), "d": (128, 128)}
RULES = {
    "muon_eq_r_polar": (partial(Muon, row_norm=True, coefficients="polar_express"), 0.05),
    "soap": (partial(SOAP, every=2, max_dim=128), 0.01),
}


@contextmanager
def no_waiting() -> Iterator[None]:
    """Within the block a call that waits for the device raises an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def trained(make: Any, device: str) -> dict[str, torch.Tensor]:
    """Five steps of the optimizer with a rule, by the same gradients on any device; how far the weights went."""
    generator = torch.Generator().manual_seed(3)
    params = {name: nn.Parameter(torch.zeros(shape, device=device)) for name, shape in SHAPES.items()}
    params["embed"] = nn.Parameter(torch.zeros(64, 128, device=device))
    specs = {name: ParamSpec("matrix", "mlp.up") for name in SHAPES} | {"embed": ParamSpec("embed", "embed")}
    optimizer = Optimizer(matrix=make, matrix_lr=0.01, grad_clip=0.3, grad_clip_scope="local", embed_betas=[0.9, 0.99])
    optimizer.attach(params, specs, Ranks(), tied=True)
    ema = EMA(0.9, update_every=2)
    ema.attach(params)
    for step in range(5):
        for parameter in params.values():
            rows = torch.logspace(0, -1, len(parameter))[:, None]
            parameter.grad = (rows * torch.randn(parameter.shape, generator=generator)).to(device)
        with no_waiting() if device == "cuda" and step else torch.no_grad():  # the first one sets libraries up
            optimizer.reduce_gradients()
            optimizer.step(step, 1.0)
            ema.update(step + 1, 1.0)
    return {name: parameter.detach().cpu() for name, parameter in params.items()}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_moves_weights_as_on_a_cpu_and_waits_for_nothing(name: str) -> None:
    make, within = RULES[name]
    here, there = trained(make, "cpu"), trained(make, "cuda")
    for key, expected in here.items():
        assert (there[key] - expected).norm() < within * expected.norm(), key
