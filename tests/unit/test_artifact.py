"""The container: equal values back, equal bytes for equal input, and no byte that can change unnoticed."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from golf.artifact import container
from golf.artifact.codecs import Brotli, Lzma, Store, Zlib, Zstd
from golf.artifact.container import load_artifact, save_artifact
from golf.common.errors import ArtifactError
from golf.nn.params import ParamSpec
from golf.quant.entry import Entry, dequantize
from golf.quant.rowwise import RowQuantizer

CODECS = [Store(), Zlib(), Zstd(level=3), Lzma(preset=1), Brotli(quality=4), Zstd(level=3, byte_planes=True)]
KINDS = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int8, torch.uint8, torch.bool)


def small_entries() -> dict[str, Entry]:
    torch.manual_seed(0)
    state = {
        "emb": torch.randn(11, 7).bfloat16(),
        "up": torch.randn(9, 5),
        "gain": torch.randn(5),
        "n": torch.tensor(3),
    }
    specs = {
        "emb": ParamSpec("embed", "embed"),
        "up": ParamSpec("matrix", "mlp.up", 0),
        "gain": ParamSpec("scalar", "gain"),
    }
    return RowQuantizer(bits=6, pack=True, passthrough_numel=6).quantize(state, specs)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "artifact.golf"


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: f"{codec.name}-{codec.byte_planes}")
def test_entries_and_header_come_back(codec, path):
    entries = small_entries()
    save_artifact(path, entries, codec, {"recipe": "tiny", "step": 3}, tokenizer_hash="ab" * 32)
    loaded, header = load_artifact(path)
    assert list(loaded) == list(entries)
    for name, entry in entries.items():
        assert torch.equal(dequantize(loaded[name]), dequantize(entry))
        assert dequantize(loaded[name]).dtype == entry.dtype
    assert (header.meta, header.tokenizer_hash, header.codec) == ({"recipe": "tiny", "step": 3}, "ab" * 32, codec.name)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.text(max_size=8), st.sampled_from(KINDS), st.lists(st.integers(0, 4), max_size=4)), max_size=6
    ),
    st.booleans(),
    st.dictionaries(st.text(max_size=5), st.none() | st.booleans() | st.integers() | st.text(max_size=5), max_size=3),
)
def test_any_tensors_round_trip(tmp_path_factory, tensors, byte_planes, meta):
    path = tmp_path_factory.mktemp("a") / "x.golf"
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, dtype, shape in tensors:
        values = torch.randint(-100, 100, shape, generator=generator)
        state[name] = (values > 0) if dtype == torch.bool else values.to(dtype)
    entries = RowQuantizer().quantize(state, {})
    save_artifact(path, entries, Zlib(level=1, byte_planes=byte_planes), meta)
    loaded, header = load_artifact(path)
    assert header.meta == meta
    assert list(loaded) == list(state)
    for name, tensor in state.items():
        again = dequantize(loaded[name])
        assert again.dtype == tensor.dtype
        assert again.shape == tensor.shape
        assert torch.equal(again, tensor)


def test_info_is_the_file(path):
    info = save_artifact(path, small_entries(), Zlib())
    assert info.bytes == path.stat().st_size == info.overhead_bytes + info.payload_bytes
    assert load_artifact(path).header.info == info


def test_equal_input_gives_equal_bytes(path, tmp_path):
    save_artifact(path, small_entries(), Zstd(), {"a": 1, "b": [2, None]})
    save_artifact(tmp_path / "again.golf", small_entries(), Zstd(), {"b": [2, None], "a": 1})
    assert path.read_bytes() == (tmp_path / "again.golf").read_bytes()


def test_an_empty_model_is_a_file_too(path):
    save_artifact(path, {}, Zlib())
    assert load_artifact(path).entries == {}


def test_byte_planes_shrink_float16(path, tmp_path):
    entries = RowQuantizer(keep={"embed": "float16"}).quantize(
        {"e": torch.randn(300, 300, generator=torch.Generator().manual_seed(0))}, {"e": ParamSpec("embed", "embed")}
    )
    plain = save_artifact(path, entries, Zstd())
    assert save_artifact(tmp_path / "p.golf", entries, Zstd(byte_planes=True)).bytes < 0.95 * plain.bytes


def test_a_failed_save_leaves_the_old_file(path):
    save_artifact(path, small_entries(), Zlib())
    before = path.read_bytes()
    with pytest.raises(ArtifactError, match="meta"):
        save_artifact(path, small_entries(), Zlib(), {"x": object()})
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


# ----------------------------------------------------------------------------------------------- damaged files


def test_every_flipped_bit_is_noticed(path):
    save_artifact(path, small_entries(), Zlib(), {"m": 1})
    good = path.read_bytes()
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1 << (position % 8)
        path.write_bytes(bad)
        with pytest.raises(ArtifactError):
            load_artifact(path)


def test_every_truncation_is_noticed(path):
    save_artifact(path, small_entries(), Zlib())
    good = path.read_bytes()
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(ArtifactError, match="truncated" if length else "not a golf artifact"):
            load_artifact(path)


@pytest.mark.parametrize(
    ("change", "named"),
    [(lambda b: b + b"\0", "bytes were added"), (lambda b: b"PK\3\4" + b[4:], "not a golf artifact"),
     (lambda b: b[:4] + b"\7" + b[5:], "version 7"), (lambda b: b[:-1] + bytes([b[-1] ^ 1]), "checksum")],
)  # fmt: skip
def test_damage_is_named(change, named, path):
    save_artifact(path, small_entries(), Zlib())
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ArtifactError, match=named) as caught:
        load_artifact(path)
    assert str(path) in str(caught.value)


def test_missing_file_is_named(path):
    with pytest.raises(ArtifactError, match="cannot read artifact"):
        load_artifact(path)


# ------------------------------------------------------------------- files whose checksum is right and header wrong


def forge(path: Path, change, declared: int | None = None) -> None:
    """A file with a correct checksum around a header that `change` has altered."""
    save_artifact(path, small_entries(), Store())
    blob = path.read_bytes()
    _, _, stored, _, payload, _ = container._PREAMBLE.unpack_from(blob)
    start = container._PREAMBLE.size
    table = json.loads(zlib.decompress(blob[start : start + stored], -15))
    text = change(table)
    text = text if isinstance(text, bytes) else json.dumps(table).encode()
    squeezed = container._deflate(text)
    front = container._PREAMBLE.pack(b"GOLF", 1, len(squeezed), declared or len(text), payload, b"")[:-8]
    body = squeezed + blob[start + stored :]
    path.write_bytes(front + container._digest(front, body) + body)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.update(codec="zpaq"), "unknown codec 'zpaq'"),
        (lambda t: t.update(codec=3), "malformed 'codec'"),
        (lambda t: t.pop("meta"), "not the table"),
        (lambda t: t["bits"].pop(), "malformed 'bits'"),
        (lambda t: t["bits"].__setitem__(0, "6"), "badly"),
        (lambda t: t["name"].__setitem__(0, 7), "badly"),
        (lambda t: t["name"].__setitem__(0, "up"), "twice"),
        (lambda t: t["dtype"].__setitem__(0, "object"), "badly"),
        (lambda t: t["shape"].__setitem__(0, [-1, 7]), "badly"),
        (lambda t: t["shape"].__setitem__(0, [1] * 99), "badly"),
        (lambda t: t["parts"].__setitem__(0, {"q": ["u8"]}), "badly"),
        (lambda t: t["parts"].__setitem__(0, [1]), "badly"),
        (lambda t: t["parts"][0].__setitem__("q", ["u8", [2**39, 2**39]]), "over the limit"),
        (lambda t: t["shape"].__setitem__(0, [2**39, 2**39]), "over the limit"),
        (lambda t: t["parts"][0].__setitem__("q", ["u8", [1]]), "more than"),
        (lambda t: t["parts"][0].__setitem__("q", ["u8", [9999]]), "fewer than"),
        (lambda t: b"[" * 100_000, "unreadable"),
        (lambda t: b'{"a":', "unreadable"),
        (lambda t: b"\xff\xfe", "unreadable"),
        (lambda t: b"[]", "not the table"),
    ],
)
def test_hostile_headers_are_refused(change, named, path):
    forge(path, change)
    with pytest.raises(ArtifactError, match=named):
        load_artifact(path)


@pytest.mark.parametrize("declared", [10, 1 << 20, (1 << 32) - 1])
def test_header_of_another_size_than_declared_is_refused(declared, path):
    forge(path, lambda table: None, declared)
    with pytest.raises(ArtifactError, match="header"):
        load_artifact(path)


def test_a_file_that_expands_too_far_is_refused(path):
    save_artifact(path, small_entries(), Zlib())
    with pytest.raises(ArtifactError, match="over the limit of 50"):
        load_artifact(path, max_raw_bytes=50)


@pytest.mark.parametrize("meta", [{"x": float("nan")}, {"x": "y" * 70_000}, {"x": {1, 2}}])
def test_meta_that_json_or_the_limit_refuses(meta, path):
    with pytest.raises(ArtifactError, match="meta"):
        save_artifact(path, {}, Zlib(), meta)
    assert not path.exists()


def test_a_dtype_that_it_cannot_hold_is_named(path):
    data = torch.zeros(2, dtype=torch.complex64)
    entries = {"z": Entry("z", "p", "scalar", (2,), data.dtype, "raw", 64, False, {"data": data})}
    with pytest.raises(ArtifactError, match="tensor z: an artifact cannot hold"):
        save_artifact(path, entries, Zlib())
