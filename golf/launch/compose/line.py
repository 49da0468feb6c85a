"""A command line, taken apart; words and flags on it that would be read and not used."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from golf.common.errors import ConfigError, did_you_mean
from golf.launch.compose.words import spelled


@dataclass
class CommandLine:
    """A command line, taken apart: overrides in order, flags, --config-dir folders, --multirun."""

    overrides: list[str] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    config_dirs: list[Path] = field(default_factory=list)
    multirun: bool = False
    go_on: bool = False
    """Whether a run goes on where one of its config lies in its folder (`resume=auto`)."""
    trust: bool = False
    """Whether the code that the named run's folder brings may run, whoever made it (`--trust`)."""

    @property
    def prepare(self) -> bool:
        """Whether run folders are made, and nothing is run."""
        return "--prepare" in self.flags

    @property
    def hydra_flags(self) -> list[str]:
        """The flags that Hydra knows."""
        return [flag for flag in self.flags if flag != "--prepare"]

    @classmethod
    def parse(cls, argv: Sequence[str], own: Collection[str] = ()) -> CommandLine:
        """Split `argv`; flags may stand anywhere. Words whose key is one of the command's `own` are no overrides, and
        stay as they were typed. Raises ConfigError for a flag without its value or a missing folder."""
        line = cls()
        words = iter(argv)
        for word in words:
            if word == "hydra.mode=MULTIRUN":
                line.multirun = True
                continue
            if not word.startswith("-"):
                line.overrides.append(word if word.partition("=")[0] in own else spelled(word))
                continue
            name, given, value = word.partition("=")
            if name in ("-m", "--multirun"):
                line.multirun = True
            elif name in ("--config-dir", "-cd", "--cfg", "-c", "--info", "-i", "--package", "-p"):
                if not given:
                    value = next(words, "")
                if not value:
                    raise ConfigError(f"{name}: a value must follow")
                if name in ("--config-dir", "-cd"):
                    folder = Path(value).expanduser().absolute()
                    if not folder.is_dir():
                        raise ConfigError(f"--config-dir {value}: there is no such folder")
                    if folder not in line.config_dirs:
                        line.config_dirs.append(folder)
                else:
                    line.flags += [name, value]
            elif word == "--trust":
                line.trust = True
            elif word in ("--prepare", "--resolve", "--hydra-help", "--version"):
                line.flags.append(word)
            else:
                known = ["--multirun", "--config-dir", "--prepare", "--cfg", "--info", "--package", "--resolve",
                         "--trust"]  # fmt: skip
                raise ConfigError(f"{word}: unknown flag {did_you_mean(word, known)}")
        return line

    def hydra_argv(self) -> list[str]:
        """The same line in the order in which Hydra's own parser takes it."""
        dirs = ["--config-dir", str(self.config_dirs[0])] if len(self.config_dirs) == 1 else []
        several = searched(self.config_dirs) if not dirs else []  # Hydra's own flag names one
        return [*dirs, *self.hydra_flags, *(["--multirun"] if self.multirun else []), *several, *self.overrides]


def searched(config_dirs: Sequence[Path]) -> list[str]:
    """The override that has Hydra search these folders too."""
    quoted = ",".join("'file://{}'".format(str(d).replace("'", r"\'")) for d in config_dirs)
    return [f"hydra.searchpath=[{quoted}]"] if config_dirs else []


def refuse_unused(line: CommandLine, command: str, *unused: str) -> None:
    """Raise ConfigError for flags, Hydra's own words and keys of groups that a command would read and not use."""
    if line.flags:
        raise ConfigError(f"{line.flags[0]}: golf {command} has no such flag")
    refuse_trust(line)
    for word in line.overrides:
        top = re.split(r"[./=@]", word.lstrip("+~"))[0]
        if top in ("hydra", *unused):
            raise ConfigError(f"{word}: golf {command} makes no use of {top} words; leave it out")


def refuse_trust(line: CommandLine) -> None:
    """Raise ConfigError for --trust on a line without a folder that could bring code."""
    if line.trust and not any(word.startswith(("run=", "resume=")) for word in line.overrides):
        raise ConfigError("--trust: lets the code run that a folder brings, and stands beside run=DIR or resume=DIR")


def refuse_lone(line: CommandLine) -> None:
    """Raise ConfigError for words of `golf train` that mean something only with or only without -m, and for flags that
    mean something only beside others."""
    names = set(line.flags)
    shows = names & {"--cfg", "-c", "--info", "-i"}
    for flag in sorted(names & {"--resolve", "--package", "-p"}):
        if not names & {"--cfg", "-c"}:
            raise ConfigError(f"{flag}: shows part of a config with --cfg job, and is nothing alone")
    if line.prepare and shows:
        raise ConfigError(f"--prepare: {min(shows)} shows a config and prepares nothing; leave one of them out")
    other = next((word for word in line.overrides if re.match(r"hydra/sweeper=(?!golf$)", word)), None)
    for word in line.overrides if not shows else ():
        key = word.lstrip("+~").partition("=")[0]
        of_sweeps = re.match(r"sweep(\.|$)|hydra\.sweep\.|hydra[./](launcher|sweeper)(\.|$)", key)
        if of_sweeps and not line.multirun:
            raise ConfigError(f"{word}: is for sweeps, and one run would ignore it; add -m (--multirun)")
        if other and re.match(r"sweep(\.|$)", key):
            raise ConfigError(f"{word}: {other} makes no use of it; leave one of them out")
        if line.multirun and re.match(r"hydra\.run\.", key):
            raise ConfigError(f"{word}: a sweep's folder is named by hydra.sweep.dir=…")
