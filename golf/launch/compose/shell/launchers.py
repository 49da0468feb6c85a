"""Launchers of scripts: torchrun and its like, python, modal. What they start, and with how many workers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from golf.launch.compose.shell.text import Value

MANY = ("torchrun", "accelerate", "deepspeed")
LAUNCHER = re.compile(r"torchrun|accelerate|deepspeed|modal|python(\d(\.\d+)?)?")
MODULES = {"torch.distributed.run", "torch.distributed.launch", "accelerate.commands.launch", "deepspeed", "modal"}
WORKERS = {"--nproc-per-node", "--num-processes", "--num-gpus"}
ONE_MACHINE = {"--nnodes": ("1", "1:1"), "--num-machines": ("1",), "--node-rank": ("0",)}
SILENT = {
    "--standalone", "--master-addr", "--master-port", "--rdzv-backend", "--rdzv-endpoint", "--rdzv-id",
    "--max-restarts", "--multi-gpu", "-u", "launch", "run",
}  # fmt: skip
"""A launcher's words that say nothing about a training on one machine."""

FLAGS = {"--standalone", "--multi-gpu", "--no-python", "--run-path", "-u", "-O", "-B", "-I", "-s", "-S", "-E", "-q"}
"""A launcher's switches, which take no value."""


@dataclass
class Launch:
    """A launch taken apart: the script (None: it starts none), the workers, notes on words that are not used.

    `many`: the launcher is one that starts several workers.
    """

    script: str | None
    many: bool
    workers: Value | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def trains(self) -> bool:
        """Whether a script of this name trains a model, rather than a tokenizer or nothing."""
        name = stem(self.script or "")
        other = re.search(r"token|spm|bpe|download|shard|prepare|cached|compile", name)
        if not name or other or re.match(r"(eval|test)(_|$)", name):
            return False
        return self.many or re.search(r"(^|_)train", name) is not None


def stem(script: str) -> str:
    """The name of a script's file, without .py."""
    return script.rsplit("/", 1)[-1].removesuffix(".py")


def launched(words: Sequence[Value]) -> Launch:
    """Take apart a launcher's words, or those of a script that is started by its own name."""
    itself = words[0].text.endswith(".py")
    found = Launch(None, words[0].text.rsplit("/", 1)[-1] in MANY)
    rest = list(words if itself else words[1:])
    while rest:
        word = rest.pop(0)
        text = word.text.partition("::")[0]  # modal run train.py::main
        name, equals, inline = text.partition("=")
        name = "--" + name[2:].replace("_", "-") if name.startswith("--") else name
        if text in ("-c", "-"):
            return found
        if text in ("-m", "--module") and rest:
            module = rest.pop(0).text
            if module not in MODULES:
                found.script = module.replace(".", "/") + ".py"
                break
            found.many = found.many or module != "modal"
        elif (text.endswith(".py") or word.unknown) and not text.startswith("-"):
            found.script = text
            break
        elif name.startswith("-"):
            follows = bool(rest) and not rest[0].text.startswith("-") and not rest[0].text.endswith(".py")
            given = Value(inline, word.unknown) if equals else None
            if follows and not equals and name not in FLAGS:
                given = rest.pop(0)
            if name in WORKERS and given is not None:
                found.workers = replace(given, unknown=given.unknown or (() if given.text.isdigit() else (given.text,)))
            elif name not in SILENT and (given is None or given.text not in ONE_MACHINE.get(name, ())):
                shown = text if equals or given is None else f"{text} {given.text}"
                found.notes.append(f"{shown}: golf starts its own workers, on one machine")
        elif text not in SILENT:
            found.notes.append(f"{text}: not used")
    if rest:
        arguments = " ".join(word.text for word in rest)
        found.notes.append(f"{arguments}: arguments of {found.script}; golf takes what the scripts read from variables")
    return found
