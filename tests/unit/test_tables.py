"""Tables for a width: what goes first, what never goes, and that no figure, swept value or path is cut."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from golf.common.errors import ConfigError
from golf.runs.tables import Column, Table, print_table, shortened

PATH = "/data/" + "a_long_folder/" * 12 + "text.jsonl"
WIDTHS = (40, 60, 80, 100, 120, 200)


def table(rows: int = 3, swept: int = 2, name: str = "19-11-18_quickstart_56ca") -> Table:
    """Runs with `swept` settings; figures of all importances."""
    made = Table(
        Column("run", right=False, shorten=True),
        Column("state", right=False),
        *(Column(f"group{n}.setting_{n}", shorten=True) for n in range(swept)),
        Column("val_bpb.sliding"),
        Column("bytes.artifact", drop=1),
        Column("train_time_s", drop=2),
        Column("steps", drop=3),
    )
    for n in range(rows):
        made.add_row(f"{name}/{n}", "completed", *(f"{n}.{k}e-05" for k in range(swept)), f"1.{n}234", "9,914,911",
                     "600.1", "13,800")  # fmt: skip
    return made


def drawn(made: Table, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(made, crop=False)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("swept", [0, 2, 5, 12])
@pytest.mark.parametrize("name", ["19-11-18_quickstart_56ca", "实验一号" * 6, "é" * 30])
@pytest.mark.parametrize("width", WIDTHS)
def test_no_line_is_too_wide_and_scores_and_swept_values_are_whole(width: int, name: str, swept: int) -> None:
    text = drawn(table(swept=swept, name=name), width)
    assert max(map(cell_len, text.splitlines())) <= width
    for row in range(3):
        for value in (f"1.{row}234", "completed", *(f"{row}.{k}e-05" for k in range(swept))):
            assert f" {value}" in text


@pytest.mark.parametrize("width", WIDTHS)
def test_columns_go_by_importance_and_are_named_below(width: int) -> None:
    layout = table().layout(width)
    order = ["bytes.artifact", "train_time_s", "steps"]
    assert layout.left_out == order[len(order) - len(layout.left_out) :]
    told = [line for line in drawn(table(), width).splitlines() if line.startswith("left out")]
    assert bool(told) == bool(layout.left_out)
    assert all(name in drawn(table(), width) for name in layout.left_out)


def test_wider_tables_leave_out_no_more() -> None:
    left = [len(table().layout(width).left_out) for width in range(40, 200)]
    assert left == sorted(left, reverse=True)
    assert left[-1] == 0


def test_names_are_shortened_only_when_nothing_else_can_go() -> None:
    for width in range(40, 200):
        layout = table().layout(width)
        texts = [text for block in layout.blocks for one in block for text in one.texts]
        if any("…" in text for text in texts):
            assert len(layout.left_out) == 3


def test_shortened_names_stay_distinct_and_keep_their_end() -> None:
    made = Table(Column("run", shorten=True, right=False), Column("bpb"))
    names = [f"{n}/the_same_name_everywhere_and_long/{n}" for n in range(30)]
    for name in names:
        made.add_row(name, "1.2345")
    (block,) = made.layout(30).blocks
    assert len(set(block[0].texts)) == 30
    assert all(text.endswith(name.rsplit("/")[-1]) for text, name in zip(block[0].texts, names))


@pytest.mark.parametrize("text", ["plain" * 9, "模型大小" * 9, "a模" * 20, "🙂" * 20])
@pytest.mark.parametrize("width", [12, 13, 20])
def test_a_shortened_text_fits_by_cells(text: str, width: int) -> None:
    assert width - 2 <= cell_len(shortened(text, width)) <= width


@pytest.mark.parametrize("width", WIDTHS)
def test_headers_are_folded_between_their_parts_alone(width: int) -> None:
    heads = [line for block in table().layout(width).blocks for one in block for line in one.header.split("\n")]
    whole = {part for one in table().columns for part in (one.header, *one.header.split("."))}
    assert {head.removesuffix(".") for head in heads} <= whole


@pytest.mark.parametrize("width", WIDTHS)
def test_notes_and_words_of_sentences_are_never_folded(width: int) -> None:
    made = Table(Column("what", right=False), Column("", right=False, prose=True), header=False)
    made.add_row("folder", f"kept in {PATH} as it was found")
    made.notes.append(f"job 3 failed: {PATH} is missing")
    assert drawn(made, width).count(PATH) == 2


def test_sentences_are_folded_between_words() -> None:
    made = Table(Column("run"), Column("why", right=False, prose=True))
    made.add_row("3", "the artifact is 17,123,456 bytes, 1,123,456 over the limit of 16,000,000; no more is known")
    text = drawn(made, 60)
    assert max(map(len, text.splitlines())) <= 60
    assert " ".join(text.split()[-18:]).endswith("over the limit of 16,000,000; no more is known")


def test_chosen_columns_stand_in_their_order_and_none_is_left_out() -> None:
    made = table()
    made.choose("steps, setting_1,val_bpb")
    assert [column.name for column in made.columns] == ["steps", "group1.setting_1", "val_bpb.sliding"]
    assert made.layout(30).left_out == []


@pytest.mark.parametrize("width", WIDTHS)
def test_all_columns_are_shown_in_as_many_blocks_as_it_takes(width: int) -> None:
    made = table()
    made.choose("all")
    text = drawn(made, width)
    assert max(map(cell_len, text.splitlines())) <= width
    assert "13,800" in text
    assert "left out" not in text


def test_an_unknown_column_names_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"stps is no column here .did you mean 'steps'.*\nchoose from run, state"):
        table().choose("run,stps")


def test_a_pipe_gets_the_full_width_and_columns_is_obeyed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # makes rich take a pipe for a terminal of 80
    monkeypatch.delenv("COLUMNS", raising=False)
    print_table(table(swept=12))
    wide = capsys.readouterr().out
    assert "13,800" in wide
    assert "left out" not in wide
    monkeypatch.setenv("COLUMNS", "70")
    print_table(table())
    assert "left out" in capsys.readouterr().out


def test_cells_are_no_markup() -> None:
    made = Table(Column("[bold]run"), title="[red]", caption=":smile:")
    made.add_row("[/]:x: [1]")
    text = drawn(made, 80)
    assert all(part in text for part in ("[bold]run", "[red]", ":smile:", "[/]:x: [1]"))
