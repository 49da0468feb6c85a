"""A user's own yaml files: what of them is refused, before Hydra would pass over it or stumble, and in which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from golf.common.errors import ConfigError
from golf.launch.compose.configs import Checker, compose_job, composer, resolved, told_where
from golf.launch.compose.line import CommandLine
from golf.launch.compose.options import groups

HEADER = "# @package _global_\n"
GOOD = HEADER + "defaults: [quickstart]\nmodel: {num_layers: 2}\n"


def composed(tmp_path: Path, files: dict[str, str | bytes], *words: str) -> dict[str, object]:
    """The config that a line comes to with these files in its --config-dir."""
    for name, content in files.items():
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    line = CommandLine.parse(["--config-dir", str(tmp_path / "mine"), *words])
    with told_where(line), composer(line.config_dirs):
        line = Checker(line).complete()
        return resolved(compose_job(line.overrides, line.config_dirs))


RECIPES: dict[str, tuple[str | bytes, str]] = {
    "a byte order mark": ("\ufeff" + GOOD, "byte order mark"),
    "no header": ("seed: 3\n", "first line must be '# @package _global_'"),
    "a header below a comment": ("# mine\n" + GOOD, "first line must be '# @package _global_'"),
    "Latin-1": (HEADER.encode() + b"# caf\xe9\nseed: 3\n", "line 2 is not UTF-8"),
    "UTF-16": (GOOD.encode("utf-16"), "UTF-16"),
    "UTF-16 without a mark": (GOOD.encode("utf-16-le"), "UTF-16"),
    "a tab": (HEADER + "model:\n\tnum_layers: 2\n", "line 3: a tab"),
    "a key twice": (HEADER + "seed: 1\nmodel: {}\nseed: 2\n", "line 4: the key 'seed' stands twice"),
    "an empty file": ("", "is empty"),
    "a header alone": (HEADER, "is empty"),
    "a list": (HEADER + "- seed\n", "this is a list"),
    "a text": (HEADER + "quickstart\n", "this is a single value"),
    "an open bracket": (HEADER + "seed: [1\n", "line 3"),
    "two documents": (HEADER + "seed: 1\n---\nseed: 2\n", "another document"),
    "an object of Python's": (HEADER + "seed: !!python/name:os.system\n", "tag"),
    "a mapping as a key": (HEADER + "? {a: 1}\n: 2\n", "a key must be a name"),
    "a node that holds itself": (HEADER + "model: &a {x: *a}\n", "holds itself"),
    "defaults that are no list": (HEADER + "defaults: quickstart\n", "defaults: [quickstart]"),
    "defaults in a list": (HEADER + "defaults: [[quickstart]]\n", "an entry is an option"),
    "defaults that lead back": (HEADER + "defaults: [x]\n", "back to itself"),
    "an override without a slash": (HEADER + "defaults: [{override optimizer: muon}]\n", "'override /optimizer: muon'"),
    "a group without override": (HEADER + "defaults: [{/optimizer: muon}]\n", "'override /optimizer: muon'"),
    "an option that is a switch": (HEADER + "defaults: [{override /callbacks/gradient_norms: on}]\n", "quotes, 'on'"),
    "a value that the budget sets": (HEADER + "budget: {fraction: 0.5}\n", "sets budget.fraction"),
    "a value that the sweep sets": (HEADER + "sweep: {max_jobs: 3}\n", "sets sweep.max_jobs"),
    "an unknown key": (HEADER + "sead: 3\n", "there is no such key (did you mean 'seed'?)"),
    "an unknown group": (HEADER + "optimiser: {matrix_lr: 1}\n", "did you mean 'optimizer'"),
    "a key of a group": (HEADER + "matrix_lr: 1\n", "did you mean optimizer.matrix_lr"),
    "an unknown technique": (HEADER + "technique: {smear_gat: {width: 3}}\n", "did you mean 'smear_gate'"),
    "a technique that is off": (HEADER + "technique: {xsa: {layers: all}}\n", "technique/xsa is none"),
    "a key that golf adds": (HEADER + "choices: {recipe: x}\n", "choices: there is no such key"),
    "a key that golf fills in": (HEADER + "code_paths: [mine]\n", "--config-dir"),
    "a name for a component": (HEADER + "optimizer: muon\n", "optimizer=muon: a component is needed"),
    "a name for a technique": (HEADER + "technique: {smear_gate: v1}\n", "override /technique/smear_gate: v1"),
    "a name for all techniques": (HEADER + "technique: xsa\n", "it holds techniques by name"),
    "null for a component": (HEADER + "runtime: null\n", "runtime=null: a component is needed"),
    "a list for a component": (HEADER + "data: [text]\n", "data is a list"),
    "a number for a component": (HEADER + "logger: 3\n", "logger=3: a component is needed"),
    "null for Hydra": (HEADER + "hydra: {sweeper: null}\n", "hydra"),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_that_would_be_ignored_or_break_is_refused(recipe: str, tmp_path: Path) -> None:
    content, told = RECIPES[recipe]
    with pytest.raises(ConfigError) as caught:
        composed(tmp_path, {"recipe/x.yaml": content}, "recipe=x")
    message = str(caught.value)
    assert told in message
    assert "mine/recipe/x.yaml" in message
    assert len(message.splitlines()) <= 3


def test_a_base_of_the_recipe_is_looked_at_too(tmp_path: Path) -> None:
    files = {"recipe/x.yaml": HEADER + "defaults: [base]\n", "recipe/base.yaml": HEADER + "sead: 3\n"}
    with pytest.raises(ConfigError, match=r"sead: there is no such key.*\n.*mine/recipe/base\.yaml"):
        composed(tmp_path, files, "recipe=x")


def test_a_file_that_is_not_chosen_may_be_broken(tmp_path: Path) -> None:
    config = composed(tmp_path, {"recipe/x.yaml": GOOD, "recipe/draft.yaml": "\tno yaml: ["}, "recipe=x")
    assert config["model"]["num_layers"] == 2  # type: ignore[index]


PASSED_OVER = {
    "another ending": ("recipe/y.yml", GOOD, "options end in .yaml"),
    "an ending in capitals": ("technique/mine/v1.YAML", "layers: all\n", "options end in .yaml"),
    "a mistyped group": ("optimiser/x.yaml", "lr: 1\n", "did you mean 'optimizer'"),
    "a group in the plural": ("recipes/x.yaml", GOOD, "did you mean 'recipe'"),
    "a mistyped slot": ("model/attentions/x.yaml", "a: 1\n", "did you mean 'model/attention'"),
    "a technique's folder in the plural": ("techniques/m/v1.yaml", "a: 1\n", "did you mean 'technique/m'"),
    "a technique without a folder": ("technique/v1.yaml", "a: 1\n", "technique/NAME/v1.yaml"),
    "the name of golf's own option": ("technique/xsa/all.yaml", "layers: last:1\n", "golf has a file of this name"),
    "the name of golf's own recipe": ("recipe/quickstart.yaml", GOOD, "golf has a file of this name"),
    "the name of what is off": ("technique/mine/none.yaml", "layers: all\n", "turns technique/mine off"),
    "the name of golf's own slot": ("model/mlp/relu2.yaml", "_target_: mine.MLP\n", "golf has a file of this name"),
    "the name of the whole": ("train.yaml", "seed: 3\n", "golf has a file of this name"),
    "settings of a machine without a header": ("local/default.yaml", "seed: 3\n", "first line"),
}


@pytest.mark.parametrize("file", PASSED_OVER)
def test_a_file_that_hydra_would_pass_over_is_refused(file: str, tmp_path: Path) -> None:
    name, content, told = PASSED_OVER[file]
    with pytest.raises(ConfigError) as caught:
        composed(tmp_path, {name: content, "recipe/x.yaml": GOOD})
    assert told in str(caught.value)
    assert f"mine/{name}" in str(caught.value)


def test_an_option_of_several_folders_is_found_and_of_one_name_refused(tmp_path: Path) -> None:
    for name, content in {"a/recipe/x.yaml": GOOD, "b/local/default.yaml": HEADER + "seed: 7\n"}.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(content)
    words = [word for name in "ab" for word in ("--config-dir", str(tmp_path / name))]
    line = CommandLine.parse([*words, "recipe=x", *words[:2]])
    with composer(line.config_dirs):
        found = resolved(compose_job(Checker(line).complete().overrides, line.config_dirs))
        assert (found["model"]["num_layers"], found["seed"]) == (2, 7)
        (tmp_path / "b" / "recipe").mkdir()
        (tmp_path / "b" / "recipe" / "x.yaml").write_text(GOOD + "seed: 3\n")
        with pytest.raises(ConfigError, match=f"b/recipe/x.yaml: {tmp_path}/a has a file of this name"):
            Checker(line).complete()


def test_an_option_of_golfs_name_that_a_recipe_of_a_project_chooses_is_refused(tmp_path: Path) -> None:
    files = {
        "recipe/x.yaml": HEADER + "defaults: [quickstart, {override /model/mlp: relu2}]\n",
        "model/mlp/relu2.yaml": "mult: 3\n", "pyproject.toml": "",
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"mine/model/mlp/relu2\.yaml: golf has a file of this name"):
        composed(tmp_path, files, "recipe=x")  # type: ignore[arg-type]


def test_a_copy_of_golfs_own_file_does_no_harm(tmp_path: Path) -> None:
    from golf.common.paths import conf_dir

    composed(tmp_path, {"optimizer/muon.yaml": (conf_dir() / "optimizer" / "muon.yaml").read_bytes()})


def test_a_missing_option_is_looked_for_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mine/x\.yaml does not lie in mine/recipe/"):
        composed(tmp_path, {"x.yaml": GOOD, "recipe/y.yaml": GOOD}, "recipe=x")


def test_a_folder_of_options_is_not_a_config_dir(tmp_path: Path) -> None:
    composed(tmp_path, {"recipe/x.yaml": GOOD}, "recipe=x")
    line = CommandLine.parse(["--config-dir", str(tmp_path / "mine" / "recipe")])
    with composer(line.config_dirs), pytest.raises(ConfigError, match="the folder above it"):
        Checker(line).complete()


OPTIONS = {
    "no component": ("optimizer/x.yaml", "matrix_lr: 1\n", "optimizer=x", "holds no component"),
    "an empty technique": ("technique/mine/v1.yaml", "", "technique/mine=v1", "is empty"),
    "a technique without a class": ("technique/mine/v1.yaml", "layers: all\n", "technique/mine=v1", "_target_"),
    "another package": ("optimizer/x.yaml", "# @package other\nmatrix_lr: 1\n", "optimizer=x", "other: there is no"),
    "the whole as its package": ("optimizer/x.yaml", HEADER + "matrix_lr: 1\n", "optimizer=x", "optimizer.matrix_lr"),
    "another group's class": (
        "optimizer/x.yaml", HEADER + "schedule: {_target_: mine.Mine}\n", "optimizer=x", "sets schedule._target_",
    ),
    "another group as its package": (
        "model/mlp/x.yaml", "# @package schedule\n_target_: mine.Mine\n", "model/mlp=x", "sets schedule._target_",
    ),
    "a value of a group after its own": (
        "model/mlp/x.yaml", HEADER + "schedule: {iterations: 5}\n", "model/mlp=x", "sets schedule.iterations, which",
    ),
}  # fmt: skip


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_whose_values_reach_nothing_is_refused(option: str, tmp_path: Path) -> None:
    name, content, word, told = OPTIONS[option]
    with pytest.raises(ConfigError, match=told):
        composed(tmp_path, {name: content}, word)


@pytest.mark.parametrize("name", ["my recipe", "ünï", "a (1)", "1", "1e3", "true", "null", "it's"])
def test_an_option_may_have_any_name(name: str, tmp_path: Path) -> None:
    config = composed(tmp_path, {f"recipe/{name}.yaml": GOOD}, f"recipe={name}")
    assert config["model"]["num_layers"] == 2  # type: ignore[index]


def test_a_group_of_the_users_own_may_be_added(tmp_path: Path) -> None:
    config = composed(tmp_path, {"sizes/small.yaml": HEADER + "model: {num_layers: 1}\n"}, "+sizes=small")
    assert config["model"]["num_layers"] == 1  # type: ignore[index]


def test_a_technique_is_turned_off_with_what_the_recipe_sets_of_it(tmp_path: Path) -> None:
    recipe = HEADER + "defaults: [quickstart, {override /technique/xsa: last4}]\ntechnique: {xsa: {layers: 'last:2'}}\n"
    on = composed(tmp_path, {"recipe/x.yaml": recipe}, "recipe=x")
    off = composed(tmp_path, {"recipe/x.yaml": recipe}, "recipe=x", "technique/xsa=none")
    assert on["technique"]["xsa"]["layers"] == "last:2"  # type: ignore[index]
    assert off["technique"]["xsa"] == {}  # type: ignore[index]


def test_settings_of_a_machine_may_hold_a_budget(tmp_path: Path) -> None:
    config = composed(tmp_path, {"local/default.yaml": HEADER + "budget: {fraction: 0.5}\n"})
    assert config["budget"]["fraction"] == 0.5  # type: ignore[index]


PROJECT: dict[str, str | bytes] = {
    "technique/idea/v1.yaml": "_target_: golf.nn.techniques.xsa.XSA\n", "recipe/x.yaml": GOOD, "pyproject.toml": "",
    "data/dataset.yml": "a: 1\n", "models/notes.yaml": "a: 1\n", "models/llama/x.yaml": "a: 1\n",
    "train.yaml": "a: 1\n",
    "multirun/2/config.yaml": "a: 1\n", "venv/pyvenv.cfg": "", "venv/recipes/x.yaml": GOOD,
    ".idea/recipes/x.yaml": GOOD,
    "again/config.yaml": "", "again/overrides.yaml": "", "outputs/techniques/m/v1.yaml": "a: 1\n",
}  # fmt: skip


@pytest.mark.parametrize("mark", ["a project's file", "the working folder"])
def test_a_project_may_hold_yaml_files_of_other_purposes(
    mark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = dict(PROJECT)
    if mark == "the working folder":
        del files["pyproject.toml"]
        (tmp_path / "mine").mkdir()
        monkeypatch.chdir(tmp_path / "mine")
    config = composed(tmp_path, files, "recipe=x", "data=pystdlib")
    assert config["model"]["num_layers"] == 2  # type: ignore[index]


IN_A_PROJECT = {
    "a misspelled group's recipe": ("recipes/y.yaml", GOOD, "", "did you mean 'recipe'"),
    "a misspelled group's component": ("optimiser/y.yaml", "_target_: mine.Mine\n", "", "did you mean 'optimizer'"),
    "a recipe of another ending": ("recipe/y.yml", GOOD, "", "options end in .yaml"),
    "a technique of another ending": ("technique/mine/v1.yml", "a: 1\n", "", "options end in .yaml"),
    "a file that the line names": ("data/mine.yml", "a: 1\n", "data=mine", "options end in .yaml"),
    "golf's own that the line names": ("data/text.yaml", "a: 1\n", "data=text", "golf has a file of this name"),
}


@pytest.mark.parametrize("file", IN_A_PROJECT)
def test_what_is_golfs_in_a_project_is_refused_as_elsewhere(file: str, tmp_path: Path) -> None:
    name, content, word, told = IN_A_PROJECT[file]
    with pytest.raises(ConfigError) as caught:
        composed(tmp_path, {**PROJECT, name: content}, *([word] if word else []))
    assert told in str(caught.value)
    assert f"mine/{name}" in str(caught.value)


def test_groups_are_not_looked_for_in_runs_and_environments(tmp_path: Path) -> None:
    composed(tmp_path, PROJECT)
    own = set(groups([tmp_path / "mine"])) - set(groups())
    assert own == {"technique/idea", "models", "models/llama"}


@pytest.mark.parametrize("place", ["technique", "technique/idea"])
def test_a_linked_folder_of_options_is_followed(place: str, tmp_path: Path) -> None:
    composed(tmp_path, {"recipe/x.yaml": GOOD})
    (aside := tmp_path / "aside" / "technique" / "idea").mkdir(parents=True)
    (aside / "v1.yaml").write_text("_target_: golf.nn.techniques.xsa.XSA\nlayers: all\n")
    (link := tmp_path / "mine" / place).parent.mkdir(exist_ok=True)
    link.symlink_to(tmp_path / "aside" / place)
    assert "technique/idea" in groups([tmp_path / "mine"])
    config = composed(tmp_path, {}, "technique/idea=v1")
    assert config["technique"]["idea"]["layers"] == "all"  # type: ignore[index]
