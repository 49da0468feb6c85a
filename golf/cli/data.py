"""`golf data`: prepare data and tokenizer, without training."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from golf.launch.compose.configs import Checker, compose_job, composer, resolved, told_where
from golf.launch.compose.line import CommandLine, refuse_unused

if TYPE_CHECKING:
    from golf.data.prepare import Prepared

PAGE = """golf data [--config-dir DIR] [data=OPTION] [tokenizer=OPTION] [key=value] … [-m]
golf data inspect DIR   what a folder of shards holds, and what can be proved of it (golf data inspect --help)

Prepares what `golf train` with the same words would: trains or loads the tokenizer, tokenizes the text into shards,
proves the byte count, and keeps all of it in the cache ($GOLF_CACHE), where training finds it.

  data=pystdlib      the standard library's source text (default); text: data.paths=[…]; shards: data.train=, data.val=
  data=fineweb       the challenge's published shards and tokenizer, fetched from the Hugging Face hub
                     (data.train_shards=80, data.folder=DIR); source=fineweb says the same; of models without byte
                     pieces with data.docs=docs_selected.jsonl, or published byte side-cars
  data=hf            a dataset on the Hugging Face hub: data.repo=OWNER/NAME data.split=train data.field=text
  data=docs          the field's documents to shards: data.docs=docs_selected.jsonl, of which the first 50,000 are
                     validation (data.val_docs=…, or data.val_fraction=0.05 by hash); source=docs says the same
  tokenizer=sp1024   sp2048, sp4096, sp8192, byte260; tokenizer.vocab_size=1536, tokenizer.model_path=FILE.model,
                     tokenizer.model_type=unigram; tokenizer.vocab_size= alone means one of these
  tokenizer=bytelevel  Hugging Face's byte-level BPE; tokenizer.model_path=tokenizer.json
  tokenizer/transform=caseops  what is done to the text first: caseops, caseops_fused, caseops_ahead
  recipe=NAME        the data and tokenizer of a recipe
  -m                 several values: each is prepared, and a table compares the tokenizers

All cores tokenize, and the bytes are the same for any number of them. What was stopped goes on from its last whole
shard when the same line is given again.

  golf data tokenizer=sp2048
  golf data source=docs data.docs=docs_selected.jsonl tokenizer=sp2048
  golf data data=text 'data.paths=[corpus/]' -m tokenizer.vocab_size=1024,2048,4096,8192
  golf data source=fineweb tokenizer=sp1024 data.train_shards=80
"""


def run(argv: list[str]) -> int:
    """Check, then prepare. Raises ConfigError for a mistake, DataError for unusable data."""
    if argv[:1] == ["inspect"]:
        from golf.cli.data_inspect import run as inspect

        return inspect(argv[1:])
    if any(word in ("--help", "-h") for word in argv):
        print(PAGE, end="")
        return 0
    line = CommandLine.parse(spelt_out(argv))
    refuse_unused(line, "data", "sweep")
    with told_where(line), composer(line.config_dirs):
        checker = Checker(line)
        line = checker.complete()
        configs = [resolved(compose_job(words, line.config_dirs)) for words in checker.grid(line)]
    wanted: list[dict[str, Any]] = []
    first: list[dict[str, Any]] = []
    for config in configs:
        parts = {"data": config["data"], "tokenizer": config["tokenizer"]}
        if parts not in wanted:  # a sweep over other keys asks for the same data again
            wanted.append(parts)
            first.append(config)
    results = prepare_each(wanted, [str(folder) for folder in line.config_dirs])
    show(results)
    if len({json.dumps(parts["tokenizer"], sort_keys=True) for parts in wanted}) > 1:
        from golf.cli.data_table import table
        from golf.cli.tables import print_table

        print_table(table(results, first))
    return 0


def spelt_out(argv: Sequence[str]) -> list[str]:
    """The words as `golf train` has them: `source=` is `data=`, and a tokenizer's key alone means SentencePiece's."""
    words = [f"data={word[7:]}" if word.startswith("source=") else word for word in argv]
    chosen = any(word.startswith(("tokenizer=", "recipe=")) for word in words)
    if not chosen and any(word.startswith("tokenizer.") for word in words):
        words.append("tokenizer=sp1024")
    return words


def prepare_each(wanted: Sequence[dict[str, Any]], code_paths: list[str]) -> list[Prepared]:
    """Check every job, then prepare one after another."""
    from golf.data.fineweb import FineWeb
    from golf.data.hub_text import HubText
    from golf.data.prepare import prepare
    from golf.launch.compose import build
    from golf.launch.compose.annotations import check_types
    from golf.launch.compose.own_modules import use_code

    use_code(code_paths)
    made = []
    for parts in wanted:
        for key, node in parts.items():
            check_types(node, key)
        made.append((build.make(parts["data"], "data"), build.make(parts["tokenizer"], "tokenizer")))
    results = []
    for source, spec in made:
        with PreparationBars() as progress:
            fetched = source.fetch(spec, progress=progress) if isinstance(source, FineWeb | HubText) else 0
            results.append(prepare(source, spec, on_progress=progress))
        if fetched:
            results[-1].facts["cached"] = False
    return results


class PreparationBars:
    """Progress of a preparation: bars on a terminal, a plain line every tenth elsewhere, with the time left.

    clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        from golf.common.log import interactive

        self._clock = clock
        self._began: dict[str, tuple[float, float]] = {}
        self._bars: Any = None
        self._tasks: dict[str, Any] = {}
        self._told: dict[str, int] = {}
        if interactive():
            from rich import progress

            columns = ("{task.description}", progress.BarColumn(), progress.TaskProgressColumn())
            self._bars = progress.Progress(*columns, progress.TimeRemainingColumn(), speed_estimate_period=120)

    def __enter__(self) -> PreparationBars:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, what: str, fraction: float) -> None:
        """`what` has come as far as `fraction`, in [0, 1]."""
        if self._bars is not None:
            if what not in self._tasks:
                self._tasks[what] = self._bars.add_task(what, total=1.0)
            self._bars.update(self._tasks[what], completed=fraction)
        elif (tenth := int(fraction * 10)) > self._told.get(what, -1):
            self._told[what] = tenth
            print(f"{what}: {tenth * 10} %{self._left(what, fraction)}", flush=True)

    def _left(self, what: str, fraction: float) -> str:
        """The time left by the pace since the first report, where that is more than a few seconds."""
        now = self._clock()
        began, at = self._began.setdefault(what, (now, fraction))
        if fraction <= at or fraction >= 1:
            return ""
        seconds = (now - began) / (fraction - at) * (1 - fraction)
        return f", about {datetime.timedelta(seconds=round(seconds))} left" if seconds > 5 else ""


def show(results: Sequence[Prepared]) -> None:
    """What lies in the cache now, one column a preparation."""
    from golf.cli.tables import Column, Table, print_table

    pages = [dict(rows(result)) for result in results]
    table = Table(
        Column("what", right=False, style="bold"), *(Column("", right=False, prose=True) for _ in pages), header=False
    )
    for name in dict.fromkeys(name for page in pages for name in page):
        table.add_row(name, *(page.get(name, "") for page in pages))
    print_table(table)
    for note in dict.fromkeys(note for result in results for note in result.facts.get("notes", ())):
        print(note)


def rows(result: Prepared) -> list[tuple[str, str]]:
    """A preparation's facts as (name, text)."""
    facts = result.facts
    train, val, proof = facts["splits"]["train"], facts["splits"]["val"], facts["byte_proof"]
    return [
        ("source", str(facts["source"])),
        ("tokenizer", f"{facts['tokenizer']}, {facts['vocab_size']:,} ids"),
        ("the tokenizer's training", str(facts["tokenizer_training"])),
        ("train documents", _number(train.get("documents"))),
        ("train tokens", f"{len(result.train):,}"),
        ("train bytes per token", _number(train.get("bytes_per_token"))),
        ("validation documents", _number(val.get("documents"))),
        ("validation tokens", f"{len(result.val):,}"),
        ("validation bytes per token", _number(val.get("bytes_per_token"))),
        ("replaced characters", _number(_sum(train, val, "replaced_characters"))),
        ("byte count", _counted(proof, val)),
        *_sampled(facts, train),
        ("train and validation disjoint", "; ".join([str(facts["disjoint"]), *_hashed(facts)])),
        ("made", "found in the cache" if facts["cached"] else "now"),
        ("folder", str(facts.get("folder", result.train.paths[0].parent))),
    ]


def _hashed(facts: dict[str, Any]) -> list[str]:
    from golf.data.manifests import Apart

    return [str(Apart(**facts["texts_apart"]))] if "texts_apart" in facts else []


def _counted(proof: dict[str, Any], val: dict[str, Any]) -> str:
    told = f"proved on {proof['documents']:,} documents, all of validation: {proof['bytes']:,} bytes"
    if "documents" in val and val["documents"] != proof["documents"]:
        told = f"proved on {proof['documents']:,} of {val['documents']:,} documents, {proof['bytes']:,} bytes"
    if "side_car" in val:
        told += f"; by a side-car, which counts {val['bytes']:,}"
    if "lost_bytes" in val:
        told += f", {val['lost_bytes']:,} of them for {val['lost_tokens']:,} tokens that do not say which text"
    return told


def _sampled(facts: dict[str, Any], train: dict[str, Any]) -> list[tuple[str, str]]:
    sample = facts.get("train_sample")
    if sample is None:
        return []
    looked_at, same = sample["documents"], sample["documents_that_encode_to_the_same_ids"]
    told = f"sampled {looked_at:,} of {train['documents']:,} documents"
    if looked_at > train["documents"]:  # parts of documents that are longer than what is looked at
        told = f"sampled in {looked_at:,} places"
    return [("training shards", f"{told}: {same:,} encode to their own ids")]


def _number(value: Any) -> str:
    return "not counted" if value is None else f"{value:.4f}" if isinstance(value, float) else f"{value:,}"


def _sum(train: dict[str, Any], val: dict[str, Any], key: str) -> int | None:
    counts = [split[key] for split in (train, val) if key in split]
    return sum(counts) if counts else None
