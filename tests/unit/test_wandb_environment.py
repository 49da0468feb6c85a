"""Which of wandb's environment variables counts for a run, which does not, and what is said of it."""

from __future__ import annotations

import os
from typing import Any

import pytest

from golf.common.errors import ConfigError
from golf.runs.wandb_environment import as_chosen, choose, group_of, kept_off, new_id

OWN = "each job of a multirun is a wandb run of its own"


def chosen(key: str, environ: dict[str, str], keys: dict[str, Any] | None = None, own: str = "") -> Any:
    return getattr(choose(keys or {}, environ, own), key)


def told(environ: dict[str, str], keys: dict[str, Any] | None = None, own: str = "") -> str:
    return "\n".join(choose(keys or {}, environ, own).told)


FILLED = {
    "project": ("WANDB_PROJECT", "mine"), "entity": ("WANDB_ENTITY", "team"), "group": ("WANDB_RUN_GROUP", "night"),
    "name": ("WANDB_NAME", "first"), "mode": ("WANDB_MODE", "disabled"), "tags": ("WANDB_TAGS", "a"),
}  # fmt: skip


@pytest.mark.parametrize("key", FILLED)
def test_a_variable_fills_what_the_config_leaves_open(key: str) -> None:
    variable, value = FILLED[key]
    assert chosen(key, {variable: value}) in (value, [value])


@pytest.mark.parametrize("key", FILLED)
def test_a_key_goes_before_its_variable_and_says_so(key: str) -> None:
    variable, value = FILLED[key]
    keys = {key: {"tags": ["z"], "mode": "offline"}.get(key, "own")}
    assert chosen(key, {variable: value}, keys) == keys[key]
    assert f"logger.{key}=" in told({variable: value}, keys)
    assert f"counts, not {variable}={value}" in told({variable: value}, keys)


@pytest.mark.parametrize("key", FILLED)
def test_where_both_agree_nothing_is_said(key: str) -> None:
    variable, value = FILLED[key]
    assert told({variable: value}, {key: [value] if key == "tags" else value}) == ""


def test_without_a_word_it_is_golf_offline() -> None:
    none = choose({}, {})
    assert (none.project, none.mode, none.entity, none.run_id, none.told) == ("golf", "offline", None, None, ())


@pytest.mark.parametrize("name", ["WANDB_PROJECT", "WANDB_MODE", "WANDB_SILENT", "WANDB_RUN_ID", "WANDB_DISABLED"])
def test_an_empty_variable_is_as_if_it_were_not_there(name: str) -> None:
    empty = choose({}, {name: " "})
    assert (empty.project, empty.mode, empty.told) == ("golf", "offline", ())
    assert name in empty.hidden, "wandb itself would fail on it"


MODES = {
    "WANDB_MODE=disabled": "disabled", "WANDB_MODE=offline": "offline", "WANDB_MODE=dryrun": "offline",
    "WANDB_MODE=online": "online", "WANDB_MODE=run": "online", "WANDB_MODE=Disabled": "disabled",
    "WANDB_DISABLED=true": "disabled", "WANDB_DISABLED=1": "disabled", "WANDB_DISABLED=false": "offline",
}  # fmt: skip


@pytest.mark.parametrize("word", MODES)
def test_modes(word: str) -> None:
    name, _, value = word.partition("=")
    assert chosen("mode", {name: value}) == MODES[word]
    assert (word in told({name: value})) is (word != "WANDB_DISABLED=false")


def test_disabled_goes_before_the_mode() -> None:
    assert chosen("mode", {"WANDB_MODE": "online", "WANDB_DISABLED": "true"}) == "disabled"


INHERITED = {
    "WANDB_RUN_ID": "abc", "WANDB_RESUME": "must", "WANDB_NAME": "n", "WANDB_SWEEP_ID": "s", "WANDB_LAUNCH": "true",
    "WANDB_SWEEP_PARAM_PATH": "/none/p.yaml", "WANDB_FORK_FROM": "abc?_step=1", "WANDB_RESUME_FROM": "abc?_step=1",
    "WANDB_RUN_NAME": "n",
}  # fmt: skip


@pytest.mark.parametrize("name", INHERITED)
def test_a_run_of_its_own_leaves_what_would_make_it_another(name: str) -> None:
    job = choose({}, {name: INHERITED[name]}, OWN)
    assert name in job.hidden
    assert (job.run_id, job.name) == (None, None)
    assert job.told == (f"{OWN}, so not used: {name}={INHERITED[name]}",)


def test_a_single_run_takes_the_id_it_is_given() -> None:
    single = choose({}, {"WANDB_RUN_ID": "abc"})
    assert (single.run_id, single.told) == ("abc", ("the wandb run is abc by WANDB_RUN_ID",))


def test_jobs_share_the_project_the_tags_and_the_notes_they_inherit() -> None:
    job = choose({}, {"WANDB_PROJECT": "p", "WANDB_TAGS": "a, b,", "WANDB_NOTES": "n"}, OWN)
    assert (job.project, job.tags) == ("p", ["a", "b"])
    assert "WANDB_NOTES" not in job.hidden


def test_the_jobs_group_is_the_variables_else_the_sweeps() -> None:
    assert group_of("night", {}) == "night"
    assert group_of("night", {"WANDB_RUN_GROUP": "week"}) == "week"
    assert len(group_of("n" * 200, {})) == 128


def test_an_agents_sweep_goes_before_the_config() -> None:
    environ = {"WANDB_SWEEP_ID": "s", "WANDB_PROJECT": "theirs", "WANDB_RUN_ID": "abc"}
    single = choose({"project": "mine"}, environ)
    assert (single.project, single.run_id) == ("theirs", "abc")
    assert "WANDB_PROJECT=theirs counts under a wandb agent, not logger.project=mine" in single.told


@pytest.mark.parametrize("name", ["WANDB_DIR", "WANDB_CONFIG_PATHS", "WANDB_JOB_TYPE", "WANDB_CONSOLE", "WANDB_REINIT"])
def test_what_golf_has_settled_is_named_and_hidden(name: str) -> None:
    found = choose({}, {name: "x"})
    assert name in found.hidden
    assert found.told[0].startswith(f"not used: {name}=x (")


@pytest.mark.parametrize("word", ["WANDB_DISABLE_CODE=true", "WANDB_SAVE_CODE=false"])
def test_code_that_must_not_leave_stays(word: str) -> None:
    name, _, value = word.partition("=")
    assert not chosen("source", {name: value})
    assert "source is not kept" in told({name: value})


def test_an_offline_run_says_that_it_resumes_nothing() -> None:
    assert "WANDB_RESUME=allow" in told({"WANDB_RESUME": "allow", "WANDB_RUN_ID": "abc"})
    online = told({"WANDB_RESUME": "allow", "WANDB_RUN_ID": "abc", "WANDB_MODE": "online"})
    assert "WANDB_RESUME" not in online


MISTAKES: dict[str, tuple[dict[str, Any], dict[str, str], str]] = {
    "a long tag": ({"tags": ["ok", "t" * 70]}, {}, "logger.tags: .* has 70 characters, wandb takes 64"),
    "a long tag of the environment": ({}, {"WANDB_TAGS": "a," + "t" * 65}, "WANDB_TAGS: .* 65 characters"),
    "an empty tag": ({"tags": ["a", ""]}, {}, "logger.tags: tag 2 is empty"),
    "a long name": ({"name": "n" * 129}, {}, "logger.name: .* has 129 characters, wandb takes 128"),
    "a long group": ({"group": "g" * 129}, {}, "logger.group: .* wandb takes 128"),
    "a long project": ({"project": "p" * 129}, {}, "logger.project: .* wandb takes 128"),
    "an empty project": ({"project": ""}, {}, "logger.project is empty"),
    "a path as a project": ({"project": "a/b#c"}, {}, "logger.project=a/b#c: wandb takes no / # in it"),
    "a project of the environment": ({}, {"WANDB_PROJECT": "a:b"}, "WANDB_PROJECT=a:b: wandb takes no : in it"),
    "a path as an entity": ({"entity": "team/mine"}, {}, "logger.entity=team/mine: wandb takes no /"),
    "a long id": ({}, {"WANDB_RUN_ID": "i" * 129}, "WANDB_RUN_ID: .* wandb takes 128"),
    "a path as an id": ({}, {"WANDB_RUN_ID": "a/b"}, "WANDB_RUN_ID=a/b: wandb does not take it .*Run ID"),
    "a mode of several writers": ({}, {"WANDB_MODE": "shared"}, "WANDB_MODE=shared: golf writes a run from one"),
    "no mode": ({}, {"WANDB_MODE": "ofline"}, "WANDB_MODE=ofline: there is no such mode\nchoices: .*offline"),
    "no switch": ({}, {"WANDB_DISABLED": "maybe"}, "WANDB_DISABLED=maybe: true or false"),
    "no boolean": ({}, {"WANDB_SILENT": "maybe"}, "WANDB_SILENT=maybe: wandb does not take it .*valid boolean"),
    "no number": ({}, {"WANDB_INIT_TIMEOUT": "long"}, "WANDB_INIT_TIMEOUT=long: wandb does not take it .*valid number"),
    "no address": ({}, {"WANDB_BASE_URL": "foo"}, "WANDB_BASE_URL=foo: wandb does not take it .*valid URL"),
    "a private setting": ({}, {"WANDB__SERVICE_WAIT": "-3"}, "WANDB__SERVICE_WAIT=-3: wandb does not take it"),
    "both to resume and to fork": (
        {}, {"WANDB_RESUME": "allow", "WANDB_FORK_FROM": "abc?_step=1"}, "mutually exclusive"
    ),
    "to resume nobody knows what": ({"mode": "online"}, {"WANDB_RESUME": "must"}, "said by WANDB_RUN_ID"),
    "parameters that are not there": (
        {}, {"WANDB_SWEEP_ID": "s", "WANDB_SWEEP_PARAM_PATH": "/none/p.yaml"}, "WANDB_SWEEP_PARAM_PATH=/none/p.yaml"
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_wandb_does_not_take_is_told_by_name(mistake: str) -> None:
    keys, environ, words = MISTAKES[mistake]
    with pytest.raises(ConfigError, match=words) as caught:
        choose(keys, environ)
    assert len(str(caught.value).splitlines()) <= 3


def test_a_secret_is_not_shown() -> None:
    with pytest.raises(ConfigError, match="WANDB_API_KEY") as caught:
        choose({}, {"WANDB_API_KEY": " hidden"})
    assert "hidden" not in str(caught.value)


def test_a_disabled_wandb_asks_nothing_of_the_other_variables() -> None:
    assert chosen("mode", {"WANDB_SILENT": "maybe"}, {"mode": "disabled"}) == "disabled"


def test_wandb_sees_what_was_chosen_and_the_process_its_own_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    monkeypatch.setenv("WANDB_NOTES", "n")
    with as_chosen(choose({"project": "p"}, os.environ, OWN)):
        inside = {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}
    assert inside == {"WANDB_NOTES": "n", "WANDB_PROJECT": "p"}
    assert os.environ["WANDB_RUN_ID"] == "abc"
    assert "WANDB_PROJECT" not in os.environ


def test_ids_differ() -> None:
    assert len({new_id() for _ in range(100)}) == 100


@pytest.mark.parametrize(
    ("environ", "word"),
    [({}, ""), ({"WANDB_MODE": "online"}, ""), ({"WANDB_MODE": "offline"}, "WANDB_MODE=offline"),
     ({"WANDB_DISABLED": "1"}, "WANDB_DISABLED=1"), ({"WANDB_MODE": ""}, "")],
)  # fmt: skip
def test_what_keeps_a_process_off_the_server(environ: dict[str, str], word: str) -> None:
    assert kept_off(environ) == word
