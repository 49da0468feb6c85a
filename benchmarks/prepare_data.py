"""What preparing data takes: golf's speed beside SentencePiece's own batches, memory on the largest input, the loader.

python benchmarks/prepare_data.py speed DOCS.jsonl.zst TOKENIZER.model   # medians of three rounds
python benchmarks/prepare_data.py memory TOKENIZER.model                 # a 100 MB document, a 1 GB line, …
python benchmarks/prepare_data.py loader                                 # tokens a second from the page cache
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil

from golf.common.process import usable_cores
from golf.data.docs import Docs
from golf.data.loader import Feed
from golf.data.orders import Coprime, Shuffled, Spans
from golf.data.prepare import prepare
from golf.data.shards import Shards, write_shards
from golf.tokenizers.sentencepiece import SentencePieceSpec, SentencePieceTokenizer

_ROUNDS = 3
_VAL_DOCS = 500


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the wall, and CPU seconds of this process and those that it started and that ended."""

    def cpu() -> float:
        both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(one.ru_utime + one.ru_stime for one in both)

    start, used = time.perf_counter(), cpu()
    work()
    return time.perf_counter() - start, cpu() - used


def spec_of(model: str) -> SentencePieceSpec:
    """The tokenizer of a .model file."""
    size = SentencePieceTokenizer.load(model).vocab_size
    return SentencePieceSpec(name=Path(model).stem, vocab_size=size, model_path=model)


def speed(docs: str, model: str) -> None:
    """Everything that `golf data` does with the documents, beside nothing but SentencePiece's encode with all cores."""
    from sentencepiece import SentencePieceProcessor

    processor, spec, cores = SentencePieceProcessor(model_file=model), spec_of(model), usable_cores()
    source = Docs(docs, val_docs=_VAL_DOCS)
    texts = [*source.documents("val"), *source.documents("train")]
    size = sum(len(text.encode("utf-8")) for text in texts) / 1e6

    def own() -> None:
        for at in range(0, len(texts), 2000):
            processor.encode(texts[at : at + 2000], num_threads=cores)

    def golf() -> None:
        with tempfile.TemporaryDirectory() as cache:
            prepare(Docs(docs, val_docs=_VAL_DOCS), spec, cache=Path(cache))

    rounds = [(timed(own), timed(golf)) for _ in range(_ROUNDS)]
    print(f"{size:.1f} MB of text, {cores} cores, {spec.name}")
    for name, each in (("SentencePiece", [one for one, _ in rounds]), ("golf data", [one for _, one in rounds])):
        wall, cpu = (statistics.median(values) for values in zip(*each, strict=True))
        print(f"{name:14} {size / wall:6.2f} MB/s, {size / cpu:6.2f} MB per CPU second ({wall:.1f} s, CPU {cpu:.1f} s)")


def memory(model: str) -> None:
    """The most that a preparation holds, all its processes together, by kind of input."""
    spec = spec_of(model)
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        words = [f"{number} common words of plain text to be read" for number in range(1000)]
        short = (" ".join(words) + ". ").encode()
        line = json.dumps({"text": short.decode()}).encode() + b"\n"

        def documents(name: str, long: int, lines: int) -> None:
            path = Path(folder, "docs.jsonl")
            with open(path, "wb") as file:
                for number in range(600):
                    file.write(json.dumps({"text": f"{number} {short[:4000].decode()}"}).encode() + b"\n")
                if long:
                    file.write(b'{"text": "')
                    for _ in range(long // len(short)):
                        file.write(short)
                    file.write(b'"}\n')
                for number in range(lines):
                    file.write(line.replace(b"0 common", f"{number} common".encode(), 1))
            most = Most()
            with most, tempfile.TemporaryDirectory(dir=folder) as cache:
                found = prepare(Docs(str(path), val_docs=_VAL_DOCS), spec, cache=Path(cache))
            tokens, notes = len(found.train), "; ".join(found.facts["notes"])
            print(f"{name}: {most.bytes / 1e9:.2f} GB at most, {tokens:,} training tokens {notes}", flush=True)

        documents("one document of 100 MB", 100_000_000, 0)
        documents("one line of 1 GB", 1_000_000_000, 0)
        documents("1 GB of documents of 43 KB", 0, 1_000_000_000 // len(line))
        path = Path(folder, "docs.txt")
        with open(path, "wb") as file:
            for _ in range(1_000_000_000 // len(short)):
                file.write(short)
        most = Most()
        with most, tempfile.TemporaryDirectory(dir=folder) as cache:
            found = prepare(Docs(str(path), val_fraction=0.2), spec, cache=Path(cache))
        print(f"a text of one line of 1 GB: {most.bytes / 1e9:.2f} GB at most, {len(found.train):,} training tokens")


class Most:
    """The most memory that this process and its children have together while the `with` block runs, shared pages once
    (PSS), looked at four times a second."""

    def __init__(self) -> None:
        self.bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Most:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        own = psutil.Process()
        while not self._over.wait(0.25):
            total = 0
            for process in (own, *own.children(recursive=True)):
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue
            self.bytes = max(self.bytes, total)


def loader() -> None:
    """Tokens a second of each order, whole windows and packed, for one rank that reads all of a shard just written."""
    with tempfile.TemporaryDirectory() as folder:
        draw = np.random.default_rng(0)
        ids = draw.integers(260, 1024, 10**8).astype(np.uint16)
        ids[:: 1 + 997] = 1
        paths = write_shards(Path(folder), "train", [ids])
        shards = Shards.open(paths, 1024)
        shards.read(0, len(shards))
        for order in (Spans, Shuffled, Coprime):
            for packed in (False, True):
                feed = Feed(shards, 524_288, 1024, border_id=1)
                made = order(feed, packed)
                try:
                    rates = []
                    for _ in range(_ROUNDS):
                        start = time.perf_counter()
                        for _ in range(40):
                            made.next_step()
                        rates.append(40 * 524_288 / (time.perf_counter() - start))
                    told = f"{order.__name__.lower()}{', packed' if packed else ''}"
                    print(f"{told:16} {statistics.median(rates) / 1e6:7.1f} M tokens/s")
                finally:
                    made.close()


if __name__ == "__main__":
    {"speed": speed, "memory": memory, "loader": loader}[sys.argv[1]](*sys.argv[2:])
