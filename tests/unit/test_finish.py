"""What the end of a run counts and keeps."""

from __future__ import annotations

import importlib.util
import lzma
import random
import sys
from pathlib import Path

import pytest

import golf
import golf.learn.muon
import golf.quant.rowwise  # a run's config names them
from golf.artifact.ans import Ans
from golf.artifact.codecs import Codec, Zlib
from golf.launch.compose.build import build_model
from golf.launch.compose.configs import compose_job, composer, resolved
from golf.quant.rowwise import RowQuantizer
from golf.train.finish import code_bytes, code_files
from golf.train.stages import write_artifact


@pytest.fixture
def a_users_module(tmp_path, monkeypatch):
    """Imports a module of 20,000 random characters from the code folder of a run."""
    (tmp_path / "config.yaml").touch()
    source = tmp_path / "code" / "mine.py"
    source.parent.mkdir()
    text = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=20_000))
    source.write_text(f"TEXT = '{text}'\n")

    def load() -> None:
        spec = importlib.util.spec_from_file_location("mine", source)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "mine", module)
        spec.loader.exec_module(module)

    return load


def test_the_users_own_code_counts_as_compressed(a_users_module):
    before = code_bytes()
    a_users_module()
    entropy = 20_000 * 4.7 / 8 * 5 / 4  # bits of a letter of 26; base85 writes five characters for four bytes
    assert code_bytes() - before == pytest.approx(entropy, rel=0.1)


def test_code_counts_less_than_its_sources():
    sources = sum(path.stat().st_size for path in Path(golf.__file__).parent.rglob("*.py"))
    assert 0 < code_bytes() < sources / 2


def test_what_computes_the_model_is_counted_and_what_runs_commands_is_not():
    root = Path(golf.__file__).parent
    counted = {path.relative_to(root).as_posix() for path in code_files() if path.is_relative_to(root)}
    assert counted >= {
        "nn/models/gpt.py", "nn/models/block.py", "nn/linear.py", "quant/entry.py", "quant/rowwise.py",
        "learn/muon.py", "artifact/container.py", "evals/evaluators.py", "train/trainer.py", "data/shards.py",
    }  # fmt: skip
    assert {name.partition("/")[0] for name in counted} <= {
        "__init__.py", "nn", "quant", "learn", "artifact", "evals", "train", "data", "tokenizers", "common",
    }  # fmt: skip
    core = b"".join((root / name).read_bytes() for name in counted if name.startswith(("nn/", "quant/")))
    assert code_bytes() > len(lzma.compress(core, preset=9 | lzma.PRESET_EXTREME)) * 5 / 4


@pytest.mark.parametrize(("pack", "codec", "told"), [(True, Ans(), 1), (False, Ans(), 0), (True, Zlib(), 0)])
def test_a_codec_of_values_that_is_given_packed_bits_says_so(
    pack: bool, codec: Codec, told: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with composer():
        config = resolved(compose_job(["recipe=none", "model.model_dim=16", "model.num_layers=1", "model.num_heads=2",
                                       "model.num_kv_heads=1", "tokenizer=byte260"]))  # fmt: skip
    model = build_model(config, "float32")
    model.initialize(1)
    quantizer = RowQuantizer(bits=6, pack=pack, passthrough_numel=0)
    with caplog.at_level("WARNING", logger="golf"):
        write_artifact(tmp_path / "artifact.golf", model, quantizer, codec, "hash", {}, code=lambda: 0)
    assert caplog.text.count("quant.pack=false") == told
