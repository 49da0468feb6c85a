"""What is compiled of a model, in training and in evaluation, and how."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import torch

from golf.common.log import logger
from golf.common.runtime import SPANS, Runtime
from golf.nn.kernels import serve_throughout
from golf.nn.models.gpt import GPT

if TYPE_CHECKING:
    from golf.train.parts import Parts


def compiled(
    model: GPT, scope: Literal["model", "block", "none"], variants: int = 1, as_graphs: bool = False
) -> Callable[..., torch.Tensor]:
    """The forward to call when the model or its blocks are to be compiled; the work happens at the first call.

    variants: how many phases have graphs of their own. as_graphs: of the whole model, launched as CUDA graphs. What a
    pass puts out, gradients too, lasts until the next.
    """
    if scope == "none":
        return model
    # A graph per visit, in training and each evaluator's shapes.
    torch._dynamo.config.cache_size_limit = max(64, 8 * len(model.visits)) * variants
    if scope == "model":
        forward: Callable[..., torch.Tensor] = torch.compile(
            model, fullgraph=True, dynamic=False,
            options={"triton.cudagraphs": True} if as_graphs else None,
        )  # fmt: skip
        return forward
    for block in model.blocks:
        block.compile(fullgraph=True, dynamic=False)
    return model


def scoring(model: GPT, runtime: Runtime, variants: int = 1) -> tuple[Callable[..., torch.Tensor], bool]:
    """The forward that evaluations call, and whether it is compiled, hence wants fixed shapes; variants: as above.

    Where fused kernels serve throughout, compiling takes longer than most evaluations and gains them a few percent.
    """
    scope, asked = runtime.compile_scope, runtime.compile_eval
    if scope != "none" and (not serve_throughout(model) if asked == "auto" else asked):
        return compiled(model, scope, variants), True

    def eager(*given: Any, **how: Any) -> torch.Tensor:
        with torch.compiler.set_stance("force_eager"):
            return model(*given, **how)  # type: ignore[no-any-return]

    return eager if scope == "block" else model, False  # training has compiled the blocks where they are


def records_graphs(parts: Parts) -> bool:
    """Whether passes are launched as CUDA graphs: where every phase allows it."""
    sizes = {phase.settings.train_batch_tokens // SPANS for phase in parts.phases}
    if not all(parts.runtime.records_graphs(SPANS, size, parts.ranks.world) for size in sizes):
        return False
    if parts.runtime.cuda_graphs == "auto" and parts.model.keeps_state:
        logger.info("no CUDA graphs: a part of your own keeps tensors, which it may replace (runtime.cuda_graphs)")
        return False
    return True
