"""What is said of a GPU whose memory did not suffice."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from golf.train.out_of_memory import Use, explained, held, told

GIB = 2**30


@pytest.mark.parametrize(
    ("passes", "of_a_pass", "fits"),
    [
        (1, 70, "runtime.micro_tokens=49152 cuts a step into 2 passes"),
        (2, 60, "runtime.micro_tokens=24576 cuts a step into 4 passes"),
        (8, 70, "no smaller pass fits"),
    ],
)
def test_the_largest_pass_that_fits_is_named(passes: int, of_a_pass: int, fits: str) -> None:
    use = Use(weights=5 * GIB, optimizer=5 * GIB, passes=of_a_pass * GIB, total=80 * GIB)
    first, second = told(use, passes, span_tokens=12_288, spans=8)
    assert f"{of_a_pass}.00 GiB a pass of {8 // passes * 12_288:,} tokens" in first
    assert second.startswith(fits)


def test_weights_alone_may_be_too_many() -> None:
    assert "no smaller pass fits" in told(Use(75 * GIB, 0, GIB, 80 * GIB), 1, 1024, 8)[1]


def test_what_shares_its_memory_is_counted_once() -> None:
    tensor = torch.zeros(10)
    values = {"a": [tensor, tensor[2:]], "b": (torch.zeros(2, dtype=torch.int8), "text", None)}
    assert held(values, torch.device("cpu")) == 42


def test_another_error_is_left_as_it_is() -> None:
    error, parts = ValueError("no"), Any
    assert explained(error, parts) is error
