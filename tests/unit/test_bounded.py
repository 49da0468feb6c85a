"""Small files that would grow: each is refused, or read in bounded memory, and none brings more than its own error."""

from __future__ import annotations

import gzip
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard

from golf.artifact.codecs import codec_named
from golf.artifact.container import load_artifact, save_artifact
from golf.common import bounded
from golf.common.errors import ArtifactError, DataError, GolfError
from golf.common.secret import kept_without_keys, without_keys
from golf.common.shown import plain_line, plain_text, told
from golf.data.textfiles import Reader
from golf.quant.entry import Entry
from golf.runs.seal import write_sealed
from golf.runs.store import Run
from golf.runs.tables import Column, Table

MIB = 1 << 20
DOUBLING = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
MERGING = "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 12))


@pytest.mark.parametrize(
    "text",
    [
        "a0: &a0 [x, x]\n" + DOUBLING, "a0: &a0 {x: 1}\n" + MERGING, "a: &a [*a]", "[" * 3000, "[" * 200 + "]" * 200,
        "!!int ''", "!!bool x", "2001-99-99", "9" * 5000, "!!binary x", "!!python/object/apply:os.system [ls]",
        "!!set {a}", "a: \ud800", "\0",
    ],
    ids=range(14),
)  # fmt: skip
def test_no_yaml_grows_or_brings_another_error(text: str) -> None:
    with pytest.raises(ValueError):
        bounded.parse_yaml(text.encode("utf-8", "surrogatepass"))


def test_yaml_as_golf_writes_it_is_read() -> None:
    assert bounded.parse_yaml("a: &id001 [1, 2.5, null, true]\nb: *id001\nc: {d: x}\n") == {
        "a": [1, 2.5, None, True], "b": [1, 2.5, None, True], "c": {"d": "x"},
    }  # fmt: skip


@pytest.mark.parametrize("text", ["[" * 5000, '{"a":' * 5000, "[" * 101 + "]" * 101, "NaN", "[Infinity]", "", "{'a'}"])
def test_no_json_is_too_deep_or_holds_what_json_has_not(text: str) -> None:
    with pytest.raises(ValueError):
        bounded.parse_json(text)


def test_whole_numbers_beyond_64_bits_are_floats() -> None:
    assert bounded.parse_json(f"[{2**62}, {'9' * 5000}, -1]") == [2**62, float("inf"), -1]


def test_a_pipe_and_a_device_are_no_files(tmp_path: Path) -> None:
    from golf.runs.report.gather import gather

    for name in ("result.json", "metrics.jsonl", "train.log"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "config.yaml").symlink_to("/dev/zero")
    (tmp_path / "overrides.yaml").write_text("[]")
    run = Run(tmp_path)
    assert (run.config, run.record, run.status) == ({}, {}, "failed")
    assert [one.state for one in gather([run]).runs] == ["failed"]
    with pytest.raises(DataError, match="not a plain file"):
        run.columns()
    (tmp_path / "large.json").write_bytes(b" " * 100)
    with pytest.raises(ValueError, match="over 10 bytes"):
        bounded.read_json(tmp_path / "large.json", 10)


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_line_without_an_end_is_refused(suffix: str, tmp_path: Path) -> None:
    whole = b'{"text": "' + bytes(64 * MIB)
    squeezed = gzip.compress(whole, 1) if suffix == "gz" else zstandard.ZstdCompressor().compress(whole)
    (tmp_path / f"a.jsonl.{suffix}").write_bytes(squeezed)
    with pytest.raises(DataError, match="line 1: longer than"):
        list(Reader("text", longest=32 * MIB).documents([tmp_path / f"a.jsonl.{suffix}"]))


def test_a_long_line_of_values_instead_of_text_is_refused(tmp_path: Path) -> None:
    """Read, it would take some thirty times its bytes."""
    (tmp_path / "a.jsonl").write_bytes(b'{"text": [' + b"[]," * (12 * MIB) + b"[]]}")
    with pytest.raises(DataError, match="too many values"):
        list(Reader("text").documents([tmp_path / "a.jsonl"]))


def test_a_parquet_column_that_grows_beyond_text_is_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"text": ["a" * (9 * MIB)]})
    parquet.write_table(table, tmp_path / "a.parquet", compression="zstd", use_dictionary=False)
    with pytest.raises(DataError, match="expands to 9,"):
        list(Reader("text").documents([tmp_path / "a.parquet"]))


def _artifact(path: Path, codec: str, values: torch.Tensor) -> Path:
    entry = Entry("a", "p", "matrix", tuple(values.shape), values.dtype, "raw", 32, False, {"data": values})
    save_artifact(path, {"a": entry}, codec_named(codec))
    return path


@pytest.mark.parametrize("codec", ["zlib", "zstd", "lzma", "brotli", "ans"])
def test_an_artifact_expands_to_what_the_model_holds_and_no_more(codec: str, tmp_path: Path) -> None:
    path = _artifact(tmp_path / "a.golf", codec, torch.zeros(8 * MIB // 4))
    assert path.stat().st_size < MIB // 16
    tracemalloc.start()
    try:
        with pytest.raises(ArtifactError, match="over the limit of 1048576"):
            load_artifact(path, MIB)
        assert tracemalloc.get_traced_memory()[1] < 4 * MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("codec", ["zlib", "zstd", "lzma", "brotli", "ans", "store"])
def test_bytes_behind_a_stream_are_refused(codec: str) -> None:
    one, data = codec_named(codec), b"hello world" * 100
    stored = one.compress(data)
    assert one.expand(stored, len(data)) == data
    for tail in (b"x", bytes(4), stored):
        with pytest.raises(ArtifactError):
            one.expand(stored + tail, len(data))


def test_columns_of_many_rows_take_no_more_than_their_numbers(tmp_path: Path) -> None:
    row = json.dumps({"step": 1, "tokens": 2, "train_time_s": 0.1, "train_loss": 3.0}) + "\n"
    (tmp_path / "metrics.jsonl").write_text(row * 5_000)
    tracemalloc.start()
    try:
        assert Run(tmp_path).columns()["train_loss"].shape == (5_000,)
        assert tracemalloc.get_traced_memory()[1] < MIB
    finally:
        tracemalloc.stop()
    many = json.dumps({f"m{n}": 1 for n in range(26_000)}) + "\n"
    (tmp_path / "metrics.jsonl").write_text(many + '{"m0": 1}\n' * 1999)
    with pytest.raises(DataError, match="26,000 metrics of 2,000 rows"):
        Run(tmp_path).columns()


HOSTILE = "a\x1b]52;c;aGk=\x07b\x9b2Jc\u202ed\x00e\ud800"


def test_nothing_that_is_shown_steers_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    from golf.cli.tables import print_table

    assert plain_text("one\ttwo\nüber 日本") == "one\ttwo\nüber 日本"
    assert plain_line("a\r\nb") == "a\\r\\nb"
    assert plain_text(HOSTILE).isprintable()
    assert plain_text(HOSTILE).startswith(r"a\x1b]52;c;aGk=\x07b\x9b2Jc")
    assert told(GolfError("x" * 5000 + "\n" + HOSTILE)).splitlines()[0] == "x" * 1000 + "…"
    table = Table(Column(HOSTILE), title=HOSTILE, caption=HOSTILE)
    table.add_row(HOSTILE)
    table.notes.append(HOSTILE)
    print_table(table)
    out = capsys.readouterr().out
    assert not set(out) & set("\x1b\x07\x9b\u202e\0")


def test_a_key_of_the_environment_is_in_no_record_and_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from golf.common.errors import ConfigError
    from golf.launch.work.jobs import refuse_keys

    key = "0123456789abcdef"
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("HF_TOKEN", "x")  # too short to be one
    assert without_keys(f"401 for {key}, x") == "401 for $WANDB_API_KEY, x"
    assert kept_without_keys({"a": [f"{key}!", 1]}) == {"a": ["$WANDB_API_KEY!", 1]}
    write_sealed(tmp_path / "result.json", {"error": f"no access with {key}"})
    assert key not in (tmp_path / "result.json").read_text()
    assert Run(tmp_path).disagreements() == []
    assert key not in told(GolfError(key))
    with pytest.raises(ConfigError, match=r"data\.paths: holds the value of WANDB_API_KEY") as error:
        refuse_keys({"data": {"paths": [f"https://x/{key}"]}})
    assert key not in str(error.value)


def test_a_tensor_that_holds_no_numbers_is_refused(tmp_path: Path) -> None:
    from golf.train.finish import read_artifact

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Parameter(torch.zeros(3))

    values: Any = torch.tensor([1.0, np.nan, 2.0])
    with pytest.raises(ArtifactError, match="a holds values that are no numbers"):
        read_artifact(_artifact(tmp_path / "a.golf", "store", values), Model())  # type: ignore[arg-type]
