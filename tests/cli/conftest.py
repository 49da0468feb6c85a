"""One tiny run, trained once by `golf train` itself, on which every command is tried."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import threading
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import golf
from golf.cli.main import main

TRAINING = (
    "budget=smoke", "recipe=quickstart", "tokenizer=byte260", "model.num_layers=2", "schedule.iterations=5",
    "val_tokens=2049", "logger=jsonl", "data=text", "data.val_docs=8",
    "runtime.threads=1", "qat=int6",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        return self.out.splitlines()[-1]


Golf = Callable[..., Outcome]
NEEDED = ("torch", "numpy", "sentencepiece", "zstandard", "brotli")
"""What an exported file needs."""


def write_text(path: Path, seed: int, documents: int = 120) -> Path:
    """A .jsonl of short documents made of a few words."""
    rng = random.Random(seed)
    words = ["the", "quick", "model", "reads", "a", "byte", "and", "predicts", "another", "über", "naïve", "42"]
    with path.open("w", encoding="utf-8") as file:
        for _ in range(documents):
            text = " ".join(rng.choice(words) for _ in range(rng.randint(60, 120)))
            file.write(json.dumps({"text": text}) + "\n")
    return path


def closure(names: tuple[str, ...]) -> dict[str, metadata.Distribution]:
    """The distributions of these names and all that they require here."""
    found: dict[str, metadata.Distribution] = {}
    waiting = list(names)
    while waiting:
        name = re.split(r"[^\w.-]", waiting.pop())[0].lower().replace("_", "-")
        if name in found:
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # for another platform
        waiting += [one for one in found[name].requires or () if "extra ==" not in one]
    return found


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs words in a Python of its own that has what an exported file needs, and no golf, in the folder `cwd`."""
    place = tmp_path_factory.mktemp("bare")
    venv.create(place, symlinks=True)
    (site,) = place.glob("lib/python*/site-packages")
    for one in closure(NEEDED).values():
        for top in {file.parts[0] for file in one.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(one.locate_file(top))))

    def run(*words: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "GOLF_CACHE")}
        return subprocess.run(
            [place / "bin" / "python", *map(str, words)], cwd=cwd, env=env | environment, capture_output=True,
            text=True, timeout=300, check=False,
        )  # fmt: skip

    return run


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a text file and a cache of its own, for the whole session."""
    place = tmp_path_factory.mktemp("workplace")
    write_text(place / "corpus.jsonl", seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GOLF_CACHE", str(place / "cache"))
        patch.delenv("COLUMNS", raising=False)  # where tests run side by side, their workers have one
        source = str(Path(golf.__file__).parents[1])
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), source))))
        yield place


@pytest.fixture(scope="session")
def trained(workplace: Path) -> Path:
    """The folder of the one run; not to be changed (`run_copy` may be)."""
    directory = workplace / "trained"
    words = (*TRAINING, f"data.paths=[{workplace / 'corpus.jsonl'}]", f"hydra.run.dir={directory}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["golf"])
        assert main(["train", *words]) == 0
    return directory


@pytest.fixture
def run_copy(trained: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be damaged."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def golf_command(workplace: Path, capsys: pytest.CaptureFixture[str]) -> Golf:
    """Run a golf command in this process."""

    def call(*argv: object) -> Outcome:
        capsys.readouterr()
        code = main([str(word) for word in argv])
        out, err = capsys.readouterr()
        return Outcome(code, out, err)

    return call


@pytest.fixture
def recorded() -> Callable[[Path], dict[str, Any]]:
    """Read a JSON file that a command wrote."""
    return lambda path: json.loads(Path(path).read_text(encoding="utf-8"))


@pytest.fixture
def serve_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[type[BaseHTTPRequestHandler]], None]]:
    """Lets a handler answer in the Hugging Face hub's place, for a cache of the test's own."""
    started: list[tuple[ThreadingHTTPServer, threading.Thread]] = []

    def serve(handler: type[BaseHTTPRequestHandler]) -> None:
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        started.append((server, thread))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("GOLF_CACHE", str(tmp_path / "cache"))

    yield serve
    for server, thread in started:
        server.shutdown()
        thread.join()
        server.server_close()
