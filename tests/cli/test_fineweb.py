"""`data=fineweb`, fetched from a local server that answers as the hub does for one tiny dataset repository."""

from __future__ import annotations

import hashlib
import io
import json
import re
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import pytest

from golf.common.errors import ConfigError, DataError
from golf.data.fineweb import REPO, FineWeb
from golf.data.prepare import prepare
from golf.data.shards import write_shards
from golf.tokenizers.byte260 import Byte260, Byte260Spec
from golf.tokenizers.sentencepiece import SentencePieceSpec

pytest.importorskip("huggingface_hub", reason="the extra `hub` is not installed")

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TRAIN_SHARDS, VOCABULARY = 4, 320
MODEL = "datasets/tokenizers/fineweb_320_bpe.model"


def shard(export: str, split: str, index: int) -> str:
    return f"datasets/datasets/fineweb10B_{export}/fineweb_{split}_{index:06d}.bin"


@dataclass
class Repository:
    """The served files, what was asked for, and the accidents that are to happen."""

    files: dict[str, bytes]
    asked: list[tuple[str, str, str]] = field(default_factory=list)  # (method, path, Range header)
    cut_once: set[str] = field(default_factory=set)  # the connection ends in the middle, once
    broken: set[str] = field(default_factory=set)  # answered with an error
    short: set[str] = field(default_factory=set)  # fewer bytes come than were announced by HEAD
    altered: set[str] = field(default_factory=set)  # one bit is another than the hub's hash says

    def downloads(self) -> list[str]:
        """Names of the files that a GET asked for, in order."""
        return [path.rsplit("/", 1)[-1] for method, path, _ in self.asked if method == "GET"]


class Handler(BaseHTTPRequestHandler):
    """The three requests that the client makes of the hub."""

    protocol_version = "HTTP/1.1"
    repository: Repository

    def do_HEAD(self) -> None:
        self._resolve("HEAD")

    def do_GET(self) -> None:
        self._resolve("GET")

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        assert urlsplit(self.path).path == f"/api/datasets/{REPO}/paths-info/{COMMIT}"
        files = self.repository.files
        known = [
            {
                "type": "file", "path": path, "oid": "0" * 40, "size": len(files[path]),
                "lfs": {"oid": hashlib.sha256(files[path]).hexdigest(), "size": len(files[path]), "pointerSize": 1},
            }
            for path in form["paths"] if path in files
        ]  # fmt: skip
        self._answer(200, json.dumps(known).encode(), {"Content-Type": "application/json"})

    def _resolve(self, method: str) -> None:
        repository, url = self.repository, unquote(urlsplit(self.path).path)
        found = re.fullmatch(rf"/datasets/{REPO}/resolve/(main|{COMMIT})/(.+)", url)
        if found is None:
            return self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        path, part = found[2], self.headers.get("Range", "")
        repository.asked.append((method, path, part))
        headers = {"X-Repo-Commit": COMMIT}
        if path not in repository.files:
            return self._answer(404, b"", {**headers, "X-Error-Code": "EntryNotFound"})
        if method == "GET" and path in repository.broken:
            return self._answer(500, b"", headers)
        content = repository.files[path]
        headers["ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
        if method == "GET" and path in repository.short:
            content = content[:-2]
        if path in repository.altered:
            content = content[:-1] + bytes([content[-1] ^ 1])
        if asked := re.fullmatch(r"bytes=(\d+)-", part):
            start = int(asked[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return self._answer(206, content[start:], headers)
        if method == "GET" and path in repository.cut_once:
            repository.cut_once.discard(path)
            return self._answer(200, content, headers, sent=len(content) - 1000)
        return self._answer(200, content, headers, sent=0 if method == "HEAD" else None)

    def _answer(self, code: int, body: bytes, headers: dict[str, str], sent: int | None = None) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:sent])
            if sent is not None:
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True

    def log_message(self, *args: object) -> None:
        """Stay silent."""


def sentencepiece_model() -> bytes:
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    text = [f"the {word} of the {other} was {n}" for n, word in enumerate(["light", "water", "stone", "house"] * 9)
            for other in ("river", "garden", "morning", "winter")]  # fmt: skip
    SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_writer=model, vocab_size=VOCABULARY, model_type="bpe", byte_fallback=True,
        add_dummy_prefix=False, pad_id=0, bos_id=1, eos_id=2, unk_id=3, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The repository's files: exports sp320 and byte260, and the manifest."""
    from golf.tokenizers.sentencepiece import SentencePieceTokenizer

    folder = tmp_path_factory.mktemp("published")
    model = sentencepiece_model()
    files = {MODEL: model, MODEL.replace(".model", ".vocab"): b"<pad>\t0\n"}
    files["datasets/tokenizers/fineweb_pure_byte_260.json"] = b"{}"
    piece, byte = SentencePieceTokenizer(model, "sp320"), Byte260()
    for export, tokenizer in (("sp320", piece), ("byte260", byte)):
        for split, count in (("train", TRAIN_SHARDS), ("val", 1)):
            texts = [f"the water of the river was light {i}" for i in range(40 * count)]
            ids = np.concatenate(
                [np.concatenate([np.array([1], np.uint16), one]) for one in tokenizer.encode_batch(texts)]
            )
            tokens = -(-ids.size // count)
            for index, path in enumerate(write_shards(folder / export, split, [ids], tokens)):
                files[shard(export, split, index)] = path.read_bytes()
    stats = {"files_train": TRAIN_SHARDS, "files_val": 1}
    manifest = {
        "version": "10B",
        "tokenizers": [
            {"name": "sp_bpe_320", "kind": "sentencepiece_bpe", "vocab_size": VOCABULARY,
             "model_path": "tokenizers/fineweb_320_bpe.model", "vocab_path": "tokenizers/fineweb_320_bpe.vocab"},
            {"name": "pure_byte_260", "kind": "byte", "vocab_size": 260,
             "path": "tokenizers/fineweb_pure_byte_260.json"},
        ],
        "datasets": [
            {"name": "fineweb10B_sp320", "tokenizer_name": "sp_bpe_320", "stats": stats},
            {"name": "fineweb10B_byte260", "tokenizer_name": "pure_byte_260", "stats": stats},
        ],
    }  # fmt: skip
    files["datasets/manifest.json"] = json.dumps(manifest).encode()
    return files


@pytest.fixture
def hub(published: dict[str, bytes], serve_hub: Callable[[type[BaseHTTPRequestHandler]], None]) -> Repository:
    """The repository on a local server, which HF_ENDPOINT names."""
    repository = Repository(dict(published))
    serve_hub(type("Serving", (Handler,), {"repository": repository}))
    return repository


SP320 = SentencePieceSpec(name="sp320", vocab_size=VOCABULARY)
WORDS = ("tokenizer=sp1024", f"tokenizer.vocab_size={VOCABULARY}")
TRAINING = ("budget=smoke", "recipe=naive_baseline", *WORDS, "model.num_layers=2", "schedule.iterations=2",
            "data=fineweb", "data.train_shards=2", "train_seq_len=16", "train_batch_tokens=128",
            "logger=jsonl", "val_tokens=129", "runtime.threads=1")  # fmt: skip


@pytest.mark.parametrize("choice", ["source=fineweb", "data=fineweb"])
def test_golf_data_fetches(golf_command: Any, hub: Repository, tmp_path: Path, choice: str) -> None:
    done = golf_command("data", choice, *WORDS, "data.train_shards=2")
    assert done.code == 0, done.err
    assert "fetch fineweb10B_sp320, 0.00 GB: 100 %" in done.out
    assert re.search(r"made +│ now", done.out)
    shards = [f"fineweb_{name}.bin" for name in ("val_000000", "train_000000", "train_000001")]
    assert hub.downloads() == ["manifest.json", "fineweb_320_bpe.model", "fineweb_320_bpe.vocab", *shards]
    home = tmp_path / "cache/fineweb" / REPO.replace("/", "--")
    assert (home / shard("sp320", "train", 1).removeprefix("datasets/")).read_bytes() == hub.files[
        shard("sp320", "train", 1)
    ]
    assert not (home / ".fetching").exists()


def test_golf_train_finds_what_was_fetched(
    golf_command: Any, hub: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: Any
) -> None:
    FineWeb(train_shards=2).fetch(SP320)
    hub.asked.clear()
    monkeypatch.setattr("sys.argv", ["golf"])
    trained = golf_command("train", *TRAINING, f"hydra.run.dir={tmp_path / 'run'}")
    assert trained.code == 0, trained.err
    data = recorded(tmp_path / "run/result.json")["data"]
    assert (data["source"], data["export"], data["tokenizer"]) == ("fineweb", "fineweb10B_sp320", "fineweb_320_bpe")
    assert data["byte_proof"]["documents_that_encode_to_the_same_ids"] > 1
    assert hub.asked == []


def test_what_is_there_needs_no_network(hub: Repository, tmp_path: Path) -> None:
    source = FineWeb(train_shards=2)
    assert source.fetch(SP320, tmp_path) == 5
    hub.asked.clear()
    assert source.fetch(SP320, tmp_path) == 0
    assert hub.asked == []
    assert FineWeb(train_shards=3).fetch(SP320, tmp_path) == 1
    assert hub.downloads() == ["manifest.json", "fineweb_train_000002.bin"]


def test_the_first_shards_are_taken_and_all_validation(hub: Repository, tmp_path: Path) -> None:
    FineWeb(train_shards=3).fetch(SP320, tmp_path)
    data = prepare(FineWeb(train_shards=2), SP320, cache=tmp_path)
    assert [path.name for path in data.train.paths] == ["fineweb_train_000000.bin", "fineweb_train_000001.bin"]
    assert [path.name for path in data.val.paths] == ["fineweb_val_000000.bin"]


def test_null_takes_every_shard(hub: Repository, tmp_path: Path) -> None:
    source = FineWeb(train_shards=None)
    source.fetch(Byte260Spec(), tmp_path)
    assert len(prepare(source, Byte260Spec(), cache=tmp_path).train.paths) == TRAIN_SHARDS


def test_a_folder_of_the_challenges_own_downloader_serves_as_it_is(hub: Repository, tmp_path: Path) -> None:
    for path, content in hub.files.items():
        file = tmp_path / "data" / local(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    source = FineWeb(train_shards=None, folder=str(tmp_path / "data"))
    assert source.fetch(SP320) == 0
    assert len(prepare(source, SP320, cache=tmp_path).train.paths) == TRAIN_SHARDS
    assert hub.asked == []


def test_published_side_cars_come_with_the_shards(hub: Repository, tmp_path: Path) -> None:
    val = shard("sp320", "val", 0)
    hub.files[val.replace("_val_", "_val_bytes_")] = hub.files[val]
    source = FineWeb(train_shards=1)
    assert source.fetch(SP320, tmp_path) == 5
    assert hub.downloads()[-1] == "fineweb_val_bytes_000000.bin"
    assert source.fetch(SP320, tmp_path) == 0


def test_documents_in_the_folder_are_those_of_the_shards(hub: Repository, tmp_path: Path) -> None:
    source = FineWeb(train_shards=1)
    source.fetch(SP320, tmp_path)
    assert source.find(SP320, tmp_path)[0].docs is None
    (source.home(tmp_path) / "docs_selected.jsonl").touch()
    assert source.find(SP320, tmp_path)[0].docs == str(source.home(tmp_path) / "docs_selected.jsonl")
    assert "data.docs=mine.jsonl" in FineWeb(docs="mine.jsonl").command(SP320)


def test_a_connection_that_ends_early_is_resumed_there(hub: Repository, tmp_path: Path) -> None:
    path = shard("sp320", "train", 0)
    (long,) = write_shards(tmp_path, "train", [np.full(6_000_000, 300, np.uint16)])
    hub.files[path] = long.read_bytes()
    hub.cut_once.add(path)
    FineWeb(train_shards=1).fetch(SP320, tmp_path)
    gets = [part for method, asked, part in hub.asked if (method, asked) == ("GET", path)]
    assert gets == ["", "bytes=10485760-"]  # the library keeps whole pieces of 10 MiB
    assert len(FineWeb(train_shards=1).find(SP320, tmp_path)[0].train) == 1


def test_after_a_failure_the_same_call_fetches_only_the_rest(hub: Repository, tmp_path: Path) -> None:
    hub.broken.add(shard("sp320", "train", 1))
    with pytest.raises(DataError, match=r"cannot fetch .*train_000001"):
        FineWeb(train_shards=3).fetch(SP320, tmp_path)
    hub.broken.clear()
    hub.asked.clear()
    assert FineWeb(train_shards=3).fetch(SP320, tmp_path) == 2
    assert hub.downloads() == ["manifest.json", "fineweb_train_000001.bin", "fineweb_train_000002.bin"]


def local(path: str) -> str:
    """Where a file of the repository lies in golf's folder."""
    return path.removeprefix("datasets/")


def damage_header(hub: Repository, path: str) -> None:
    content = hub.files[path]
    hub.files[path] = content[:8] + (10**6).to_bytes(4, "little") + content[12:]


@pytest.mark.parametrize(
    ("accident", "part"),
    [
        (lambda hub, path: hub.files.pop(path), "lacks 1 of 4 files"),
        (lambda hub, path: hub.short.add(path), "cannot fetch"),
        (lambda hub, path: hub.altered.add(path), "SHA-256"),
        (damage_header, "its header says 1000000 tokens"),
    ],
    ids=["404", "short", "altered", "wrong size"],
)
def test_a_file_that_is_not_what_it_should_be_is_refused(
    hub: Repository, tmp_path: Path, accident: Any, part: str
) -> None:
    path = shard("sp320", "train", 0)
    accident(hub, path)
    with pytest.raises(DataError, match=part) as refused:
        FineWeb(train_shards=1).fetch(SP320, tmp_path)
    assert "train_000000" in str(refused.value)
    home = FineWeb().home(tmp_path)
    assert not (home / local(path)).exists()
    assert not (home / ".fetching").exists()


def test_a_cut_shard_is_fetched_again(hub: Repository, tmp_path: Path) -> None:
    source = FineWeb(train_shards=1)
    source.fetch(SP320, tmp_path)
    file = source.home(tmp_path) / local(shard("sp320", "train", 0))
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(DataError, match="missing or cut"):
        source.find(SP320, tmp_path)
    assert source.fetch(SP320, tmp_path) == 1


def test_two_that_fetch_at_once_share_the_work(hub: Repository, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        counts = list(pool.map(lambda _: FineWeb(train_shards=2).fetch(SP320, tmp_path), range(2)))
    assert sorted(counts) == [0, 5]
    assert len(set(hub.downloads())) == len(hub.downloads())


def test_no_such_repository(hub: Repository, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no public dataset repository some/other"):
        FineWeb(repo="some/other").fetch(SP320, tmp_path)


def test_no_connection_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: refused at once
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(DataError, match=r"cannot fetch datasets/manifest\.json"):
            FineWeb().fetch(SP320, tmp_path)


def test_an_export_that_is_not_published_names_those_that_are(golf_command: Any, hub: Repository) -> None:
    done = golf_command("data", "data=fineweb", "tokenizer=sp2048")
    assert done.code == 2
    assert "tokenizer.name=sp2048" in done.err
    assert "choices: byte260, sp320" in done.err


def test_without_the_extra_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r"pip install 'golf\[hub\]'"):
        FineWeb().fetch(SP320, tmp_path)


def test_more_shards_than_there_are(hub: Repository, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"data.train_shards=80: fineweb10B_sp320 has {TRAIN_SHARDS}"):
        FineWeb().fetch(SP320, tmp_path)


def test_a_manifest_cannot_lead_out_of_the_folder(hub: Repository, tmp_path: Path) -> None:
    manifest = hub.files["datasets/manifest.json"]
    hub.files["datasets/manifest.json"] = manifest.replace(b"tokenizers/fineweb_320_bpe.vocab", b"../../outside")
    with pytest.raises(DataError, match="leads out of the export"):
        FineWeb(train_shards=1).fetch(SP320, tmp_path)


def test_that_command_fetches_it(golf_command: Any, hub: Repository) -> None:
    missing = golf_command("data", "data=fineweb", *WORDS, "data.train_shards=1")
    assert missing.code == 0
    home = FineWeb().home()
    with pytest.raises(DataError) as error:
        FineWeb(train_shards=2).find(SP320)
    told, command, instead = str(error.value).splitlines()
    assert "1 of 5 files" in told
    assert "fineweb_train_000001.bin" in told
    assert instead.endswith("data.train_shards=1")
    assert golf_command(*command.removeprefix("fetch them: golf ").split()).code == 0
    assert FineWeb(train_shards=2).find(SP320)[0].train == [
        str(home / local(shard("sp320", "train", i))) for i in range(2)
    ]


def test_training_does_not_fetch(golf_command: Any, hub: Repository, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("sys.argv", ["golf"])
    done = golf_command("train", *TRAINING, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.code == 1
    assert hub.asked == []


def test_a_tokenizer_of_ones_own_is_kept(hub: Repository, tmp_path: Path) -> None:
    source = FineWeb(train_shards=1)
    source.fetch(SP320, tmp_path)
    own = SentencePieceSpec("sp320", VOCABULARY, model_path="mine.model")
    assert source.find(own, tmp_path)[1] == own
