"""`golf size`: an artifact's bytes before it is trained, as users ask for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

TINY = ("budget=smoke", "recipe=quickstart", "model.num_layers=2", "runtime.device=cpu")
UNKNOWN = '''
from golf.quant.quantizer import Quantizer


class Needy(Quantizer):
    """Quantizes what it was calibrated on."""

    def calibrate(self, trained):
        self.seen = True

    def quantize(self, state, specs):
        return {} if self.seen else {}
'''


def test_the_forecast_of_a_run_is_its_size(
    golf_command: Any, trained: Path, recorded: Callable[[Path], dict[str, Any]]
) -> None:
    words = yaml.safe_load((trained / "overrides.yaml").read_text())
    done = golf_command("size", *(word for word in words if word != "logger=jsonl"), "--json")
    assert done.code == 0
    assert json.loads(done.out)["model"] == pytest.approx(recorded(trained / "result.json")["bytes"]["model"], rel=0.02)


def test_tables_by_place_and_layer_and_nothing_is_written(
    golf_command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = golf_command("size", *TINY)
    assert done.code == 0
    heads = [line.split("│")[1].strip() for line in done.out.splitlines() if line.startswith("│")]
    for head in ("embed", "mlp.up", "outside", "0", "1", "model", "code", "artifact", "limit", "left"):
        assert head in heads
    assert list(tmp_path.iterdir()) == []


def test_over_the_limit_is_an_exit_code_of_its_own(golf_command: Any) -> None:
    done = golf_command("size", *TINY, "budget.artifact_bytes=1000")
    assert done.code == 3
    assert "over the limit by" in done.out


def test_several_are_one_table(golf_command: Any) -> None:
    done = golf_command("size", "-m", *TINY, "codec=zlib,store", "budget.artifact_bytes=1000")
    assert done.code == 0
    rows = [line for line in done.out.splitlines() if line.startswith(("│ zlib", "│ store"))]
    smaller, larger = (int(row.split("│")[3].replace(",", "")) for row in rows)
    assert smaller < larger


def test_a_quantizer_of_one_s_own_that_must_see_the_run(golf_command: Any, tmp_path: Path) -> None:
    (tmp_path / "quant").mkdir()
    (tmp_path / "needy_quantizer.py").write_text(UNKNOWN)
    (tmp_path / "quant" / "needy.yaml").write_text("_target_: needy_quantizer.Needy\n")
    done = golf_command("size", "--config-dir", tmp_path, *TINY, "quant=needy")
    assert done.code == 1
    assert "Needy" in done.err
    assert done.err.endswith("the bytes are known after a run\n")
    both = golf_command("size", "--config-dir", tmp_path, *TINY, "-m", "quant=needy,int8")
    assert both.code == 1
    assert "not known" in both.out


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("run=outputs/mine", "golf runs show outputs/mine"),
        ("quant.bits=1", "from 2 to 8"),
        ("codec=zip", "choices: ans, brotli"),
        ("sweep=tpe", "makes no use of sweep words"),
        ("codec=zlib,zstd", "--multirun"),
        ("--jsn", "unknown flag"),
    ],
)
def test_a_mistake(golf_command: Any, word: str, told: str) -> None:
    done = golf_command("size", word)
    assert done.code == 2
    assert told in done.err
