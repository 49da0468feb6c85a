"""Ranks and the few collectives golf uses; with one process each of them is a no-op."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn  # binds the default group when imported; later, it would keep gloo's threads past `leave`

from golf.common.errors import GolfError


@dataclass(frozen=True)
class Ranks:
    """This process's place among the workers of one run."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the only one that writes files and logs."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """All-reduce `tensor` in place with SUM and return it."""
        if self.world > 1:
            dist.all_reduce(tensor, op=dist.ReduceOp.SUM)
        return tensor

    def broadcast(self, tensor: torch.Tensor) -> torch.Tensor:
        """Overwrite `tensor` in place with rank 0's and return it."""
        if self.world > 1:
            dist.broadcast(tensor, src=0)
        return tensor

    def broadcast_object(self, value: Any) -> Any:
        """Rank 0's `value` (any small picklable object), on every rank."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather_objects(self, value: Any) -> list[Any]:
        """Every rank's `value`, by rank, on every rank."""
        if self.world == 1:
            return [value]
        box: list[Any] = [None] * self.world
        dist.all_gather_object(box, value)
        return box

    def barrier(self) -> None:
        """Wait until every rank has come here."""
        if self.world > 1:
            dist.barrier()


def join(device_type: str, timeout_s: float = 1800.0) -> Ranks:
    """Join the process group that the environment describes (RANK, WORLD_SIZE, LOCAL_RANK, set by torchrun).

    Without these variables, or with a world of one, no group is made. nccl serves cuda, gloo the CPU.
    Raises GolfError when the workers cannot meet: a port that is taken, variables that are missing.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device_type == "cuda":
        torch.cuda.set_device(local)
    if world > 1:
        backend = "nccl" if device_type == "cuda" else "gloo"
        device_id = torch.device("cuda", local) if device_type == "cuda" else None
        try:
            dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s), device_id=device_id)
        except (dist.DistError, ValueError) as error:
            raise GolfError(_cannot_meet(error)) from error
    return Ranks(rank, world, local)


def lost_another(error: BaseException) -> bool:
    """Whether a collective failed because another worker is gone: an error that follows from its death."""
    if isinstance(error, dist.DistBackendError | dist.DistNetworkError):
        return True
    told = str(error)
    return isinstance(error, RuntimeError) and ("gloo" in told or "Connection closed by peer" in told)


def _cannot_meet(error: Exception) -> str:
    """Why the workers of a run could not meet, and what helps."""
    place, told = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}", str(error)
    if "EADDRINUSE" in told or "address already in use" in told:
        return f"port {os.environ['MASTER_PORT']} is taken: another MASTER_PORT, or torchrun --master-port, names one"
    return f"the workers cannot meet at {place}: {told.splitlines()[0]}"


def leave() -> None:
    """Leave the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
