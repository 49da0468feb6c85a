"""What comes after training: calibration, and what is left when a user's quantizer or evaluator fails."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from golf.artifact.container import load_artifact
from golf.cli.main import main
from golf.common.errors import GolfError
from golf.launch.compose.own_modules import use_code
from golf.launch.work import worker
from golf.launch.work.loaded import LoadedRun
from golf.quant.entry import Entry, dequantize
from golf.quant.rowwise import RowQuantizer
from golf.runs.store import load_run

SHORT = ("budget=smoke", "tokenizer=byte260", "model.num_layers=2", "val_tokens=1025", "logger=jsonl", "data=text",
         "data.val_docs=8", "runtime.threads=1")  # fmt: skip
GPTQ = Path(__file__).parents[1] / "outside" / "gptq"
FAILING = """
from golf.evals.evaluators import Evaluator
from golf.quant.rowwise import RowQuantizer


class Quantizer(RowQuantizer):
    def quantize(self, state, specs, bits=None):
        raise ValueError("no such rounding")


class Scorer(Evaluator):
    method = "sliding"

    def score(self, *args, **settings):
        raise ValueError("no such score")
"""
LACKING = """
class Quantizer:
    def quantize(self, state, specs):
        return {}


class Scorer:
    method = "mine"

    def __init__(self, seq_len):
        self.seq_len = seq_len

    def score(self, *args, **settings):
        ...


class Coder:
    name = "coder"

    def compress(self, data):
        return data
"""
TEMPERED = '''
import torch.nn.functional as F

from golf.evals.evaluators import Evaluator


class Tempered(Evaluator):
    """Windows whose logits are divided by a temperature."""

    method = "tempered"

    def __init__(self, seq_len: int, temperature: float = 1.0):
        super().__init__(seq_len)
        self.temperature = temperature

    def score(self, model, forward, validation, ranks, fixed_shapes=False, **how):
        def tempered(ids, targets, **_):
            logits = forward(ids, score_from=ids.shape[1] - targets.shape[1]) / self.temperature
            return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)

        return super().score(model, tempered, validation, ranks, fixed_shapes, **how)
'''
FILES = {
    "failing.py": FAILING, "lacking.py": LACKING, "tempered.py": TEMPERED,
    "quant/failing.yaml": "_target_: failing.Quantizer\npassthrough_numel: 0\n",
    "quant/lacking.yaml": "_target_: lacking.Quantizer\n",
    "eval/failing.yaml": "_target_: failing.Scorer\nseq_len: ${train_seq_len}\n",
    "eval/lacking.yaml": "_target_: lacking.Scorer\nseq_len: ${train_seq_len}\n",
    "eval/tempered.yaml": "_target_: tempered.Tempered\nseq_len: ${train_seq_len}\ntemperature: 1.0\n",
    "codec/lacking.yaml": "_target_: lacking.Coder\n",
}  # fmt: skip


def write_mine(folder: Path) -> Path:
    shutil.copytree(GPTQ, folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    return write_mine(tmp_path / "mine")


@pytest.fixture(autouse=True)
def no_code_of_other_tests() -> Iterator[None]:
    yield
    use_code([])


def words(workplace: Path, mine: Path, run: Path, *more: str) -> list[str]:
    data = f"data.paths=[{workplace / 'corpus.jsonl'}]"
    return ["train", "--config-dir", str(mine), *SHORT, data, f"hydra.run.dir={run}", *more]


@pytest.fixture(scope="module")
def calibrated(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two workers whose weights GPTQ has rounded; mine/ beside it."""
    place = tmp_path_factory.mktemp("calibrated")
    write_mine(place / "mine")
    line = words(workplace, place / "mine", place / "run", "quant=gptq", "schedule.iterations=8", "runtime.nproc=2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["golf"])
        assert main(line) == 0
    return place / "run"


@pytest.fixture
def loaded(calibrated: Path) -> Any:
    run = load_run(calibrated)
    config = {**run.config, "runtime": {**run.config["runtime"], "nproc": 1}, "code_paths": []}
    loaded = LoadedRun(run, {**config, "quant": None}, any_tokenizer=True)
    loaded.use_weights()
    return loaded


def errors(hessians: dict[str, torch.Tensor], state: Any, entries: dict[str, Entry]) -> dict[str, float]:
    """‖(W − Ŵ)X‖² of every matrix."""
    lost = {name: state[name] - dequantize(entries[name]) for name in hessians}
    return {name: float(((e @ hessians[name]) * e).sum()) for name, e in lost.items()}


def test_a_users_gptq_rounds_every_matrix_better_than_by_rows(calibrated: Path, loaded: Any) -> None:
    trained = loaded.trained()
    state, entries = trained.model.state_dict(), load_artifact(calibrated / "artifact.golf").entries
    plain = RowQuantizer(4, clip_percentile=1.0, scale_floor=False, passthrough_numel=0)
    by_rows = plain.quantize(state, trained.specs)
    hessians = trained.hessians(trained.batches(64, seed=99))  # text that it was not calibrated on
    better, rows = errors(hessians, state, entries), errors(hessians, state, by_rows)
    assert len(better) == 2 * 6 + 1
    assert {name: round(better[name] / rows[name], 2) for name in better if better[name] > 0.9 * rows[name]} == {}


def test_calibration_is_counted_as_training(calibrated: Path, recorded: Any) -> None:
    result = recorded(calibrated / "result.json")
    clocks = result["clocks"]
    assert clocks["calibrate"] > 0
    assert result["train_time_s"] == pytest.approx(clocks["train"] + clocks["calibrate"], abs=1e-6)


def test_one_process_calibrates_like_two(calibrated: Path, golf_command: Any, recorded: Any) -> None:
    done = golf_command("quantize", "--config-dir", calibrated.parent / "mine", f"run={calibrated}", "quant=gptq")
    assert done.code == 0, done.err
    path = Path(done.last_line)
    assert recorded(path)["clocks"]["calibrate"] > 0
    one, two = (load_artifact(file).entries for file in (path.with_suffix(".golf"), calibrated / "artifact.golf"))
    same = [float((one[name].parts["q"] == entry.parts["q"]).float().mean())
            for name, entry in two.items() if entry.scheme == "per_row"]  # fmt: skip
    assert min(same) > 0.9  # sums in another order change what a value halfway becomes, and those after it


def test_what_the_user_has_changed_since_counts(calibrated: Path, golf_command: Any, recorded: Any, mine: Path) -> None:
    ours = mine / "gptq.py"
    ours.write_text(ours.read_text().replace("def calibrate(", "def not_calibrate("))
    done = golf_command("quantize", "--config-dir", mine, f"run={calibrated}", "quant=gptq")
    assert done.code == 0, done.err
    assert "calibrate" not in recorded(Path(done.last_line))["clocks"]


@pytest.fixture
def fail(workplace: Path, mine: Path, tmp_path: Path, golf_command: Any) -> Any:
    """Train one step in this process, which fails: the run's folder."""

    def call(*more: str) -> Path:
        run = tmp_path / "run"
        prepared = golf_command(*words(workplace, mine, run, "--prepare", "schedule.iterations=1", *more))
        assert prepared.code == 0, prepared.err
        with pytest.raises(GolfError) as failure:
            worker.train(run)
        assert failure.value.exit_code == 1
        return run

    return call


def test_a_failed_quantizer_leaves_what_golf_quantize_takes(
    fail: Any, mine: Path, golf_command: Any, recorded: Any
) -> None:
    run = fail("quant=failing")
    result = recorded(run / "result.json")
    assert (result["status"], result["valid"], result["bytes"]) == ("failed", False, None)
    told = result["error"].splitlines()
    assert told[0] == f"quantization failed: ValueError: no such rounding ({mine}/failing.py, line 8)"
    assert told[1].startswith(f"the weights are kept: golf quantize run={run} quant=")
    assert "Traceback" in (run / "train.log").read_text()
    again = golf_command("quantize", f"run={run}", "quant=int8")
    assert again.code == 0, again.err
    counted = recorded(Path(again.last_line))["bytes"]
    assert counted["limit"] == 16_000_000
    assert counted["code"] > 100_000
    refused = golf_command("eval", f"run={run}")
    assert refused.code == 2
    assert "it kept weights, but no artifact" in refused.err


def test_a_failed_evaluator_leaves_artifact_and_record(fail: Any, golf_command: Any, recorded: Any) -> None:
    run = fail("eval=failing", "averaging=ema")
    result = recorded(run / "result.json")
    assert result["status"] == "failed"
    assert result["bytes"]["model"] == (run / "artifact.golf").stat().st_size
    told = result["error"].splitlines()
    assert told[0].startswith("evaluation failed: ValueError: no such score (")
    assert told[1] == f"the artifact is kept: golf eval run={run} eval=… scores it"
    assert [one["stage"] for one in result["evals"]] == ["stop", "averaged", "quantized"]
    for weights in ("quantized", "averaged"):
        again = golf_command("eval", f"run={run}", "eval=contiguous", f"weights={weights}")
        assert recorded(again.last_line)["stage"] == weights


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("eval=lacking", "eval: Scorer has no contiguous (golf.evals."),
        ("quant=lacking", "quant: Quantizer has no reserve_s"),
        ("codec=lacking", "expand, store, restore (golf.artifact.codecs.Codec"),
        ("quant.reserve_s=-1", "quant.reserve_s=-1: must"),
    ],
)
def test_what_lacks_a_method_is_refused_before_the_start(
    workplace: Path, mine: Path, tmp_path: Path, golf_command: Any, word: str, part: str
) -> None:
    done = golf_command(*words(workplace, mine, tmp_path / "run", "quant=gptq", word))
    assert done.code == 2
    assert part in done.err
    assert len(done.err.splitlines()) <= 3
    assert not (tmp_path / "run").exists()


def test_a_new_evaluator_reaches_a_finished_run(mine: Path, run_copy: Path, golf_command: Any, recorded: Any) -> None:
    line = ["eval", "--config-dir", mine, f"run={run_copy}", "eval=tempered", "-m", "eval.temperature=1,2"]
    done = golf_command(*line)
    assert done.code == 0, done.err
    one, two = (recorded(path) for path in done.out.splitlines()[-2:])
    plain = recorded(run_copy / "result.json")["val_bpb"]["post_quant"]
    assert (one["method"], one["val_bpb"]) == ("tempered", pytest.approx(plain, abs=1e-6))
    assert two["val_bpb"] != pytest.approx(plain, abs=1e-3)


def test_one_file_of_the_models_and_the_users_in_two_versions_is_refused(
    mine: Path, run_copy: Path, golf_command: Any
) -> None:
    code = run_copy / "code"
    shutil.copytree(mine, code)
    source = "import golf.nn.models.head\n\n\nclass Head(golf.nn.models.head.Head):\n    pass\n"
    (code / "tempered.py").write_text(TEMPERED + source)
    config = run_copy / "config.yaml"
    config.write_text(config.read_text().replace("golf.nn.models.head.Head", "tempered.Head"))
    assert golf_command("eval", f"run={run_copy}", "eval=contiguous", "--trust").code == 0
    done = golf_command("eval", "--config-dir", mine, f"run={run_copy}", "eval=tempered", "--trust")
    assert done.code == 2
    assert f"{mine}/tempered.py: the run's model is of its own copy" in done.err
