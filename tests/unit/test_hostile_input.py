"""Mutated files of every kind that golf reads: only documented errors come out, soon, and in bounded memory.

A kind has files to begin with and a reader. Each input is one of the files with some bytes changed, cut, doubled or
replaced, or with one of its values replaced by what nobody expects. `make test-nightly` tries 15,000 of each kind, or
as many as GOLF_FUZZ says; GOLF_FUZZ_KEEP names a folder for those that fail.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import resource
import struct
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
import zstandard

from golf.artifact.codecs import CODECS
from golf.artifact.container import load_artifact, save_artifact
from golf.common.errors import ArtifactError, GolfError
from golf.data.shards import Shards, write_shards
from golf.data.textfiles import Reader
from golf.evals.pace import Partial, Tally
from golf.launch.compose import trust
from golf.quant.entry import Entry, dequantize, pack_bits
from golf.runs.figures import FINAL
from golf.runs.listing import runs_table
from golf.runs.record import EvalRecord, Result
from golf.runs.store import Run, best, filter_runs
from golf.tokenizers.sentencepiece import SentencePieceTokenizer

EACH = int(os.environ.get("GOLF_FUZZ", "15000"))
MOST_SECONDS = 5.0
MOST_BYTES = 1 << 30
MODEL = Path(__file__).parent / "data" / "sp1024.model"
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 2**63, 10**300, -(2**31), 1e308, "", "x" * 5000, "\x1b]52;c;aGk=\x07", "\ud800",
    "${oc.env:HOME}", [], {}, [[]], [None], [1, "a"], {"a": None}, {"": {}}, {"\x1b[2J": 1}, "../../etc", "NaN", 0.5,
)  # fmt: skip
BYTES = (b"", b"\0", b"\xff" * 8, b"[" * 3000, b'{"a":' * 2000, b"NaN", b"1e999", b"9" * 5000, b"\x1b[2J", b"<<: *a\n",
         b"&a [*a]", b"\n", b"\xed\xa0\x80", b"!!int ''", b"\xff\xfe", b"- " * 500, b"!!binary x")  # fmt: skip
Sample = tuple[str, bytes]


def mutated(data: bytes, drawn: random.Random) -> bytes:
    """Some of the bytes changed, in one to three places."""
    found = bytearray(data)
    for _ in range(drawn.randint(1, 3)):
        at = drawn.randrange(len(found) + 1)
        end = min(len(found), at + drawn.choice((1, 1, 2, 4, 8, 64)))
        match drawn.randrange(6):
            case 0:
                found[at:end] = drawn.randbytes(end - at)
            case 1:
                del found[at:end]
            case 2:
                del found[at:]
            case 3:
                found[at:at] = drawn.choice(BYTES)
            case 4:
                found[at:end] = drawn.choice(BYTES)
            case 5:
                found[at:at] = found[at : at + 200]
    return bytes(found)


def replaced(value: Any, drawn: random.Random) -> Any:
    """A JSON value with one of its parts replaced or left out."""
    if not isinstance(value, dict | list) or not value or drawn.random() < 0.08:
        return drawn.choice(VALUES)
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    key = drawn.choice(list(copy)) if isinstance(copy, dict) else drawn.randrange(len(copy))
    if drawn.random() < 0.1:
        del copy[key]
    else:
        copy[key] = replaced(copy[key], drawn)
    return copy


def checksummed(blob: bytes) -> bytes:
    """An artifact whose checksum is right again."""
    if len(blob) < 29:
        return blob
    digest = hashlib.blake2b(blob[:21], digest_size=8)
    digest.update(blob[29:])
    return blob[:21] + digest.digest() + blob[29:]


# ------------------------------------------------------------------------------------------------------------ kinds


def artifacts(folder: Path) -> list[Sample]:
    values = torch.arange(-8, 8, dtype=torch.int8).repeat(4).reshape(8, 8)
    scale = torch.full((8,), 0.1, dtype=torch.float16)
    entries = [
        Entry("a", "mlp.up", "matrix", (8, 8), torch.float32, "per_row", 6, True,
              {"q": pack_bits(values, 6), "scale": scale}),
        Entry("b", "mlp.up", "matrix", (8, 8), torch.bfloat16, "per_row", 8, False, {"q": values, "scale": scale}),
        Entry("c", "head", "scalar", (3,), torch.float32, "raw", 32, False, {"data": torch.ones(3)}),
    ]  # fmt: skip
    found = []
    for name in ("store", "zlib", "zstd", "lzma", "brotli", "ans"):
        if name in CODECS or name == "ans":
            from golf.artifact.codecs import codec_named

            save_artifact(folder / name, {one.name: one for one in entries}, codec_named(name), {"config": "x"}, "y")
            found.append(("artifact.golf", (folder / name).read_bytes()))
    return found


def read_artifact(path: Path) -> None:
    for entry in load_artifact(path, 1 << 20).entries.values():
        dequantize(entry)


def shards(folder: Path) -> list[Sample]:
    (path,) = write_shards(folder, "val", [np.arange(500, dtype=np.uint16) % 260])
    return [("val_000000.bin", path.read_bytes())]


def read_shards(path: Path) -> None:
    opened = Shards.open([path], 260)
    opened.read(0, len(opened))


RECORD = {
    "git": {"commit": "0" * 40, "dirty": True}, "versions": {"golf": "1", "torch": "2"}, "command": "golf train",
    "data": {"source_hash": "a", "tokenizer_hash": "b", "splits": {"val": {"documents": 3, "bytes": 9}}},
    "clocks": {"train": 1.0}, "violations": ["over artifact bytes"], "error": "",
}  # fmt: skip


def run_folder(folder: Path) -> list[Sample]:
    config = {
        "seed": 1, "name": "one", "optimizer": {"_target_": "golf.learn.muon.Muon", "matrix_lr": 0.02},
        "model": {"num_layers": 2}, "choices": {"recipe": "quickstart"}, "published": None, "phases": [],
        "runtime": {"nproc": 1}, "technique": {"x": None}, "tags": [],
    }  # fmt: skip
    scored = [
        EvalRecord(stage=stage, method="contiguous", seq_len=8, val_loss=1, val_bpb=1.2, targets=1, bytes=1, seconds=1)
        for stage in ("stop", "quantized")
    ]
    Result.from_parts(status="completed", steps=2, train_time_s=1.0, evals=scored).write(folder / "result.json")
    record = json.loads((folder / "result.json").read_text())
    record |= {name: value for name, value in RECORD.items() if name in record}
    rows = [{"step": n, "tokens": n, "train_time_s": 0.1, "train_loss": 3.0, "val_bpb": 1.4} for n in range(4)]
    later = {**scored[0].model_dump(mode="json"), "bytes": {"model": 3}, "gap": 0.1, "same_data": False}
    return [
        ("config.yaml", yaml.safe_dump(config).encode()),
        ("overrides.yaml", yaml.safe_dump(["seed=1", "optimizer.matrix_lr=0.02"]).encode()),
        ("result.json", json.dumps(record).encode()),
        ("metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode()),
        ("evals/sliding_1.json", json.dumps(later).encode()),
    ]


def read_run(path: Path) -> None:
    from golf.cli.runs import ordered, show
    from golf.runs.report.gather import gather
    from golf.runs.report.page import page
    from golf.runs.report.sides import Given, compare
    from golf.runs.report.text import markdown

    root = next(parent for parent in path.parents if parent.name == "run")
    run = Run(root)
    seldom = (
        lambda: print(page(told := gather([Run(root)]), root, "t"), markdown(told, root, "t")),
        lambda: compare(Given("a", [run]), Given("1.2", figure=1.2)),
    )
    often = (
        lambda: run.columns(),
        lambda: run.metrics,
        lambda: run.result,
        lambda: (run.state, run.verdict, run.disagreements(), run._repr_html_(), run.get("val_bpb.final")),
        lambda: trust.admit(root, run.config, "run=x"),
        lambda: runs_table([run, Run(root)]),
        lambda: filter_runs([run], ["seed=1", "val_bpb.final<9"]),
        lambda: [ordered([run, Run(root)], key) for key in ("seed", "val_bpb.final", "bytes.artifact")],
        lambda: best([run], FINAL),
        lambda: show(run),
    )
    for read in (*often, *(seldom if path.stat().st_size % 4 == 0 else ())):
        try:
            with redirect_stdout(out := io.StringIO()):
                read()
            assert "\x1b" not in out.getvalue(), "it steers a terminal"
        except GolfError:
            continue


def manifests(folder: Path) -> list[Sample]:
    told = {
        "layout": 1, "source": {"disjoint": "x"}, "byte_proof": {"bytes": 3},
        "splits": {s: {"files": ["a.bin"], "sha256": {"a.bin": "0"}, "documents": 1,
                       "document_hashes": {"file": "manifest.json", "sha256": "0"}} for s in ("train", "val")},
        "tokenizer": {"hash": "0", "training": "none"},
    }  # fmt: skip
    dataset = {"name": "d", "path": "d", "tokenizer_name": "t", "stats": {"docs_val": 5}}
    exported = {"num_docs": 9, "tokenizers": [{"name": "t"}], "datasets": [dataset]}
    return [("manifest.json", json.dumps(one).encode()) for one in (told, exported)]


def read_manifest(path: Path) -> None:
    from golf.data.fineweb import _read_manifest
    from golf.data.manifests import beside, trained_on
    from golf.data.prepare import _made

    for folder in (path.parent, path.parent / "x" / "d"):
        shards = {"train": [folder / "a.bin"], "val": [folder / "a.bin"]}
        assert "texts_apart" not in beside(shards, {"train": ["0"], "val": ["0"]}, 5, path.parent)  # type: ignore[arg-type]
        trained_on(folder, "0")
    _made(path.parent, path.parent, None)
    _read_manifest(path)


def texts(folder: Path) -> list[Sample]:
    import pyarrow
    import pyarrow.parquet

    lines = "".join(json.dumps({"text": f"word {n} \u00fc", "n": [n]}) + "\n" for n in range(20)).encode()
    table = pyarrow.table({"text": [f"word {n}" for n in range(20)] + [None], "n": list(range(21))})
    pyarrow.parquet.write_table(table, folder / "a.parquet")
    return [
        ("a.jsonl", lines), ("a.jsonl.gz", gzip.compress(lines, mtime=0)), ("a.txt", b"one\n<|endoftext|>\ntwo"),
        ("a.jsonl.zst", zstandard.ZstdCompressor().compress(lines)), ("a.parquet", (folder / "a.parquet").read_bytes()),
    ]  # fmt: skip


def read_text(path: Path) -> None:
    for _ in Reader("text", separator="<|endoftext|>").documents([path]):
        pass


def tokenizers(folder: Path) -> list[Sample]:
    return [("t.model", MODEL.read_bytes())]


def read_tokenizer(path: Path) -> None:
    tokenizer = SentencePieceTokenizer.load(path)
    tokenizer.byte_table()
    tokenizer.decode(tokenizer.encode_batch(["a word \u00fc"], 1)[0])


def partials(folder: Path) -> list[Sample]:
    partial = Partial(folder / ".partial-0.npz")
    partial.of = 4
    partial.save(Tally(torch.tensor([9.0, 3.0, 5.0]), None, 2, 1.0))
    return [(".partial-0.npz", partial.path.read_bytes())]


def read_partial(path: Path) -> None:
    tally = Tally(torch.zeros(3))
    assert Partial(path).load(tally, 4) is tally, "a figure was believed"


def damaged(folder: Path) -> list[Sample]:
    return [("damaged.golf", data) for _, data in artifacts(folder)]


def read_damaged(path: Path) -> None:
    with pytest.raises(ArtifactError):
        load_artifact(path, 1 << 20)


Kind = tuple[Callable[[Path], list[Sample]], Callable[[Path], None]]
KINDS: dict[str, Kind] = {
    "artifact": (artifacts, read_artifact), "shard": (shards, read_shards), "run": (run_folder, read_run),
    "manifest": (manifests, read_manifest), "text": (texts, read_text), "tokenizer": (tokenizers, read_tokenizer),
    "partial": (partials, read_partial), "damage": (damaged, read_damaged),
}  # fmt: skip


def changed(name: str, data: bytes, drawn: random.Random) -> bytes:
    """One input."""
    if name.endswith((".json", ".yaml")) and drawn.random() < 0.7:
        value = replaced(yaml.safe_load(data) if name.endswith("yaml") else json.loads(data), drawn)
        return (yaml.dump(value) if name.endswith("yaml") else json.dumps(value)).encode("utf-8", "replace")
    if name.endswith(".jsonl") and drawn.random() < 0.5:
        lines = data.splitlines(keepends=True)
        number = drawn.randrange(len(lines))
        lines[number] = json.dumps(replaced(json.loads(lines[number]), drawn)).encode() + b"\n"
        return b"".join(lines)
    if name == "artifact.golf" and drawn.random() < 0.8:
        return _artifact(data, drawn)
    return mutated(data, drawn)


def _artifact(data: bytes, drawn: random.Random) -> bytes:
    """An artifact that its author has made so: the checksum is right, and often all but one value of its header."""
    import zlib

    magic, version, stored, *_ = struct.unpack_from("<4sBIIQ", data)
    header, rest = data[29 : 29 + stored], data[29 + stored :]
    if drawn.random() < 0.7:
        table = replaced(json.loads(zlib.decompress(header, -15)), drawn)
        text = json.dumps(table).encode()
        squeezed = zlib.compressobj(9, zlib.DEFLATED, -15)
        header = squeezed.compress(text) + squeezed.flush()
    else:
        text, rest = zlib.decompress(header, -15), mutated(rest, drawn)
    front = struct.pack("<4sBIIQ8s", magic, version, len(header), len(text), len(rest), b"")
    return checksummed(front + header + rest)


@pytest.mark.parametrize("kind", KINDS)
def test_only_documented_errors_come_out(kind: str, tmp_path: Path) -> None:
    try_out(kind, 100 if kind == "run" else 275, tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", KINDS)
def test_none_comes_out_of_many_more(kind: str, tmp_path: Path) -> None:
    try_out(kind, EACH, tmp_path)


def try_out(kind: str, each: int, tmp_path: Path) -> None:
    make, read = KINDS[kind]
    (tmp_path / "made").mkdir()
    samples = make(tmp_path / "made")
    drawn = random.Random(f"{kind} {each}")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    folder = tmp_path / "run"
    (folder / "evals").mkdir(parents=True)
    for name, data in samples if kind == "run" else ():
        (folder / name).write_bytes(data)
    for number in range(each):
        name, data = samples[number % len(samples)]
        path, given = folder / name, changed(name, data, drawn)
        if given == data:
            continue
        path.write_bytes(given)
        began = time.process_time()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read(path)
        except GolfError:
            pass
        except BaseException as error:
            kept = Path(os.environ.get("GOLF_FUZZ_KEEP", tmp_path)) / f"{kind}-{number}-{path.name}"
            kept.write_bytes(given)
            raise AssertionError(f"{kept}: {type(error).__name__}: {error}") from error
        assert time.process_time() - began < MOST_SECONDS, f"{kind} {number}"
        path.write_bytes(data)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown < MOST_BYTES, f"{kind}: {grown >> 20} MiB"
