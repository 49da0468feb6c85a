"""`golf import-env`: the record scripts' environment variables as a golf command line."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from golf.common.errors import ConfigError, did_you_mean
from golf.launch.compose.environment_names import (
    EVERY,
    SCRIPTS,
    TABLE,
    VARIABLES,
    Converted,
    convert,
    near,
    refusal,
    unknown,
)

MOST_COMPOSED = 8
"""Of a sweep's trainings so many are composed to find what does not fit; `golf train` composes them all."""

PAGE = """golf import-env [--recipe NAME] [--skip-unknown] [--run N] "VARIABLE=value …" | FILE | -

Prints the words of a golf command line that stand for the environment variables of the four record scripts. What a
README or a script says may be given as it stands: exports, several commands, loops over seeds, comments, prompts. The
words come from the command that runs train_gpt.py; trainings that differ in some values become a sweep (-m).
What golf has no use for is named on standard error, with the reason.

  --recipe NAME   print only what differs from that recipe. Otherwise everything given is printed, after the recipe
                  of the script that reads these variables (and that script's defaults, where the recipe has others)
  --skip-unknown  translate the rest when there are variables that no record script reads, which else is an error
  --run N         the N-th of the trainings that a text starts
  --table         the whole mapping, in Markdown

  golf import-env "VOCAB_SIZE=2048 NUM_LAYERS=8 MLP_MULT=3 TRAIN_SEQ_LEN=4096"
  golf import-env --recipe gradquant_11l "XSA_LAST_N=0 MATRIX_LR=0.02 torchrun --nproc_per_node=8 train_gpt.py"
  golf import-env run.sh                      (or - for what is piped in)
  eval "golf train budget=smoke $(golf import-env 'NUM_LAYERS=6 MODEL_DIM=384')"
"""


@dataclass
class Line:
    """The command line: a recipe to differ from, which training, whether unknown variables may be left, the text."""

    recipe: str | None = None
    run: int | None = None
    skip_unknown: bool = False
    text: str = ""


def run(argv: list[str]) -> int:
    """Print the words, and on stderr what was left out. Raises ConfigError for what cannot be read or composed."""
    if any(word in ("--help", "-h") for word in argv):
        print(PAGE, end="")
        return 0
    if argv == ["--table"]:
        print(table(), end="")
        return 0
    line = parsed(argv)
    trainings, notes = variables(line.text)
    trainings = list({tuple(sorted(one.items())): one for one in trainings}.values())
    if line.run is not None:
        if not 1 <= line.run <= len(trainings):
            raise ConfigError(f"--run {line.run}: this text starts {len(trainings)} (that differ)")
        trainings = [trainings[line.run - 1]]
    if names := unknown(dict.fromkeys(name for one in trainings for name in one)):
        if not line.skip_unknown:
            raise ConfigError(f"{refusal(names)}\ngolf import-env --skip-unknown … translates the rest")
        if any(len({one.get(name) for one in trainings}) > 1 for name in names):
            raise ConfigError(_different(trainings))
        trainings = [{name: text for name, text in one.items() if name not in names} for one in trainings]
        notes += [f"{name}: no script of the records reads it" + _hint(name) for name in names]
    result, words = swept(trainings, line.recipe)
    for name, reason in result.left_out:
        print(f"{name}: {reason}", file=sys.stderr)
    for note in notes:
        print(note, file=sys.stderr)
    print(shlex.join([f"recipe={result.recipe}", *words]))
    return 0


def _hint(name: str) -> str:
    found = near(name)
    return f" (near: {found})" if found else ""


def variables(text: str) -> tuple[list[dict[str, str]], list[str]]:
    """The variables of each training that a shell text starts, WORLD_SIZE for its workers, and notes on the rest.

    Raises ConfigError for what cannot be read, for values that are not in the text, and for a text without variables.
    """
    from golf.launch.compose.shell.trainings import read

    reading = read(text, frozenset(VARIABLES))
    if not any(one.variables for one in reading.trainings):
        if reading.trainings:
            return [{}], reading.notes
        told = (
            f"nothing here sets a variable or runs train_gpt.py ({'; '.join(reading.notes)})\n" if reading.notes else ""
        )
        raise ConfigError(f'{told}expected VARIABLE=value or a whole command: give variables, as "NUM_LAYERS=8"')
    found, notes = [], reading.notes
    for training in reading.trainings:
        given = {}
        for name, value in training.variables.items():
            if not value.unknown or name not in VARIABLES:
                given[name] = value.text
            elif name == "RUN_ID":
                notes = [*notes, f"RUN_ID: {value.unknown[0]} is not known here; name the run with hydra.run.dir=…"]
            else:
                raise ConfigError(_unknown_value(name, value.text, value.unknown[0]))
        found.append(given)
    return found, list(dict.fromkeys(notes))


def _unknown_value(name: str, text: str, part: str) -> str:
    """What to say of a value that is not in the text."""
    if name == "WORLD_SIZE":
        return f"--nproc_per_node={text}: write the number of workers, 1, 2, 4 or 8"
    why = "is not set in this text" if re.fullmatch(r"\$\{?\w+\}?", part) else "is not known here, as golf runs nothing"
    return f"{name}={text}: {part} {why}\nwrite the value, or set it before the command"


def parsed(argv: Sequence[str]) -> Line:
    """The line taken apart. Raises ConfigError for other flags, unknown recipes and a file that cannot be read."""
    from golf.launch.compose.options import options

    line, words = Line(), iter(argv)
    rest: list[str] = []
    for word in words:
        name, equals, value = word.partition("=")
        if name == "--recipe":
            line.recipe = value if equals else next(words, "")
            if line.recipe not in (known := options("recipe")):
                raise ConfigError(f"--recipe {line.recipe}: there is no such recipe\nchoices: {', '.join(known)}")
        elif name == "--run":
            value = value if equals else next(words, "")
            if not value.isdigit():
                raise ConfigError(f"--run {value}: expected a whole number from 1")
            line.run = int(value)
        elif word == "--skip-unknown":
            line.skip_unknown = True
        elif word.startswith("-") and word != "-" and " " not in word and not rest:
            known = ["--recipe", "--run", "--skip-unknown", "--table", "--help"]
            raise ConfigError(
                f"{word}: golf import-env has no such flag (--recipe NAME, --run N, --skip-unknown, --table) "
                f"{did_you_mean(word, known) if name in known else ''}".rstrip()
            )
        else:
            rest.append(word)
    line.text = _text(rest)
    return line


def _text(words: list[str]) -> str:
    """One text of what was given: a file, standard input, a text, or words that a shell has already taken apart."""
    if words == ["-"]:
        return sys.stdin.read()
    if len(words) == 1:
        try:
            if "=" not in words[0] and Path(words[0]).is_file():
                return Path(words[0]).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"golf import-env {words[0]}: cannot read this file ({error})") from None
        return words[0]
    return " ".join(_requoted(word) for word in words)


def _requoted(word: str) -> str:
    """A word that holds one assignment, as the shell had it before it took the quotes off."""
    name, equals, value = word.partition("=")
    if equals and name.isidentifier() and " " in value and "=" not in value:
        return f"{name}={shlex.quote(value)}"
    return word


def swept(trainings: Sequence[dict[str, str]], recipe: str | None) -> tuple[Converted, list[str]]:
    """The words of one training, or of a sweep over those that differ in values alone.

    Raises ConfigError when they don't compose, and when the trainings are no grid.
    """
    assumed = assumptions(recipe) if recipe else None
    results = [convert(given, recipe, assumed) for given in trainings]
    for result in results[:MOST_COMPOSED]:
        composed(result)
    first = results[0]
    wanted = differing(first, recipe) if recipe else first.words
    if len(results) == 1:
        return first, wanted
    jobs = [dict(word.split("=", 1) for word in result.words) for result in results]
    for job in jobs:
        job.pop("hydra.run.dir", None)
    values = {key: list(dict.fromkeys(job.get(key) for job in jobs)) for key in jobs[0]}
    axes = {key: [one for one in found if one is not None] for key, found in values.items() if len(found) > 1}
    size = 1
    for found in axes.values():
        size *= len(found)
    distinct = {tuple(job.get(key) for key in axes) for job in jobs}
    same = all(job.keys() == jobs[0].keys() for job in jobs) and len({result.recipe for result in results}) == 1
    if not same or size != len(distinct) or "runtime.nproc" in axes:
        raise ConfigError(_different(trainings))
    words = [
        f"{key}={','.join(axes[key])}" if key in axes else f"{key}={value}"
        for key, value in jobs[0].items()
        if key in axes or f"{key}={value}" in wanted
    ]
    left_out = list(dict.fromkeys(one for result in results for one in result.left_out))
    if any("RUN_ID" in given for given in trainings):
        left_out.append(("RUN_ID", "a sweep's jobs are numbered, below multirun/ (hydra.sweep.dir)"))
    return Converted(first.recipe, first.words, left_out), ["-m", *words] if axes else words


def _different(trainings: Sequence[dict[str, str]]) -> str:
    """What to say of trainings that are no sweep: in which variables each stands apart."""
    names = list(dict.fromkeys(name for one in trainings for name in one if name != "RUN_ID"))
    apart = [name for name in names if len({one.get(name) for one in trainings}) > 1]
    told = [
        f"{number}: {' '.join(f'{name}={one[name]}' for name in apart if name in one) or 'without'}"
        for number, one in enumerate(trainings, 1)
    ]
    shown = "; ".join(told[:6]) + ("; …" if len(told) > 6 else "")
    return (
        f"this text starts {len(trainings)} trainings that differ in {', '.join(apart)}\n"
        f"{shown}\nchoose one: golf import-env --run 1 …"
    )


def composed(result: Converted) -> None:
    """Raises ConfigError for words that don't fit together."""
    from golf.launch.compose.configs import Checker, compose_job, composer
    from golf.launch.compose.line import CommandLine

    with composer():
        line = Checker(CommandLine([f"recipe={result.recipe}", *result.words])).complete()
        compose_job(line.overrides)


def assumptions(recipe: str) -> dict[str, str]:
    """What a recipe says of variables that others depend on."""
    from golf.launch.compose.configs import compose_job, composer

    with composer():
        return {"TRAIN_SEQ_LEN": str(compose_job([f"recipe={recipe}"]).train_seq_len)}


def differing(result: Converted, recipe: str) -> list[str]:
    """The words that change the recipe's config."""
    from omegaconf import DictConfig, OmegaConf

    from golf.launch.compose.configs import compose_job, composer
    from golf.launch.compose.options import options

    def config(*words: str) -> DictConfig:
        return compose_job([f"recipe={recipe}", *words])

    with composer():
        chosen = [word for word in result.words if options(word.split("=", 1)[0])]
        with_all = config(*chosen)
        for word in list(chosen):  # an option is needed when the config is another without it
            others = [one for one in chosen if one != word]
            if config(*others) == with_all:
                chosen = others
        before, after = config(*chosen), config(*result.words)
        kept = []
        for word in result.words:
            key = word.split("=", 1)[0]
            different = OmegaConf.select(before, key) != OmegaConf.select(after, key)
            if word in chosen or (not options(key) and (different or key.startswith("hydra."))):
                kept.append(word)
    return kept


def table() -> str:
    """The mapping in Markdown, a row a variable."""
    rows = ["| variable | read by | golf | note |", "| --- | --- | --- | --- |"]
    for one in TABLE:
        scripts = "all" if one.scripts == EVERY else ", ".join(SCRIPTS[name] for name in one.scripts)
        rows.append(f"| `{one.name}` | {scripts} | {one.place} | {one.note} |")
    return "\n".join(rows) + "\n"
