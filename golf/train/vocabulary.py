"""What a model's loss makes of every token of the vocabulary at some positions: probabilities, which sum to 1."""

from __future__ import annotations

from collections.abc import Callable

import torch

from golf.nn.models.gpt import GPT

POSITIONS, ROWS = 8, 256
"""At how many positions the sums are, and how many tokens are targets at once."""
OFF = 1e-3
"""By how much a sum may differ from 1: the losses are float32's."""


def summed(model: GPT, tokens: torch.Tensor, late: Callable[[], bool]) -> torch.Tensor | None:
    """Σ exp(−loss) over all tokens as targets, float64 [positions] of the first of `tokens`; None where it got late."""
    length, vocabulary = min(POSITIONS, len(tokens) - 1, model.longest), model.shape.vocab_size
    x = tokens[None, :length]
    total = torch.zeros(length, dtype=torch.float64, device=tokens.device)
    for low in range(0, vocabulary, ROWS):
        if late():
            return None
        every = torch.arange(low, min(low + ROWS, vocabulary), device=tokens.device)[:, None]
        losses = model(x.expand(len(every), -1), every.expand(-1, length).contiguous(), reduction="none")
        total += torch.exp(-losses.double()).sum(0)
    return total
