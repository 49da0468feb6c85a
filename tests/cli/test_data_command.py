from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from golf.cli.data import PreparationBars


def row(out: str, name: str) -> list[str]:
    line = next(line for line in out.splitlines() if f" {name} " in line)
    return [cell.strip() for cell in line.strip("│").split("│")][1:]


@pytest.fixture
def text(workplace: Path) -> str:
    return f"data.paths=[{workplace / 'corpus.jsonl'}]"


def test_what_it_prepares_is_told_and_kept(golf_command: Any, text: str) -> None:
    words = ("data", "data=text", text, "tokenizer=byte260", "data.val_docs=20")
    first, second = golf_command(*words), golf_command(*words)
    assert first.code == 0, first.err
    assert "tokenize train text with byte260: 100 %" in first.out
    assert row(first.out, "made") == ["now"]
    assert row(second.out, "made") == ["found in the cache"]
    assert row(first.out, "train documents") == ["100"]
    assert row(first.out, "validation documents") == ["20"]
    assert row(first.out, "byte count")[0].startswith("proved on 20 documents")
    assert Path(row(first.out, "folder")[0]).is_dir()


def test_the_time_left_is_by_the_pace_since_the_first_report(capsys: pytest.CaptureFixture[str]) -> None:
    now = iter([0.0, 600.0, 700.0, 800.0])
    with PreparationBars(lambda: next(now)) as progress:
        for fraction in (0.5, 0.55, 0.6, 0.75, 1.0):  # half was there; 0.55 is no new tenth
            progress("tokenize", fraction)
    assert capsys.readouterr().out.splitlines() == [
        "tokenize: 50 %", "tokenize: 60 %, about 0:40:00 left", "tokenize: 70 %, about 0:11:40 left", "tokenize: 100 %"
    ]  # fmt: skip


def test_a_sweep_prepares_each_once(golf_command: Any, text: str) -> None:
    done = golf_command("data", "data=text", text, "tokenizer=byte260", "-m", "data.val_docs=10,11", "seed=1,2")
    assert row(done.out, "validation documents") == ["10", "11"]


def test_what_was_proved_and_what_was_sampled_is_told_apart(golf_command: Any, text: str) -> None:
    made = golf_command("data", "data=text", text, "tokenizer=byte260", "data.val_docs=20")
    folder = row(made.out, "folder")[0]
    shards = (f"data.train={folder}/golf_train_*.bin", f"data.val={folder}/golf_val_*.bin")
    found = golf_command("data", "data=shards", *shards, "tokenizer=byte260")
    assert found.code == 0, found.err
    for done in (made, found):
        assert row(done.out, "byte count")[0].startswith("proved on 20 documents, all of validation: ")
        assert row(done.out, "train documents") == ["100"]
    # The last document of a stream may have been cut off, so it is not taken.
    assert row(found.out, "training shards")[0] == "sampled 99 of 100 documents: 99 encode to their own ids"
    assert " training shards " not in made.out


def test_a_sweep_of_vocabularies_ends_with_a_table_of_them(golf_command: Any, workplace: Path) -> None:
    words = ("data", "source=docs", f"data.docs={workplace / 'corpus.jsonl'}", "data.val_docs=20")
    done = golf_command(*words, "-m", "tokenizer=bytelevel", "tokenizer.vocab_size=300,310")
    assert done.code == 0, done.err
    heading, *rows = [line for line in done.out.split("tokenizers\n")[-1].splitlines() if line.startswith(("┃", "│"))]
    assert [name.strip() for name in heading.strip("┃").split("┃")][:3] == ["tokenizer", "ids", "bytes a token"]
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in rows]
    assert [line[0] for line in cells] == ["bl300", "bl310"]
    assert float(cells[0][2]) < float(cells[1][2])
    assert int(cells[0][-1].replace(",", "")) < int(cells[1][-1].replace(",", ""))


def test_shards_are_looked_at_and_mistakes_are_named(golf_command: Any, text: str) -> None:
    made = golf_command("data", "data=text", text, "tokenizer=byte260", "data.val_docs=20")
    folder = row(made.out, "folder")[0]
    found = golf_command("data", "inspect", folder, "samples=1")
    assert found.code == 0, found.err
    assert "of 100 training and 20 validation texts 0 are in both, by their hashes" in found.out
    assert "not proved" not in found.out
    for words, part in (
        ((), "takes one folder"),
        ((folder, "nea=false"), "did you mean 'near'"),
        (("/none",), "no folder"),
    ):
        refused = golf_command("data", "inspect", *words)
        assert (refused.code, part in refused.err) == (1 if part == "no folder" else 2, True)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["tokenizer=sp1025"], "choices: byte260"),
        (["data=text", "tokenizer=byte260"], "data.paths must be given"),
        (["tokenizer=byte260", "tokenizer.vocab_size=300"], "tokenizer.vocab_size=300"),
        (["tokenizer.vocab_siz=300"], "did you mean 'tokenizer.vocab_size'"),
        (["tokenizer.vocab_size=many"], "tokenizer.vocab_size=many: expected int"),
        (["--cfg", "job"], "--cfg"),
        (["source=docs", "tokenizer.vocab_size=200"], "data.docs must be given"),
        (["tokenizer.vocab_size=200"], "from 261 (260 special and byte pieces)"),
    ],
)
def test_a_mistake_on_the_line(golf_command: Any, words: list[str], part: str) -> None:
    done = golf_command("data", *words)
    assert done.code == 2
    assert part in done.err


def test_encodings_and_separators_are_words_on_the_line(golf_command: Any, tmp_path: Path) -> None:
    for name, encoding in (("a", "cp1252"), ("b", "utf-8")):
        (tmp_path / f"{name}.txt").write_text("<|endoftext|>\n".join(f"déjà {i} {name}\n" for i in range(50)), encoding)
    words = ("data", "data=text", f"data.paths=[{tmp_path}]", "tokenizer=byte260", "data.val_docs=20")
    refused = golf_command(*words)
    assert refused.code == 1
    assert "[utf-8,cp1252]" in refused.err
    done = golf_command(*words, "data.encoding=[utf-8,cp1252]", 'data.separator="<|endoftext|>"')
    assert done.code == 0, done.err
    assert row(done.out, "train documents") == ["80"]
    assert "documents that were not UTF-8: 50 in cp1252" in done.out.splitlines()[-1]


def test_missing_data_is_told(golf_command: Any, tmp_path: Path) -> None:
    done = golf_command("data", "data=text", f"data.paths=[{tmp_path / 'none.txt'}]", "tokenizer=byte260")
    assert done.code == 1
    assert "none.txt" in done.err
