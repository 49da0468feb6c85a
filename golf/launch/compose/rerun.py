"""Command lines on a finished run: its own config, with the named groups composed anew and single keys replaced."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.utils import get_class
from omegaconf import OmegaConf

from golf.common.errors import ConfigError, GolfError
from golf.common.log import logger
from golf.launch.compose import phases
from golf.launch.compose.configs import Checker, compose_job, composer, flat_keys, resolved, told_where
from golf.launch.compose.keys import ADDED
from golf.launch.compose.line import CommandLine, refuse_unused
from golf.launch.compose.options import DISCOVERED, GLOBAL, groups, primary
from golf.launch.compose.own_code import refuse_kept, use_kept_first
from golf.launch.compose.trust import admit
from golf.runs.store import Run, load_run

CONFIG_NAME = "finished_run"
CHANGEABLE = ("eval", "quant", "codec", "runtime", "logger")
"""Groups that some command may change; everything else is what the run is."""
NOT_OF_A_RUN = (*GLOBAL, *DISCOVERED, "sweep")
"""Groups that leave no node of their name in a run's config, or an empty one."""
UNUSED_LOGGER = {"_target_": "golf.runs.loggers.JsonlLogger"}


@dataclass(frozen=True)
class Word:
    """A key of a command's own, such as `tokens=200`: its type, default and choices."""

    kind: type = str
    default: Any = None
    choices: tuple[str, ...] = ()

    def read(self, name: str, text: str) -> Any:
        """The value that `text` stands for. Raises ConfigError naming key, value and what would fit."""
        if self.choices and text not in self.choices:
            raise ConfigError(f"{name}={text}: choices are {', '.join(self.choices)}")
        if text == "null" and self.default is None:
            return None
        try:
            return self.kind(text)
        except ValueError:
            raise ConfigError(f"{name}={text}: expected {self.kind.__name__}, got '{text}'") from None


WEIGHTS = Word(default="quantized", choices=("quantized", "averaged"))
SWITCH = Word(default="false", choices=("true", "false"))
ANY_TOKENIZER = "eval.allow_tokenizer_mismatch"


@dataclass(frozen=True)
class Command:
    """What a command on a finished run takes: config groups (`changes`), and keys of its own beside `run` (`words`)."""

    name: str
    changes: tuple[str, ...]
    words: Mapping[str, Word] = field(default_factory=dict)
    one_process: bool = True
    """Whether it works in this process alone, or starts as many workers as runtime.nproc says."""
    data: bool = True
    """Whether it reads the run's data."""


@dataclass(frozen=True)
class Job:
    """One config to work with; `swept` are the overrides in which it differs from the sweep's other jobs."""

    config: dict[str, Any]
    swept: dict[str, str]


@dataclass(frozen=True)
class Request:
    """A checked command line: the run, the command's own words, the jobs, and the groups that were touched."""

    run: Run
    words: dict[str, Any]
    jobs: list[Job]
    touched: frozenset[str]
    multirun: bool


def read_line(command: Command, argv: Sequence[str]) -> Request:
    """Check a command line against a run. Raises ConfigError for every mistake on it, before any work starts."""
    known = {"run": Word(), **command.words}
    line = CommandLine.parse(argv, known)
    refuse_unused(line, command.name)
    words, overrides = own_words(known, line.overrides)
    run = finished_run(command, words["run"], words.get("weights"))
    own = deepcopy(run.config)
    code = admit(run.dir, run.config, f"run={words['run']}", trust=line.trust, named=line.config_dirs)
    settle(own, code, command.one_process)
    touched = frozenset(_top(override) for override in overrides)
    with told_where(CommandLine(overrides, [], line.config_dirs)) if line.config_dirs else nullcontext():
        jobs = _compose(command, line, overrides, own)
        _check_all(command, jobs, own, touched, line.config_dirs)
    return Request(run, words, jobs, touched, line.multirun)


def _check_all(
    command: Command, jobs: Sequence[Job], own: Mapping[str, Any], touched: frozenset[str], config_dirs: Sequence[Path]
) -> None:
    """Check every job's config; with folders of the user's too, whose modules serve only what is named anew."""
    kept = own["code_paths"]
    if config_dirs:
        use_kept_first(kept, [node for name, node in own.items() if name not in touched])
        for job in jobs:
            job.config["code_paths"] = [*map(str, config_dirs), *kept]
    for job in jobs:
        if command.one_process and (nproc := job.config["runtime"]["nproc"]) != 1:
            raise ConfigError(f"runtime.nproc={nproc}: golf {command.name} runs in one process")
        check(job.config, command.data)
        if config_dirs:
            refuse_kept(kept, [job.config[name] for name in touched & job.config.keys()])


def own_words(known: Mapping[str, Word], given: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """A command's own words, given or by default, and the overrides left. Raises ConfigError for a bad value."""
    words = {name: word.default for name, word in known.items()}
    overrides = []
    for override in given:
        name, equals, text = override.partition("=")
        if equals and name in known:
            words[name] = known[name].read(name, text)
        else:
            overrides.append(override)
    return words, overrides


def finished_run(command: Command, value: str | None, weights: str | None = None) -> Run:
    """The run that `run=…` names. Raises ConfigError unless it has ended, has the `weights` that are asked for, and its
    config can be read."""
    if not value:
        raise ConfigError(f"run must be given: golf {command.name} run=DIR, a finished run (`golf runs` lists them)")
    try:
        run = load_run(value)
    except GolfError as error:
        raise ConfigError(f"run={error}") from error
    status = run.status
    if status in ("prepared", "running"):
        raise ConfigError(f"run={value}: this run has not {'begun' if status == 'prepared' else 'ended'} yet")
    if status != "completed":
        _take_what_is_left(command, run, weights)
    if not {"model", "data", "tokenizer", "runtime", "eval"} <= run.config.keys():
        raise ConfigError(f"run={value}: its {run.folder.config.name} is missing or broken: it cannot be built again")
    return run


def _take_what_is_left(command: Command, run: Run, weights: str | None) -> None:
    """Say what a run is that ended early. Raises ConfigError where it has not what the command works on."""
    record, folder = run.record, run.folder
    how = "was interrupted" if run.status == "interrupted" else "failed"
    why = str(record.get("error") or ("Ctrl-C" if record else "it died without a record")).splitlines()[0]
    ended = f"{how} after step {record.get('steps', 0)}: {why.partition(' after step ')[0].rstrip(',')}"
    there = {"averaged": folder.weights.exists(), "quantized": folder.artifact.exists()}
    wanted = weights or ("averaged" if command.name == "quantize" else "quantized")
    if there[wanted]:
        known = "its training is complete, but it" if record.get("trained") else "what it had by then is used; it"
        logger.warning("run=%s: %s %s", run.dir, known, ended)
        return
    remedy = "it kept no weights"
    if wanted == "quantized" and there["averaged"]:
        also = "weights=averaged takes them, " if "weights" in command.words else ""
        remedy = f"it kept weights, but no artifact: {also}golf quantize makes one of them"
    elif any(folder.checkpoints.glob("step-*")):
        remedy = f"it kept no weights, but a checkpoint: golf train resume={run.dir} goes on"
    raise ConfigError(f"run={run.dir}: this run {ended}\n{remedy}")


def settle(config: dict[str, Any], code_paths: list[str], one_process: bool = True) -> None:
    """Turn a run's config into one for work beside it: one process or the run's own, no logger, the code that it was
    allowed, an attention that is installed, and what golf had no key for when it was made."""
    from golf.nn.attend import installed  # torch takes a second, which the command's page and its mistakes don't need

    if one_process:
        config["runtime"].update(nproc=1, cuda_graphs="auto")  # nothing is trained here
    config["logger"] = dict(UNUSED_LOGGER)
    attention = config["model"].get("attention") or {}
    if not installed(backend := attention.get("backend", "sdpa")):
        logger.warning("model.attention.backend=%s is not installed here: sdpa serves", backend)
        attention["backend"] = "sdpa"
    config["code_paths"] = code_paths
    for key, value in primary().values.items():
        config.setdefault(key, deepcopy(value))
    for group in CHANGEABLE:
        _add_newer_keys(config.get(group) or {})


def _add_newer_keys(node: dict[str, Any]) -> None:
    """Give a component of golf's the plain settings that it has learnt since, as they are by default."""
    target = str(node.get("_target_", ""))
    if not target.startswith("golf."):
        return
    with suppress(ImportError):  # one that golf has no more: said where it is built
        for name, setting in inspect.signature(get_class(target)).parameters.items():
            if setting.default is None or isinstance(setting.default, bool | int | float | str):
                node.setdefault(name, setting.default)


def _compose(command: Command, line: CommandLine, overrides: list[str], own: dict[str, Any]) -> list[Job]:
    """Every job's config: the run's, in which a named group is composed anew and a dotted key overrides one value.

    Options are golf's own and the line's, or, if it names no folder, those that the run keeps a copy of.
    """
    dirs = line.config_dirs or [Path(folder) for folder in own["code_paths"]]
    known = groups(dirs)
    _refuse(command, overrides, own, known)
    named = [_top(word) for word in overrides if word.partition("=")[0] in command.changes]
    taken = {*primary().known, *ADDED} - {"choices", "phases"}  # an old run may hold keys that golf has no more
    own = phases.finished(own)
    kept = {key: value for key, value in own.items() if key in taken and key not in named}
    unknown = {group: option for group, option in primary().options.items() if group not in (*own, *NOT_OF_A_RUN)}
    chosen = {**unknown, **dict.fromkeys(named)}
    node = {"defaults": ["_self_", *({group: option} for group, option in chosen.items())], **kept}
    ConfigStore.instance().store(name=CONFIG_NAME, node=node, provider="golf")
    asked = CommandLine(overrides, [], dirs, line.multirun)
    with composer(dirs):
        checker = Checker(asked, CONFIG_NAME)
        asked = checker.complete()
        _refuse(command, asked.overrides, own, known)
        lists = checker.grid(asked)
        configs = [resolved(compose_job(words, dirs, CONFIG_NAME), ADDED) for words in lists]
    jobs = []
    for words, config in zip(lists, configs, strict=True):
        config["phases"] = own["phases"]
        pairs = dict(word.partition("=")[::2] for word in words)
        config["choices"] = {**own.get("choices", {}), **{key: pairs[key] for key in pairs if key in command.changes}}
        shared = set(words).intersection(*lists)
        jobs.append(Job(config, {key: pairs[key] for key in pairs if f"{key}={pairs[key]}" not in shared}))
    return jobs


def _top(override: str) -> str:
    """The first part of an override's key: `eval` of `eval.stride=64`."""
    return override.partition("=")[0].lstrip("+~").split(".")[0].split("/")[0].split("@")[0]


def _refuse(command: Command, overrides: Sequence[str], own: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raise ConfigError for what a finished run has settled, for a group left out, and for a mistyped word."""
    for override in overrides:
        key, top = override.partition("=")[0], _top(override)
        if top in command.changes:
            if key == f"~{top}":
                raise ConfigError(f"{override}: it cannot be left out; choose another with {top}=…")
        elif top in own or top in known or top == "hydra":
            why = f"golf {command.name} leaves it alone" if top in CHANGEABLE else f"a finished run's {top} is fixed"
            raise ConfigError(
                f"{override}: {why}\ngolf {command.name} takes: {', '.join(('run', *command.words, *command.changes))}"
            )
        elif near := difflib.get_close_matches(key, ["run", *command.words], n=1, cutoff=0.7):
            raise ConfigError(f"{override}: there is no key '{key}' (did you mean '{near[0]}'?)")


def check(config: Mapping[str, Any], data: bool = True) -> None:
    """Types, components and the model, as before training; and that the windows fit the model. Raises ConfigError."""
    from golf.launch.compose import build

    build.check(phases.unrounded(config), data=data)
    window, longest = config["eval"].get("seq_len"), phases.spanned(config)["model"].get("max_seq_len")
    reach = config["eval"].get("rope", "trained") != "trained"
    if window is not None and longest is not None and window > longest and not reach:
        raise ConfigError(
            f"eval.seq_len={window}: longer than the run's position tables, model.max_seq_len={longest}\n"
            "eval.rope=extend continues them, eval.rope=ntk scales them"
        )


def completion_keys(command: Command, config: Mapping[str, Any]) -> list[str]:
    """The dotted keys of a run's config that a command may change."""
    return flat_keys(OmegaConf.create({key: config[key] for key in command.changes if key in config}))
