"""wandb that cannot start, loses its folder, its process or the network: a line, and metrics.jsonl has everything."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from golf.common.errors import ConfigError
from golf.runs.folder import read_metrics
from golf.runs.loggers import Loggers, RunInfo, WandbLogger
from tests.unit.test_loggers import WandbFile, _quiet  # noqa: F401 (it serves every test here)

CONFIG = {"seed": 7}
OFF = "warning: WandbLogger failed and is off from here on; metrics.jsonl goes on ("


def opened(folder: Path, **keys: Any) -> Loggers:
    loggers = Loggers(WandbLogger(system_stats=False, source=False, **keys))
    loggers.start(RunInfo(folder, "run"), CONFIG)
    return loggers


def rows(loggers: Loggers, *steps: int) -> None:
    for step in steps:
        loggers.log({"train_loss": 1.0}, step)


def services() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if child.name().startswith("wandb")]


def test_a_folder_that_is_none_keeps_it_from_starting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wandb").write_text("in the way")
    loggers = opened(tmp_path)
    rows(loggers, 1)
    loggers.finish({}, "completed")
    assert capsys.readouterr().out.startswith(OFF)
    assert (len(read_metrics(tmp_path / "metrics.jsonl")), services()) == (1, [])


def test_a_wandb_that_cannot_be_loaded_is_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    loggers = opened(tmp_path)
    rows(loggers, 1)
    assert capsys.readouterr().out.startswith(OFF)
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1


def test_a_folder_that_vanishes_is_told_of_at_the_next_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loggers = opened(tmp_path)
    rows(loggers, 1)
    shutil.rmtree(tmp_path / "wandb")
    rows(loggers, 2, 3)
    (why,) = loggers.facts()["failed"].values()
    loggers.finish({}, "completed")
    assert capsys.readouterr().out == f"{OFF}{why})\n"
    assert why.startswith("[Errno 2] No such file or directory")
    assert (len(read_metrics(tmp_path / "metrics.jsonl")), services()) == (3, [])


def test_a_disk_that_is_full_is_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place := tmp_path / "wandb").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk is not allowed here")
    try:
        loggers = opened(tmp_path)
        (place / "filled").write_bytes(bytes(250_000))
        rows(loggers, 1, 2)
        loggers.finish({}, "completed")
    finally:
        subprocess.run(["umount", str(place)], check=True)
    assert capsys.readouterr().out.startswith(f"{OFF}[Errno 28] No space left on device")
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2


def test_a_process_that_is_killed_is_one_line_to_the_end(tmp_path: Path) -> None:
    script = """
import sys, psutil
from pathlib import Path
from golf.common import log
from golf.runs.loggers import Loggers, RunInfo, WandbLogger
with log.setup(0, None):
    loggers = Loggers(WandbLogger(system_stats=False, source=False))
    loggers.start(RunInfo(Path(sys.argv[1]), "run"), {})
    for child in psutil.Process().children():
        child.kill()
    for step in range(1, 300):
        loggers.log({"train_loss": 1.0, "note": "x" * 2000}, step)
    loggers.finish({}, "completed")
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1), done.stdout + done.stderr
    assert done.stdout.startswith(OFF)
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 299


class Server(BaseHTTPRequestHandler):
    """As much of wandb's server as a run needs to begin."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        asked = json.loads(body) if self.path == "/graphql" else {}
        about, given = asked.get("query", ""), asked.get("variables", {})
        data: dict[str, Any] = {}
        if "upsertBucket" in about:
            project = {"id": "p", "name": given["project"], "entity": {"id": "e", "name": "me"}}
            bucket = {"id": "b", "name": given["name"], "config": "{}", "project": project, "historyLineCount": 0}
            data = {"upsertBucket": {"bucket": bucket, "inserted": True}}
        elif "viewer" in about:
            data = {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        answer = json.dumps({"data": data}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    one = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{one.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "10")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    yield one
    one.shutdown()
    thread.join()
    one.server_close()


def test_a_network_that_is_lost_holds_the_end_up_no_longer_than_said(
    tmp_path: Path, server: ThreadingHTTPServer, capsys: pytest.CaptureFixture[str]
) -> None:
    loggers = opened(tmp_path, mode="online", finish_seconds=1.0)
    assert "failed" not in loggers.facts()
    rows(loggers, 1)
    server.shutdown()
    server.server_close()
    rows(loggers, 2, 3)
    loggers.finish({"val_bpb/post_quant": 1.0}, "completed")
    (line,) = capsys.readouterr().out.splitlines()
    folder = line.rpartition("wandb sync ")[2]
    assert line == f"warning: wandb's server has not taken all within 1 s; for the rest: wandb sync {folder}"
    assert (Path(folder).is_dir(), services()) == (True, [])
    kept = WandbFile(tmp_path, "run-*")
    assert [row["step"] for row in kept.history] == [1, 2, 3]
    assert kept.summary["val_bpb/post_quant"] == 1.0


def test_a_server_that_is_not_there_leaves_the_run_offline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
    loggers = opened(tmp_path, mode="online")
    rows(loggers, 1, 2)
    loggers.finish({}, "completed")
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("warning: wandb cannot log in (")
    assert first.endswith("this run is logged offline")
    assert last.startswith("wandb kept this run offline; to upload it: wandb sync")
    assert [row["step"] for row in WandbFile(tmp_path).history] == [1, 2]


def test_a_wait_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"logger.finish_seconds=0: must be positive"):
        WandbLogger(finish_seconds=0)
