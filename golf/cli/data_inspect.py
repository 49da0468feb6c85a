"""`golf data inspect DIR`: what a folder of shards holds, and what can be proved of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from golf.common.errors import ConfigError, did_you_mean

PAGE = """golf data inspect DIR [tokenizer.model_path=FILE] [near=false] [samples=3] [pairs=5]

Tells what a folder of shards holds, golf's own or anybody's in the challenge's format: counts, how the split was made,
whether the files are those that were written, whether training has texts of validation (by the hashes of their texts,
token for token, and nearly: MinHash), the byte count, and a few texts. Says too what cannot be proved, and why.

  DIR                a folder with *_train_*.bin and *_val_*.bin
  tokenizer.model_path=FILE  the .model or tokenizer.json that wrote them, or byte260, where none lies with them
  tokenizer/transform=caseops  what of golf's own was done to the text first, where no manifest says it
  near=false         look for no near copies (pip install 'golf[near]' has what looks for them)
  samples, pairs     how many texts of each split, and of the nearest pairs, are shown

  golf data inspect ~/.cache/golf/datasets/sp2048-0123456789abcdef0123
  golf data inspect data/datasets/fineweb10B_sp1024 tokenizer.model_path=data/tokenizers/fineweb_1024_bpe.model

Exit code 3: something is wrong.
"""
_KEYS = ("tokenizer.model_path", "tokenizer/transform", "near", "samples", "pairs")


@dataclass(frozen=True)
class Request:
    """What a line asks for."""

    folder: str
    tokenizer: str | None
    transform: str | None
    near: bool
    samples: int
    pairs: int


def run(argv: list[str]) -> int:
    """Look, print. Raises ConfigError for a mistake, DataError for what are no shards."""
    if any(word in ("--help", "-h") for word in argv):
        print(PAGE, end="")
        return 0
    request = parse(argv)
    from pathlib import Path

    from golf.cli.data import PreparationBars
    from golf.cli.tables import Column, Table, print_table
    from golf.data.inspection import inspect

    with PreparationBars() as progress:
        found = inspect(
            Path(request.folder), request.tokenizer, request.transform, samples=request.samples, near=request.near,
            most=request.pairs, progress=progress,
        )  # fmt: skip
    table = Table(Column("what", right=False, style="bold"), Column("", right=False, prose=True), header=False)
    for name, text in found.facts.items():
        table.add_row(name, text)
    table.add_row("folder", str(found.folder))
    print_table(table)
    for kind, sentences in (("proved", found.proved), ("wrong", found.wrong), ("not proved", found.unproved)):
        for sentence in sentences:
            print(f"{kind}: {sentence}")
    for place, val, train in found.pairs:
        print(f"\n{place}\n  {val}\n  {train}")
    for place, text in found.samples:
        print(f"\n{place}\n  {text}")
    return 3 if found.wrong else 0


def parse(argv: Sequence[str]) -> Request:
    """Raises ConfigError for a mistake on the line."""
    folders, given = [word for word in argv if "=" not in word], dict(_pair(word) for word in argv if "=" in word)
    if len(folders) != 1:
        raise ConfigError("golf data inspect takes one folder of shards: golf data inspect DIR")
    near = given.get("near", "true")
    if near not in ("true", "false"):
        raise ConfigError(f"near={near}: true or false")
    counts = {}
    for key, default in (("samples", 3), ("pairs", 5)):
        value = given.get(key, str(default))
        if not value.isdecimal():
            raise ConfigError(f"{key}={value}: a whole number, as {key}={default}")
        counts[key] = int(value)
    named = given.get("tokenizer.model_path"), given.get("tokenizer/transform")
    return Request(folders[0], *named, near == "true", counts["samples"], counts["pairs"])


def _pair(word: str) -> tuple[str, str]:
    key, _, value = word.partition("=")
    if key not in _KEYS:
        raise ConfigError(f"golf data inspect knows no {key} {did_you_mean(key, _KEYS)}")
    return key, value
