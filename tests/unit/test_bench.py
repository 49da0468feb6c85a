"""Measuring: marks that add up, random data in place of missing data, kernels against twins, the compiler's cache."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

import golf
from golf.common.errors import GolfError
from golf.common.files import use_cache
from golf.common.ranks import lost_another
from golf.data.loader import Feed
from golf.data.orders import Spans
from golf.data.prepare import find_prepared, prepare
from golf.data.random_tokens import random_prepared
from golf.data.sources import TextFiles
from golf.nn.attend_cases import AttentionCase, Passes
from golf.tokenizers.byte260 import Byte260Spec
from golf.train.bench import PHASES, Stopwatch, payback
from golf.train.profile import KernelTime, attention_kernels, covered, write_csv
from golf.train.reference import ceiling, reference, time_case

CPU = torch.device("cpu")


def three_steps() -> Stopwatch:
    watch = Stopwatch(CPU)
    watch.mark("optimizer")  # before the first step: belongs to none
    for _ in range(3):
        for phase in ("begin", "data", "forward", "backward", "forward", "backward", "other", "reduce", "optimizer"):
            watch.mark(phase)
            sum(range(200))
    return watch


def test_the_phases_of_a_step_sum_to_the_step() -> None:
    watch = three_steps()
    for index in range(3):
        assert sum(watch.phases_ms(index).values()) == pytest.approx(watch.step_ms(index))
        assert tuple(watch.phases_ms(index)) == PHASES


def test_steps_leave_no_time_out() -> None:
    watch = three_steps()
    whole = 1000 * (watch.steps[2][-1][1] - watch.steps[0][0][1])
    assert sum(watch.step_ms(index) for index in range(3)) == pytest.approx(whole)


@pytest.mark.parametrize(
    ("compile_s", "step_s", "eager_s", "steps"),
    [(10.0, 0.1, 0.2, 100), (10.0, 0.2, 0.2, None), (10.0, 0.2, None, None), (-0.1, 0.1, 0.2, 0)],
)
def test_payback(compile_s: float, step_s: float, eager_s: float | None, steps: int | None) -> None:
    assert payback(compile_s, step_s, eager_s) == steps


def test_random_tokens_serve_a_loader(tmp_path: Path) -> None:
    prepared = random_prepared(300, 5_000, tmp_path)
    loader = Spans(Feed(prepared.train, train_batch_tokens=64, train_seq_len=8))
    try:
        ((x, y, _),) = loader.next_step()
    finally:
        loader.close()
    assert x.shape == (8, 8)
    assert int(x.max()) < 300
    assert torch.equal(x[:, 1:], y[:, :-1])
    assert len(prepared.tokenizer.byte_table()) == 300


def test_random_tokens_are_uniform(tmp_path: Path) -> None:
    counts = np.bincount(random_prepared(16, 64_000, tmp_path).train.read(0, 64_000), minlength=16)
    assert counts.min() > 3_600
    assert counts.max() < 4_400


def test_data_is_found_once_it_is_prepared(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"document number {i} says little"}) for i in range(50)]
    (tmp_path / "text.jsonl").write_text("\n".join(lines))

    def source() -> TextFiles:
        return TextFiles(paths=[str(tmp_path / "text.jsonl")], val_fraction=0.3)

    assert find_prepared(source(), Byte260Spec(), tmp_path / "cache") is None
    made = prepare(source(), Byte260Spec(), cache=tmp_path / "cache")
    found = find_prepared(source(), Byte260Spec(), tmp_path / "cache")
    assert found is not None
    assert found.train.paths == made.train.paths


@dataclass
class Doubling:
    name: str = "doubling"
    shapes: str = "1000"

    def make(self, device: torch.device) -> tuple[Callable[[], Any], Callable[[], Any], float, float]:
        x = torch.randn(1000, device=device)
        return (lambda: x * 2), (lambda: [x + x for _ in range(20)]), 8000.0, 1000.0


def test_a_kernel_is_timed_against_its_twin() -> None:
    result = time_case(Doubling(), CPU, (1e12, 1e15))
    assert result.speedup == pytest.approx(result.twin_ms / result.kernel_ms)
    assert result.speedup > 2
    assert result.of_ceiling == pytest.approx(8e-6 / result.kernel_ms)


@pytest.mark.parametrize("packed", [False, True])
def test_an_attentions_floor_counts_what_is_not_masked(packed: bool) -> None:
    one, both = (AttentionCase("sdpa", packed, passes, 256, 64) for passes in get_args(Passes))
    kernel, twin, moved, flops = one.make(CPU)
    seen = sum(int(torch.ones(n, n).tril().sum()) for n in one.lengths)
    assert sum(one.lengths) == 256
    assert max(one.lengths) == 64
    assert flops == 2 * 2 * seen * 8 * 64
    assert moved == 2 * 256 * 64 * (8 + 4 + 4 + 8)
    assert both.make(CPU)[2:] == (3 * moved, 3.5 * flops)
    for run in (kernel, twin, *both.make(CPU)[:2]):
        run()


def test_reference_figures_give_a_ceiling() -> None:
    figures = reference(CPU)
    assert all(value is not None and value > 0 for value in figures.values())
    assert all(0 < rate < float("inf") for rate in ceiling(figures))


def test_kernels_are_kept_as_a_table(tmp_path: Path) -> None:
    found = [KernelTime("flash_fwd, sm90", 9.0, 2.0, 0.8), KernelTime("add", 1.0, 0.5, 0.2)]
    write_csv(tmp_path / "profile.csv", found)
    assert len((tmp_path / "profile.csv").read_text().splitlines()) == 3
    assert attention_kernels(found) == ["flash_fwd, sm90"]


@pytest.mark.parametrize(
    ("spans", "length"), [([], 0), ([(5, 6), (0, 2)], 3), ([(0, 4), (1, 2), (3, 6)], 6)], ids=["none", "apart", "over"]
)
def test_time_that_spans_share_counts_once(spans: list[tuple[float, float]], length: float) -> None:
    assert covered(spans) == length


@pytest.fixture
def no_compiler_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    for name in [name for name in os.environ if name.startswith(("TORCHINDUCTOR_", "TRITON_"))]:
        monkeypatch.delenv(name)
    for name in ("CACHE_DIR", "FX_GRAPH_CACHE", "AUTOGRAD_CACHE"):  # so that what is set below is undone
        monkeypatch.setenv(f"TORCHINDUCTOR_{name}", "")
        monkeypatch.delenv(f"TORCHINDUCTOR_{name}")
    monkeypatch.setenv("TRITON_CACHE_DIR", "")
    monkeypatch.delenv("TRITON_CACHE_DIR")
    monkeypatch.setenv("GOLF_CACHE", str(tmp_path))
    return monkeypatch


def test_compiled_code_is_kept_in_the_cache(no_compiler_settings: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_cache()
    assert Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).is_relative_to(tmp_path)
    assert Path(os.environ["TRITON_CACHE_DIR"]).is_relative_to(tmp_path)


def test_the_users_own_compiler_settings_win(no_compiler_settings: pytest.MonkeyPatch) -> None:
    no_compiler_settings.setenv("TORCHINDUCTOR_CACHE_DIR", "/elsewhere")
    no_compiler_settings.setenv("TORCHINDUCTOR_FX_GRAPH_CACHE", "0")
    use_cache()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/elsewhere"
    assert os.environ["TORCHINDUCTOR_FX_GRAPH_CACHE"] == "0"
    assert "TRITON_CACHE_DIR" not in os.environ


@pytest.mark.parametrize("name", ["file", "file/below", "a" * 300])
def test_a_cache_that_cannot_be_a_folder_is_refused_by_name(
    no_compiler_settings: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    (tmp_path / "file").touch()
    no_compiler_settings.setenv("GOLF_CACHE", str(tmp_path / name))
    with pytest.raises(GolfError, match=r"cannot use GOLF_CACHE=.*: (not a folder|File name too long)"):
        use_cache()


def test_a_relative_cache_stays_where_it_is_when_a_process_moves(
    no_compiler_settings: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    no_compiler_settings.chdir(tmp_path)
    no_compiler_settings.setenv("GOLF_CACHE", "kept")
    use_cache()
    assert os.environ["GOLF_CACHE"] == str(tmp_path / "kept")


def test_an_error_of_ones_own_is_not_a_lost_worker() -> None:
    assert lost_another(RuntimeError("[../gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1"))
    assert lost_another(torch.distributed.DistBackendError("NCCL error in: remote process exited"))
    assert not lost_another(RuntimeError("tick tock"))
    assert not lost_another(torch.OutOfMemoryError("CUDA out of memory"))


STUCK = """
import hashlib, threading
from golf.train.control import Interrupt
interrupt = Interrupt(lambda number: print("stuck", number, flush=True))
interrupt.patience_s = 0.1
with interrupt:
    threading.Timer(0.5, print, ["ready"], {"flush": True}).start()
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 10**9)  # many minutes in C, where Python hears no signal
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_hears_no_signal_ends_all_the_same(number: signal.Signals) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(golf.__file__).parents[1])}
    with subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, text=True, env=environment) as worker:
        assert worker.stdout is not None
        try:
            assert worker.stdout.readline() == "ready\n"
            worker.send_signal(number)
            while number == signal.SIGINT and not select.select([worker.stdout], [], [], 0.2)[0]:
                worker.send_signal(number)
            assert worker.stdout.readline() == f"stuck {number.value}\n"
            assert worker.wait(timeout=120) == 128 + number  # long before the hash is done
        finally:
            worker.kill()


def test_records_are_plain_json() -> None:
    assert json.loads(json.dumps(time_case(Doubling(), CPU, (1e12, 1e15)).as_dict()))["name"] == "doubling"
