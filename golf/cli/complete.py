"""`golf __complete -- WORD …`: candidates for the last word, one a line; what the completion scripts ask."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from golf.common.errors import GolfError
from golf.launch.compose import configs as compose
from golf.launch.compose import options
from golf.runs.figures import BY_METHOD, FIGURES

FLAGS = {
    "train": ("--multirun", "-m", "--config-dir", "--cfg", "--info", "--resolve", "--prepare", "--trust", "--help"),
    "bench": ("--multirun", "-m", "--config-dir", "--trust", "--help"),
    "size": ("--multirun", "-m", "--config-dir", "--json", "--help"),
    "data": ("--multirun", "-m", "--config-dir", "--help"),
    "eval": ("--multirun", "-m", "--config-dir", "--trust", "--help"),
    "quantize": ("--multirun", "-m", "--config-dir", "--trust", "--help"),
    "check": ("--trust", "--help"),
    "sample": ("--trust", "--help"),
    "trust": ("--remove", "--help"),
    "runs": ("--sort", "--best", "--columns", "--json", "--help"),
    "report": ("--out", "--metric", "--bar", "--title", "--columns", "--help"),
    "compare": ("--against", "--metric", "--margin", "--paired", "--ignoring", "--json", "--help"),
    "dashboard": ("--project", "--entity", "--name", "--metric", "--out", "--help"),
    "import-env": ("--recipe", "--skip-unknown", "--run", "--table", "--help"),
}
AFTER_FLAG = {
    "--cfg": ("job", "hydra", "all"),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
}
FEW = 30
"""A prefix that more keys share is completed one dot at a time."""


def run(argv: list[str]) -> int:
    """Print the candidates; an unfinished or mistaken line has none, and is no error."""
    words = argv[1:] if argv[:1] == ["--"] else argv
    try:
        found = candidates(words or [""])
    except (GolfError, OSError):
        return 0
    for one in sorted(set(found)):
        if one.isprintable():  # a folder's name may be anything
            print(one)
    return 0


def candidates(words: Sequence[str]) -> list[str]:
    """Whole words that may stand in the place of the last one. Raises GolfError for a line that cannot be composed."""
    from golf.cli.main import COMMANDS

    *before, word = words
    if not before:
        return _starting((*COMMANDS, "help", "--help", "--version"), word)
    command, given = before[0], before[1:]
    last = given[-1] if given else ""
    if last in AFTER_FLAG:
        return _starting(AFTER_FLAG[last], word)
    if last in ("--config-dir", "-cd"):
        return _folders(word)
    if last in ("--sort", "--best", "--metric"):
        return _starting((*FIGURES, BY_METHOD), word)
    if last == "--columns":
        head, comma, part = word.rpartition(",")
        return [head + comma + name for name in _starting(("all", "run", "state", *FIGURES), part)]
    if last == "--recipe":
        return _starting(options.options("recipe"), word)
    if last == "--out" or (command == "trust" and not word.startswith("-")):
        return _folders(word)
    if word.startswith("-") and "=" not in word:
        return _starting(FLAGS.get(command, ("--help",)), word)
    serve: dict[str, Callable[[list[str], str], list[str]]] = {
        "train": _train_words, "bench": _bench_words, "size": _config_words, "data": _config_words, "runs": _runs_words,
        "report": _roots, "compare": _roots, "dashboard": _roots, "import-env": _files,
        "completion": _shells, "help": _commands,
    }  # fmt: skip
    if command in serve:
        return serve[command](given, word)
    if command in ("eval", "check", "export", "quantize", "sample"):
        return _rerun_words(command, given, word)
    return []


def _config_words(given: list[str], word: str) -> list[str]:
    """Groups, their options, and the keys of the config as the words before compose it."""
    dirs = _config_dirs(given)
    every = [group for group in options.groups(dirs) if group.split("/")[0] not in ("local", "hydra")]
    key, equals, _ = word.partition("=")
    if equals and key in every:
        return _values(word, options.options(key, dirs))
    chosen = [one for one in given if one.partition("=")[0] in every and one.partition("=")[2]]
    with compose.composer(dirs):
        try:
            config = compose.compose_job(chosen, dirs)
        except GolfError:
            config = compose.compose_job([], dirs)
    keys = [one for one in compose.flat_keys(config) if one.split(".")[0] not in ("code_paths", "hydra")]
    if equals:
        return _values(word, _choices_of(config, key))
    groups = [f"{group}=" for group in every if options.options(group, dirs)]
    return _next_parts(groups, word, "/") + _keys(keys, word)


def _train_words(given: list[str], word: str) -> list[str]:
    """The same, a run to train again or to go on with, and Hydra's groups; of those for sweeps the settings, too."""
    if (named := word.partition("="))[0] in ("run", "resume") and named[1]:
        return [f"{named[0]}={folder}" for folder in _run_folders(named[2])]
    given = [one for one in given if not one.startswith("run=")]
    if not word.startswith("hydra"):
        return _config_words(given, word) + ["hydra/"] * (word != "" and "hydra/".startswith(word))
    from golf.launch.compose.hydra_options import TOLD, group_options

    with compose.composer(_config_dirs(given)):
        key, equals, _ = word.partition("=")
        if equals:
            return _values(word, group_options(key) if key in TOLD else ())
        return _starting([*(f"{group}=" for group in TOLD), "hydra.run.dir=", "hydra.sweep.dir="], word)


def _bench_words(given: list[str], word: str) -> list[str]:
    """A run to measure, what it may change, `kernels`; or the words of a training."""
    from golf.cli.bench import WORDS

    if word.startswith("run=") or any(one.startswith("run=") for one in given):
        return _rerun_words("bench", given, word)
    key, equals, _ = word.partition("=")
    if equals and key in WORDS:
        return _starting([f"{key}={choice}" for choice in WORDS[key].choices], word)
    own = [*(() if given else ("kernels",)), "run=", *(f"{name}=" for name in WORDS)]
    return _starting(own, word) + _config_words(given, word)


def _rerun_words(command: str, given: list[str], word: str) -> list[str]:
    """A command's own words, the groups that it may change, and their keys in the named run's config."""
    import importlib

    from golf.launch.compose import rerun
    from golf.runs.store import Run

    spec: rerun.Command = importlib.import_module(f"golf.cli.{command}").COMMAND
    dirs = _config_dirs(given)
    key, equals, value = word.partition("=")
    if key == "run" and equals:
        return [f"run={folder}" for folder in _run_folders(value)]
    if equals and key in spec.words:
        return _starting([f"{key}={choice}" for choice in spec.words[key].choices], word)
    if equals and key in spec.changes:
        return _values(word, options.options(key, dirs))
    named = next((one[4:] for one in given if one.startswith("run=")), None)
    config: dict[str, Any] = {} if named is None else Run(Path(named).expanduser()).config
    if equals:
        return []
    own = _starting([f"{name}=" for name in ("run", *spec.words, *spec.changes)], word)
    return own + _keys(rerun.completion_keys(spec, config), word)


def _runs_words(given: list[str], word: str) -> list[str]:
    if given[:1] == ["show"]:
        return _run_folders(word)
    return _starting(() if given else ("show",), word) + _folders(word)


def _roots(given: list[str], word: str) -> list[str]:
    """Folders, and runs as folders."""
    return _folders(word)


def _files(given: list[str], word: str) -> list[str]:
    """Files and folders that begin so."""
    head, _, _ = word.rpartition("/")
    base = Path(f"{head}/" if word.startswith("/") else head or ".").expanduser()
    found = [f"{head}/{entry.name}" if "/" in word else entry.name for entry in os.scandir(base) if entry.is_file()]
    return _folders(word) + [name for name in _starting(found, word) if not name.rsplit("/", 1)[-1].startswith(".")]


def _commands(given: list[str], word: str) -> list[str]:
    from golf.cli.main import COMMANDS

    return _starting(() if given else COMMANDS, word)


def _shells(given: list[str], word: str) -> list[str]:
    return _starting(() if given else ("bash", "fish", "zsh"), word)


def _config_dirs(given: Sequence[str]) -> list[Path]:
    """The folders that --config-dir names before the cursor."""
    named = [one.partition("=")[2] for one in given if one.startswith("--config-dir=")]
    named += [value for flag, value in pairwise(given) if flag in ("--config-dir", "-cd")]
    return [folder for name in named if (folder := Path(name).expanduser().absolute()).is_dir()]


def _starting(words: Iterable[str], prefix: str) -> list[str]:
    return [word for word in words if word.startswith(prefix)]


def _values(word: str, choices: Iterable[str]) -> list[str]:
    """`key=a,b` completed from choices: the values before the last comma stay, and are not offered again."""
    head, comma, last = word.rpartition(",") if "," in word else (*word.partition("=")[:2], word.partition("=")[2])
    used = head.partition("=")[2].split(",") if comma == "," else []
    return [f"{head}{comma}{choice}" for choice in choices if choice.startswith(last) and choice not in used]


def _choices_of(config: Any, key: str) -> list[str]:
    """true and false for a switch, figures for what a sweep minimises; nothing is known of other values."""
    from omegaconf import OmegaConf

    if key in ("sweep.metric", "sweep.metrics"):
        return [*FIGURES, BY_METHOD]
    return ["true", "false"] if isinstance(OmegaConf.select(config, key), bool) else []


def _keys(keys: Sequence[str], word: str) -> list[str]:
    """Dotted keys that begin so, the next part of each when there are many; and bare names that are unambiguous."""
    inner = {key.rpartition(".")[0] for key in keys}
    leaves = [key for key in keys if key not in inner and not key.rsplit(".", 1)[-1].startswith("_")]
    found = _starting([f"{key}=" for key in leaves], word)
    if len(found) > FEW or not word:
        found = _next_parts(found, word, ".")
    if word and "." not in word:
        names = [key.rsplit(".", 1)[-1] for key in leaves]
        found += _starting([f"{name}=" for name in names if names.count(name) == 1], word)
    return found


def _next_parts(words: Sequence[str], prefix: str, separator: str) -> list[str]:
    """Words that begin so, cut after the next separator beyond the prefix."""
    found = []
    for word in _starting(words, prefix):
        head, cut, _ = word[len(prefix) :].partition(separator)
        found.append(prefix + head + cut)
    return found


def _folders(word: str) -> list[str]:
    """Folders that begin so, each with a slash behind it."""
    head, _, last = word.rpartition("/")
    base = Path(f"{head}/" if word.startswith("/") else head or ".").expanduser()
    names = sorted(entry.name for entry in os.scandir(base) if entry.is_dir() and not entry.name.startswith("."))
    return [f"{head}/{name}/" if "/" in word else f"{name}/" for name in names if name.startswith(last)]


def _run_folders(word: str) -> list[str]:
    """Runs under the default roots that begin so, else the folders of the next level, runs without a slash behind."""
    from golf.runs.store import find_runs, load_run

    known = _starting([str(run.dir) for run in find_runs()], word)
    if known:
        return known
    found = []
    for folder in _folders(word):
        try:
            load_run(folder)
            found.append(folder.rstrip("/"))
        except GolfError:
            found.append(folder)
    return found
