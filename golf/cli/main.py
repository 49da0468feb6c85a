"""`golf COMMAND …`: finds the command's file, and turns golf's errors into one clear line."""

from __future__ import annotations

import importlib
import sys

from golf.common.errors import ConfigError, GolfError, at_rest, did_you_mean
from golf.common.pipes import outlive_readers
from golf.common.shown import told

COMMANDS = {
    "train": "train a model and score it: golf train recipe=quickstart",
    "eval": "score a finished run again: golf eval run=DIR eval=sliding eval.stride=64",
    "check": "prove a finished run again, from its folder alone: golf check run=DIR",
    "quantize": "quantize a finished run anew: golf quantize run=DIR quant=int6 codec=zstd",
    "export": "a finished run as one file that runs alone: golf export run=DIR out=FOLDER",
    "bench": "how fast a recipe trains here, and where its time goes: golf bench recipe=naive_baseline",
    "size": "how many bytes an artifact will take, before it is trained: golf size recipe=frontier",
    "sample": 'let a finished run write: golf sample run=DIR prompt="def main("',
    "runs": "list, filter and compare runs: golf runs multirun/",
    "report": "compare runs on one page, with plots and statistics: golf report multirun/",
    "compare": "is one side better, and how sure: golf compare A1 A2 A3 --against '1.2014±0.0019,n=3'",
    "dashboard": "a wandb workspace for a sweep: golf dashboard multirun/",
    "data": "prepare data and tokenizer, without training: golf data tokenizer=sp2048",
    "trust": "whose code may run beside golf's own: golf trust PACKAGE|DIR",
    "import-env": 'environment variables of the record scripts as golf\'s words: golf import-env "NUM_LAYERS=8"',
    "doctor": "what this machine has, and what of golf was never run on it",
    "completion": 'tab completion: eval "$(golf completion bash)"',
}

USAGE = """golf: train the best language model in 16 MB and ten minutes

{commands}

`golf help COMMAND` (or `golf COMMAND --help`) says more; `golf --version` prints the version.
Exit code: 0 done, 1 failed, 2 a mistake on the line, 3 completed but invalid, 130 interrupted.
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command; the process's exit code, as golf.common.errors has it."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return command(words)
    except GolfError as error:
        print(f"golf: {told(error)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def command(words: list[str]) -> int:
    """Find the command that the words name, and run it. Raises GolfError."""
    name, rest = (words[0], words[1:]) if words else ("--help", [])
    if name == "help" and rest:
        name, rest = rest[0], ["--help", *rest[1:]]
    if name in ("--help", "-h", "help"):
        print(USAGE.format(commands="\n".join(f"  {name:<11} {text}" for name, text in COMMANDS.items())), end="")
        return 0
    if name == "--version" or (name in COMMANDS and "--version" in rest):
        from golf import __version__

        print(__version__)
        return 0
    if name not in COMMANDS and name != "__complete":
        raise ConfigError(f"golf {name}: there is no such command {did_you_mean(name, COMMANDS)}")
    if name not in ("__complete", "completion", "doctor"):
        from golf.common.process import settle

        settle()
    module = importlib.import_module(f"golf.cli.{name.strip('_').replace('-', '_')}")
    return int(module.run(rest))


def entry() -> None:
    """The console script."""
    outlive_readers()
    code = main()
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except GolfError as error:
        print(f"golf: {told(error)}", file=sys.stderr)
        code = code or error.exit_code
    sys.exit(at_rest(code))


if __name__ == "__main__":
    entry()
