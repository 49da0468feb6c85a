"""The byte ledger: rows that sum to the file, and the line for a file that is too large."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from golf.artifact.codecs import Store, Zlib
from golf.artifact.container import save_artifact
from golf.artifact.ledger import CONTAINER, LedgerRow, _apportion, ledger
from golf.nn.params import ParamSpec
from golf.quant.rowwise import RowQuantizer


@pytest.fixture(scope="module")
def entries():
    torch.manual_seed(0)
    shapes = {"emb": (40, 16), "a.up": (32, 16), "b.up": (32, 16), "a.gain": (16,)}
    specs = {"emb": ParamSpec("embed", "embed"), "a.up": ParamSpec("matrix", "mlp.up", 0)}
    specs |= {"b.up": ParamSpec("matrix", "mlp.up", 1), "a.gain": ParamSpec("scalar", "attn.gain", 0)}
    return RowQuantizer(passthrough_numel=16).quantize({n: torch.randn(s) for n, s in shapes.items()}, specs)


@pytest.mark.parametrize("codec", [Zlib(), Zlib(byte_planes=True), Store()])
def test_bytes_sum_to_the_file(codec, entries, tmp_path):
    info = save_artifact(tmp_path / "a.golf", entries, codec)
    rows = ledger(info, entries, codec)
    assert sum(row.bytes for row in rows.values()) == info.bytes
    assert rows[CONTAINER].bytes == info.overhead_bytes


def test_rows_count_tensors_params_and_stored_bytes(entries, tmp_path):
    rows = ledger(save_artifact(tmp_path / "a.golf", entries, Store()), entries, Store())
    assert list(rows) == ["embed", "mlp.up", "attn.gain", CONTAINER]
    assert rows["mlp.up"] == LedgerRow(tensors=2, params=1024, raw_bytes=1024 + 2 * 64, bytes=1024 + 2 * 64)
    assert rows["attn.gain"] == LedgerRow(1, 16, 64, 64)


def test_an_empty_model_is_all_container(tmp_path):
    info = save_artifact(tmp_path / "a.golf", {}, Zlib())
    assert ledger(info, {}, Zlib()) == {CONTAINER: LedgerRow(0, 0, info.bytes, info.bytes)}


@given(st.integers(0, 10**9), st.lists(st.integers(0, 10**7), min_size=1, max_size=20).filter(any))
def test_apportioning_sums_and_stays_within_one_byte(total, weights):
    shares = _apportion(total, weights)
    assert sum(shares) == total
    assert all(abs(share - total * weight / sum(weights)) < 1 for share, weight in zip(shares, weights))
