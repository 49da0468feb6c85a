"""`golf import-env`: the record scripts' environment variables as a golf command line."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from golf.common.errors import ConfigError
from golf.launch.environment_names import EVERY, SCRIPTS, TABLE, Converted, convert

PAGE = """golf import-env [--recipe NAME] "VARIABLE=value …"

Prints the words of a golf command line that stand for the environment variables of the four record scripts. A whole
command may be given, as it was typed: env, export, line ends, torchrun --nproc_per_node=8 train_gpt.py.
What golf has no use for is named on standard error, with the reason.

  --recipe NAME   print only what differs from that recipe. Otherwise everything given is printed, after the recipe
                  of the script that reads these variables (and that script's defaults, where the recipe has others)
  --table         the whole mapping, in Markdown

  golf import-env "VOCAB_SIZE=2048 NUM_LAYERS=8 MLP_MULT=3 TRAIN_SEQ_LEN=4096"
  golf import-env --recipe gradquant_11l "XSA_LAST_N=0 MATRIX_LR=0.02 torchrun --nproc_per_node=8 train_gpt.py"
  eval "golf train budget=smoke $(golf import-env 'NUM_LAYERS=6 MODEL_DIM=384')"
"""


def run(argv: list[str]) -> int:
    """Print the words, and on stderr what was left out. Raises ConfigError for what cannot be read or composed."""
    if any(word in ("--help", "-h") for word in argv):
        print(PAGE, end="")
        return 0
    if argv == ["--table"]:
        print(table(), end="")
        return 0
    recipe, text = _recipe(argv)
    given = variables(text)
    if not given:
        raise ConfigError('golf import-env: give variables, as "VOCAB_SIZE=2048 NUM_LAYERS=8"')
    result, words = differing(given, recipe) if recipe else composed(convert(given))
    for name, reason in result.left_out:
        print(f"{name}: {reason}", file=sys.stderr)
    print(shlex.join([f"recipe={result.recipe}", *words]))
    return 0


def variables(text: str) -> dict[str, str]:
    """Assignments in a shell command; torchrun's --nproc_per_node counts as WORLD_SIZE. A later one wins.

    Raises ConfigError for quotes that don't close and for words that are neither an assignment nor a launch.
    """
    try:
        words = shlex.split(text.replace("\\\n", " "))
    except ValueError as error:
        raise ConfigError(f"golf import-env: cannot read this line ({error})") from None
    found: dict[str, str] = {}
    for index, word in enumerate(words):
        name, equals, value = word.partition("=")
        if equals and name.isidentifier():
            found[name] = value
        elif word.rsplit("/", 1)[-1].startswith(("torchrun", "python")):
            return found | _launch(words[index + 1 :])
        elif word not in ("env", "export", "&&", ";"):
            raise ConfigError(f"{word}: expected VARIABLE=value (golf import-env --help)")
    return found


def _launch(words: Sequence[str]) -> dict[str, str]:
    """What a launcher's own arguments say."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name in ("--nproc_per_node", "--nproc-per-node"):
            return {"WORLD_SIZE": value if equals else following}
    return {}


def _recipe(argv: Sequence[str]) -> tuple[str | None, str]:
    """The --recipe flag's value, and the rest as one text. Raises ConfigError for other flags and unknown recipes."""
    from golf.launch.options import options

    recipe, rest = None, []
    words = iter(argv)
    for word in words:
        if word.startswith("--recipe"):
            recipe = word.partition("=")[2] or next(words, "")
            if recipe not in (known := options("recipe")):
                raise ConfigError(f"--recipe {recipe}: there is no such recipe\nchoices: {', '.join(known)}")
        elif word.startswith("-"):
            raise ConfigError(f"{word}: golf import-env has no such flag (--recipe NAME, --table)")
        else:
            rest.append(word)
    return recipe, " ".join(rest)


def composed(result: Converted) -> tuple[Converted, list[str]]:
    """The words, once they are known to compose. Raises ConfigError when they don't fit together."""
    from golf.launch.compose import Checker, compose_job, composer
    from golf.launch.line import CommandLine

    with composer():
        line = Checker(CommandLine([f"recipe={result.recipe}", *result.words])).complete()
        compose_job(line.overrides)
    return result, result.words


def differing(given: dict[str, str], recipe: str) -> tuple[Converted, list[str]]:
    """The words that change the recipe's config, and the conversion. Raises ConfigError as `composed` does."""
    from omegaconf import DictConfig, OmegaConf

    from golf.launch.compose import compose_job, composer
    from golf.launch.options import options

    def config(*words: str) -> DictConfig:
        return compose_job([f"recipe={recipe}", *words])

    with composer():
        result = convert(given, recipe, {"TRAIN_SEQ_LEN": str(config().train_seq_len)})
    composed(result)
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
    return result, kept


def table() -> str:
    """The mapping in Markdown, a row a variable."""
    rows = ["| variable | read by | golf | note |", "| --- | --- | --- | --- |"]
    for one in TABLE:
        scripts = "all" if one.scripts == EVERY else ", ".join(SCRIPTS[name] for name in one.scripts)
        rows.append(f"| `{one.name}` | {scripts} | {one.place} | {one.note} |")
    return "\n".join(rows) + "\n"
