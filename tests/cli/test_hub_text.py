"""`data=hf`, fetched from a local server that answers as the hub does for one small dataset repository."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from golf.common.errors import ConfigError, DataError
from golf.data.hub_text import HubText

pytest.importorskip("huggingface_hub", reason="the extra `hub` is not installed")

REPO = "someone/some-text"
COMMITS = {"main": "0123456789abcdef0123456789abcdef01234567", "refs/convert/parquet": "f" * 40}


class Repository:
    """The served files by revision, and the paths that were asked for."""

    def __init__(self, files: dict[str, dict[str, bytes]]) -> None:
        self.files, self.asked = files, list[str]()
        self.refused: tuple[int, str] | None = None  # what every request is answered with instead
        self.cut = 0  # so many answers end in the middle


class Handler(BaseHTTPRequestHandler):
    """The requests that the client makes of the hub."""

    protocol_version = "HTTP/1.1"
    repository: Repository

    def do_GET(self) -> None:
        url = unquote(urlsplit(self.path).path)
        self.repository.asked.append(url)
        if self.repository.refused is not None:
            code, name = self.repository.refused
            return self._answer(code, b"", {"X-Error-Code": name})
        if found := re.fullmatch(rf"/api/datasets/{REPO}(?:/revision/(.+))?", url):
            return self._listing(found[1] or "main")
        found = re.fullmatch(rf"/datasets/{REPO}/resolve/([0-9a-f]+)/(.+)", url)
        revision = next((name for name, commit in COMMITS.items() if found and found[1] == commit), "")
        content = self.repository.files.get(revision, {}).get(found[2] if found else "")
        if content is None:
            return self._answer(404, b"", {"X-Error-Code": "EntryNotFound" if found else "RepoNotFound"})
        tag = hashlib.sha256(content).hexdigest()
        return self._answer(200, content, {"X-Repo-Commit": COMMITS[revision], "ETag": f'"{tag}"'})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        commit = urlsplit(self.path).path.rsplit("/", 1)[-1]
        files = next(self.repository.files[name] for name, one in COMMITS.items() if one == commit)
        known = [
            {"type": "file", "path": path, "oid": "0" * 40, "size": len(files[path])}
            for path in form["paths"] if path in files
        ]  # fmt: skip
        self._answer(200, json.dumps(known).encode())

    def _listing(self, revision: str) -> None:
        files = self.repository.files.get(revision)
        if files is None:
            return self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        siblings = [{"rfilename": path} for path in files]
        self._answer(200, json.dumps({"id": REPO, "sha": COMMITS[revision], "siblings": siblings}).encode())

    def _answer(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.repository.cut and "ETag" in (headers or {}):
            self.repository.cut -= 1
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Stay silent."""


def parquet(*texts: str, nested: bool = False) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"meta": [{"text": t} for t in texts]} if nested else {"text": list(texts)}), file)
    return file.getvalue()


def documents(name: str, count: int = 6) -> list[str]:
    return [f"{name}: a document of words, number {i}" for i in range(count)]


@pytest.fixture
def hub(serve_hub: Callable[[type[BaseHTTPRequestHandler]], None]) -> Repository:
    """The repository on a local server, which HF_ENDPOINT names."""
    main = {
        "README.md": b"# not a text of it",
        "data/train-00000-of-00002.parquet": parquet(*documents("first")),
        "data/train-00001-of-00002.parquet": parquet(*documents("second")),
        "data/validation-00000-of-00001.parquet": parquet(*documents("held out", 3)),
        "more/nested.jsonl": "".join(json.dumps({"meta": {"text": t}}) + "\n" for t in documents("nested")).encode(),
    }
    repository = Repository({"main": main})
    serve_hub(type("Serving", (Handler,), {"repository": repository}))
    return repository


def test_one_line_makes_shards_of_a_dataset(golf_command: Any, hub: Repository) -> None:
    words = ("data", "source=hf", f"data.repo={REPO}", "data.val_split=validation", "tokenizer=byte260")
    done = golf_command(*words)
    assert done.code == 0, done.err
    assert re.search(r"train documents +│ 12 ", done.out)
    assert re.search(r"validation documents +│ 3 ", done.out)
    assert "fetch 3 files" in done.out
    hub.asked.clear()
    again = golf_command(*words)
    assert "found in the cache" in again.out
    assert hub.asked == []


def test_before_they_are_fetched_the_command_is_named(hub: Repository) -> None:
    with pytest.raises(DataError, match=rf"fetch them: golf data data=hf data.repo={REPO} data.split=validation"):
        list(HubText(REPO, split="validation").documents("train"))


def test_the_first_files_are_taken_and_the_rest_is_told(hub: Repository) -> None:
    source = HubText(REPO, max_files=1, val_docs=2)
    assert source.fetch() == 1
    assert list(source.documents("train")) == documents("first")[2:]
    list(source.documents("val"))
    assert (source.facts["source"], source.facts["commit"]) == ("hf", COMMITS["main"])
    assert source.facts["notes"] == [f"{REPO} has 1 more files of this split (data.max_files=1)"]
    assert HubText(REPO, max_files=2).fetch() == 1  # the first is there


def test_files_and_a_field_within_another_can_be_named(hub: Repository) -> None:
    source = HubText(REPO, files="more/*.jsonl", field="meta.text", val_docs=1)
    assert source.fetch() == 1
    assert list(source.documents("train")) == documents("nested")[1:]


def test_what_the_hub_converted_is_taken_where_the_files_are_of_another_kind(hub: Repository) -> None:
    hub.files["main"] = {"train.csv": b"text\nx\n"}
    with pytest.raises(DataError, match=r"no file of data.split=train .*\nit has: train.csv"):
        HubText(REPO).fetch()
    hub.files["refs/convert/parquet"] = {"default/train/0000.parquet": parquet(*documents("converted"))}
    source = HubText(REPO, val_docs=1)
    assert source.fetch() == 1
    assert list(source.documents("train")) == documents("converted")[1:]


def test_a_cut_file_is_fetched_again(hub: Repository) -> None:
    source = HubText(REPO, max_files=1)
    source.fetch()
    (path,) = source.home.rglob("*.parquet")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert HubText(REPO, max_files=1).fetch() == 1
    assert path.read_bytes() == whole


def test_a_download_that_ends_early_goes_on(hub: Repository) -> None:
    hub.cut = 1
    assert HubText(REPO, max_files=1).fetch() == 1
    assert list(HubText(REPO, max_files=1, val_docs=1).documents("train")) == documents("first")[1:]


@pytest.mark.parametrize(
    ("code", "name", "message"),
    [
        (403, "GatedRepo", f"{REPO} on the hub is gated: accept its terms there"),
        (401, "RepoNotFound", f"no public dataset repository {REPO} .data.repo; HF_TOKEN for a private one"),
        (500, "", "cannot fetch the list of files"),
    ],
)
def test_a_repository_that_may_not_be_read_is_told(hub: Repository, code: int, name: str, message: str) -> None:
    hub.refused = code, name
    with pytest.raises(DataError, match=message):
        HubText(REPO).fetch()


def test_a_field_that_is_not_there_is_told_with_those_that_are(golf_command: Any, hub: Repository) -> None:
    done = golf_command("data", "source=hf", f"data.repo={REPO}", "data.field=body", "data.val_docs=1",
                        "tokenizer=byte260")  # fmt: skip
    assert done.code == 1
    assert "'body'" in done.err
    assert "text" in done.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repo": "nobody"}, "expected OWNER/NAME"),
        ({"max_files": 0}, "data.max_files=0"),
        ({"split": ""}, "must not be empty"),
        ({"files": "*", "val_split": "test"}, "data.val_split cannot stand beside it"),
    ],
)
def test_impossible_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        HubText(**{"repo": REPO, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repo": "nobody/nothing"}, "no public dataset repository nobody/nothing"),
        ({"revision": "other"}, "no such revision"),
        ({"split": "tes"}, r"no file of data.split=tes .*\nit has: data/train"),
        ({"val_split": "tes"}, "no files of data.val_split=tes"),
        ({"config": "german"}, r"data.split=train data.config=german"),
    ],
)
def test_what_is_not_there_is_named(hub: Repository, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        HubText(**{"repo": REPO, **options}).fetch()
    assert not (HubText(REPO).home / ".fetching").exists()
