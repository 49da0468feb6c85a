"""The table that ends `golf data -m`: one row a tokenizer, what a vocabulary buys and what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from golf.common.errors import GolfError
from golf.data.classes import CLASSES

if TYPE_CHECKING:
    from golf.cli.tables import Table
    from golf.data.prepare import Prepared

NOTES = (
    "tokens a document: of the validation documents of a kind; bytes: tokens that are a part of a character",
    "embedding: bytes that it and an untied head take in the model of this line, quantized and packed",
)


def table(results: Sequence[Prepared], configs: Sequence[Mapping[str, Any]]) -> Table:
    """One row a preparation; `configs` are the line's, whole, for the embedding's bytes."""
    from golf.cli.tables import Column, Table

    kinds = [kind for kind in CLASSES if any(_of_class(one, kind) for one in results)]
    made = Table(
        Column("tokenizer", right=False),
        Column("ids"),
        Column("bytes a token"),
        *(Column(f"tokens a document: {kind}", name=kind, drop=2) for kind in kinds),
        Column("bytes", drop=1),
        Column("embedding"),
        title="tokenizers",
    )
    for result, config in zip(results, configs, strict=True):
        splits = result.facts["splits"]
        made.add_row(
            str(result.facts["tokenizer"]),
            f"{result.facts['vocab_size']:,}",
            f"{splits['val']['bytes_per_token']:.4f}",
            *(_of_class(result, kind) for kind in kinds),
            _fragments(splits),
            _embedding(config),
        )
    made.notes += NOTES
    return made


def _of_class(result: Prepared, kind: str) -> str:
    counts = result.facts["splits"]["val"].get("classes", {}).get(kind)
    return f"{counts['tokens'] / counts['documents']:,.0f}" if counts and counts["documents"] else ""


def _fragments(splits: Mapping[str, Any]) -> str:
    known = [one for one in splits.values() if "fragments" in one]
    tokens = sum(one["tokens"] for one in known)
    return f"{sum(one['fragments'] for one in known) / tokens:.3%}" if tokens else ""


def _embedding(config: Mapping[str, Any]) -> str:
    """Bytes of the vocabulary's matrices in the artifact, as `golf size` forecasts them."""
    from golf.launch.work.forecast import forecast

    try:
        found = forecast(config)
    except GolfError:
        return "not known"
    return f"{round(sum(one.bytes for one in found.tensors if one.role in ('embed', 'head'))):,}"
