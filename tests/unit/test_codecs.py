"""Codecs: round trips, bounds on what they expand, clear errors."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from golf.artifact.codecs import CODECS, Brotli, Codec, Lzma, Store, Zlib, Zstd, codec_named
from golf.common.errors import ArtifactError, ConfigError

FAST = [Store(), Zlib(level=1), Zstd(level=1), Lzma(preset=0, extreme=False), Brotli(quality=1, window_bits=10)]
RECORD = [Zlib(), Zstd(), Lzma(), Brotli()]
ids = {"ids": lambda codec: codec.name}


def test_every_codec_is_found_by_name():
    assert set(CODECS) >= {"store", "zlib", "zstd", "lzma", "brotli"}
    assert all(type(codec_named(codec.name)) is type(codec) for codec in FAST)


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=3000), st.integers(1, 40), st.sampled_from(FAST))
def test_round_trip_by_a_reader_with_default_settings(data, times, codec):
    assert codec_named(codec.name).expand(codec.compress(data * times), len(data) * times) == data * times


@pytest.mark.parametrize("codec", RECORD, **ids)
def test_round_trip_at_record_settings(codec):
    data = bytes(range(256)) * 1000 + b"tail"
    stored = codec.compress(data)
    assert len(stored) < 3000
    assert codec.expand(stored, len(data)) == data


@pytest.mark.parametrize("codec", FAST, **ids)
def test_round_trip_of_several_megabytes(codec):
    data = random.Random(0).randbytes(3_500_001)
    assert codec.expand(codec.compress(data), len(data)) == data


@pytest.mark.parametrize("codec", FAST, **ids)
def test_more_than_declared_is_refused(codec):
    with pytest.raises(ArtifactError, match="more than the 10 bytes"):
        codec.expand(codec.compress(bytes(1000)), 10)


@pytest.mark.parametrize("codec", FAST, **ids)
def test_less_than_declared_is_refused(codec):
    with pytest.raises(ArtifactError, match=r"fewer than the 2000 bytes|truncated"):
        codec.expand(codec.compress(bytes(1000)), 2000)


@pytest.mark.parametrize("codec", FAST[1:], **ids)
def test_noise_and_truncation_are_artifact_errors(codec):
    stored = codec.compress(bytes(range(256)) * 9)
    for bad in (b"\xff" * 50, stored[: len(stored) // 2], b""):
        with pytest.raises(ArtifactError):
            codec.expand(bad, 256 * 9)


def test_an_enormous_declared_size_allocates_nothing():
    for codec in FAST[1:]:
        with pytest.raises(ArtifactError):
            codec.expand(codec.compress(b"small"), 1 << 40)


def test_a_bomb_is_stopped_at_the_declared_size():
    bomb = Zstd(level=3).compress(bytes(200_000_000))
    assert len(bomb) < 20_000
    with pytest.raises(ArtifactError, match="more than the 1000 bytes"):
        codec_named("zstd").expand(bomb, 1000)


def test_a_codec_is_imported_where_an_artifact_names_it_and_its_code_counts_nowhere_else():
    check = """if True:
        import sys
        from golf.artifact.codecs import codec_named
        for name in ("zlib", "ans"):
            print(codec_named(name).name, "golf.artifact.ans" in sys.modules)
    """
    told = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout
    assert told.split() == ["zlib", "False", "ans", "True"]


def test_unknown_codec_is_named():
    with pytest.raises(ArtifactError, match=r"unknown codec 'zstdd' .*zstd"):
        codec_named("zstdd")


@pytest.mark.parametrize(
    ("build", "named"),
    [(lambda: Zlib(level=10), "level=10"), (lambda: Zstd(level=23), "level=23"), (lambda: Zstd(level=0), "level=0"),
     (lambda: Lzma(preset=-1), "preset=-1"), (lambda: Brotli(quality=12), "quality=12"),
     (lambda: Brotli(window_bits=25), "window_bits=25")],
)  # fmt: skip
def test_settings_out_of_range_are_named(build, named):
    with pytest.raises(ConfigError, match=named):
        build()


@pytest.mark.parametrize(("codec", "module"), [(Zstd, "zstandard"), (Brotli, "brotli")])
def test_missing_package_says_what_to_install(codec, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=f"pip install {module}"):
        codec()


def test_a_name_cannot_be_taken_twice():
    with pytest.raises(ValueError, match="zlib"):
        type("Mine", (Codec,), {"name": "zlib"})
