"""Gradients on their way between ranks: in few flat pieces, laid out as the optimizer works on them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET_BYTES = 32 << 20
"""Gradients travel in flat pieces of at most this size: few collectives, yet work on one begins while others travel."""


def end_to_end(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors of one dtype and device as a flat one: a view of them where they lie one behind another, else a copy."""
    first = tensors[0]
    storage, reached = first.untyped_storage().data_ptr(), first.storage_offset()
    for tensor in tensors:
        if (
            tensor.storage_offset() != reached
            or not tensor.is_contiguous()
            or tensor.untyped_storage().data_ptr() != storage
        ):
            return torch.cat([tensor.reshape(-1) for tensor in tensors])
        reached += tensor.numel()
    return first.as_strided((reached - first.storage_offset(),), (1,))


class Bucket:
    """Parameters of one dtype and device whose gradients are summed over the ranks in one call."""

    def __init__(self) -> None:
        self.params: list[nn.Parameter] = []
        self.bytes = 0
        self._flat: Tensor | None = None
        self._copied = False
        self._work: dist.Work | None = None

    def send(self, world: int) -> None:
        """Begin to replace the gradients by their mean; zeros stand in for a missing one, which all ranks must lack."""
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.params]
        flat = end_to_end(grads)
        self._copied = flat.data_ptr() != grads[0].data_ptr()
        self._flat, self._work = flat, dist.all_reduce(flat.div_(world), async_op=True)

    def arrive(self) -> None:
        """Let the device (on a CPU, the host) wait for the mean; gradients that were copied become views of it."""
        if self._work is None or self._flat is None:
            return
        self._work.wait()
        if self._copied:
            pieces = torch.split(self._flat, [parameter.numel() for parameter in self.params])
            for parameter, piece in zip(self.params, pieces, strict=True):
                if parameter.grad is not None:
                    parameter.grad = piece.view_as(parameter)
        self._flat = self._work = None


class MeanGradients:
    """The gradients' means over the ranks, each waited for when it is needed.

    first: parameters that are needed first. The others go by shape, as matrix rules work on them.
    """

    def __init__(self, first: Collection[nn.Parameter], others: Iterable[nn.Parameter], world: int) -> None:
        self.world = world
        by_shape: dict[torch.Size, list[nn.Parameter]] = {}
        for parameter in others:
            by_shape.setdefault(parameter.shape, []).append(parameter)
        rest = [parameter for group in by_shape.values() for parameter in group]
        self.buckets = make_buckets(first) + make_buckets(rest)
        self._of = {id(parameter): bucket for bucket in self.buckets for parameter in bucket.params}

    def send(self) -> None:
        """Send all gradients off; until `arrive` they are neither this rank's nor the mean."""
        if self.world > 1:
            for bucket in self.buckets:
                bucket.send(self.world)

    def arrive(self, params: Iterable[Tensor] | None = None) -> None:
        """Wait for the means of these parameters' gradients, or of all."""
        for bucket in self.buckets if params is None else [self._of[id(parameter)] for parameter in params]:
            bucket.arrive()


def make_buckets(params: Iterable[nn.Parameter]) -> list[Bucket]:
    """Deal parameters, in order, into buckets of one dtype and device and at most `BUCKET_BYTES` (or one parameter)."""
    buckets: list[Bucket] = []
    filling: dict[tuple[torch.dtype, torch.device], Bucket] = {}
    for parameter in params:
        size = parameter.numel() * parameter.element_size()
        bucket = filling.get((parameter.dtype, parameter.device))
        if bucket is None or bucket.bytes + size > BUCKET_BYTES:
            bucket = filling[parameter.dtype, parameter.device] = Bucket()
            buckets.append(bucket)
        bucket.params.append(parameter)
        bucket.bytes += size
    return buckets
