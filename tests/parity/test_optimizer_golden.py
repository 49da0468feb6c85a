"""Three steps of the original systems' matrix optimizers, on a tall, a wide and a square matrix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from golf.common.ranks import Ranks
from golf.learn.muon import Muon, NorMuon

RULES = {"Muon": Muon, "NorMuon": NorMuon}
SYSTEMS = ["naive_baseline", "sp2048_normuon_int6", "gradquant_11l"]


def replay(golden: dict[str, Tensor], settings: dict[str, float | str]) -> list[dict[str, Tensor]]:
    """The matrices after each recorded step, all of them updated together."""
    names = sorted(key.removeprefix("opt/init/") for key in golden if key.startswith("opt/init/"))
    params = {name: nn.Parameter(golden[f"opt/init/{name}"].clone()) for name in names}
    rule = RULES[str(settings["class"])](ns_steps=int(settings["backend_steps"]))
    rule.attach(params, Ranks())
    after = []
    for step in range(sum(key.startswith("opt/grad") and key.endswith(f"/{names[0]}") for key in golden)):
        for name, parameter in params.items():
            parameter.grad = golden[f"opt/grad{step}/{name}"].clone()
        rule.step(float(settings["lr"]), float(settings["momentum"]), float(settings.get("weight_decay", 0.0)))
        after.append({name: parameter.detach().clone() for name, parameter in params.items()})
    return after


def errors(golden: dict[str, Tensor], settings: dict[str, float | str]) -> dict[str, float]:
    """Relative error of the update, after - init, of every matrix after every step."""
    result = {}
    for step, weights in enumerate(replay(golden, settings)):
        for name, weight in weights.items():
            after, init = golden[f"opt/after{step}/{name}"], golden[f"opt/init/{name}"]
            result[f"matrix {name} step {step}"] = float((weight - after).norm() / (after - init).norm())
    return result


def load(folder: Path, system: str) -> tuple[dict[str, Tensor], dict[str, float | str]]:
    settings = json.loads((folder / f"{system}.json").read_text())["optimizer"]
    return load_file(folder / f"{system}.safetensors"), settings


class TiledProducts(TorchDispatchMode):
    """bf16 matrix products summed in the order of a CPU's matrix tiles (AMX), on any CPU.

    A tile holds 32 terms: the even and the odd ones are summed apart in fp32, then together, then onto the tiles
    before. Newton-Schulz amplifies one bit of a bf16 product to as much as a percent of the update, so what one kind of
    CPU recorded can be checked to 1e-5 only in that CPU's order.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.bmm.default and args[0].dtype == torch.bfloat16:
            return self.product(*args)
        return func(*args, **(kwargs or {}))

    @staticmethod
    def product(left: Tensor, right: Tensor) -> Tensor:
        """left [n, r, k] @ right [n, k, c], bf16."""
        terms = left.size(2) + -left.size(2) % 32
        a = torch.nn.functional.pad(left.float(), (0, terms - left.size(2))).unflatten(2, (-1, 16, 2))
        b = torch.nn.functional.pad(right.float(), (0, 0, 0, terms - right.size(1))).unflatten(1, (-1, 16, 2))
        tiles = torch.zeros(left.size(0), terms // 32, 2, left.size(1), right.size(2))
        for pair in range(16):
            tiles += a[:, :, :, pair].permute(0, 2, 3, 1).unsqueeze(-1) * b[:, :, pair].unsqueeze(-2)
        total = torch.zeros_like(tiles[:, 0, 0])
        for tile in range(tiles.size(1)):
            total = total + (tiles[:, tile, 0] + tiles[:, tile, 1])
        return total.to(torch.bfloat16)


@pytest.mark.parametrize("system", SYSTEMS)
def test_updates_are_the_originals(golden_dir: Path, system: str) -> None:
    golden, settings = load(golden_dir, system)
    here = errors(golden, settings)
    with TiledProducts():
        tiled = errors(golden, settings)
    assert len(here) >= 9
    # recorded on a CPU that sums like this one, or on one with tiles: all matrices and steps by the same
    assert min(max(here.values()), max(tiled.values())) <= 1e-5, f"this CPU: {here}; tiles: {tiled}"


@pytest.mark.parametrize("system", SYSTEMS)
def test_updates_stay_close_on_any_cpu(golden_dir: Path, system: str) -> None:
    assert max(errors(*load(golden_dir, system)).values()) <= 5e-2
