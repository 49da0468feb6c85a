"""What an `eval` component is: something that scores a model over the validation stream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from golf.common.ranks import Ranks
from golf.evals.pace import Partial
from golf.nn.models.gpt import GPT

if TYPE_CHECKING:
    from golf.evals.evaluators import Score, Scorer, Validation


class Evaluates(Protocol):
    """Scores a model; golf.evals.evaluators.Evaluator is one, and a class that changes something of it may derive from
    it."""

    seq_len: int
    """No window has more inputs; the validation stream holds at least one of them."""

    @property
    def method(self) -> str:
        """The name of its figures in result.json. `contiguous` is that of `contiguous` alone."""
        ...

    def contiguous(self) -> Evaluates:
        """What scores the whole stream without overlap, for validation and for comparison before and after
        quantization."""
        ...

    def score(
        self, model: GPT, forward: Scorer, validation: Validation, ranks: Ranks, fixed_shapes: bool = False, *,
        limit_s: float | None = None, partial: Partial | None = None, nll: torch.Tensor | None = None,
    ) -> Score:  # fmt: skip
        """The score, the same on every rank; `model` is in evaluation mode and is to be as it was afterwards.

        One that trains the model, or otherwise changes what it holds, while it scores has `adapts = True`; what it
        leaves behind is put back, and in any other it ends in an invalid run.

        forward: the model's, compiled or not; `fixed_shapes` wants few shapes then. limit_s: how long it may take.
        partial, nll: see Evaluator.evaluate; one that cannot go on where it stopped may leave `partial` alone. Raises
        EvaluationTooLong for what would take longer than `limit_s`.
        """
        ...
