"""Which files and packages a user's own code has besides itself."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from golf.common.errors import ConfigError
from golf.common.reads import Reads, watching
from golf.launch.compose.own_modules import load, use_code
from golf.launch.compose.own_reads import packages, reads_of

CODE = """
import json
import os
import numpy as np

def load(path): return np.load(path)
def describe(path): os.close(os.open(path, os.O_RDONLY))
def write(path):
    with open(path, "w") as file: file.write("{}")
    return json.load(open(path))
def plain(): import colorsys; return open("/proc/self/status").read()
"""


@pytest.fixture
def module(tmp_path: Path) -> object:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "reading_ideas.py").write_text(CODE)
    use_code([str(folder)])
    yield load("reading_ideas")
    use_code([])


def test_the_users_own_reads_are_told_and_nobody_elses(module: object, tmp_path: Path) -> None:
    table, code = tmp_path / "table.npy", tmp_path / "mine"
    np.save(table, np.zeros(2))
    np.save(code / "beside.npy", np.zeros(2))
    with watching(Reads([str(code)])) as reads:
        np.load(table)
        module.load(code / "beside.npy")
        module.plain()
        module.write(tmp_path / "own.json")
        assert reads.found == {}
        for read in (module.load, module.describe):
            for _ in range(2):
                with pytest.raises(ConfigError, match=r"reading_ideas.py, line \d+, reads .*table.npy, which lies"):
                    read(table)
        reads.refuses = False
        module.load(table)
        assert len(reads.violations()) == 1
    module.load(table)  # nobody watches


def test_what_scoring_has_no_use_for_may_read(module: object, tmp_path: Path) -> None:
    np.save(table := tmp_path / "table.npy", np.zeros(2))
    for groups, told in ((["data", "callbacks"], 0), (["data", "eval"], 1)):
        config = {group: {"_target_": "reading_ideas.load"} for group in groups}
        reads = reads_of({**config, "code_paths": [str(tmp_path / "mine")]}, refuses=False)
        with watching(reads):
            module.load(table)
        assert len(reads.found) == told


def test_installed_packages_are_named_with_their_versions(tmp_path: Path) -> None:
    (tmp_path / "importing_ideas.py").write_text("import json, os.path, torch, numpy\ndef late(): import pluggy\n")
    use_code([str(tmp_path)])
    load("importing_ideas")
    assert list(packages([str(tmp_path)])) == ["pluggy"]
    assert packages([os.devnull]) == {}
    use_code([])


def test_a_folder_of_sources_needs_what_its_modules_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    (tmp_path / "importing_more.py").write_text("import torch, pluggy\n")
    use_code([str(tmp_path)])
    load("importing_more")
    monkeypatch.setattr(metadata, "requires", nothing)
    assert list(packages([str(tmp_path)])) == ["pluggy"]
    use_code([])
