"""`data=fineweb` without a network: its settings, and what it says of files that are missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from golf.common.errors import ConfigError, DataError
from golf.data.fineweb import FineWeb
from golf.tokenizers.byte260 import Byte260Spec
from golf.tokenizers.caseops import CaseOps
from golf.tokenizers.sentencepiece import SentencePieceSpec

SP320 = SentencePieceSpec("sp320", 320)


@pytest.mark.parametrize(
    ("folder", "spec", "command"),
    [
        (None, SentencePieceSpec("sp1024", 1024), "golf data source=fineweb tokenizer=sp1024 data.train_shards=2"),
        (
            None,
            SentencePieceSpec("sp320", 320),
            "golf data source=fineweb tokenizer=sp1024 tokenizer.vocab_size=320 data.train_shards=2",
        ),
        (
            None,
            SentencePieceSpec("sp8192_caseops_v1", 8192, transform=CaseOps()),
            "golf data source=fineweb tokenizer=sp1024 tokenizer.vocab_size=8192 tokenizer.name=sp8192_caseops_v1 "
            "tokenizer/transform=caseops data.train_shards=2",
        ),
        ("/a b", Byte260Spec(), "golf data source=fineweb tokenizer=byte260 data.train_shards=2 'data.folder=/a b'"),
    ],
)
def test_what_is_missing_comes_with_the_command_that_fetches_it(
    tmp_path: Path, folder: str | None, spec: Any, command: str
) -> None:
    with pytest.raises(DataError) as missing:
        FineWeb(train_shards=2, folder=folder).find(spec, tmp_path)
    assert str(missing.value).splitlines()[1] == f"fetch them: {command}"


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ({"train_shards": 0}, "data.train_shards=0"),
        ({"repo": "nobody"}, "OWNER/NAME"),
        ({"revision": ""}, "data.revision"),
    ],
)
def test_settings_that_cannot_be(setting: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        FineWeb(**setting)


@pytest.mark.parametrize(
    ("manifest", "part"), [("{", "cannot read the manifest"), ("[]", "no object"), ("{}", "KeyError: 'datasets'")]
)
def test_a_damaged_manifest_is_told(tmp_path: Path, manifest: str, part: str) -> None:
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(DataError, match=part):
        FineWeb(folder=str(tmp_path)).find(Byte260Spec())
