"""Command lines that choose runs: folders, filters, and the flags of one command."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from golf.common.errors import ConfigError, GolfError, did_you_mean
from golf.runs.store import Run, filter_runs, find_runs


@dataclass
class Chosen:
    """The words of a command line: folders to look in, filters, flags with values, and switches."""

    roots: list[str] = field(default_factory=list)
    filters: list[str] = field(default_factory=list)
    values: dict[str, str] = field(default_factory=dict)
    switches: set[str] = field(default_factory=set)

    @classmethod
    def parse(
        cls, command: str, argv: Sequence[str], flags: Mapping[str, str], switches: Collection[str] = ()
    ) -> Chosen:
        """Take a line apart. `flags` says what must follow each: `{"--sort": "a name must follow"}`.

        A word with an operator is a filter, unless a folder is called so. Raises ConfigError for an unknown flag, and
        for one without its value.
        """
        line, words = cls(), iter(argv)
        for word in words:
            name, equals, value = word.partition("=")
            if name in flags:
                value = value if equals else next(words, "")
                if not value:
                    raise ConfigError(f"{name}: {flags[name]}")
                line.values[name] = value
            elif word in switches:
                line.switches.add(word)
            elif word.startswith("-"):
                known = [*flags, *switches, "--help"]
                raise ConfigError(f"{word}: {command} has no such flag {did_you_mean(word, known)}")
            elif re.search(r"[<>=]", word) and not Path(word).exists():
                line.filters.append(word)
            else:
                line.roots.append(word)
        return line

    @property
    def where(self) -> str:
        """The folders, in words."""
        return " and ".join(self.roots) or "outputs/ and multirun/"

    @property
    def none(self) -> str:
        """What to say when there is no such run."""
        return f"no runs in {self.where}" + (f" with {' '.join(self.filters)}" if self.filters else "")

    def find(self) -> list[Run]:
        """The runs in the folders that pass the filters, perhaps none."""
        return filter_runs(find_runs(*self.roots), self.filters)

    def runs(self) -> list[Run]:
        """The same. Raises GolfError when there is none."""
        found = self.find()
        if not found:
            raise GolfError(self.none)
        return found
