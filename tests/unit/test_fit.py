"""A model made to fit into a limit of bytes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import pytest
import torch

from golf.artifact.ans import Ans
from golf.artifact.codecs import Codec, Zlib
from golf.artifact.container import artifact_size, load_artifact, save_artifact
from golf.common.errors import ConfigError
from golf.nn.params import ParamSpec
from golf.quant.entry import Entry, dequantize
from golf.quant.fit import FULL, fitted
from golf.quant.gptq import GPTQ
from golf.quant.rowwise import RowQuantizer

SPECS = {
    "up": ParamSpec(role="matrix", place="mlp.up", layer=0), "embed": ParamSpec(role="embed", place="embed"),
    "gain": ParamSpec(role="scalar", place="attn.gain", layer=0),
}  # fmt: skip


def state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        "up": torch.randn(300, 200, generator=generator), "embed": 0.01 * torch.randn(400, 100, generator=generator),
        "gain": torch.ones(8),
    }  # fmt: skip


def quantizer(kind: type[RowQuantizer] = RowQuantizer, bits: int = 6, k: float = 12.0) -> RowQuantizer:
    return kind(bits=bits, k=k, scale_floor=False, passthrough_numel=16, fit=1)


def size_with(codec: Codec) -> partial[int]:
    return partial(artifact_size, codec=codec)


@pytest.mark.parametrize("codec", [Ans(), Zlib()])
@pytest.mark.parametrize("room", [25_000, 44_000, 70_000, 90_000])
def test_what_comes_out_fills_the_room(room: int, codec: Codec) -> None:
    one = quantizer()
    entries = fitted(one, state(), SPECS, room, size_with(codec))
    assert FULL * room <= size_with(codec)(entries) <= room
    assert entries["gain"].scheme == "raw"


def test_it_is_the_file_that_fits(tmp_path: object) -> None:
    from pathlib import Path

    path = Path(str(tmp_path)) / "artifact.golf"
    entries = fitted(quantizer(), state(), SPECS, 44_000, size_with(Ans()))
    assert save_artifact(path, entries, Ans()).bytes == size_with(Ans())(entries)
    assert torch.equal(dequantize(load_artifact(path).entries["up"]), dequantize(entries["up"]))


def test_finer_steps_take_more_bits_rather_than_clip() -> None:
    one = quantizer(bits=4, k=8.0)
    entries = fitted(one, state(), SPECS, 70_000, size_with(Ans()))
    assert entries["up"].bits > 4
    error = dequantize(entries["up"]) - state()["up"]
    step = float(entries["up"].parts["scale"].float().mean())
    assert float(error.abs().max()) <= 0.51 * step + 0.3 * float((error.abs() > 0.51 * step).any())


def test_the_same_weights_give_the_same_bytes() -> None:
    first, second = (fitted(quantizer(), state(), SPECS, 44_000, size_with(Ans())) for _ in range(2))
    assert torch.equal(first["up"].parts["q"], second["up"].parts["q"])


def test_too_small_a_room_is_said_with_what_is_reached(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", logger="golf"):
        fitted(quantizer(), state(), SPECS, 1_000, size_with(Ans()))
    assert "bytes at least" in caplog.text


@pytest.mark.parametrize("codec", [Ans(), Zlib()])
@pytest.mark.parametrize("room", [50_200, 45_000])
def test_a_run_fits_where_steps_are_of_few_of_its_values(room: int, codec: Codec) -> None:
    trials = 0

    def size(entries: Mapping[str, Entry]) -> int:
        nonlocal trials
        trials += 1
        return artifact_size(entries, codec)

    one = RowQuantizer(bits=6, k={"mlp.*": 12.0}, scale_floor=False, passthrough_numel=16, fit=1)
    weights = {**state(), "up": torch.randn(80, 100, generator=torch.Generator().manual_seed(3))}
    weights["embed"] = torch.randn(600, 100, generator=torch.Generator().manual_seed(4))
    entries = fitted(one, weights, SPECS, room, size)
    assert 0.99 * room <= artifact_size(entries, codec) <= room
    assert trials <= 12


@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("room", [12_000, 70_000])
def test_bits_and_k_may_begin_anywhere(bits: int, room: int) -> None:
    entries = fitted(quantizer(bits=bits), state(), SPECS, room, size_with(Ans()))
    assert FULL * room <= size_with(Ans())(entries) <= room


def test_steps_are_no_wider_than_a_scale_can_be() -> None:
    weights = {**state(), "up": 20_000 * state()["up"]}
    assert size_with(Ans())(fitted(quantizer(), weights, SPECS, 6_000, size_with(Ans()))) <= 6_000


def test_more_room_than_bytes_can_use_is_left_and_loses_nothing_to_plain_rounding() -> None:
    heavy = torch.distributions.StudentT(4.0)
    torch.manual_seed(0)
    w = heavy.sample((300, 200))
    entries = fitted(quantizer(), {"up": w}, SPECS, 10**7, size_with(Ans()))
    plainly = RowQuantizer(8, scale_floor=False, passthrough_numel=16).quantize({"up": w}, SPECS)
    lost = [float((dequantize(one["up"]) - w).square().mean()) for one in (entries, plainly)]
    assert lost[0] <= 1.01 * lost[1]


def test_drafts_cost_no_gptq() -> None:
    class Counting(GPTQ):
        rounds = 0

        def quantize(
            self,
            state: Mapping[str, torch.Tensor],
            specs: Mapping[str, ParamSpec],
            bits: Mapping[str, int] | None = None,
        ) -> dict[str, object]:
            type(self).rounds += not self._drafting
            return super().quantize(state, specs, bits)  # type: ignore[return-value]

    one = quantizer(Counting)
    x = torch.randn(500, 200, generator=torch.Generator().manual_seed(1)) * torch.logspace(0, -1, 200)
    one.hessians = {"up": x.T @ x}  # type: ignore[attr-defined]
    entries = fitted(one, state(), SPECS, 44_000, size_with(Ans()))
    assert Counting.rounds <= 3
    assert FULL * 44_000 <= size_with(Ans())(entries) <= 44_000


def test_a_grid_without_k_cannot_be_fitted() -> None:
    for k in (None, {}):
        with pytest.raises(ConfigError, match=r"quant\.fit=16000000: needs quant\.k"):
            RowQuantizer(bits=8, fit=16_000_000, k=k)


def test_packed_bits_cannot_be_fitted() -> None:
    with pytest.raises(ConfigError, match=r"quant\.fit=16000000: needs quant\.pack=false"):
        RowQuantizer(bits=6, pack=True, k=12.0, fit=16_000_000)
