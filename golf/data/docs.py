"""The field's documents: one file of them in a frozen order, of which the first 50,000 are validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from golf.common.errors import ConfigError, DataError
from golf.common.files import read_json
from golf.data.blocks import LONGEST
from golf.data.sources import TextFiles
from golf.data.textfiles import SUFFIXES

VAL_DOCS = 50_000
"""Documents of the challenge's validation split."""


class Docs(TextFiles):
    """`data=docs`: files of documents in their order, as the challenge's docs_selected.jsonl, to be made shards of.

    docs: a file, or several, a folder or a glob, of any kind that TextFiles reads. Validation is the first `val_docs`
    documents (None: what `docs_val` in NAME.source_manifest.json beside the file says, as the challenge's exporter has
    it, or else 50,000), or the `val_fraction` whose text's hash is lowest. Raises as TextFiles does.
    """

    otherwise = "give fewer, or data.val_fraction=0.05"

    def __init__(
        self,
        docs: str | list[str],
        val_docs: int | None = None,
        val_fraction: float | None = None,
        field: str = "text",
        encoding: str | list[str] = "auto",
        longest_document: int = LONGEST,
    ) -> None:
        paths = [docs] if isinstance(docs, str) else docs
        if not paths or not all(paths):
            raise ConfigError("data.docs is empty: give a file of documents, as data.docs=docs_selected.jsonl")
        self.stated_in: Path | None = None
        if val_docs is None and val_fraction is None:
            val_docs = self._stated(Path(paths[0]).expanduser()) or VAL_DOCS
        super().__init__(
            paths,
            field=field,
            val_docs=val_docs,
            val_fraction=val_fraction,
            encoding=encoding,
            longest_document=longest_document,
        )

    def _stated(self, path: Path) -> int | None:
        """How many documents are validation by the manifest beside the first file, where there is one."""
        name = path.name
        for suffix in sorted(SUFFIXES, key=len, reverse=True):
            name = name.removesuffix(suffix)
        beside = path.with_name(f"{name}.source_manifest.json")
        if not beside.is_file():
            return None
        try:
            count = read_json(beside).get("docs_val")
        except (OSError, ValueError, AttributeError) as error:
            raise DataError(f"cannot read {beside} ({error})\n(data.val_docs says how many are validation)") from None
        if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
            raise DataError(f"{beside}: docs_val is {count!r}, not a number of documents (data.val_docs)")
        self.stated_in = beside if count else None
        return count

    @property
    def facts(self) -> dict[str, Any]:
        """As those of TextFiles, with the rule of the split."""
        if self.val_docs is None:
            rule = f"by hash: the {self.val_fraction:g} of texts whose hash is lowest"
        else:
            rule = f"the first {self.val_docs:,} documents"
            rule += f" (docs_val in {self.stated_in.name})" if self.stated_in else ""
        return {**super().facts, "source": "docs", "validation": rule}
