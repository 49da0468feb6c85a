"""The trellis's search by its kernel against the plain ops' on the CPU."""

from __future__ import annotations

import pytest
import torch

from golf.quant.trellis import CODES, halves, nearest_path

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("states", list(CODES))
@pytest.mark.parametrize("top", [3, 127])
def test_the_kernel_finds_as_near_a_path(states: int, top: int) -> None:
    x = 2.4 * torch.randn(300, 5, generator=torch.Generator().manual_seed(0))
    q, values = (one.cpu() for one in nearest_path(x.cuda(), top, states))
    assert torch.equal(q + halves(q, states) / 2, values)
    there, here = ((one - x).square().sum() for one in (values, nearest_path(x, top, states)[1]))
    assert float(there) == pytest.approx(float(here), rel=1e-5)
