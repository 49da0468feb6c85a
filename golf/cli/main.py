"""`golf COMMAND …`: finds the command's file, and turns golf's errors into one clear line."""

from __future__ import annotations

import importlib
import sys

from golf.common.errors import ConfigError, GolfError, at_rest, did_you_mean

COMMANDS = {
    "train": "train a model and score it: golf train recipe=quickstart",
    "eval": "score a finished run again: golf eval run=DIR eval=sliding eval.stride=64",
    "quantize": "quantize a finished run anew: golf quantize run=DIR quant=int6 codec=zstd",
    "bench": "how fast a recipe trains here, and where its time goes: golf bench recipe=naive_baseline",
    "sample": 'let a finished run write: golf sample run=DIR prompt="def main("',
    "runs": "list, filter and compare runs: golf runs multirun/",
    "report": "compare runs on one page, with plots and statistics: golf report multirun/",
    "dashboard": "a wandb workspace for a sweep: golf dashboard multirun/",
    "data": "prepare data and tokenizer, without training: golf data tokenizer=sp2048",
    "import-env": 'environment variables of the record scripts as golf\'s words: golf import-env "NUM_LAYERS=8"',
    "doctor": "what this machine has, and what of golf was never run on it",
    "completion": 'tab completion: eval "$(golf completion bash)"',
}

USAGE = """golf: train the best language model in 16 MB and ten minutes

{commands}

`golf COMMAND --help` says more; `golf --version` prints the version.
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command; the process's exit code. 2 is a mistake on the command line, 3 a completed run over a limit."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = words[0] if words else "--help"
    if name in ("--help", "-h", "help"):
        print(USAGE.format(commands="\n".join(f"  {name:<11} {text}" for name, text in COMMANDS.items())), end="")
        return 0
    if name == "--version":
        from golf import __version__

        print(__version__)
        return 0
    try:
        if name not in COMMANDS and name != "__complete":
            raise ConfigError(f"golf {name}: there is no such command {did_you_mean(name, COMMANDS)}")
        if name not in ("__complete", "completion", "doctor"):
            from golf.common.files import use_cache

            use_cache()  # before torch is imported: it settles its cache's folder at once
        module = importlib.import_module(f"golf.cli.{name.strip('_').replace('-', '_')}")
        return int(module.run(words[1:]))
    except GolfError as error:
        print(f"golf: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `golf runs | head`
        sys.stderr.close()
        return 0


def entry() -> None:
    """The console script."""
    sys.exit(at_rest(main()))


if __name__ == "__main__":
    entry()
