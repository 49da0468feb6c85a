"""Gradients in flat pieces: what is copied and what is not, and in which pieces they travel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from golf.learn.gradients import BUCKET_BYTES, MeanGradients, end_to_end, make_buckets

FLAT = torch.arange(24.0)
PIECES = {
    "behind one another": [FLAT[:6].view(2, 3), FLAT[6:12].view(3, 2), FLAT[12:13]],
    "from the middle": [FLAT[4:6], FLAT[6:9]],
    "one": [FLAT[3:5]],
}
SCATTERED = {
    "a gap": [FLAT[:6], FLAT[7:9]],
    "the wrong order": [FLAT[6:12], FLAT[:6]],
    "transposed": [FLAT[:6].view(2, 3).mT, FLAT[6:12].view(2, 3)],
    "two owners": [FLAT[:6], torch.arange(6.0, 9.0)],
}


@pytest.mark.parametrize("tensors", PIECES.values(), ids=PIECES)
def test_neighbours_are_not_copied(tensors: list[Tensor]) -> None:
    flat = end_to_end(tensors)
    assert flat.data_ptr() == tensors[0].data_ptr()
    assert torch.equal(flat, torch.cat([tensor.reshape(-1) for tensor in tensors]))


@pytest.mark.parametrize("tensors", SCATTERED.values(), ids=SCATTERED)
def test_what_lies_apart_is_brought_together(tensors: list[Tensor]) -> None:
    flat = end_to_end(tensors)
    assert flat.untyped_storage().data_ptr() not in {tensor.untyped_storage().data_ptr() for tensor in tensors}
    assert torch.equal(flat, torch.cat([tensor.reshape(-1) for tensor in tensors]))


def test_buckets_are_few_and_of_one_dtype() -> None:
    params = [nn.Parameter(torch.zeros(n, dtype=d)) for d in (torch.float32, torch.bfloat16) for n in (3, 5, 7)]
    buckets = make_buckets([params[i] for i in (0, 3, 1, 4, 2, 5)])
    assert [[p.numel() for p in bucket.params] for bucket in buckets] == [[3, 5, 7], [3, 5, 7]]
    big = [nn.Parameter(torch.zeros(BUCKET_BYTES // 4)), nn.Parameter(torch.zeros(1))]
    assert len(make_buckets(big)) == 2


def test_equal_shapes_travel_together_behind_what_is_needed_first() -> None:
    shapes = [(4, 2), (2, 4), (4, 2), (2, 4)]
    params = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
    gain = nn.Parameter(torch.zeros(3))
    first, rest = MeanGradients([gain], params, world=2).buckets
    assert first.params == [gain]
    assert [tuple(parameter.shape) for parameter in rest.params] == [(4, 2), (4, 2), (2, 4), (2, 4)]
