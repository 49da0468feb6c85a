"""Two gloo ranks against one: the same bits on both, and the same as one rank's. Run as a script, it is a worker."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

# before the group is made: its functions' defaults would keep that group, and its threads, past destruction
import torch.distributed.nn
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import golf
from golf.common.ranks import Ranks
from golf.learn.gradients import end_to_end
from golf.learn.muon import Muon, NorMuon
from golf.learn.optimizer import Optimizer
from golf.learn.soap import SOAP
from golf.nn.params import ParamSpec

# group sizes 1, 2 and 3: an idle rank, an even share, a padded share
SHAPES = {"a": (24, 16), "b": (16, 24), "c": (16, 24), "d": (16, 16), "e": (16, 16), "f": (16, 16)}


class Descent:
    """A rule of a user's own that reads gradients when its step is called, with no thought of other ranks."""

    def attach(self, params: Mapping[str, nn.Parameter], ranks: Ranks) -> None:
        self.params = list(params.values())

    def step(self, lr: float, momentum: float, weight_decay: float) -> None:
        for parameter in self.params:
            if parameter.grad is not None:
                parameter -= lr * parameter.grad

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        pass


class Centred(Muon):
    """Muon on gradients of mean 0, by a step of its own, which knows of no other ranks either."""

    as_they_arrive = False

    @torch.no_grad()
    def step(self, lr: float, momentum: float, weight_decay: float) -> None:
        for group in self.groups:
            for parameter in group.params:
                if parameter.grad is not None:
                    parameter.grad = parameter.grad - parameter.grad.mean()
        super().step(lr, momentum, weight_decay)


OPTIMIZERS = {
    "muon": partial(Optimizer, matrix_weight_decay=0.04),
    "muon_clip_global": partial(Optimizer, grad_clip=0.3, grad_clip_scope="global", adam_weight_decay=0.04),
    "muon_clip_local": partial(Optimizer, grad_clip=0.3, grad_clip_scope="local"),
    "normuon": partial(Optimizer, matrix=NorMuon),
    "muon_eq_r_polar": partial(Optimizer, matrix=partial(Muon, row_norm=True, coefficients="polar_express")),
    "soap": partial(Optimizer, matrix=partial(SOAP, every=2), matrix_weight_decay=0.04),
    "no_nesterov": partial(Optimizer, matrix=partial(Muon, nesterov=False)),
    "descent": partial(Optimizer, matrix=Descent),
    "centred": partial(Optimizer, matrix=Centred),
}
SPANS = 4
STEPS = 3


def parameters() -> tuple[dict[str, nn.Parameter], dict[str, ParamSpec]]:
    torch.manual_seed(0)
    params = {name: nn.Parameter(torch.randn(shape)) for name, shape in SHAPES.items()}
    specs = {name: ParamSpec("matrix", "mlp.up") for name in SHAPES}
    params["embed"], specs["embed"] = nn.Parameter(torch.randn(9, 16).bfloat16()), ParamSpec("embed", "embed")
    params["gain"], specs["gain"] = nn.Parameter(torch.randn(16)), ParamSpec("scalar", "attn.q_gain")
    params["unused"], specs["unused"] = nn.Parameter(torch.randn(16, 16)), ParamSpec("matrix", "mlp.up")
    return params, specs


def accumulate(params: dict[str, nn.Parameter], step: int, spans: range) -> None:
    """The mean gradient over `spans` of a step, micro-step by micro-step; `unused` gets none.

    Small whole numbers: their means are exact in fp32 and bf16, so that the order of a sum can't hide anything.
    """
    for span in spans:
        generator = torch.Generator().manual_seed(1000 * step + span)
        for name, parameter in params.items():
            if name != "unused":
                piece = torch.randint(-7, 8, parameter.shape, generator=generator).to(parameter.dtype) / len(spans)
                parameter.grad = piece if parameter.grad is None else parameter.grad + piece


def lay_out(params: dict[str, nn.Parameter]) -> None:
    """Move the matrices' gradients to one piece of memory, equal shapes together, as collected ones are."""
    order = list(SHAPES.values())
    by_shape = sorted((params[name] for name in SHAPES), key=lambda parameter: order.index(parameter.shape))
    flat = torch.cat([parameter.grad.reshape(-1) for parameter in by_shape])  # type: ignore[union-attr]
    for parameter, piece in zip(by_shape, flat.split([p.numel() for p in by_shape]), strict=True):
        parameter.grad = piece.view_as(parameter)
    assert end_to_end([parameter.grad for parameter in by_shape]).data_ptr() == flat.data_ptr()  # type: ignore[misc]


def train(name: str, ranks: Ranks, overlapped: bool = False) -> dict[str, Tensor]:
    """Three steps over the same spans for any number of ranks; weights and optimizer state after them.

    overlapped: nothing is copied or waited for that need not be, as in training.
    """
    params, specs = parameters()
    optimizer = OPTIMIZERS[name]()
    optimizer.attach(params, specs, ranks, tied=True)
    share = SPANS // ranks.world
    for step in range(STEPS):
        optimizer.zero_grad()
        accumulate(params, step, range(ranks.rank * share, (ranks.rank + 1) * share))
        if overlapped:
            lay_out(params)
        optimizer.reduce_gradients(wait=not overlapped)
        optimizer.step(step, 1.0 - 0.2 * step)
    result = {f"weight/{key}": parameter.detach() for key, parameter in params.items()}
    return {key: tensor.clone() for key, tensor in {**result, **optimizer.state_dict()}.items()}


def worker(rank: int, world: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    for name in OPTIMIZERS:
        save_file(train(name, Ranks(rank, world, rank)), folder / f"{name}.{rank}.safetensors")
        save_file(train(name, Ranks(rank, world, rank), overlapped=True), folder / f"{name}.{rank}.over.safetensors")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what each of two ranks ended with."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(golf.__file__).parents[1])}
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), "2", str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in workers]
    finally:
        for process in workers:
            process.kill()
    assert [process.returncode for process in workers] == [0, 0], "\n".join(outputs)
    return folder


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_both_ranks_end_with_the_same_bits(two_ranks: Path, name: str) -> None:
    first, second = (load_file(two_ranks / f"{name}.{rank}.safetensors") for rank in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "muon_clip_local"])
def test_two_ranks_do_what_one_does(two_ranks: Path, name: str) -> None:
    torch.set_num_threads(1)
    alone, shared = train(name, Ranks()), load_file(two_ranks / f"{name}.0.safetensors")
    assert alone.keys() == shared.keys()
    assert [key for key, tensor in alone.items() if not torch.equal(tensor, shared[key])] == []


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradients_on_their_way_change_nothing(two_ranks: Path, name: str) -> None:
    waited, overlapped = (load_file(two_ranks / f"{name}.1.{kind}safetensors") for kind in ("", "over."))
    assert [key for key, tensor in waited.items() if not torch.equal(tensor, overlapped[key])] == []


def test_clipping_each_rank_is_not_clipping_the_mean(two_ranks: Path) -> None:
    everywhere, mean = (
        load_file(two_ranks / f"muon_clip_{scope}.0.safetensors")["adam/exp_avg/gain"] for scope in ("local", "global")
    )
    assert not torch.equal(everywhere, mean)


def test_state_of_two_ranks_resumes_on_one(two_ranks: Path) -> None:
    saved = load_file(two_ranks / "normuon.1.safetensors")
    params, specs = parameters()
    optimizer = OPTIMIZERS["normuon"]()
    optimizer.attach(params, specs, Ranks(), tied=True)
    optimizer.load_state_dict({key: tensor for key, tensor in saved.items() if not key.startswith("weight/")})
    assert all(torch.equal(tensor, saved[key]) for key, tensor in optimizer.state_dict().items())


if __name__ == "__main__":
    worker(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
