"""A user's own code: what is found, what goes with a run, and how its errors are told."""

from __future__ import annotations

import importlib.util
import json
import os
import py_compile
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from golf.common.errors import ConfigError
from golf.common.process import python_command, settle
from golf.launch.compose import annotations, own_modules
from golf.launch.compose.own_code import CodeError, keep_code, naming, refuse_doubles
from golf.launch.compose.own_modules import load, use_code
from golf.launch.sweep import slurm_job
from golf.launch.work.jobs import check_code, named_data

Folder = Callable[..., Path]
UNCHECKED = py_compile.PycInvalidationMode.UNCHECKED_HASH


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    """Makes a folder of files, by relative path and text."""

    def make(name: str = "mine", **files: str | bytes) -> Path:
        for path, content in files.items():
            file = tmp_path / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
        (tmp_path / name).mkdir(exist_ok=True)
        return tmp_path / name

    yield make
    use_code([])


@pytest.mark.parametrize("name", ["random", "queue", "golf", "typing_extensions", "yaml"])
def test_a_file_named_like_a_librarys_stands_for_nothing_and_is_named_where_it_was_meant(
    folder: Folder, name: str
) -> None:
    mine = folder(**{f"{name}.py": "class Idea: ...\n"})
    use_code([str(mine)])
    found = importlib.util.find_spec(name)
    assert found is not None
    assert not str(found.origin).startswith(str(mine))
    with pytest.raises(ConfigError, match="rename it") as caught:
        annotations.locate(f"{name}.Idea", "technique.idea")
    assert str(mine / f"{name}.py") in str(caught.value)


def test_a_helper_named_like_a_librarys_is_named_too(folder: Folder) -> None:
    mine = folder(**{"statistics.py": "def half(x): ...\n", "idea.py": "from statistics import half\n"})
    use_code([str(mine)])
    with pytest.raises(ConfigError, match="rename it"):
        annotations.locate("idea.Idea", "technique.idea")


@pytest.mark.parametrize("module", ["idea_a", "package_a.idea", "plain_a.idea"])
def test_the_runs_copy_goes_before_the_users_pythonpath(
    folder: Folder, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = folder(**{f"{module.replace('.', '/')}.py": "", "package_a/__init__.py": ""})
    keep_code([mine], copy := mine.parent / "code")
    monkeypatch.setenv("PYTHONPATH", str(mine))
    monkeypatch.syspath_prepend(str(mine))
    use_code([str(copy)])
    assert Path(str(load(module).__file__)).is_relative_to(copy)


def test_pythonpath_is_honoured_and_a_name_in_both_is_refused(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = folder("theirs", **{"helper_a.py": "class Idea: ...", "notes_a.py": ""})
    mine = folder(**{"helper_a.py": "class Idea: ...", "notes_a/table.txt": ""})
    monkeypatch.syspath_prepend(str(theirs))
    use_code([str(mine)])
    assert Path(str(load("notes_a").__file__)).is_relative_to(theirs)
    with pytest.raises(ConfigError, match="rename it"):
        annotations.locate("helper_a.Idea", "technique.idea")


@pytest.mark.parametrize(
    "text", ["import helper_e", "from helper_e import f", "def forward():\n    import helper_e.inner as h"]
)
def test_a_helper_that_pythonpath_stands_in_for_is_named_before_the_run(
    folder: Folder, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(folder("theirs", **{"helper_e.py": "def f(): ..."})))
    mine = folder(**{"helper_e.py": "def f(): ...", "idea_e.py": text, "torch.py": "", "unused.py": "import torch"})
    use_code([str(mine)])
    load("idea_e")
    with pytest.raises(ConfigError, match=r"theirs/helper_e.py: rename it") as caught:
        check_code({}, [mine])
    assert str(caught.value).startswith(str(mine / "helper_e.py"))


@pytest.mark.parametrize("text", ["from . import helper_f", "import helper_g", "import json", "import golf"])
def test_a_helper_of_ones_own_is_taken_wherever_else_its_folder_is_named(
    folder: Folder, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = folder("theirs", **{"helper_f.py": ""})
    mine = folder(
        **{"idea_f/__init__.py": text, "idea_f/helper_f.py": "", "helper_f.py": "", "helper_g.py": "", "golf.py": ""}
    )
    for place in (theirs, mine):
        monkeypatch.syspath_prepend(str(place))
    use_code([str(mine)])
    load("idea_f")
    check_code({}, [mine])


def test_an_environment_within_the_folder_stands_in_for_a_helper_and_is_not_read_itself(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = {"venv/pyvenv.cfg": "", "venv/lib/helper_h.py": "import queue", "venv/lib/other_h.py": "import queue"}
    mine = folder(**installed, **{"queue.py": "", "idea_h.py": "import other_h", "late_h.py": "import helper_h"})
    monkeypatch.syspath_prepend(str(mine / "venv" / "lib"))
    use_code([str(mine)])
    load("idea_h")
    check_code({}, [mine])
    (mine / "helper_h.py").touch()
    load("late_h")
    with pytest.raises(ConfigError, match=r"mine/helper_h.py has the name of another module"):
        check_code({}, [mine])


def test_another_folders_module_of_the_same_name_is_another(folder: Folder) -> None:
    one, two = folder("one", **{"idea_b.py": "NUMBER = 1"}), folder("two", **{"idea_b.py": "NUMBER = 2"})
    for number, place in enumerate((one, two), start=1):
        use_code([str(place)])
        assert annotations.locate("idea_b.NUMBER", "technique.idea") == number
    use_code([])
    assert str(two) not in sys.path
    with pytest.raises(ConfigError, match="cannot be imported"):
        annotations.locate("idea_b.NUMBER", "technique.idea")


def test_a_users_module_stands_for_a_name_in_their_own_files_alone(folder: Folder) -> None:
    idea = "import absent_i\nfrom deep_i.inner import absent_i as y\n"
    inner = "import absent_i\nimport deep_i.inner\n"
    mine = folder(**{"absent_i.py": "x = 1\n", "idea_i.py": idea, "deep_i/__init__.py": "", "deep_i/inner.py": inner})
    before = list(sys.path)
    use_code([str(mine)])
    assert load("idea_i").absent_i is load("idea_i").y is load("absent_i")
    assert importlib.util.find_spec("absent_i") is None
    assert "absent_i" not in sys.modules
    assert sys.path == before


def test_bytecode_beside_a_users_file_is_nobodys(folder: Folder) -> None:
    mine = folder(**{"idea_j.py": "x = 1\n", "other_j.py": "x = 2\n"})
    source, planted = (Path(importlib.util.cache_from_source(str(mine / name))) for name in ("idea_j.py", "other_j.py"))
    py_compile.compile(str(mine / "other_j.py"), cfile=str(source), invalidation_mode=UNCHECKED)
    use_code([str(mine)])
    assert load("idea_j").x == 1
    assert load("other_j").x == 2
    assert not planted.exists()


MINE = {
    "idea_c.py": "", "table.txt": "1 2 3", "weights/deep/table.npz": b"\0" * 100, "technique/idea/v1.yaml": "a: 1",
    "other/helper.py": "", "other/unused.bin": b"\0", "README.md": "read me", ".git/config": "x", "venv/pyvenv.cfg": "",
    "venv/lib/x.py": "", "outputs/r/config.yaml": "", "run/config.yaml": "", "run/overrides.yaml": "",
    "run/code/idea.py": "", "__pycache__/idea_c.pyc": "", "corpus/a.jsonl": "{}",
}  # fmt: skip


def copied(mine: Path, target: Path, *named: Path) -> set[str]:
    use_code([str(mine)])
    load("idea_c")
    keep_code([mine], target, named)
    return {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}


def test_a_run_keeps_the_python_the_options_and_the_data_beside_what_it_uses(folder: Folder, tmp_path: Path) -> None:
    mine = folder(**MINE)
    kept = copied(mine, tmp_path / "r" / "code", mine / "corpus")
    assert kept == {
        "idea_c.py", "other/helper.py", "table.txt", "weights/deep/table.npz", "other/unused.bin",
        "technique/idea/v1.yaml",
    }  # fmt: skip
    assert json.loads((tmp_path / "r" / "code.json").read_text()) == {"copied_from": str(mine)}


@pytest.mark.parametrize(
    ("named", "left"),
    [("*.txt", {"small.txt"}), ("**/*.jsonl", {"corpus/a.jsonl"}), ("corpus", {"corpus/a.jsonl"}), ("[ab].npz", set())],
)
def test_data_beside_code_is_what_no_pattern_of_the_config_names(
    folder: Folder, named: str, left: set[str], tmp_path: Path
) -> None:
    data: dict[str, str | bytes] = {"table.npz": "", "small.txt": "", "corpus/a.jsonl": ""}
    mine = folder(**{"idea_c.py": "", **data})
    kept = copied(mine, tmp_path / "code", *named_data({"data": {"paths": [str(mine / named)]}}))
    assert kept == {"idea_c.py", *data} - left


def test_of_two_folders_a_module_of_one_name_is_refused_once_it_is_used(folder: Folder, tmp_path: Path) -> None:
    first, second = (folder(name, **{"tool.py": f"x = '{name}'", "setup.py": f"y = '{name}'"}) for name in "ab")
    use_code([str(first), str(second)])
    refuse_doubles([first, second])
    load("tool")
    with pytest.raises(ConfigError, match=r"b/tool\.py: has the name of .*a/tool\.py"):
        refuse_doubles([first, second])


def test_a_link_to_a_folder_that_goes_along_goes_along_too(folder: Folder, tmp_path: Path) -> None:
    mine = folder(**{"idea_c.py": "", "deep/table.txt": ""})
    (mine / "weights").mkdir()
    (mine / "weights" / "best").symlink_to(mine / "deep")
    assert copied(mine, tmp_path / "code") == {"idea_c.py", "deep/table.txt", "weights/best/table.txt"}


def test_data_beside_code_that_no_run_uses_stays(folder: Folder, tmp_path: Path) -> None:
    mine = folder(**{"ideas/idea_c.py": "", "idea_c.py": "", "huge/corpus.bin": b"\0" * 17_000_000})
    use_code([str(mine)])
    load("ideas.idea_c")
    keep_code([mine], tmp_path / "code")
    assert not (tmp_path / "code" / "huge").exists()


def test_more_data_than_an_artifact_holds_is_refused_by_name(folder: Folder, tmp_path: Path) -> None:
    mine = folder(**{"idea_c.py": "", "table.npz": b"\0" * 16_000_001, "small.txt": "1"})
    with pytest.raises(ConfigError, match=r"table.npz: 16,000,001 bytes beside your techniques"):
        copied(mine, tmp_path / "code")
    assert not (tmp_path / "code").exists()


def test_a_link_that_leads_back_ends(folder: Folder, tmp_path: Path) -> None:
    mine = folder(**{"idea_c.py": "", "table.txt": ""})
    (mine / "again").symlink_to(mine)
    assert copied(mine, tmp_path / "code") == {"idea_c.py", "table.txt"}


RAISES = {"idea_d.py": "def forward():\n    1 / 0\n\n\ndef read():\n    open(__file__ + '.txt')\n"}


@pytest.fixture
def run_of(folder: Folder, tmp_path: Path) -> Path:
    """A run's code folder, in use; it was copied from `mine`."""
    keep_code([folder(**RAISES)], tmp_path / "r" / "code")
    use_code([str(tmp_path / "r" / "code")])
    return tmp_path / "r" / "code"


def test_an_error_names_the_users_own_file_and_line(run_of: Path, tmp_path: Path) -> None:
    with pytest.raises(CodeError) as caught, naming([str(run_of)]):
        load("idea_d").forward()
    assert str(caught.value) == f"{tmp_path}/mine/idea_d.py, line 2: ZeroDivisionError: division by zero"


def test_an_error_names_the_copy_where_the_users_file_has_changed(run_of: Path, tmp_path: Path) -> None:
    (tmp_path / "mine" / "idea_d.py").write_text("# begun anew\n")
    with pytest.raises(CodeError, match=str(run_of / "idea_d.py")), naming([str(run_of)]):
        load("idea_d").forward()


def test_files_in_an_errors_text_are_the_users_own_too(run_of: Path, tmp_path: Path) -> None:
    with pytest.raises(CodeError) as caught, naming([str(run_of)]):
        load("idea_d").read()
    assert f"directory: '{tmp_path}/mine/idea_d.py.txt'" in str(caught.value)


def test_a_file_that_did_not_come_along_is_told_so(run_of: Path, tmp_path: Path) -> None:
    (tmp_path / "mine" / "idea_d.py.txt").touch()
    with pytest.raises(CodeError, match=rf"{tmp_path}/mine/idea_d.py.txt is none of the files"), naming([str(run_of)]):
        load("idea_d").read()


def test_an_error_that_a_compiler_tells_in_its_text_is_found(run_of: Path, tmp_path: Path) -> None:
    with pytest.raises(CodeError, match=f"{tmp_path}/mine/idea_d.py, line 6: RuntimeError"), naming([str(run_of)]):
        raise RuntimeError(f'failed\nfrom user code:\n  File "{run_of}/idea_d.py", line 6, in read\n')


def test_an_error_of_golfs_that_their_code_caused_says_where(run_of: Path, tmp_path: Path) -> None:
    def build_it() -> None:
        try:
            load("idea_d").forward()
        except ZeroDivisionError as error:
            raise ConfigError("technique.idea: cannot be") from error

    with pytest.raises(ConfigError) as caught, naming([str(run_of)]):
        build_it()
    assert str(caught.value) == f"technique.idea: cannot be ({tmp_path}/mine/idea_d.py, line 2)"


def test_errors_that_are_not_theirs_stay_as_they_are(run_of: Path) -> None:
    with pytest.raises(KeyError), naming([str(run_of)]):
        raise KeyError("golf's own")
    with pytest.raises(ConfigError, match=r"^plain$"), naming([str(run_of)]):
        raise ConfigError("plain")


def test_slurms_script_looks_for_a_port_without_the_users_files(folder: Folder) -> None:
    place = folder(**{"socket.py": "raise SystemExit('imported')", "selectors.py": "raise SystemExit('imported')"})
    line = slurm_job.setup_line(sys.executable) + '\necho "$MASTER_PORT $PYTHONSAFEPATH"'
    done = subprocess.run(["bash", "-c", line], cwd=place, capture_output=True, text=True)
    port, safe = done.stdout.split()
    assert (int(port) > 0, safe) == (True, "1")


def test_what_golf_starts_is_told_not_to_look_in_the_working_folder() -> None:
    assert own_modules.library("no_such_module_anywhere") is None
    assert python_command("golf.launch.work.worker", "run=x")[1:] == ["-P", "-m", "golf.launch.work.worker", "run=x"]


@pytest.mark.parametrize(("given", "left"), [(":/x", "/x"), ("/x::/y", "/x:/y"), (".:/x", ".:/x")])
def test_an_empty_place_of_pythonpath_is_no_wish_for_the_working_folder(
    given: str, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", given)
    for name in ("OMP_WAIT_POLICY", "PYTHONSAFEPATH"):
        monkeypatch.setenv(name, "")
    settle()
    assert os.environ["PYTHONPATH"] == left


def test_every_command_settles_the_environment_before_torch_is_loaded(tmp_path: Path) -> None:
    script = (
        "import os, sys, golf.cli.main as main\n"
        "main.main(['sample'])\n"
        "print(os.environ['OMP_WAIT_POLICY'], os.environ['PYTHONSAFEPATH'], 'torch' in sys.modules)"
    )
    environment = {name: os.environ[name] for name in os.environ if name not in ("OMP_WAIT_POLICY", "PYTHONSAFEPATH")}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["PASSIVE", "1", "False"]
