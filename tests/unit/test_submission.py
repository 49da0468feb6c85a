"""A submission's folder held to the rules that it shows: what is wrong in it fails, and it alone."""

from __future__ import annotations

import base64
import json
import lzma
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from golf.common.errors import DataError
from golf.export.packed import packed
from golf.export.scanned import Unreadable, is_submission, scan
from golf.launch.work.submission import rules_of

SOURCE = """import sys
import numpy

def fast():
    import brotli
    return brotli

sys.exit(numpy.size([fast]) - 1)
"""
LOG = """2026-11-28 14:49:41,103 INFO quantized, sliding: val_bpb 1.2{0}00  val_loss 2.1  (81.0 s, 121,251 targets/s)
step:900/900 train_loss:2.1 train_time:599000ms step_avg:665.56ms
proved: artifact alone, causal; not checked: disjoint (as text)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of two seeds, without fault."""
    script = packed(SOURCE)
    code = len(script)
    seeds = {
        str(seed): {"val_bpb": 1.2 + seed / 100, "bytes_total": 15_000_000 + seed + code, "steps": 900}
        for seed in (1, 2)
    }
    told = {"val_bpb": 1.215, "bytes_total": 15_000_002 + code, "bytes_code": code, "seed_results": seeds}
    (tmp_path / "train_gpt.py").write_bytes(script)
    (tmp_path / "submission.json").write_text(json.dumps(told))
    (tmp_path / "requirements.txt").write_text("NumPy >= 2\n")
    for seed in (1, 2):
        (tmp_path / f"train_seed{seed}.log").write_text(LOG.format(seed))
    return tmp_path


def states(folder: Path, state: str) -> dict[str, str]:
    return {one.rule: one.told for one in rules_of(folder) if one.state == state}


def test_what_the_folder_shows_passes_and_no_more(folder: Path) -> None:
    assert is_submission(folder)
    found = states(folder, "pass")
    assert found["seconds of evaluation"].startswith("81.0 of 600")
    assert found["requirements.txt names what it imports"] == "numpy; where they are there: brotli"
    assert len(found) == 7
    assert not states(folder, "fail")
    unseen = states(folder, "not run")
    assert unseen["no prediction sees later text"].startswith("its log says so")
    assert unseen["probabilities sum to 1"] == "from its run alone: golf check run=DIR"


def more(text: str, by: str) -> str:
    return re.sub(by + r"\d*", lambda found: found[0] + "9", text, count=1)


@pytest.mark.parametrize(
    ("file", "change", "rule"),
    [
        ("train_gpt.py", lambda text: "import golf.cli\n", "the file stands alone"),
        ("train_gpt.py", lambda text: "def broken(:\n", "the file stands alone"),
        ("requirements.txt", lambda text: text.replace("Num", "Nim"), "requirements.txt names what it imports"),
        ("submission.json", lambda text: more(text, '"val_bpb": 1.'), "submission.json agrees with itself"),
        ("submission.json", lambda text: more(text, '"bytes_code": '), "bytes of artifact and code"),
        ("train_seed2.log", lambda text: text.replace("599000ms", "700000ms"), "seconds of training and calibration"),
        ("train_seed2.log", lambda text: text.replace("1.2200", "1.2300"), "each seed's log has its figure"),
        ("train_seed2.log", lambda text: text.replace("(81.0 s", "(601.0 s"), "seconds of evaluation"),
    ],
)  # fmt: skip
def test_what_is_wrong_fails_alone(folder: Path, file: str, change: Callable[[str], str], rule: str) -> None:
    (folder / file).write_text(change((folder / file).read_text("latin-1")), "latin-1")
    assert list(states(folder, "fail")) == [rule]


def test_a_file_that_is_too_large_fails(folder: Path) -> None:
    told = json.loads((folder / "submission.json").read_text())
    told["bytes_total"] = 16_000_001
    told["seed_results"]["2"]["bytes_total"] = 16_000_001
    (folder / "submission.json").write_text(json.dumps(told))
    assert states(folder, "fail") == {"bytes of artifact and code": "16,000,001 of 16,000,000"}
    (folder / "train_gpt.py").write_text(SOURCE + "# " + "x" * told["bytes_code"])
    assert list(states(folder, "fail")) == ["bytes of artifact and code"]
    told["bytes_total"] = told["seed_results"]["2"]["bytes_total"] = 16_000_000
    (folder / "submission.json").write_text(json.dumps(told))
    assert "export.form=packed" in states(folder, "not run")["bytes of artifact and code"]


def test_a_folder_of_anybodys_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "train_gpt.py").write_bytes(b"\xff\0(")
    (tmp_path / "submission.json").write_text(
        '{"seed_results": {"../1": {"val_bpb": "x"}, "2": []}, "bytes_total": "?"}'
    )
    found: dict[str, Any] = {one.rule: one.state for one in rules_of(tmp_path)}
    assert found.pop("the file stands alone") == "fail"
    assert set(found.values()) == {"not run"}
    (tmp_path / "submission.json").write_text("[" * 1000)
    with pytest.raises(DataError):
        rules_of(tmp_path)


def test_a_packed_script_is_read_and_not_run() -> None:
    squeezed = base64.b85encode(lzma.compress(SOURCE.encode()))
    for script in (packed(SOURCE), b"import lzma,base64\nexec(lzma.decompress(base64.b85decode(%r)))\n" % squeezed):
        found = scan(script)
        assert (found.packed, set(found.needed), set(found.optional)) == (True, {"numpy"}, {"brotli"})
    script = packed(SOURCE)
    end = script.rindex(b"'''.encode")
    with pytest.raises(Unreadable):
        scan(script[: end - 60] + script[end:])  # cut short, what is unpacked is no source
    assert scan(b"import os\nexec(os.environ['X'])\n").hidden
    with pytest.raises(Unreadable, match="line 2"):
        scan(b"x = 1\nreturn x\n")
    with pytest.raises(Unreadable):
        scan(b"(" * 5000)
